"""Steps between expected ends, with noise or without: DDIM and DDPM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from flowgen.core import Field, InputError, expand_time
from flowgen.predictions import expected
from flowgen.samplers.noise import Random, decay
from flowgen.schedules import Mark, Schedule

__all__ = ["DDIM", "Ancestral"]


@final
@dataclass(frozen=True)
class DDIM(Random):
    """Denoising diffusion implicit models (arXiv 2010.02502): to the expected data, and back with some new noise,

    x_s = alpha_s x1 + sqrt(sigma_s^2 - w^2) x0 + w z,  w = eta sigma_s sqrt(1 - r^2),  r = level_s / level_t.

    w at eta = 1 is the posterior deviation of x_s given x_t and x1, on any path: the forward step from s to t adds the
    variance sigma_t^2 (1 - r^2) to alpha_t / alpha_s x_s. eta = 0 draws nothing: it is Euler's method for
    x / alpha in the level sigma / alpha, and of order 1. Where alpha_t = 0, r is 0 and eta the share of new noise.

    Args:
        schedule: of the field.
        eta: 0 for an ODE, 1 for DDPM's ancestral steps.

    Raises:
        InputError: unless 0 <= eta <= 1; while stepping, with noise on a grid that decreases.
    """

    order = 1
    denoises_last: ClassVar[bool] = True
    schedule: Schedule
    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise InputError(f"DDIM needs 0 <= eta <= 1, not {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def step(
        self, field: Field, x: Tensor, t: float, s: float, cond: Tensor | None = None, carry: Any = None
    ) -> tuple[Tensor, None]:
        ends = expected(field, self.schedule, x, expand_time(t, x), cond)
        after = self.schedule.mark(s)
        fresh = self.eta**2 * (1 - decay(self.schedule.mark(t), after) ** 2) if self.eta else 0.0
        end = after.alpha * ends.x1 + after.sigma * math.sqrt(1 - fresh) * ends.x0
        return _noisy(self, end, after.sigma * math.sqrt(fresh), t, s), None


@final
@dataclass(frozen=True)
class Ancestral(Random):
    """DDPM's sampler (arXiv 2006.11239): x_s from a Gaussian with the posterior mean given x_t and the expected x1,

    mean = (alpha_t / alpha_s) (sigma_s / sigma_t)^2 x_t + alpha_s (1 - r^2) x1,  r = level_s / level_t.

    The small variance sigma_s^2 (1 - r^2) is that of the posterior ("beta-tilde"), right for data of a single point.
    The large one, sigma_t^2 (1 - r^2) (alpha_s^2 + sigma_s^2) / (alpha_t^2 + sigma_t^2), is right for N(0, I), and on
    variance-preserving paths the paper's beta. The step to sigma = 0 is to the mean.

    Args:
        schedule: of the field.
        large: which variance.

    Raises:
        InputError: while stepping, on a grid that decreases.
    """

    order = 1
    denoises_last: ClassVar[bool] = True
    schedule: Schedule
    large: bool = False

    def step(
        self, field: Field, x: Tensor, t: float, s: float, cond: Tensor | None = None, carry: Any = None
    ) -> tuple[Tensor, None]:
        x1 = expected(field, self.schedule, x, expand_time(t, x), cond).x1
        before, after = self.schedule.mark(t), self.schedule.mark(s)
        gone = 1 - decay(before, after) ** 2
        kept = before.alpha / after.alpha * (after.sigma / before.sigma) ** 2
        return _noisy(self, kept * x + after.alpha * gone * x1, self._width(before, after, gone), t, s), None

    def _width(self, before: Mark, after: Mark, gone: float) -> float:
        """Return the standard deviation of a step."""
        if not self.large or after.sigma == 0:
            return after.sigma * math.sqrt(gone)
        return before.sigma * math.sqrt(gone) * math.hypot(*after) / math.hypot(*before)


def _noisy(solver: Random, mean: Tensor, width: float, t: float, s: float) -> Tensor:
    """Return mean + width z, with the noise of a step from t to s."""
    return torch.add(mean, solver.normal(mean, f"noise from {t!r} to {s!r}"), alpha=width) if width else mean
