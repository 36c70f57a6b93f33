"""Whether `flowgen train digits` keeps its word: minutes on a CPU to labelled samples that look like digits.

Trains, samples, reflows and distills by the command line, from nothing, and measures beside held-out digits, in 20
principal components of the pixels, and by a support vector machine that was fitted on the real training digits.

    python benchmarks/digits.py [--write]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

import torch
from sklearn.decomposition import PCA
from sklearn.svm import SVC
from torch import Tensor

from flowgen import metrics, runs, sampling
from flowgen.bench.report import machine, table
from flowgen.config import SOLVERS, load_data
from flowgen.core import InputError

RESULTS = Path(__file__).parent / "results" / "digits.md"
NUM, COMPONENTS, NEIGHBOURS, SEEDS = 1000, 20, 5, (0, 1, 2)
WAYS = (
    ("runs/digits", "heun", 50),
    ("runs/digits", "heun", 20),
    ("runs/digits", "euler", 1),
    ("runs/digits-reflow1", "euler", 1),
    ("runs/digits-1step", "jump", 1),
)


def timed(folder: str, *arguments: str) -> float:
    """Seconds of one command, with the start of Python."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "flowgen", *arguments], cwd=folder, check=True)
    return time.perf_counter() - start


class Judge:
    """What samples are compared with: the digits that a run saw, those that it did not, and a classifier of them."""

    def __init__(self, folder: Path) -> None:
        config = runs.load(folder).config
        data = load_data(config.data, config.split, config.images, config.table)
        self.seen, self.unseen = data.distribution.values.flatten(1), data.unseen("digits").values.flatten(1)
        self.pca = PCA(COMPONENTS, svd_solver="full").fit(self.seen.double().numpy())
        self.svm = SVC(C=10).fit(self.seen.numpy(), data.distribution.labels.numpy())
        self.accuracy = self.svm.score(self.unseen.numpy(), data.held_out.labels.numpy())
        self.floor = self.frechet(self.seen)

    def frechet(self, x: Tensor) -> float:
        """The Fréchet distance of rows to the unseen digits, in principal components."""
        seen, unseen = (torch.from_numpy(self.pca.transform(z.double().numpy())) for z in (x, self.unseen))
        return metrics.frechet_distance(seen, unseen)

    def figures(self, x: Tensor, labels: Tensor) -> dict[str, float]:
        """What samples `(N, 64)` that were asked for with labels are worth."""
        manifold = metrics.manifold(x, self.unseen, NEIGHBOURS)
        return {
            "labels right": float((self.svm.predict(x.numpy()) == labels.numpy()).mean()),
            "Fréchet distance": self.frechet(x) / self.floor,
            "precision": manifold.precision,
            "recall": manifold.recall,
            "coverage": manifold.coverage,
            "copies": metrics.copies(x, self.seen),
        }


def measure(root: Path, judge: Judge) -> list[list[str]]:
    """A row for each way to sample, the mean over seeds with the range."""
    rows, labels = [], torch.arange(NUM) % 10
    for folder, solver, steps in WAYS:
        trained = runs.load(root / folder)
        found = []
        for seed in SEEDS:
            way = runs.sampler(trained.config, trained.model, trained.source, SOLVERS[solver], steps)
            made = sampling.sample(trained.model, trained.source, NUM, way.grid, way.solver, seed=seed, cond=labels)
            found.append(judge.figures(made.flatten(1), labels))
        cells = []
        for name in found[0]:
            values = [figures[name] for figures in found]
            cells.append(f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        rows.append([Path(folder).name, f"{steps} {solver}", *cells])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the report in results/digits.md")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as folder:
        seconds = {
            "`flowgen train digits`": timed(folder, "train", "digits"),
            "`flowgen sample`, 1000 in 20 Heun steps": timed(
                folder, "sample", "runs/digits", "--num", "1000", "--steps", "20", "--out", "samples.npz"
            ),
            "`flowgen reflow`": timed(folder, "reflow", "runs/digits"),
            "`flowgen distill`": timed(folder, "distill", "runs/digits"),
        }
        judge = Judge(Path(folder, "runs/digits"))
        rows = measure(Path(folder), judge)
    report = "\n\n".join(
        [
            "# Digits",
            machine(),
            table(["command", "seconds"], [[name, f"{value:.0f}"] for name, value in seconds.items()]),
            f"{len(judge.unseen)} held-out digits; a support vector machine of the other {len(judge.seen)} labels "
            f"{judge.accuracy:.1%} of them right. Fréchet distances, in {COMPONENTS} principal components of pixels, "
            "are over that of the digits that were trained on to those held out. Means of three seeds of 1000 samples, "
            "a hundred of each digit, with their range; precision, recall and coverage with 5 neighbours.",
            table(["run", "steps", *judge.figures(judge.seen[:50], torch.zeros(50))], rows),
        ]
    )
    print(report)
    if write:
        RESULTS.write_text(report + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
