"""Images of the hub: read through a stand-in for the package `datasets`, without a network."""

import io
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from flowgen.core import InputError
from flowgen.data.images.reading import read_images


def noise(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape).astype(np.uint8)


class Feature(SimpleNamespace):
    pass


class Hub:
    """As much of the package `datasets` as is called."""

    class Image:
        def __init__(self, decode=True):
            self.decode = decode

    class ClassLabel:
        dtype = "int64"

        def __init__(self, names):
            self.names = names

    class Split:
        def __init__(self, features, columns, decoded=True):
            self.features, self.columns, self.decoded = features, columns, decoded

        def cast_column(self, name, feature):
            return Hub.Split({**self.features, name: feature}, self.columns, feature.decode)

        def __len__(self):
            return len(next(iter(self.columns.values())))

        def __getitem__(self, key):
            if isinstance(key, str):
                return self.columns[key]
            assert not self.decoded, "their decoder must not be used"
            return {name: column[key] for name, column in self.columns.items()}


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture
def hub(monkeypatch):
    """hub(**splits): a hub with one data set; gives the list of what was asked of it."""

    def make(answer):
        asked = []

        def load(name, config, split):
            asked.append((name, config, split))
            if isinstance(answer, Exception):
                raise answer
            return answer[split] if split else answer

        package = ModuleType("datasets")
        package.Image, package.ClassLabel, package.load_dataset = Hub.Image, Hub.ClassLabel, load
        monkeypatch.setitem(sys.modules, "datasets", package)
        return asked

    return make


def split(x, labels, names=("cat", "dog", "owl")):
    features = {"id": Feature(dtype="int64"), "img": Hub.Image(), "kind": Hub.ClassLabel(list(names))}
    return Hub.Split(features, {"id": list(range(len(x))), "img": list(map(png, x)), "kind": labels})


def test_the_hub_gives_images_and_labels(hub):
    x = noise(7, 4, 5, 3)
    asked = hub({"train": split(x[:5], [0, 2, 0, 0, 2]), "test": split(x[5:], [2, 1]), "other": split(x, [9] * 7)})
    found = read_images("hub:someone/pets/small")
    assert asked == [("someone/pets", "small", None)]
    assert (found.pixels.numpy() == np.moveaxis(x, 3, 1)).all()
    assert found.labels.tolist() == [0, 2, 0, 0, 2, 2, 1]
    assert found.classes == ("cat", "dog", "owl")
    assert found.held_out == 2
    assert read_images("hub:someone/pets", size=2).pixels.shape == (7, 3, 2, 2)


def test_a_split_of_the_hub_alone(hub):
    x = noise(3, 4, 5)
    asked = hub({"validation": split(x, [0, 1, 2])})
    found = read_images("hub:pets@validation")
    assert asked == [("pets", None, "validation")]
    assert (found.pixels[:, 0].numpy() == x).all()
    assert found.held_out == 0
    with pytest.raises(InputError, match="no split named train; add @SPLIT, one of validation"):
        read_images("hub:pets")


def test_secret_labels_hold_nothing_out(hub):
    hub({"train": split(noise(3, 4, 5), [0, 1, 2]), "test": split(noise(2, 4, 5), [-1, -1])})
    assert read_images("hub:pets").held_out == 0
    assert len(read_images("hub:pets").pixels) == 3


def test_images_of_the_hub_may_be_files_and_labels_numbers(hub, tmp_path):
    x = noise(2, 4, 5)
    for number, image in enumerate(x):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    cells = [{"bytes": None, "path": str(tmp_path / f"{number}.png")} for number in range(2)]
    features = {"image": Hub.Image(), "label": Feature(dtype="int32")}
    hub({"train": Hub.Split(features, {"image": cells, "label": [8, 3]})})
    found = read_images("hub:pets")
    assert (found.pixels[:, 0].numpy() == x).all()
    assert found.classes == ("3", "8")
    assert found.labels.tolist() == [1, 0]


def hub_of(column):
    return {"train": Hub.Split({"image": Hub.Image()}, {"image": column})}


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("hub:", {}, "expected hub:NAME"),
        ("hub:a/b/c/d", {}, "expected hub:NAME"),
        ("hub:a", ValueError("Config name is missing.\nPlease pick one"), "hub:a: Config name is missing. Please pick"),
        ("hub:a", {"train": Hub.Split({"text": Feature()}, {"text": ["a"]})}, "no column of images among text"),
        ("hub:a", hub_of([png(noise(4, 4)), {"bytes": b"spoilt", "path": None}]), "image 1 cannot be read"),
        ("hub:a", hub_of([png(noise(4, 4)), png(noise(4, 5))]), "image 1 is 5x4 in grey; --image-size"),
        ("hub:a", hub_of([png(noise(4, 4))] * 150 + [png(noise(4, 5))] + [png(noise(4, 4))] * 60), "image 150 is 5x4"),
        ("hub:a", {"train": split(noise(2, 4, 4), [0, 3])}, "from 0 to 2; they are from 0 to 3"),
    ],
)
def test_mistakes_about_the_hub_are_told_in_one_line(hub, name, answer, message):
    hub(answer)
    with pytest.raises(InputError, match=message) as caught:
        read_images(name)
    assert "\n" not in str(caught.value)


def test_the_command_that_installs_the_hub_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'flowgen-torch\[hub\]'"):
        read_images("hub:mnist")
