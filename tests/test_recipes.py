"""What is not said follows from the data, what is said wins, and all of it survives its file."""

import builtins
import io
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from flowgen import checkpoints, runs
from flowgen.config import NETS, make_config, resolve_config
from flowgen.config.data import kind
from flowgen.config.defaults import RECIPES
from flowgen.core import InputError
from flowgen.couplings import ExactOT, MultiscaleOT
from flowgen.nn import DIT_SIZES, UNET_SIZES
from flowgen.pairs import Pool
from flowgen.runs import Run
from flowgen.settings import dump_toml, flat, override, read_toml


@pytest.fixture
def pictures(tmp_path):
    """A folder of two classes of grey 8x8 images."""
    for number in range(12):
        path = tmp_path / "pictures" / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 * number).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def named(tmp_path, monkeypatch, pictures, table):
    """A place where there are data of each kind."""
    monkeypatch.chdir(tmp_path)
    for shape in ((9, 3), (9, 8, 8), (9, 8, 8, 3), (9, 1, 1, 1, 1)):
        np.save(f"{len(shape)}.npy", np.ones(shape, np.float32))
    (tmp_path / "digits-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 5]))


KINDS = {
    "moons": "toy",
    "gaussian": "toy",
    "digits": "images",
    "hub:mnist": "images",
    "pictures": "images",
    "3.npy": "images",
    "4.npy": "images",
    "digits-idx3-ubyte": "images",
    "2.npy": "table",
    "5.npy": "table",
    "t.npz": "table",
    "none.csv": "table",
    "mons": "table",
}


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_of_data_is_told_by_their_name_and_header(named, name):
    assert kind(name) == KINDS[name]


RECIPE_OF = {
    "moons": "toy",
    "t.npz": "table",
    "2.npy": "table",
    "pictures": "images",
    "3.npy": "images",
    "digits": "digits",
}


@pytest.mark.parametrize("name", RECIPE_OF)
def test_the_recipe_of_data_fills_in_what_is_not_said(named, name):
    said = flat(resolve_config({"data": name}).model_dump())
    recipe = flat(RECIPES[RECIPE_OF[name]])
    found = {key: said[f"{key}.name" if f"{key}.name" in said else key] for key in recipe}
    assert found == recipe
    kind_of_net, labels = (NETS["unet"], "auto") if KINDS[name] == "images" else (NETS["mlp"], False)
    config = resolve_config({"data": name})
    assert isinstance(config.net, kind_of_net)
    assert config.labels == labels
    if not recipe:
        assert (config.coupling, config.pool, config.train.batch_size) == (MultiscaleOT(), Pool(100, 10), 512)


@pytest.mark.parametrize("name", ["toy", "table", "images", "digits.v2"])
def test_a_folder_may_have_any_name(pictures, monkeypatch, name):
    monkeypatch.chdir(pictures.parent)
    pictures.rename(name)
    config = resolve_config({"data": name})
    assert config.net == resolve_config({"data": "hub:any"}).net
    assert config.labels


@pytest.mark.parametrize("name", ["moons", "digits", "pictures"])
def test_what_is_said_wins_over_the_recipe_and_the_rest_stays(named, name):
    said = {"train": {"lr": 0.5, "preview_every": 7}, "labels": False, "coupling": "exact", "pool": {"batches": 3}}
    config, silent = resolve_config({"data": name, **said}), resolve_config({"data": name})
    assert (config.train.lr, config.train.preview_every, config.labels) == (0.5, 7, False)
    assert (config.coupling, config.pool.batches) == (ExactOT(), 3)
    assert (config.net, config.train.batch_size) == (silent.net, silent.train.batch_size)
    assert config.train.clip == silent.train.clip


@pytest.mark.parametrize("net", ["mlp", "resmlp", "unet", "dit"])
def test_another_net_has_its_own_defaults(named, net):
    small = NETS["unet"](**{"size": "small", **UNET_SIZES["small"]})
    assert resolve_config({"data": "pictures", "net": net}).net == (small if net == "unet" else NETS[net]())


@pytest.mark.parametrize("name", NETS)
def test_a_net_without_settings_is_that_of_its_class(name):
    shape = (2,) if name == "mlp" else (2, 8, 8)
    made = NETS[name]().build(shape, 3, 5)
    alone = type(made)(2 if name == "mlp" else shape, classes=3, seed=5)
    theirs = alone.state_dict()
    assert str(alone) == str(made)
    assert all(torch.equal(weights, theirs[key]) for key, weights in made.state_dict().items())


def test_a_folder_of_the_name_of_the_digits_is_not_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = resolve_config({"data": "digits"})
    (tmp_path / "digits").mkdir()
    (tmp_path / "moons").mkdir()
    assert resolve_config({"data": "digits"}) == before
    assert resolve_config({"data": "moons"}).data == "moons"


def test_settings_of_a_known_kind_need_no_disk(named, pictures, monkeypatch):
    tree = {"data": str(pictures), "source": "3.npy", "labels": True}
    with monkeypatch.context() as without:
        for name in ("open", "stat", "lstat", "scandir", "listdir"):
            without.setattr(os, name, None)
        without.setattr(io, "open", None)
        without.setattr(builtins, "open", None)
        config = make_config(tree, "images")
    assert config == resolve_config(tree | {"source": "4.npy"}).model_copy(update={"source": "3.npy"})
    assert make_config(tree).net == NETS["mlp"]()


def test_files_and_folders_are_kept_in_full(named, tmp_path):
    for name in ("pictures", "t.npz", "3.npy"):
        config = resolve_config({"data": name, "source": name})
        assert config.data == config.source == str(tmp_path / name)
    assert resolve_config({"data": "hub:mnist"}).data == "hub:mnist"


# sizes

SIZES = [("unet", size) for size in UNET_SIZES] + [("dit", size) for size in DIT_SIZES]


@pytest.mark.parametrize(("net", "size"), SIZES)
def test_a_size_fills_in_its_fields(net, size):
    made = resolve_config({"data": "digits", "net": {"name": net, "size": size}}).net
    fields = (UNET_SIZES if net == "unet" else DIT_SIZES)[size]
    assert {key: getattr(made, key) for key in fields} == fields
    assert made.size == size


def test_fields_that_are_given_win_over_the_size():
    made = resolve_config(
        {"data": "digits", "net": {"name": "unet", "size": "base", "channels": 32, "dropout": 0.3}}
    ).net
    assert (made.channels, made.dropout, made.heads) == (32, 0.3, UNET_SIZES["base"]["heads"])
    made = resolve_config({"data": "digits", "net": {"name": "dit", "size": "tiny", "depth": 1}}).net
    assert (made.depth, made.width) == (1, DIT_SIZES["tiny"]["width"])


def test_another_size_has_fields_of_its_own():
    tree = resolve_config({"data": "digits", "net": {"name": "unet", "size": "small", "dropout": 0.3}}).model_dump()
    made = resolve_config(override(tree, "net.size", "base")).net
    assert made == resolve_config({"data": "digits", "net": {"name": "unet", "size": "base"}}).net
    assert resolve_config(override(tree, "net.size", "small")).net.dropout == 0.3


def test_a_size_alone_is_of_the_net_of_the_recipe(named):
    made = resolve_config({"data": "pictures", "net": {"size": "tiny"}}).net
    assert made == NETS["unet"](**{"size": "tiny", **UNET_SIZES["tiny"]})


@pytest.mark.parametrize(
    ("data", "net", "words"),
    [
        ("digits", {"name": "unet", "size": "hug"}, r"unknown size of unet 'hug'.*: choose from tiny, small"),
        ("digits", {"name": "dit", "size": "bas"}, r"unknown size of dit 'bas' \(did you mean base\?\)"),
        ("digits", {"name": "dit", "size": "cifar10"}, "unknown size of dit"),
        ("digits", {"name": "unet", "size": 3}, "unknown size of unet '3'"),
        (
            "digits",
            {"name": "resmlp", "size": "small"},
            "net resmlp has no sizes: give its width and depth, or choose unet or dit",
        ),
        ("moons", {"size": "small"}, "net mlp has no sizes"),
        ("moons", {"name": "nte", "size": "small"}, r"unknown net 'nte'.*choose from mlp, resmlp, unet, dit"),
        ("digits", {"name": "unet", "chanels": 3}, r"net unet 'chanels' \(did you mean channels\?\)"),
        ("digits", {"name": "unet", "dropout": 1.0}, "net unet: dropout"),
        ("digits", {"name": "dit", "depth": 0}, "net dit: depth"),
    ],
)
def test_a_mistake_about_a_net_is_one_line(data, net, words):
    with pytest.raises(InputError) as raised:
        resolve_config({"data": data, "net": net})
    assert re.search(words, str(raised.value))
    assert "\n" not in str(raised.value)


# precision, rates, averages


@pytest.mark.parametrize(
    ("precision", "device", "kind"),
    [
        ("auto", "cpu", None),
        ("auto", "cuda", torch.bfloat16),
        ("auto", "mps", None),
        ("float32", "cuda", None),
        ("bfloat16", "cpu", torch.bfloat16),
        ("bfloat16", "cuda", torch.bfloat16),
    ],
)
def test_the_precision_is_that_which_the_device_is_fast_in(precision, device, kind):
    config = resolve_config({"data": "moons", "train": {"precision": precision}})
    assert config.precision(torch.device(device)) is kind


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize(
    ("steps", "warmup", "rises"), [(100, 10, 10), (100, 500, 50), (1, 500, 0), (7, 3, 3), (100, 0, 0)]
)
def test_a_warm_up_takes_at_most_half_of_the_steps(schedule, steps, warmup, rises):
    train = resolve_config(
        {"data": "moons", "train": {"steps": steps, "warmup": warmup, "lr_schedule": schedule, "lr": 2.0}}
    ).train
    rates = [train.rate(step) for step in range(steps)]
    assert rates[:rises] == pytest.approx([2.0 * (step + 1) / rises for step in range(rises)])
    assert rates[rises] == pytest.approx(2.0)
    rest = steps - rises
    falls = [2.0 if schedule == "constant" else 1 + np.cos(np.pi * step / rest) for step in range(rest)]
    assert rates[rises:] == pytest.approx(falls)


def create(folder, **train):
    tree = {"data": "moons", "net": {"width": 8, "depth": 1}, "pool": {"batches": 2}}
    config = resolve_config({**tree, "train": {"batch_size": 16, "checkpoint_every": 10, "log_every": 5, **train}})
    return Run.create(folder, config, "")


def finish(run):
    for _ in runs.train(run):
        pass
    return run


@pytest.mark.parametrize("train", [{"lr_schedule": "cosine"}, {"warmup": 500}, {"lr_schedule": "cosine", "warmup": 5}])
def test_a_run_whose_rates_hang_on_length_stays_as_long(tmp_path, train):
    run = finish(create(tmp_path / "run", steps=20, **train))
    with pytest.raises(InputError, match=r"--resume cannot change train.steps from 20 to 30"):
        run.extended({"train": {"steps": 30}})
    assert Run.open(run.folder) == run
    run.extended({"train": {"steps": 20, "preview_every": 5}})


def test_a_run_whose_warm_up_is_over_is_made_longer_bit_for_bit(tmp_path):
    longer = finish(finish(create(tmp_path / "run", steps=20, warmup=7)).extended({"train": {"steps": 30}}))
    whole = finish(create(tmp_path / "whole", steps=30, warmup=7))
    assert longer.metrics.read_text() == whole.metrics.read_text()
    assert checkpoints.file_hash(longer.weights) == checkpoints.file_hash(whole.weights)


@pytest.mark.parametrize("steps", [8, 20])
def test_every_average_is_that_of_a_run_which_has_it_alone(tmp_path, steps):
    both = finish(create(tmp_path / "both", steps=steps, ema=[0.05, 0.2]))
    assert [both.averaged(), both.averaged(0.05), both.averaged(0.2).name] == [
        *[both.weights] * 2,
        "model-ema-0.2.safetensors",
    ]
    for width in (0.05, 0.2):
        alone = finish(create(tmp_path / str(width), steps=steps, ema=width))
        first, second = runs.load(both.folder, ema=width), runs.load(alone.folder)
        assert all(torch.equal(x, y) for x, y in zip(first.model.parameters(), second.model.parameters(), strict=True))
    with pytest.raises(InputError, match=r"no average of width 0.1: choose 0.05 or 0.2"):
        runs.load(both.folder, ema=0.1)
    assert both.metrics.read_text() == alone.metrics.read_text()


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"ema": []}, "train.ema"),
        ({"ema": 0.5}, "train.ema"),
        ({"ema": [0.05, 0.05]}, "widths of train.ema must be different, not 0.05, 0.05"),
        ({"ema": "wide"}, "train.ema"),
        ({"label_dropout": 1}, "train.label_dropout"),
        ({"precision": "float16"}, "train.precision"),
        ({"lr_schedule": "cosin"}, r"did you mean cosine\?"),
        ({"log": "wandb"}, "train.log"),
        ({"batch_size": 3, "accumulate": 4}, "train.batch_size = 3 cannot be split into 4 parts"),
        ({"preview_every": -1}, "train.preview_every"),
        ({"warmup": -1}, "train.warmup"),
    ],
)
def test_a_mistake_about_training_is_one_line(train, words):
    with pytest.raises(InputError) as raised:
        resolve_config({"data": "moons", "train": train})
    assert re.search(words, str(raised.value))
    assert "\n" not in str(raised.value)


# files

CHANGES = [
    *({"net": {"name": net, "size": size}} for net, size in SIZES),
    *({"net": name} for name in NETS),
    {"net": {"name": "unet", "size": "base", "multipliers": [1, 3], "attention": []}},
    {"images": {"size": 32, "channels": 3, "flip": True, "strict": True, "memory": 0, "workers": 0}},
    {
        "labels": False,
        "train": {"ema": [0.05, 0.1], "precision": "bfloat16", "lr_schedule": "cosine", "label_dropout": 0},
    },
    {"train": {"ema": 0.1, "compile": True, "log": "tensorboard", "accumulate": 4}},
    {"schedule": "vp", "source": "digits"},
    {"reflow": {"parent": "/a", "parent_hash": "b", "guidance": 2.5}},
]


@pytest.mark.parametrize("data", ["digits", "moons", "/nowhere/pictures", "hub:mnist"])
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_configuration_survives_its_file(tmp_path, data, change):
    config = resolve_config({"data": data, **change})
    (tmp_path / "config.toml").write_text(dump_toml(config.model_dump()))
    assert resolve_config(read_toml(tmp_path / "config.toml")) == config


def test_a_configuration_of_images_stays_where_they_are_gone(named, pictures, tmp_path):
    config = resolve_config({"data": "pictures", "net": {"size": "tiny"}})
    (tmp_path / "config.toml").write_text(dump_toml(config.model_dump()))
    pictures.rename(tmp_path / "moved")
    assert resolve_config(read_toml(tmp_path / "config.toml")) == config
