"""Langevin dynamics at the noise levels of a path: alone, or after the steps of another solver."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from torch import Tensor

from flowgen.core import Field, InputError, expand_time
from flowgen.predictions import expected
from flowgen.samplers.noise import Random
from flowgen.samplers.ode import Solver
from flowgen.schedules import Schedule

__all__ = ["Langevin", "PredictorCorrector"]


@dataclass(frozen=True)
class _Moving(Random):
    """Moves that keep the marginal of a time: x + e score + sqrt(2 e) z with e = 2 (snr sigma)^2, which is

    x + 2 snr sigma (z - snr x0),

    since the score is -x0 / sigma of the expected source x0.
    """

    def _moved(
        self, field: Field, schedule: Schedule, x: Tensor, s: float, cond: Tensor | None, snr: float, steps: int
    ) -> Tensor:
        sigma, t = schedule.mark(s).sigma, expand_time(s, x)
        for k in range(steps):
            x0 = expected(field, schedule, x, t, cond).x0
            x = x + 2 * snr * sigma * (self.normal(x, f"move {k} at {s!r}") - snr * x0)
        return x


@final
@dataclass(frozen=True)
class PredictorCorrector(_Moving):
    """Predictor and corrector (arXiv 2011.13456): a step of another solver, and Langevin moves at the time it led to,

    x + e score + sqrt(2 e) z,  e = 2 (snr sigma)^2.

    The paper has e = 2 (snr |z| / |score|)^2 with the mean norms of a batch. Here each norm is what it is expected to
    be, sqrt(D) of z and sqrt(D) / sigma of the score of x_t given its data: rows stay independent of one another, and
    a move is not long because a row's score happens to be short. In the step to sigma = 0 nothing moves.

    A multistep predictor starts anew each time, since its past is not where it had led to.

    Args:
        predictor: a solver of a field.
        schedule: of the field.
        snr: the signal-to-noise ratio of a move; the paper's is 0.16 on VE.
        steps: moves a step, an evaluation each.

    Raises:
        InputError: for a predictor that jumps, or unless 0 < snr < 1 and steps >= 0.
    """

    order = 1
    predictor: Solver
    schedule: Schedule
    snr: float = 0.16
    steps: int = 1

    def __post_init__(self) -> None:
        if self.predictor.needs_flow_map:
            raise InputError("PredictorCorrector needs a predictor that steps a velocity field, not one that jumps")
        if not 0 < self.snr < 1 or self.steps < 0:
            raise InputError(f"PredictorCorrector needs 0 < snr < 1 and steps >= 0, not {self.snr} and {self.steps}")

    @property
    def couples_batch(self) -> bool:  # type: ignore[override]  # as the predictor's
        return self.predictor.couples_batch

    @property
    def denoises_last(self) -> bool:  # type: ignore[override]
        return self.predictor.denoises_last

    def at(self, row: int) -> PredictorCorrector:
        return replace(self, first=self.first + row, predictor=self.predictor.at(row))

    def step(
        self, field: Field, x: Tensor, t: float, s: float, cond: Tensor | None = None, carry: Any = None
    ) -> tuple[Tensor, None]:
        x, _ = self.predictor.step(field, x, t, s, cond)
        if self.schedule.mark(s).sigma == 0:
            return x, None
        return self._moved(field, self.schedule, x, s, cond, self.snr, self.steps), None


@final
@dataclass(frozen=True)
class Langevin(_Moving):
    """Annealed Langevin dynamics (arXiv 1907.05600): at each time of the grid after the first, so many moves

    x + a / 2 score + sqrt(a) z,  a = size sigma^2,

    from wherever the moves at the time before have led; nothing else takes x from one time to the next, so the
    distribution follows the marginals only as far as there are moves for it. The step to sigma = 0 is to the expected
    data.

    Args:
        schedule: of the field.
        size: the paper's epsilon / sigma_L^2, which is 0.2.
        steps: moves a step, an evaluation each.

    Raises:
        InputError: unless 0 < size < 4, where moves shrink what they should, and steps >= 1.
    """

    order = 1
    denoises_last: ClassVar[bool] = True
    schedule: Schedule
    size: float = 0.2
    steps: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.size < 4 or self.steps < 1:
            raise InputError(f"Langevin needs 0 < size < 4 and steps >= 1, not {self.size} and {self.steps}")

    def step(
        self, field: Field, x: Tensor, t: float, s: float, cond: Tensor | None = None, carry: Any = None
    ) -> tuple[Tensor, None]:
        if self.schedule.mark(s).sigma == 0:
            return expected(field, self.schedule, x, expand_time(t, x), cond).x1, None
        return self._moved(field, self.schedule, x, s, cond, math.sqrt(self.size) / 2, self.steps), None
