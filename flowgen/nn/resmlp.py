"""A residual perceptron, for events too small for convolutions."""

from __future__ import annotations

import math
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from flowgen.nn.conditioning import Conditioning, check_event, modulate, zeroed
from flowgen.nn.seeded import seeded

__all__ = ["ResMLP"]


class Block(nn.Module):
    """A perceptron, shifted, scaled and gated by the conditioning: adaLN."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 3 * width))
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(c).chunk(3, dim=1)
        return h + gate * self.layers(modulate(self.norm(h), shift, scale))


@final
class ResMLP(nn.Module):
    """Residual blocks on all values of a shape at once, with the adaLN-zero of arXiv 2212.09748 on times and label.

    Args:
        shape: of x, of any number of axes.
        classes: number of labels; label `classes` is "no label". 0 for a net that ignores cond.
        width: of all layers.
        depth: number of blocks.
        dropout: in the blocks, while training.
        seed: of the first weights; gates and output start at zero.

    Shapes: x `(B, *shape)`, t and s `(B,)`, cond int64 `(B,)` or None, to `(B, *shape)`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int = 0,
        width: int = 256,
        depth: int = 4,
        dropout: float = 0.0,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.shape, dim = shape, math.prod(shape)
        with seeded(seed):
            self.conditioning = Conditioning(64, width, classes)
            self.classes = classes
            self.embed = nn.Linear(dim, width)
            self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(depth))
            self.norm = nn.LayerNorm(width, elementwise_affine=False)
            self.modulation, self.out = zeroed(nn.Linear(width, 2 * width)), zeroed(nn.Linear(width, dim))

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        check_event(self, self.shape, x)
        c = F.silu(self.conditioning(t, s, cond))
        h = self.embed(x.flatten(1))
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.modulation(c).chunk(2, dim=1)
        return self.out(modulate(self.norm(h), shift, scale)).unflatten(1, self.shape).to(x.dtype)
