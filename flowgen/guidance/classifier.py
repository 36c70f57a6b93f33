"""Guidance by the gradient of a classifier of points on the path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from flowgen.core import Field, expand_time, fixed, gradients, like
from flowgen.guidance.classifier_free import ALWAYS, Interval, check_guidance, inside_of
from flowgen.schedules import Schedule

__all__ = ["ClassifierGuided", "LogProb"]


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
        check_guidance(self.weight, self.interval)

    def __call__(self, x: Tensor, t: Tensor | float, cond: Tensor | None = None) -> Tensor:
        t = expand_time(t, x)
        v = self.field(x, t, cond)
        at_work = inside_of(self.interval, t) & (self.schedule.coeffs(t).alpha > 0)
        if cond is None or self.weight == 0 or not at_work.any():
            return v
        force = torch.where(at_work, self.weight * self.schedule.diffusion(t) ** 2 / 2, 0)
        return v + like(force, x).to(x.dtype) * self._gradient(x, t, cond)

    def _gradient(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Return grad_x log p(cond | x_t, t), `(B, *shape)`."""
        with gradients():
            x = fixed(x).requires_grad_(True)
            return torch.autograd.grad(self.log_prob(x, fixed(t), fixed(cond)).sum(), x)[0]
