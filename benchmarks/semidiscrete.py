"""Semidiscrete optimal transport beside exact minibatch transport: toys in the plane, and images.

    python benchmarks/semidiscrete.py --data DIR    # writes benchmarks/results/semidiscrete.md

DIR holds the images and labels of Fashion-MNIST as IDX files; without it the images are left out.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flowgen.bench.report import machine, table
from flowgen.core import Pair, generator
from flowgen.couplings import ExactOT, Independent
from flowgen.couplings.exact import Coupling
from flowgen.couplings.semidiscrete import Potentials, Semidiscrete, ascend, assigned
from flowgen.data import TOYS, Gaussian, TensorDataset
from flowgen.data.distributions import Distribution
from flowgen.data.images.reading import read_images
from flowgen.data.streams import chunks

RESULTS = Path(__file__).parent / "results" / "semidiscrete.md"
BLOCK = 2048


class Case(NamedTuple):
    """A data set, how long it may take, and the groups of exact transport that it is compared with."""

    name: str
    data: Tensor
    tolerance: float
    minutes: float
    groups: tuple[int, ...]
    pairs: int


def solve(source: Distribution, case: Case) -> tuple[Potentials, float]:
    """The ascent until its tolerance or its minutes end, and its seconds."""
    start, last = time.perf_counter(), None
    for last in ascend(source, case.data, seed=0, tolerance=case.tolerance, draws_per_row=1e4):
        seconds = time.perf_counter() - start
        print(f"{case.name}: {last.draws} draws, chi-square {last.chi_square:.4f}, {seconds:.0f} s", flush=True)
        if seconds > 60 * case.minutes:
            break
    assert last is not None
    return last, seconds


def cost(pairs: list[Pair], data: Tensor) -> tuple[float, float]:
    """The mean squared distance of pairs, and its standard error.

    |x1|^2 is replaced by its mean over the data: the rows that were drawn would hide what couplings differ in.
    """
    x0, x1, _ = Pair.cat(pairs)
    squares = (x0.square() - 2 * x0 * x1).flatten(1).sum(1).double() + data.double().square().flatten(1).sum(1).mean()
    return float(squares.mean()), float(squares.std() / len(squares) ** 0.5)


def minibatch(source: Distribution, data: TensorDataset, coupling: Coupling, pairs: int) -> tuple[float, float]:
    """The cost of a coupling of batches, whose data rows come in epochs, so that their mean is that of the data."""
    rngs = [generator(1, "benchmark", k) for k in range(pairs // BLOCK)]
    read = chunks(data, BLOCK, seed=1)
    return cost([coupling(Pair(source.sample(BLOCK, rng), next(read)[0]), rng) for rng in rngs], data.x)


def ends(semidiscrete: Semidiscrete, pairs: int) -> tuple[float, float]:
    """The cost of the semidiscrete coupling, on the same source points."""
    made = [semidiscrete(BLOCK, generator(1, "benchmark", k)) for k in range(pairs // BLOCK)]
    return cost(made, semidiscrete.data)


def variation(semidiscrete: Semidiscrete, rows: int) -> str:
    """The total variation of how often fresh draws hit each row, beside that of even draws: sampling noise in both."""
    total = 20 * rows
    index = _hits(semidiscrete, total)
    even = torch.randint(rows, (total,), generator=generator(0, "even")).bincount(minlength=rows)
    found, noise = (float((h / total - 1 / rows).abs().sum() / 2) for h in (index, even))
    return f"{found:.3f} ({noise:.3f})"


def _hits(semidiscrete: Semidiscrete, total: int) -> Tensor:
    hits = torch.zeros(len(semidiscrete.data))
    for k, start in enumerate(range(0, total, 2**18)):
        x0 = semidiscrete.source.sample(min(2**18, total - start), generator(2, "hits", k))
        hits += assigned(x0, semidiscrete.data, semidiscrete.potentials).bincount(minlength=len(hits))
    return hits


def row(case: Case) -> list[str]:
    source = Gaussian(tuple(case.data.shape[1:]))
    found, seconds = solve(source, case)
    semidiscrete = Semidiscrete(source, case.data, found.values)
    rows = TensorDataset(case.data)
    costs = [ends(semidiscrete, case.pairs)]
    costs += [minibatch(source, rows, coupling, case.pairs) for coupling in (*map(ExactOT, case.groups), Independent())]
    few = case.data[0].numel() < 32
    return [
        case.name,
        f"{len(case.data):,}",
        f"{seconds:.0f}",
        f"{found.draws / len(case.data):.0f}",
        f"{found.chi_square:.4f}",
        variation(semidiscrete, len(case.data)) if few else "",
        *(f"{mean:.4f} ± {error:.4f}" if few else f"{mean:.2f} ± {error:.2f}" for mean, error in costs),
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f}",
    ]


def toys(quick: bool, large: bool, minutes: float) -> list[Case]:
    sizes = (1000,) if quick else (10_000, 100_000) if large else (10_000,)
    return [
        Case(name, TOYS[name]().sample(n, generator(0, "data")), 0.02, minutes, (512, 2048), 20 * BLOCK)
        for n in sizes
        for name in ("8gaussians", "moons")
    ]


def images(folder: Path, minutes: float, quick: bool) -> Case:
    pixels = read_images(folder).pixels[: 500 if quick else 50_000]
    x = pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels
    return Case("Fashion-MNIST", x.flatten(1), 0.02, 0.1 if quick else minutes, (512, 2048), 4 * BLOCK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder of IDX files of images")
    parser.add_argument("--minutes", type=float, default=20.0, help="the most minutes for one data set")
    parser.add_argument("--only", choices=("toys", "images"), help="half of it, and the report to standard output")
    parser.add_argument("--large", action="store_true", help="toys of 100,000 rows too")
    parser.add_argument("--quick", action="store_true", help="few rows, and nothing written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = [] if options.only == "images" else toys(options.quick, options.large, options.minutes)
    if options.data and options.only != "toys":
        cases.append(images(options.data, options.minutes, options.quick))
    head = ("data", "rows", "seconds", "draws a row", "chi-square", "TV of hits (of even hits)")
    head += ("cost", "cost, exact of 512", "cost, exact of 2048", "cost, independent", "peak GiB")
    report = f"# Semidiscrete optimal transport\n\n{machine()}\n{table(head, map(row, cases))}\n{NOTE}"
    print(report)
    if not (options.quick or options.only):
        RESULTS.write_text(report)


NOTE = """Source N(0, I); cost is the mean squared distance of pairs, with its standard error, on the same source points
for every coupling, where |x1|^2 is replaced by its mean over the data, which is known. The ascent ends at a chi-square
below 0.02, or after its minutes. TV is that of 20 draws a row: half the sum of |hits / draws - 1 / N|, which sampling
alone makes what stands in brackets.
"""

if __name__ == "__main__":
    main()
