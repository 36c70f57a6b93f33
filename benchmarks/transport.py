"""Transport of many rows at once by flowgen, torchcfm and POT: seconds, and the cost that is reached, under a time cap.

Each method has a process of its own, which goes from few rows to many and is ended where one size takes too long.
"""

from __future__ import annotations

import math
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flowgen import ExactOT, MultiscaleOT, Pair, Sinkhorn
from flowgen.core import generator
from flowgen.couplings import Coupling
from flowgen.couplings.semidiscrete import Semidiscrete, ascend
from flowgen.data import Gaussian, eight_gaussians, read_images
from flowgen.data.streams import floats

START = 60.0
"""Seconds in which a process has to begin: it imports, and starts the device."""
WHOLE = 8192
"""Rows of the largest matrix of costs: of more, one alone takes gigabytes."""
FEW = 64
"""Rows with which a method is warmed up."""


class Task(NamedTuple):
    """What one process does: a method on ends of `dim` values, in all sizes, each in at most `cap` seconds."""

    method: str
    dim: int
    sizes: tuple[int, ...]
    cap: float
    device: str
    images: Path | None


class Found(NamedTuple):
    """A size: its seconds, the mean squared distance of the pairs, and a word on what was done.

    Seconds and cost are NaN where there are none, and the word says why.
    """

    method: str
    dim: int
    rows: int
    seconds: float
    cost: float
    word: str = ""


Solve = Callable[[Tensor, Tensor, Task], tuple[float, str]]
"""Ends `(n, dim)` on the CPU to the mean squared distance of pairs of them, and a word."""


def ends(task: Task, rows: int) -> Pair:
    """Standard normal rows, and 8gaussians in the plane or images: those of a folder, or random ones."""
    source, rng = Gaussian((task.dim,)), generator(0, "ends", rows)
    x0 = source.sample(rows, rng)
    if task.dim == 2:
        return Pair(x0, eight_gaussians().sample(rows, rng))
    if task.images is None:
        return Pair(x0, 2 * torch.rand(rows, task.dim, generator=rng) - 1)
    return Pair(x0, 2 * floats(pixels(task.images)[:rows]).flatten(1) - 1)


@cache
def pixels(folder: Path) -> Tensor:
    return read_images(folder).pixels


def distance(pair: Pair) -> float:
    """The mean squared distance of pairs."""
    return float((pair.x0.cpu() - pair.x1.cpu()).double().square().sum(1).mean())


# --- the methods


def coupled(coupling: Coupling, on_device: bool = False) -> Solve:
    """A coupling of flowgen; of those that compute there, with the data on the device."""

    def solve(x0: Tensor, x1: Tensor, task: Task) -> tuple[float, str]:
        pair = Pair(x0, x1.to(task.device) if on_device else x1)
        return distance(coupling(pair, generator(0, "coupling"))), "on the device" if on_device else ""

    return solve


def semidiscrete(x0: Tensor, x1: Tensor, task: Task) -> tuple[float, str]:
    """Potentials that are found once for a training, in at most half of the cap, and then the pairs of all rows."""
    source, data, start = Gaussian(tuple(x1.shape[1:])), x1.to(task.device), time.perf_counter()
    for state in ascend(source, data, seed=0):
        last = state
        if time.perf_counter() - start > task.cap / 2:
            break
    pairs = Semidiscrete(source, data, last.values)(len(x1), generator(0, "pairs"))
    return distance(pairs), f"on the device; chi-square {last.chi_square:.3f}; other source points"


def independent(x0: Tensor, x1: Tensor, task: Task) -> tuple[float, str]:
    return distance(Pair(x0, x1)), ""


def torchcfm(group: int) -> Solve:
    """torchcfm's sampler of plans, on runs of so many rows, or on all of them at once."""

    def solve(x0: Tensor, x1: Tensor, task: Task) -> tuple[float, str]:
        from torchcfm.optimal_transport import OTPlanSampler

        sampler, size = OTPlanSampler("exact"), group or len(x0)
        parts = zip(x0.split(size), x1.split(size), strict=True)
        drawn = [Pair(*sampler.sample_plan(*part)) for part in parts]
        return distance(Pair.cat(drawn)), "rows drawn with replacement"

    return solve


def pot_exact(x0: Tensor, x1: Tensor, task: Task) -> tuple[float, str]:
    import ot

    cost = ot.dist(x0.double().numpy(), x1.double().numpy())
    return float((ot.emd(ot.unif(len(x0)), ot.unif(len(x1)), cost, numItermax=10**7) * cost).sum()), ""


def pot_sinkhorn(x0: Tensor, x1: Tensor, task: Task) -> tuple[float, str]:
    """Entropic transport by POT on tensors of the device, as far from exact as flowgen's."""
    import ot

    x0, x1 = (x.double().to(task.device) for x in (x0, x1))
    cost = torch.cdist(x0, x1).square()
    weights = torch.full((len(x0),), 1 / len(x0), dtype=cost.dtype, device=cost.device)
    usual = Sinkhorn()
    plan = ot.bregman.sinkhorn_log(
        weights, weights, cost, usual.epsilon * cost.mean(), usual.iterations, usual.tolerance, warn=False
    )
    return float((plan * cost).sum()), "on the device; the cost of the plan, of which no pairs are drawn"


class Method(NamedTuple):
    """How a method solves, the most rows that it is asked for, and the packages that it needs."""

    solve: Solve
    most: float = math.inf
    needs: tuple[str, ...] = ()


METHODS = {
    "independent": Method(independent),
    "flowgen, exact in groups of 512": Method(coupled(ExactOT(512)), needs=("ot",)),
    "torchcfm, batches of 512": Method(torchcfm(512), needs=("torchcfm", "ot")),
    "flowgen, multiscale": Method(coupled(MultiscaleOT()), needs=("ot",)),
    "flowgen, semidiscrete": Method(semidiscrete),
    "flowgen, Sinkhorn in groups of 128": Method(coupled(Sinkhorn(), True)),
    "flowgen, Sinkhorn of all rows": Method(coupled(Sinkhorn(group=0), True), WHOLE),
    "torchcfm, all rows": Method(torchcfm(0), WHOLE, ("torchcfm", "ot")),
    "POT, network simplex of all rows": Method(pot_exact, WHOLE, ("ot",)),
    "POT, Sinkhorn of all rows": Method(pot_sinkhorn, WHOLE, ("ot",)),
}


# --- processes


def work(task: Task, pipe: Connection) -> None:
    """Sends the sizes one after another, each as (seconds, cost, word); an exception as its text."""
    warnings.simplefilter("ignore")
    try:
        solve = METHODS[task.method].solve
        solve(*ends(task, FEW)[:2], task._replace(cap=1.0))
        for rows in task.sizes:
            x0, x1, _ = ends(task, rows)
            pipe.send("begun")
            start = time.perf_counter()
            cost, word = solve(x0, x1, task)
            pipe.send((time.perf_counter() - start, cost, word))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def measured(task: Task) -> Iterator[Found]:
    """What a process found, size by size; after a size that took too long, or failed, no more."""
    context = multiprocessing.get_context("forkserver")  # children that have imported all, and started no device
    context.set_forkserver_preload(["transport", "ot", "scipy.optimize"])
    pipe, end = context.Pipe(duplex=False)
    child = context.Process(target=work, args=(task, end), daemon=True)
    child.start()
    end.close()
    try:
        for rows in task.sizes:
            found = Found(task.method, task.dim, rows, *(answer(pipe, task.cap)))
            yield found
            if math.isnan(found.cost):
                return
    finally:
        child.kill()
        child.join()


def answer(pipe: Connection, cap: float) -> tuple[float, float, str]:
    """The next size of a process: its seconds, cost and word."""
    for seconds, late in ((START, "it did not begin"), (cap, f"more than {cap:g} s")):
        try:
            got = pipe.recv() if pipe.poll(seconds) else late
        except EOFError:
            got = "its process died"
        if got != "begun":
            return got if isinstance(got, tuple) else (math.nan, math.nan, got)
    raise AssertionError("a size begins once")


def sizes_of(method: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in sizes if size <= METHODS[method].most)
