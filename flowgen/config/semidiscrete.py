"""Semidiscrete transport by its settings, and the rows that the source is assigned to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from flowgen.config.data import LoadedData
from flowgen.config.fields import default
from flowgen.core import InputError, generator
from flowgen.couplings import Potentials, ascend
from flowgen.data import Distribution, TensorDataset
from flowgen.data.streams import FiniteDataset
from flowgen.registry import Objects

__all__ = ["COUPLINGS", "SemidiscreteConfig"]

COUPLINGS: Objects[Any] = Objects("coupling")
"""Those of `flowgen.couplings`, and `SemidiscreteConfig`."""


@final
@dataclass(frozen=True)
class SemidiscreteConfig:
    """The potentials of all training rows, found once; see `couplings.semidiscrete`.

    Args:
        points: of a distribution that has no rows, so many are drawn, once.
        tolerance: the chi-square at which the ascent stops.
        draws_per_row: the most source points of the ascent, in multiples of the rows.
    """

    points: int = 10_000
    tolerance: float = default(ascend, "tolerance")
    draws_per_row: float = default(ascend, "draws_per_row")

    def __post_init__(self) -> None:
        if self.points < 1 or not (0 < self.tolerance < math.inf and 0 < self.draws_per_row < math.inf):
            raise InputError("semidiscrete transport needs points, a tolerance and draws_per_row above 0, and finite")

    def check(self, data: LoadedData, device: torch.device) -> None:
        """Refuse rows that are not in memory, or a device that has no float64.

        Raises:
            InputError: if the rows are not in memory, or the device has no float64.
        """
        if isinstance(data.distribution, FiniteDataset) and not isinstance(data.distribution, TensorDataset):
            raise InputError("semidiscrete transport needs all images in memory: raise images.memory")
        if device.type == "mps":
            raise InputError("semidiscrete transport needs float64, which mps has not: take another device")

    def rows(self, data: LoadedData, device: torch.device, seed: int) -> tuple[Tensor, Tensor | None]:
        """Return all training rows in model units, `(N, *shape)`, and their labels; see `check`."""
        self.check(data, device)
        distribution = data.distribution
        x = (
            distribution.values
            if isinstance(distribution, TensorDataset)
            else distribution.sample(self.points, generator(seed, "points of the distribution"))
        )
        labels = distribution.labels if isinstance(distribution, TensorDataset) else None
        return data.scaling.in_model_units(x).to(device), labels

    def ascend(self, source: Distribution, rows: Tensor, labels: Tensor | None, seed: int) -> Iterator[Potentials]:
        """Yield the potentials of such rows, round by round."""
        bounds = {"tolerance": self.tolerance, "draws_per_row": self.draws_per_row}
        return ascend(source, rows, seed=seed, labels=labels, **bounds)
