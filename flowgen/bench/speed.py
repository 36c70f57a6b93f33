"""The times of a training step, a coupling, a sampling run and an import: flowgen beside its peers.

Contestants run in one process, in short chunks and in a new random order each round. The figures are medians over
rounds; a ratio is taken within each round first, so that a busy machine slows both of its sides.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowgen.bench import peers
from flowgen.bench.report import machine, quartiles, table, verdict
from flowgen.bench.torchcfm import globally_seeded, matchers
from flowgen.core import Pair, generator
from flowgen.couplings import Coupling, ExactOT, Independent, MultiscaleOT, Sinkhorn
from flowgen.data import Gaussian, eight_gaussians
from flowgen.model import Model
from flowgen.nn import MLP
from flowgen.objectives import FlowMatching
from flowgen.pairs import IndependentPairs, Pool, batches
from flowgen.samplers import grids
from flowgen.samplers.ode import euler
from flowgen.sampling import solve
from flowgen.training.loop import State, fit

__all__ = ["SECTIONS", "SpeedSection", "conditions", "markdown", "measure", "ratios", "sections"]

BATCH, POINTS, EULER_STEPS = 512, 10_000, 100
ENDS = IndependentPairs(Gaussian(), eight_gaussians())
StepTimes = dict[str, list[float]]
ChunkTimes = tuple[Callable[[], object], int]
"""What to time, and how many units of work it holds."""


class SpeedSection(NamedTuple):
    """A table of the report."""

    title: str
    rows: str
    note: str


@contextmanager
def conditions(threads: int) -> Iterator[None]:
    """Set the same threads for every contestant, and seeds for those that draw from global generators."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with globally_seeded(0):
            yield
    finally:
        torch.set_num_threads(before)


def measure(contestants: Mapping[str, ChunkTimes], rounds: int) -> StepTimes:
    """Return the milliseconds per unit in each round, after one round to warm up."""
    times: StepTimes = {name: [] for name in contestants}
    order = random.Random(0)
    for _ in range(rounds + 1):
        for name, (run, units) in order.sample(list(contestants.items()), len(contestants)):
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) / units * 1e3)
    return {name: values[1:] for name, values in times.items()}


def ratios(times: StepTimes, over: str, under: str) -> list[float]:
    """Return the ratio of two contestants in each round."""
    return [a / b for a, b in zip(times[over], times[under], strict=True)]


def compared(times: StepTimes, unit: str, bounds: Mapping[str, float], first: str = "flowgen") -> str:
    """Return the table of all contestants: their times, and the ratio of the first contestant to each."""
    rows = []
    for name, values in times.items():
        ratio = ratios(times, first, name)
        bound = verdict(float(np.median(ratio)), bounds[name]) if name in bounds else ""
        rows.append((name, quartiles(values), "" if name == first else quartiles(ratio, 2), bound))
    return table((f"median [quartiles] of {len(times[first])} rounds", unit, f"{first} / this", "ratio"), rows)


# --- training


def steps(stream: Iterator[object], chunk: int) -> ChunkTimes:
    """Run the next `chunk` steps of a training loop."""
    return lambda: next(islice(stream, chunk - 1, None)), chunk


def flowgen_loop(coupling: Coupling | None = None, pool: Pool | None = None) -> Iterator[float]:
    """Run flowgen's step as `fit` makes it. Pools are coupled within the loop, not while another contestant runs."""
    pairs = batches(ENDS, BATCH, seed=0, coupling=coupling, pool=pool, threads=0)
    return fit(State(Model(MLP(2))), pairs, FlowMatching(), 10**9, seed=0)


def training(rounds: int) -> SpeedSection:
    """Time a training step on independent pairs."""
    matcher = matchers(0.1)["I-CFM"]
    loops: dict[str, Iterator[object]] = {
        "flowgen": flowgen_loop(),
        "flowgen, Pool(10), as the command line": flowgen_loop(pool=Pool(10)),
        "bare loop, AdamW(fused=True) as flowgen": peers.bare_loop(BATCH, fused=True),
        "bare loop, AdamW() default": peers.bare_loop(BATCH),
        "bare loop, AdamW(foreach=True)": peers.bare_loop(BATCH, foreach=True),
        "bare loop, fused, EMA": peers.bare_loop(BATCH, fused=True, ema=True),
        "bare loop, fused, EMA, finiteness check": peers.bare_loop(BATCH, fused=True, ema=True, check=True),
        "torchcfm, same network, AdamW(fused=True)": peers.torchcfm_loop(BATCH, matcher, fused=True),
        "torchcfm, same network, AdamW() default": peers.torchcfm_loop(BATCH, matcher),
        "torchcfm as its examples: its MLP, Adam()": peers.torchcfm_readme(BATCH, matcher),
    }
    if peers.available("flow_matching.path"):
        loops |= {
            "flow_matching, same network, AdamW(fused=True)": peers.flow_matching_loop(BATCH, fused=True),
            "flow_matching, same network, AdamW() default": peers.flow_matching_loop(BATCH),
        }
    bounds = {
        "bare loop, AdamW(fused=True) as flowgen": 1.1,
        "bare loop, AdamW() default": 1.1,
        "torchcfm, same network, AdamW(fused=True)": 1.0,
        "torchcfm, same network, AdamW() default": 1.0,
    }
    times = measure({name: steps(loop, 30) for name, loop in loops.items()}, rounds)
    return SpeedSection(
        "A training step", compared(times, "ms per step", bounds), STEP_NOTE + skipped("flow_matching.path")
    )


def transport(rounds: int) -> SpeedSection:
    """Time training with exact minibatch transport; a chunk of 1,000 steps holds one whole pool of flowgen's."""
    contestants = {
        "flowgen": steps(flowgen_loop(MultiscaleOT(), Pool(100, 10)), 1000),
        "flowgen, ExactOT(), Pool(100, 10)": steps(flowgen_loop(ExactOT(), Pool(100, 10)), 1000),
        "flowgen, ExactOT(), no pool": steps(flowgen_loop(ExactOT()), 30),
        "torchcfm ExactOT, same network, AdamW(fused=True)": steps(
            peers.torchcfm_loop(BATCH, matchers(0.1)["OT-CFM"], fused=True), 30
        ),
    }
    rows = compared(measure(contestants, rounds), "ms per step", {})
    return SpeedSection("A training step with exact transport", rows, TRANSPORT_NOTE)


# --- coupling


def couplings() -> dict[str, Callable[[Pair], Pair]]:
    """Return couplings of both packages, as functions of a batch."""
    from torchcfm.optimal_transport import OTPlanSampler

    ours: dict[str, Coupling] = {
        "flowgen Independent": Independent(),
        **{f"flowgen ExactOT(group={group})": ExactOT(group) for group in (64, 128, 256, BATCH)},
        **{f"flowgen Sinkhorn(epsilon={epsilon:g})": Sinkhorn(epsilon) for epsilon in (0.05, 0.2)},
    }
    theirs, rng = OTPlanSampler(method="exact"), generator(0, "speed, plans")

    made = {name: partial(coupling, generator=rng) for name, coupling in ours.items()}
    return {**made, "torchcfm OTPlanSampler, exact": lambda pair: Pair(*theirs.sample_plan(pair.x0, pair.x1))}


def coupling(rounds: int) -> SpeedSection:
    """Time the coupling of a batch, and measure how near the paired ends are."""
    pairs = [ENDS(BATCH, generator(0, "speed, couplings", index)) for index in range(rounds + 1)]
    costs: dict[str, list[float]] = {}

    def timed(name: str, couple: Callable[[Pair], Pair]) -> ChunkTimes:
        stream, costs[name] = iter(pairs), []

        def run() -> None:
            made = couple(next(stream))
            costs[name].append((made.x0 - made.x1).square().sum(1).mean().item())

        return run, 1

    times = measure({name: timed(name, couple) for name, couple in couplings().items()}, rounds)
    head = (f"median [quartiles] of {rounds} batches", "ms per batch", "mean squared distance of pairs")
    rows = table(head, [(name, quartiles(times[name]), f"{fmean(costs[name]):.2f}") for name in times])
    return SpeedSection(f"Coupling a batch of {BATCH}", rows, COUPLING_NOTE)


# --- sampling


@torch.no_grad()
def sampling(rounds: int) -> SpeedSection:
    """Time Euler's steps over the same network."""
    model, x0, grid = Model(MLP(2)), ENDS(POINTS, generator(0, "speed, starts")).x0, grids.uniform(EULER_STEPS)
    solvers: dict[str, Callable[[Tensor], Tensor]] = {
        "flowgen": lambda x: solve(model.velocity, x, grid, euler),
        "bare loop": peers.bare_euler(model.net, EULER_STEPS),
    }
    if peers.available("torchdyn.core"):
        solvers["torchdyn NeuralODE"] = peers.torchdyn_ode(model.net, EULER_STEPS)
    if peers.available("flow_matching.solver"):
        solvers["flow_matching ODESolver"] = peers.flow_matching_ode(model.net, EULER_STEPS)
    ends = solvers["flowgen"](x0)
    for solver in solvers.values():
        torch.testing.assert_close(solver(x0), ends, rtol=1e-4, atol=1e-4)
    times = measure({name: (partial(solver, x0), 1) for name, solver in solvers.items()}, rounds)
    rows = compared(times, "ms per run", {"bare loop": 1.05, "torchdyn NeuralODE": 1.0})
    note = SAMPLING_NOTE + skipped("torchdyn.core", "flow_matching.solver")
    return SpeedSection(f"{POINTS:,} samples in {EULER_STEPS} Euler steps", rows, note)


# --- imports


def seconds(*command: str) -> float:
    """Return how long a process takes."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def imports(rounds: int) -> SpeedSection:
    """Time imports in fresh processes."""
    commands = {
        "import torch": ("-c", "import torch"),
        "import flowgen": ("-c", "import flowgen"),
        "flowgen --help": ("-c", "from flowgen_cli import main; main()", "--help"),
    }
    run = {name: (partial(seconds, sys.executable, *command), 1000) for name, command in commands.items()}
    times = measure(run, rounds)
    added = [a - b for a, b in zip(times["import flowgen"], times["import torch"], strict=True)]
    rows = [(name, quartiles(values), "") for name, values in times.items()]
    rows[2] = (*rows[2][:2], verdict(float(np.median(times["flowgen --help"])), 0.6))
    rows.insert(2, ("import flowgen, less import torch", quartiles(added), verdict(float(np.median(added)), 0.3)))
    head = (f"median [quartiles] of {rounds} rounds", "seconds of a fresh process", "median")
    return SpeedSection("Imports", table(head, rows), "")


# --- the report

SECTIONS = ((training, 200), (transport, 10), (coupling, 60), (sampling, 50), (imports, 30))
"""Sections and their rounds."""


def sections(share: float) -> Iterator[SpeedSection]:
    """Yield the sections of the report one by one, at a share of their rounds."""
    for section, rounds in SECTIONS:
        yield section(max(1, int(rounds * share)))


def markdown(made: Sequence[SpeedSection], quick: bool) -> str:
    """Return the whole report."""
    note = "A tenth of the rounds: not the figures of a whole run.\n\n" if quick else ""
    text = "".join(f"\n## {title}\n\n{rows}\n{words}" for title, rows, words in made)
    return f"# Speed\n\n{note}{machine()}{text}"


def skipped(*modules: str) -> str:
    """Return a sentence on the peers that are not installed."""
    names = [module.split(".")[0] for module in modules if not peers.available(module)]
    return f"\nLeft out, since it cannot be imported here: {', '.join(names)}.\n" if names else ""


STEP_NOTE = f"""8gaussians from Gaussian noise, MLP 3x64, batch {BATCH}; the same network in all rows but
torchcfm's own.

flowgen's step has what the bare loop has not: the moving average of the weights, the norm of the gradient and the check
that it and the loss are finite before the weights move, the loss as a float and for each pair, any path and time
distribution, and every draw from a generator that is a function of (seed, step). The rows "EMA" and "EMA, finiteness
check" add the first two to the bare loop. torchcfm's step draws noise of scale 0.1 around the path. On a CPU, PyTorch's
AdamW() without options is a loop over the weights; flowgen's is the fused one, bit for bit, without its bookkeeping.
"""

TRANSPORT_NOTE = """flowgen's first row is the default of the command line: 100 batches are solved together, nearly
exactly, and every pair is used ten times; its chunk of 1,000 steps holds one whole pool. It is solved by the thread
that trains, where usually another one does it meanwhile. torchcfm solves each batch of 512, and draws pairs from the
plan with replacement.
"""

COUPLING_NOTE = """8gaussians from Gaussian noise, the same batches for all. Training divides the time by the uses of a
pair: ten, unless asked otherwise. torchcfm draws from the plan with replacement, so that about 37 % of the rows of a
batch are not in what it gives; its distance is that of the rows drawn.
"""

SAMPLING_NOTE = """The ends of all agree to 1e-4. torchdyn keeps the whole trajectory, as flowgen's `walk` does when
asked. flowgen's grid is a list of float64 times, and `Model.velocity` stands between it and the network.
"""
