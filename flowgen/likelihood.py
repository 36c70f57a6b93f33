"""The log-likelihood of a flow, by the change of variables along its trajectories."""

from __future__ import annotations

import math
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from flowgen.core import Field, InputError
from flowgen.data.laws import Law
from flowgen.model import Model
from flowgen.sampling import solve
from flowgen.solvers import Solver

__all__ = ["Density", "divergence", "log_likelihood"]


@runtime_checkable
class Density(Law, Protocol):
    """A law whose density is known."""

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) in nats: `(B, *event)` to `(B,)`."""
        ...


@final
class _Followed:
    """A field on x and, in a last column, on the integral of its divergence: (x, l) -> (v, div v)."""

    def __init__(self, field: Field, event: tuple[int, ...]) -> None:
        self.field, self.event = field, event

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        v, div = divergence(self.field, x[:, :-1].unflatten(1, self.event), t, cond)
        return torch.cat([v.flatten(1), div.unsqueeze(1)], dim=1)


def divergence(field: Field, x: Tensor, t: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The field v `(B, *event)` and its divergence sum_d dv_d / dx_d `(B,)`, exact, by a backward pass a dimension."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        v = field(x, t, cond) + 0 * x  # a field that does not depend on x has a divergence too
        rows = v.flatten(1).sum(0).unbind()
        slopes = [torch.autograd.grad(row, x, retain_graph=True)[0].flatten(1)[:, d] for d, row in enumerate(rows)]
    return v.detach(), torch.stack(slopes).sum(0)


@torch.no_grad()
def log_likelihood(model: Model, source: Density, x: Tensor, grid: Tensor, solver: Solver) -> Tensor:
    """log p(x) in nats of data under the model's flow (arXiv 1806.07366),

    log p(x_1) = log p_0(x_0) - int_0^1 div v(x_t, t) dt,

    with x_0 from walking the flow backward, and less log |det| of the scaling. One backward pass a dimension: meant for
    points and narrow tables.

    Shapes: x `(B, *event)` in data units, grid `(steps + 1,)` increasing over the model's span; to `(B,)` float64.

    Raises:
        InputError: if a column of the training data is constant, where no density exists.
    """
    if (model.scaling.scale == 0).any():
        raise InputError("data with a constant column have no density")
    z = model.scaling.apply_to(x.to(model.device)).double()
    start = torch.cat([z.flatten(1), z.new_zeros(len(z), 1)], dim=1)
    end = solve(_Followed(_Double(model), tuple(x.shape[1:])), start, grid.flip(0), solver)
    x0, integral = end[:, :-1].unflatten(1, x.shape[1:]), end[:, -1]  # minus the integral: the walk was backward
    dim = z.flatten(1).shape[1]
    sigma = model.start(torch.ones(1)).item()
    log_p0 = source.log_density((x0 / sigma).cpu()).to(z) - dim * math.log(sigma)
    return (log_p0 + integral - model.scaling.scale.double().abs().log().expand(x.shape[1:]).sum()).cpu()


class _Double:
    """The velocity of a float32 model for float64 states, whose sums then lose nothing."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        return self.model.velocity(x.to(dtype), t.to(dtype), cond).double()
