"""Distributions of training times t, and of pairs t <= s on which objectives of flow maps train."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, final

import torch
from torch import Tensor

from flowgen.core import Choices, InputError, Named
from flowgen.registry import Objects
from flowgen.schedules import Schedule

__all__ = [
    "TIMES",
    "Discrete",
    "Intervals",
    "LogNormal",
    "LogitNormal",
    "Steps",
    "Stratified",
    "TimeDistribution",
    "TimePairDistribution",
    "TimePairs",
    "ToData",
    "UShaped",
    "Uniform",
    "on_path",
]


class TimeDistribution(ABC):
    """A distribution of training times on [0, 1]."""

    @abstractmethod
    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n times `(n,)` float32 on the CPU."""


@final
@dataclass(frozen=True)
class Uniform(TimeDistribution):
    """t ~ U[0, 1]."""

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, generator=generator)


@final
@dataclass(frozen=True)
class Stratified(TimeDistribution):
    """One uniform time in each of n equal strata, in random order: U[0, 1] with less variance over a batch."""

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        return (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n


@final
@dataclass(frozen=True)
class LogitNormal(TimeDistribution):
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
class Discrete(TimeDistribution):
    """One of `steps` even times, t = i / (steps - 1): DDPM's, where these are its steps (arXiv 2006.11239)."""

    steps: int = 1000

    def __post_init__(self) -> None:
        if not 2 <= self.steps <= 100_000:
            raise InputError(f"Discrete needs 2 to 100,000 steps, not {self.steps}")

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.steps, (n,), generator=generator) / (self.steps - 1)


@final
@dataclass(frozen=True)
class LogNormal(TimeDistribution):
    """Times at which log(sigma / alpha) ~ N(mean, std^2): EDM's distribution of noise levels (arXiv 2206.00364), on any
    path.

    What it draws are uniform quantiles; `times` are those of a path. On the straight path it is
    LogitNormal(-mean, std).
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise InputError(f"LogNormal needs a finite mean and a positive std, not {self.mean} and {self.std}")

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, generator=generator)

    def times(self, quantiles: Tensor, schedule: Schedule, span: tuple[float, float]) -> Tensor:
        """Return the times of quantiles `(n,)`; those beyond the span are moved to its ends."""
        ends = schedule.log_snr(torch.tensor(span, dtype=torch.float64)).tolist()
        # the more noise, the earlier: the highest quantile of time is the lowest of noise
        log_noise = self.mean - self.std * torch.special.ndtri(quantiles)
        return schedule.time((-2 * log_noise).clamp(*ends)).clamp(*span)


def on_path(distribution: TimeDistribution, drawn: Tensor, schedule: Schedule, span: tuple[float, float]) -> Tensor:
    """Return draws of a distribution as times within a span of a path: stretched over it, unless the distribution is of
    noise."""
    if isinstance(distribution, LogNormal):
        return distribution.times(drawn, schedule, span)
    lo, hi = span
    return lo + (hi - lo) * drawn


@final
@dataclass(frozen=True)
class UShaped(TimeDistribution):
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


TIMES: Choices[TimeDistribution] = Choices("time distribution", Callable, Objects("time distribution"))


class TimePairs(NamedTuple):
    """What the objectives of flow maps draw for each pair: times t <= s on [0, 1], each `(B,)` float32."""

    t: Tensor
    s: Tensor


class TimePairDistribution(Protocol):
    """A distribution of pairs of times t <= s.

    Attributes:
        diagonal: the share of them with s = t. Where there are none, the network's own diagonal is not learned.
    """

    @property
    def diagonal(self) -> float: ...

    def __call__(self, n: int, generator: torch.Generator) -> TimePairs: ...


def _check_times(distribution: TimeDistribution) -> None:
    """Refuse a distribution of noise levels, whose times are those of a path.

    Raises:
        InputError: for a distribution of noise levels, whose times are those of a path.
    """
    if isinstance(distribution, LogNormal):
        raise InputError(
            "a flow map needs times on [0, 1], not those of a distribution of noise levels: choose logit-normal"
        )


@final
@dataclass(frozen=True)
class Intervals:
    """Two times of a distribution, in order; a share of them on the diagonal s = t, where the velocity itself is
    learned.

    Raises:
        InputError: unless the share is within 0 and 1, and for times of a distribution of noise levels.
    """

    times: Named[TimeDistribution] = Named(TIMES, "logit-normal")
    diagonal: float = 0.5

    def __post_init__(self) -> None:
        _check_times(self.times)
        if not 0 <= self.diagonal <= 1:
            raise InputError(f"the share of the diagonal must be within 0 and 1, not {self.diagonal}")

    def __call__(self, n: int, generator: torch.Generator) -> TimePairs:
        one, other = self.times(n, generator), self.times(n, generator)
        t, s = torch.minimum(one, other), torch.maximum(one, other)
        still = torch.randperm(n, generator=generator) < round(self.diagonal * n)  # so many of every batch
        return TimePairs(t, torch.where(still, t, s))


@final
@dataclass(frozen=True)
class ToData:
    """From a time of a distribution to the data, s = 1.

    Raises:
        InputError: for times of a distribution of noise levels.
    """

    diagonal: ClassVar[float] = 0.0
    times: Named[TimeDistribution] = Named(TIMES, "logit-normal")

    def __post_init__(self) -> None:
        _check_times(self.times)

    def __call__(self, n: int, generator: torch.Generator) -> TimePairs:
        t = self.times(n, generator)
        return TimePairs(t, torch.ones_like(t))


@final
@dataclass(frozen=True)
class Steps:
    """From one time of an even grid to the next, t = i / steps.

    Raises:
        InputError: unless there is at least one step.
    """

    diagonal: ClassVar[float] = 0.0
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"a grid needs at least one step, not {self.steps}")

    def __call__(self, n: int, generator: torch.Generator) -> TimePairs:
        i = torch.randint(self.steps, (n,), generator=generator)
        return TimePairs(i / self.steps, (i + 1) / self.steps)
