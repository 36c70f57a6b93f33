"""Bridges: noise of a path between its ends, x_t = alpha x1 + sigma x0 + gamma(t) z with z ~ N(0, I)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from flowgen.core import InputError
from flowgen.registry import Objects

__all__ = ["BRIDGES", "Bridge", "BrownianBridge", "ConstantBridge"]


class Bridge(Protocol):
    """The noise of a path between its ends: gamma(t) and d gamma/dt at times t strictly inside `span`, any shape."""

    @property
    def span(self) -> tuple[float, float]: ...

    def gamma(self, t: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class _Noise:
    """The noise of a bridge.

    Raises:
        InputError: unless 0 <= sigma < inf.
    """

    sigma: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise InputError(f"the noise of a bridge must be finite and not negative, not {self.sigma}")


@final
@dataclass(frozen=True)
class ConstantBridge(_Noise):
    """gamma = sigma at all times, so that both ends are blurred too: the path of I-CFM (arXiv 2302.00482).

    Raises:
        InputError: unless 0 <= sigma < inf.
    """

    @property
    def span(self) -> tuple[float, float]:
        return 0.0, 1.0

    def gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(t, self.sigma), torch.zeros_like(t)


@final
@dataclass(frozen=True)
class BrownianBridge(_Noise):
    """gamma = sigma sqrt(t (1 - t)), a Brownian bridge: the path of SB-CFM (arXiv 2302.00482).

    Its derivative sigma (1 - 2 t) / (2 sqrt(t (1 - t))) is infinite at both ends.

    Raises:
        InputError: unless 0 <= sigma < inf.
    """

    @property
    def span(self) -> tuple[float, float]:
        return 1e-5, 1 - 1e-5  # uniform float32 times are 0 once in 17 million draws: in nearly every training

    def gamma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        root = (t * (1 - t)).sqrt()
        return self.sigma * root, self.sigma * (1 - 2 * t) / (2 * root)


BRIDGES: Objects[type[Bridge]] = Objects("bridge")
