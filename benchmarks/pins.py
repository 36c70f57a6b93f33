"""Compare what two revisions compute: small runs through the commands, tensor by tensor.

    python benchmarks/pins.py BASE [HEAD]

BASE and HEAD are revisions of git; without HEAD the working tree is compared. Each trains a flow, a diffusion, a
reflow, two distillations, images with labels and a table on one thread, and draws from them. A tensor is equal to the
bit, or its difference is printed, relative to its largest value. The exit code is 0 where all are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
SMALL = "--threads 1 --batch-size 64 --set net.width=32 --set net.depth=2 --set pool.batches=4"
LABELS = "--label-column kind"
IMAGES = "--threads 1 --batch-size 8 --size tiny --preview-every 0"
COMMANDS = {
    "flow": [
        f"train moons {SMALL} --steps 60 --out flow",
        "sample flow --num 64 --steps 6 --out flow.npz",
        "sample flow --num 64 --solver dopri5 --out flow-dopri5.npz",
        "likelihood flow --num 32 --steps 8 --out likelihood.csv",
        "reflow flow --pairs 512 --steps 40 --out reflow",
        "sample reflow --num 64 --steps 1 --solver euler --out reflow.npz",
        "distill reflow --pairs 512 --train-steps 40 --out endpoint",
        "sample endpoint --num 64 --out endpoint.npz",
        "distill flow --method meanflow --train-steps 30 --out meanflow",
        "sample meanflow --num 64 --out meanflow.npz",
    ],
    "diffusion": [
        f"train 8gaussians --path vp --weight min-snr {SMALL} --steps 60 --out diffusion",
        "sample diffusion --num 64 --solver ddim --noise 0.5 --steps 8 --out diffusion-ddim.npz",
        "sample diffusion --num 64 --solver dpm++2m --steps 8 --out diffusion-dpm.npz",
        "sample diffusion --num 64 --solver sde --steps 8 --out diffusion-sde.npz",
        "sample diffusion --num 64 --path linear --steps 8 --out diffusion-linear.npz",
        f"train moons --path ddpm --target v {SMALL} --steps 40 --out ddpm",
        "sample ddpm --num 64 --solver ddpm --steps 20 --out ddpm.npz",
    ],
    "couplings": [
        f"train pinwheel --coupling {name} {SMALL} --steps 30 --out {name}"
        for name in ("sinkhorn", "unbalanced", "partial", "bridge")
    ],
    "table": [
        f"train table.csv {LABELS} {SMALL} --steps 60 --out table",
        "sample table --num 64 --steps 6 --label a --guidance 2 --out table.npz",
        f"train table.csv {LABELS} --objective shortcut {SMALL} --steps 40 --out shortcut",
        "sample shortcut --num 64 --label b --out shortcut.npz",
        f"train table.csv --coupling semidiscrete --set coupling.draws_per_row=9 {SMALL} {LABELS} --steps 9 --out all",
    ],
    "images": [
        f"train pictures {IMAGES} --flip --steps 12 --out images",
        "sample images --num 8 --steps 3 --label dark --guidance 1.5 --out images.npz",
        f"train pictures --net dit --path cosine --target data {IMAGES} --set net.patch=4 --steps 8 --out dit",
        "sample dit --num 8 --steps 3 --out dit.npz",
        "edit images pictures/dark/0.png --strength 0.6 --steps 4 --out edited.png",
    ],
}
"""The commands of each pin; a pin's commands follow from one another."""

LOOP = """
import json, sys
from flowgen_cli import main
for sys.argv in json.loads(sys.argv[1]):
    try:
        main()
    except SystemExit as done:
        if done.code:
            raise
"""
"""A program that runs commands one after another, so that torch is imported once."""


def write_data(folder: Path) -> None:
    """Write the table and the images that the commands read."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(200, 3)) * [1, 5, 0.2] + [0, 10, -1]
    lines = [",".join(f"{value:.6f}" for value in row) + "," + "ab"[i % 2] for i, row in enumerate(rows)]
    (folder / "table.csv").write_text("\n".join(["x,y,z,kind", *lines]) + "\n")
    for i in range(40):
        place = folder / "pictures" / ("dark", "light")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 128, (16, 16, 3), dtype=np.uint8) + 127 * (i % 2)).save(place / f"{i}.png")


def run_pin(tree: Path, pin: str, folder: Path) -> None:
    """Run a pin's commands with the code of a tree, in a folder of their own."""
    folder.mkdir(parents=True)
    write_data(folder)
    packages = folder / ".packages"
    packages.mkdir()
    (packages / "flowgen").symlink_to(tree / "flowgen")
    (packages / "flowgen_cli").symlink_to(tree / "cli")
    environment = os.environ | {"PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"}
    commands = [["flowgen", *command.split()] for command in COMMANDS[pin]]
    done = subprocess.run(
        [sys.executable, "-c", LOOP, json.dumps(commands)], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{tree.name}: {pin}: {done.stderr.strip().splitlines()[-1]}")


def tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield all arrays that the commands wrote: weights in the order of their names, and samples."""
    for file in sorted(folder.rglob("*")):
        place = str(file.relative_to(folder))
        if file.name == "model.safetensors":
            arrays = load_file(file)
        elif file.suffix == ".npz" and file.parent == folder:
            arrays = dict(np.load(file, allow_pickle=False))
        elif file.name == "edited.png":
            arrays = {"": np.asarray(Image.open(file))}
        elif file.name == "likelihood.csv":
            arrays = {"": np.loadtxt(file, skiprows=1, dtype=np.float64)}
        else:
            continue
        for number, name in enumerate(sorted(arrays)):
            yield f"{place} {number}", arrays[name]


def compare(base: Path, head: Path) -> list[str]:
    """Return a line for each tensor that differs."""
    ours, theirs = dict(tensors(head)), dict(tensors(base))
    missing = [f"{name}: in one of both only" for name in sorted(ours.keys() ^ theirs.keys())]
    return missing + [line for name in ours if name in theirs and (line := difference(name, ours[name], theirs[name]))]


def difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> str | None:
    """Return None where both are equal to the bit, else a line that says how far they are apart."""
    if ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes():
        return None
    if ours.shape != theirs.shape or ours.dtype.kind not in "fiu":
        return f"{name}: {ours.dtype} {ours.shape}, was {theirs.dtype} {theirs.shape}"
    apart = np.abs(ours.astype(float) - theirs).max() / max(np.abs(theirs.astype(float)).max(), 1e-300)
    return f"{name}: {apart:.1e} relative"


def checkout(revision: str | None, place: Path) -> Path:
    """Return a folder with the code of a revision; the working tree without one."""
    if revision is None:
        return ROOT
    place.mkdir()
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(place)], input=archive, check=True)
    return place


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare what two revisions compute, tensor by tensor.")
    parser.add_argument("base")
    parser.add_argument("head", nargs="?")
    parser.add_argument("--pins", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--jobs", type=int, default=2, help="commands that run at a time")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        trees = {
            "base": checkout(chosen.base, folder / "base-code"),
            "head": checkout(chosen.head, folder / "head-code"),
        }
        cases = [(tree, pin, folder / side / pin) for pin in chosen.pins for side, tree in trees.items()]
        with ThreadPoolExecutor(chosen.jobs) as pool:
            list(pool.map(lambda case: run_pin(*case), cases))
        apart = compare(folder / "base", folder / "head")
        count = sum(1 for _ in tensors(folder / "head"))
    print("\n".join(apart) or f"{count} tensors are equal to the bit (torch {torch.__version__})")
    return int(bool(apart))


if __name__ == "__main__":
    sys.exit(main())
