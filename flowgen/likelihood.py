"""The log-likelihood of a flow, by the change of variables along its trajectories."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from flowgen.core import Field, InputError, expand_time, fixed, gradients, shaped
from flowgen.data.distributions import Distribution
from flowgen.data.streams import source_rows
from flowgen.model import Model
from flowgen.samplers.grids import checked
from flowgen.samplers.ode import Solver
from flowgen.sampling import solve

__all__ = [
    "Density",
    "Rademacher",
    "bits_per_dim",
    "dequantised",
    "divergence",
    "estimated_divergence",
    "log_likelihood",
    "probes",
]


@runtime_checkable
class Density(Distribution, Protocol):
    """A distribution whose density is known."""

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats: `(B, *shape)` to `(B,)`."""
        ...


@final
@dataclass(frozen=True)
class Rademacher:
    """Rademacher's distribution: each value is -1 or 1. Its probes give the least variance."""

    shape: tuple[int, ...]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return 2.0 * torch.randint(2, (n, *self.shape), generator=generator) - 1


@final
@dataclass(frozen=True)
class _Unit:
    """The uniform distribution on [0, 1)."""

    shape: tuple[int, ...]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, *self.shape, generator=generator)


def probes(distribution: Distribution, rows: int, count: int, seed: int, first: int = 0) -> Tensor:
    """Draw `count` probes for each row, `(count, rows, *shape)`: those of a row are a function of the seed and its
    number.

    Args:
        distribution: of mean 0 and covariance I: `Rademacher` or `Gaussian`.
        first: the number of the first row.

    Raises:
        InputError: unless there is at least one.
    """
    if count < 1:
        raise InputError(f"a divergence is estimated by at least one probe, not {count}")
    return torch.stack(
        [source_rows(distribution, first, first + rows, seed, f"probe {index}") for index in range(count)]
    )


def divergence(field: Field, x: Tensor, t: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the field v `(B, *shape)` and its divergence sum_d dv_d / dx_d `(B,)`, exact, by a backward pass a
    dimension.
    """
    with gradients():
        x, v = _traced(field, x, t, cond)
        rows = v.flatten(1).sum(0).unbind()
        slopes = [torch.autograd.grad(row, x, retain_graph=True)[0].flatten(1)[:, d] for d, row in enumerate(rows)]
    return v.detach(), torch.stack(slopes).sum(0)


def estimated_divergence(
    field: Field, x: Tensor, t: Tensor, cond: Tensor | None, probes: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the field v and Hutchinson's estimate of its divergence, the mean of e^T (dv/dx) e over probes e (arXiv
    1810.01367): unbiased, by a backward pass a probe. Shapes: as of `divergence`, probes `(P, B, *shape)`.
    """
    with gradients():
        x, v = _traced(field, x, t, cond)
        slopes = [(torch.autograd.grad(v, x, e, retain_graph=True)[0] * e).flatten(1).sum(1) for e in fixed(probes)]
    return v.detach(), torch.stack(slopes).mean(0)


def _traced(field: Field, x: Tensor, t: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return x and the field at x, to be differentiated."""
    x, t, cond = fixed(x).requires_grad_(True), fixed(expand_time(t, x)), None if cond is None else fixed(cond)
    v = shaped(field(x, t, cond), x, "the field")
    return x, v + 0 * x  # a field that does not depend on x has a divergence too


@final
class _Followed:
    """A field on x and, in a last column, on the integral of its divergence: (x, l) -> (v, div v)."""

    def __init__(self, field: Field, shape: tuple[int, ...], probes: Tensor | None) -> None:
        self.field, self.shape, self.probes = field, shape, probes

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        v, div = self._divergence(x[:, :-1].unflatten(1, self.shape), t, cond)
        return torch.cat([v.flatten(1), div.unsqueeze(1)], dim=1)

    def _divergence(self, x: Tensor, t: Tensor, cond: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.probes is None:
            return divergence(self.field, x, t, cond)
        return estimated_divergence(self.field, x, t, cond, self.probes)


@torch.no_grad()
def log_likelihood(
    model: Model,
    source: Density,
    x: Tensor,
    grid: Tensor,
    solver: Solver | str,
    cond: Tensor | None = None,
    probes: Tensor | None = None,
) -> Tensor:
    """Return log p(x) in nats of data under the model's flow (arXiv 1806.07366),

    log p(x_1) = log p_0(x_0) - int_0^1 div v(x_t, t) dt,

    with x_0 from walking the flow backward, and less log |det| of the scaling. By default it takes a backward pass a
    dimension, for points and narrow tables; with probes, which stay the same along a trajectory, one for each of them,
    and is unbiased (arXiv 1810.01367).

    It is the density of what the model samples. On diffusions that begins with sigma(0) x0, which is nearly,
    not exactly, the distribution of x_t there: that has alpha(0) of the data in it. And it ends where the grid does,
    before the last noise is gone: at t = 1 - margin it is the density of alpha x1 + sigma x0, the data blurred by
    sigma.

    Args:
        source: of x0, in model units.
        grid: `(steps + 1,)`, increasing over the model's span.
        cond: the condition of each row, `(B, ...)`.
        probes: `(P, B, *shape)`, see `probes`; None for the exact divergence.

    Shapes: x `(B, *shape)` in data units, to `(B,)` float64.

    Raises:
        InputError: if a column of the training data is constant, where no density exists.
    """
    if not isinstance(source, Density):
        raise InputError("a likelihood needs a source whose density is known, with a method log_density: Gaussian")
    if (model.scaling.scale == 0).any():
        raise InputError("data with a constant column have no density")
    z = model.scaling.apply_to(x.to(model.device)).double()
    start = torch.cat([z.flatten(1), z.new_zeros(len(z), 1)], dim=1)
    followed = _Followed(_Double(model), tuple(x.shape[1:]), None if probes is None else probes.to(z))
    end = solve(followed, start, checked(grid).flip(0), solver, None if cond is None else model.admit_cond(cond))
    x0, integral = end[:, :-1].unflatten(1, x.shape[1:]), end[:, -1]  # minus the integral: the walk was backward
    dim = z.flatten(1).shape[1]
    sigma = model.start(torch.ones(1)).item()
    log_p0 = source.log_density((x0 / sigma).cpu()).to(z) - dim * math.log(sigma)
    return (log_p0 + integral - model.scaling.scale.double().abs().log().expand(x.shape[1:]).sum()).cpu()


class _Double:
    """The velocity of a float32 model for float64 states, so that their sums keep float64."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        dtype = self.model.dtype or x.dtype
        return self.model.velocity(x.to(dtype), t.to(dtype), cond).double()


def dequantised(x: Tensor, step: float, seed: int, first: int = 0) -> Tensor:
    """Draw each value of images whose shades are `step` apart uniformly within half a step: x + step (u - 1/2).

    By Jensen's inequality the mean of log p(x + step (u - 1/2)) + dim log step over u ~ U[0, 1) is at most the
    log-probability of the image, among all images of such shades, when what the model draws is rounded to the nearest
    intensity (arXiv 1511.01844). 8-bit images, read as k / 255, have the step 1/255. The papers' (k + u) / 256 differs
    in where the intervals lie: here the shades that the model has learned are in their middle.

    Args:
        x: `(B, *shape)`.
        seed: of u, which of a row is a function of it and of the row's number.
        first: the number of the first row.
    """
    u = source_rows(_Unit(tuple(x.shape[1:])), first, first + len(x), seed, "dequantisation").to(x.device)
    return x + step * (u - 0.5)


def bits_per_dim(log_probability: Tensor, dim: int) -> Tensor:
    """Return -log P / (dim log 2) of images of so many values, whose log-probabilities are in nats: `(B,)` to `(B,)`.

    log P = log p + dim log step of a density p of dequantised images: for 8-bit images, log2(255) - log2 p / dim bits.
    """
    return -log_probability / (dim * math.log(2))
