"""Classifiers of noisy data by command: they guide their run, and refuse what they do not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from flowgen import checkpoints, runs, sampling
from flowgen.config import resolve_config
from flowgen.core import InputError, generator
from flowgen.guidance import AutoGuided, Guided, Rescale
from flowgen.repath import repath
from flowgen.runs.classifier import classifier_file, load_classifier
from flowgen.schedules import Linear
from flowgen.settings import merged
from flowgen.training.loop import State

pytestmark = pytest.mark.journey

MEANS = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -3.0]])
STD, COUNTS = 0.7, (200.0, 100.0, 100.0)


def mixture(n, seed):
    """Rows of three Gaussians, of which the first is twice as frequent, and their labels."""
    rng = generator(seed, "mixture")
    y = torch.multinomial(torch.tensor(COUNTS), n, replacement=True, generator=rng)
    return MEANS[y] + STD * torch.randn(n, 2, generator=rng), y


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Runs of three Gaussians, with labels and without, of other pairs, another path and other data."""
    folder = tmp_path_factory.mktemp("store")
    x, y = mixture(600, 5)
    np.savez(folder / "t.npz", x=x.numpy(), y=y.numpy() + 5)
    np.savez(folder / "other.npz", x=x.numpy() + 1, y=y.numpy())
    np.savez(folder / "bare.npz", x=x.numpy())
    rng = np.random.default_rng(0)
    np.savez(folder / "images.npz", x=rng.integers(0, 256, (60, 4, 4), dtype=np.uint8), y=np.arange(60) % 2)
    alone, data = {"coupling": "independent"}, str(folder / "t.npz")
    trees = {
        "bare": {**alone, "train": {"steps": 600}},
        "labelled": {**alone, "labels": True},
        "vp": {"schedule": "vp"},
        "weak": {**alone, "net": {"width": 8, "depth": 1}},
        "coupled": {},
        "consistency": {**alone, "objective": "consistency"},
        "other": {**alone, "data": str(folder / "other.npz")},
        "unlabelled-data": {**alone, "data": str(folder / "bare.npz")},
        "images": {"data": str(folder / "images.npz"), "net": {"name": "resmlp", "width": 16, "depth": 1}},
    }
    for name, tree in trees.items():
        # runs that guide each other have the same rows held out, also where one learns no labels
        quick(folder / name, {"data": data, "split": {"stratify": True}, **tree})
    return folder


def quick(folder, tree):
    small = {"train": {"steps": 10, "batch_size": 32}, "pool": {"batches": 2, "reuse": 1}}
    if "net" not in tree:
        small["net"] = {"width": 32, "depth": 2}
    run = runs.Run.create(folder, resolve_config(merged(small, tree)), "flowgen train")
    for _ in runs.train(run):
        pass


@pytest.fixture(scope="module")
def classified(store):
    """The same folder, with classifiers of some runs."""
    for name, steps in (("bare", 300), ("labelled", 10), ("vp", 10), ("images", 3)):
        trained = runs.load(store / name)
        data = runs.labelled_data(trained)
        list(runs.train_classifier(store / name, trained, data, steps, 128, 0, torch.device("cpu")))
    return store


@pytest.fixture
def home(flowgen, classified):
    """A folder of runs of its own to call `flowgen` in."""
    shutil.copytree(classified, "runs")
    return flowgen


def refused(home, *arguments):
    """The one line that a command refuses with."""
    code, out, err = home(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    return err


def test_the_command_keeps_a_classifier_with_its_accuracy(home):
    arguments = ("train-classifier", "runs/bare", "--steps", 120, "--batch-size", 128, "--overwrite")
    before = set(Path("runs/bare").iterdir())
    code, out, _ = home(*arguments)
    assert code == 0
    assert set(Path("runs/bare").iterdir()) == before
    file = Path("runs/bare/noisy-classifier.safetensors")
    first = file.read_bytes()
    rows = [line.split() for line in out.splitlines() if "%" in line]
    times, shares = [float(row[0]) for row in rows], [float(row[1].rstrip("%")) for row in rows]
    assert times == sorted(times)
    assert shares[-1] > 90 > shares[0]
    assert "of 60 held-out rows" in out
    code, out, _ = home(*arguments, "--json", "-")
    assert file.read_bytes() == first  # to the bit
    plain = json.loads(out)
    assert [100 * each["accuracy"] for each in plain["held_out"]] == pytest.approx(shares, abs=0.06)
    home(*arguments, "--seed", 1, "--steps", 2)
    assert file.read_bytes() != first
    assert "exists already; train it anew with --overwrite" in refused(home, "train-classifier", "runs/bare")


def test_the_averaged_weights_are_kept(home, monkeypatch):
    states = []
    monkeypatch.setattr(runs.classifier, "State", lambda *given: states.append(State(*given)) or states[-1])
    trained = runs.load(Path("runs/weak"))
    list(runs.train_classifier(Path("runs/weak"), trained, runs.labelled_data(trained), 5, 32, 0, torch.device("cpu")))
    kept = load_classifier(Path("runs/weak"), trained).posterior.model.state_dict()
    trained_ones = states[0].model.state_dict()
    assert all(torch.equal(x, kept[name]) for name, x in states[0].ema.state_dict().items())
    assert any(not torch.equal(x, kept[name]) for name, x in trained_ones.items())


@pytest.mark.parametrize(
    ("run", "why"),
    [
        ("coupled", "independent pairs"),
        ("consistency", "learned to jump"),
        ("unlabelled-data", "labels of two classes"),
        ("nowhere", "not a run folder"),
    ],
)
def test_runs_that_no_classifier_could_guide_are_refused(home, run, why):
    assert why in refused(home, "train-classifier", f"runs/{run}")


def test_bad_numbers_and_changed_data_are_refused(home, classified):
    assert "--steps must be at least 1" in refused(home, "train-classifier", "runs/bare", "--steps", 0)
    assert "--batch-size must be at least 1" in refused(home, "train-classifier", "runs/bare", "--batch-size", -1)
    shutil.copy(classified / "other.npz", "runs/t.npz")  # beside the run that was copied with it
    assert "has changed" in refused(home, "train-classifier", "runs/bare", "--overwrite")


def test_held_out_rows_are_not_learned_from(home):
    """The batches of a classifier hold training rows only."""
    trained = runs.load(Path("runs/bare"))
    data = runs.labelled_data(trained)
    assert len(data.distribution) + len(data.held_out) == 600
    ends = trained.config.ends(data, torch.device("cpu"))
    pair = next(iter(ends.stream(2000, seed=0)))
    seen = {row.tobytes() for row in data.scaling.undo(pair.x1).float().round(decimals=3).numpy()}
    unseen = {row.tobytes() for row in data.held_out.values.round(decimals=3).numpy()}
    assert not seen & unseen
    assert pair.cond.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("key", ["data", "schedule", "split", "shape"])
def test_a_classifier_of_something_else_is_refused(home, key):
    file = classifier_file(Path("runs/bare"))
    tensors, metadata = checkpoints.read_tensors(file)
    facts = json.loads(metadata["flowgen"])
    checkpoints.write_tensors(file, tensors, {"flowgen": json.dumps({**facts, key: "another"})})
    with pytest.raises(InputError, match=f"of another {key} than this run"):
        load_classifier(Path("runs/bare"), runs.load(Path("runs/bare")))


def test_a_file_that_is_no_classifier_is_refused(home):
    trained, file = runs.load(Path("runs/bare")), classifier_file(Path("runs/bare"))
    shutil.copy("runs/bare/model.safetensors", file)
    with pytest.raises(InputError, match="not the classifier of a flowgen run"):
        load_classifier(Path("runs/bare"), trained)
    shutil.copy(classifier_file(Path("runs/vp")), file)
    with pytest.raises(InputError, match="of another schedule"):
        load_classifier(Path("runs/bare"), trained)
    file.write_bytes(b"no")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_classifier(Path("runs/bare"), trained)
    file.unlink()
    with pytest.raises(InputError, match="has no classifier yet: flowgen train-classifier"):
        load_classifier(Path("runs/bare"), trained)


# samples that are guided


def drawn(home, *arguments):
    """Samples of a call, `(N, *shape)`."""
    code, _, err = home("sample", *arguments, "--out", "s.npy")
    assert code == 0, err
    return torch.from_numpy(np.load("s.npy"))


def nearest(x):
    return torch.cdist(x, MEANS.to(x)).argmin(1)


def walked(name, by, cond, num=64):
    """The samples of a run that is guided, in Python."""
    trained = runs.load(Path("runs") / name)
    method, grid = runs.sampler(trained.config, trained.model, trained.source, steps=10)
    field = runs.guided(trained, trained.model.velocity, by)
    return sampling.sample(trained.model, trained.source, num, grid, method, field=field, cond=cond)


def test_a_classifier_draws_a_class_of_a_run_without_labels(home):
    shares = []
    for weight in (0.2, 1, 4):
        x = drawn(home, "runs/bare", "--label", "7", "--num", 400, "--classifier-guidance", weight)
        shares.append((nearest(x) == 2).double().mean().item())
    assert shares == sorted(shares)
    assert shares[1] > 0.8
    by = runs.Guidance(known=load_classifier(Path("runs/bare"), runs.load(Path("runs/bare"))), by_classifier=3.0)
    exact = walked("bare", by, torch.full((64,), 1))
    made = drawn(home, "runs/bare", "--label", 6, "--num", 64, "--steps", 10, "--classifier-guidance", 3)
    torch.testing.assert_close(made, exact)


def test_classes_without_a_label_are_as_in_the_data(home):
    x = drawn(home, "runs/bare", "--num", 1000, "--classifier-guidance", 3, "--steps", 20)
    shares = nearest(x).bincount(minlength=3) / 1000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.25, 0.25]), rtol=0, atol=0.07)


def test_a_classifier_guides_on_another_path_too(home):
    x = drawn(home, "runs/bare", "--path", "vp", "--steps", 100, "--label", 7, "--num", 300, "--classifier-guidance", 1)
    assert (nearest(x) == 2).double().mean() > 0.8


def test_all_that_guides_goes_together(home):
    """Labels and a classifier add up; a weaker run, on another path, takes the place of the run without its label."""
    trained = runs.load(Path("runs/labelled"))
    known, cond = load_classifier(Path("runs/labelled"), trained), torch.full((64,), 1)
    few = ("runs/labelled", "--label", "6", "--num", 64, "--steps", 10)
    both = drawn(home, *few, "--guidance", 2, "--classifier-guidance", 1.5, "--guidance-interval", "0.2,0.9")
    by = runs.Guidance(2.0, (0.2, 0.9), known=known, by_classifier=1.5)
    torch.testing.assert_close(both, walked("labelled", by, cond))
    for name in ("weak", "vp"):
        weak = runs.load(Path("runs") / name)
        there = repath(weak.model, Linear())
        auto = AutoGuided(trained.model.velocity, there.velocity, 2.0, there.span)
        method, grid = runs.sampler(trained.config, trained.model, trained.source, steps=10)
        exact = sampling.sample(trained.model, trained.source, 64, grid, method, field=auto, cond=cond)
        torch.testing.assert_close(drawn(home, *few, "--weak", f"runs/{name}", "--guidance", 2), exact)


def test_images_are_rescaled(home):
    few = ("runs/images", "--label", 1, "--num", 8, "--steps", 5, "--guidance", 6)
    bare, whole = drawn(home, *few), drawn(home, *few, "--guidance-rescale", 1)
    assert whole.flatten(1).std(1).mean() != bare.flatten(1).std(1).mean()
    cond = torch.full((8,), 1)
    trained = runs.load(Path("runs/images"))
    field = Guided(trained.model.velocity, 2, 6.0, rescale=Rescale(Linear(), 1.0))
    method, grid = runs.sampler(trained.config, trained.model, trained.source, steps=5)
    exact = sampling.sample(trained.model, trained.source, 8, grid, method, field=field, cond=cond)
    torch.testing.assert_close(whole, exact)
    assert len(drawn(home, "runs/images", "--labels", "0,1", "--per-label", 2, "--classifier-guidance", 2)) == 4


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("bare --label 7", "knows no labels"),
        ("bare --label 9 --classifier-guidance 2", "no label '9'"),
        (
            "weak --label 7 --classifier-guidance 2",
            "runs/weak has no classifier yet: flowgen train-classifier runs/weak",
        ),
        ("bare --guidance 2 --classifier-guidance 2", "guidance needs a model that was trained with labels"),
        ("bare --classifier-guidance nan", "weight of guidance must be finite"),
        ("bare --classifier-guidance 2 --guidance-interval 3,4", "interval of guidance must be within 0 and 1"),
        ("consistency --classifier-guidance 2", "no classifier yet"),
        ("bare --weak runs/weak", "give --guidance, such as 2"),
        ("bare --weak runs/coupled --guidance 2", "pairs of another kind"),
        ("bare --weak runs/other --guidance 2", "has learned other data"),
        ("bare --weak runs/images --guidance 2", "has learned other data"),
        ("bare --weak runs/labelled --guidance 2", "labels that this run does not know"),
        ("bare --weak runs/consistency --guidance 2", "has no velocity"),
        ("bare --weak runs/nowhere --guidance 2", "not a run folder"),
        ("consistency --weak runs/bare --guidance 2", "learned to jump"),
        ("labelled --guidance 3 --guidance-rescale 0.5", "is of images"),
        ("images --guidance-rescale 0.5", "weight of guidance is above 1"),
        ("images --guidance 2 --guidance-rescale 1.5", "must be from 0 to 1"),
    ],
)
def test_guidance_that_a_run_cannot_have_is_refused(home, line, why):
    assert why in refused(home, "sample", *f"runs/{line}".split())
    assert not list(Path("runs").rglob("samples.*"))
