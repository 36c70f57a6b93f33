"""The stream of coupled batches that training reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Protocol, final

import torch

from flowgen.core import InputError, Pair, generator
from flowgen.couplings.exact import Coupling, Independent
from flowgen.data.laws import Law

__all__ = ["Draw", "Ends", "Pool", "StoredPairs", "batches"]


class Draw(Protocol):
    """Draws n pairs of ends."""

    def __call__(self, n: int, generator: torch.Generator) -> Pair: ...


@final
@dataclass(frozen=True)
class Ends:
    """Independent draws from a source law and a data law.

    Raises:
        InputError: if their events differ.
    """

    source: Law
    data: Law

    def __post_init__(self) -> None:
        if self.source.event != self.data.event:
            raise InputError(f"the source has shape {self.source.event}, the data {self.data.event}: they must agree")

    def __call__(self, n: int, generator: torch.Generator) -> Pair:
        return Pair(self.source.sample(n, generator), self.data.sample(n, generator))


@final
@dataclass(frozen=True)
class StoredPairs:
    """Random rows of pairs that were made before, with replacement."""

    pair: Pair

    def __call__(self, n: int, generator: torch.Generator) -> Pair:
        return self.pair.take(torch.randint(len(self.pair.x0), (n,), generator=generator))


@final
@dataclass(frozen=True)
class Pool:
    """Couple `batches` batches ahead, shuffle their pairs, and use every pair exactly `reuse` times.

    The coupling is solved once for `reuse` uses; each use sees the pair at another time of its path.
    """

    batches: int = 1
    reuse: int = 1

    def __post_init__(self) -> None:
        if self.batches < 1 or self.reuse < 1:
            raise InputError(f"a pool needs at least one batch and one use, not {self.batches} and {self.reuse}")


def batches(
    draw: Draw,
    size: int,
    *,
    seed: int,
    coupling: Coupling | None = None,
    pool: Pool | None = None,
    start: int = 0,
) -> Iterator[Pair]:
    """Batches of `size` coupled pairs, without end.

    Batch k is a function of (seed, k): a stream with start=k begins with the batch that the whole stream has there.
    """
    coupling, pool = coupling or Independent(), pool or Pool()
    skip = start % (pool.batches * pool.reuse)
    for index in count(start // (pool.batches * pool.reuse)):
        rng = generator(seed, "pairs", index)
        drawn = draw(size * pool.batches, rng)
        coupled = [coupling(drawn.take(slice(row, row + size)), rng) for row in range(0, size * pool.batches, size)]
        for batch in _shuffled(coupled, pool.reuse, rng):
            if skip:
                skip -= 1
            else:
                yield batch


def _shuffled(coupled: list[Pair], reuse: int, rng: torch.Generator) -> Iterator[Pair]:
    """The pairs of all batches in `reuse` random orders; a batch that has no other to mix with stays as it is."""
    if len(coupled) == 1:
        yield from coupled * reuse
        return
    size, pairs = len(coupled[0].x0), Pair.cat(coupled)
    for order in [torch.randperm(len(pairs.x0), generator=rng) for _ in range(reuse)]:
        for batch in order.split(size):
            yield pairs.take(batch)
