"""Noise for the samplers: that of a row, and how a step reduces the noise level."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor

from flowgen.core import InputError
from flowgen.data import Gaussian
from flowgen.data.streams import source_rows
from flowgen.samplers.ode import Solver
from flowgen.schedules import Mark

__all__ = ["Random", "decay"]


def decay(before: Mark, after: Mark) -> float:
    """Return level(s) / level(t) in [0, 1], what a step leaves of the noise level: 0 from pure noise, and to data.

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
    def stochastic(self) -> bool:
        return True

    def at(self, row: int) -> Self:
        return replace(self, first=self.first + row)

    def normal(self, x: Tensor, stream: str) -> Tensor:
        """Draw z ~ N(0, I) of the shape of x."""
        return source_rows(Gaussian(x.shape[1:]), self.first, self.first + len(x), self.seed, stream).to(x)
