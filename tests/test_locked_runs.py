"""Two processes on one run folder: the second is refused, and a process that has died holds nothing."""

import os
import signal
import subprocess
import sys

import pytest

from flowgen import runs
from flowgen.config import make_config
from flowgen.core import InputError
from flowgen.runs import Run, reflow_config
from flowgen.runs.lock import held

pytestmark = pytest.mark.journey

SMALL = {"data": "moons", "net": {"width": 8, "depth": 2}, "pool": {"batches": 2}}
HOLD = """
import sys, time
from pathlib import Path
from flowgen.runs.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def create(folder, steps=10_000):
    return Run.create(folder, make_config({**SMALL, "train": {"steps": steps, "batch_size": 16}}), "flowgen train")


@pytest.fixture
def run(tmp_path):
    """A run with a checkpoint."""
    run = create(tmp_path / "r", 2)
    for _ in runs.train(run):
        pass
    return run


def other(folder):
    """Another process that works on a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_of_two_is_refused_until_the_first_has_died(flowgen, run):
    first, before = other(run.folder), (run.folder / "config.toml").read_text()
    try:
        for command in (["train", "--resume", "--steps", 4], ["train", "moons", "--overwrite", "--steps", 4]):
            code, out, err = flowgen(*command, "--out", run.folder)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert f"{run.folder} is being written by another process" in err
        assert (run.folder / "config.toml").read_text() == before
        assert flowgen("sample", run.folder, "--num", 10)[0] == 0  # reading is free
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert flowgen("train", "--resume", "--steps", 4, "--out", run.folder)[0] == 0
    assert not (run.folder / ".lock").exists()


def test_a_training_holds_its_run_as_long_as_it_goes_on(tmp_path):
    run = create(tmp_path / "r")
    steps = runs.train(run)
    next(steps)
    for work in (lambda: next(runs.train(run)), lambda: run.extended({}), lambda: held(run.folder).__enter__()):
        with pytest.raises(InputError, match="is being written by another process"):
            work()
    steps.close()
    assert next(runs.train(run)).step == 2


def test_pairs_are_made_by_one_at_a_time(run, tmp_path):
    made = Run.create(tmp_path / "reflow", reflow_config(run.folder, {"reflow.pairs": 8}), "flowgen reflow")
    with held(made.folder), pytest.raises(InputError, match="is being written by another process"):
        next(runs.make_pairs(made))
    pairs = runs.make_pairs(made)
    next(pairs)
    with pytest.raises(InputError, match="is being written by another process"):
        next(runs.train(made))
    assert [*pairs][-1] == 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_does_not_hold_what_its_parent_held(tmp_path):
    """A worker that outlives its process would lock the run."""
    wait, end = os.pipe()
    with held(tmp_path):
        child = os.fork()
        if child == 0:
            os.close(end)
            os.read(wait, 1)
            os._exit(0)
    with held(tmp_path):
        pass
    os.close(end)
    os.waitpid(child, 0)
