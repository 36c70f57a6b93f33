"""The peers of the speed benchmark: a bare PyTorch loop, torchcfm, and flow_matching and torchdyn where installed.

Peers are called by their public functions alone, as their examples do.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from importlib import import_module
from io import StringIO
from itertools import count
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

from flowgen.bench.torchcfm import Matcher
from flowgen.extras import torchvision_error
from flowgen.nn import MLP
from flowgen.training.ema import average

__all__ = [
    "available",
    "bare_euler",
    "bare_loop",
    "flow_matching_loop",
    "flow_matching_ode",
    "torchcfm_loop",
    "torchcfm_readme",
    "torchdyn_ode",
]

Ode = Callable[[Tensor], Tensor]
"""Starts to ends."""

ANGLE = torch.arange(8) * math.pi / 4
CENTRES = 5 * torch.stack([ANGLE.cos(), ANGLE.sin()], dim=1)


@cache
def available(module: str) -> bool:
    """Return whether a peer can be imported."""
    try:
        with _torchvision_or_stand_in(), redirect_stderr(StringIO()):  # torchdyn talks
            import_module(module)
    except ImportError:
        return False
    return True


@contextmanager
def _torchvision_or_stand_in() -> Iterator[None]:
    """Let torchdyn be imported where torchvision does not fit torch: inside, a stub replaces torchvision. torchdyn
    imports torchmetrics, which imports any installed torchvision. Nothing that is timed reads it.
    """
    parts = ("", ".models", ".ops", ".transforms") if torchvision_error() else ()
    names = [f"torchvision{part}" for part in parts]
    sys.modules.update({name: MagicMock() for name in names})
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def toy(batch: int) -> tuple[Tensor, Tensor]:
    """Draw noise and 8gaussians in the obvious way."""
    return torch.randn(batch, 2), CENTRES[torch.randint(8, (batch,))] + torch.randn(batch, 2)


# --- training: each iterator is a loop, whose `next` is a step


def bare_loop(
    batch: int, fused: bool | None = None, foreach: bool | None = None, ema: bool = False, check: bool = False
) -> Iterator[None]:
    """Run a training loop written by hand; `ema` and `check` add what flowgen's step does beside."""
    net = MLP(2)
    weights = list(net.parameters())
    averages = [p.detach().clone() for p in weights]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0, fused=fused, foreach=foreach)
    for step in count(1):
        x0, x1 = toy(batch)
        t = torch.rand(batch, 1)
        x_t = (1 - t) * x0 + t * x1
        loss = (net(x_t, t.squeeze(1)) - (x1 - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if check:
            norm = torch.nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
            if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
                raise RuntimeError("diverged")
        optimizer.step()
        if ema:
            average(averages, weights, step, 0.05)
        yield


def torchcfm_loop(batch: int, matcher: Matcher, fused: bool | None = None) -> Iterator[None]:
    """Run torchcfm's step around flowgen's network."""
    net = MLP(2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.0, fused=fused)
    while True:
        optimizer.zero_grad()
        t, x_t, u_t = matcher.sample_location_and_conditional_flow(*toy(batch))
        loss = torch.mean((net(x_t, t) - u_t) ** 2)
        loss.backward()
        optimizer.step()
        yield


def torchcfm_readme(batch: int, matcher: Matcher) -> Iterator[None]:
    """Run torchcfm's step as its examples write it: its own network (SELU, time as a column), and Adam."""
    from torchcfm.models import MLP as TorchcfmMLP

    net = TorchcfmMLP(dim=2, time_varying=True)
    optimizer = torch.optim.Adam(net.parameters())
    while True:
        optimizer.zero_grad()
        t, x_t, u_t = matcher.sample_location_and_conditional_flow(*toy(batch))
        loss = torch.mean((net(torch.cat([x_t, t[:, None]], dim=-1)) - u_t) ** 2)
        loss.backward()
        optimizer.step()
        yield


def flow_matching_loop(batch: int, fused: bool | None = None) -> Iterator[None]:
    """Run a step on the straight path of flow_matching, around flowgen's network."""
    from flow_matching.path import CondOTProbPath

    net, path = MLP(2), CondOTProbPath()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.0, fused=fused)
    while True:
        optimizer.zero_grad()
        x0, x1 = toy(batch)
        point = path.sample(x_0=x0, x_1=x1, t=torch.rand(batch))
        loss = (net(point.x_t, point.t) - point.dx_t).square().mean()
        loss.backward()
        optimizer.step()
        yield


# --- sampling


def bare_euler(net: nn.Module, steps: int) -> Ode:
    """Return Euler's steps, written by hand."""

    def solve(x: Tensor) -> Tensor:
        h = 1 / steps
        for k in range(steps):
            x = x + h * net(x, torch.full((len(x),), k * h))
        return x

    return solve


def flow_matching_ode(net: nn.Module, steps: int) -> Ode:
    """Return Euler's steps by flow_matching's solver, which calls torchdiffeq."""
    from flow_matching.solver import ODESolver

    solver = ODESolver(velocity_model=lambda x, t: net(x, t.repeat(len(x))))
    return lambda x: solver.sample(x_init=x, step_size=1 / steps, method="euler")


class TorchdynField(nn.Module):
    """A network as torchdyn calls it, after torchcfm's `torch_wrapper`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, x: Tensor, args: object = None) -> Tensor:
        return self.net(x, t.repeat(len(x)))


def torchdyn_ode(net: nn.Module, steps: int) -> Ode:
    """Return Euler's steps by torchdyn's NeuralODE; it keeps the whole trajectory."""
    from torchdyn.core import NeuralODE

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchdyn")
        node = NeuralODE(TorchdynField(net), solver="euler", sensitivity="adjoint")
    t_span = torch.linspace(0, 1, steps + 1)
    return lambda x: node.trajectory(x, t_span=t_span)[-1]
