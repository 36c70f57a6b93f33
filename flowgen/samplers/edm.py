"""The stochastic sampler of EDM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from flowgen.core import Field, InputError, expand_time
from flowgen.predictions import expected
from flowgen.samplers.noise import Random
from flowgen.schedules import Mark, Schedule

__all__ = ["EDMSampler"]


@final
@dataclass(frozen=True)
class EDMSampler(Random):
    """EDM's stochastic sampler (arXiv 2206.00364, algorithm 2) on the noise levels l = sigma / alpha of any path.

    A step first adds noise, up to the level l' = l (1 + gamma), and goes back in time to where that level is:
    x / alpha + noise sqrt(l'^2 - l^2) z. From there it is Heun's for dy/dl = x0, y = x / alpha. Where the level is
    infinite (alpha = 0) nothing is added and the step is Euler's between the expected ends; no level rises above that
    of t = 0; the step to sigma = 0 is to the expected data. Two evaluations a step, but for those two.

    Args:
        schedule: of the field.
        churn: gamma, at most sqrt(2) - 1: the paper's S_churn / N of N steps. With 0 it is deterministic, of order 2.
        lo: the levels at which noise is added: S_tmin.
        hi: and S_tmax.
        noise: S_noise, the deviation of z.

    Raises:
        InputError: unless churn >= 0, 0 <= lo <= hi and noise > 0.
    """

    order = 2
    denoises_last: ClassVar[bool] = True
    schedule: Schedule
    churn: float = 0.0
    lo: float = 0.0
    hi: float = math.inf
    noise: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.churn < math.inf and 0 <= self.lo <= self.hi and 0 < self.noise < math.inf):
            raise InputError(
                "EDMSampler needs churn >= 0, 0 <= lo <= hi and noise > 0, not "
                f"{self.churn}, {self.lo}, {self.hi} and {self.noise}"
            )

    @property
    def stochastic(self) -> bool:
        return self.churn > 0

    def step(
        self, field: Field, x: Tensor, t: float, s: float, cond: Tensor | None = None, carry: Any = None
    ) -> tuple[Tensor, None]:
        x, t = self._churned(x, t)
        before, after = self.schedule.mark(t), self.schedule.mark(s)
        ends = expected(field, self.schedule, x, expand_time(t, x), cond)
        end = after.alpha * ends.x1 + after.sigma * ends.x0
        if before.alpha == 0 or after.alpha == 0 or after.sigma == 0:
            return end, None
        turn = expected(field, self.schedule, end, expand_time(s, x), cond).x0 - ends.x0
        return torch.add(end, turn, alpha=after.alpha * (after.level - before.level) / 2), None

    def _churned(self, x: Tensor, t: float) -> tuple[Tensor, float]:
        """Return x with more noise, and the earlier time at which it has that much."""
        before = self.schedule.mark(t)
        level = self._raised(before)
        if level == before.level:
            return x, t
        sooner = self.schedule.time(torch.tensor(-2 * math.log(level), dtype=torch.float64)).clamp(min=0).item()
        width = self.noise * math.sqrt(level**2 - before.level**2)
        y = torch.add(x / before.alpha, self.normal(x, f"churn at {t!r}"), alpha=width)
        return self.schedule.mark(sooner).alpha * y, sooner

    def _raised(self, before: Mark) -> float:
        """Return the level (1 + gamma) l, where l is among those that are churned."""
        if not self.lo <= before.level <= self.hi or math.isinf(before.level):
            return before.level
        return min(before.level * (1 + min(self.churn, math.sqrt(2) - 1)), self.schedule.mark(0.0).level)
