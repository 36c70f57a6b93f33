"""Every mistake about images is one line that says what to change, and changes nothing."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowgen import runs
from flowgen.config import resolve_config
from flowgen.data.images import decoding
from flowgen.runs import Run

pytestmark = pytest.mark.journey


def write(folder, number, size=(8, 8)):
    path = Path(folder) / f"{number:03d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, number).save(path)
    return path


@pytest.fixture
def files(flowgen, monkeypatch):
    """Folders that training cannot use, and some that it can."""
    for number in range(150):
        write("good", number)
        write("few-broken", number)
        write("some-broken", number)
    for number in (3, 40):
        write("some-broken", number).write_bytes(b"spoilt")
    write("few-broken", 3).write_bytes(b"spoilt")
    for number in range(4):
        write("thirty", number, (30, 30))
        write("mixed", number, (8, 8 + number // 3))
        write("bomb", number)
        write("loose/a", number)
    write("loose", 9)
    write("bomb", 9, (40, 40))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1000)
    write("one", 1)
    Path("empty").mkdir()
    np.save("nan.npy", np.full((9, 8, 8), np.nan))
    np.save("five.npy", np.zeros((9, 5, 8, 8)))
    np.savez("labels.npz", x=np.zeros((9, 8, 8), np.uint8), y=np.zeros(8, np.int64))
    np.save("points.npy", np.random.default_rng(0).normal(size=(9, 3)))
    Path("cut-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 9]))
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


BAD = {
    "train thirty": "30",
    "train mixed": "--image-size",
    "train empty": "no images",
    "train one": "a single image",
    "train loose": "beside folders of images",
    "train some-broken": "2 of 150 images cannot be read",
    "train few-broken --strict": "cannot be read",
    "train bomb": "pixels",
    "train nan.npy": "hold NaN",
    "train five.npy": "1, 3 or 4 channels",
    "train labels.npz": "labels of shape (8,)",
    "train cut-images-idx3-ubyte": "not an idx file",
    "train none": "choose from",
    "train hub:mnist": "pip install",
    "train digit": "did you mean digits?",
    "train digits --net mlp": "choose resmlp, unet or dit for images",
    "train digits --net unte": "did you mean unet?",
    "train digits --net unet --size hug": "unknown size of unet",
    "train digits --net resmlp --size small": "net resmlp has no sizes",
    "train moons --size small": "net mlp has no sizes",
    "train moons --net unet": "U-Net reads images",
    "train moons --net dit": "reads images",
    "train good --net dit --set net.patch=3": "patch",
    "train good --image-size 0": "images.size",
    "train good --image-size -8": "images.size",
    "train good --image-size 30": "30",
    "train good --set images.workers=-1": "images.workers",
    "train good --set images.channels=2": "images.channels",
    "train good --set images.flips=true": "did you mean flip?",
    "train good --source digits --image-size 16 --source points.npy": "they must agree",
    "train digits --log tensorboard": "pip install 'flowgen-torch[tensorboard]'",
    "train moons --log tensorboard": "pip install 'flowgen-torch[tensorboard]'",
    "train digits --log wandb": "train.log",
    "train digits --preview-every -1": "train.preview_every",
    "train digits --batch-size 3 --accumulate 4": "cannot be split into 4 parts",
    "train digits --accumulate 0": "train.accumulate",
    "train digits --precision half": "train.precision",
    "train digits --set train.ema=[0.1,0.1]": "train.ema must be different",
    "train digits --set labels=maybe": "labels",
    "train digits --set train.label_dropout=1": "train.label_dropout",
}


def test_bad_images_and_settings_are_one_line(flowgen, files):
    before = sorted(Path().rglob("*"))
    for line, words in BAD.items():
        code, out, err = flowgen(*line.split())
        assert (code, out, words in err, err.count("\n")) == (2, "", True, 1), (line, err)
        assert err.startswith("flowgen: "), line
        assert sorted(Path().rglob("*")) == before, line


SMALL = ("--net", "resmlp", "--set", "net.width=8", "--set", "net.depth=1", "--batch-size", 16)


@pytest.mark.parametrize("memory", [256, 0])
def test_a_few_broken_images_are_named_and_left_out(flowgen, files, memory):
    with pytest.warns(UserWarning, match=r"003\.png"):
        code, _, err = flowgen(
            "train",
            "few-broken",
            "--steps",
            12,
            *SMALL,
            "--set",
            f"images.memory={memory}",
            "--set",
            "images.workers=0",
        )
    assert code == 0, err


def test_images_that_break_in_a_stream_end_it_with_one_line(flowgen, files):
    stream = ("--set", "images.memory=0", "--set", "images.workers=0", "--set", "split.held_out=0")
    for number in range(60, 70):
        write("good", number).write_bytes(b"spoilt")
    code, _, err = flowgen("train", "good", "--steps", 40, *SMALL, *stream)
    assert code in (1, 2)
    assert err.splitlines()[-1].startswith("flowgen: ")
    assert "cannot be read" in err.splitlines()[-1]


# of a run


def quick(folder, data, **tree):
    train = {"steps": 4, "batch_size": 16, "ema": [0.05, 0.1], "preview_every": 0, "checkpoint_every": 2}
    tree = {"data": data, "net": {"name": "resmlp", "width": 8, "depth": 1}, "train": train, **tree}
    run = Run.create(Path(folder), resolve_config(tree), "")
    for _ in runs.train(run):
        pass


@pytest.fixture
def made(flowgen, table):
    """Runs of digits, with labels and without, and of moons."""
    quick("digits", "digits")
    quick("bare", "digits", labels=False)
    quick("moons", "moons", net={"width": 8, "depth": 1})
    never = {"steps": 4, "batch_size": 16, "label_dropout": 0}
    quick("shapes", str(table), net={"width": 8, "depth": 1}, labels=True, train=never)


BAD_FOR_RUNS = {
    "sample digits --label 10": "there is no label '10': choose 0 to 9",
    "sample digits --label -1": "there is no label '-1'",
    "sample digits --label cat": "there is no label 'cat'",
    "sample digits --labels 0-10": "there is no label '10'",
    "sample digits --labels 3-1": "the first label comes after the last",
    "sample digits --labels 1,,2": "there is no label ''",
    "sample digits --labels 0-3 --label 1": "not both",
    "sample digits --labels 0-3 --per-label 0": "--per-label must be at least 1",
    "sample digits --labels 0-3 --num 9": "give --num or --labels",
    "sample shapes --guidance 2": "train.label_dropout is 0",
    "reflow shapes --guidance 2": "train.label_dropout is 0",
    "reflow bare --set labels=true": "bare knows no labels, and what learns from it cannot learn any",
    "reflow digits --out digits --overwrite": "digits is the run to learn from, and cannot be replaced by what does",
    "sample bare --label 1": "knows no labels",
    "sample bare --labels 0-9": "knows no labels",
    "sample moons --label 1": "knows no labels",
    "sample bare --guidance 2": "guidance needs a model that was trained with labels",
    "sample moons --guidance 0": "guidance needs a model that was trained with labels",
    "sample digits --guidance nan": "must be finite, not nan",
    "sample digits --guidance inf": "must be finite, not inf",
    "sample digits --guidance 2 --guidance-interval 0.8,0.2": "in order, not 0.8,0.2",
    "sample digits --guidance 2 --guidance-interval 0,2": "within 0 and 1",
    "sample digits --guidance-interval 0,2": "within 0 and 1",
    "sample digits --guidance 2 --guidance-interval nan,1": "within 0 and 1",
    "sample digits --guidance 2 --guidance-interval 0.5": "two times like 0.2,0.8, not 0.5",
    "sample digits --guidance 2 --guidance-interval a,b": "two times",
    "sample digits --ema 0.2": "no average of width 0.2: choose 0.05 or 0.1",
    "sample digits --num 0": "--num",
    "sample digits --out x.csv": "images are written to .png, .npz, .npy or a folder",
    "sample digits --out x.jpg": "images are written to",
    "sample digits --out none/x.png": "no folder none",
    "sample digits --out none/x.npz": "no folder none",
    "sample digits --out digits": "not an empty folder",
    "sample digits --trajectories --out x.npz": "--trajectories draws a .png",
    "sample shapes --trajectories": "--trajectories draws a .png",
    "sample shapes --label 2": "there is no label '2': choose 0 to 1",
    "reflow bare --guidance 2": "guidance needs a model that was trained with labels",
    "reflow digits --guidance nan": "reflow.guidance",
    "reflow digits --pairs 0": "reflow.pairs",
    "evaluate digits --features rwos": "did you mean rows?",
    "evaluate moons --features classifier": "need labels",
    "train digits --out digits --resume --net unet": "--resume cannot change net",
    "train digits --out digits --resume --size small": "has no sizes",
    "train digits --out digits --resume --flip": "--resume cannot change images.flip",
    "train digits --out digits --resume --image-size 16": "--resume cannot change images.size",
    "train digits --out digits --resume --steps 8": "--resume cannot change train.steps",
    "train digits --out digits --resume --set train.ema=0.05": "--resume cannot change train.ema",
    "train digits --out digits --resume --set labels=false": "--resume cannot change labels",
}


def test_mistakes_leave_runs_as_they_are(flowgen, made):
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for line, words in BAD_FOR_RUNS.items():
        code, out, err = flowgen(*line.split())
        assert (code, out, words in err, err.count("\n")) == (2, "", True, 1), (line, err)
        assert err.startswith("flowgen: ")
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_no_run_goes_on_with_tensorboard_where_there_is_none(flowgen, made, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, err = flowgen("train", "moons", "--out", "moons", "--resume", "--steps", 8, "--log", "tensorboard")
    assert (code, "pip install 'flowgen-torch[tensorboard]'" in err) == (2, True)
    assert Run.open(Path("moons")).config.train.steps == 4


def test_images_that_changed_after_training_are_told(flowgen, files):
    assert flowgen("train", "good", "--steps", 2, *SMALL)[0] == 0
    write("good", 200)
    before = sorted(Path().rglob("*"))
    for line in ("evaluate runs/good --num 9 --repeats 2", "reflow runs/good --pairs 9", "train good --resume"):
        code, _, err = flowgen(*line.split())
        assert (code, "has changed since the run began" in err, err.count("\n")) == (2, True, 1), (line, err)
    assert sorted(Path().rglob("*")) == before
    shutil.rmtree("good")
    # a run needs its data no more to draw from what it has learnt
    assert flowgen("sample", "runs/good", "--num", 3, "--steps", 1)[0] == 0
    for line in ("evaluate runs/good", "train --out runs/good --resume"):
        code, _, err = flowgen(*line.split())
        assert (code, err.count("\n")) == (2, 1), (line, err)
