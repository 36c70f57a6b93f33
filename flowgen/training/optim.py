"""AdamW, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from flowgen.core import InputError
from flowgen.registry import Objects

__all__ = ["LR_SCHEDULES", "AdamW", "ConstantRate", "CosineRate", "LRSchedule", "Rate"]


class Rate(Protocol):
    """The learning rate of a step, given how many steps were done before it: 0, 1, ..."""

    def __call__(self, step: int) -> float: ...


@final
@dataclass(frozen=True)
class ConstantRate:
    """rate(k) = lr min(1, (k + 1) / warmup): up to lr on a straight line in `warmup` steps, then constant.

    Raises:
        InputError: for a negative lr or warm-up.
    """

    lr: float
    warmup: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.lr < math.inf or self.warmup < 0:
            raise InputError(f"a rate needs lr >= 0 and warmup >= 0, not {self.lr} and {self.warmup}")

    def __call__(self, step: int) -> float:
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup))


@final
@dataclass(frozen=True)
class CosineRate:
    """Up to lr like `ConstantRate`, then down to `floor` by half a cosine (arXiv 1608.03983), reached after `steps`:

    rate(k) = floor + (lr - floor) (1 + cos(pi p)) / 2,  p = (k - warmup) / (steps - warmup).

    The first step after the warm-up is at the full rate, and the last is still above the floor.

    Raises:
        InputError: for a warm-up that is negative or leaves no step to go down, or a floor not in [0, lr].
    """

    lr: float
    steps: int
    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= self.lr < math.inf:
            raise InputError(f"a cosine rate needs 0 <= floor <= lr, not {self.floor} and {self.lr}")
        if not 0 <= self.warmup < self.steps:
            raise InputError(f"a cosine rate needs 0 <= warmup < steps, not {self.warmup} and {self.steps}")

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return ConstantRate(self.lr, self.warmup)(step)
        done = min(1.0, (step - self.warmup) / (self.steps - self.warmup))
        return self.floor + (self.lr - self.floor) * (1 + math.cos(math.pi * done)) / 2


def constant(lr: float, steps: int, warmup: int) -> Rate:
    """Return the rate lr after the warm-up."""
    return ConstantRate(lr, warmup)


def cosine(lr: float, steps: int, warmup: int) -> Rate:
    """Return half a cosine from lr down to 0 after the warm-up."""
    return CosineRate(lr, steps, warmup)


LRSchedule = Callable[[float, int, int], Rate]
"""The learning rate at its highest, the steps of training and those of the warm-up, to the rate of each step."""
LR_SCHEDULES: Objects[LRSchedule] = Objects("lr_schedule")


class _Moments(NamedTuple):
    """The moments of AdamW for a weight."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor


@final
class AdamW:
    """AdamW (arXiv 1711.05101), by PyTorch's fused kernel.

    Bit for bit `torch.optim.AdamW(fused=True)`, whose bookkeeping takes a tenth of a small network's whole step.

    Raises:
        InputError: for a rate or a decay that is negative or not finite.
    """

    def __init__(self, weights: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not (isinstance(value, Real) and 0 <= value < math.inf):
                raise InputError(f"{name} must be a number, 0 or more, not {value!r}")
        self.weights, self.lr, self.weight_decay = weights, lr, weight_decay
        self.moments = [
            _Moments(torch.zeros_like(w), torch.zeros_like(w), torch.zeros((), device=w.device)) for w in weights
        ]

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self, lr: float | None = None) -> None:
        """Move the weights that have a gradient, at the rate `lr`, or at that of the optimizer."""
        rows = [(w, w.grad, *m) for w, m in zip(self.weights, self.moments, strict=True) if w.grad is not None]
        weights, grads, averages, squares, steps = map(list, zip(*rows, strict=True))
        adamw(
            weights,
            grads,
            averages,
            squares,
            [],
            steps,
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            lr=self.lr if lr is None else lr,
            weight_decay=self.weight_decay,
        )
