"""Guidance: fields made of fields."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowgen.core import Field, InputError

__all__ = ["Guided"]


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
        interval: the times (lo, hi) at which to guide; outside, the conditional field stands (arXiv 2404.07724).

    Raises:
        InputError: for a weight that is not finite, or an interval that is not within [0, 1].
    """

    field: Field
    null: int
    weight: float
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise InputError(f"the weight of guidance must be finite, not {self.weight}")
        lo, hi = self.interval
        if not 0 <= lo <= hi <= 1:
            raise InputError(f"the interval of guidance must be within 0 and 1, and in order, not {lo:g},{hi:g}")

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        lo, hi = self.interval
        inside = (t >= lo) & (t <= hi)
        if cond is None or self.weight == 1 or not inside.any():
            return self.field(x, t, cond)
        without = self.field(x, t, torch.full_like(cond, self.null))
        if self.weight == 0 and inside.all():
            return without
        weight = torch.where(inside, self.weight, 1.0).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return torch.lerp(without, self.field(x, t, cond), weight)
