"""Objectives: what training minimises, and at which times it looks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from flowgen import targets
from flowgen.core import InputError, Pair, Point, like
from flowgen.model import Model
from flowgen.paths import Bridge

__all__ = [
    "Draws",
    "FlowMatching",
    "LogitNormal",
    "Objective",
    "Splittable",
    "Stratified",
    "TimeLaw",
    "UShaped",
    "Uniform",
]


class Objective(Protocol):
    """Scores a model on a batch of pairs: one loss for each pair, `(B,)`."""

    def __call__(self, model: Model, pair: Pair, generator: torch.Generator) -> Tensor: ...


@runtime_checkable
class Splittable(Objective, Protocol):
    """An objective in two halves: it is `loss(model, pair, draw(pair.x1.shape, generator))`.

    What it draws for a whole batch can be divided like the batch itself, so that several processes, or several
    accumulated gradients, come to the losses of one.
    """

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Any:
        """The draws for a batch of shape `(B, *event)`: a NamedTuple of tensors `(B, ...)` on the CPU, or None."""

    def loss(self, model: Model, pair: Pair, drawn: Any) -> Tensor:
        """One loss for each pair `(B,)`, given its rows of what was drawn."""


class TimeLaw(ABC):
    """A law of training times on [0, 1]."""

    @abstractmethod
    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        """n times `(n,)` float32 on the CPU."""


@final
@dataclass(frozen=True)
class Uniform(TimeLaw):
    """t ~ U[0, 1]."""

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, generator=generator)


@final
@dataclass(frozen=True)
class Stratified(TimeLaw):
    """One uniform time in each of n equal strata, in random order: U[0, 1] with less variance over a batch."""

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        return (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n


@final
@dataclass(frozen=True)
class LogitNormal(TimeLaw):
    """t = sigmoid(mean + std z), z ~ N(0, 1): the middle of the path (arXiv 2403.03206)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise InputError(f"LogitNormal needs a finite mean and a positive std, not {self.mean} and {self.std}")

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.randn(n, generator=generator))


@final
@dataclass(frozen=True)
class UShaped(TimeLaw):
    """p(t) proportional to exp(a t) + exp(a (1 - t)): both ends, for reflow (arXiv 2405.20320, a = 4).

    Its inverse distribution function is t = 1/2 + asinh((2 u - 1) sinh(a / 2)) / a.
    """

    a: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.a <= 100:
            raise InputError(f"UShaped needs 0 < a <= 100, not {self.a}")

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        u = torch.rand(n, generator=generator)
        return (0.5 + torch.asinh((2 * u - 1) * math.sinh(self.a / 2)) / self.a).clamp(0, 1)


class Draws(NamedTuple):
    """What flow matching draws for each pair: its time on [0, 1] `(B,)`, and noise `(B, *event)` for a bridge."""

    times: Tensor
    noise: Tensor | None


@final
@dataclass(frozen=True)
class FlowMatching:
    """Conditional flow matching (arXiv 2210.02747, 2209.03003, 2302.00482): the mean squared error of the prediction,

    loss_i = mean over the event of (model(x_t, t) - (a(t) x1 + b(t) x0))^2,  t ~ times,

    where (a, b) is the model's target; for the target velocity that is |u(x_t, t) - dx_t/dt|^2 / dim. Times are
    stretched over the model's span.

    Args:
        times: where to look.
        bridge: noise on the path, x_t + gamma z with z ~ N(0, I), whose velocity dx_t/dt + gamma' z is then learned.

    Raises:
        InputError: for a bridge with another target than the velocity, from which the ends could not be told.
    """

    times: TimeLaw = field(default_factory=Uniform)
    bridge: Bridge | None = None

    def __call__(self, model: Model, pair: Pair, generator: torch.Generator) -> Tensor:
        return self.loss(model, pair, self.draw(pair.x1.shape, generator))

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Times, and the noise of the bridge if there is one."""
        times = self.times(shape[0], generator)
        return Draws(times, None if self.bridge is None else torch.randn(*shape, generator=generator))

    def loss(self, model: Model, pair: Pair, drawn: Draws) -> Tensor:
        """The losses `(B,)` at given times and noise."""
        lo, hi = model.span
        if self.bridge is not None:
            first, last = self.bridge.span
            lo, hi = max(lo, first), min(hi, last)
        t = (lo + (hi - lo) * drawn.times).to(pair.x1.device)
        point = model.path.at(pair, t)
        if self.bridge is not None and drawn.noise is not None:
            point = widened(point, self.bridge, drawn.noise)
        if model.target is targets.velocity:
            y = point.dx
        elif self.bridge is None:
            y = targets.encode(pair, model.path.coeffs(like(t, pair.x1)), model.target)
        else:
            raise InputError(f"a bridge needs the target velocity, not {model.target.__name__}")
        return (model(point.x, t, t, pair.cond) - y).square().flatten(1).mean(1)


def widened(point: Point, bridge: Bridge, noise: Tensor) -> Point:
    """A point of the path, with the noise z `(B, *event)` of a bridge: x + gamma z and dx + gamma' z."""
    z = noise.to(point.x)
    gamma, d_gamma = bridge.gamma(like(point.t, point.x))
    return Point(point.x + gamma * z, point.t, point.dx + d_gamma * z)
