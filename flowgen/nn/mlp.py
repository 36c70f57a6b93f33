"""A multilayer perceptron on rows, with time features."""

from __future__ import annotations

import math
from itertools import islice, pairwise
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowgen.nn.conditioning import check_event, labels_or_null, zeroed
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
    """`depth` hidden layers of `width` on a row, its time features, and its label as a unit vector.

    Args:
        dim: columns of x.
        width: units in each hidden layer.
        depth: number of hidden layers.
        frequencies: number of time frequencies, see TimeFeatures; 0 for t alone.
        activation: between the layers.
        classes: number of labels; label `classes` is the null label, "no label". 0 for a net that ignores cond.
        two_times: whether it reads s, as a flow map must: the features of s - t, less those of 0, by weights that start
            at zero, so that with those of a net of one time it starts as the velocity that that is.
        seed: of the first weights.

    Shapes: x `(B, dim)`, t and s `(B,)`, cond int64 `(B,)` or None (all null), to `(B, dim)`.
    """

    def __init__(
        self,
        dim: int,
        width: int = 64,
        depth: int = 3,
        frequencies: int = 4,
        activation: type[nn.Module] = nn.SiLU,
        classes: int = 0,
        two_times: bool = False,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.time, self.classes, self.shape = TimeFeatures(frequencies), classes, (dim,)
        labels = classes + 1 if classes else 0
        sizes = [dim + self.time.size + labels, *[width] * depth]
        with seeded(seed):
            hidden = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), activation())]
            self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], dim))
            self.delta = zeroed(nn.Linear(self.time.size, width, bias=False)) if two_times else None

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        check_event(self, self.shape, x)
        features = [x, self.time(t).to(x.dtype)]
        if self.classes:
            label = F.one_hot(labels_or_null(cond, self.classes, x), self.classes + 1)
            features.append(label.to(x.dtype))
        if self.delta is None or s is None:
            return self.layers(torch.cat(features, dim=1)).to(x.dtype)
        apart = self.time(s - t) - self.time(torch.zeros_like(t))
        h = self.layers[0](torch.cat(features, dim=1)) + self.delta(apart.to(x.dtype))
        for layer in islice(self.layers, 1, None):
            h = layer(h)
        return h.to(x.dtype)
