"""How many threads compute: a function of the net and the batch, recorded, kept and overridden."""

import pytest
import torch
from torch import nn

from flowgen import runs
from flowgen.config import make_config
from flowgen.nn import MLP, ResMLP, UNet
from flowgen.runs import Run
from flowgen.threads import FED, _multiply_adds, computing, fitting

SMALL = {"data": "moons", "coupling": "independent", "net": {"width": 8, "depth": 2}}


def create(folder, threads=None, steps=6, **train):
    config = make_config({**SMALL, "threads": threads, "train": {"steps": steps, "batch_size": 16, **train}})
    return Run.create(folder, config, "flowgen train")


def trained(run):
    """The run, and on how many threads it was trained."""
    return run, {torch.get_num_threads() for _ in runs.train(run)}


def weights(run):
    return runs.load(run.folder).model.state_dict()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# the rule


def test_multiply_adds_of_a_perceptron_are_its_weights():
    net = MLP(3, width=5, depth=2)
    weights = [layer.weight.numel() for layer in net.modules() if isinstance(layer, nn.Linear)]
    assert _multiply_adds(net, (3,)) == (sum(weights), 3)


def test_weights_of_a_convolution_count_at_each_place():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, stride=2, padding=1))

        def forward(self, x, t, s, cond=None):
            return self.layers(x)

    assert _multiply_adds(Net(), (3, 6, 6)) == (8 * 3 * 9 * 36 + 3 * 8 * 9 * 9, 2)


@pytest.mark.parametrize(
    ("net", "shape", "rows", "threads"),
    [
        (MLP(2), (2,), 512, 1),
        (MLP(2), (2,), 1, 1),
        (MLP(2, width=512), (2,), 512, 8),
        (ResMLP((8,), width=256), (8,), 512, 8),
        (UNet((3, 32, 32)), (3, 32, 32), 64, 8),
    ],
    ids=["small", "one row", "wide", "residual", "images"],
)
def test_large_work_takes_all_threads_and_small_work_one(net, shape, rows, threads):
    with computing(8):
        assert fitting(net, shape, rows) == threads
    with computing(1):
        assert fitting(net, shape, rows) == 1


def test_each_thread_is_fed():
    net, per_row = MLP(2, width=64, depth=1), (11 * 64 + 64 * 2) / 2
    with computing(64):
        for threads in (1, 2, 5):
            rows = -int(-threads * FED // per_row)
            assert (fitting(net, (2,), rows), fitting(net, (2,), rows - 1)) == (threads, max(1, threads - 1))


def test_a_net_is_left_as_it_was():
    net = ResMLP((4,), width=8, dropout=0.5)
    frozen = next(part for part in net.modules() if isinstance(part, nn.Linear)).eval()
    modes, state = {part: part.training for part in net.modules()}, torch.get_rng_state()
    fitting(net, (4,), 10)
    assert {part: part.training for part in net.modules()} == modes
    assert not frozen.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(part._forward_hooks for part in net.modules())


def test_threads_are_as_before_when_work_is_over():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), computing(3):
        torch.zeros(2) @ torch.zeros(3)
    assert torch.get_num_threads() == before


# runs


def test_the_rule_is_recorded(tmp_path):
    with computing(4):
        wide = make_config({**SMALL, "net": {"width": 512}, "train": {"batch_size": 512}})
        assert Run.create(tmp_path / "wide", wide, "flowgen train").config.threads == 4
        assert create(tmp_path / "small").config.threads == 1
        parts = make_config({**SMALL, "net": {"width": 512}, "train": {"batch_size": 512, "accumulate": 16}})
        assert Run.create(tmp_path / "parts", parts, "flowgen train").config.threads == 1
    assert Run.open(tmp_path / "wide").config.threads == runs.Run.open(tmp_path / "wide").config.threads == 4


def test_a_run_is_trained_on_its_threads(tmp_path):
    before = torch.get_num_threads()
    run, used = trained(create(tmp_path / "r", threads=2))
    assert used == {2}
    assert runs.load(run.folder).threads == 2
    assert torch.get_num_threads() == before


def test_a_resumed_run_keeps_its_threads_and_its_bits(tmp_path):
    whole, _ = trained(create(tmp_path / "whole", threads=2))
    trained(create(tmp_path / "parts", threads=2, steps=3))
    with computing(3):
        parts, used = trained(Run.open(tmp_path / "parts").extended({"train": {"steps": 6}}))
    assert used == {2}
    assert equal(weights(whole), weights(parts))


def test_a_run_that_recorded_no_threads_follows_the_rule(tmp_path):
    run, _ = trained(create(tmp_path / "r"))
    text = (run.folder / "config.toml").read_text()
    assert "threads = 1\n" in text
    (run.folder / "config.toml").write_text(text.replace("threads = 1\n", ""))
    with computing(2):
        assert runs.load(run.folder).threads == 1
        assert trained(Run.open(run.folder).extended({"train": {"steps": 8}}))[1] == {1}


@pytest.mark.costly
def test_commands_take_threads(flowgen, tmp_path):
    before = torch.get_num_threads()
    arguments = ("--coupling", "independent", "--steps", 4, "--batch-size", 16, "--set", "net.width=8")
    assert flowgen("train", "moons", "--out", "r", *arguments, "--threads", 2)[0] == 0
    assert Run.open(tmp_path / "r").config.threads == 2
    assert flowgen("sample", "r", "--num", 64, "--out", "one.npy", "--threads", 1)[0] == 0
    assert flowgen("sample", "r", "--num", 64, "--out", "own.npy")[0] == 0
    assert flowgen("train", "--out", "r", "--resume", "--steps", 5)[0] == 0
    assert Run.open(tmp_path / "r").config.threads == 2
    assert flowgen("train", "--out", "r", "--resume", "--steps", 6, "--threads", 1)[0] == 0
    assert Run.open(tmp_path / "r").config.threads == 1
    assert torch.get_num_threads() == before
    code, _, err = flowgen("sample", "r", "--threads", 0)
    assert code == 2
    assert "--threads" in err


@pytest.mark.costly
def test_threads_of_a_finished_run_can_be_changed(flowgen, tmp_path):
    run, _ = trained(create(tmp_path / "r", threads=1))
    assert flowgen("train", "--out", "r", "--resume", "--threads", 2)[0] == 0
    assert runs.load(run.folder).threads == 2


@pytest.mark.costly
def test_settings_taken_from_a_run_leave_out_its_threads(flowgen, tmp_path):
    create(tmp_path / "r", threads=3)
    (tmp_path / "own.toml").write_text('data = "moons"\nthreads = 2\n[train]\nsteps = 1\nbatch_size = 16\n')
    assert flowgen("train", "--config", "own.toml", "--coupling", "independent", "--out", "own")[0] == 0
    assert Run.open(tmp_path / "own").config.threads == 2
    assert flowgen("train", "--config", "r/config.toml", "--steps", 1, "--out", "copy")[0] == 0
    assert Run.open(tmp_path / "copy").config.threads == 1


@pytest.mark.costly
def test_a_reflow_has_the_threads_of_its_parent(tmp_path):
    run, _ = trained(create(tmp_path / "r", threads=2))
    config = runs.reflow_config(run.folder, {"reflow.pairs": 64, "train.steps": 2})
    straight = Run.create(tmp_path / "s", config, "flowgen reflow")
    assert straight.config.threads == 2
    assert {torch.get_num_threads() for _ in runs.make_pairs(straight)} >= {2}


def test_a_student_of_another_batch_has_threads_of_its_own(tmp_path):
    run, _ = trained(create(tmp_path / "r", threads=3))
    for settings, threads in (({}, 3), ({"train.batch_size": 32}, None), ({"net.width": 9, "threads": 2}, 2)):
        assert runs.reflow_config(run.folder, settings).threads == threads
        assert runs.distill_config(run.folder, "endpoint", 1, settings).threads == threads
