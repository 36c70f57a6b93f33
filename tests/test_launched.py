"""Commands that a launcher starts in several processes: one result, and an end with a word where one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.journey

QUICK = [
    *("train", "digits", "--net", "resmlp", "--batch-size", "32", "--preview-every", "0", "--seed", "3"),
    *("--set", "net.width=16", "--set", "net.depth=1", "--set", "net.dropout=0"),
    *("--set", "train.log_every=1", "--set", "train.checkpoint_every=10", "--set", "train.keep_checkpoints=9"),
    *("--set", "train.lr_schedule=constant", "--set", "train.warmup=0"),
]


@pytest.fixture
def launched(tmp_path):
    """launched(ARGUMENTS): torchrun, with two processes that work on a command; ended at the end."""
    started = []

    def start(*arguments):
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--", "flowgen"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (tmp_path / f"words-{len(started)}").open("w") as words:
            command = [sys.executable, *command, *map(str, arguments)]
            started.append(subprocess.Popen(command, cwd=tmp_path, env=env, stdout=words, stderr=words))
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait(60)


def worker(launcher, rank):
    """The process number of one that a launcher has started."""
    for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no process has the rank {rank}")


def lines(run):
    log = Path(run, "metrics.jsonl")
    return log.read_text().splitlines() if log.exists() else []


def losses(run):
    return [json.loads(line)["loss"] for line in lines(run)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_two_processes_train_and_draw_as_one_and_outlive_a_kill(launched, flowgen, tmp_path):
    running = launched(*QUICK, "--steps", 10**6, "--out", "two")
    deadline = time.monotonic() + 60
    while len(lines("two")) < 15:
        assert time.monotonic() < deadline
        assert running.poll() is None, (tmp_path / "words-0").read_text()
        time.sleep(0.05)
    os.kill(worker(running, 1), signal.SIGKILL)
    assert running.wait(60) == 1
    done = max(int(path.name.removeprefix("step-")) for path in Path("two/checkpoints").glob("step-*"))
    # a checkpoint of every tenth step; or all that was done, where the other process found out between two steps
    assert done > 0
    assert done % 10 == 0 or done == json.loads(lines("two")[-1])["step"]

    resumed = launched(*QUICK, "--steps", done + 10, "--out", "two", "--resume")
    assert flowgen(*QUICK, "--steps", done + 10, "--out", "one")[0] == 0
    assert resumed.wait(60) == 0, (tmp_path / "words-1").read_text()
    assert len(losses("two")) == done + 10
    assert losses("two") == pytest.approx(losses("one"), rel=1e-3)

    # each makes a chunk of 4096
    arguments = ("sample", "two", "--num", "5000", "--steps", "1", "--guidance", "2")
    drawn = launched(*arguments, "--out", "by-two.npz")
    assert flowgen(*arguments, "--out", "by-one.npz")[0] == 0
    assert drawn.wait(60) == 0, (tmp_path / "words-2").read_text()
    with np.load("by-one.npz") as one, np.load("by-two.npz") as two:
        assert all(np.array_equal(one[name], two[name]) for name in ("arr_0", "arr_1"))
    assert (tmp_path / "words-2").read_text().count("by-two.npz: 5000 samples in 1 step of heun") == 1
