"""What optimal transport costs a training step, and what it buys: speed, transport cost, path energy.

    python benchmarks/couplings.py --parts plane cost pixels energy --data FASHION_MNIST_FOLDER --write

Each part writes a table of its own to results/couplings-PART.md. Trainings of `energy` are kept in --keep, and found
again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from itertools import islice
from pathlib import Path
from statistics import fmean, median

import torch

from flowgen import (
    ExactOT,
    FlowMatching,
    Independent,
    IndependentPairs,
    Model,
    MultiscaleOT,
    Pool,
    Sinkhorn,
    State,
    batches,
    fit,
)
from flowgen.bench import peers
from flowgen.bench.report import machine, quartiles, spread, table, verdict
from flowgen.bench.speed import conditions
from flowgen.bench.table2d import PROBLEMS, Protocol, measure, network
from flowgen.bench.torchcfm import matchers
from flowgen.config import resolve_config
from flowgen.core import Pair, generator
from flowgen.couplings import Coupling, Semidiscrete
from flowgen.couplings.semidiscrete import potentials
from flowgen.data import Scaled
from flowgen.nn import MLP
from flowgen.paths.bridge import ConstantBridge

RESULTS = Path(__file__).parent / "results"
DEFAULT = Pool(100, 10)
"""The pool of the command line."""
Loop = Callable[[], Iterator[object]]


def seconds_a_step(loop: Loop, steps: int, warm: int) -> float:
    """Of a loop of its own, which is closed after: what it does ahead on a thread is paid for by its own steps."""
    with closing(loop()) as running:  # type: ignore[type-var]
        next(islice(running, warm - 1, None))
        start = time.perf_counter()
        next(islice(running, steps - 1, None))
        return (time.perf_counter() - start) / steps


def in_turn(loops: dict[str, tuple[Loop, int, int]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds a step, of each loop in each round."""
    times: dict[str, list[float]] = {name: [] for name in loops}
    for index in range(rounds):
        names = list(loops)
        for name in names[index % len(names) :] + names[: index % len(names)]:
            times[name].append(1e3 * seconds_a_step(*loops[name]))
    return times


# --- the plane


def training(problem: str, size: int, coupling: Coupling, pool: Pool) -> Loop:
    """flowgen's training loop."""

    def loop() -> Iterator[float]:
        pairs = batches(IndependentPairs(*PROBLEMS[problem]), size, seed=0, coupling=coupling, pool=pool)
        return fit(State(Model(MLP(2))), pairs, FlowMatching(), 10**9, seed=0)

    return loop


def torchcfm() -> Iterator[object]:
    """torchcfm's training loop with its exact transport, on the same network."""
    yield from peers.torchcfm_loop(512, matchers(0.1)["OT-CFM"], fused=True)


def cost(problem: str, coupling: Coupling, seed: int) -> float:
    """The mean squared distance of the pairs of a pool, of the same ends for all couplings."""
    pairs = batches(IndependentPairs(*PROBLEMS[problem]), 512, seed=seed, coupling=coupling, pool=Pool(100))
    return fmean(float((pair.x1 - pair.x0).square().sum(1).mean()) for pair in islice(pairs, 100))


def costs(seeds: int) -> str:
    """The transport cost of couplings on the same pools."""
    others = {"multiscale, the default": MultiscaleOT(), "multiscale, sweeps=2": MultiscaleOT(sweeps=2)}
    others |= {"sinkhorn, groups of 128": Sinkhorn(), "independent": Independent()}
    rows = []
    for problem in PROBLEMS:
        base = [cost(problem, ExactOT(512), seed) for seed in range(seeds)]
        ratio = {name: [cost(problem, c, k) / base[k] for k in range(seeds)] for name, c in others.items()}
        rows.append((problem, spread(base), *(spread(values) for values in ratio.values())))
    head = ("problem", "exact, groups of 512", *(f"{name} / that" for name in others))
    return f"# Transport cost in the plane\n\n{machine()}\n{table(head, rows)}\n{COST_NOTE.format(seeds=seeds)}"


COST_NOTE = """Mean squared distance of the 51,200 pairs of a pool, mean ± standard deviation over {seeds} pools;
couplings see the same ends. The anchors of multiscale transport are drawn anew for each pool here, and once for a
training.
"""


def plane(rounds: int, threads: int) -> str:
    """A step in the plane."""
    text = ""
    for size, bound in ((512, 1.5), (2048, 3.0)):
        solved = {
            "multiscale, the default": (MultiscaleOT(), DEFAULT),
            "exact, groups of 512": (ExactOT(512), DEFAULT),
            "sinkhorn, groups of 128": (Sinkhorn(), DEFAULT),
            "exact, groups of 512, each pair used once": (ExactOT(512), Pool()),
        }
        problem, pooled = "N to 8gaussians", DEFAULT.batches * DEFAULT.reuse
        loops = {"independent": (training(problem, size, Independent(), Pool(10)), 1000, 100)}
        for name, (coupling, pool) in solved.items():
            steps = 2 * pooled if pool == DEFAULT else 30
            loops[name] = (training(problem, size, coupling, pool), steps, 20)
        if size == 512:
            loops["torchcfm, exact"] = (torchcfm, 20, 3)
        with conditions(threads):
            times = in_turn(loops, rounds)
        rows = []
        for name, values in times.items():
            ratio = [a / b for a, b in zip(values, times["independent"], strict=True)]
            judged = verdict(median(ratio), bound) if name.startswith("multiscale") else ""
            rows.append((name, quartiles(values), quartiles(ratio, 2), judged))
        head = (f"batch {size}", "ms a step", "/ independent", "ratio")
        text += f"## Batches of {size}\n\n{table(head, rows)}\n"
    return f"# Optimal transport in the plane\n\n{machine()}- {rounds} rounds\n\n{text}{PLANE_NOTE}"


PLANE_NOTE = """MLP 3x64, from the standard normal to 8gaussians. A loop is timed over two whole pools (2,000 steps), in
turn with the others; the pools are coupled on one other thread meanwhile, and nothing of it is done before the clock
runs or while others are timed. Pools of 100 batches, each pair used ten times, but where it says once.
"""


# --- pixels


def pixels(folder: Path, batch: int, rounds: int, threads: int) -> str:
    """A step of the small U-Net on images of 784 pixels."""
    tree = {"data": str(folder), "labels": False, "net": {"name": "unet", "size": "small"}}
    config = resolve_config(tree)
    data = config.load_data()
    ends = IndependentPairs(
        config.source_distribution(data.distribution.shape, data.scaling), Scaled(data.distribution, data.scaling)
    )

    def loop(coupling: Coupling) -> Loop:
        def made() -> Iterator[float]:
            pairs = batches(ends, batch, seed=0, coupling=coupling)
            return fit(State(config.model(data.distribution.shape, data.scaling)), pairs, FlowMatching(), 10**9, seed=0)

        return made

    couplings: dict[str, Coupling] = {"independent": Independent(), "exact": ExactOT()}
    with conditions(threads):
        times = in_turn({name: (loop(coupling), 1, 1) for name, coupling in couplings.items()}, rounds)
        alone = [alone_ms(ends, batch, k) for k in range(20)]
    ratio = [a / b for a, b in zip(times["exact"], times["independent"], strict=True)]
    rows = [
        ("independent", quartiles(times["independent"]), "", ""),
        ("exact", quartiles(times["exact"]), quartiles(ratio, 3), verdict(median(ratio), 1.05)),
        ("the coupling alone", quartiles(alone), "", ""),
    ]
    head = (f"batch {batch}, 784 dimensions, small U-Net", "ms a step", "/ independent", "ratio")
    return f"# Optimal transport of images\n\n{machine()}- {rounds} rounds\n\n{table(head, rows)}"


def alone_ms(ends: IndependentPairs, batch: int, index: int) -> float:
    """Milliseconds to couple a batch, with nothing else to do."""
    pair = next(ends.stream(batch, seed=1, start=index))
    start = time.perf_counter()
    ExactOT()(pair, torch.Generator())
    return 1e3 * (time.perf_counter() - start)


# --- path energy

COUPLED: dict[str, tuple[Coupling, Pool]] = {
    "exact 512, each pair used once": (ExactOT(512), Pool()),
    "multiscale": (MultiscaleOT(), DEFAULT),
}
VARIANTS = (*COUPLED, "semidiscrete")
POINTS = 10_000
"""Rows that stand for the data of a semidiscrete coupling."""


@cache
def semidiscrete(problem: str) -> Semidiscrete:
    """The source of a problem shared out among points of its data."""
    source, data = PROBLEMS[problem]
    points = data.sample(POINTS, generator(0, "points"))
    return Semidiscrete(source, points, potentials(source, points, seed=0, tolerance=0.02).values)


def pairs_of(problem: str, variant: str, protocol: Protocol, seed: int) -> Iterator[Pair]:
    """What a variant trains on."""
    if variant == "semidiscrete":
        return semidiscrete(problem).stream(protocol.batch, seed=seed)
    coupling, pool = COUPLED[variant]
    return batches(IndependentPairs(*PROBLEMS[problem]), protocol.batch, seed=seed, coupling=coupling, pool=pool)


def trained(problem: str, variant: str, seed: int, protocol: Protocol, keep: Path) -> dict[str, float]:
    """The figures of one training, made or found."""
    path = keep / f"{problem}, {variant}, {protocol.steps}, {seed}.json".replace(" ", "-")
    if not path.exists():
        state = State(Model(network(protocol, seed)), protocol.lr, protocol.weight_decay)
        objective = FlowMatching(bridge=ConstantBridge(protocol.sigma))
        for _ in fit(state, pairs_of(problem, variant, protocol, seed), objective, protocol.steps, seed=seed):
            pass
        keep.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measure(problem, state.model.net, protocol, 0.0)._asdict()))
    return json.loads(path.read_text())


def energy(steps: int, seeds: int, keep: Path) -> str:
    """Path energy and straightness after training with each variant."""
    protocol, rows = Protocol(steps=steps), []
    for problem in list(PROBLEMS)[:3]:
        for variant in VARIANTS:
            found = [trained(problem, variant, seed, protocol, keep) for seed in range(seeds)]
            columns = [spread([x[key] for x in found]) for key in ("npe", "straightness", "w2_one_step", "w2")]
            rows.append((problem, variant, *columns))
    head = ("problem", "coupling", "NPE", "straightness", "W2, 1 step", "W2, 100 steps")
    return (
        f"# Path energy by coupling\n\n{machine()}\n{table(head, rows)}\n{ENERGY_NOTE.format(steps=steps, seeds=seeds)}"
    )


ENERGY_NOTE = """The protocol of table2d.md, but {steps:,} steps: mean ± standard deviation over {seeds} seeds. NPE is
that of OT-CFM: |E - W2^2| / W2^2, E the path energy; 0 for the true transport. Straightness is 0 for straight lines.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=["plane", "cost", "pixels", "energy"], default=["plane"])
    parser.add_argument("--data", type=Path, help="Fashion-MNIST, for pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="torch threads of the training step")
    parser.add_argument("--batch", type=int, default=256, help="of pixels")
    parser.add_argument("--steps", type=int, default=6_000, help="of energy")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keep", type=Path, default=Path("couplings"), help="folder of the trainings of energy")
    parser.add_argument("--write", action="store_true", help="write results/couplings-PART.md")
    given = parser.parse_args()
    made: dict[str, Callable[[], str]] = {
        "plane": lambda: plane(given.rounds, given.threads),
        "cost": lambda: costs(given.seeds),
        "pixels": lambda: pixels(given.data, given.batch, given.rounds, given.threads),
        "energy": lambda: energy(given.steps, given.seeds, given.keep),
    }
    for part in given.parts:
        text = made[part]()
        print(text)
        if given.write:
            (RESULTS / f"couplings-{part}.md").write_text(text)


if __name__ == "__main__":
    main()
