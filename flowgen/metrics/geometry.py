"""The geometry of trajectories: how far they move, and how straight they are."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from flowgen.core import Field, InputError, expand_time, shaped

__all__ = ["Geometry", "endpoint_error", "geometry", "normalised_path_energy"]


class Geometry(NamedTuple):
    """The geometry of trajectories: their states `(steps + 1, N, *shape)`, path energy, straightness and curvature
    (both 0 for lines).
    """

    states: Tensor
    path_energy: float
    straightness: float
    curvature: float

    @property
    def end(self) -> Tensor:
        """Return where the trajectories end, `(N, *shape)`."""
        return self.states[-1]


@torch.no_grad()
def geometry(field: Field, x0: Tensor, grid: Tensor, cond: Tensor | None = None) -> Geometry:
    """Follow Euler's steps of a field along the grid, with h_k their lengths and v_k their velocities.

    path energy  = mean_i sum_k h_k |v_k|^2               of int |v|^2 dt (arXiv 2302.00482)
    straightness = mean_i sum_k h_k |(x1 - x0) - v_k|^2   of int |(x1 - x0) - v|^2 dt (arXiv 2209.03003)
    curvature    = mean_i sum_k angle(v_k, v_{k+1})       of int |kappa| ds, the turns of a trajectory in radians

    Energy and straightness have the squared units of x0. Curvature has none, and does not see a change of speed.
    For steps that fill [0, 1], x1 - x0 = sum_k h_k v_k, and so straightness = path energy - mean |x1 - x0|^2.

    Shapes: x0 `(N, *shape)` at grid[0] = 0, grid `(steps + 1,)` up to 1; cond `(N, ...)`.
    """
    states, before = [x0], None
    energy, turned = torch.zeros(2, len(x0), dtype=torch.float64, device=x0.device)
    for t, s in pairwise(grid.tolist()):
        v = shaped(field(states[-1], expand_time(t, x0), cond), x0, "the field")
        energy += (s - t) * _square(v)
        turned += 0 if before is None else _angle(before, v)
        states.append(states[-1] + (s - t) * v)
        before = v
    straightness = energy - _square(states[-1] - x0)
    return Geometry(torch.stack(states), *(x.mean().item() for x in (energy, straightness, turned)))


def _square(x: Tensor) -> Tensor:
    """Return |x_i|^2 of each row, float64: a difference of two energies needs the digits."""
    return x.double().flatten(1).square().sum(1)


def _angle(u: Tensor, v: Tensor) -> Tensor:
    """Return the angle between the rows of u and v in radians, 0 where one of them is zero (Kahan's formula: exact near
    0).
    """
    u, v = u.double().flatten(1), v.double().flatten(1)
    u, v = u * v.norm(dim=1, keepdim=True), v * u.norm(dim=1, keepdim=True)
    return 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))


def endpoint_error(ends: Tensor, reference: Tensor) -> float:
    """Return sqrt(mean_i |x_i - y_i|^2) between the ends of a few steps and of a fine solve from the same starts.

    It is the error of the solver alone, whatever the model. Shapes: both `(N, *shape)`. Units: those of x.

    Raises:
        InputError: if the shapes differ.
    """
    if ends.shape != reference.shape:
        raise InputError(f"ends of shape {tuple(ends.shape)} are not those of a reference {tuple(reference.shape)}")
    return _square(ends - reference).mean().sqrt().item()


def normalised_path_energy(path_energy: float, transport_cost: float) -> float:
    """Return NPE = |path energy - W2^2| / W2^2 (arXiv 2302.00482): 0 for the flow of optimal transport. It has no
    units.

    Args:
        path_energy: of `geometry`.
        transport_cost: W2^2 from source to data, the square of `wasserstein2`. Of finite sets it carries noise of a few
            percent at thousands of points: average both over draws before reading small differences.
    """
    return abs(path_energy - transport_cost) / transport_cost
