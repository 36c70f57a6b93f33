"""The table of two-dimensional flows of arXiv 2302.00482, reproduced: torchcfm's matchers beside flowgen's objects.

A cell is one training: a problem, a package, a method and a seed. All cells share one protocol.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import cache
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowgen import sampling
from flowgen.bench.torchcfm import matchers, torchcfm_loop
from flowgen.core import InputError, Pair, generator
from flowgen.couplings import Coupling, Independent, MultiscaleOT
from flowgen.data import Distribution, Gaussian, Scaled, Scaling, eight_gaussians, moons, s_curve
from flowgen.metrics import geometry, normalised_path_energy, wasserstein2
from flowgen.model import Model
from flowgen.nn import MLP
from flowgen.objectives import FlowMatching
from flowgen.pairs import IndependentPairs, Pool, StoredPairs, batches
from flowgen.paths.bridge import BrownianBridge, ConstantBridge
from flowgen.samplers import grids
from flowgen.samplers.ode import euler, heun
from flowgen.schedules import Linear, Schedule
from flowgen.times import UShaped
from flowgen.training.loop import State, fit

__all__ = [
    "METHODS",
    "PROBLEMS",
    "PUBLISHED",
    "QUICK",
    "UNVERIFIED",
    "Cell",
    "Floor",
    "Problem",
    "Protocol",
    "Result",
    "cells",
    "floor",
    "measure",
    "network",
    "run",
]


class Protocol(NamedTuple):
    """The settings that all cells share."""

    steps: int = 20_000
    batch: int = 512
    lr: float = 1e-3
    weight_decay: float = 1e-5
    width: int = 64
    depth: int = 3
    sigma: float = 0.1
    euler_steps: int = 100
    points: int = 1000
    """Points of a W2 distance."""
    draws: int = 5
    """Evaluation draws, whose mean is given."""
    energy_points: int = 4096
    """Points of a path energy, and of the W2 it is divided by."""
    reflow_pairs: int = 100_000
    """Pairs of a round of reflow, by 50 Heun steps."""


QUICK = Protocol(steps=2_000, reflow_pairs=10_000)
"""A tenth of the training, to see that all is in place."""


class Problem(NamedTuple):
    """A source and a data distribution."""

    source: Distribution
    data: Distribution


def _wide_moons() -> Distribution:
    """Return moons() with mean 0 and a joint standard deviation of 7 over both coordinates, by its moments."""
    mean = torch.tensor([0.0, -0.5])
    variance = 4 * (torch.tensor([0.75, 0.5625 - 1 / math.pi]) + 0.05**2)
    together = variance.mean() + mean.var(correction=0)
    return Scaled(moons(), Scaling(mean.mean(), together.sqrt() / 7))


PROBLEMS = {
    "N to 8gaussians": Problem(Gaussian(), eight_gaussians()),
    "moons to 8gaussians": Problem(_wide_moons(), eight_gaussians(radius=12.0, std=1.5)),
    "N to moons": Problem(Gaussian(), moons()),
    "N to s-curve": Problem(Gaussian(), s_curve()),
}

PUBLISHED = {
    "N to 8gaussians": {"OT-CFM": 0.018, "I-CFM": 0.222},
    "moons to 8gaussians": {"OT-CFM": 0.053, "I-CFM": 2.738},
    "N to moons": {"OT-CFM": 0.087},
    "N to s-curve": {},
}
"""Normalised path energies as published."""
UNVERIFIED = {"N to moons": {"I-CFM": 0.841}, "N to s-curve": {"OT-CFM": 0.027, "I-CFM": 0.867}}
"""The same, quoted, and not found in print."""


class Method(NamedTuple):
    """A way of training with flowgen: a coupling, a path and an objective."""

    coupling: Coupling
    schedule: Schedule
    objective: FlowMatching
    pool: Pool


def methods(sigma: float) -> dict[str, Method]:
    """Return flowgen's own matchers at noise sigma; 1-RF is the rectified flow before any reflow, without noise."""
    constant, brownian = FlowMatching(bridge=ConstantBridge(sigma)), FlowMatching(bridge=BrownianBridge(sigma))
    single, pool = Pool(), Pool(100, 10)
    return {
        "FM": Method(Independent(), Linear(sigma_min=sigma), FlowMatching(), single),
        "I-CFM": Method(Independent(), Linear(), constant, single),
        "OT-CFM": Method(MultiscaleOT(), Linear(), constant, pool),
        "SB-CFM": Method(MultiscaleOT(), Linear(), brownian, pool),
        "1-RF": Method(Independent(), Linear(), FlowMatching(), single),
    }


METHODS = {
    "torchcfm": ("FM", "I-CFM", "OT-CFM", "SB-CFM"),
    "flowgen": ("FM", "I-CFM", "OT-CFM", "SB-CFM", "1-RF", "2-RF", "3-RF"),
}
"""The rows of the table, by package."""


class Cell(NamedTuple):
    """One training."""

    problem: str
    package: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.problem}, {self.package} {self.method}, seed {self.seed}"

    @property
    def slow(self) -> bool:
        """Return whether the method runs with one seed: torchcfm's transport takes some twenty times a step."""
        return self.package == "torchcfm" and self.method in ("OT-CFM", "SB-CFM")

    @property
    def teacher(self) -> Cell | None:
        """Return the previous round of a reflow, or None."""
        round_, _, kind = self.method.partition("-")
        return self._replace(method=f"{int(round_) - 1}-RF") if kind == "RF" and round_ != "1" else None


class Result(NamedTuple):
    """The outcome of one training; distances and energies are means over the evaluation draws."""

    w2: float
    """W2 to the data after the protocol's Euler steps."""
    w2_one_step: float
    npe: float
    """Of the mean path energy and the mean transport cost of large draws."""
    npe_single: float
    """The mean over draws of as many points as a W2 has: it counts the luck of each draw as an error."""
    straightness: float
    cpu_seconds: float
    """Of training (of a reflow: and of its pairs), of all threads; a busy machine disturbs them less than the time
    on the wall."""


def cells(seeds: tuple[int, ...], slow_seeds: int = 1) -> list[Cell]:
    """Return all cells of the table, each after its teacher; those of slow rows with the first seeds alone."""
    every = [
        Cell(problem, package, method, seed)
        for problem in PROBLEMS
        for package, names in METHODS.items()
        for method in names
        if has_meaning(problem, method)
        for seed in seeds
    ]
    return [cell for cell in every if cell.seed in seeds[:slow_seeds] or not cell.slow]


def has_meaning(problem: str, method: str) -> bool:
    """Return whether a method applies to a problem: FM starts from a Gaussian, so it does not map data to data."""
    return method != "FM" or isinstance(PROBLEMS[problem].source, Gaussian)


def run(cell: Cell, protocol: Protocol, teacher: nn.Module | None = None) -> tuple[Result, nn.Module]:
    """Train and measure one cell; return the network too, since a reflow starts from its teacher's.

    Raises:
        InputError: for a reflow without the network of its teacher.
    """
    matchers(protocol.sigma)  # imports torchcfm and POT before the clock runs: that is no training
    started = time.process_time()
    if cell.package == "torchcfm":
        net = _train_torchcfm(cell, protocol)
    elif cell.teacher is None:
        net = _train_flowgen(cell, protocol)
    else:
        net = _train_reflow(cell, protocol, teacher)
    return measure(cell.problem, net, protocol, time.process_time() - started), net


def network(protocol: Protocol, seed: int) -> MLP:
    """Return the network of all cells: SELU, time as a column."""
    return MLP(2, protocol.width, protocol.depth, frequencies=0, activation=nn.SELU, seed=seed)


def _train_torchcfm(cell: Cell, protocol: Protocol) -> nn.Module:
    net = network(protocol, cell.seed)
    pairs = batches(IndependentPairs(*PROBLEMS[cell.problem]), protocol.batch, seed=cell.seed)
    matcher = matchers(protocol.sigma)[cell.method]
    torchcfm_loop(net, matcher, pairs, protocol.steps, protocol.lr, protocol.weight_decay, cell.seed)
    return net


def _train_flowgen(cell: Cell, protocol: Protocol) -> nn.Module:
    method = methods(protocol.sigma)[cell.method]
    pairs = batches(
        IndependentPairs(*PROBLEMS[cell.problem]),
        protocol.batch,
        seed=cell.seed,
        coupling=method.coupling,
        pool=method.pool,
    )
    model = Model(network(protocol, cell.seed), method.schedule)
    return _fit(model, pairs, method.objective, protocol, cell.seed)


def _train_reflow(cell: Cell, protocol: Protocol, teacher: nn.Module | None) -> nn.Module:
    if teacher is None:
        raise InputError(f"{cell.name} needs the network of its teacher")
    model = Model(teacher)
    source = PROBLEMS[cell.problem].source
    made = sampling.pair_chunks(
        model, source, protocol.reflow_pairs, grids.uniform(50), heun, seed=cell.seed, stream=cell.method
    )
    pairs = batches(StoredPairs(Pair.cat(list(made))), protocol.batch, seed=cell.seed, pool=Pool(10))
    return _fit(model, pairs, FlowMatching(UShaped()), protocol, cell.seed)


def _fit(model: Model, pairs: Iterator[Pair], objective: FlowMatching, protocol: Protocol, seed: int) -> nn.Module:
    """Return the network with its last weights: torchcfm's loop keeps no average."""
    state = State(model, protocol.lr, protocol.weight_decay)
    for _ in fit(state, pairs, objective, protocol.steps, seed=seed):
        pass
    return state.model.net


class ProblemDraw(NamedTuple):
    """An evaluation draw: a source set and two independent data sets."""

    x0: Tensor
    x1: Tensor
    other: Tensor


def draw(problem: str, points: int, index: int) -> ProblemDraw:
    """Draw `index` of a problem, which no training sees: its stream is its own."""
    source, data = PROBLEMS[problem]
    rng = generator(0, f"table2d {points}", index)
    return ProblemDraw(source.sample(points, rng), data.sample(points, rng), data.sample(points, rng))


@cache
def transport(problem: str, points: int, draws: int) -> tuple[float, ...]:
    """Return W2^2 between source and data, of each draw."""
    return tuple(wasserstein2(d.x0, d.x1) ** 2 for d in (draw(problem, points, k) for k in range(draws)))


class Floor(NamedTuple):
    """Distances W2 between independent sets, without a flow, one for each evaluation draw."""

    truth: list[float]
    """Between two independent data sets: below that no flow can be distinguished from the truth."""
    source: list[float]
    """From the source to the data."""


def floor(problem: str, protocol: Protocol) -> Floor:
    """Return the floor of a problem, at the points and draws of the protocol."""
    drawn = [draw(problem, protocol.points, k) for k in range(protocol.draws)]
    return Floor([wasserstein2(d.x1, d.other) for d in drawn], [wasserstein2(d.x0, d.x1) for d in drawn])


@torch.no_grad()
def measure(problem: str, net: nn.Module, protocol: Protocol, cpu_seconds: float) -> Result:
    """Return the figures of a network that took so long to train."""
    model, fine, one = Model(net), grids.uniform(protocol.euler_steps), grids.uniform(1)
    small = [draw(problem, protocol.points, k) for k in range(protocol.draws)]
    walked = [geometry(model.velocity, d.x0, fine) for d in small]
    costs = transport(problem, protocol.points, protocol.draws)
    large = [geometry(model.velocity, draw(problem, protocol.energy_points, k).x0, fine) for k in range(protocol.draws)]
    energy, cost = (
        fmean(g.path_energy for g in large),
        fmean(transport(problem, protocol.energy_points, protocol.draws)),
    )
    return Result(
        w2=fmean(wasserstein2(g.end, d.x1) for g, d in zip(walked, small, strict=True)),
        w2_one_step=fmean(wasserstein2(sampling.solve(model.velocity, d.x0, one, euler), d.x1) for d in small),
        npe=normalised_path_energy(energy, cost),
        npe_single=fmean(normalised_path_energy(g.path_energy, c) for g, c in zip(walked, costs, strict=True)),
        straightness=fmean(g.straightness for g in large),
        cpu_seconds=cpu_seconds,
    )
