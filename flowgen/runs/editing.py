"""Edits with a run: it starts from what an image says, not from noise alone."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowgen.core import Field, InputError
from flowgen.data.streams import source_rows
from flowgen.guidance import (
    Measurement,
    PiGDM,
    RePaint,
    from_time,
    inverted,
    noised,
    project,
    resampled,
    slerp,
)
from flowgen.model import Model
from flowgen.runs.folder import Trained
from flowgen.runs.sampler import ChosenSampler
from flowgen.sampling import chunk_rows, solve

__all__ = ["Editor"]

SINCE = 0.25
"""What is filled in is guided from where alpha / sigma is that: t = 0.2 of the straight path (arXiv 2310.04432)."""
JUMP = 5
"""So many steps are gone over together (RePaint, arXiv 2201.09865, has 10 of 250)."""


class Editor(NamedTuple):
    """A run, ready to edit rows x `(B, *shape)` in model units.

    field: of its model, guided or not.
    sampler: solves it.
    label: that is asked for; or of each row, `(B,)`, where they are no more than are solved together; None for none.
    seed: of the noise, which begins as that of `flowgen sample`: row i is the same, but for rounding, whatever their
        number is.
    """

    trained: Trained
    field: Field
    sampler: ChosenSampler
    label: int | Tensor | None = None
    seed: int = 0

    @property
    def model(self) -> Model:
        return self.trained.model

    def fill(self, measurement: Measurement, y: Tensor, num: int = 1, times: int = 1, first: int = 0) -> Tensor:
        """Return `num` rows with A x1 = y: guided towards it, set after each step, and exact at the end.

        Args:
            y: `(1, *measured)`; or of each row, where they are no more than are walked together.
            times: how often the steps are gone over.
            first: the number of the first row.

        Raises:
            InputError: for a run whose pairs are not independent, of Gaussian noise and data.
        """
        self.trained.check_scored("filling in")
        schedule, source = self.model.schedule, self.trained.source
        since = schedule.time(torch.tensor(2 * math.log(SINCE), dtype=torch.float64)).item()
        field = PiGDM(self.field, schedule, measurement, y, since=since)
        solver = RePaint(self.sampler.solver, schedule, measurement, y, source, self.seed)
        walked = ChosenSampler(solver, resampled(self.sampler.grid, times, JUMP))
        return project(measurement, self.walk(self.model.start(self._noise(num, first)), walked, field, first), y)

    def redraw(self, x: Tensor, strength: float, num: int = 1) -> Tensor:
        """Redraw x `(1, *shape)` by SDEdit: add noise to the time 1 - strength, and sample `num` times from there.

        Raises:
            InputError: as `fill`.
        """
        self.trained.check_scored("redrawing")
        begun, t = x.expand(num, *x.shape[1:]), 1 - strength
        grid = from_time(self.sampler.grid, t)
        if len(grid) == 1:  # there is no step back: nothing is redrawn
            return begun
        return self.walk(noised(self.model.schedule, begun, self._noise(num), t), self.sampler._replace(grid=grid))

    def invert(self, x: Tensor) -> Tensor:
        """Return where the flow reaches x from, x_0 `(B, *shape)` at t = 0; `back` leads from there to x.

        Raises:
            InputError: for a solver that draws noise.
        """
        if self.sampler.solver.stochastic:
            raise InputError("noise cannot be taken back: choose a solver that draws none, such as heun, rk4 or dopri5")
        solver, grid = self._there_and_back
        with torch.no_grad():
            ends = [inverted(self.field, row, grid, solver, self._labels(row)) for row in x.split(1)]
        return torch.cat(ends)

    def back(self, latent: Tensor) -> Tensor:
        """Return where the flow leads from t = 0: x of its `invert`, to the solver's precision."""
        return self.walk(latent, self._there_and_back)

    def between(self, x: Tensor, frames: int) -> Tensor:
        """Interpolate from x[0] to x[1] through their noise, `(frames, *shape)`."""
        one, other = self.invert(x)
        return self.back(slerp(one, other, torch.linspace(0, 1, frames, dtype=torch.float64)))

    def together(self, shape: tuple[int, ...]) -> int:
        """Return how many rows are solved together."""
        return 1 if self.sampler.solver.couples_batch else chunk_rows(shape)

    def walk(self, x: Tensor, walked: ChosenSampler, field: Field | None = None, first: int = 0) -> Tensor:
        """Return where a field, by default that of the run, takes x from the first time of a grid; a few rows at a
        time.
        """
        size, ends = self.together(tuple(x.shape[1:])), []
        with torch.no_grad():
            for row in range(0, len(x), size):
                part, solver = x[row : row + size], walked.solver.at(first + row)
                ends.append(solve(field or self.field, part, walked.grid, solver, self._labels(part)))
        return torch.cat(ends)

    @property
    def _there_and_back(self) -> ChosenSampler:
        """Return the sampler that inverts: on diffusions to the end of the span, where the velocity is still finite,
        since a solver that lands goes beyond.
        """
        return self.sampler._replace(grid=self.sampler.grid.clamp(max=self.model.span[1]).unique())

    def _noise(self, num: int, first: int = 0) -> Tensor:
        return source_rows(self.trained.source, first, first + num, self.seed).to(self.model.device)

    def _labels(self, x: Tensor) -> Tensor | None:
        if isinstance(self.label, Tensor):
            return self.label.to(x.device)
        return None if self.label is None else torch.full((len(x),), self.label, device=x.device)
