"""The order in which training goes through rows: all of them, in a new order each time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from flowgen.core import InputError, generator

__all__ = ["endless", "order", "positions"]

T = TypeVar("T")


def endless(batches: Iterable[T]) -> Iterator[T]:
    """Yield batches without end: what can be read again, such as a list or a DataLoader, epoch after epoch.

    Raises:
        InputError: when an iterator, which can be read but once, ends; or for an epoch without batches.
    """
    if not isinstance(batches, Iterable):
        raise InputError(f"expected an iterable of batches, not {type(batches).__name__}")
    seen, before = 0, -1
    while seen > before:
        before = seen
        try:
            for batch in batches:
                seen += 1
                yield batch
        except TypeError as error:  # what the default collate_fn says of Pair(x0, x1, None)
            if not (isinstance(batches, DataLoader) and "NoneType" in str(error)):
                raise
            line = "rows that are pairs without a condition need DataLoader(..., collate_fn=Pair.stack)"
            raise InputError(f"the loader cannot make a batch of None: {line}") from error
        if isinstance(batches, Iterator):
            break
    if isinstance(batches, Iterator):
        why = "an iterator can be read once: give more batches, or what can be read again, a list or a DataLoader"
    else:
        why = "another epoch has none"
    raise InputError(f"there were only {seen} batches, and {why}")


@lru_cache(maxsize=4)
def order(rows: int, seed: int, epoch: int, stream: str = "data") -> Tensor:
    """Return the numbers of all rows, `(rows,)`, in an order that is a function of the arguments alone."""
    return torch.randperm(rows, generator=generator(seed, f"order of {stream}", epoch))


def positions(rows: int, start: int, stop: int, seed: int, stream: str = "data") -> Tensor:
    """Return the rows at the positions start..stop-1 of endless epochs over `rows` rows.

    >>> positions(3, 0, 6, seed=0).bincount()
    tensor([2, 2, 2])
    """
    parts = []
    while start < stop:
        epoch, first = divmod(start, rows)
        taken = order(rows, seed, epoch, stream)[first : first + stop - start]
        parts.append(taken)
        start += len(taken)
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
