"""Rows that training never sees."""

from __future__ import annotations

import torch
from torch import Tensor

from flowgen.core import InputError, generator

__all__ = ["split"]


def split(x: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """The numbers of the training rows and of the held-out rows of x `(N, *event)`, both increasing.

    floor(share times the distinct rows) are held out, by a random draw without replacement; rows that are equal stay
    together, so that no training row is held out too.

    Raises:
        InputError: unless 0 <= share < 1.
    """
    if not 0 <= share < 1:
        raise InputError(f"the held-out share must be at least 0 and below 1, not {share}")
    group = _first_equal(x)
    distinct = group.unique()
    order = torch.randperm(len(distinct), generator=generator(seed, "held out"))
    held = torch.isin(group, distinct[order[: int(share * len(distinct))]])
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)


def _first_equal(x: Tensor) -> Tensor:
    """For each row, the number of the first row that is equal, `(N,)`."""
    distinct, group = x.unique(dim=0, return_inverse=True)
    first = torch.full((len(distinct),), len(x)).scatter_reduce(0, group, torch.arange(len(x)), "amin")
    return first[group]
