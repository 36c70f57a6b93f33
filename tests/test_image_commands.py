"""The commands on images, as a person and a script meet them."""

import csv
import json
import shutil
import tomllib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowgen import checkpoints, runs
from flowgen.config import make_config
from flowgen.data import read_table
from flowgen.data.images.pictures import to_uint8
from flowgen.evaluation import subject
from flowgen.runs import Run

pytestmark = pytest.mark.journey

SMALL = ["--net", "resmlp", "--set", "net.width=16", "--set", "net.depth=1", "--batch-size", 32, "--lr", 0.01]
NET = {"name": "resmlp", "width": 16, "depth": 1}


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """A quick run on the digits, with two averages."""
    folder = tmp_path_factory.mktemp("once") / "digits"
    train = {"steps": 40, "batch_size": 32, "lr": 1e-2, "ema": [0.05, 0.2], "log_every": 10, "preview_every": 0}
    run = Run.create(folder, make_config({"data": "digits", "net": NET, "train": train}), "flowgen train digits")
    for _ in runs.train(run):
        pass
    return folder


@pytest.fixture
def digits(trained_once, flowgen):
    return Path(shutil.copytree(trained_once, "runs/digits"))


@pytest.fixture
def pets(tmp_path):
    """A folder of two classes of colour images."""
    noise = np.random.default_rng(0).integers(0, 100, (24, 8, 8, 3)).astype(np.uint8)
    for number, image in enumerate(noise):
        path = tmp_path / "pets" / ("cat" if number % 2 else "night-owl") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image + 150 * (number % 2)).save(path)
    return "pets"


def good(flowgen, *arguments):
    code, out, err = flowgen(*arguments)
    assert code == 0, err
    return out


def archive(flowgen, run, *arguments, name="x.npz"):
    """Pixels and labels of an archive of samples."""
    good(flowgen, "sample", run, "--steps", 3, "--out", name, *arguments)
    with np.load(name) as arrays:
        return arrays["arr_0"], arrays.get("arr_1")


def test_digits_are_trained_sampled_straightened_and_measured(flowgen):
    good(
        flowgen, "train", "digits", "--steps", 20, *SMALL, "--flip", "--preview-every", 10, "--set", "train.log_every=5"
    )
    config = tomllib.loads(Path("runs/digits/config.toml").read_text())
    assert (config["data"], config["images"]["flip"], config["net"]["name"]) == ("digits", True, "resmlp")
    assert {path.name for path in Path("runs/digits/plots").iterdir()} == {"loss.png", "samples.png", "previews"}
    out = good(flowgen, "sample", "runs/digits", "--steps", 2)
    assert "runs/digits/samples.png: 64 samples in 2 steps of heun, 4 evaluations of the network for each" in out
    straight = ("--pairs", 100, "--steps", 5, "--guidance", 1.5, "--set", "reflow.steps=4")
    assert "Next: flowgen sample runs/digits-reflow1" in good(flowgen, "reflow", "runs/digits", *straight)
    config = tomllib.loads(Path("runs/digits-reflow1/config.toml").read_text())
    assert (config["reflow"]["guidance"], config["reflow"]["pairs"], config["labels"]) == (1.5, 100, True)
    good(flowgen, "sample", "runs/digits-reflow1", "--labels", "0-9", "--steps", 1, "--solver", "euler")
    facts = json.loads(good(flowgen, "info", "runs/digits-reflow1", "--json"))
    assert facts["classes"] == [str(digit) for digit in range(10)]
    assert (facts["kind"], facts["data"], facts["coupling"]["pairs"]) == ("reflow", "digits", 100)


def test_a_run_of_the_name_of_its_data_goes_on(flowgen):
    """A folder `digits` is there then, and is not what is meant."""
    arguments = ("train", "digits", "--steps", 6, *SMALL, "--out", "digits")
    good(flowgen, *arguments)
    before = checkpoints.file_hash(Path("digits/model.safetensors"))
    good(flowgen, *arguments, "--resume")
    assert checkpoints.file_hash(Path("digits/model.safetensors")) == before


@pytest.mark.parametrize(
    "extra", [[], ["--net", "unet", "--size", "tiny", "--set", "net.channels=32"]], ids=["rows", "unet"]
)
def test_a_folder_is_trained_on_by_its_classes(flowgen, pets, extra):
    good(flowgen, "train", pets, "--steps", 4, *(extra or SMALL), "--batch-size", 8, "--set", "images.memory=0")
    facts = json.loads(good(flowgen, "info", "runs/pets", "--json"))
    assert (facts["classes"], facts["net"]["name"]) == (["cat", "night-owl"], "unet" if extra else "resmlp")
    code, _, err = flowgen("evaluate", "runs/pets", "--features", "classifier", "--neighbours", 1)
    assert (code, "larger than images.memory" in err) == (2, True)
    x, y = archive(flowgen, "runs/pets", "--labels", "night-owl,cat", "--per-label", 2)
    assert (x.shape, y.tolist()) == ((4, 8, 8, 3), ["night-owl", "night-owl", "cat", "cat"])
    x, y = archive(flowgen, "runs/pets", "--label", "night-owl", "--num", 3)
    assert (x.shape, y.tolist()) == ((3, 8, 8, 3), ["night-owl"] * 3)


@pytest.mark.parametrize("kind", ["npy", "npz", "idx"])
def test_arrays_and_idx_files_are_trained_on(flowgen, kind):
    x = np.random.default_rng(0).integers(0, 255, (30, 8, 8)).astype(np.uint8)
    if kind == "npy":
        np.save("a.npy", x)
    elif kind == "npz":
        np.savez("a.npz", images=x, labels=np.arange(30) % 2 * 4 + 3)
    else:
        Path("a-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 30, 0, 0, 0, 8, 0, 0, 0, 8]) + x.tobytes())
        labels = (np.arange(30) % 2 * 4 + 3).astype(np.uint8)
        Path("a-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 30]) + labels.tobytes())
    name = {"npy": "a.npy", "npz": "a.npz", "idx": "a-images-idx3-ubyte"}[kind]
    good(flowgen, "train", name, "--steps", 3, *SMALL, "--out", "a")
    # labels with gaps have their own names
    assert json.loads(good(flowgen, "info", "a", "--json"))["classes"] == ([] if kind == "npy" else ["3", "7"])
    pixels, labels = archive(flowgen, "a", "--num", 5, *([] if kind == "npy" else ["--label", 7]))
    assert pixels.shape == (5, 8, 8, 1)
    assert labels is None if kind == "npy" else labels.tolist() == [7] * 5


def test_image_size_crops_and_resizes(flowgen):
    np.save("a.npy", np.random.default_rng(0).random((20, 30, 40)).astype(np.float32))
    good(flowgen, "train", "a.npy", "--steps", 2, *SMALL, "--image-size", 8, "--out", "a")
    assert archive(flowgen, "a", "--num", 2)[0].shape == (2, 8, 8, 1)


# samples


def test_every_kind_of_file_holds_the_same_samples(flowgen, digits):
    arguments = ("--num", 7, "--seed", 3)
    pixels, labels = archive(flowgen, digits, *arguments)
    assert (pixels.shape, pixels.dtype, labels.dtype) == ((7, 8, 8, 1), np.uint8, np.int64)
    for name in ("x.npy", "folder", "x.png"):
        good(flowgen, "sample", digits, "--steps", 3, "--out", name, *arguments)
    floats = torch.from_numpy(np.load("x.npy"))
    assert floats.shape == (7, 1, 8, 8)
    assert np.array_equal(to_uint8(floats)[:, 0].numpy(), pixels[..., 0])  # of data in [0, 1]
    files = [np.asarray(Image.open(f"folder/{number:06d}.png")) for number in range(7)]
    assert np.array_equal(files, pixels[..., 0])
    with Path("folder/labels.csv").open() as file:
        assert [int(row["label"]) for row in csv.DictReader(file)] == labels.tolist()
    grid = np.asarray(Image.open("x.png"))[::8, ::8]  # 8 pixels of the picture for one of the image
    cells = [grid[10 * row : 10 * row + 8, 10 * column : 10 * column + 8] for row in range(3) for column in range(3)]
    assert np.array_equal(cells[:7], pixels[..., 0])


def test_labels_are_rows_of_the_grid(flowgen, digits):
    pixels, labels = archive(flowgen, digits, "--labels", "0-2,9", "--per-label", 3)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 9, 9, 9]
    good(flowgen, "sample", digits, "--steps", 3, "--labels", "0-2,9", "--per-label", 3, "--out", "x.png")
    assert Image.open("x.png").size == ((3 * 10 - 2) * 8, (4 * 10 - 2) * 8)
    assert len(pixels) == 12


@pytest.mark.parametrize("solver", ["heun", "bosh3"])
def test_a_labelled_sample_depends_on_no_other(flowgen, digits, solver):
    many, labels = archive(flowgen, digits, "--num", 70, "--solver", solver)
    few, own = archive(flowgen, digits, "--num", 5, "--solver", solver)
    assert np.array_equal(few, many[:5])
    assert np.array_equal(own, labels[:5])
    # the first that has the label 4 is the same where all have it
    index = labels.tolist().index(4)
    alike, _ = archive(flowgen, digits, "--num", 70, "--solver", solver, "--label", 4)
    assert np.array_equal(alike[index], many[index])


def test_guidance_is_none_at_one_and_forgets_the_label_at_zero(flowgen, digits):
    def drawn(label, *guidance):
        return archive(flowgen, digits, "--label", label, "--num", 4, *guidance)[0]

    assert np.array_equal(drawn(3), drawn(3, "--guidance", 1))
    assert not np.array_equal(drawn(3), drawn(5))
    assert np.array_equal(drawn(3, "--guidance", 0), drawn(5, "--guidance", 0))
    assert not np.array_equal(drawn(3), drawn(3, "--guidance", 5))
    never = ("--guidance", 5, "--guidance-interval", "0.4,0.45")  # between the times of three steps
    assert np.array_equal(drawn(3), drawn(3, *never))


@pytest.mark.parametrize(
    ("guidance", "evaluations"),
    [((), 6), (("--guidance", 2), 12), (("--guidance", 2, "--guidance-interval", "0.5,1"), 9)],
)
def test_what_guidance_costs_is_said(flowgen, digits, guidance, evaluations):
    out = good(flowgen, "sample", digits, "--steps", 3, "--out", "x.png", *guidance)
    assert f"{evaluations} evaluations of the network for each" in out


def test_another_average_is_sampled_from(flowgen, digits):
    first = archive(flowgen, digits, "--num", 2)[0]
    assert np.array_equal(first, archive(flowgen, digits, "--num", 2, "--ema", 0.05)[0])
    other = archive(flowgen, digits, "--num", 2, "--ema", 0.2)[0]
    assert not np.array_equal(first, other)
    shutil.copy(digits / "model-ema-0.2.safetensors", digits / "model.safetensors")
    assert np.array_equal(other, archive(flowgen, digits, "--num", 2)[0])


@pytest.mark.parametrize(("steps", "columns"), [(3, 4), (20, 10)])
def test_trajectories_are_strips_from_noise_to_image(flowgen, digits, steps, columns):
    arguments = ("--trajectories", "--steps", steps, "--labels", "0-4", "--per-label", 1, "--out", "t.png")
    assert f"5 trajectories in {steps} steps" in good(flowgen, "sample", digits, *arguments)
    assert Image.open("t.png").size == ((columns * 10 - 2) * 8, (5 * 10 - 2) * 8)
    pixels, _ = archive(flowgen, digits, "--steps", steps, "--labels", "0-4", "--per-label", 1)
    last = np.asarray(Image.open("t.png"))[::8, ::8][:, -8:]
    ends = np.concatenate([last[10 * row : 10 * row + 8][None] for row in range(5)])
    assert np.abs(ends.astype(int) - pixels[..., 0]).max() <= 1  # blocks of other sizes are rounded otherwise


# measures


def test_images_are_measured_by_what_training_did_not_see(flowgen, digits, monkeypatch):
    monkeypatch.setattr(subject, "fit_classifier", partial(subject.fit_classifier, steps=20))
    few = ("--num", 60, "--repeats", 2, "--steps", "1,2")
    out = good(flowgen, "evaluate", digits, *few, "--json", "e.json")
    assert "20 principal components" in out
    assert "179 held-out rows of digits" in out
    (figures,) = json.loads(Path("e.json").read_text())
    assert figures["quality"][0]["frechet"]["mean"] > figures["floor"]["frechet"]["mean"] > 0
    out = good(flowgen, "evaluate", digits, *few, "--features", "classifier")
    assert "labels right" in out
    assert "features of a classifier" in out


# labels of tables


def test_a_table_with_labels_trains_a_flow_of_each_class(flowgen, table):
    y = np.load(table)["y"] * 4 + 3  # 3 and 7
    np.savez("g.npz", x=np.load(table)["x"], y=y)
    quick = (
        "--steps",
        300,
        "--batch-size",
        64,
        "--set",
        "net.width=32",
        "--set",
        "labels=true",
        "--set",
        "pool.batches=10",
    )
    good(flowgen, "train", "g.npz", *quick)
    assert json.loads(good(flowgen, "info", "runs/g", "--json"))["classes"] == ["3", "7"]
    means = []
    for label in (3, 7):
        good(flowgen, "sample", "runs/g", "--label", label, "--num", 200, "--steps", 10, "--out", "x.npz")
        means.append(read_table("x.npz").x.mean().item())
    assert abs(means[0]) < 0.6
    assert abs(means[1] - 4) < 0.6
    code, _, err = flowgen("sample", "runs/g", "--label", 1)  # the number of a class is no label of these data
    assert (code, "there is no label '1': choose one of 3, 7" in err) == (2, True)
    good(flowgen, "reflow", "runs/g", "--pairs", 64, "--steps", 2, "--guidance", 2)
    good(flowgen, "sample", "runs/g-reflow1", "--labels", "3-7", "--steps", 1, "--out", "y.csv")
    assert len(read_table("y.csv").x) == 16


# copies


def test_likely_copies_are_drawn_beside_the_chart(flowgen, digits, whole_pictures):
    out = good(flowgen, "evaluate", digits, "--num", 40, "--repeats", 1, "--steps", "1,3")
    assert f"nearest to training images: {digits}/plots/nearest.png" in out
    assert Image.open(digits / "plots/nearest.png").size[0] > 500
    shutil.copytree(digits, "runs/other")
    out = good(flowgen, "evaluate", digits, "runs/other", "--num", 40, "--repeats", 1, "--steps", 1, "--out", "c.png")
    assert {path.name for path in Path().glob("*.png")} == {"c.png", "nearest-digits.png", "nearest-other.png"}


def test_of_a_streamed_folder_no_nearest_images_are_drawn(flowgen, pets):
    good(
        flowgen,
        "train",
        pets,
        "--steps",
        2,
        *SMALL,
        "--batch-size",
        8,
        "--set",
        "images.memory=0",
        "--set",
        "split.held_out=0.5",
    )
    out = good(flowgen, "evaluate", "runs/pets", "--num", 5, "--repeats", 1, "--steps", 1, "--neighbours", 1)
    assert "nearest.png is not drawn: the training images are not in memory" in out
    assert not Path("runs/pets/plots/nearest.png").exists()
