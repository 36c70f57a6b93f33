"""Rows that training never sees."""

from __future__ import annotations

import torch
from torch import Tensor

from flowgen.core import InputError, generator

__all__ = ["split"]


def split(rows: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """The numbers of the training rows and of the held-out rows, both increasing: a function of the arguments alone.

    floor(share * rows) rows are held out, by a random draw without replacement.

    Raises:
        InputError: unless 0 <= share < 1.
    """
    if not 0 <= share < 1:
        raise InputError(f"the held-out share must be at least 0 and below 1, not {share}")
    order = torch.randperm(rows, generator=generator(seed, "held out"))
    count = int(share * rows)
    return order[count:].sort().values, order[:count].sort().values
