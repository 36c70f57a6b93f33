"""The table of two-dimensional flows in words: CSV and Markdown."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from flowgen.bench.report import machine, spread, table
from flowgen.bench.table2d import METHODS, PROBLEMS, PUBLISHED, UNVERIFIED, Cell, Floor, Protocol, Result, has_meaning

__all__ = ["Results", "markdown", "rows", "write_csv"]

Results = Mapping[Cell, Result]


def write_csv(path: Path, results: Results) -> None:
    """Write one row a cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*Cell._fields, *Result._fields])
        writer.writerows([*cell, *result] for cell, result in results.items())


def rows(results: Results, problem: str) -> dict[tuple[str, str], list[Result]]:
    """Map (method, package) to the results of its seeds: the rows of a problem, the packages of a method together."""
    named = [(method, package) for method in METHODS["flowgen"] for package in METHODS if method in METHODS[package]]
    return {
        name: [
            result for cell, result in results.items() if (cell.problem, cell.method, cell.package) == (problem, *name)
        ]
        for name in named
    }


def markdown(results: Results, floors: Mapping[str, Floor], protocol: Protocol, seeds: Sequence[int], note: str) -> str:
    """Return the whole report: machine, protocol, and a table for each problem.

    Args:
        note: what the reader has to know first.
    """
    tables = "".join(_problem(results, problem, floors[problem], protocol) for problem in PROBLEMS)
    return f"# Flows in the plane\n\n{note}\n\n{machine()}\n{_protocol(protocol, seeds)}\n{READING}{tables}"


def _problem(results: Results, problem: str, floor: Floor, protocol: Protocol) -> str:
    head = (
        "method",
        "package",
        f"W2, {protocol.euler_steps} steps",
        "W2, 1 step",
        "NPE",
        "NPE, single draws",
        "published",
        "straightness",
        "training, CPU s",
        "seeds",
    )
    body = [_row(problem, *name, found) for name, found in rows(results, problem).items()]
    below = [["floor: data to data", "", spread(floor.truth)], ["source to data", "", spread(floor.source)]]
    body += [[*row, *[""] * (len(head) - len(row))] for row in below]
    return f"\n## {problem}\n\n{table(head, body)}"


def _row(problem: str, method: str, package: str, found: Sequence[Result]) -> list[str]:
    if not has_meaning(problem, method):
        return [method, package, *["-"] * 8]
    w2, one_step, npe, single, straightness, seconds = map(list, zip(*found, strict=True))
    return [
        method,
        package,
        spread(w2),
        spread(one_step),
        spread(npe),
        spread(single),
        _published(problem, method),
        spread(straightness),
        spread(seconds, 1),
        str(len(found)),
    ]


def _published(problem: str, method: str) -> str:
    if method in PUBLISHED[problem]:
        return f"{PUBLISHED[problem][method]:.3f}"
    quoted = UNVERIFIED.get(problem, {}).get(method)
    return "" if quoted is None else f"({quoted:.3f})"


READING = """## Reading the tables

The figures are mean ± standard deviation over seeds, and below each table over evaluation draws. The floor is W2
between two independent sets of true points: no flow can be told from the truth below it, and differences under the
floor mean nothing. All rows are measured on the same draws, whose luck the deviation over seeds does not hold. A dash:
FM needs a Gaussian source. A published figure in brackets is quoted, and unverified.
"""


def _protocol(protocol: Protocol, seeds: Sequence[int]) -> str:
    p = protocol
    return f"""## Protocol

- Problems: N is the standard normal; 8gaussians lie on a circle of radius 5, standard deviation 1; moons and s-curve
  have noise 0.05 before they are scaled. From moons to 8gaussians, the moons are scaled to mean 0 and standard
  deviation 7 of both coordinates together, and the 8gaussians lie on a circle of radius 12, standard deviation 1.5.
- Network: {p.depth} hidden layers of {p.width} units, SELU, time as a column; the same first weights in both packages.
- Training: {p.steps:,} steps of {p.batch} pairs, AdamW with learning rate {p.lr:g} and weight decay
  {p.weight_decay:g}, on one thread; the velocity is learned, and the last weights are measured, no average.
- Noise of sigma = {p.sigma:g}: FM ends on the data blurred by sigma, I-CFM and OT-CFM have it at all times, SB-CFM
  sigma sqrt(t (1 - t)). RF has none.
- Transport of OT-CFM and SB-CFM: torchcfm solves each batch whole and draws pairs from the plan, with replacement;
  flowgen solves 100 batches together, nearly exactly (multiscale), and uses each pair ten times.
- 1-RF is the flow of independent pairs. Each further round begins with the weights of the round before, and trains for
  as many steps on {p.reflow_pairs:,} pairs of it (50 Heun steps), at U-shaped times.
- W2: exact, {p.points:,} samples to {p.points:,} points of the data; mean of {p.draws} draws.
- NPE, the normalised path energy: |E - W2^2| / W2^2, with E the mean of int |v|^2 dt in {p.euler_steps} Euler steps,
  and W2 from source to data; E and W2^2 are means of {p.draws} draws of {p.energy_points:,} points. Of single draws of
  {p.points:,} points, it is the mean of |.|, which counts the luck of each draw as an error.
- Straightness: the mean of int |x1 - x0 - v|^2 dt on the same trajectories; 0 for straight lines, in squared units of
  the data.
- Training time: CPU seconds of training alone, also those of the thread that solves flowgen's transport meanwhile; of a
  reflow, its own round and the making of its pairs.
  Cells that were found on disk keep the time that they took.
- Seeds: {", ".join(map(str, seeds))}; of torchcfm's OT-CFM and SB-CFM as many of the first as the table says.
"""
