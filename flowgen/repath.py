"""Any model on another path: the same network, evaluated at the time when its own path has as much noise.

Two paths of the same source and data pass through the same laws but for scale: where alpha / sigma is the same, x_t and
x'_t' are the same over |(alpha, sigma)| and |(alpha', sigma')|. So a network that was trained on one is read on the
other, and DDIM on any schedule is Euler's method on the straight path (arXiv 2206.00364, 2209.03003).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from flowgen.model import Model
from flowgen.paths import SCHEDULES, Coeffs, Schedule
from flowgen.targets import Prediction, Row

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
    """A target of the old path, read on the new one; its net sees the points of the old."""

    target: Prediction
    clock: _Clock

    def __call__(self, c: Coeffs) -> Row:
        return self.target(self.clock.old.coeffs(self.clock(c)))

    def size(self, c: Coeffs) -> Tensor:
        old = self.clock.old.coeffs(self.clock(c))
        return c.size / old.size

    @property
    def __name__(self) -> str:
        return self.target.__name__


@final
class _Retimed(nn.Module):
    """The raw predictions of a model, at the times of the new path."""

    def __init__(self, model: Model, path: Schedule, clock: _Clock) -> None:
        super().__init__()
        self.model, self.path, self.clock = model, path, clock

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.model.raw(x, self.clock(self.path.coeffs(t)), cond=cond)


def repath(model: Model, path: Schedule | str) -> Model:
    """Return the same model on another path, as far as that has noise that the model has seen.

    Where the old path starts with alpha(0) > 0, as VP and VE do, the new one starts a little after 0, too. Up to its
    end the model is asked no later than it was trained.

    Args:
        path: any, or its name. The flow is the same but for scale and clock, whatever its pairs and its source are.
    """
    path = SCHEDULES(path)
    if path == model.path:
        return model
    clock = _Clock(model.path, model.span)
    target = _Reread(model.target, clock)
    lo = path.time(model.path.log_snr(torch.tensor(model.span[0], dtype=torch.float64))).item()
    start = lo if lo > 0 else 0.0  # lo is nan where the new path has no time for endless noise, and needs none
    return Model(_Retimed(model, path, clock), path, target, model.scaling, start)
