"""Diffusion and flow matching on digits, trained with one budget: quality against network evaluations, by sampler.

Trains a diffusion (VP, the noise as target) and a flow (the straight path, the velocity) of the same network, steps and
seeds by the command line, and samples both by everything that may be asked of them. The judge is that of digits.py.

    python benchmarks/diffusion.py [--runs FOLDER] [--seeds 0 1] [--write]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from digits import NUM, Judge

from flowgen import runs, sampling
from flowgen.bench.report import machine, table
from flowgen.config import sampling_by
from flowgen.core import InputError

RESULTS = Path(__file__).parent / "results" / "diffusion.md"
TRAININGS = {"diffusion": ("--path", "vp", "--target", "noise"), "flow": ()}
EVALUATIONS = (5, 10, 20, 50, 100)


class Way(NamedTuple):
    """A row: how which training is sampled, and the evaluations of a step."""

    training: str
    title: str
    solver: str
    each: int = 1
    grid: str | None = None


WAYS = (
    Way("diffusion", "DDPM", "ddpm"),
    Way("diffusion", "DDPM, large variance", "ddpm-large"),
    Way("diffusion", "reverse SDE", "sde"),
    Way("diffusion", "DDIM", "ddim"),
    Way("diffusion", "DDIM, log-SNR grid", "ddim", grid="log-snr"),
    Way("diffusion", "DPM-Solver++ 2M", "dpm++2m"),
    Way("diffusion", "DPM-Solver++ 3M", "dpm++3m"),
    Way("diffusion", "UniPC", "unipc"),
    Way("diffusion", "EDM's Heun", "edm", each=2),
    Way("diffusion", "Heun, probability flow", "heun", each=2),
    Way("flow", "Euler", "euler"),
    Way("flow", "Heun", "heun", each=2),
    Way("flow", "DPM-Solver++ 2M", "dpm++2m"),
)


def train(root: Path, seeds: list[int]) -> None:
    """The runs that are not there yet."""
    for name, options in TRAININGS.items():
        for seed in seeds:
            out = root / f"{name}-{seed}"
            if not (out / "model.safetensors").exists():
                command = ["train", "digits", *options, "--seed", str(seed), "--out", str(out), "--overwrite"]
                subprocess.run([sys.executable, "-m", "flowgen", *command], check=True)


def figures(folder: Path, way: Way, evaluations: int, judge: Judge, seed: int) -> dict[str, float]:
    """What NUM samples, a tenth of each digit, are worth."""
    trained, labels = runs.load(folder), torch.arange(NUM) % 10
    chosen, spacing = sampling_by(way.solver, trained.model.schedule, grid=way.grid, seed=seed)
    steps = max(1, round(evaluations / way.each))
    method = runs.sampler(trained.config, trained.model, trained.source, chosen, steps, seed, spacing)
    made = sampling.sample(trained.model, trained.source, NUM, method.grid, method.solver, seed=seed, cond=labels)
    return judge.figures(made.flatten(1), labels)


def measure(root: Path, seeds: list[int], judge: Judge) -> dict[str, list[list[str]]]:
    """For each figure a table: a row for each way, a column for each number of evaluations."""
    tables: dict[str, list[list[str]]] = {"Fréchet distance": [], "labels right": [], "coverage": []}
    for way in WAYS:
        found = {
            count: [figures(root / f"{way.training}-{seed}", way, count, judge, seed) for seed in seeds]
            for count in EVALUATIONS
        }
        for name, rows in tables.items():
            cells = [f"{fmean(each[name] for each in found[count]):.3f}" for count in EVALUATIONS]
            rows.append([way.training, way.title, *cells])
        print(tables["Fréchet distance"][-1], flush=True)
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="where the runs are, or are to be kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of training and of sampling")
    parser.add_argument("--write", action="store_true", help="keep the report in results/diffusion.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.runs or Path(folder)
        train(root, options.seeds)
        judge = Judge(root / f"flow-{options.seeds[0]}")
        tables = measure(root, options.seeds, judge)
    head = ["training", "sampler", *map(str, EVALUATIONS)]
    report = "\n\n".join(
        [
            "# Diffusion and flow matching",
            machine(),
            "A diffusion (`flowgen train digits --path vp`: target noise) and a flow (`flowgen train digits`) of the "
            "same network and 2500 steps, sampled with so many evaluations of the network. Means over "
            f"{len(options.seeds)} seeds, of training and of sampling, of {NUM} samples, a tenth of each digit. A "
            "solver of two evaluations a step takes half as many steps, and one evaluation less where its last step is "
            "to the expected data. Each walks the grid of its paper.",
            "Fréchet distances, in 20 principal components of pixels, over that of the digits that were trained on to "
            f"those held out ({len(judge.unseen)}): 1 is as near as real digits are.",
            table(head, tables["Fréchet distance"]),
            f"Labels that are as asked, by a support vector machine that has {judge.accuracy:.1%} of real ones right.",
            table(head, tables["labels right"]),
            "Coverage of the held-out digits, with 5 neighbours.",
            table(head, tables["coverage"]),
        ]
    )
    print(report)
    if options.write:
        RESULTS.write_text(report + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
