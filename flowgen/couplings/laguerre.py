"""Power diagrams: which cell a point lies in, and how its rows score there, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowgen.core import InputError

__all__ = ["Cells", "cells_of", "check_rows", "rows_of", "scored"]

BLOCK = 512
"""Source rows that are scored at once, all of them near one another where that helps."""
SCORES = 2**25
"""Scores that are held at once: 128 MiB."""
PRUNED = 32
"""In more dimensions than these a block of source points meets so many cells that none can be left out."""
ROUNDING = 1e-5
"""What float32 may have lost of a lead: a hundred times its last digit."""


@final
@dataclass(frozen=True)
class Cells:
    """The power diagram of rows `(n, d)`, centred, in float32: in cell j, 2 (x - centre).y_j + offset_j is largest.

    offset_j = g_j - |y_j|^2 is kept in float64: neighbours differ in its last digits.
    """

    rows: Tensor
    offset: Tensor
    centre: Tensor

    @property
    def potentials(self) -> Tensor:
        return self.offset + self.rows.double().square().sum(1)

    def raised(self, step: Tensor) -> Cells:
        """Return the cells after g_j <- g_j + step_j, less a constant, which changes nothing."""
        offset = self.offset + step
        return Cells(self.rows, offset - offset.mean(), self.centre)


def cells_of(rows: Tensor, values: Tensor) -> Cells:
    flat = rows.flatten(1)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    centre = flat.mean(0)
    flat = (flat - centre).float()
    return Cells(flat, values.to(flat.device, torch.float64) - flat.double().square().sum(1), centre.float())


def scored(cells: Cells, x: Tensor, reach: float = 0.0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield, block by block, the numbers of its points, of the rows that matter there, and their scores, up to a
    constant.

    Rows matter which are the best of some point of the block, or within `reach` of the best.
    """
    x = x.float() - cells.centre
    for near in _runs(x):
        which, rows, offset, middle = _candidates(cells, x[near], reach)
        for block in near.split(max(1, SCORES // len(which))):
            yield block, which, torch.addmm(offset, x[block] - middle, rows.T, alpha=2)


def _runs(x: Tensor) -> list[Tensor]:
    """Return the numbers of all points in runs of at most a block; in few dimensions, halved until the points of a run
    are close.
    """
    runs = [torch.arange(len(x), device=x.device)]
    if x.shape[1] > PRUNED:
        return list(runs[0].split(BLOCK))
    for level in range(max(0, math.ceil(math.log2(max(1, len(x)) / BLOCK)))):
        axis = x[:, level % x.shape[1]]
        runs = [half for run in runs for half in run[axis[run].argsort()].tensor_split(2) if len(half)]
    return runs


def _candidates(cells: Cells, x: Tensor, reach: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the rows that can win in the box of x, relative to one of them; their offsets at its middle, and the
    middle.

    With half sides h, the lead of row j over row r changes by at most 2 |y_j - y_r|.h over the box: exact, where r is
    the best at the middle or any other.
    """
    if x.shape[1] > PRUNED:
        return torch.arange(len(cells.rows), device=x.device), cells.rows, cells.offset.float(), torch.zeros_like(x[0])
    low, high = x.amin(0), x.amax(0)
    middle, half = (low + high) / 2, (high - low) / 2
    best = int((2 * (cells.rows @ middle) + cells.offset).argmax())
    beside = cells.rows - cells.rows[best]
    lead = 2 * (beside @ middle) + (cells.offset - cells.offset[best])
    which = (lead + 2 * (beside.abs() @ half) >= -reach - ROUNDING * lead.abs()).nonzero().squeeze(1)
    return which, beside[which], lead[which].float(), middle


def rows_of(labels: Tensor | None, n: int) -> dict[int, Tensor]:
    """Return the numbers of the rows of each label; of all rows under 0, where there are no labels."""
    if labels is None:
        return {0: torch.arange(n)}
    return {int(label): (labels == label).nonzero().squeeze(1).cpu() for label in labels.unique()}


def check_rows(shape: tuple[int, ...], data: Tensor, labels: Tensor | None) -> None:
    if not len(data):
        raise InputError("the data has no rows")
    if not data.is_floating_point():
        raise InputError(f"the data must be floats in model units, not {data.dtype}")
    if tuple(data.shape[1:]) != tuple(shape):
        raise InputError(f"the source has shape {shape}, the data {tuple(data.shape[1:])}: they must agree")
    if not data.isfinite().all():
        raise InputError("the data holds NaN or infinite values")
    if labels is not None and (labels.shape != (len(data),) or labels.is_floating_point()):
        raise InputError(f"{len(data)} rows need as many whole labels, not {labels.dtype} {tuple(labels.shape)}")
