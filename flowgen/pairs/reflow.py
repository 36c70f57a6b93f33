"""Reflow: the coupling that a trained flow makes between its own ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowgen.core import Field, Pair, numbers
from flowgen.model import Model
from flowgen.samplers.grids import checked
from flowgen.samplers.ode import Solver
from flowgen.sampling import flow, solve

__all__ = ["Inversion", "Reflow", "invert"]


@torch.no_grad()
def invert(
    model: Model, x1: Tensor, grid: Tensor, solver: Solver | str, cond: Tensor | None = None, field: Field | None = None
) -> Tensor:
    """Return the source points `(B, *shape)` from where the model's flow comes to x1 `(B, *shape)`, both in model
    units.

    The field is walked back along the grid; what it comes to is sigma(0) x0.

    Args:
        field: walked in place of the model's velocity: one that counts, or guides.
    """
    x = solve(field or model.velocity, model.admit(x1), checked(grid).flip(0), solver, cond)
    return x / model.start(torch.ones((), dtype=x.dtype))


@final
@dataclass(frozen=True)
class Reflow:
    """Pairs each source point with the end of its trajectory (arXiv 2209.03003): (x0, _) -> (x0, flow(x0)).

    The trajectories of the teacher do not cross, so the straight lines between these ends cross less than those of the
    coupling it was trained on, and a flow trained on them is straighter, with the same marginals. All else in training
    stays as it is.
    """

    teacher: Model
    grid: Tensor
    solver: Solver | str

    def __call__(self, pair: Pair, generator: torch.Generator) -> Pair:
        return Pair(
            pair.x0,
            flow(self.teacher, numbers(pair.x0, self.teacher.dtype), self.grid, self.solver, pair.cond),
            pair.cond,
        )


@final
@dataclass(frozen=True)
class Inversion:
    """Pairs each data point with the start of its trajectory (arXiv 2405.20320): (_, x1) -> (flow^-1(x1), x1).

    They are the pairs of `Reflow`, but that the data are true, so that the errors of the teacher's marginal are not
    learned with them; what is not quite the source instead are their starts.
    """

    teacher: Model
    grid: Tensor
    solver: Solver | str

    def __call__(self, pair: Pair, generator: torch.Generator) -> Pair:
        return Pair(invert(self.teacher, pair.x1, self.grid, self.solver, pair.cond), pair.x1, pair.cond)
