"""Streams of a distribution for training: chunks with labels, each row once in an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from flowgen.core import WHOLE, InputError, Part, generator, row_labels
from flowgen.data.distributions import Distribution
from flowgen.data.epochs import positions
from flowgen.data.scaling import Scaling

__all__ = [
    "DistributionField",
    "FiniteDataset",
    "Flipped",
    "Labelled",
    "Scaled",
    "TensorDataset",
    "as_distribution",
    "chunks",
    "floats",
    "source_rows",
    "whole_blocks",
]

Labelled = tuple[Tensor, Tensor | None]
"""Rows `(n, *shape)` and their labels `(n,)`, where they have any."""


@runtime_checkable
class FiniteDataset(Distribution, Protocol):
    """A distribution of given rows, which training goes through in epochs."""

    def chunks(self, size: int, *, seed: int, start: int = 0, part: Part = ...) -> Iterator[Labelled]:
        """Yield the part's rows of endless chunks of `size`: chunk k has the positions k size, ..., (k + 1) size - 1 of
        epochs over all rows, in orders that are functions of the seed.
        """
        ...


def as_distribution(given: Distribution | Tensor) -> Distribution:
    """Return the distribution that was given; of a tensor, the empirical distribution of its rows.

    Raises:
        InputError: for anything else.
    """
    if isinstance(given, Tensor):
        return TensorDataset(given)
    if isinstance(given, type) or not (hasattr(given, "shape") and hasattr(given, "sample")):
        kind = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
        raise InputError(f"expected a distribution (an object with shape and sample) or a tensor of rows, not {kind}")
    return given


@final
class DistributionField:
    """A field of a dataclass that takes a distribution or a tensor of rows, and holds the distribution."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Distribution:
        if instance is None:
            raise AttributeError(self.name)  # a field without a default
        return instance.__dict__[self.name]

    def __set__(self, instance: Any, given: Distribution | Tensor) -> None:
        instance.__dict__[self.name] = as_distribution(given)


def chunks(
    distribution: Distribution | Tensor, size: int, *, seed: int, start: int = 0, part: Part = WHOLE
) -> Iterator[Labelled]:
    """Yield endless chunks of `size` rows of a distribution, from chunk `start` on; of each, the rows of a part.

    Chunk k is a function of (seed, k). A distribution of given rows goes through all of them in each epoch, others draw
    anew.
    """
    distribution = as_distribution(distribution)
    if isinstance(distribution, FiniteDataset):
        yield from distribution.chunks(size, seed=seed, start=start, part=part)
    else:
        for k in count(start):
            yield distribution.sample(size, generator(seed, "chunks", k))[part.rows(size)], None


def floats(x: Tensor) -> Tensor:
    """Return 8-bit pixels as float32 in [0, 1]; other values as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def _as_floats(x: Tensor) -> Tensor:
    """Return whole numbers as float32, or as float64 where float32 does not hold some of them."""
    return x.float() if torch.equal(x.float().double(), x.double()) else x.double()


@final
@dataclass(frozen=True)
class TensorDataset:
    """The empirical distribution of the rows of x `(N, *shape)`: a draw is a row, with replacement; chunks are without.

    Args:
        x: floats, of which float64 is for a table in data units, all digits of which `Scaled` reads; whole numbers
            become floats, float64 where float32 does not tell them apart; uint8 is for pixels, which are drawn as
            float32 in [0, 1].
        labels: `(N,)` whole numbers, held as int64.

    Raises:
        InputError: if there is no row, a value is NaN or infinite, or there is not one label a row.
    """

    x: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.x, Tensor):
            raise InputError(f"rows are a tensor (N, *shape), not {type(self.x).__name__}")
        if self.x.ndim < 2:
            raise InputError(
                f"rows are a tensor (N, *shape), not of shape {tuple(self.x.shape)}: "
                "of single numbers make a column, x.unsqueeze(1)"
            )
        if not len(self.x):
            raise InputError("the data has no rows")
        if not (self.x.is_floating_point() or self.x.dtype == torch.uint8):
            object.__setattr__(self, "x", _as_floats(self.x))
        if self.labels is not None:
            object.__setattr__(self, "labels", row_labels(self.labels, len(self.x)))
        if self.x.dtype != torch.uint8 and (bad := int((~self.x.flatten(1).isfinite().all(1)).sum())):
            raise InputError(f"{bad} of {len(self.x)} rows hold NaN or infinite values")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    @property
    def values(self) -> Tensor:
        """Return all rows, `(N, *shape)`; pixels as float32."""
        return floats(self.x)

    def take(self, index: Tensor | slice) -> TensorDataset:
        """Return the distribution of some of the rows."""
        return TensorDataset(self.x[index], None if self.labels is None else self.labels[index])

    def to(self, device: torch.device) -> TensorDataset:
        """Return the same distribution with its rows on a device; its chunks are then on that device."""
        return TensorDataset(self.x.to(device), self.labels)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return floats(self.x[torch.randint(len(self.x), (n,), generator=generator)]).cpu()

    def chunks(self, size: int, *, seed: int, start: int = 0, part: Part = WHOLE) -> Iterator[Labelled]:
        for k in count(start):
            index = positions(len(self.x), k * size, (k + 1) * size, seed)[part.rows(size)]
            yield self.x[index], None if self.labels is None else self.labels[index]


@final
@dataclass(frozen=True)
class Scaled:
    """A distribution of data units, in the units of a model, float32; its chunks are on the device of the scaling."""

    distribution: DistributionField = DistributionField()
    scaling: Scaling  # type: ignore[misc]  # the field before has no default, but a descriptor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.distribution.shape

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self._apply(self.distribution.sample(n, generator)).cpu()

    def chunks(self, size: int, *, seed: int, start: int = 0, part: Part = WHOLE) -> Iterator[Labelled]:
        for x, labels in chunks(self.distribution, size, seed=seed, start=start, part=part):
            yield self._apply(x), labels

    def _apply(self, x: Tensor) -> Tensor:
        return self.scaling.in_model_units(floats(x.to(self.scaling.shift.device)))


@final
@dataclass(frozen=True)
class Flipped:
    """A distribution of images `(C, H, W)`, of whose chunks each row is mirrored, left to right, with probability
    1/2."""

    distribution: DistributionField = DistributionField()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.distribution.shape

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.distribution.sample(n, generator)

    def chunks(self, size: int, *, seed: int, start: int = 0, part: Part = WHOLE) -> Iterator[Labelled]:
        read = chunks(self.distribution, size, seed=seed, start=start, part=part)
        for k, (x, labels) in enumerate(read, start):
            mirrored = torch.rand(size, generator=generator(seed, "flips", k))[part.rows(size)] < 0.5
            yield torch.where(mirrored.to(x.device).reshape(-1, 1, 1, 1), x.flip(-1), x), labels


BLOCK = 64
"""Rows that share a generator. Networks are always run on whole blocks: on fewer rows than that, matrix kernels sum in
another order, and the last bit of a sample would depend on how many were asked for."""


def whole_blocks(rows: int) -> int:
    """Return the least multiple of BLOCK that holds so many rows."""
    return -(-rows // BLOCK) * BLOCK


def source_rows(
    distribution: Distribution | Tensor, start: int, stop: int, seed: int, stream: str = "sample"
) -> Tensor:
    """Return draws start..stop-1 of a distribution, `(stop - start, *shape)`: draw i is a function of (seed, stream,
    i)."""
    distribution, first = as_distribution(distribution), start // BLOCK
    blocks = range(first, whole_blocks(stop) // BLOCK)
    rows = torch.cat([distribution.sample(BLOCK, generator(seed, stream, block)) for block in blocks])
    return rows[start - first * BLOCK : stop - first * BLOCK]
