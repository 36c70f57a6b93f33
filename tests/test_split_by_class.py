"""Data with labels are split class by class: each gives its share, and none is lost to the held-out rows."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from flowgen import checkpoints, runs
from flowgen.config import ImagesConfig, load_data, resolve_config
from flowgen.core import generator
from flowgen.data import split
from flowgen.runs import Run

pytestmark = pytest.mark.journey

NET = {"net": {"name": "resmlp", "width": 8, "depth": 1}}


def counts(labels, rows, classes):
    return labels[rows].bincount(minlength=classes)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("sizes", [[50, 50], [5] * 20, [1000, 10, 7, 3, 2, 2], [2] * 30])
def test_every_class_gives_its_share_and_keeps_rows(sizes, share):
    labels = torch.repeat_interleave(torch.tensor(sizes))[torch.randperm(sum(sizes), generator=generator(0, "order"))]
    x = torch.arange(float(len(labels))).unsqueeze(1)
    seen, unseen = split(x, share, 3, labels)
    assert torch.equal(torch.cat([seen, unseen]).sort().values, torch.arange(len(labels)))
    assert counts(labels, seen, len(sizes)).min() >= 1
    held = counts(labels, unseen, len(sizes))
    if share < 0.5:
        assert (held - share * torch.tensor(sizes)).abs().max() < 1
        assert len(unseen) == math.floor(share * len(labels))
    else:
        assert torch.equal(held, torch.tensor(sizes) - 1) or len(unseen) >= share * len(labels) - len(sizes)
    assert torch.equal(split(x, share, 3, labels)[1], unseen)
    assert sum(sizes) < 60 or not torch.equal(split(x, share, 4, labels)[1], unseen)


def test_a_class_of_one_row_is_trained_on():
    labels = torch.tensor([0] * 20 + [1, 2, 3])
    seen, unseen = split(torch.arange(23.0).unsqueeze(1), 0.3, 0, labels)
    assert set(labels[seen].tolist()) == {0, 1, 2, 3}
    assert 6 <= len(unseen) <= 7


def test_equal_rows_of_two_classes_lose_neither(normal):
    """All rows of the second class are rows of the first one too, which stay together."""
    for seed in range(20):
        x = torch.cat([normal("rows", 4, 2), normal("rows", 4, 2)])
        labels = torch.tensor([0] * 4 + [1] * 4)
        seen, unseen = split(x, 0.9, seed, labels)
        assert set(labels[seen].tolist()) == {0, 1}
        assert not {tuple(row) for row in x[seen].tolist()} & {tuple(row) for row in x[unseen].tolist()}


@pytest.fixture(scope="module")
def lone(tmp_path_factory):
    """30 folders of one image, and a 31st of ten."""
    root = tmp_path_factory.mktemp("lone")
    rng = np.random.default_rng(0)
    for name, count in {**{str(number): 1 for number in range(30)}, "many": 10}.items():
        (root / name).mkdir()
        for index in range(count):
            Image.fromarray(rng.integers(0, 256, (4, 4), np.uint8)).save(root / name / f"{index}.png")
    return root


@pytest.mark.parametrize("memory", [0, 256])
def test_no_folder_is_lost_to_the_held_out_images(lone, memory):
    split = resolve_config({"data": str(lone)}).split
    data = load_data(str(lone), split, ImagesConfig(memory=memory, workers=0))
    assert min(data.counts) == 1
    assert sum(data.counts) + len(data.held_out) == 40
    assert {data.classes[label] for label in data.held_out.labels.tolist()} == {"many"}


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    """A run on the files of MNIST's kind, whose training set lacks the class 7 of its test set."""
    from flowgen.runs import train

    root = tmp_path_factory.mktemp("unseen")
    rng = np.random.default_rng(1)
    for name, labels in (("train", [3, 4] * 10), ("t10k", [3, 7])):
        pixels = rng.integers(0, 256, (len(labels), 4, 4), np.uint8)
        head = bytes([0, 0, 8, 3]) + np.array(pixels.shape, ">u4").tobytes()
        (root / f"{name}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = bytes([0, 0, 8, 1]) + np.array([len(labels)], ">u4").tobytes()
        (root / f"{name}-labels-idx1-ubyte").write_bytes(head + bytes(labels))
    settings = {"train": {"steps": 2, "batch_size": 4, "preview_every": 1}, **NET}
    run = Run.create(root / "run", resolve_config({"data": str(root), **settings}), "flowgen train")
    for _ in train(run):
        pass
    return run.folder


@pytest.mark.parametrize("asked", ["--label 7", "--labels 3-7", "--labels 4,7"])
def test_a_class_that_was_never_seen_is_refused(unseen, flowgen, asked):
    code, _, err = flowgen("sample", str(unseen), *asked.split())
    assert code == 2
    assert "no training row has the label 7" in err.splitlines()[-1]


def test_pictures_show_classes_that_were_seen(unseen):
    runs.illustrate(Run.open(unseen))
    trained = runs.load(unseen)
    assert (trained.classes, trained.seen) == (("3", "4", "7"), [0, 1])
    height = Image.open(unseen / "plots/samples.png").size[1]
    assert height == Image.open(unseen / "plots/previews/step-000000001.png").size[1] == 16 * (2 * 6 - 2)


@pytest.mark.parametrize("labels", [False, True])
def test_a_table_is_split_by_class_where_it_has_labels(tmp_path, normal, labels):
    y = np.array([0] * 90 + [1] * 10)
    np.savez(tmp_path / "t.npz", x=normal("x", 100, 2).float().numpy(), y=y)
    data = resolve_config({"data": str(tmp_path / "t.npz"), "labels": labels}).load_data()
    if labels:
        assert data.counts == [81, 9]
    else:
        as_before = split(data.distribution.x.new_tensor(np.load(tmp_path / "t.npz")["x"]), 0.1, 0)[1]
        assert torch.equal(data.held_out.x, torch.from_numpy(np.load(tmp_path / "t.npz")["x"])[as_before])


def test_classes_in_the_order_of_an_earlier_version(tmp_path, normal, trained):
    """A run whose classes were sorted as text has the labels of its data in that order."""
    y = np.arange(120) % 12
    np.savez(tmp_path / "t.npz", x=normal("x", 120, 2).float().numpy(), y=y)
    run = trained(tmp_path / "t.npz", tmp_path / "run", steps=2, labels=True)
    tensors, metadata = checkpoints.read_tensors(run.weights)
    facts = json.loads(metadata["flowgen"])
    facts["classes"] = sorted(facts["classes"])
    checkpoints.write_tensors(run.weights, tensors, {"flowgen": json.dumps(facts)})
    before, data = runs.load(run.folder), run.config.load_data()
    found = before.check_data(data)
    assert found.classes == tuple(sorted(map(str, range(12))))
    for law, other in ((found.distribution, data.distribution), (found.held_out, data.held_out)):
        assert [found.classes[i] for i in law.labels.tolist()] == [data.classes[i] for i in other.labels.tolist()]
