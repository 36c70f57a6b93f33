"""Distances between all pairs of two sets, a block of rows at a time, so that memory does not grow with the sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from flowgen.core import InputError

__all__ = ["checked", "distances", "mean_over_pairs", "per_block"]

BLOCK = 2**22
"""Pairs in a block: 32 MiB of float64, which the caches still help with."""
DIRECT = 25
"""Columns up to which differences are taken one by one; beyond, |x|^2 + |y|^2 - 2 x.y is faster and exact enough."""


def checked(*sets: Tensor, rows: int = 1) -> list[Tensor]:
    """Return the sets as float64 rows `(N, D)` of one device.

    Raises:
        InputError: for fewer than `rows` rows, NaN or infinite values, or sets of different events.
    """
    for x in sets:
        if x.ndim < 2:
            raise InputError(f"a set has rows, of shape (N, D): one of shape {tuple(x.shape)} has none")
        if len(x) < rows or not x[0].numel():
            raise InputError(f"a set of shape {tuple(x.shape)} is too small to measure: it needs {rows} rows or more")
        if x.shape[1:] != sets[0].shape[1:]:
            raise InputError(f"cannot compare rows of shape {tuple(x.shape[1:])} with {tuple(sets[0].shape[1:])}")
        if bad := int((~x.flatten(1).isfinite().all(1)).sum()):
            raise InputError(f"cannot measure a set of which {bad} of {len(x)} rows hold NaN or infinite values")
    return [x.flatten(1).to(sets[0].device, torch.float64) for x in sets]


def per_block(length: int) -> int:
    """Return how many rows of that length make a block, at least one."""
    return max(1, BLOCK // length)


def distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of |x_i - y_j|, each with its rows i: x `(N, D)`, y `(M, D)` float64, blocks `(n, M)`."""
    size = per_block(len(y))
    centre = y.mean(0)  # |x|^2 + |y|^2 - 2 x.y loses digits far from the origin
    x, y = x - centre, y - centre
    mode = "donot_use_mm_for_euclid_dist" if x.shape[1] <= DIRECT else "use_mm_for_euclid_dist"
    for start in range(0, len(x), size):
        rows = slice(start, min(start + size, len(x)))
        yield rows, torch.cdist(x[rows], y, compute_mode=mode)


def mean_over_pairs(x: Tensor, y: Tensor, kernel: Callable[[Tensor], Tensor]) -> float:
    """Return mean_ij kernel(|x_i - y_j|)."""
    return sum(kernel(block).sum().item() for _, block in distances(x, y)) / (len(x) * len(y))
