"""Distributions to sample from: toys in the plane with exact samplers and, where it is known, their density."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
import torch
from torch import Tensor

from flowgen.core import InputError
from flowgen.registry import Objects

__all__ = [
    "TOYS",
    "Blurred",
    "Categorical",
    "Checkerboard",
    "Distribution",
    "Gaussian",
    "Pinwheel",
    "circles",
    "eight_gaussians",
    "gaussian_grid",
    "moons",
    "rings",
    "s_curve",
    "spirals",
    "swissroll",
]


class Distribution(Protocol):
    """A probability distribution on tensors of this shape."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return n independent draws, `(n, *shape)` float32 on the CPU; float64 of a table in data units."""
        ...


@final
@dataclass(frozen=True)
class Gaussian:
    """The standard normal distribution N(0, I) on tensors of this shape."""

    shape: tuple[int, ...] = (2,)

    def __post_init__(self) -> None:
        if not isinstance(self.shape, tuple):
            raise InputError(f"shape is that of a row, a tuple such as (2,), not {self.shape!r}")

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, *self.shape, generator=generator)

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats: `(B, *shape)` to `(B,)`."""
        return -0.5 * (x.flatten(1).square() + math.log(2 * math.pi)).sum(1)


@final
@dataclass(frozen=True)
class Categorical:
    """A label 0, ..., K - 1 by weights that need not sum to one; its draws are int64."""

    weights: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.multinomial(torch.tensor(self.weights), n, replacement=True, generator=generator)


@final
@dataclass(frozen=True)
class Blurred:
    """A skeleton of points or curves in the plane, blurred by Gaussian noise: x = skeleton(u) + std z, u ~ U[0, 1).

    Args:
        skeleton: `(n,)` to `(n, 2)`; smooth on each of `pieces` equal intervals of [0, 1).
        std: standard deviation of the noise in each coordinate.
        pieces: number of smooth pieces: the points of a mixture, or the curves.
        nodes: Gauss-Legendre nodes on each piece: 1 for points.

    The density p(x) = int_0^1 N(x; skeleton(u), std^2 I) du is a finite sum for points, and for curves a rule that is
    exact to float64 as long as neighbouring nodes are closer than std.
    """

    skeleton: Callable[[Tensor], Tensor]
    std: float
    pieces: int = 1
    nodes: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf:
            raise InputError(f"std must be positive, not {self.std}")

    @property
    def shape(self) -> tuple[int, ...]:
        return (2,)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        centre = self.skeleton(torch.rand(n, generator=generator))
        return centre + self.std * torch.randn(n, 2, generator=generator)

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats: `(B, 2)` to `(B,)`."""
        nodes, weights = np.polynomial.legendre.leggauss(self.nodes)
        inner = torch.from_numpy((nodes + 1) / 2)
        u = ((torch.arange(self.pieces).unsqueeze(1) + inner) / self.pieces).flatten()
        log_weight = torch.from_numpy(weights / 2 / self.pieces).log().repeat(self.pieces)
        square = torch.cdist(x.double(), self.skeleton(u)).square() / self.std**2
        log_p = torch.logsumexp(log_weight - square / 2, dim=1) - math.log(2 * math.pi * self.std**2)
        return log_p.to(x.dtype)


@final
@dataclass(frozen=True)
class Checkerboard:
    """Uniform on the eight dark squares of a 4 x 4 board on [-size, size]^2."""

    size: float = 4.0

    @property
    def shape(self) -> tuple[int, ...]:
        return (2,)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        square = torch.randint(8, (n,), generator=generator)
        row = square // 2
        corner = torch.stack([2 * (square % 2) + row % 2, row], dim=1)
        return ((corner + torch.rand(n, 2, generator=generator)) / 2 - 1) * self.size

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats: -log(2 size^2) on the dark squares, -inf elsewhere."""
        cell = ((x / self.size + 1) * 2).floor()
        dark = (cell.sum(1) % 2 == 0) & (cell >= 0).all(1) & (cell < 4).all(1)
        return dark.to(x.dtype).log() - math.log(2 * self.size**2)


@final
@dataclass(frozen=True)
class Pinwheel:
    """Gaussian arms, each bent by an angle that grows with the radius (arXiv 1603.06277); its density is not closed."""

    arms: int = 5
    radial_std: float = 0.6
    tangential_std: float = 0.2
    bend: float = 0.25
    scale: float = 2.0

    @property
    def shape(self) -> tuple[int, ...]:
        return (2,)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        arm = torch.randint(self.arms, (n,), generator=generator)
        straight = torch.randn(n, 2, generator=generator) * torch.tensor([self.radial_std, self.tangential_std])
        radius, offset = 1 + straight[:, 0], straight[:, 1]
        angle = 2 * math.pi * arm / self.arms + self.bend * radius.exp()
        cos, sin = angle.cos(), angle.sin()
        return self.scale * torch.stack([radius * cos - offset * sin, radius * sin + offset * cos], dim=1)


def _points(points: Tensor, std: float) -> Blurred:
    """Return the mixture of equal Gaussians at `points` (K, 2)."""
    count = len(points)
    return Blurred(lambda u: points.to(u.dtype)[(u * count).long().clamp(max=count - 1)], std, pieces=count, nodes=1)


def _curve(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x, y], dim=1)


def _piece(u: Tensor, pieces: int) -> tuple[Tensor, Tensor]:
    """Return the piece that u falls in, and the position within it, in [0, 1)."""
    k = (u * pieces).floor()
    return k, u * pieces - k


def eight_gaussians(radius: float = 5.0, std: float = 1.0) -> Blurred:
    """Return eight Gaussians on a circle (radius 5, std 1 each: the benchmark of arXiv 2302.00482)."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return _points(radius * _curve(angle.cos(), angle.sin()), std)


def gaussian_grid(side: int = 5, spacing: float = 2.0, std: float = 0.1) -> Blurred:
    """Return side x side Gaussians on a square grid around the origin."""
    axis = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * spacing
    return _points(torch.cartesian_prod(axis, axis), std)


def moons(noise: float = 0.05, scale: float = 2.0, shift: float = -1.0) -> Blurred:
    """Return two half circles, as scikit-learn's `make_moons` with `noise`, times `scale`, plus `shift` (arXiv
    2302.00482).
    """

    def skeleton(u: Tensor) -> Tensor:
        k, w = _piece(u, 2)
        cos, sin = torch.cos(math.pi * w), torch.sin(math.pi * w)
        upper, lower = _curve(cos, sin), _curve(1 - cos, 0.5 - sin)
        return torch.where(k.unsqueeze(1) == 0, upper, lower) * scale + shift

    return Blurred(skeleton, noise * scale, pieces=2)


def rings(radii: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0), std: float = 0.1) -> Blurred:
    """Return concentric circles, equally likely."""

    def skeleton(u: Tensor) -> Tensor:
        k, w = _piece(u, len(radii))
        radius = torch.tensor(radii, dtype=u.dtype)[k.long().clamp(max=len(radii) - 1)]
        return _curve(radius * torch.cos(2 * math.pi * w), radius * torch.sin(2 * math.pi * w))

    return Blurred(skeleton, std, pieces=len(radii))


def circles(noise: float = 0.05, factor: float = 0.5, scale: float = 3.0) -> Blurred:
    """Return two circles, as scikit-learn's `make_circles` with `noise` and `factor`, times `scale`."""
    return rings((scale, factor * scale), noise * scale)


def spirals(turns: float = 1.5, radius: float = 4.0, std: float = 0.1) -> Blurred:
    """Return two arms of an Archimedean spiral, each from near the origin out to `radius`."""

    def skeleton(u: Tensor) -> Tensor:
        k, w = _piece(u, 2)
        angle = 2 * math.pi * turns * w + math.pi * k
        reach = radius * (0.1 + 0.9 * w)
        return _curve(reach * angle.cos(), reach * angle.sin())

    return Blurred(skeleton, std, pieces=2)


def swissroll(noise: float = 0.5, scale: float = 0.3) -> Blurred:
    """Return the first and last coordinate of scikit-learn's `make_swiss_roll` with `noise`, times `scale`."""

    def skeleton(u: Tensor) -> Tensor:
        angle = 1.5 * math.pi * (1 + 2 * u)
        return scale * _curve(angle * angle.cos(), angle * angle.sin())

    return Blurred(skeleton, noise * scale)


def s_curve(noise: float = 0.05, scale: float = 1.5) -> Blurred:
    """Return the first and last coordinate of scikit-learn's `make_s_curve` with `noise`, times `scale` (arXiv
    2302.00482).
    """

    def skeleton(u: Tensor) -> Tensor:
        angle = 3 * math.pi * (u - 0.5)
        return scale * _curve(angle.sin(), angle.sign() * (angle.cos() - 1))

    return Blurred(skeleton, noise * scale, pieces=2)


TOYS: Objects[Callable[[], Distribution]] = Objects("toy")
"""The distributions that have a name."""
