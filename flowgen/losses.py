"""Losses of the error of a prediction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from flowgen.core import Choices, InputError
from flowgen.registry import Objects

__all__ = ["LOSSES", "AdaptiveLoss", "Loss", "PseudoHuber", "Squared"]


class Loss(Protocol):
    """Errors `(B, *shape)` to one loss for each row, `(B,)`."""

    def __call__(self, error: Tensor) -> Tensor: ...


@final
@dataclass(frozen=True)
class Squared:
    """The mean of e^2 over the values. The minimiser is the conditional mean."""

    def __call__(self, error: Tensor) -> Tensor:
        return error.square().flatten(1).mean(1)


@final
@dataclass(frozen=True)
class PseudoHuber:
    """sqrt(|e|^2 + d^2) - d with d = c sqrt(dim): |e| of large errors, |e|^2 / (2 d) of small ones (arXiv 2310.14189).

    It forgives what is far off, such as the few pairs of a reflow whose trajectories a solver has missed.

    Raises:
        InputError: unless c is positive and finite.
    """

    c: float = 0.00054

    def __post_init__(self) -> None:
        if not 0 < self.c < math.inf:
            raise InputError(f"PseudoHuber needs a positive c, not {self.c}")

    def __call__(self, error: Tensor) -> Tensor:
        e = error.flatten(1)
        d = self.c * math.sqrt(e.shape[1])
        square = e.square().sum(1)
        return square / (torch.sqrt(square + d * d) + d)  # the same, without the difference of two like numbers


@final
@dataclass(frozen=True)
class AdaptiveLoss:
    """The mean of e^2 over (mean + c)^power, whose denominator is held constant (arXiv 2505.13447).

    power 0 is the squared error; at power 1 all rows pull alike, however far off they are.

    Raises:
        InputError: unless power is at least 0 and c is positive, both finite.
    """

    power: float = 1.0
    c: float = 1e-3

    def __post_init__(self) -> None:
        if not (0 <= self.power < math.inf and 0 < self.c < math.inf):
            raise InputError(f"AdaptiveLoss needs power >= 0 and a positive c, not {self.power} and {self.c}")

    def __call__(self, error: Tensor) -> Tensor:
        square = error.square().flatten(1).mean(1)
        return square / (square.detach() + self.c) ** self.power


LOSSES: Choices[Loss] = Choices("loss", Callable, Objects("loss"))
