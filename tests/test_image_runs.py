"""Runs on images: the same whether they are streamed or in memory, left or not, and true to their labels."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flowgen import checkpoints, grids, heun, runs, sampling
from flowgen.config import load_data, resolve_config
from flowgen.config.data import ImagesConfig, SplitConfig
from flowgen.core import InputError
from flowgen.data import TensorDataset, streams
from flowgen.data.images.folder import ImageFolder
from flowgen.runs import Run

pytestmark = pytest.mark.journey

COUNT = 60
NET = {"name": "resmlp", "width": 16, "depth": 1, "dropout": 0.2}
TRAIN = {"steps": 24, "batch_size": 16, "log_every": 1, "checkpoint_every": 8, "lr": 1e-2, "label_dropout": 0.3}


@pytest.fixture
def pixels(normal):
    """Images of three classes, all different: `(N, 6, 4)` bytes."""
    bright = torch.arange(COUNT).reshape(-1, 1, 1) % 3
    return ((normal("pixels", COUNT, 6, 4) * 20 + 60 + 60 * bright).clamp(0, 255)).to(torch.uint8).numpy()


@pytest.fixture
def pictures(tmp_path, pixels):
    """The same as files, whose folders are their classes; class after class they are in the order of `ordered`."""
    for number, image in enumerate(pixels):
        path = tmp_path / "pictures" / "abc"[number % 3] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "pictures"


def ordered(pixels):
    """Images and labels in the order of the folder."""
    index = np.argsort(np.arange(COUNT) % 3, kind="stable")
    return pixels[index], index % 3


def create(folder, data, memory=256, **tree):
    images = {"memory": memory, "workers": 0, "flip": True, **tree.pop("images", {})}
    train = {**TRAIN, **tree.pop("train", {})}
    return Run.create(
        folder, resolve_config({"data": str(data), "net": NET, "images": images, "train": train, **tree}), ""
    )


def finish(run):
    for _ in runs.train(run):
        pass
    return run


def leave(run, step):
    steps = runs.train(run)
    while next(steps).step < step:
        pass
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


OPTIONS = {
    "recipe": {},
    "none held out": {"split": {"held_out": 0.0}},
    "exact": {"coupling": "exact", "pool": {"batches": 2, "reuse": 2}},
    "plain": {"labels": False, "images": {"flip": False}},
}


@pytest.mark.parametrize("tree", OPTIONS.values(), ids=OPTIONS)
def test_a_streamed_folder_trains_as_one_in_memory(tmp_path, pictures, tree):
    memory = finish(create(tmp_path / "memory", pictures, **tree))
    streamed = finish(create(tmp_path / "streamed", pictures, memory=0, **tree))
    assert isinstance(memory.config.load_data().distribution, TensorDataset)
    assert isinstance(streamed.config.load_data().distribution, ImageFolder)
    assert_same(memory, streamed)


def test_a_stream_of_two_workers_trains_as_one_of_none(tmp_path, pictures):
    none = finish(create(tmp_path / "none", pictures, memory=0))
    assert_same(finish(create(tmp_path / "two", pictures, memory=0, images={"workers": 2})), none)


def test_an_archive_trains_as_the_folder_of_its_images(tmp_path, pictures, pixels):
    x, y = ordered(pixels)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    folder, archive = (
        finish(create(tmp_path / "folder", pictures)),
        finish(create(tmp_path / "archive", tmp_path / "a.npz")),
    )
    assert_same(folder, archive)
    assert runs.load(folder.folder).classes == ("a", "b", "c")
    assert runs.load(archive.folder).classes == ("0", "1", "2")


@pytest.mark.parametrize("memory", [256, 0], ids=["memory", "streamed"])
@pytest.mark.parametrize("step", [1, 8, 13])
def test_a_run_on_images_that_was_left_goes_on_bit_for_bit(tmp_path, pictures, memory, step):
    whole = finish(create(tmp_path / "whole", pictures, memory))
    assert_same(finish(leave(create(tmp_path / "parts", pictures, memory), step)), whole)


@pytest.mark.parametrize(
    "net",
    [
        {"name": "unet", "channels": 32, "blocks": 1, "multipliers": [1, 2], "attention": [], "dropout": 0.1},
        {"name": "dit", "size": "tiny", "depth": 1},
    ],
    ids=["unet", "dit"],
)
def test_a_run_of_an_image_net_resumes_bit_for_bit(tmp_path, pictures, net):
    tree = {"net": net, "train": {"steps": 4, "checkpoint_every": 2, "batch_size": 4}}
    whole = finish(create(tmp_path / "whole", pictures, **tree))
    assert_same(finish(leave(create(tmp_path / "parts", pictures, **tree), 2)), whole)


@pytest.mark.parametrize("memory", [256, 0], ids=["memory", "streamed"])
def test_accumulated_losses_are_those_of_whole_batches(tmp_path, pictures, memory):
    tree = {"net": {**NET, "dropout": 0.0}}
    whole = finish(create(tmp_path / "whole", pictures, memory, **tree))
    split = finish(create(tmp_path / "split", pictures, memory, **tree, train={"accumulate": 3}))
    losses = [[line["loss"] for line in run.history()] for run in (whole, split)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_mirrored_images_are_other_images(tmp_path, pixels):
    np.save(tmp_path / "plain.npy", pixels)
    np.save(tmp_path / "symmetric.npy", np.concatenate([pixels, pixels[..., ::-1]], axis=2))
    for name in ("plain", "symmetric"):
        made = []
        for flip in (True, False):
            options = {"images": {"flip": flip}, "train": {"steps": 5}}
            made.append(
                finish(create(tmp_path / f"{name} {flip}", tmp_path / f"{name}.npy", **options)).metrics.read_text()
            )
        assert (made[0] == made[1]) == (name == "symmetric")


def test_previews_and_their_number_change_nothing(tmp_path, pictures):
    plain = finish(create(tmp_path / "plain", pictures, train={"preview_every": 0}))
    shown = finish(create(tmp_path / "shown", pictures, train={"preview_every": 8}))
    assert_same(plain, shown)
    names = [path.name for path in sorted((shown.folder / "plots/previews").iterdir())]
    assert names == [f"step-{step:09d}.png" for step in (8, 16, 24)]
    # a row of eight for each of the three classes, 4 x 6 pixels and a gap of 2, enlarged
    scale = 64 // 6
    assert Image.open(shown.folder / "plots/previews" / names[0]).size == ((8 * 6 - 2) * scale, (3 * 8 - 2) * scale)


def test_a_preview_of_rows_is_a_picture_too(trained, tmp_path, table):
    for name, data in (("toy", "moons"), ("table", table)):
        settings = {"train": {"steps": 4, "batch_size": 16, "preview_every": 4}, "labels": name == "table"}
        run = trained(data, tmp_path / name, **settings)
        assert Image.open(run.folder / "plots/previews/step-000000004.png").size[0] > 100


# data


def load(name, held_out=0.1, **images):
    return load_data(str(name), SplitConfig(held_out=held_out), ImagesConfig(**images))


@pytest.mark.parametrize("memory", [256, 0])
def test_images_that_are_held_out_are_not_trained_on(pictures, pixels, memory):
    data = load(pictures, memory=memory, workers=0)
    seen = torch.cat([x for x, _ in [next(data.distribution.chunks(54, seed=0))]])
    held = data.held_out.x
    assert (len(data.distribution), len(held)) == (54, 6)
    rows = {image.numpy().tobytes() for image in torch.cat([seen, held])}
    assert rows == {image.tobytes() for image in pixels}
    assert data.counts == [data.distribution.labels.tolist().count(label) for label in range(3)]
    assert sum(data.counts) == 54
    for image, label in zip(held, data.held_out.labels, strict=True):
        assert (pixels[label::3] == image.numpy()[0]).all((1, 2)).any()


@pytest.mark.parametrize("memory", [256, 0])
def test_without_labels_nothing_else_is_lost(pictures, memory):
    data = load(pictures, memory=memory, workers=0)
    bare = data.unlabelled()
    assert (bare.classes, bare.counts, bare.distribution.labels, bare.held_out.labels) == ((), [], None, None)
    assert torch.equal(next(bare.distribution.chunks(9, seed=0))[0], next(data.distribution.chunks(9, seed=0))[0])
    assert bare.hash == data.hash


def idx(path, array):
    """An idx file, gzipped where its name says so."""
    blob = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(blob) if path.suffix == ".gz" else blob)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_the_test_set_of_idx_files_is_what_is_held_out(tmp_path, pixels, end):
    for name, rows in (("train", slice(50)), ("t10k", slice(50, COUNT))):
        idx(tmp_path / f"{name}-images-idx3-ubyte{end}", pixels[rows])
        idx(tmp_path / f"{name}-labels-idx1-ubyte{end}", (np.arange(COUNT)[rows] % 3 + 4).astype(np.uint8))
    data = load(tmp_path, held_out=0.5)
    assert np.array_equal(data.distribution.x[:, 0], pixels[:50])
    assert np.array_equal(data.held_out.x[:, 0], pixels[50:])
    assert data.classes == ("4", "5", "6")
    assert torch.equal(data.held_out.labels, torch.arange(50, COUNT) % 3)
    run = finish(create(tmp_path / "run", tmp_path, train={"steps": 3}))
    assert runs.load(run.folder).labels.weights == (17, 17, 16)


def test_floats_come_back_in_their_own_range(tmp_path, pixels):
    np.save(tmp_path / "f.npy", pixels.astype(np.float32) * 10 - 300)
    data = load(tmp_path / "f.npy")
    x = data.scaling.apply_to(data.distribution.x)
    assert (x.min(), x.max()) == (-1, 1)
    torch.testing.assert_close(data.scaling.undo(x), data.distribution.x, rtol=1e-5, atol=1e-3)
    assert (data.scaling.pixels(data.distribution.x).aminmax()) == (0, 1)


def test_a_source_of_images_is_in_the_units_of_the_data(tmp_path, pixels):
    np.save(tmp_path / "source.npy", 255 - pixels)
    np.save(tmp_path / "data.npy", pixels)
    run = finish(
        create(tmp_path / "run", tmp_path / "data.npy", source=str(tmp_path / "source.npy"), train={"steps": 3})
    )
    trained = runs.load(run.folder)
    x0 = streams.source_rows(trained.source, 0, 50, 0)
    rows = torch.from_numpy((255 - pixels) / 127.5 - 1).float()
    assert torch.cdist(x0.flatten(1).double(), rows.flatten(1).double()).min(1).values.max() < 1e-5
    x = sampling.sample(trained.model, trained.source, 9, grids.uniform(3), heun)
    assert x.shape == (9, 1, 6, 4)


def test_labels_are_drawn_as_often_as_the_data_have_them(tmp_path, normal):
    y = np.array([3] * 30 + [7] * 90)
    np.savez(tmp_path / "l.npz", x=normal("x", 120, 4, 4).float().numpy(), y=y)
    run = finish(create(tmp_path / "run", tmp_path / "l.npz", train={"steps": 2}, split={"held_out": 0.0}))
    trained = runs.load(run.folder)
    assert trained.classes == ("3", "7")
    drawn = trained.draw_labels(4000, seed=1)
    assert abs(drawn.double().mean() - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5
    assert torch.equal(trained.draw_labels(100, seed=1), drawn[:100])
    assert not torch.equal(trained.draw_labels(100, seed=2), drawn[:100])


@pytest.mark.parametrize("memory", [256, 0])
def test_images_that_have_changed_are_not_gone_on_with(tmp_path, pictures, memory):
    run = leave(create(tmp_path / "run", pictures, memory), 8)
    Image.new("L", (4, 6), 3).save(pictures / "a" / "new.png")
    with pytest.raises(InputError, match="has changed since the run began"):
        finish(run)


def test_the_net_learns_the_labels_of_images(tmp_path, pictures):
    """Brightness is the class: samples of each have that of their class."""
    train = {"steps": 400, "lr": 3e-3, "batch_size": 64, "warmup": 0, "checkpoint_every": 400}
    run = finish(create(tmp_path / "run", pictures, net={"name": "resmlp", "width": 64, "depth": 2}, train=train))
    trained = runs.load(run.folder)
    cond = torch.arange(3).repeat_interleave(20)
    x = sampling.sample(trained.model, trained.source, 60, grids.uniform(10), heun, cond=cond)
    means = x.reshape(3, -1).mean(1) * 255
    assert (means - torch.tensor([60.0, 120.0, 180.0])).abs().max() < 12
