"""A run can be left at any time and taken up again, and never loses what it had."""

import errno
import json
import math
import shutil
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flowgen import Diverged, InputError, checkpoints, euler, grids, heun, runs, sampling
from flowgen.config import make_config
from flowgen.data import streams
from flowgen.metrics import geometry
from flowgen.objectives import FlowMatching
from flowgen.runs import Run, folder, log
from flowgen.runs.pairs import stored_pairs

pytestmark = pytest.mark.journey

SMALL = {"batch_size": 32, "log_every": 4, "checkpoint_every": 10}


def config(steps=40, **tree):
    return make_config(
        {
            "data": "moons",
            "net": {"width": 16, "depth": 2},
            "train": {"steps": steps, **SMALL},
            "pool": {"batches": 3, "reuse": 2},
            **tree,
        }
    )


def create(folder, steps=40, **tree):
    return Run.create(folder, config(steps, **tree), "flowgen train moons")


def finish(run):
    for _ in runs.train(run):
        pass
    return run


def leave(run, step):
    """Trains up to `step`, and closes the loop there."""
    steps = runs.train(run)
    for progress in steps:
        if progress.step == step:
            break
    steps.close()
    return run


def everything(run):
    """All that a run has learnt: its whole state, its weights, its log."""
    state = load_file(checkpoints.find(run.checkpoints)[-1] / "state.safetensors")
    return {**state, **{f"weights {k}": x for k, x in load_file(run.weights).items()}}, run.metrics.read_text()


def assert_same(run, other):
    (tensors, log), (others, other_log) = everything(run), everything(other)
    assert log == other_log
    assert tensors.keys() == others.keys()
    assert [name for name, x in tensors.items() if not torch.equal(x, others[name])] == []


@pytest.fixture
def teacher(tmp_path):
    return finish(create(tmp_path / "teacher"))


VARIANTS = {
    "independent": {"coupling": "independent"},
    "exact": {"coupling": "exact"},
    "multiscale": {"coupling": "multiscale", "pool": {"batches": 36, "reuse": 1}},
    "sinkhorn": {"coupling": {"name": "sinkhorn", "epsilon": 0.5}},
    "unbalanced": {"coupling": "unbalanced"},
    "partial": {"coupling": {"name": "partial", "group": 10}},
    "bridge": {"coupling": {"name": "bridge", "sigma": 0.5}},
    "semidiscrete": {"coupling": {"name": "semidiscrete", "points": 50, "tolerance": 0.1}},
    "vp": {"schedule": "vp", "times": "stratified"},
    "data-to-data": {"source": "8gaussians"},
}


@pytest.mark.costly
@pytest.mark.parametrize("tree", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("step", [1, 10, 17])
def test_a_run_that_was_left_goes_on_bit_for_bit(tmp_path, tree, step):
    whole = finish(create(tmp_path / "whole", **tree))
    parts = finish(leave(create(tmp_path / "parts", **tree), step))
    assert_same(whole, parts)


def test_a_run_can_be_made_longer_bit_for_bit(tmp_path):
    longer = finish(create(tmp_path / "run", steps=20)).extended({"train": {"steps": 40}})
    assert_same(finish(longer), finish(create(tmp_path / "whole")))


def test_lines_after_the_last_checkpoint_are_rewritten(tmp_path):
    """A kill leaves log lines that no checkpoint has, and the last of them may be cut short."""
    run = create(tmp_path / "run")
    steps = runs.train(run)
    while next(steps).step < 19:
        pass
    killed = shutil.copytree(run.folder, tmp_path / "killed")
    steps.close()
    with (killed / "metrics.jsonl").open("a") as log:
        log.write('{"step": 20, "lo')
    (killed / "checkpoints" / ".building-x").mkdir()
    resumed = finish(Run.open(killed))
    assert_same(resumed, finish(run))


def test_a_finished_run_stays_as_it_is(teacher):
    before = everything(teacher)[1], checkpoints.file_hash(teacher.weights)
    finish(teacher)
    assert before == (everything(teacher)[1], checkpoints.file_hash(teacher.weights))


def test_the_same_seed_is_the_same_run_and_another_is_not(tmp_path):
    one, two = finish(create(tmp_path / "1")), finish(create(tmp_path / "2"))
    assert_same(one, two)
    other = finish(create(tmp_path / "3", seed=1))
    assert other.metrics.read_text() != one.metrics.read_text()


def test_nothing_touches_the_global_random_states(tmp_path):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    trained = runs.load(finish(create(tmp_path / "run")).folder)
    sampling.sample(trained.model, trained.source, 10, grids.uniform(2), euler)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002


def test_the_log_holds_means_since_the_line_before(tmp_path):
    run = create(tmp_path / "run")
    losses = [progress.loss for progress in runs.train(run)]
    lines = run.history()
    assert [line["step"] for line in lines] == list(range(4, 41, 4))
    for line in lines:
        assert line["loss"] == pytest.approx(np.mean(losses[line["step"] - 4 : line["step"]]))


def test_only_the_newest_checkpoints_are_kept(teacher):
    assert [c.name for c in checkpoints.find(teacher.checkpoints)] == ["step-000000030", "step-000000040"]


@pytest.mark.parametrize("damage", ["flip", "cut", "no digest", "no tensors"])
def test_after_a_damaged_checkpoint_the_one_before_resumes(tmp_path, damage):
    whole = finish(create(tmp_path / "whole", steps=35))
    run = leave(create(tmp_path / "run", steps=35), 25)
    before, newest = checkpoints.find(run.checkpoints)
    state, digest = newest / "state.safetensors", newest / "state.json"
    blob = bytearray(state.read_bytes())
    if damage == "flip":
        blob[-5] ^= 1
        state.write_bytes(blob)
    elif damage == "cut":
        state.write_bytes(blob[: len(blob) // 2])
    else:
        (digest if damage == "no digest" else state).unlink()
    with pytest.raises(InputError, match=f"{newest.name} is damaged.*remove that folder to go on from {before.name}"):
        finish(run)
    shutil.rmtree(newest)
    assert_same(finish(run), whole)


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    whole = finish(create(tmp_path / "whole"))
    run = leave(create(tmp_path / "run"), 10)
    write = checkpoints.save_file

    def full(tensors, path, **options):
        write(tensors, path, **options)
        path.write_bytes(path.read_bytes()[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        finish(run)
    monkeypatch.undo()
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000000010"]
    assert runs.load(run.folder).step == 10
    assert_same(finish(run), whole)


def test_a_nan_loss_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    def poisoned(self, model, pair, generator):
        loss = clean(self, model, pair, generator)
        return loss * math.nan if next(calls) == 23 else loss

    clean, calls = FlowMatching.__call__, iter(range(1, 1000))
    whole = finish(create(tmp_path / "whole"))
    run = create(tmp_path / "run")
    monkeypatch.setattr(FlowMatching, "__call__", poisoned)
    with pytest.raises(Diverged, match="step 23: the loss is nan"):
        finish(run)
    monkeypatch.undo()
    assert checkpoints.find(run.checkpoints)[-1].name == "step-000000020"
    assert_same(finish(run), whole)


def test_there_is_no_pickle_in_a_run_folder(teacher):
    runs.illustrate(teacher)
    files = [path for path in teacher.folder.rglob("*") if path.is_file()]
    suffixes = {path.suffix for path in files}
    assert suffixes == {".toml", ".safetensors", ".json", ".jsonl", ".png", ".md"}
    assert not any(b"ctorch" in path.read_bytes() or path.read_bytes().startswith(b"\x80") for path in files)


def test_weights_load_without_the_data(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("a,b,c\n" + "\n".join(f"{i},{i % 7},{i * i}" for i in range(50)))
    run = finish(create(tmp_path / "run", data=str(table)))
    table.unlink()
    trained = runs.load(run.folder)
    assert trained.columns == ("a", "b", "c")
    x = sampling.sample(trained.model, trained.source, 2000, grids.uniform(4), euler)
    assert (x.mean(0) - torch.tensor([24.5, 2.9, 808.0])).abs().max() < 800  # in the units of the table


def test_only_a_run_folder_is_ever_replaced(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("...")
    with pytest.raises(InputError, match="not a run folder"):
        Run.create(tmp_path / "precious", config(), "", overwrite=True)
    run = create(tmp_path / "run")
    with pytest.raises(InputError, match="exists already"):
        create(tmp_path / "run")
    with pytest.raises(InputError, match="no data of that name"):
        Run.create(tmp_path / "run", config(data="mons"), "", overwrite=True)
    assert Run.open(run.folder) == run


@pytest.mark.parametrize(
    "tree", [{"data": "mons"}, {"data": "none.npy"}, {"source": "circle"}, {"device": "gpu"}, {"data": "s-curv"}]
)
def test_a_configuration_that_cannot_work_leaves_no_folder(tmp_path, tree):
    with pytest.raises(InputError):
        create(tmp_path / "run", **tree)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"train": {"lr": 0.1}}, {"schedule": "vp"}, {"coupling": "independent"}]
)
def test_going_on_cannot_change_the_experiment(teacher, change):
    with pytest.raises(InputError, match="--resume cannot change"):
        teacher.extended(change)
    assert Run.open(teacher.folder) == teacher


def test_going_on_cannot_go_back(teacher):
    with pytest.raises(InputError, match="at step 40 already"):
        teacher.extended({"train": {"steps": 30}})
    assert Run.open(teacher.folder) == teacher


def test_no_weights_yet_is_said(tmp_path):
    with pytest.raises(InputError, match="no weights yet"):
        runs.load(create(tmp_path / "run").folder)


@pytest.mark.parametrize("damage", [b"", b"junk", "cut"])
def test_weights_that_are_not_weights_are_refused(teacher, damage):
    blob = teacher.weights.read_bytes()
    teacher.weights.write_bytes(blob[:-100] if damage == "cut" else damage)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        runs.load(teacher.folder)


def reflowed(teacher, folder, **settings):
    settings = {f"reflow.{key}": value for key, value in {"pairs": 100, "steps": 5, "tolerance": 0, **settings}.items()}
    return Run.create(folder, runs.reflow_config(teacher.folder, settings), "")


def pairs_of(run):
    """All pairs of a reflow run, made where they are missing."""
    for _ in runs.make_pairs(run):
        pass
    return stored_pairs(run).pair


def test_a_reflow_starts_from_its_parents_weights(teacher, tmp_path):
    run = reflowed(teacher, tmp_path / "child")
    assert run.config.reflow.parent_hash == checkpoints.file_hash(teacher.weights)
    pairs_of(run)
    leave(run, 1)
    start = load_file(teacher.weights)
    for name, x in load_file(run.weights).items():
        assert torch.allclose(x, start[name], atol=2e-3)  # one step of Adam at 1e-3 from the parent's weights


def test_reflow_pairs_are_ends_of_the_parent_s_flow(teacher, tmp_path):
    pairs = pairs_of(reflowed(teacher, tmp_path / "child"))
    model = runs.load(teacher.folder).model
    x1 = sampling.flow(model, pairs.x0, grids.uniform(5), heun)
    assert torch.allclose(pairs.x1, x1, atol=1e-5)
    assert abs(pairs.x0.std() - 1) < 0.15
    # noise of its own: the pairs are not what `flowgen sample` would draw with the same seed
    assert not torch.equal(pairs.x0, streams.source_rows(runs.load(teacher.folder).source, 0, 100, seed=0))


def test_a_reflow_that_was_left_goes_on_bit_for_bit(teacher, tmp_path):
    whole, parts = reflowed(teacher, tmp_path / "whole"), reflowed(teacher, tmp_path / "parts")
    pairs_of(whole), pairs_of(parts)
    assert_same(finish(whole), finish(leave(parts, 13)))


def test_a_parent_that_has_changed_is_refused(teacher, tmp_path):
    run = reflowed(teacher, tmp_path / "child")
    finish(teacher.extended({"train": {"steps": 50}}))
    with pytest.raises(InputError, match="has changed since it was learned from"):
        pairs_of(run)


def test_pairs_of_another_parent_are_refused(teacher, tmp_path):
    run = reflowed(teacher, tmp_path / "child")
    other = reflowed(finish(create(tmp_path / "other", seed=3)), tmp_path / "step-child")
    pairs_of(other)
    shutil.copytree(other.pairs, run.pairs)
    with pytest.raises(InputError, match="made by another parent"):
        finish(run)


def test_rounds_count_and_describe_their_ancestors(teacher, tmp_path):
    first = reflowed(teacher, tmp_path / "first")
    pairs_of(first)
    second = reflowed(finish(first), tmp_path / "second")
    facts = runs.describe(second.folder)
    assert second.config.reflow.round == 2
    assert [parent["run"] for parent in facts["parents"]] == [str(first.folder), str(teacher.folder)]
    assert [parent["hash"] for parent in facts["parents"]] == [
        checkpoints.file_hash(first.weights),
        checkpoints.file_hash(teacher.weights),
    ]
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize("tree", [{"coupling": "independent"}, {"schedule": "vp"}], ids=["linear", "vp"])
def test_reflow_straightens_and_keeps_the_end_points(tmp_path, tree):
    """After a reflow one Euler step lands where the parent's whole trajectory does, on curved parents of any path."""
    train = {"steps": 500, "batch_size": 256, "checkpoint_every": 500}
    parent = finish(create(tmp_path / "parent", data="8gaussians", net={}, train=train, pool={"batches": 10}, **tree))
    run = reflowed(parent, tmp_path / "child", pairs=4096, steps=20)
    pairs_of(run)
    finish(run)
    teacher, student = runs.load(parent.folder).model, runs.load(run.folder).model
    x0 = streams.source_rows(runs.load(run.folder).source, 0, 1000, seed=5)
    truth = sampling.flow(teacher, x0, grids.uniform(20, *teacher.span), heun)

    def miss(model):
        return (sampling.flow(model, x0, grids.uniform(1, *model.span), euler) - truth).norm(dim=1).mean()

    assert miss(student) < 0.4 * miss(teacher)
    curved = geometry(student.velocity, x0, grids.uniform(20))
    assert curved.straightness < 0.02 * curved.path_energy


class Board:
    """A writer of TensorBoard that keeps what it was told in a list of the class."""

    told: ClassVar[list] = []

    def __init__(self, folder, purge_step):
        self.told.append(("from", purge_step))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def add_scalar(self, name, value, step):
        self.told.append((name, step))


def test_a_resumed_run_drops_later_steps_of_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setattr(Board, "told", [])
    for module in (log, folder):
        monkeypatch.setattr(module, "board", lambda: Board)
    train = {"steps": 9, "batch_size": 8, "log_every": 1, "log": "tensorboard", "checkpoint_every": 4}
    run = Run.create(tmp_path / "run", make_config({"data": "moons", "train": train, "pool": {"batches": 2}}), "")
    for progress in runs.train(run):
        if progress.step == 6:
            break
    assert Board.told == [("from", 1), *((name, step) for step in range(1, 7) for name in ("loss", "transport_cost"))]
    Board.told.clear()
    for _ in runs.train(run):
        pass
    assert Board.told == [("from", 7), *((name, step) for step in range(7, 10) for name in ("loss", "transport_cost"))]
