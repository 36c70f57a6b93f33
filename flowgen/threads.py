"""The number of CPU threads: as many as the work can use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["computing", "fitting"]

FED = 5e6
"""Multiply-adds of a layer that feed one thread. Of two threads on two idle cores, each with half as many, the gain is
small (2.1 against 2.3 ms a step of an MLP of width 64, batch 512), and where other jobs run they wait for each other:
32 against 4 ms. From twice as many on, two threads are faster by 1.3 times and more."""


def fitting(net: nn.Module, shape: tuple[int, ...], rows: int) -> int:
    """Return how many threads fit a network and a batch: one for each `FED` multiply-adds of its mean layer.

    At least one, and at most those of PyTorch: the cores that this process may use, or OMP_NUM_THREADS. All of these
    for a net without linear and convolutional layers, whose work is not known.
    """
    work, layers = _multiply_adds(net, shape)
    most = torch.get_num_threads()
    return max(1, min(most, int(rows * work / layers / FED))) if layers else most


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """Compute on so many threads while the context lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def _multiply_adds(net: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the multiply-adds of the linear and convolutional layers for one row, and how many such layers there
    are."""
    counts = list[int]()

    def count(layer: Any, args: tuple[Tensor, ...], made: Tensor) -> None:
        counts.append(layer.weight.numel() * made.numel() // layer.weight.shape[0])  # the weights, at each place

    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    device = next((p.device for p in net.parameters()), None)
    x, t = torch.zeros(1, *shape, device=device), torch.zeros(1, device=device)
    modes = {part: part.training for part in net.modules()}
    try:
        net.eval()  # dropout would draw
        net(x, t, t, None)
    finally:
        for part, mode in modes.items():
            part.training = mode
        for hook in hooks:
            hook.remove()
    return sum(counts), len(counts)
