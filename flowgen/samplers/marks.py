"""What the samplers share: alpha and sigma as numbers, and the noise of a row."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from flowgen.core import InputError
from flowgen.data import Gaussian
from flowgen.paths import Path
from flowgen.sampling import starts
from flowgen.solvers import Solver

__all__ = ["Mark", "Random", "decay", "mark"]


class Mark(NamedTuple):
    """How much of data and source is in x at a time: x = alpha x1 + sigma x0."""

    alpha: float
    sigma: float

    @property
    def level(self) -> float:
        """The noise level sigma / alpha, inf where alpha is 0."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def half_log_snr(self) -> float:
        """lambda = log(alpha / sigma), -inf and inf at the ends."""
        return -math.log(self.level) if 0 < self.level < math.inf else math.inf if self.alpha else -math.inf


def mark(path: Path, t: float) -> Mark:
    """The mark of a time, in float64."""
    c = path.coeffs(torch.tensor(t, dtype=torch.float64))
    return Mark(c.alpha.item(), c.sigma.item())


def decay(before: Mark, after: Mark) -> float:
    """What a step leaves of the noise level: level(s) / level(t), in [0, 1], 0 where either end has no choice.

    Raises:
        InputError: for a step away from the data.
    """
    if before.level < after.level:
        raise InputError("a sampler that adds noise walks towards the data: give it a grid of increasing times")
    return after.level / before.level


@dataclass(frozen=True)
class Random(Solver):
    """A solver with noise: that of a row is a function of the seed, the number of the row and the step alone.

    Args:
        seed: of the noise.
        first: the number of the first row of a batch; batches with other numbers have other noise.
    """

    seed: int = field(default=0, kw_only=True)
    first: int = field(default=0, kw_only=True)

    @property
    def draws(self) -> bool:
        return True

    def at(self, row: int) -> Self:
        return replace(self, first=self.first + row)

    def normal(self, x: Tensor, stream: str) -> Tensor:
        """z ~ N(0, I) of the shape of x."""
        return starts(Gaussian(x.shape[1:]), self.first, self.first + len(x), self.seed, stream).to(x)
