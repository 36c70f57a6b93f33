"""A small classifier, whose last hidden layer gives features."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from flowgen.core import InputError, generator
from flowgen.nn.seeded import seeded

__all__ = ["Classifier", "fit_classifier"]


@final
class Classifier(nn.Module):
    """Classes of rows `(B, D)`, by two hidden layers, or of images `(B, C, H, W)`, by three convolutions and one.

    Args:
        shape: of what is classified.
        classes: how many.
        width: of the last hidden layer.
        seed: of the first weights.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, width: int = 128, *, seed: int = 0) -> None:
        super().__init__()
        if len(shape) not in (1, 3):
            raise InputError(f"a classifier reads rows or images, not events of shape {shape}")
        with seeded(seed):
            if len(shape) == 1:
                body = [nn.Linear(shape[0], 2 * width), nn.ReLU()]
                wide = 2 * width
            else:
                sizes = ((shape[0], 32, 1), (32, 64, 2), (64, 128, 2))
                layers = [nn.Conv2d(i, o, 3, stride, padding=1) for i, o, stride in sizes]
                body = [part for layer in layers for part in (layer, nn.ReLU())]
                body += [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
                wide = 4 * 128
            self.features = nn.Sequential(*body, nn.Linear(wide, width), nn.ReLU())
            self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def fit_classifier(net: Classifier, x: Tensor, labels: Tensor, steps: int = 2000, *, seed: int) -> None:
    """Train a classifier on x `(N, *shape)` and labels `(N,)` in [0, classes) by cross-entropy, 128 rows a step."""
    device = next(net.parameters()).device
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        rows = torch.randint(len(x), (128,), generator=generator(seed, "classifier", step))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x[rows].to(device)), labels[rows].to(device))
        loss.backward()
        optimizer.step()
        schedule.step()
