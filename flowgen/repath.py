"""Any model on another path: the same network, evaluated at the time when its own path has as much noise.

Two paths of the same source and data pass through the same distributions but for scale: where alpha / sigma is the
same, x_t and x'_t' are the same over |(alpha, sigma)| and |(alpha', sigma')|. So a network that was trained on one is
read on the other, and DDIM on any schedule is Euler's method on the straight path (arXiv 2206.00364, 2209.03003).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from flowgen.model import Model
from flowgen.predictions import Prediction, Row
from flowgen.schedules import SCHEDULES, Coeffs, Schedule

__all__ = ["repath"]


@final
@dataclass(frozen=True)
class _Clock:
    """The time of the old path, within its span, with the noise of the new one."""

    old: Schedule
    span: tuple[float, float]

    def __call__(self, c: Coeffs) -> Tensor:
        log_snr = 2 * (c.alpha.log() - c.sigma.log())
        ends = self.old.log_snr(torch.tensor(self.span, dtype=torch.float64)).tolist()
        return self.old.time(log_snr.clamp(*ends)).clamp(*self.span)


@final
@dataclass(frozen=True)
class _Reread:
    """A prediction of the old path, read on the new one; its net sees the points of the old."""

    prediction: Prediction
    clock: _Clock

    def __call__(self, c: Coeffs) -> Row:
        return self.prediction(self.clock.old.coeffs(self.clock(c)))

    def size(self, c: Coeffs) -> Tensor:
        old = self.clock.old.coeffs(self.clock(c))
        return c.size / old.size

    @property
    def __name__(self) -> str:
        return self.prediction.__name__


@final
class _Retimed(nn.Module):
    """The raw predictions of a model, at the times of the new path."""

    def __init__(self, model: Model, schedule: Schedule, clock: _Clock) -> None:
        super().__init__()
        self.model, self.schedule, self.clock = model, schedule, clock

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.model.raw(x, self.clock(self.schedule.coeffs(t)), cond=cond)


def repath(model: Model, schedule: Schedule | str) -> Model:
    """Return the same model on another path, as far as that has noise that the model has seen.

    Where the old path starts with alpha(0) > 0, as VP and VE do, the new one starts a little after 0, too. Up to its
    end the model is asked no later than it was trained.

    Args:
        schedule: any, or its name. The flow is the same but for scale and clock, whatever its pairs and its source are.
    """
    schedule = SCHEDULES(schedule)
    if schedule == model.schedule:
        return model
    clock = _Clock(model.schedule, model.span)
    prediction = _Reread(model.prediction, clock)
    lo = schedule.time(model.schedule.log_snr(torch.tensor(model.span[0], dtype=torch.float64))).item()
    start = lo if lo > 0 else 0.0  # lo is nan where the new path has no time for endless noise, and needs none
    return Model(_Retimed(model, schedule, clock), schedule, prediction, model.scaling, start)
