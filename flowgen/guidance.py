"""Guidance: velocity fields made of velocity fields."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from flowgen import predictions
from flowgen.core import Field, InputError, expand_time, fixed, gradients, like
from flowgen.schedules import Schedule

__all__ = ["AutoGuided", "ClassifierGuided", "Guided", "LogProb", "Rescale"]

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
        _check(self.weight, self.interval)

    def __call__(self, x: Tensor, t: Tensor | float, cond: Tensor | None = None) -> Tensor:
        t = expand_time(t, x)
        if cond is None:
            return self.field(x, t, cond)
        null = torch.full_like(cond, self.null)
        return _beyond(self, lambda: self.field(x, t, null), lambda: self.field(x, t, cond), x, t)


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
        _check(self.weight, self.interval)

    def __call__(self, x: Tensor, t: Tensor | float, cond: Tensor | None = None) -> Tensor:
        t = expand_time(t, x)
        return _beyond(self, lambda: self.weak(x, t, cond), lambda: self.strong(x, t, cond), x, t)


class LogProb(Protocol):
    """log p(cond | x_t, t) in nats, differentiable in x: x `(B, *shape)`, t `(B,)` and cond `(B, ...)`, to `(B,)`."""

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor: ...


@final
@dataclass(frozen=True)
class ClassifierGuided:
    """Classifier guidance (arXiv 2105.05233): v(x, t, cond) + weight g(t)^2 / 2 grad_x log p(cond | x_t, t).

    The velocity is alpha' / alpha x + g^2 / 2 score, and by Bayes' rule the gradient is what the scores with and
    without the label differ by. So weight 1 makes of a field without labels the one of the label, and weight 0 is the
    field as it is. It holds of a Gaussian source and independent pairs.

    Where alpha is 0, as at t = 0 of the straight path, x says nothing of the label: the gradient is 0, g infinite, and
    there is no guidance.

    Args:
        field: the field to guide. It is asked with the same cond; one that knows no labels ignores it.
        log_prob: of any classifier of points on the path.
        schedule: of the field.
        weight: above 1, samples are more typical of their label, and less diverse.
        interval: the times at which to guide; outside, the field stands.

    Raises:
        InputError: for a weight that is not finite, or an interval that is not within [0, 1].
    """

    field: Field
    log_prob: LogProb
    schedule: Schedule
    weight: float
    interval: Interval = ALWAYS

    def __post_init__(self) -> None:
        _check(self.weight, self.interval)

    def __call__(self, x: Tensor, t: Tensor | float, cond: Tensor | None = None) -> Tensor:
        t = expand_time(t, x)
        v = self.field(x, t, cond)
        at_work = _inside(self.interval, t) & (self.schedule.coeffs(t).alpha > 0)
        if cond is None or self.weight == 0 or not at_work.any():
            return v
        force = torch.where(at_work, self.weight * self.schedule.diffusion(t) ** 2 / 2, 0)
        return v + like(force, x).to(x.dtype) * self._gradient(x, t, cond)

    def _gradient(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Return grad_x log p(cond | x_t, t), `(B, *shape)`."""
        with gradients():
            x = fixed(x).requires_grad_(True)
            return torch.autograd.grad(self.log_prob(x, fixed(t), fixed(cond)).sum(), x)[0]


def _beyond(
    by: Guided | AutoGuided, weak: Callable[[], Tensor], strong: Callable[[], Tensor], x: Tensor, t: Tensor
) -> Tensor:
    """Return weak + weight (strong - weak) inside the interval and strong outside, each evaluated only where needed."""
    inside = _inside(by.interval, t)
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


def _inside(interval: Interval, t: Tensor) -> Tensor:
    """Return which of the times `(B,)` lie in an interval, which includes both ends."""
    return (t >= interval[0]) & (t <= interval[1])


def _check(weight: float, interval: Interval) -> None:
    if not math.isfinite(weight):
        raise InputError(f"the weight of guidance must be finite, not {weight}")
    lo, hi = interval
    if not 0 <= lo <= hi <= 1:
        raise InputError(f"the interval of guidance must be within 0 and 1, and in order, not {lo:g},{hi:g}")
