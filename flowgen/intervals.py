"""Distributions of two times: the intervals on which objectives of flow maps train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, final

import torch
from torch import Tensor

from flowgen.core import InputError, Named
from flowgen.objectives import TIMES, LogNormal, TimeDistribution

__all__ = ["Intervals", "Steps", "TimePairDistribution", "TimePairs", "ToData"]


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
