"""How long a training step, a sampling run and an import take: flowgen, a bare PyTorch loop, torchcfm and torchdyn.

Contestants run in one process, in short chunks and in a new random order each round. The figures are medians over
rounds; a ratio is taken within each round first, so that a busy machine slows both of its sides.
"""

from __future__ import annotations

import argparse
import math
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from itertools import count, islice
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from report import machine, publish, quartiles, table, verdict
from torch import Tensor, nn
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher, ExactOptimalTransportConditionalFlowMatcher
from torchcfm.models import MLP as TorchcfmMLP

from flowgen import Ends, ExactOT, FlowMatching, Independent, Model, Pool, State, batches, euler, fit, grids, solve
from flowgen.data import Gaussian, eight_gaussians
from flowgen.ema import average
from flowgen.nn import MLP

BATCH, POINTS, EULER_STEPS = 512, 10_000, 100
FUSED = {"fused": True}
Times = dict[str, list[float]]
Chunk = tuple[Callable[[], object], int]
"""What to time, and how many units of work it holds."""


def measure(contestants: dict[str, Chunk], rounds: int) -> Times:
    """Milliseconds per unit in each round, after one round to warm up."""
    times: Times = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, (run, units) in random.sample(list(contestants.items()), len(contestants)):
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) / units * 1e3)
    return {name: values[1:] for name, values in times.items()}


def ratios(times: Times, over: str, under: str) -> list[float]:
    return [a / b for a, b in zip(times[over], times[under], strict=True)]


def compared(times: Times, unit: str, bounds: dict[str, float], first: str = "flowgen") -> str:
    """The table of all contestants: their times, and the ratio of the first contestant to each."""
    rows = []
    for name, values in times.items():
        ratio = ratios(times, first, name)
        bound = verdict(float(np.median(ratio)), bounds[name]) if name in bounds else ""
        rows.append((name, quartiles(values), "" if name == first else quartiles(ratio, 2), bound))
    return table((f"median [quartiles] of {len(times[first])} rounds", unit, f"{first} / this", "ratio"), rows)


# --- training


def steps(stream: Iterator[object], chunk: int) -> Chunk:
    """The next `chunk` steps of a training loop."""
    return lambda: next(islice(stream, chunk - 1, None)), chunk


def flowgen_loop(coupling: object = None, pool: Pool | None = None) -> Iterator[float]:
    ends = Ends(Gaussian(), eight_gaussians())
    pairs = batches(ends, BATCH, seed=0, coupling=coupling or Independent(), pool=pool)
    return fit(State(Model(MLP(2))), pairs, FlowMatching(), 10**9, seed=0)


ANGLE = torch.arange(8) * math.pi / 4
CENTRES = 5 * torch.stack([ANGLE.cos(), ANGLE.sin()], dim=1)


def toy() -> tuple[Tensor, Tensor]:
    """Noise and 8gaussians, drawn the obvious way."""
    return torch.randn(BATCH, 2), CENTRES[torch.randint(8, (BATCH,))] + torch.randn(BATCH, 2)


def bare_loop(adamw: dict[str, bool], ema: bool = False, check: bool = False) -> Iterator[None]:
    """A training loop as one writes it by hand; `ema` and `check` add what flowgen's step has beside."""
    net = MLP(2)
    weights = list(net.parameters())
    averages = [p.detach().clone() for p in weights]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0, **adamw)
    for step in count(1):
        x0, x1 = toy()
        t = torch.rand(BATCH, 1)
        x_t = (1 - t) * x0 + t * x1
        loss = (net(x_t, t.squeeze(1)) - (x1 - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if check:
            norm = torch.nn.utils.get_total_norm([p.grad for p in weights])
            if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
                raise RuntimeError("diverged")
        optimizer.step()
        if ema:
            average(averages, weights, step, 0.05)
        yield


def torchcfm_loop(matcher: ConditionalFlowMatcher, adamw: dict[str, bool]) -> Iterator[None]:
    """torchcfm's step around flowgen's network."""
    net = MLP(2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.0, **adamw)
    while True:
        optimizer.zero_grad()
        t, x_t, u_t = matcher.sample_location_and_conditional_flow(*toy())
        loss = torch.mean((net(x_t, t) - u_t) ** 2)
        loss.backward()
        optimizer.step()
        yield


def torchcfm_readme() -> Iterator[None]:
    """torchcfm's step as its examples write it: its own network (SELU, time as a column), and Adam."""
    net, matcher = TorchcfmMLP(dim=2, time_varying=True), ConditionalFlowMatcher(sigma=0.1)
    optimizer = torch.optim.Adam(net.parameters())
    while True:
        optimizer.zero_grad()
        t, x_t, u_t = matcher.sample_location_and_conditional_flow(*toy())
        loss = torch.mean((net(torch.cat([x_t, t[:, None]], dim=-1)) - u_t) ** 2)
        loss.backward()
        optimizer.step()
        yield


def training(rounds: int) -> str:
    loops = {
        "flowgen": flowgen_loop(),
        "flowgen, Pool(10), as the command line": flowgen_loop(pool=Pool(10)),
        "bare loop, AdamW(fused=True) as flowgen": bare_loop(FUSED),
        "bare loop, AdamW() default": bare_loop({}),
        "bare loop, AdamW(foreach=True)": bare_loop({"foreach": True}),
        "bare loop, fused, EMA": bare_loop(FUSED, ema=True),
        "bare loop, fused, EMA, finiteness check": bare_loop(FUSED, ema=True, check=True),
        "torchcfm, same network, AdamW(fused=True)": torchcfm_loop(ConditionalFlowMatcher(sigma=0.1), FUSED),
        "torchcfm, same network, AdamW() default": torchcfm_loop(ConditionalFlowMatcher(sigma=0.1), {}),
        "torchcfm as its examples: its MLP, Adam()": torchcfm_readme(),
    }
    bounds = {
        "bare loop, AdamW(fused=True) as flowgen": 1.1,
        "bare loop, AdamW() default": 1.1,
        "torchcfm, same network, AdamW(fused=True)": 1.0,
        "torchcfm, same network, AdamW() default": 1.0,
    }
    return compared(measure({name: steps(loop, 30) for name, loop in loops.items()}, rounds), "ms per step", bounds)


def transport(rounds: int) -> str:
    """Training with exact minibatch transport; a chunk of 1,000 steps holds one whole pool of flowgen's."""
    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.1)
    contestants = {
        "flowgen": steps(flowgen_loop(ExactOT(), Pool(100, 10)), 1000),
        "flowgen, ExactOT(), no pool": steps(flowgen_loop(ExactOT()), 100),
        "flowgen, ExactOT(group=0), no pool": steps(flowgen_loop(ExactOT(group=0)), 30),
        "torchcfm ExactOT, same network, AdamW(fused=True)": steps(torchcfm_loop(matcher, FUSED), 30),
    }
    return compared(measure(contestants, rounds), "ms per step", {})


# --- sampling


def torchdyn_solver() -> type[nn.Module]:
    """torchdyn's NeuralODE. It imports torchmetrics, which imports torchvision wherever that is installed and fails if
    it does not fit torch: a stand-in takes its place during the import. Nothing that is timed reads torchvision."""
    names = ("torchvision", "torchvision.models", "torchvision.ops", "torchvision.transforms")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules.update({name: MagicMock() for name in names})
    with redirect_stderr(StringIO()):
        from torchdyn.core import NeuralODE
    for name in names:
        if isinstance(sys.modules.get(name), MagicMock):
            del sys.modules[name]
    return NeuralODE


class TorchdynField(nn.Module):
    """A network as torchdyn calls it, after torchcfm's `torch_wrapper`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return self.net(x, t.repeat(len(x)))


def bare_euler(net: nn.Module, x: Tensor) -> Tensor:
    h = 1 / EULER_STEPS
    for k in range(EULER_STEPS):
        x = x + h * net(x, torch.full((len(x),), k * h))
    return x


@torch.no_grad()
def sampling(rounds: int) -> str:
    model, x0, grid = Model(MLP(2)), torch.randn(POINTS, 2), grids.uniform(EULER_STEPS)
    node = torchdyn_solver()(TorchdynField(model.net), solver="euler", sensitivity="adjoint")
    t_span = torch.linspace(0, 1, EULER_STEPS + 1)
    ends = {
        "flowgen": lambda: solve(model.velocity, x0, grid, euler),
        "bare loop": lambda: bare_euler(model.net, x0),
        "torchdyn NeuralODE": lambda: node.trajectory(x0, t_span=t_span)[-1],
    }
    for end in ends.values():
        torch.testing.assert_close(end(), ends["flowgen"](), rtol=1e-4, atol=1e-4)
    times = measure({name: (end, 1) for name, end in ends.items()}, rounds)
    return compared(times, "ms per run", {"bare loop": 1.05, "torchdyn NeuralODE": 1.0})


# --- imports


def seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def imports(rounds: int) -> str:
    flowgen = Path(sys.executable).with_name("flowgen")
    commands = {
        "import torch": (sys.executable, "-c", "import torch"),
        "import flowgen": (sys.executable, "-c", "import flowgen"),
        "flowgen --help": (str(flowgen), "--help"),
    }
    times = measure({name: (lambda c=c: seconds(*c), 1000) for name, c in commands.items()}, rounds)
    added = [a - b for a, b in zip(times["import flowgen"], times["import torch"], strict=True)]
    rows = [(name, quartiles(values), "") for name, values in times.items()]
    rows[2] = (*rows[2][:2], verdict(float(np.median(times["flowgen --help"])), 0.6))
    rows.insert(2, ("import flowgen, less import torch", quartiles(added), verdict(float(np.median(added)), 0.3)))
    head = (f"median [quartiles] of {rounds} rounds", "seconds of a fresh process", "median")
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds, and nothing written")
    parser.add_argument("--threads", type=int, default=2, help="torch threads, for every contestant")
    options = parser.parse_args()
    share = 0.1 if options.quick else 1
    torch.set_num_threads(options.threads)
    random.seed(0)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", category=UserWarning, module="torchdyn")
    sections = [
        ("A training step", training(int(200 * share)), STEP_NOTE),
        ("A training step with exact transport", transport(int(10 * share)), TRANSPORT_NOTE),
        (f"{POINTS:,} samples in {EULER_STEPS} Euler steps", sampling(int(50 * share)), SAMPLING_NOTE),
        ("Imports", imports(int(30 * share)), ""),
    ]
    text = "".join(f"\n## {title}\n\n{rows}\n{note}" for title, rows, note in sections)
    publish("speed.md", f"# Speed\n\n{machine()}{text}", keep=not options.quick)


STEP_NOTE = f"""8gaussians from Gaussian noise, MLP 3x64, batch {BATCH}; the same network for all but the last row.

flowgen's step has what the bare loop has not: the moving average of the weights, the norm of the gradient and the check
that it and the loss are finite before the weights move, the loss as a float and for each pair, any path and time law,
and every draw from a generator that is a function of (seed, step). The rows "EMA" and "EMA, finiteness check" add the
first two to the bare loop. torchcfm's step draws noise of scale 0.1 around the path. On a CPU, PyTorch's AdamW()
without options is a loop over the weights; flowgen's is the fused one, bit for bit, without its bookkeeping.
"""

TRANSPORT_NOTE = """flowgen's first row solves in groups of 128, 100 batches ahead, and uses every pair ten times; its
chunk of 1,000 steps holds one whole pool. torchcfm solves each batch of 512 whole, and draws pairs from the plan with
replacement.
"""

SAMPLING_NOTE = """The ends of all three agree to 1e-4. torchdyn keeps the whole trajectory, as flowgen's `walk` does
when asked. flowgen's grid is a list of float64 times, and `Model.velocity` stands between it and the network.
"""


if __name__ == "__main__":
    main()
