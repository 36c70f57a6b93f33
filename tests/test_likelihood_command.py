"""flowgen likelihood: one number a row, in the row's own label, and no likelihood of what has none."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from flowgen import checkpoints, runs
from flowgen.config import resolve_config
from flowgen.data import Gaussian, moons, read_table
from flowgen.likelihood import Rademacher, dequantised, log_likelihood, probes
from flowgen.runs.densities import asked_rows
from flowgen.samplers.grids import log_snr, uniform
from flowgen.samplers.ode import AdaptiveSolver, heun, rk4
from flowgen.settings import merged

pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Quick runs of a toy, of tables with labels and without, and of images in 8 bits and in five shades."""
    folder, rng = tmp_path_factory.mktemp("store"), np.random.default_rng(0)
    x, y = rng.standard_normal((200, 3)).astype(np.float32), np.arange(200) % 3 + 5
    np.savez(folder / "t.npz", x=x + y[:, None], y=y)
    np.savetxt(folder / "plain.csv", x, delimiter=",", header="a,b,c", comments="")
    np.savetxt(folder / "constant.csv", np.c_[x, np.ones(200)], delimiter=",")
    np.savez(folder / "i.npz", x=rng.integers(0, 256, (60, 4, 4), dtype=np.uint8), y=np.arange(60) % 2)
    np.savez(folder / "five.npz", x=rng.integers(0, 5, (60, 4, 4)).astype(np.float32) / 4)
    np.savez(folder / "many.npz", x=rng.random((60, 4, 4)).astype(np.float32))
    table, resmlp = str(folder / "t.npz"), {"name": "resmlp", "width": 16, "depth": 1}
    trees = {
        "moons": {},
        "vp": {"schedule": "vp"},
        "between": {"source": "circles"},
        "jumps": {"objective": "consistency"},
        "both": {"objective": "meanflow"},
        "labelled": {"data": table, "labels": True},
        "always": {"data": table, "labels": True, "train": {"label_dropout": 0.0}},
        "plain": {"data": str(folder / "plain.csv")},
        "all-seen": {"data": str(folder / "plain.csv"), "split": {"held_out": 0.0}},
        "constant": {"data": str(folder / "constant.csv")},
        "images": {"data": str(folder / "i.npz"), "net": resmlp},
        "five": {"data": str(folder / "five.npz"), "net": resmlp},
        "many": {"data": str(folder / "many.npz"), "net": resmlp},
    }
    for name, tree in trees.items():
        small = {"data": "moons", "train": {"steps": 25, "batch_size": 32}, "pool": {"batches": 2, "reuse": 1}}
        small |= {} if "net" in tree else {"net": {"width": 16, "depth": 2}}
        run = runs.Run.create(folder / name, resolve_config(merged(small, tree)), "flowgen train")
        for _ in runs.train(run):
            pass
    return folder


@pytest.fixture
def home(flowgen, store):
    """A folder of runs of its own to call `flowgen` in."""
    shutil.copytree(store, "runs")
    return flowgen


def measured(home, *arguments):
    """The figures and the rows of a call."""
    code, out, err = home("likelihood", *arguments, "--json", "-", "--out", "rows.csv")
    assert code == 0, err
    table = read_table(Path("rows.csv"))
    assert table.columns == ("log_likelihood",)
    return json.loads(out), table.x.squeeze(1).double()


def refused(home, *arguments):
    """The one line that a call refuses with, before it has written anything."""
    code, out, err = home("likelihood", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert not list(Path().rglob("likelihood.csv"))
    return err


def test_a_toy_has_a_likelihood_and_a_divergence(home):
    found, rows = measured(home, "runs/moons", "--num", 300)
    trained = runs.load(Path("runs/moons"))
    asked = asked_rows(trained, None, 300, None, 0)
    exact = log_likelihood(trained.model, Gaussian(), asked.x, uniform(50), rk4)
    torch.testing.assert_close(rows, exact, rtol=1e-6, atol=1e-6)
    assert found["log_likelihood"]["mean"] == pytest.approx(exact.mean().item())
    assert found["log_likelihood"]["standard_error"] == pytest.approx(exact.std().item() / 300**0.5)
    ratio = moons().log_density(asked.x.double()) - exact
    assert found["kl"] == {
        "mean": pytest.approx(ratio.mean().item()),
        "standard_error": pytest.approx(ratio.std().item() / 300**0.5),
    }
    assert found["of"] == "300 new draws of moons"
    assert (asked.x != asked_rows(trained, None, 300, None, 1).x).all()


def test_it_says_in_words_what_it_measured(home):
    code, out, _ = home("likelihood", "runs/images", "--json", "f.json")
    assert code == 0
    found = json.loads(Path("f.json").read_text())
    assert f"{found['bits_per_dim']['mean']:.4f} ± {found['bits_per_dim']['standard_error']:.4f}" in out
    assert "6 held-out rows of i.npz" in out
    assert "One row each: runs/images/likelihood.csv" in out
    assert len(read_table(Path("runs/images/likelihood.csv")).x) == 6


def test_on_a_diffusion_the_steps_are_where_the_noise_changes(home):
    _, rows = measured(home, "runs/vp", "--num", 100)
    _, fine = measured(home, "runs/vp", "--num", 100, "--steps", 400)
    torch.testing.assert_close(rows, fine, rtol=0, atol=2e-3)
    trained = runs.load(Path("runs/vp"))
    x, grid = asked_rows(trained, None, 100, None, 0).x, log_snr(trained.model.schedule, 20, *trained.model.span)
    _, coarse = measured(home, "runs/vp", "--num", 100, "--steps", 20, "--solver", "heun")
    torch.testing.assert_close(coarse, log_likelihood(trained.model, Gaussian(), x, grid, heun), rtol=1e-5, atol=1e-5)


def test_held_out_rows_are_measured_each_with_its_label(home, store):
    found, rows = measured(home, "runs/labelled")
    trained = runs.load(Path("runs/labelled"))
    asked = asked_rows(trained, None, None, None, 0)
    assert found["rows"] == len(rows) == len(asked.x) == 20
    table = read_table(store / "t.npz")
    place = (asked.x.unsqueeze(1) == table.x).all(2).int().argmax(1)
    assert torch.equal(asked.cond, table.labels[place] - 5)
    exact = log_likelihood(trained.model, Gaussian((3,)), asked.x, uniform(50), rk4, asked.cond)
    torch.testing.assert_close(rows, exact, rtol=1e-6, atol=1e-6)
    some, few = measured(home, "runs/labelled", "--num", 7)
    assert some["of"] == "7 held-out rows of t.npz"
    assert all(any(abs(each - row) < 1e-5 for row in rows) for each in few)


def test_a_label_may_be_given_and_may_be_none(home, store):
    trained, grid = runs.load(Path("runs/labelled")), uniform(50)
    x, y = read_table(store / "t.npz").x[:9], read_table(store / "t.npz").labels[:9] - 5

    def exact(cond):
        return log_likelihood(trained.model, Gaussian((3,)), x, grid, rk4, cond)

    np.save("bare.npy", x.numpy())
    cases = (
        ((store / "t.npz", "--num", 9), y),
        ((store / "t.npz", "--num", 9, "--label", "7"), torch.full((9,), 2)),
        (("bare.npy",), torch.full((9,), 3)),
        (("bare.npy", "--label", 6), torch.full((9,), 1)),
    )
    for arguments, cond in cases:
        torch.testing.assert_close(measured(home, "runs/labelled", *arguments)[1], exact(cond), rtol=1e-5, atol=1e-5)
    assert "give --label" in refused(home, "runs/always", "bare.npy")
    assert measured(home, "runs/always", "bare.npy", "--label", 5)[0]["rows"] == 9


def test_labels_are_told_by_their_names(home, store):
    """A file that holds but some of the classes numbers them as the run does."""
    table = read_table(store / "t.npz")
    last = table.labels == 7
    np.savez("last.npz", x=table.x[last].numpy(), y=table.labels[last].numpy())
    asked = asked_rows(runs.load(Path("runs/labelled")), Path("last.npz"), None, None, 0)
    assert asked.cond.tolist() == [2] * len(asked.x)
    np.savez("strange.npz", x=table.x.numpy(), y=table.labels.numpy() + 2)
    assert "labels that this run does not know: 8, 9" in refused(home, "runs/labelled", "strange.npz")


@pytest.mark.parametrize(("run", "step"), [("images", 1 / 255), ("five", 1 / 4), ("many", None)])
def test_images_are_dequantised_by_their_shades(home, store, run, step):
    found, rows = measured(home, f"runs/{run}", "--hutchinson", 0)
    trained = runs.load(Path(f"runs/{run}"))
    asked = asked_rows(trained, None, None, None, 0)
    assert found["shade"] == asked.step == (None if step is None else pytest.approx(step))
    x = asked.x if step is None else dequantised(asked.x, step, seed=0)
    density = log_likelihood(trained.model, Gaussian((1, 4, 4)), x, uniform(25), rk4, asked.cond)
    probability = density + (0 if step is None else 16 * math.log(step))
    torch.testing.assert_close(rows, probability, rtol=1e-5, atol=1e-4)
    if step is None:
        assert "bits_per_dim" not in found
    else:
        bits = -probability.mean().item() / 16 / math.log(2)
        assert found["bits_per_dim"]["mean"] == pytest.approx(bits, rel=1e-6)


def test_files_of_images_have_the_shades_of_training(home, store):
    """Also where the file has but two of them."""
    x = np.zeros((3, 4, 4), np.float32)
    x[:, 0] = 1
    np.save("two.npy", x)
    assert asked_rows(runs.load(Path("runs/five")), Path("two.npy"), None, None, 0).step == pytest.approx(0.25)
    found, rows = measured(home, "runs/five", "two.npy")
    assert found["rows"] == len(rows) == 3


def test_images_take_one_probe_and_rows_none(home):
    found, rows = measured(home, "runs/images", "--seed", 3)
    assert found["hutchinson"] == 1
    trained = runs.load(Path("runs/images"))
    asked = asked_rows(trained, None, None, None, 3)
    drawn, x = probes(Rademacher((1, 4, 4)), 6, 1, seed=3), dequantised(asked.x, 1 / 255, seed=3)
    exact = log_likelihood(trained.model, Gaussian((1, 4, 4)), x, uniform(25), rk4, asked.cond, drawn)
    torch.testing.assert_close(rows, exact - 16 * math.log(255), rtol=1e-5, atol=1e-4)
    assert measured(home, "runs/plain")[0]["hutchinson"] == 0


def test_a_row_does_not_depend_on_what_is_beside_it(home, monkeypatch):
    """Nor on the size of the chunks that it is computed in."""
    _, whole = measured(home, "runs/images", "--hutchinson", 2)
    monkeypatch.setattr("flowgen.runs.densities.chunk_rows", lambda shape: 4)
    _, parts = measured(home, "runs/images", "--hutchinson", 2)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-5)


def test_adaptive_solvers_and_flow_maps_with_a_velocity(home):
    _, rows = measured(home, "runs/moons", "--num", 50)
    found, adaptive = measured(home, "runs/moons", "--num", 50, "--solver", "dopri5")
    assert found["steps"] == 1
    torch.testing.assert_close(adaptive, rows, rtol=0, atol=2e-3)
    trained = runs.load(Path("runs/both"))
    x = asked_rows(trained, None, 20, None, 0).x
    _, diagonal = measured(home, "runs/both", "--num", 20)
    exact = log_likelihood(trained.model, Gaussian(), x, uniform(1), AdaptiveSolver("dopri5", 1e-7, 1e-7))
    torch.testing.assert_close(diagonal, exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("runs/jumps",), "has no velocity"),
        (("runs/between",), "the source circles has no density"),
        (("runs/constant",), "constant column"),
        (("runs/all-seen",), "no row of .* was held out"),
        (("runs/nowhere",), "no folder runs/nowhere"),
        (("runs/moons", "runs/t.npz"), "has 3 columns, and needs 2"),
        (("runs/moons", "nothing.csv"), "no such file"),
        (("runs/plain", "columns.csv"), "lacks c and has also d"),
        (("runs/moons", "--label", "0"), "knows no labels"),
        (("runs/labelled", "--label", "9"), "no label '9'"),
        (("runs/moons", "--solver", "jump"), "unknown solver 'jump'"),
        (("runs/moons", "--num", "0"), "--num must be at least 1"),
        (("runs/moons", "--steps", "0"), "--steps must be at least 1"),
        (("runs/moons", "--hutchinson", "-1"), "--hutchinson must be at least 0"),
        (("runs/moons", "--out", "rows.npy"), "--out is a table"),
        (("runs/moons", "--out", "no/rows.csv"), "there is no folder"),
    ],
)
def test_what_has_no_likelihood_is_refused_in_one_line(home, arguments, why):
    Path("columns.csv").write_text("a,b,d\n1,2,3\n")
    assert re.search(why, refused(home, *arguments))


def test_a_trajectory_that_leaves_all_numbers_is_a_failure(home):
    file = Path("runs/moons/model.safetensors")
    tensors, metadata = checkpoints.read_tensors(file)
    checkpoints.write_tensors(file, {name: 1e30 * x for name, x in tensors.items()}, metadata)
    code, _, err = home("likelihood", "runs/moons")
    assert code == 1
    assert "row 0 has no finite log-likelihood" in err
    assert not Path("runs/moons/likelihood.csv").exists()


def test_no_global_draw_is_made(home, global_state_untouched):
    measured(home, "runs/images")
