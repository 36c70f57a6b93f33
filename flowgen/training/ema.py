"""The moving average of weights, with a power-function profile (arXiv 2312.02696)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from flowgen.core import InputError

__all__ = ["Buffers", "average", "exponent"]


@cache
def exponent(width: float) -> float:
    """Return the gamma whose average has standard deviation `width` relative to the training time.

    The largest root of width = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)), as a cubic; gamma = 6.94 for 0.1.

    Raises:
        InputError: unless 0 < width < 0.28.
    """
    if not 0 < width < 0.28:
        raise InputError(f"the relative width of the weight average must be in (0, 0.28), not {width}")
    return float(np.roots([1, 7, 16 - width**-2, 12 - width**-2]).real.max())


@torch.no_grad()
def average(averages: Sequence[Tensor], parameters: Sequence[Tensor], step: int, width: float) -> None:
    """Move the averages towards the parameters after step `step` = 1, 2, ...:

    avg <- lerp(parameters, avg, (1 - 1/step)^(gamma + 1)), so that step k weighs about k^gamma in the average.

    The average forgets the start of training at any length, and depends on nothing but the step.
    """
    torch._foreach_lerp_(list(averages), list(parameters), 1 - (1 - 1 / step) ** (exponent(width) + 1))


@final
class Buffers:
    """The buffers of a network, to be copied to copies of it.

    They are looked up by name at each copy: `forward` may have assigned them anew, or registered more.
    """

    def __init__(self, net: nn.Module, copies: Sequence[nn.Module]) -> None:
        self._parts = [
            (name, part, [copied.get_submodule(name) for copied in copies]) for name, part in net.named_modules()
        ]

    @torch.no_grad()
    def copy(self) -> None:
        """Copy to the averages the buffers that the network has now.

        Raises:
            InputError: if a persistent buffer has another shape or type than at the start: a checkpoint of it could not
                be restored.
        """
        to, now = list[Tensor](), list[Tensor]()
        for prefix, part, copies in self._parts:
            for name, buffer in part._buffers.items():
                for copied in copies:
                    old = copied._buffers.get(name)
                    if buffer is not None and old is not None and _alike(old, buffer):
                        to.append(old)
                        now.append(buffer)
                    elif buffer is not old:
                        _check_persistent(part, f"{prefix}.{name}".removeprefix("."), name, old, buffer)
                        copied.register_buffer(name, None if buffer is None else buffer.clone(), persistent=False)
        if to:
            torch._foreach_copy_(to, now)


def _alike(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and x.dtype == y.dtype


def _check_persistent(part: nn.Module, path: str, name: str, old: Tensor | None, new: Tensor | None) -> None:
    """Refuse, with InputError, a buffer of checkpoints that was changed."""
    if name not in part._non_persistent_buffers_set:
        was, now = (f"{x.dtype} {tuple(x.shape)}" if x is not None else "missing" for x in (old, new))
        raise InputError(
            f"buffer {path} was {was} when the State was made and is {now} after forward: "
            "keep its shape and type, or register it with persistent=False"
        )
