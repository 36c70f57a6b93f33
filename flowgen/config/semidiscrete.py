"""Semidiscrete transport by its settings, and the rows that it shares the source among."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowgen.config.data import LoadedData
from flowgen.core import InputError, generator
from flowgen.data import Rows
from flowgen.data.streams import Listed

__all__ = ["SemidiscreteConfig"]


@final
@dataclass(frozen=True)
class SemidiscreteConfig:
    """The potentials of all training rows, found once; see `couplings.semidiscrete`.

    Args:
        points: of a law that has no rows, so many are drawn, once.
        tolerance: the chi-square at which the ascent stops.
        draws_per_row: the most source points of the ascent, in multiples of the rows.
    """

    points: int = 10_000
    tolerance: float = 0.02
    draws_per_row: float = 1000.0

    def __post_init__(self) -> None:
        if self.points < 1 or not self.tolerance > 0 or not self.draws_per_row > 0:
            raise InputError("semidiscrete transport needs points, a tolerance and draws_per_row above 0")

    def rows(self, data: LoadedData, device: torch.device, seed: int) -> tuple[Tensor, Tensor | None]:
        """All training rows in model units, `(N, *event)`, and their labels.

        Raises:
            InputError: if they are not in memory.
        """
        law = data.law
        if isinstance(law, Listed) and not isinstance(law, Rows):
            raise InputError("semidiscrete transport needs all images in memory: raise images.memory")
        x = law.values if isinstance(law, Rows) else law.sample(self.points, generator(seed, "points of the law"))
        return deepcopy(data.scaling).to(device).apply_to(x.to(device)), law.labels if isinstance(law, Rows) else None
