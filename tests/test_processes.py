"""Real processes: started by a launcher they train as one, and none waits for one that has died."""

import os
import signal
import socket
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowgen import checkpoints
from flowgen.core import Failure, InputError, Pair, generator
from flowgen.model import Model
from flowgen.nn import MLP
from flowgen.objectives import FlowMatching
from flowgen.objectives.flow_maps import AlphaFlow, Annealed, MeanFlow
from flowgen.paths.bridge import BrownianBridge
from flowgen.times import Stratified
from flowgen.training.distributed import ALONE, processes
from flowgen.training.loop import State, fit
from flowgen.training.optim import CosineRate

pytestmark = pytest.mark.journey

SIZE = 24
CASES = {
    "plain": (FlowMatching(), {}),
    "accumulated": (FlowMatching(), {"accumulate": 3, "clip": 0.5}),
    "bridge, stratified": (
        FlowMatching(Stratified(), BrownianBridge(0.5)),
        {"accumulate": 2, "rate": CosineRate(0.01, 6, 2)},
    ),
    "flow map": (MeanFlow(), {"accumulate": 2}),
    "flow map, annealed": (Annealed(AlphaFlow(), 6), {}),
}
"""Objectives, and what `fit` is told beside."""


def whole(step):
    rng = generator(0, "pairs", step)
    x0, x1 = torch.randn(2, SIZE, 2, generator=rng, dtype=torch.float64)
    return Pair(x0, x1 + 2, torch.arange(SIZE) // (SIZE // 2))


def pairs(part, start=0):
    return (whole(step).take(part.rows(SIZE)) for step in count(start))


def fresh():
    return State(Model(MLP(2, 16, 2, two_times=True)).double(), ema=(0.05, 0.2))


def trained(team, objective, steps=6, state=None, **options):
    """The losses and all tensors of a state after some steps."""
    state = state or fresh()
    stream = pairs(team.part, state.step)
    losses = list(fit(state, stream, objective, steps, seed=0, processes=team, **options))
    return {"losses": torch.tensor(losses, dtype=torch.float64), **state.tensors()}


def assert_close(left, right):
    assert left.keys() == right.keys()
    for name, x in left.items():
        torch.testing.assert_close(x, right[name], rtol=1e-9, atol=1e-9)


# what a process does: this file, run as a script


def train(team, folder):
    """Every case; and one once more, interrupted and resumed at step 3 from a checkpoint."""
    made = {}
    for name, (objective, options) in CASES.items():
        made |= {f"{name}/{key}": x for key, x in trained(team, objective, **options).items()}
    first = trained(team, FlowMatching(), steps=3)
    if team.first:
        checkpoints.save(folder, 3, {key: x for key, x in first.items() if key != "losses"}, keep=1)
    team.barrier()
    state = fresh()
    state.restore(checkpoints.load(folder / "step-000000003"))
    second = trained(team, FlowMatching(), state=state)
    second["losses"] = torch.cat([first["losses"], second["losses"]])
    made |= {f"resumed/{key}": x for key, x in second.items()}
    made["gathered"] = team.gathered(torch.full((team.part.index + 1, 2), float(team.part.index)))
    made["interrupted"] = torch.tensor([team.any(False), team.any(team.first), team.any(not team.first)])
    save_file({key: x for key, x in made.items() if x is not None}, folder / f"{team.part.index}.safetensors")


def killed(team, folder):
    """The second process is killed in the middle."""
    state = fresh()
    for _ in fit(state, pairs(team.part), FlowMatching(), 10**9, seed=0, processes=team):
        if state.step == 5 and not team.first:
            os.kill(os.getpid(), signal.SIGKILL)


def silent(team, folder):
    """The second process stops to answer."""
    state = fresh()
    for _ in fit(state, pairs(team.part), FlowMatching(), 10**9, seed=0, processes=team):
        if state.step == 5 and not team.first:
            time.sleep(600)


def absent(team, folder):
    """Never called: the second process does not come."""


WORK = {"train": (train, 120), "killed": (killed, 120), "silent": (silent, 5), "absent": (absent, 2)}
"""Name to work, and the seconds that it waits for the other process."""

if __name__ == "__main__":
    work, patience = WORK[sys.argv[1]]
    try:
        with processes("cpu", timeout=patience) as joined:
            work(joined, Path(sys.argv[2]))
    except Failure as failure:
        sys.exit(f"Failure: {failure}")


# several processes


@pytest.fixture
def launch(tmp_path):
    """launch(name, rank): a process of two that does what is named."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []

    def start(name, rank):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        env = {**os.environ, **ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, __file__, name, str(tmp_path)]
        started.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_two_processes_of_torchrun_train_as_one(tmp_path):
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, "train", str(tmp_path)]
    subprocess.run([sys.executable, "-m", *command], check=True, timeout=120, capture_output=True)
    made = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    gathered = made[0].pop("gathered")
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(x, made[1][name]) for name, x in made[0].items())
    for name, (objective, options) in CASES.items():
        alone = trained(ALONE, objective, **{key: x for key, x in options.items() if key != "accumulate"})
        assert_close({key: made[0][f"{name}/{key}"] for key in alone}, alone)
        if name == "plain":
            assert all(torch.equal(made[0][f"resumed/{key}"], made[0][f"plain/{key}"]) for key in alone)
    assert gathered.tolist() == [[0, 0], [1, 1], [1, 1]]
    assert made[0]["interrupted"].tolist() == [False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["killed", "silent"])
def test_a_process_that_is_lost_stops_the_other(launch, name):
    first, _second = launch(name, 0), launch(name, 1)
    _, words = first.communicate(timeout=45)
    assert first.returncode == 1
    assert words.splitlines()[-1].startswith("Failure: another process has died or does not answer: ")


def test_a_process_that_never_comes_is_not_waited_for(launch):
    first = launch("absent", 0)
    _, words = first.communicate(timeout=45)
    assert first.returncode == 1
    assert words.splitlines()[-1].startswith("Failure: the processes cannot find each other: ")


# one process


@pytest.fixture
def environment(monkeypatch):
    """environment(RANK="0", ...): what a launcher would have set."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return lambda **names: [monkeypatch.setenv(name, text) for name, text in names.items()]


@pytest.mark.parametrize("launcher", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}])
def test_one_process_starts_nothing(environment, monkeypatch, launcher):
    monkeypatch.setitem(sys.modules, "accelerate.state", None)  # an import of it would fail
    environment(**launcher)
    with processes("cpu") as team:
        assert team == ALONE
        assert team.first
        assert not torch.distributed.is_initialized()


RIGHT = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


WRONG = {
    "WORLD_SIZE": ("", "two", "-1", "0", "1.0"),
    "RANK": ("", "one", "-1", "2", "1.0"),
    "LOCAL_RANK": ("", "one", "-1", "2"),
    "MASTER_ADDR": ("",),
    "MASTER_PORT": ("", "port", "-1", "65536"),
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in WRONG.items() for text in texts])
def test_an_environment_that_makes_no_sense_is_refused(environment, name, text):
    environment(**{**RIGHT, name: text})
    with pytest.raises(InputError, match=name), processes("cpu"):
        pass


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_an_environment_that_lacks_something_is_refused(environment, name):
    environment(**{other: text for other, text in RIGHT.items() if other != name})
    with pytest.raises(InputError, match=name), processes("cpu"):
        pass


@pytest.mark.parametrize(("device", "count"), [("mps", 0), ("cuda", 1), ("cuda", 0)])
def test_devices_that_several_processes_cannot_use_are_refused(environment, monkeypatch, device, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    environment(**RIGHT)
    with pytest.raises(InputError, match=device if device == "mps" else f"{count} CUDA devices"), processes(device):
        pass
