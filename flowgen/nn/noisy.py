"""A classifier of points on a path, between noise and data."""

from __future__ import annotations

import math
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from flowgen.core import InputError
from flowgen.nn.conditioning import Conditioning, modulate, zeroed
from flowgen.nn.resmlp import Block
from flowgen.nn.seeded import seeded

__all__ = ["NoisyClassifier"]

SIDE = 4
"""Pixels a side at which an image is taken as a row of numbers."""


class _Halved(nn.Module):
    """A convolution that is shifted and scaled by the conditioning; of stride 2, but for the first."""

    def __init__(self, channels: int, out: int, stride: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, stride, padding=1)
        self.norm = nn.GroupNorm(8, out, affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * out))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.modulation(c)[..., None, None].chunk(2, dim=1)
        return F.silu(modulate(self.norm(self.conv(h)), shift, scale))


@final
class NoisyClassifier(nn.Module):
    """A classifier of a point x_t of a path by residual blocks; of images by convolutions first, each to half the size,
    until there are 4 pixels a side. All of it is smooth, since its gradient is used for guidance.

    Args:
        shape: of x: a row `(D,)` or an image `(C, H, W)`.
        classes: how many.
        width: of the blocks.
        depth: number of blocks.
        dropout: in the blocks, while training.
        seed: of the first weights; the output starts at zero.

    Shapes: x `(B, *shape)`, t `(B,)`, to `(B, classes)`; s and cond are not read.

    Raises:
        InputError: for other events, or fewer than 2 classes.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        width: int = 128,
        depth: int = 3,
        dropout: float = 0.1,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(shape) not in (1, 3):
            raise InputError(f"a classifier reads rows or images, not events of shape {shape}")
        if classes < 2:
            raise InputError(f"a classifier needs two classes, not {classes}")
        with seeded(seed):
            self.conditioning = Conditioning(64, width, 0)
            self.images, dim = _pyramid(shape, width) if len(shape) == 3 else (nn.ModuleList(), shape[0])
            self.embed = nn.Linear(dim, width)
            self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(depth))
            self.norm = nn.LayerNorm(width)
            self.head = zeroed(nn.Linear(width, classes))

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        c, h = F.silu(self.conditioning(t)), x
        for layer in self.images:
            h = layer(h, c)
        h = self.embed(h.flatten(1))
        for block in self.blocks:
            h = block(h, c)
        return self.head(self.norm(h)).to(x.dtype)


def _pyramid(shape: tuple[int, ...], width: int) -> tuple[nn.ModuleList, int]:
    """Return the convolutions of images, and how many numbers come out of them."""
    channels, *size = shape
    layers, out, stride = [_Halved(channels, 32, 1, width)], 32, 2
    while max(size) > SIDE:
        wider = min(2 * out, 128)
        layers.append(_Halved(out, wider, stride, width))
        size, out = [-(-side // stride) for side in size], wider
    return nn.ModuleList(layers), out * math.prod(size)
