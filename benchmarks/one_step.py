"""From 100 steps to 1 in the plane: what every way to a one-step model costs, and what it is worth.

Each way is a chain of commands from nothing, with the same network (4 layers of 128), and its samples are compared with
those of plain flow matching in 100 Heun steps, by the energy distance of 10,000 to as many true points.

    python benchmarks/one_step.py [--seeds 0 1 2] [--folder KEPT] [--write]

What is in the folder already is not trained and measured again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean

from torch import Tensor

from flowgen import metrics, runs, sampling
from flowgen.bench.report import machine, table
from flowgen.core import InputError, generator
from flowgen.data import TOYS
from flowgen.samplers import ode

RESULTS = Path(__file__).parent / "results" / "one-step.md"
DATA = ("8gaussians", "moons", "checkerboard", "pinwheel")
NUM = 10_000
NET = ("--set", "net.width=128", "--set", "net.depth=4", "--set", "device=cpu")
FLOW, REFLOW, STUDENT = ("--steps", "6000"), ("--steps", "3000", "--pairs", "30000"), ("--train-steps", "3000")
PAIRS = ("--pairs", "30000")

NOTE = f"""1000 x the energy distance of {NUM:,} samples to as many true points, the mean over {{seeds}} seeds of
training. In brackets how often that of 100 Heun steps it is, of the better of the two flows of
the seed, in the mean and at most. Two sets of true points have what is in the last row. The network is a perceptron of
4 layers of 128; flows and flow maps from nothing train for 6,000 steps of 512, reflows and students for 3,000, on
30,000 pairs where they learn from pairs. Seconds are of one core, in all commands of a way, the start of Python
included, on a machine that did other work besides. *Plain* is with independent pairs."""

WAYS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "plain flow": (None, ("train", "--coupling", "independent", *FLOW)),
    "flow": (None, ("train", *FLOW)),
    "plain flow, reflow": ("plain flow", ("reflow", *REFLOW)),
    "plain flow, reflow, endpoint": ("plain flow, reflow", ("distill", *STUDENT, *PAIRS)),
    "plain flow, endpoint": ("plain flow", ("distill", *STUDENT, *PAIRS)),
    "flow, reflow": ("flow", ("reflow", *REFLOW)),
    "flow, endpoint": ("flow", ("distill", *STUDENT, *PAIRS)),
    "flow, progressive": ("flow", ("distill", "--method", "progressive", *STUDENT)),
    "flow, meanflow": ("flow", ("distill", "--method", "meanflow", *STUDENT)),
    "flow, shortcut": ("flow", ("distill", "--method", "shortcut", *STUDENT)),
    "flow, alpha-flow": ("flow", ("distill", "--method", "alpha-flow", *STUDENT)),
    "flow, consistency": ("flow", ("distill", "--method", "consistency", *STUDENT)),
    "meanflow": (None, ("train", "--objective", "meanflow", *FLOW)),
    "shortcut": (None, ("train", "--objective", "shortcut", *FLOW)),
    "alpha-flow": (None, ("train", "--objective", "alpha-flow", *FLOW)),
    "consistency": (None, ("train", "--objective", "consistency", *FLOW)),
}
"""The run that a way begins with, and the command that makes its own."""
TEACHERS = ("plain flow", "flow")


def place(root: Path, name: str, data: str, seed: int) -> Path:
    return root / f"{data}-{seed}-{name.replace(', ', '-').replace(' ', '-')}"


def made(root: Path, name: str, data: str, seed: int) -> Path:
    """The run of a way, trained if it is not there; beside it the CPU seconds of its command."""
    folder, (parent, command) = place(root, name, data, seed), WAYS[name]
    spent = folder.with_suffix(".json")
    if spent.exists():
        return folder
    subject = data if parent is None else str(made(root, parent, data, seed))
    options = (*NET, "--seed", str(seed)) if parent is None else ("--seed", str(seed))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    words = [command[0], subject, *command[1:], *options, "--out", str(folder), "--overwrite"]
    subprocess.run([sys.executable, "-m", "flowgen", *words], check=True, capture_output=True)
    spent.write_text(json.dumps(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before))
    return folder


def seconds(root: Path, name: str, data: str, seed: int) -> float:
    """CPU seconds of all commands from nothing to a way's run."""
    own = json.loads(place(root, name, data, seed).with_suffix(".json").read_text())
    parent = WAYS[name][0]
    return own + (seconds(root, parent, data, seed) if parent else 0)


def truth(data: str, seed: int, of: str = "truth") -> Tensor:
    return TOYS[data]().sample(NUM, generator(seed, of))


def distance(root: Path, name: str, data: str, seed: int, many: bool = False) -> float:
    """The energy distance to the data of samples by one evaluation, or by 100 Heun steps; measured once."""
    folder = made(root, name, data, seed)
    kept = folder.with_suffix(".many" if many else ".one")
    if not kept.exists():
        trained = runs.load(folder, "cpu")
        solver = ode.heun if many else None if trained.config.objective.maps else ode.euler
        way = runs.sampler(trained.config, trained.model, trained.source, solver, 100 if many else 1)
        x = sampling.sample(trained.model, trained.source, NUM, way.grid, way.solver, seed=1000 + seed)
        kept.write_text(json.dumps(metrics.energy_distance(x, truth(data, seed))))
    return json.loads(kept.read_text())


def measure(root: Path, seeds: list[int]) -> list[list[str]]:
    """A row for each way: seconds, then for each data the distance, and how often that of the best 100 steps it is."""
    best: dict[tuple[str, int], float] = {}
    rows = []
    for name in TEACHERS:
        cells = []
        for data in DATA:
            found = [distance(root, name, data, seed, many=True) for seed in seeds]
            for seed, value in zip(seeds, found, strict=True):
                best[data, seed] = min(value, best.get((data, seed), value))
            cells.append(f"{1000 * fmean(found):.1f}")
        rows.append([f"{name}, 100 Heun steps", "200", "", *cells])
    for name in WAYS:
        cells, spent = [], []
        for data in DATA:
            found = [distance(root, name, data, seed) for seed in seeds]
            ratios = [value / best[data, seed] for seed, value in zip(seeds, found, strict=True)]
            spent += [seconds(root, name, data, seed) for seed in seeds]
            cells.append(f"{1000 * fmean(found):.1f} ({fmean(ratios):.2f}, at most {max(ratios):.2f})")
        rows.append([name, "1", f"{fmean(spent):.0f}", *cells])
        print(*rows[-1], sep="  ", flush=True)
    floors = [fmean(metrics.energy_distance(truth(d, i), truth(d, i, "other")) for i in seeds) for d in DATA]
    return [*rows, ["true points", "", "", *(f"{1000 * floor:.1f}" for floor in floors)]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training")
    parser.add_argument("--folder", type=Path, help="where runs are kept")
    parser.add_argument("--only", nargs="+", choices=DATA, help="train and measure these data alone, and write nothing")
    parser.add_argument("--write", action="store_true", help="keep the report in results/one-step.md")
    given = parser.parse_args()
    root = given.folder or Path(tempfile.mkdtemp())
    root.mkdir(parents=True, exist_ok=True)
    if given.only:
        for data in given.only:
            for seed in given.seeds:
                for name in WAYS:
                    distance(root, name, data, seed)
        return
    rows = measure(root, given.seeds)
    report = "\n\n".join(
        [
            "# From 100 steps to 1, in the plane",
            machine(),
            NOTE.format(seeds=len(given.seeds)),
            table(["way", "evaluations", "CPU seconds", *DATA], rows),
        ]
    )
    print(report)
    if given.write:
        RESULTS.write_text(report + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
