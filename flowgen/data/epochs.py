"""The order in which training goes through rows: all of them, in a new order each time."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from flowgen.core import generator

__all__ = ["order", "positions"]


@lru_cache(maxsize=4)
def order(rows: int, seed: int, epoch: int, stream: str = "data") -> Tensor:
    """The numbers of all rows, `(rows,)`, in an order that is a function of the arguments alone."""
    return torch.randperm(rows, generator=generator(seed, f"order of {stream}", epoch))


def positions(rows: int, start: int, stop: int, seed: int, stream: str = "data") -> Tensor:
    """The rows at the positions start..stop-1 of an endless walk through `rows` rows, one epoch after another.

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
