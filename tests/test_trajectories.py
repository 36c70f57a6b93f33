"""Trajectories that a reflow learns from: back from data they come to where forward ones start, and in enough steps."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from flowgen import grids, runs, sampling
from flowgen.core import InputError, Pair, generator
from flowgen.pairs import batches
from flowgen.pairs.reflow import Inversion, Reflow, invert
from flowgen.runs import Run, trajectories
from flowgen.runs import pairs as shards
from flowgen.runs.pairs import stored_pairs
from flowgen.runs.trajectories import Trajectories
from flowgen.samplers import ode
from flowgen.training.checkpoints import read_tensors

pytestmark = pytest.mark.journey


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 64)
    monkeypatch.setattr(shards, "IMAGE_SHARD", 64)


@pytest.fixture
def teacher(once, tmp_path):
    return Run.open(shutil.copytree(once("moons", steps=120), tmp_path / "moons"))


@pytest.fixture
def labelled(trained, table, tmp_path):
    return trained(table, tmp_path / "labelled", labels=True, steps=60)


def child(parent, folder, **settings):
    settings = {"pairs": 150, "steps": 20, "tolerance": 0, "inverted": 1.0, **settings}
    given = {key if key == "seed" else f"reflow.{key}": value for key, value in settings.items()}
    return Run.create(folder, runs.reflow_config(parent.folder, given), "")


def made(run):
    for _ in runs.make_pairs(run):
        pass
    return stored_pairs(run).pair


def rms(x, y):
    return (x - y).flatten(1).square().mean(1).sqrt()


# the walk back


@pytest.mark.costly
def test_the_way_back_ends_where_the_exact_flow_began(usable, gaussian_flow, exact_model):
    path, prediction = usable
    flow = gaussian_flow(path)
    model = exact_model(flow, prediction)
    lo, hi = model.span
    x0 = torch.randn(50, 2, generator=generator(0, "x0"), dtype=torch.float64)
    x1 = flow.map(model.start(x0), lo, hi)
    found = invert(model, x1, grids.log_snr(path, 60, lo, hi), ode.rk4)
    torch.testing.assert_close(found, x0, rtol=5e-4, atol=5e-4)


@pytest.mark.parametrize("solver", [ode.heun, ode.rk4, ode.AdamsBashforth2(), ode.AdaptiveSolver()])
def test_there_and_back_is_where_one_was(teacher, solver):
    model, grid = runs.load(teacher.folder).model, grids.uniform(200)
    x = torch.randn(64, 2, generator=generator(0, "x"))
    gone = Reflow(model, grid, solver)(Pair(x, torch.zeros(64, 2)), None)
    back = Inversion(model, grid, solver)(Pair(torch.zeros(64, 2), gone.x1), None)
    torch.testing.assert_close(back.x0, x, rtol=1e-3, atol=1e-3)
    assert torch.equal(back.x1, gone.x1)


def test_inverted_pairs_are_training_rows_and_their_noise(trained, table, tmp_path):
    parent = trained(table, tmp_path / "parent", steps=100)
    data = parent.config.load_data()
    run = child(parent, tmp_path / "child", pairs=600, steps=200)
    pair, model = made(run), runs.load(parent.folder).model
    rows = model.scaling.in_model_units(data.distribution.values)
    apart = torch.cdist(pair.x1, rows, compute_mode="donot_use_mm_for_euclid_dist")
    assert apart.min(1).values.max() < 1e-6
    seen = apart.argmin(1).bincount(minlength=len(rows))
    assert seen.min() == 600 // len(rows)
    assert seen.max() == -(-600 // len(rows))
    ends = sampling.flow(model, pair.x0, grids.uniform(200), ode.rk4)
    assert rms(ends, pair.x1).mean() < 1e-3


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_labels_go_with_their_rows_and_guidance_with_both(labelled, table, tmp_path, weight):
    run = child(labelled, tmp_path / "child", guidance=weight, steps=60, pairs=600)
    pair, trained = made(run), runs.load(labelled.folder)
    rows, labels = trained.model.scaling.in_model_units(trained.config.load_data().distribution.values), None
    labels = trained.config.load_data().distribution.labels
    true, hidden = labels[torch.cdist(pair.x1, rows).argmin(1)], pair.cond == 2
    assert torch.equal(pair.cond[~hidden], true[~hidden])
    share = labelled.config.train.label_dropout
    assert abs(hidden.double().mean() - share) < 4 * (share * (1 - share) / 600) ** 0.5
    for kept in (hidden, ~hidden):
        some, cond = pair.take(kept), pair.cond[kept]

        def field(x, t, y):
            without = trained.model.velocity(x, t, torch.full_like(y, 2))
            return without + weight * (trained.model.velocity(x, t, y) - without)

        ends = sampling.flow(trained.model, some.x0, grids.uniform(60), ode.rk4, cond, field)
        assert rms(ends, some.x1).mean() < 0.01


def test_a_flow_from_other_data_is_inverted_to_them(trained, tmp_path, normal):
    np.save(tmp_path / "source.npy", 5 + normal("source", 90, 3).float().numpy())
    np.save(tmp_path / "data.npy", 3 * normal("data", 90, 3).float().numpy() - 1)
    parent = trained(tmp_path / "data.npy", tmp_path / "parent", source=str(tmp_path / "source.npy"), steps=200)
    pair, model = made(child(parent, tmp_path / "child")), runs.load(parent.folder).model
    source = model.scaling.apply_to(torch.from_numpy(np.load(tmp_path / "source.npy")))
    assert (pair.x0.mean(0) - source.mean(0)).norm() < 0.5 * (pair.x1.mean(0) - source.mean(0)).norm()


def test_images_that_are_streamed_are_read_by_their_numbers(trained, tmp_path):
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(70):
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{index:02d}.png")
    small = {"net": {"name": "resmlp", "width": 16, "depth": 1}, "images": {"memory": 0, "workers": 0}}
    parent = trained(tmp_path / "images", tmp_path / "parent", **small, pool={"batches": 1})
    whole, parts = (child(parent, tmp_path / name, steps=4, pairs=140) for name in ("whole", "parts"))
    pair = made(whole)
    made(parts)
    gone = sorted(parts.pairs.iterdir())[1]
    blob = gone.read_bytes()
    gone.unlink()
    made(parts)
    assert gone.read_bytes() == blob == (whole.pairs / gone.name).read_bytes()
    tensors = read_tensors(gone)[0]
    assert {name: x.dtype for name, x in tensors.items() if name != "error"} == dict.fromkeys(
        ("x0", "x1"), torch.float16
    )
    pixels = (pair.x1.float() + 1) * 255 / 2  # half precision tells all 256 values of a pixel
    assert len(pixels[:63].round().flatten(1).unique(dim=0)) == 63  # 7 of 70 are held out
    assert (pixels - pixels.round()).abs().max() < 0.1


# shares


@pytest.mark.parametrize(("share", "counts"), [(0.0, [150, 0]), (0.3, [105, 45]), (1.0, [0, 150])])
def test_the_share_of_inverted_pairs_is_as_asked_for(teacher, tmp_path, share, counts):
    run = child(teacher, tmp_path / "child", inverted=share)
    pair = made(run)
    found = {each.kind: each for each in runs.endpoint_errors(run)}
    assert [found[kind].pairs if kind in found else 0 for kind in ("generated", "inverted")] == counts
    assert len(pair.x0) == len(pair.x1) == 150
    model = runs.load(teacher.folder).model
    ends = sampling.flow(model, pair.x0, grids.uniform(200), ode.rk4)
    assert rms(ends, pair.x1).mean() < 0.02
    for each in found.values():
        assert 0 < each.mean < each.worst < 0.5


def test_generated_pairs_are_the_same_beside_inverted_ones(teacher, tmp_path):
    alone, beside = (child(teacher, tmp_path / f"{share}", inverted=share) for share in (0.0, 0.3))
    one, other = made(alone), made(beside)
    assert torch.equal(one.x0[:105], other.x0[:105])
    assert torch.equal(one.x1[:105], other.x1[:105])


def test_every_epoch_mixes_both(teacher, tmp_path):
    run = child(teacher, tmp_path / "child", pairs=128, inverted=0.5, steps=2)
    pair = made(run)
    stream = batches(stored_pairs(run), 32, seed=0, pool=run.config.pool)
    for _ in range(3):
        epoch = [torch.cdist(next(stream).x0, pair.x0).argmin(1) for _ in range(4)]
        assert all(8 <= (batch < 64).sum() <= 24 for batch in epoch)


# steps


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("tolerance", [0.1, 0.01, 0.001])
def test_steps_are_doubled_to_the_tolerance(teacher, tmp_path, share, tolerance):
    run = child(teacher, tmp_path / "child", inverted=share, steps=3, tolerance=tolerance)
    made(run)
    (found,) = runs.endpoint_errors(run)
    doublings = (found.steps / 3).hex()
    assert doublings.startswith("0x1.0000000000000p")
    assert found.mean <= tolerance
    if found.steps > 3:
        fewer = child(teacher, tmp_path / "fewer", inverted=share, steps=found.steps // 2)
        made(fewer)
        assert runs.endpoint_errors(fewer)[0].mean > trajectories.CLOSE * tolerance


def test_each_kind_has_its_own_number_of_steps(trained, tmp_path):
    np.save(tmp_path / "narrow.npy", np.random.default_rng(0).normal(size=(300, 2)) * [1, 1e-3] + [0, 1])
    parent = trained(tmp_path / "narrow.npy", tmp_path / "parent", steps=100)
    run = child(parent, tmp_path / "child", inverted=0.5, steps=2, tolerance=3e-4)
    made(run)
    steps = [each.steps for each in runs.endpoint_errors(run)]
    for kind, taken in zip(("generated", "inverted"), steps, strict=True):
        assert Trajectories.of(run).steps(kind) == taken


def test_no_more_steps_are_taken_than_the_most_and_that_is_said(teacher, flowgen, monkeypatch):
    monkeypatch.setattr(trajectories, "MOST", 50)
    strict = ("--set", "reflow.steps=4", "--set", "reflow.tolerance=1e-9")
    code, _, err = flowgen("reflow", teacher.folder, "--out", "run", "--pairs", 64, "--steps", 2, *strict)
    assert code == 0
    assert [each.steps for each in runs.endpoint_errors(Run.open(teacher.folder.parent / "run"))] == [32]
    assert "in 32 steps" in err
    assert "WARNING: that is more than reflow.tolerance = 1e-09" in err
    code, _, err = flowgen("reflow", teacher.folder, "--out", "coarse", "--pairs", 64, "--steps", 2)
    assert (code, "WARNING: that is more" in err) == (0, False)


def test_a_run_that_goes_on_takes_the_steps_that_it_took(teacher, tmp_path, monkeypatch):
    run = child(teacher, tmp_path / "child", inverted=0.5, steps=3, tolerance=0.001)
    made(run)
    before = {path.name: path.read_bytes() for path in run.pairs.iterdir()}
    for name in ("shard-00000.safetensors", "shard-00003.safetensors"):
        (run.pairs / name).unlink()
    monkeypatch.setattr(Trajectories, "steps", None)
    made(run)
    assert {path.name: path.read_bytes() for path in run.pairs.iterdir()} == before


def test_shards_of_different_steps_do_not_make_one_run(teacher, tmp_path, monkeypatch):
    run = child(teacher, tmp_path / "child", inverted=0.0, steps=3, tolerance=0.001)
    made(run)
    (run.pairs / "shard-00001.safetensors").unlink()
    monkeypatch.setattr(shards, "_steps", lambda *rest: {"generated": 3})
    for _ in runs.make_pairs(run):
        pass
    with pytest.raises(InputError, match="some pairs took"):
        stored_pairs(run)
