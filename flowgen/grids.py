"""Time grids: where a solver steps. A grid is a 1-D float64 tensor of increasing times."""

from __future__ import annotations

import torch
from torch import Tensor

from flowgen.core import InputError
from flowgen.paths import Path

__all__ = ["log_snr", "uniform"]


def uniform(steps: int, lo: float = 0.0, hi: float = 1.0) -> Tensor:
    """steps + 1 evenly spaced times from lo to hi.

    >>> uniform(4).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    if steps < 1:
        raise InputError(f"a grid needs at least one step, not {steps}")
    return torch.linspace(lo, hi, steps + 1, dtype=torch.float64)


def log_snr(path: Path, steps: int, lo: float = 0.0, hi: float = 1.0, margin: float = 1e-3) -> Tensor:
    """steps + 1 times from lo to hi, evenly spaced in log(alpha^2 / sigma^2) between them (arXiv 2206.00927).

    The log-SNR is infinite at the ends of most paths: the even spacing runs from lo + margin to hi - margin, and the
    first and last time are then moved to lo and hi.
    """
    inner = uniform(steps, 0, 1)
    first, last = path.log_snr(torch.tensor([lo + margin, hi - margin], dtype=torch.float64))
    grid = path.time(first + (last - first) * inner)
    grid[0], grid[-1] = lo, hi
    return grid
