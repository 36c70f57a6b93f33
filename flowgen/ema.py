"""The moving average of weights, with a power-function profile (arXiv 2312.02696)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from flowgen.core import InputError

__all__ = ["average", "exponent"]


@cache
def exponent(width: float) -> float:
    """The gamma whose average has standard deviation `width` relative to the training time.

    The largest root of width = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)), as a cubic; gamma = 6.94 for 0.1.

    Raises:
        InputError: unless 0 < width < 0.28.
    """
    if not 0 < width < 0.28:
        raise InputError(f"the relative width of the weight average must be in (0, 0.28), not {width}")
    return float(np.roots([1, 7, 16 - width**-2, 12 - width**-2]).real.max())


@torch.no_grad()
def average(averages: Sequence[Tensor], parameters: Sequence[Tensor], step: int, width: float) -> None:
    """Moves the averages towards the parameters after step `step` = 1, 2, ...:

    avg <- lerp(parameters, avg, (1 - 1/step)^(gamma + 1)), so that step k weighs about k^gamma in the average.

    The average forgets the start of training at any length, and depends on nothing but the step.
    """
    torch._foreach_lerp_(list(averages), list(parameters), 1 - (1 - 1 / step) ** (exponent(width) + 1))
