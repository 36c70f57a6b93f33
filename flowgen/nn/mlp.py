"""A multilayer perceptron on rows, with time features."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn

from flowgen.nn.seeded import seeded

__all__ = ["MLP", "TimeFeatures"]


@final
class TimeFeatures(nn.Module):
    """t, cos(pi k t) and sin(pi k t) for k = 1..frequencies: `(B,)` to `(B, 1 + 2 frequencies)`.

    Half periods, so that the ends t = 0 and t = 1 have different features.
    """

    k: Tensor

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.size = 1 + 2 * frequencies
        self.register_buffer("k", math.pi * torch.arange(1, frequencies + 1), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        t = t.unsqueeze(1)
        phase = t * self.k
        return torch.cat([t, phase.cos(), phase.sin()], dim=1)


@final
class MLP(nn.Module):
    """`depth` hidden layers of `width` on a row and its time features.

    Args:
        dim: columns of x.
        width: units in each hidden layer.
        depth: number of hidden layers.
        frequencies: number of time frequencies, see TimeFeatures; 0 for t alone.
        activation: between the layers.
        seed: of the first weights.

    Shapes: x `(B, dim)`, t and s `(B,)`, to `(B, dim)`. It has one time, and reads neither s nor cond.
    """

    def __init__(
        self,
        dim: int,
        width: int = 64,
        depth: int = 3,
        frequencies: int = 4,
        activation: type[nn.Module] = nn.SiLU,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.time = TimeFeatures(frequencies)
        sizes = [dim + self.time.size, *[width] * depth]
        with seeded(seed):
            hidden = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), activation())]
            self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], dim))

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        return self.layers(torch.cat([x, self.time(t).to(x.dtype)], dim=1))
