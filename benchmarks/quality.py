"""How close trained flows come: normalised path energy, one reflow, and what the group of the transport costs.

Everything is drawn from its seed: the same machine and versions give the same tables.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import fmean, median, stdev
from typing import NamedTuple

import torch
from torch import Tensor

from flowgen import (
    ExactOT,
    FlowMatching,
    Independent,
    IndependentPairs,
    Model,
    Pair,
    Pool,
    State,
    batches,
    euler,
    fit,
    grids,
    heun,
    sampling,
    solve,
)
from flowgen.bench.report import machine, table, verdict
from flowgen.core import generator
from flowgen.data import Gaussian, eight_gaussians, moons
from flowgen.data.distributions import Distribution
from flowgen.metrics import geometry, normalised_path_energy, wasserstein2
from flowgen.nn import MLP
from flowgen.pairs import StoredPairs
from flowgen.times import UShaped

SOURCE, LAWS = Gaussian(), {"8gaussians": eight_gaussians(), "moons": moons()}
BATCH, POINTS, SEEDS = 512, 4096, (0, 1, 2)
RESULTS = Path(__file__).parent / "results" / "quality.md"
COUNTS = (1, 2, 4, 8, 100)
"""Euler steps of the students."""
NPE_TARGETS, REFLOW_TARGETS = {"8gaussians": 0.02, "moons": 0.04}, {"8gaussians": 1.1, "moons": 1.5}


class Sizes(NamedTuple):
    steps: int = 20_000
    pairs: int = 100_000
    npe_draws: int = 8
    w2_draws: int = 3


QUICK = Sizes(steps=1_000, pairs=10_000, npe_draws=2, w2_draws=1)


def train_teacher(distribution: Distribution, seed: int, steps: int) -> Model:
    state = State(Model(MLP(2, seed=seed)))
    pairs = batches(IndependentPairs(SOURCE, distribution), BATCH, seed=seed, coupling=ExactOT(128), pool=Pool(100, 10))
    for _ in fit(state, pairs, FlowMatching(), steps, seed=seed):
        pass
    return state.ema


def train_student(teacher: Model, seed: int, sizes: Sizes) -> Model:
    grid = grids.uniform(50)
    made = Pair.cat(list(sampling.pair_chunks(teacher, SOURCE, sizes.pairs, grid, heun, seed=seed, stream="reflow 1")))
    state = State(teacher)
    pairs = batches(StoredPairs(made), BATCH, seed=seed, coupling=Independent())
    for _ in fit(state, pairs, FlowMatching(UShaped()), sizes.steps, seed=seed):
        pass
    return state.ema


class Draw(NamedTuple):
    """Points to evaluate on, the same for every model: a source set, a data set, and another data set."""

    x0: Tensor
    x1: Tensor
    other: Tensor


def evaluation_draw(distribution: Distribution, index: int) -> Draw:
    rng = generator(0, "benchmark", index)
    return Draw(SOURCE.sample(POINTS, rng), distribution.sample(POINTS, rng), distribution.sample(POINTS, rng))


class Energy(NamedTuple):
    """(path energy - W2^2) / W2^2 on each draw, and from the averages of both over the draws."""

    signed: list[float]
    averaged: float

    @property
    def mean(self) -> float:
        """The mean over draws of the normalised path energy."""
        return fmean(map(abs, self.signed))


def energy(model: Model, draws: list[Draw], squares: list[float]) -> Energy:
    paths = [geometry(model.velocity, draw.x0, grids.uniform(100)).path_energy for draw in draws]
    signed = [(path - square) / square for path, square in zip(paths, squares, strict=True)]
    return Energy(signed, normalised_path_energy(fmean(paths), fmean(squares)))


@torch.no_grad()
def distance(model: Model, draws: list[Draw], count: int) -> float:
    """The mean over draws of W2 between the ends of `count` Euler steps and the truth."""
    grid = grids.uniform(count)
    return fmean(wasserstein2(solve(model.velocity, draw.x0, grid, euler), draw.x1) for draw in draws)


class Result(NamedTuple):
    """What one seed gave: the teacher's path energy, its W2 at 100 steps, and the student's at each of COUNTS."""

    energy: Energy
    teacher: float
    student: dict[int, float]

    @property
    def ratio(self) -> float:
        return self.student[1] / self.teacher


def run_seed(distribution: Distribution, seed: int, sizes: Sizes, draws: list[Draw], squares: list[float]) -> Result:
    teacher = train_teacher(distribution, seed, sizes.steps)
    student = train_student(teacher, seed, sizes)
    few = draws[: sizes.w2_draws]
    return Result(
        energy(teacher, draws, squares),
        distance(teacher, few, 100),
        {count: distance(student, few, count) for count in COUNTS},
    )


def energy_rows(name: str, results: dict[int, Result]) -> list[list[str]]:
    """A row for each seed and one for all."""
    rows = []
    for seed, (e, _, _) in results.items():
        spread = f"{fmean(e.signed):+.3f} ± {stdev(e.signed):.3f} ({min(e.signed):+.3f} to {max(e.signed):+.3f})"
        rows.append([name, str(seed), f"{e.mean:.4f}", f"{e.averaged:.4f}", spread])
    mean, averaged = (fmean(getattr(r.energy, key) for r in results.values()) for key in ("mean", "averaged"))
    prediction = NPE_TARGETS[name]
    return [*rows, [name, "mean", verdict(mean, prediction, 4), verdict(averaged, prediction, 4), ""]]


def reflow_rows(name: str, results: dict[int, Result], floor: float) -> list[list[str]]:
    rows = [
        [
            name,
            str(seed),
            f"{floor:.3f}",
            f"{r.teacher:.3f}",
            *(f"{r.student[k]:.3f}" for k in COUNTS),
            f"{r.ratio:.3f}",
        ]
        for seed, r in results.items()
    ]
    means = (fmean(r.student[k] for r in results.values()) for k in COUNTS)
    teacher = fmean(r.teacher for r in results.values())
    ratio = verdict(fmean(r.ratio for r in results.values()), REFLOW_TARGETS[name])
    return [*rows, [name, "mean", f"{floor:.3f}", f"{teacher:.3f}", *(f"{m:.3f}" for m in means), ratio]]


def flows(sizes: Sizes, seeds: tuple[int, ...]) -> str:
    energies, reflows = [], []
    for name, distribution in LAWS.items():
        draws = [evaluation_draw(distribution, index) for index in range(sizes.npe_draws)]
        squares = [wasserstein2(draw.x0, draw.x1) ** 2 for draw in draws]
        floor = fmean(wasserstein2(draw.x1, draw.other) for draw in draws[: sizes.w2_draws])
        results = {seed: run_seed(distribution, seed, sizes, draws, squares) for seed in seeds}
        energies += energy_rows(name, results)
        reflows += reflow_rows(name, results, floor)
    energy_head = ("data", "training seed", "mean over draws of NPE", "NPE of averages", "signed: mean ± std (range)")
    student_head = [f"student {count}" for count in COUNTS]
    reflow_head = ("data", "training seed", "noise floor", "teacher 100", *student_head, "student 1 / teacher 100")
    return (
        f"## Normalised path energy\n\n{table(energy_head, energies)}\n{energy_note(sizes)}\n"
        f"## One reflow\n\n{table(reflow_head, reflows)}\n{reflow_note(sizes)}"
    )


def energy_note(sizes: Sizes) -> str:
    return f"""MLP 3x64, {sizes.steps:,} steps at batch {BATCH}, ExactOT(128), Pool(100, 10), averaged weights. NPE =
|int |v|^2 dt - W2^2| / W2^2 with {POINTS} points and 100 Euler steps, on {sizes.npe_draws} independent draws of both
ends, the same draws for every seed. W2^2 of finite sets varies from draw to draw, and |.| counts that noise as error:
"mean over draws" is the mean of |.| of each draw, "NPE of averages" takes the averages of path energy and W2^2 first.
"""


def reflow_note(sizes: Sizes) -> str:
    return f"""W2 to the truth after so many Euler steps, {POINTS} points, mean of {sizes.w2_draws} draws; the noise
floor is W2 between two true sets. The student starts from the teacher's averaged weights, on {sizes.pairs:,} pairs of
the teacher (50 Heun steps), {sizes.steps:,} steps at batch {BATCH} with U-shaped times.
"""


def groups(repeats: int) -> str:
    """The time and the transport cost of ExactOT by group, on the same batches, in turn."""
    sizes = (32, 64, 128, 256, 512)
    times, costs = {size: [] for size in sizes}, {size: [] for size in sizes}
    draw = IndependentPairs(SOURCE, LAWS["8gaussians"])
    for index in range(repeats):
        pair = draw(BATCH, generator(0, "groups", index))
        for size in sizes if index % 2 else reversed(sizes):
            start = time.perf_counter()
            coupled = ExactOT(size)(pair, generator(0, "groups", index))
            times[size].append((time.perf_counter() - start) * 1e3)
            costs[size].append((coupled.x0 - coupled.x1).square().sum(1).mean().item())
    whole = fmean(costs[512])
    rows = [
        [str(n), f"{median(times[n]):.2f}", f"{fmean(costs[n]):.3f}", f"{fmean(costs[n]) / whole:.4f}"] for n in sizes
    ]
    head = ("group", "ms per batch (median)", "mean squared distance of pairs", "relative to 512")
    return f"## The group of ExactOT\n\n{table(head, rows)}\n8gaussians, batch {BATCH}, {repeats} batches.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps and one seed, and nothing written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    sizes, seeds = (QUICK, SEEDS[:1]) if options.quick else (Sizes(), SEEDS)
    text = f"{flows(sizes, seeds)}\n{groups(10 if options.quick else 100)}"
    minutes = (time.perf_counter() - start) / 60
    report = f"# Quality\n\n{machine()}- {minutes:.0f} minutes in all\n\n{text}"
    print(report)
    if not options.quick:
        RESULTS.write_text(report)


if __name__ == "__main__":
    main()
