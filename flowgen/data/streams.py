"""Laws as training reads them: in chunks, with labels, each row once in an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from flowgen.core import WHOLE, InputError, Part, generator
from flowgen.data.epochs import positions
from flowgen.data.laws import Law
from flowgen.data.scaling import Scaling

__all__ = ["Flipped", "Labelled", "Listed", "Rows", "Scaled", "chunks", "floats"]

Labelled = tuple[Tensor, Tensor | None]
"""Rows `(n, *event)` and their labels `(n,)`, where they have any."""


@runtime_checkable
class Listed(Law, Protocol):
    """A law of given rows, which training goes through in epochs."""

    def chunks(self, size: int, *, seed: int, start: int = 0, part: Part = ...) -> Iterator[Labelled]:
        """The part's rows of endless chunks of `size`: chunk k has the positions k size, ..., (k + 1) size - 1 of a
        walk through all rows, one epoch after another, in orders that are functions of the seed."""
        ...


def chunks(law: Law, size: int, *, seed: int, start: int = 0, part: Part = WHOLE) -> Iterator[Labelled]:
    """Endless chunks of `size` rows of a law, from chunk `start` on; of each, the rows of a part.

    Chunk k is a function of (seed, k). A law of given rows goes through all of them in each epoch, others draw anew.
    """
    if isinstance(law, Listed):
        yield from law.chunks(size, seed=seed, start=start, part=part)
    else:
        for k in count(start):
            yield law.sample(size, generator(seed, "chunks", k))[part.rows(size)], None


def floats(x: Tensor) -> Tensor:
    """8-bit pixels as float32 in [0, 1]; other values as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


@final
@dataclass(frozen=True)
class Rows:
    """The empirical law of the rows of x `(N, *event)`: a draw is a row, with replacement; chunks are without.

    Args:
        x: float32; float64 for a table in data units, all digits of which `Scaled` reads; or uint8 for pixels, which
            are drawn as float32 in [0, 1].
        labels: `(N,)` int64.

    Raises:
        InputError: if there is no row, a value is NaN or infinite, or there is not one label a row.
    """

    x: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if not len(self.x):
            raise InputError("the data has no rows")
        if self.labels is not None and self.labels.shape != (len(self.x),):
            raise InputError(f"{len(self.x)} rows need as many labels, not labels of shape {tuple(self.labels.shape)}")
        if self.x.dtype != torch.uint8 and (bad := int((~self.x.flatten(1).isfinite().all(1)).sum())):
            raise InputError(f"{bad} of {len(self.x)} rows hold NaN or infinite values")

    @property
    def event(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    @property
    def values(self) -> Tensor:
        """All rows, `(N, *event)`; pixels as float32."""
        return floats(self.x)

    def take(self, index: Tensor | slice) -> Rows:
        """The law of some of the rows."""
        return Rows(self.x[index], None if self.labels is None else self.labels[index])

    def to(self, device: torch.device) -> Rows:
        """The same law with its rows on a device, from where chunks come then."""
        return Rows(self.x.to(device), self.labels)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return floats(self.x[torch.randint(len(self.x), (n,), generator=generator)]).cpu()

    def chunks(self, size: int, *, seed: int, start: int = 0, part: Part = WHOLE) -> Iterator[Labelled]:
        for k in count(start):
            index = positions(len(self.x), k * size, (k + 1) * size, seed)[part.rows(size)]
            yield self.x[index], None if self.labels is None else self.labels[index]


@final
@dataclass(frozen=True)
class Scaled:
    """A law of data units, in the units of a model, float32; its chunks are on the device of the scaling."""

    law: Law
    scaling: Scaling

    @property
    def event(self) -> tuple[int, ...]:
        return self.law.event

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self._apply(self.law.sample(n, generator)).cpu()

    def chunks(self, size: int, *, seed: int, start: int = 0, part: Part = WHOLE) -> Iterator[Labelled]:
        for x, labels in chunks(self.law, size, seed=seed, start=start, part=part):
            yield self._apply(x), labels

    def _apply(self, x: Tensor) -> Tensor:
        return self.scaling.in_model_units(floats(x.to(self.scaling.shift.device)))


@final
@dataclass(frozen=True)
class Flipped:
    """A law of images `(C, H, W)`, of whose chunks each row is mirrored, left to right, with probability 1/2."""

    law: Law

    @property
    def event(self) -> tuple[int, ...]:
        return self.law.event

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.law.sample(n, generator)

    def chunks(self, size: int, *, seed: int, start: int = 0, part: Part = WHOLE) -> Iterator[Labelled]:
        read = chunks(self.law, size, seed=seed, start=start, part=part)
        for k, (x, labels) in enumerate(read, start):
            mirrored = torch.rand(size, generator=generator(seed, "flips", k))[part.rows(size)] < 0.5
            yield torch.where(mirrored.to(x.device).reshape(-1, 1, 1, 1), x.flip(-1), x), labels
