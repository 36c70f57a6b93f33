"""Rows that training never sees."""

from __future__ import annotations

import torch
from torch import Tensor

from flowgen.core import InputError, generator

__all__ = ["hold_out", "split"]


def split(x: Tensor, share: float, seed: int, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the numbers of the training rows and of the held-out rows of x `(N, *shape)`, both increasing.

    floor(share times the distinct rows) are held out, by a random draw without replacement; rows that are equal stay
    together, so that no training row is held out too.

    Args:
        labels: `(N,)` int64 from 0: each class gives its share, and keeps at least one row to train on; a class of a
            single row is trained on.

    Raises:
        InputError: unless 0 <= share < 1.
    """
    if not 0 <= share < 1:
        raise InputError(f"the held-out share must be at least 0 and below 1, not {share}")
    group = _first_equal(x)
    distinct = group.unique()
    taken = hold_out(len(distinct), int(share * len(distinct)), seed, None if labels is None else labels[distinct])
    held = torch.isin(group, distinct[taken])
    if labels is not None:
        held = _without_lost(held, group, labels)
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)


def hold_out(total: int, count: int, seed: int, labels: Tensor | None = None) -> Tensor:
    """Return which of `total` rows are held out: the numbers of `count` of them, increasing.

    Args:
        labels: `(total,)` int64 from 0: each class gives its share of `count`, rounded so that they add up, and keeps
            at least one row; fewer than `count` are held out where the classes are too small for that.
    """
    rng = generator(seed, "held out")
    order = torch.randperm(total, generator=rng)
    if labels is None:
        return order[:count].sort().values
    rows = labels.bincount()
    quota = _quotas(rows, count, torch.randperm(len(rows), generator=rng))
    by_class = order[labels[order].argsort(stable=True)]
    place = torch.arange(total) - (rows.cumsum(0) - rows)[labels[by_class]]
    return by_class[place < quota[labels[by_class]]].sort().values


def _quotas(rows: Tensor, count: int, order: Tensor) -> Tensor:
    """Return how many of `count` rows each class gives, in proportion to its rows and fewer than it has: by largest
    remainders, of which equal ones come in `order`.
    """
    ideal = rows.double() * (count / max(int(rows.sum()), 1))
    most = (rows - 1).clamp(min=0)
    quota = ideal.floor().long().minimum(most)
    remainder = torch.where(quota < most, ideal - quota, -1.0)[order]
    first = order[remainder.argsort(descending=True, stable=True)][: max(count - int(quota.sum()), 0)]
    quota[first[quota[first] < most[first]]] += 1
    return quota


def _without_lost(held: Tensor, group: Tensor, labels: Tensor) -> Tensor:
    """Return the held-out rows, less those whose class would have none to train on: equal rows of several labels may be
    all that a class has.
    """
    trained = labels[~held].bincount(minlength=int(labels.max()) + 1)
    for label in labels.unique()[trained[labels.unique()] == 0]:
        own = labels == label
        if held[own].all():
            held = held & (group != group[own][0])
    return held


def _first_equal(x: Tensor) -> Tensor:
    """Return, for each row, the number of the first row that is equal, `(N,)`."""
    distinct, group = x.unique(dim=0, return_inverse=True)
    first = torch.full((len(distinct),), len(x)).scatter_reduce(0, group, torch.arange(len(x)), "amin")
    return first[group]
