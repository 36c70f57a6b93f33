"""Multistep methods for diffusions: exact in what is linear, and a polynomial in log-SNR through past expected data.

With lambda = log(alpha / sigma) and h = lambda_s - lambda_t, the flow is

    x_s = (sigma_s / sigma_t) x_t + alpha_s int_0^h exp(u - h) x1(lambda_t + u) du

(arXiv 2211.01095), whose only unknown is how the expected data x1 goes on. One evaluation a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

from torch import Tensor

from flowgen.core import Field, InputError, expand_time
from flowgen.predictions import expected
from flowgen.samplers.ode import Solver
from flowgen.schedules import Mark, Schedule

__all__ = ["DPMSolverPP", "UniPC"]


class _Seen(NamedTuple):
    """The expected ends at a time, and that time's mark."""

    mark: Mark
    x0: Tensor
    x1: Tensor


def _seen(field: Field, schedule: Schedule, x: Tensor, t: float, cond: Tensor | None) -> _Seen:
    ends = expected(field, schedule, x, expand_time(t, x), cond)
    return _Seen(schedule.mark(t), ends.x0, ends.x1)


def _length(before: Mark, after: Mark) -> float:
    """Return h = lambda_s - lambda_t."""
    return after.half_log_snr - before.half_log_snr


def _step(x: Tensor, before: Mark, after: Mark, x1: Tensor) -> Tensor:
    """Return the step with a constant x1, (sigma_s / sigma_t) x + alpha_s (1 - exp(-h)) x1, also where h is
    infinite.
    """
    kept = after.sigma / before.sigma
    return kept * x + (after.alpha - kept * before.alpha) * x1


def _change(now: _Seen, before: _Seen, h: float) -> Tensor:
    """Return h times the slope of x1 in lambda between two times; 0 where one of them is at alpha = 0,
    infinitely far.
    """
    return h / _length(before.mark, now.mark) * (now.x1 - before.x1)


def _second(x: Tensor, after: Mark, past: tuple[_Seen, ...]) -> Tensor:
    """Take a step of DPM-Solver++(2M), with x1 half a step ahead, by the line through two values."""
    now, before = past
    return _step(x, now.mark, after, now.x1 + _change(now, before, _length(now.mark, after)) / 2)


def _third(x: Tensor, after: Mark, past: tuple[_Seen, ...]) -> Tensor:
    """Return the integral over the parabola through three values, x1(lambda_t + u) = x1 + (u / h) first + (u / h)^2
    second.
    """
    now, before, first_seen = past
    h = _length(now.mark, after)
    here, there = _change(now, before, h), _change(before, first_seen, h)
    second = h / _length(first_seen.mark, now.mark) * (here - there)
    first = here + _length(before.mark, now.mark) / h * second
    slope = 1 + math.expm1(-h) / h
    return _step(x, now.mark, after, now.x1) + after.alpha * (slope * first + (1 - 2 * slope / h) * second)


@final
@dataclass(frozen=True)
class DPMSolverPP(Solver):
    """DPM-Solver++ (arXiv 2211.01095), multistep 2M and 3M: the expected data goes on as a line, or a parabola.

    The first steps have less of a past and are of lower order, and a step to sigma = 0 is of order 1: it is to the
    expected data. A past at alpha = 0, where lambda is -inf, counts as flat. Order 1 is DDIM.

    Codes in use, diffusers among them, halve the curvature of 3M, which leaves it at order 2. Here it is whole.

    Args:
        schedule: of the field.
        order: 1, 2 or 3.

    Raises:
        InputError: for another order.
    """

    denoises_last: ClassVar[bool] = True
    schedule: Schedule
    order: int = 2

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise InputError(f"DPM-Solver++ has the orders 1, 2 and 3, not {self.order}")

    def step(
        self, field: Field, x: Tensor, t: float, s: float, cond: Tensor | None = None, carry: Any = None
    ) -> tuple[Tensor, tuple[_Seen, ...]]:
        past = (_seen(field, self.schedule, x, t, cond), *(carry or ()))[: self.order]
        return _ahead(x, self.schedule.mark(s), past), past


def _ahead(x: Tensor, after: Mark, past: tuple[_Seen, ...]) -> Tensor:
    """Take the step of the order that the past allows; away from sigma = 0, where x says nothing of x0, one between
    ends.
    """
    if past[0].mark.sigma == 0:
        return after.alpha * past[0].x1 + after.sigma * past[0].x0
    if len(past) == 1 or math.isinf(_length(past[0].mark, after)):
        return _step(x, past[0].mark, after, past[0].x1)
    return _second(x, after, past) if len(past) == 2 else _third(x, after, past)


@final
@dataclass(frozen=True)
class UniPC(Solver):
    """UniPC of order 2 with B(h) = exp(-h) - 1 (arXiv 2302.04867, "bh2"): each step is corrected with the evaluation at
    its end, before the next. This costs no evaluation, since x1 there is that at the predicted point.

    The guess is DPM-Solver++(2M). The first step and that to sigma = 0 are of order 1, and the last is not done again.

    Args:
        schedule: of the field.
    """

    order = 2
    denoises_last: ClassVar[bool] = True
    schedule: Schedule

    def step(
        self, field: Field, x: Tensor, t: float, s: float, cond: Tensor | None = None, carry: Any = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor, tuple[_Seen, ...]]]:
        now, before = _seen(field, self.schedule, x, t, cond), ()
        if carry is not None:
            start, guess, before = carry
            if before[0].mark.sigma:
                x = x + (_corrected(start, now, before) - guess)  # x is the guess, unless something has been set in it
        past = (now, *before)[:2]
        end = _ahead(x, self.schedule.mark(s), past)
        return end, (x, end, past)


def _corrected(x: Tensor, now: _Seen, past: tuple[_Seen, ...]) -> Tensor:
    """Take the step from past[0] to now, with x1 at both its ends, and before it where that is known (UniC)."""
    before = past[0]
    h, rise = _length(before.mark, now.mark), now.x1 - before.x1
    if len(past) == 1:
        return _step(x, before.mark, now.mark, before.x1 + rise / 2)
    # shares of the two slopes with which a line and a parabola in lambda are integrated exactly, over 1 - exp(-h)
    line = -1 / math.expm1(-h) - 1 / h
    parabola = -1 / math.expm1(-h) - 2 * line / h
    behind = (line - parabola) / (1 + _length(past[1].mark, before.mark) / h)
    slope = behind * _change(before, past[1], h) + (line - behind) * rise
    return _step(x, before.mark, now.mark, before.x1 + slope)
