"""Distillation: the flow map of a field, for a student to learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from flowgen import grids
from flowgen.core import Field, like
from flowgen.sampling import solve
from flowgen.solvers import Solver

__all__ = ["SolverFlowMap"]


@final
@dataclass(frozen=True)
class SolverFlowMap:
    """The average velocity of a field from t to s, (x_s - x_t) / (s - t), by a few steps of a solver: a FlowMap.

    Each row has times of its own: with t_r = t + r (s - t), all walk dx/dr = (s - t) v(x, t_r) from r = 0 to 1.

    Args:
        field: the velocity v.
        solver: one whose steps are fixed.
        steps: from t to s.
    """

    field: Field
    solver: Solver | str
    steps: int

    def __call__(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        delta = s - t

        def rescaled(x: Tensor, r: Tensor, cond: Tensor | None = None) -> Tensor:
            return like(delta, x) * self.field(x, t + r * delta, cond)

        end = solve(rescaled, x, grids.uniform(self.steps), self.solver, cond)
        return (end - x) / like(delta, x)
