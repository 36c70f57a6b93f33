"""Reflow: the coupling that a trained flow makes between its own ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowgen.core import Pair
from flowgen.model import Model
from flowgen.sampling import flow
from flowgen.solvers import Solver

__all__ = ["Reflow"]


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
    solver: Solver

    def __call__(self, pair: Pair, generator: torch.Generator) -> Pair:
        return Pair(pair.x0, flow(self.teacher, pair.x0, self.grid, self.solver, pair.cond), pair.cond)
