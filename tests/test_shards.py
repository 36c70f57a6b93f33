"""The pairs of a reflow: shards that are functions of parent, settings and number, whoever makes them in what order."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flowgen import grids, runs, sampling
from flowgen.config import resolve_config
from flowgen.core import Failure, InputError, Part, generator
from flowgen.runs import Run
from flowgen.runs import pairs as shards
from flowgen.runs.pairs import stored_pairs
from flowgen.samplers import ode
from flowgen.training.checkpoints import read_tensors

pytestmark = pytest.mark.journey

NUM, SHARD = 150, 64


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD", SHARD)


def train(folder, data, steps, **tree):
    tree = {
        "net": {"width": 16, "depth": 2},
        "train": {"steps": steps, "batch_size": 64},
        "pool": {"batches": 4},
        **tree,
    }
    run = Run.create(folder, resolve_config({"data": str(data), **tree}), "")
    for _ in runs.train(run):
        pass
    return run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return train(tmp_path_factory.mktemp("teacher") / "run", "moons", 150)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A flow of three classes, of which one is half of the data."""
    folder, y = tmp_path_factory.mktemp("labelled"), np.array([3, 7, 7, 9] * 60)
    x = torch.randn(240, 2, generator=generator(0, "labelled")).numpy() + 3 * y[:, None]
    np.savez(folder / "l.npz", x=x, y=y)
    return train(folder / "run", folder / "l.npz", 30, labels=True, split={"held_out": 0.0})


def child(parent, folder, **settings):
    settings = {"pairs": NUM, "steps": 4, "tolerance": 0, **settings}
    given = {key if "." in key or key == "seed" else f"reflow.{key}": value for key, value in settings.items()}
    return Run.create(folder, runs.reflow_config(parent.folder, given), "")


def make(run, *team):
    return list(runs.make_pairs(run, *team))


def together(run, of):
    """What each of so many processes counts that make the pairs of a run at the same time."""
    meet, said = threading.Barrier(of).wait, []

    def one(index):
        def broadcast(tensors):
            said.extend(tensors if index == 0 else ())
            meet(60)
            for x, first in zip(tensors, said[-len(tensors) :], strict=True):
                x.copy_(first)
            meet(60)

        part, device = Part(index, of), torch.device("cpu")
        return make(
            run,
            SimpleNamespace(
                part=part, first=part.index == 0, device=device, barrier=lambda: meet(60), broadcast=broadcast
            ),
        )

    with ThreadPoolExecutor(of) as threads:
        return list(threads.map(one, range(of)))


def files(run):
    return {path.name: path.read_bytes() for path in sorted(run.pairs.iterdir())}


def column(run, name):
    return torch.cat([read_tensors(path)[0][name] for path in sorted(run.pairs.iterdir())])


def ends(run, steps, field=None, cond=None):
    """Where the parent takes the sources of the stored pairs, by a walk of our own."""
    trained = runs.load(Path(run.config.reflow.parent))
    grid = grids.uniform(steps, *trained.model.span)
    return sampling.flow(trained.model, stored_pairs(run).pair.x0, grid, run.config.reflow.solver, cond, field)


def distance(x, y):
    return (x - y).flatten(1).square().mean(1).sqrt()


def test_pairs_are_kept_in_shards(teacher, tmp_path):
    run = child(teacher, tmp_path / "child")
    assert make(run) == [0, 64, 128, 150]
    assert list(files(run)) == [f"shard-{index:05d}.safetensors" for index in range(3)]
    pair = stored_pairs(run).pair
    assert pair.x0.shape == pair.x1.shape == (NUM, 2)
    torch.testing.assert_close(pair.x1, ends(run, 4))


def test_a_shard_that_is_gone_is_made_again_to_the_bit(teacher, tmp_path):
    run = child(teacher, tmp_path / "child")
    make(run)
    before = files(run)
    for index in (0, 2):
        (run.pairs / f"shard-{index:05d}.safetensors").unlink()
    with pytest.raises(InputError, match="holds 1 of 3 shards: go on with the command in"):
        stored_pairs(run)
    kept = (run.pairs / "shard-00001.safetensors").stat().st_mtime_ns
    assert make(run) == [64, 128, 150]
    assert files(run) == before
    assert (run.pairs / "shard-00001.safetensors").stat().st_mtime_ns == kept


KILLED = """
import os, signal, sys
from pathlib import Path
from flowgen import checkpoints, runs
from flowgen.runs import pairs
pairs.SHARD = 64
write, count = checkpoints.save_file, 0
def half(tensors, path, **options):
    global count
    write(tensors, path, **options)
    count += 1
    if count == 2:
        path.write_bytes(path.read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)
checkpoints.save_file = half
for _ in runs.make_pairs(runs.Run.open(Path(sys.argv[1]))):
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("inverted", [0.0, 0.7])
def test_pairs_go_on_after_a_kill_to_the_bit(teacher, tmp_path, flowgen, inverted):
    arguments = ("reflow", teacher.folder, "--pairs", NUM, "--steps", 20, "--set", "reflow.steps=4", "--out")
    arguments = ("reflow", "--inverted", inverted, *arguments[1:])
    parts = child(teacher, tmp_path / "parts", **{"train.steps": 20, "tolerance": 0.01, "inverted": inverted})
    assert flowgen(*arguments, "whole")[0] == 0
    whole = Run.open(tmp_path / "whole")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(parts.folder)], check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in sorted(parts.pairs.glob("*.safetensors"))] == ["shard-00000.safetensors"]
    assert flowgen(*arguments, "parts", "--resume")[0] == 0
    made = {name: blob for name, blob in files(parts).items() if not name.startswith(".building")}
    assert made == files(whole)
    assert parts.metrics.read_text() == whole.metrics.read_text()


def test_a_reflow_may_compute_elsewhere_than_its_parent(teacher, flowgen):
    shutil.copytree(teacher.folder, "parent")
    settings = Path("parent/config.toml")
    settings.write_text(settings.read_text().replace('device = "auto"', 'device = "cuda:77"'))
    quick = ("reflow", "parent", "--pairs", NUM, "--steps", 2, "--set", "reflow.steps=2")
    code, _, err = flowgen(*quick)
    assert (code, "'cuda:77' is not available here" in err) == (2, True)
    code, _, err = flowgen(*quick, "--set", "device=cpu")
    assert code == 0, err


@pytest.mark.parametrize("of", [2, 3, 5])
def test_processes_share_the_shards_and_make_the_same(teacher, tmp_path, of):
    free = {"steps": 2, "tolerance": 0.02}
    alone, shared = child(teacher, tmp_path / "alone", **free), child(teacher, tmp_path / "shared", **free)
    make(alone)
    rounds = {2: [0, 128, 150], 3: [0, 150], 5: [0, 150]}[of]
    assert together(shared, of) == [rounds] * of
    assert files(shared) == files(alone)


@pytest.mark.parametrize("gone", [(0, 2), (1,), (0, 1, 2)])
def test_processes_share_what_is_missing_evenly(teacher, tmp_path, gone, monkeypatch):
    run = child(teacher, tmp_path / "child")
    make(run)
    before = files(run)
    for index in gone:
        (run.pairs / f"shard-{index:05d}.safetensors").unlink()
    write, made = shards.checkpoints.write_tensors, Counter()

    def counted(*arguments):
        made[threading.current_thread().name] += 1
        write(*arguments)

    monkeypatch.setattr(shards.checkpoints, "write_tensors", counted)
    counts = together(run, 2)
    assert files(run) == before
    assert (len(counts[0]), counts[0][-1]) == (1 + -(-len(gone) // 2), NUM)
    assert sorted(made.values()) == [n for n in (len(gone) // 2, -(-len(gone) // 2)) if n]


def test_fewer_pairs_are_the_first_of_more(teacher, labelled, tmp_path):
    for parent in (teacher, labelled):
        name = parent.folder.parent.name
        few, many = child(parent, tmp_path / f"{name} few", pairs=70), child(parent, tmp_path / f"{name} many")
        make(few), make(many)
        for one, other in zip(stored_pairs(few).pair, stored_pairs(many).pair, strict=True):
            assert one is other is None or torch.equal(one, other[:70])


@pytest.mark.parametrize("change", [{"seed": 9}, {"steps": 5}, {"solver": "rk4"}, {"round": 2}, {"tolerance": 9.0}])
def test_pairs_of_other_settings_are_refused(teacher, tmp_path, change):
    run, other = child(teacher, tmp_path / "child"), child(teacher, tmp_path / "other", **change)
    make(run)
    shutil.copytree(run.pairs, other.pairs)
    before = files(other)
    make(other)  # what is there is not made again
    for use in (stored_pairs, runs.endpoint_errors):
        with pytest.raises(InputError, match="made by another parent, or with other settings; remove them"):
            use(other)
    assert files(other) == before


@pytest.mark.parametrize("change", [{"guidance": 2.0}, {"seed": 9}])
def test_labelled_pairs_of_other_settings_are_refused(labelled, tmp_path, change):
    run, other = child(labelled, tmp_path / "child"), child(labelled, tmp_path / "other", **change)
    make(run)
    shutil.copytree(run.pairs, other.pairs)
    with pytest.raises(InputError, match="made by another parent"):
        stored_pairs(other)


@pytest.mark.parametrize("put", [(2, 0), (1, 0), (3, 0), (0, 3)])
def test_a_shard_of_other_rows_or_of_another_kind_is_refused(teacher, tmp_path, put):
    run = child(teacher, tmp_path / "child", pairs=2 * NUM, inverted=0.5)
    make(run)
    one, other = (run.pairs / f"shard-{index:05d}.safetensors" for index in put)
    shutil.copy(one, other)
    for use in (stored_pairs, runs.endpoint_errors):
        with pytest.raises(InputError, match="made by another parent"):
            use(run)


@pytest.mark.parametrize("inverted", [0.0, 1.0])
def test_a_shard_that_two_parents_have_swapped_is_refused(teacher, trained, tmp_path, inverted):
    other = trained("moons", tmp_path / "other", seed=1)
    mine, theirs = (child(p, tmp_path / f"of {p.folder.name}", inverted=inverted, seed=5) for p in (teacher, other))
    make(mine), make(theirs)
    here, there = (run.pairs / "shard-00001.safetensors" for run in (mine, theirs))
    blob = here.read_bytes()
    here.write_bytes(there.read_bytes()), there.write_bytes(blob)
    for run in (mine, theirs):
        with pytest.raises(InputError, match="made by another parent"):
            stored_pairs(run)
        (run.pairs / "shard-00000.safetensors").unlink()
        with pytest.raises(InputError, match="made by another parent"):
            make(run)  # their number of steps would be taken over


# errors


@pytest.mark.parametrize(("solver", "steps", "coarse"), [("heun", 8, 4), ("euler", 5, 2), ("rk4", 2, 2), ("ab2", 1, 2)])
def test_the_error_of_a_pair_is_between_numbers_of_steps(teacher, tmp_path, solver, steps, coarse):
    run = child(teacher, tmp_path / "child", solver=solver, steps=steps)
    make(run)
    # of two steps the coarse ones are one, but for a walk of one, beside which there are two
    coarse = steps // 2 or 2
    error = distance(ends(run, steps), ends(run, coarse))
    torch.testing.assert_close(column(run, "error"), error, rtol=1e-3, atol=1e-6)
    (found,) = runs.endpoint_errors(run)
    assert (found.kind, found.pairs, found.steps, found.other) == ("generated", NUM, steps, coarse)
    assert found.mean == pytest.approx(error.mean().item(), rel=1e-3)
    assert found.worst == pytest.approx(error.max().item(), rel=1e-3)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_the_error_shrinks_with_the_order_of_the_solver(teacher, tmp_path, solver, order):
    means = []
    for steps in (16, 32):
        run = child(teacher, tmp_path / f"{steps}", solver=solver, steps=steps, pairs=256)
        make(run)
        means.append(runs.endpoint_errors(run)[0].mean)
    assert means[0] / means[1] == pytest.approx(2**order, rel=0.25)


def test_an_end_that_is_not_finite_is_said(teacher, tmp_path, monkeypatch):
    run = child(teacher, tmp_path / "child")
    monkeypatch.setattr(sampling, "flow", lambda model, x0, *rest: x0 / 0)
    with pytest.raises(Failure, match="does not end at finite values"):
        make(run)
    assert list(run.pairs.iterdir()) == []


# labels


def test_labels_are_as_frequent_as_in_the_data(labelled, tmp_path):
    run = child(labelled, tmp_path / "child", pairs=4000, steps=1, solver="euler")
    make(run)
    shares = column(run, "cond").bincount(minlength=4) / 4000
    exact = torch.tensor([0.9 / 4, 0.9 / 2, 0.9 / 4, 0.1])
    assert ((shares - exact).abs() < 4 * (exact * (1 - exact) / 4000).sqrt()).all()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_as_many_labels_are_hidden_as_in_the_parent_s_training(trained, labelled, tmp_path, dropout):
    train = {"steps": 2, "batch_size": 32, "label_dropout": dropout}
    parent = trained(labelled.config.data, tmp_path / "parent", labels=True, train=train)
    run = child(parent, tmp_path / "child", pairs=600, steps=1, solver="euler")
    make(run)
    hidden = (column(run, "cond") == 3).double().mean()
    assert abs(hidden - dropout) <= 4 * (dropout * (1 - dropout) / 600) ** 0.5


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_guidance_moves_the_ends_as_it_moves_samples(labelled, tmp_path, weight):
    run = child(labelled, tmp_path / "child", guidance=weight)
    make(run)
    pair, trained = stored_pairs(run).pair, runs.load(labelled.folder)

    def field(x, t, cond):
        without = trained.model.velocity(x, t, torch.full_like(cond, 3))
        return without + weight * (trained.model.velocity(x, t, cond) - without)

    torch.testing.assert_close(pair.x1, ends(run, 4, field, pair.cond), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(pair.x1, ends(run, 4, None, pair.cond), rtol=1e-3, atol=1e-4) if weight == 1 else None
    assert (distance(pair.x1, ends(run, 4, None, pair.cond)) > 1e-3).any() == (weight != 1)


def test_guidance_of_a_flow_without_labels_leaves_no_folder(teacher, tmp_path):
    with pytest.raises(InputError, match="guidance needs a model that was trained with labels"):
        child(teacher, tmp_path / "child", guidance=2.0)
    assert not (tmp_path / "child").exists()


def test_changed_data_are_refused_before_work(trained, table, tmp_path):
    parent = trained(table, tmp_path / "parent", steps=2)
    np.savez(table, x=np.ones((9, 3)), y=np.arange(9))
    with pytest.raises(InputError, match="has changed since the run began"):
        child(parent, tmp_path / "child")
    assert not (tmp_path / "child").exists()


# images, and data as the source


def test_ends_of_images_are_kept_in_half_precision(trained, tmp_path, normal):
    np.save(tmp_path / "images.npy", normal("images", 40, 4, 4).float().sigmoid().numpy())
    small = {"net": {"name": "resmlp", "width": 16, "depth": 1}, "train": {"steps": 20, "batch_size": 32, "lr": 1e-2}}
    parent = trained(tmp_path / "images.npy", tmp_path / "parent", **small)
    run = child(parent, tmp_path / "child")
    make(run)
    exact = ends(run, 4)
    assert column(run, "x1").dtype == torch.float16
    torch.testing.assert_close(column(run, "x1"), exact.half(), rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(column(run, "error"), distance(exact, ends(run, 2)), rtol=1e-2, atol=1e-6)
    assert stored_pairs(run).pair.x0.dtype == torch.float32
    assert list(runs.train(run))[-1].step == run.config.train.steps


def test_a_source_of_data_is_drawn_in_the_units_of_the_model(trained, tmp_path, normal):
    np.save(tmp_path / "source.npy", 5 + normal("source", 30, 3).float().numpy())
    np.save(tmp_path / "data.npy", 3 * normal("data", 50, 3).float().numpy() - 1)
    parent = trained(tmp_path / "data.npy", tmp_path / "parent", source=str(tmp_path / "source.npy"))
    run = child(parent, tmp_path / "child")
    make(run)
    model, pair = runs.load(parent.folder).model, stored_pairs(run).pair
    rows = model.scaling.apply_to(torch.from_numpy(np.load(tmp_path / "source.npy")))
    assert torch.cdist(pair.x0.double(), rows.double()).min(1).values.max() < 1e-5
    torch.testing.assert_close(pair.x1, ends(run, 4), rtol=1e-4, atol=1e-5)


def test_only_a_reflow_has_pairs(teacher):
    with pytest.raises(InputError, match="no reflow: it has no parent"):
        make(teacher)
    assert resolve_config({"data": "moons"}).reflow is None
    assert not teacher.pairs.exists()
    assert ode.heun is runs.reflow_config(teacher.folder, {}).reflow.solver
