"""Every command does its work once, in the least that it may be; what each of them keeps to is in files of its own."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import flowgen_cli
import numpy as np
import pytest
import typer
from flowgen_cli import demo

TRAIN = ["train", "t.csv", "--label-column", "y", "--set", "labels=true", "--coupling", "independent", "--steps", 3]
SMALL = ["--batch-size", 16, "--set", "net.width=8", "--set", "net.depth=1", "--set", "pool.batches=1"]
RUN = "runs/t"
ONE = ("--pairs", 16, "--set", "reflow.steps=2", "--set", "reflow.tolerance=0")
CALLS = {
    "train": ([*TRAIN, *SMALL, "--out", "new"], "new/model.safetensors"),
    "info": (["info", RUN], None),
    "sample": (["sample", RUN, "--num", 5, "--steps", 2, "--out", "x.csv"], "x.csv"),
    "reflow": (["reflow", RUN, *ONE, "--steps", 2, "--out", "new"], "new/round.json"),
    "distill": (["distill", RUN, *ONE, "--train-steps", 2, "--out", "new"], "new/model.safetensors"),
    "train-classifier": (["train-classifier", RUN, "--steps", 2], f"{RUN}/noisy-classifier.safetensors"),
    "edit": (["edit", RUN, "gaps.csv", "--steps", 2, "--label", 1, "--out", "full.csv"], "full.csv"),
    "evaluate": (
        ["evaluate", RUN, "--num", 8, "--repeats", 2, "--steps", 1, "--neighbours", 2],
        f"{RUN}/plots/quality.png",
    ),
    "likelihood": (["likelihood", RUN, "--steps", 2, "--out", "rows.csv"], "rows.csv"),
    "couplings": (
        ["couplings", "moons", "--batches", 1, "--batch-size", 16, "--coupling", "exact", "--json", "c.json"],
        "c.json",
    ),
    "export": (["export", RUN, "--format", "torch-export", "--out", "v.pt2"], "v.pt2"),
    "demo": (["demo", "--out", "new"], "new/demo.png"),
}
BENCHMARKS = {"bench", "table2d", "speed"}
"""They are called in test_bench.py."""


def write_files() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 2))
    np.savetxt("t.csv", np.c_[rows, np.arange(60) % 2], delimiter=",", header="a,b,y", comments="")
    Path("gaps.csv").write_text("a,b\n0.5,\n")


def names(group: typer.core.TyperGroup) -> Iterator[str]:
    for name, command in group.commands.items():
        yield name
        yield from names(command) if hasattr(command, "commands") else ()


def test_every_command_is_called():
    assert set(names(typer.main.get_command(flowgen_cli.app))) == CALLS.keys() | BENCHMARKS


@pytest.mark.parametrize("name", CALLS)
def test_a_command_does_its_work(called, flowgen, monkeypatch, name):
    for constant, few in {"TRAINING": 3, "PAIRS": 16, "POINTS": 20}.items():
        monkeypatch.setattr(demo, constant, few)
    shutil.copytree(called(*TRAIN, *SMALL, files=write_files), ".", dirs_exist_ok=True)
    arguments, file = CALLS[name]
    code, out, err = flowgen(*arguments)
    assert code == 0, err
    assert out
    assert file is None or Path(file).stat().st_size
