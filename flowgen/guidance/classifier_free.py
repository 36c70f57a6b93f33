"""Guidance by velocity fields: with and without the label, or strong and weak."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowgen import predictions
from flowgen.core import Field, InputError, expand_time, like
from flowgen.schedules import Schedule

__all__ = ["ALWAYS", "AutoGuided", "Guided", "Interval", "Rescale", "check_guidance", "inside_of"]

Interval = tuple[float, float]
"""The times (lo, hi) at which to guide; outside, the field that is guided stands (arXiv 2404.07724)."""
ALWAYS: Interval = (0.0, 1.0)


@final
@dataclass(frozen=True)
class Rescale:
    """Restores to guided data a share of the spread of unguided data (arXiv 2305.08891, section 3.4).

    With weights above 1, expected data spread too far: images are overexposed. Made g by guidance from c, they become

    (1 - share + share std(c) / std(g)) g,

    each std that of the values of a row. It is data that are rescaled, and not velocities: the scale of a velocity is
    that of the path, whose share of x_t is no data at all and ought to stay. Solved for the velocity it is

    v - share cov(v - u, g + c) / (std(g) (std(g) + std(c))) g

    with the velocities v of g and u of c, which has no singular end: nothing is divided by sigma, and at t = 1, where
    all data are x, it is the limit. Nothing more is evaluated. A row whose values are all one is left as it is.

    Raises:
        InputError: unless 0 <= share <= 1.
    """

    schedule: Schedule
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InputError(f"the share of a rescaled guidance must be from 0 to 1, not {self.share}")

    def __call__(self, guided: Tensor, bare: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the guided velocity, rescaled; all `(B, *shape)` but t `(B,)`."""
        c = self.schedule.coeffs(like(t, x))
        made, plain = (predictions.ends(v, x, c, predictions.velocity).x1 for v in (guided, bare))
        wide, narrow = _covariance(made, made).sqrt(), _covariance(plain, plain).sqrt()
        spread = wide * (wide + narrow)
        excess = _covariance(guided - bare, made + plain) / torch.where(spread > 0, spread, 1)
        return guided - self.share * like(excess, x) * made


def _covariance(a: Tensor, b: Tensor) -> Tensor:
    """Return the covariance over the values of each row: `(B, *shape)` twice, to `(B,)`."""
    a, b = a.flatten(1), b.flatten(1)
    return ((a - a.mean(1, keepdim=True)) * (b - b.mean(1, keepdim=True))).mean(1)


@final
@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance (arXiv 2207.12598): v(x, t, null) + weight (v(x, t, cond) - v(x, t, null)).

    weight 1 is the conditional field and 0 the one without a label, each at one evaluation; other weights take two.
    Velocities, scores and predictions of an end are affine in one another with coefficients of t alone, so that
    guidance is the same in each.

    Args:
        field: a field that was trained with labels, some of which were dropped.
        null: the label that says that there is none.
        weight: above 1, samples are more typical of their label, and less diverse.
        interval: the times at which to guide; outside, the conditional field stands.
        rescale: of velocities, where the weight is above 1: below, nothing spreads further than it did.

    Raises:
        InputError: for a weight that is not finite, or an interval that is not within [0, 1].
    """

    field: Field
    null: int
    weight: float
    interval: Interval = ALWAYS
    rescale: Rescale | None = None

    def __post_init__(self) -> None:
        check_guidance(self.weight, self.interval)

    def __call__(self, x: Tensor, t: Tensor | float, cond: Tensor | None = None) -> Tensor:
        t = expand_time(t, x)
        if cond is None:
            return self.field(x, t, cond)
        null = torch.full_like(cond, self.null)
        return beyond(self, lambda: self.field(x, t, null), lambda: self.field(x, t, cond), x, t)


@final
@dataclass(frozen=True)
class AutoGuided:
    """Autoguidance (arXiv 2406.02507): weak + weight (strong - weak), away from the errors of a weaker model.

    weight 1 is the strong field, and takes one evaluation; others take one of each. Where the weak model is the strong
    one without its label it is classifier-free guidance.

    Args:
        strong: the field to sample from.
        weak: one that was trained for the same, with less of time or of weights.
        weight: above 1, samples are more typical of the data.
        interval: the times at which to guide; outside, the strong field stands.
        rescale: of velocities, where the weight is above 1.

    Raises:
        InputError: for a weight that is not finite, or an interval that is not within [0, 1].
    """

    strong: Field
    weak: Field
    weight: float
    interval: Interval = ALWAYS
    rescale: Rescale | None = None

    def __post_init__(self) -> None:
        check_guidance(self.weight, self.interval)

    def __call__(self, x: Tensor, t: Tensor | float, cond: Tensor | None = None) -> Tensor:
        t = expand_time(t, x)
        return beyond(self, lambda: self.weak(x, t, cond), lambda: self.strong(x, t, cond), x, t)


def beyond(
    by: Guided | AutoGuided, weak: Callable[[], Tensor], strong: Callable[[], Tensor], x: Tensor, t: Tensor
) -> Tensor:
    """Return weak + weight (strong - weak) inside the interval and strong outside, each evaluated only where needed."""
    inside = inside_of(by.interval, t)
    if by.weight == 1 or not inside.any():
        return strong()
    start = weak()
    if by.weight == 0 and inside.all():
        return start
    end = strong()
    made = torch.lerp(start, end, by.weight)
    if by.rescale is not None and by.weight > 1:
        made = by.rescale(made, end, x, t)
    return torch.where(like(inside, x), made, end)  # whatever the weak field is where it is not to guide


def inside_of(interval: Interval, t: Tensor) -> Tensor:
    """Return which of the times `(B,)` lie in an interval, which includes both ends."""
    return (t >= interval[0]) & (t <= interval[1])


def check_guidance(weight: float, interval: Interval) -> None:
    if not math.isfinite(weight):
        raise InputError(f"the weight of guidance must be finite, not {weight}")
    lo, hi = interval
    if not 0 <= lo <= hi <= 1:
        raise InputError(f"the interval of guidance must be within 0 and 1, and in order, not {lo:g},{hi:g}")
