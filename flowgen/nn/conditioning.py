"""The conditioning of a network on times and a label, as one vector."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowgen.core import InputError, row_labels

__all__ = [
    "Conditioning",
    "FourierFeatures",
    "check_event",
    "labels_or_null",
    "modulate",
    "zeroed",
]


@final
class FourierFeatures(nn.Module):
    """cos(w t) and sin(w t), the frequencies w even in their logarithm from 1 to 128: `(B,)` to `(B, size)`.

    The slowest tells all times of [-1, 1] apart, the fastest those that differ by a thousandth, in half types too: the
    phase has the type of t, and only the waves may be rounded.
    """

    w: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("w", torch.logspace(0, 7, size // 2, base=2), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        phase = t.unsqueeze(1) * self.w
        return torch.cat([phase.cos(), phase.sin()], dim=1)


def labels_or_null(cond: Tensor | None, classes: int, like: Tensor) -> Tensor:
    """Return the labels `(B,)`; without any, the null label `classes` for each row of `like`."""
    return torch.full(like.shape[:1], classes, device=like.device) if cond is None else row_labels(cond, like.shape[0])


@final
class Conditioning(nn.Module):
    """Times t, s and a label to one vector, c = W silu(V waves(t) + U (waves(s - t) - waves(0))) + E[label].

    U starts at zero and what it reads is zero at s = t: a net trained at s = t knows nothing of s, and turned into a
    flow map it starts as the velocity that it was.

    Args:
        size: of the waves; even.
        width: of the vector.
        classes: number of labels; label `classes` is the null label, "no label". 0 for a net without labels.

    Shapes: t and s `(B,)`, cond int64 `(B,)` or None (all null), to `(B, width)`.
    """

    def __init__(self, size: int, width: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.waves = FourierFeatures(size)
        self.time = nn.Linear(size, width)
        self.delta = zeroed(nn.Linear(size, width, bias=False))
        self.out = nn.Linear(width, width)
        self.label = nn.Embedding(classes + 1, width) if classes else None

    def forward(self, t: Tensor, s: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        dtype = self.time.weight.dtype
        delta = torch.zeros_like(t) if s is None else s - t
        apart = self.waves(delta) - self.waves(torch.zeros_like(t))
        vector = self.out(F.silu(self.time(self.waves(t).to(dtype)) + self.delta(apart.to(dtype))))
        return vector if self.label is None else vector + self.label(labels_or_null(cond, self.classes, t))


def check_event(net: nn.Module, shape: tuple[int, ...], x: Tensor) -> None:
    """Refuse x of another shape than `(B, *shape)`, for which the net was made.

    Raises:
        InputError: for x of another shape than `(B, *shape)`, for which the net was made.
    """
    if tuple(x.shape[1:]) != tuple(shape):
        raise InputError(f"this {type(net).__name__} was made for rows of shape {shape}, not {tuple(x.shape[1:])}")


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return h (1 + scale) + shift."""
    return h * (1 + scale) + shift


def zeroed(layer: nn.Linear) -> nn.Linear:
    """Return the layer with weight and bias set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
