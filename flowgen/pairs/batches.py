"""The stream of coupled batches that training reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Protocol, final, runtime_checkable

import torch

from flowgen.core import WHOLE, InputError, Pair, Part, check_labels, generator, row_labels, whole
from flowgen.couplings.exact import COUPLINGS, Coupling, Independent
from flowgen.data.epochs import positions
from flowgen.data.streams import DistributionField, chunks
from flowgen.pairs.prefetch import in_order

__all__ = [
    "IndependentPairs",
    "PairSampler",
    "PairStream",
    "Pool",
    "Prepared",
    "StoredPairs",
    "batches",
    "coupled",
    "with_null_labels",
]


class PairSampler(Protocol):
    """A function that draws n pairs of ends."""

    def __call__(self, n: int, generator: torch.Generator) -> Pair: ...


@runtime_checkable
class Prepared(Coupling, Protocol):
    """A coupling that learns something once from the pairs to come, and reuses it for all of them."""

    def prepared(self, rows: int, draw: Callable[[int], Pair]) -> Coupling:
        """Return the coupling to use where `rows` rows are coupled at a time; `draw(n)` gives n pairs to learn from."""
        ...


@runtime_checkable
class PairStream(Protocol):
    """Pairs that are read in order: from a list of rows, or with parts that are read apart."""

    def stream(self, size: int, *, seed: int, start: int = 0, part: Part = ...) -> Iterator[Pair]:
        """Yield the part's rows of endless chunks of `size` pairs; chunk k is a function of (seed, k)."""
        ...


@final
@dataclass(frozen=True)
class IndependentPairs:
    """Independent draws from a source distribution and a data distribution. The labels of data, where they have any,
    are the condition.

    Args:
        source: of x0; a tensor stands for the distribution of its rows, here and for the data.
        data: of x1.

    Raises:
        InputError: if their events differ.
    """

    source: DistributionField = DistributionField()
    data: DistributionField = DistributionField()

    def __post_init__(self) -> None:
        if self.source.shape != self.data.shape:
            raise InputError(f"the source has shape {self.source.shape}, the data {self.data.shape}: they must agree")

    def __call__(self, n: int, generator: torch.Generator) -> Pair:
        return Pair(self.source.sample(n, generator), self.data.sample(n, generator))

    def stream(self, size: int, *, seed: int, start: int = 0, part: Part = WHOLE) -> Iterator[Pair]:
        # an order of its own for each end, also where both are the same rows
        other = generator(seed, "order of the source").initial_seed()
        sources = chunks(self.source, size, seed=other, start=start, part=part)
        for (x0, _), (x1, labels) in zip(sources, chunks(self.data, size, seed=seed, start=start, part=part)):  # noqa: B905
            yield Pair(x0, x1, labels)


@final
@dataclass(frozen=True)
class StoredPairs:
    """Stored pairs, each once in an epoch."""

    pair: Pair

    def stream(self, size: int, *, seed: int, start: int = 0, part: Part = WHOLE) -> Iterator[Pair]:
        for k in count(start):
            yield self.pair.take(positions(len(self.pair.x0), k * size, (k + 1) * size, seed)[part.rows(size)])


@final
@dataclass(frozen=True)
class Pool:
    """Couple `batches` batches at once, shuffle their pairs, and use every pair exactly `reuse` times.

    The coupling is solved once for `reuse` uses; each use sees the pair at another time of its path, and pairs return
    after a whole pool at the soonest. The pool is also the most that a coupling can solve together.
    """

    batches: int = 1
    reuse: int = 1

    def __post_init__(self) -> None:
        if self.batches < 1 or self.reuse < 1:
            raise InputError(f"a pool needs at least one batch and one use, not {self.batches} and {self.reuse}")


def batches(
    draw: PairSampler | PairStream,
    size: int,
    *,
    seed: int,
    coupling: Coupling | str | None = None,
    pool: Pool | None = None,
    start: int = 0,
    part: Part = WHOLE,
    threads: int = 1,
) -> Iterator[Pair]:
    """Yield batches of `size` coupled pairs without end; of each, the rows of a part.

    Batch k is a function of (seed, k): a stream with start=k begins with the batch that the whole stream has there.
    What is coupled or pooled is read whole by every part; independent pairs that are not pooled are read in part.

    Args:
        coupling: an object, or its name as on the command line, such as "exact"; None pairs independently.
        threads: solve the coupling of the next pool on so many threads, while this one is used; 0 solves it when
            it is needed. The batches are the same.

    Raises:
        InputError: at once, for arguments of another kind; when pairs are coupled, for a coupling that returns anything
            but a `Pair` of as many rows.
    """
    whole("the size of a batch", size)
    whole("the seed", seed, None)
    whole("the first batch", start, 0)
    if not isinstance(draw, PairStream) and not callable(draw):
        raise InputError(
            "batches are drawn by IndependentPairs(source, data) or a function (n, generator), "
            f"not by a {type(draw).__name__}"
        )
    coupling = COUPLINGS("independent" if coupling is None else coupling)
    return _batches(draw, size, seed, coupling, pool or Pool(), start, part, threads)


def _batches(
    draw: PairSampler | PairStream,
    size: int,
    seed: int,
    coupling: Coupling,
    pool: Pool,
    start: int,
    part: Part,
    threads: int,
) -> Iterator[Pair]:
    if pool == Pool() and isinstance(coupling, Independent):
        yield from _read(draw, size, seed, start, part)
        return
    index, skip = divmod(start, pool.batches * pool.reuse)
    pools = _pools(draw, size, seed, coupling, pool, index, threads)
    made = (batch for k, pairs in enumerate(pools, index) for batch in _shuffled(pairs, size, pool, seed, k))
    for batch in islice(made, skip, None):
        yield batch if part == WHOLE else batch.take(part.rows(size))


def _pools(
    draw: PairSampler | PairStream, size: int, seed: int, coupling: Coupling, pool: Pool, start: int, threads: int
) -> Iterator[Pair]:
    """Yield the coupled pairs of each pool, from pool `start` on."""
    rows = size * pool.batches
    if isinstance(coupling, Prepared):
        other = generator(seed, "preparation").initial_seed()
        coupling = coupling.prepared(rows, lambda n: next(_read(draw, n, other, 0, WHOLE)))
    unit = _unit(coupling, size, rows)
    units = -(-rows // unit)
    tasks = (
        partial(
            coupled, coupling, drawn.take(slice(i * unit, (i + 1) * unit)), generator(seed, "coupling", k * units + i)
        )
        for k, drawn in enumerate(_read(draw, rows, seed, start, WHOLE), start)
        for i in range(units)
    )
    solved = in_order(tasks, 0 if isinstance(coupling, Independent) else threads, units)
    while pairs := list(islice(solved, units)):
        yield Pair.cat(pairs) if units > 1 else pairs[0]


def coupled(coupling: Coupling, pair: Pair, generator: torch.Generator) -> Pair:
    """Apply a coupling to a pair and check the result.

    Raises:
        InputError: unless that is a Pair of the same shapes.
    """
    made: object = coupling(pair, generator)
    name = getattr(coupling, "__name__", type(coupling).__name__)
    if not isinstance(made, Pair):
        raise InputError(f"the coupling {name} must return a flowgen.Pair(x0, x1, cond), not a {type(made).__name__}")
    if made.x0.shape != pair.x0.shape or made.x1.shape != pair.x1.shape:
        was, now = (f"{tuple(p.x0.shape)} and {tuple(p.x1.shape)}" for p in (pair, made))
        raise InputError(f"the coupling {name} must keep the shapes of the ends, {was}, and returned {now}")
    if (made.cond is None) != (pair.cond is None) or (made.cond is not None and len(made.cond) != len(made.x1)):
        raise InputError(
            f"the coupling {name} must return the condition of each row with it, as its pair has one or none"
        )
    return made


def _unit(coupling: Coupling, size: int, rows: int) -> int:
    """Return how many rows to hand to a coupling at a time: a batch, or its group where that is larger."""
    group = getattr(coupling, "group", size)
    return min(rows, -(-size // group) * group if group else rows)


def _read(draw: PairSampler | PairStream, size: int, seed: int, start: int, part: Part) -> Iterator[Pair]:
    """Yield the part's rows of chunks of `size` pairs, from chunk `start` on."""
    if isinstance(draw, PairStream):
        yield from draw.stream(size, seed=seed, start=start, part=part)
    else:
        for k in count(start):
            yield _drawn(draw, size, generator(seed, "pairs", k)).take(part.rows(size))


def _drawn(draw: PairSampler, size: int, generator: torch.Generator) -> Pair:
    """Draw a Pair by a function, and refuse what is not one of so many rows.

    Raises:
        InputError: unless a function draws a Pair of so many rows.
    """
    pair: object = draw(size, generator)
    if not isinstance(pair, Pair):
        raise InputError(f"a function that draws must return a flowgen.Pair(x0, x1), not a {type(pair).__name__}")
    if len(pair.checked().x1) != size:
        raise InputError(f"a function that draws was asked for {size} pairs, and returned {len(pair.x1)}")
    return pair


def _shuffled(pairs: Pair, size: int, pool: Pool, seed: int, index: int) -> Iterator[Pair]:
    """Yield the batches of a pool, its pairs in a new random order for each use; a single batch keeps its order."""
    if pool.batches == 1:
        yield from [pairs] * pool.reuse
        return
    rng = generator(seed, "order of a pool", index)
    for _ in range(pool.reuse):
        for batch in torch.randperm(len(pairs.x0), generator=rng).split(size):
            yield pairs.take(batch)


def with_null_labels(
    pairs: Iterator[Pair], share: float, null: int, size: int, *, seed: int, start: int = 0, part: Part = WHOLE
) -> Iterator[Pair]:
    """Yield the same pairs with a random share of the labels set to `null`, for classifier-free guidance (arXiv
    2207.12598).

    Args:
        pairs: batches of at most `size` from batch `start` on, of each the rows of `part`.
        null: the number of classes: labels of data are 0, ..., null - 1.

    Raises:
        InputError: for conditions that are not such labels, of which those on a GPU are looked at in the first batch
            alone; or for batches of more rows.
    """
    for k, pair in enumerate(pairs, start):
        dropped = torch.rand(size, generator=generator(seed, "null labels", k))[part.rows(size)] < share
        if pair.cond is None:
            yield pair
            continue
        labels = row_labels(pair.cond, len(pair.x1))
        if len(labels) > len(dropped):
            raise InputError(
                f"null labels were asked for batches of {len(dropped)} rows, and there is one of {len(labels)}"
            )
        if k == start or labels.device.type == "cpu":  # a GPU is waited for once
            check_labels(labels, null - 1)
        yield pair._replace(cond=torch.where(dropped[: len(labels)].to(labels.device), null, labels))
