"""Inpainting by replacement: known entries are set again after every step, and steps are repeated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor

from flowgen.core import Field, InputError
from flowgen.data.streams import DistributionField, source_rows
from flowgen.guidance.measurements import Measurement, project
from flowgen.samplers.ode import Solver
from flowgen.schedules import Schedule

__all__ = ["RePaint", "resampled"]

ROWS = 2**20
"""More rows than are ever edited together."""


@final
@dataclass(frozen=True)
class RePaint(Solver):
    """Steps of a solver, after each of which the measured part of x_s is that of y at s (arXiv 2011.13456):

    A x_s = alpha(s) y + sigma(s) A x0, with a new source x0 each time.

    A step back, from s to t < s, adds noise along the path (arXiv 2201.09865):

    x_t = a x_s + sqrt(sigma(t)^2 - a^2 sigma(s)^2) x0,  a = alpha(t) / alpha(s),

    so that the grids of `resampled` go over what does not yet fit. The noise of a row is a function of the seed, the
    number of the row and the number of the step.

    Args:
        solver: of the steps towards data.
        schedule: of the field.
        measurement: A.
        y: what was measured, in model units: a row each, or one for all.
        source: the distribution of x0, in model units; steps back need it to be Gaussian.
        seed: of x0.
        first: the number of the first row of a batch.
    """

    solver: Solver
    schedule: Schedule
    measurement: Measurement
    y: Tensor
    source: DistributionField = DistributionField()
    seed: int = 0
    first: int = 0

    @property
    def order(self) -> int:  # type: ignore[override]  # read-only here: these are the solver's
        return self.solver.order

    @property
    def couples_batch(self) -> bool:  # type: ignore[override]
        return self.solver.couples_batch

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def denoises_last(self) -> bool:  # type: ignore[override]
        return self.solver.denoises_last

    def at(self, row: int) -> RePaint:
        return replace(self, solver=self.solver.at(row), first=self.first + row)

    def step(
        self, field: Field, x: Tensor, t: float, s: float, cond: Tensor | None = None, carry: Any = None
    ) -> tuple[Tensor, tuple[int, Any]]:
        count, inner = carry or (0, None)
        noise = source_rows(self.source, self.first, self.first + len(x), self.seed, f"replaced at step {count}").to(x)
        if s < t:
            return self._back(x, t, s, noise), (count + 1, None)
        # a solver with noise of its own has other noise where a step is walked again: that of rows which are not there
        x, inner = self.solver.at(count * ROWS).step(field, x, t, s, cond, inner)
        alpha, sigma = self.schedule.mark(s)
        known = alpha * self.y + sigma * self.measurement.apply(noise)
        return project(self.measurement, x, known), (count + 1, inner)

    def _back(self, x: Tensor, s: float, t: float, noise: Tensor) -> Tensor:
        (alpha_s, sigma_s), (alpha, sigma) = self.schedule.mark(s), self.schedule.mark(t)
        a = alpha / alpha_s
        return a * x + max(0.0, sigma**2 - (a * sigma_s) ** 2) ** 0.5 * noise


def resampled(grid: Tensor, times: int, jump: int = 1) -> Tensor:
    """Return the grid in which each `jump` steps are taken `times` times, with steps back between (arXiv 2201.09865).

    >>> resampled(torch.tensor([0.0, 0.5, 1.0]), times=2).tolist()
    [0.0, 0.5, 0.0, 0.5, 1.0, 0.5, 1.0]

    Raises:
        InputError: unless both numbers are positive.
    """
    if times < 1 or jump < 1:
        raise InputError(f"steps are repeated a positive number of times, not {times}, and {jump} at a time")
    walked = [grid[:1]]
    for first, last in pairwise([*range(0, len(grid) - 1, jump), len(grid) - 1]):
        walked += [grid[first + 1 : last + 1], *[grid[first : last + 1]] * (times - 1)]
    return torch.cat(walked)
