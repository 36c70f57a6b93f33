"""Pictures: what is written is what was given, at its place, and half a file is never left."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from flowgen.core import InputError, generator
from flowgen.data.images.folder import open_folder
from flowgen.data.images.pictures import (
    GAP,
    grid,
    to_uint8,
    write_folder,
    write_grid,
    write_npz,
    write_strip,
)
from flowgen.data.images.reading import read_images


def noise(*shape):
    return torch.randint(256, shape, generator=generator(0, "pictures"), dtype=torch.uint8)


def read(path):
    return np.asarray(Image.open(path))


def test_levels_are_rounded_and_clamped():
    x = torch.tensor([0, 0.5 / 255 - 1e-4, 0.5 / 255 + 1e-4, 1, 1.3, -0.2, torch.nan, torch.inf])
    assert to_uint8(x).tolist() == [0, 0, 1, 255, 255, 0, 0, 255]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(every.float() / 255), every)
    assert torch.equal(to_uint8(every), every)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("count", "columns", "expected"), [(7, None, (3, 3)), (7, 2, (4, 2)), (2, 5, (1, 2)), (1, None, (1, 1))]
)
def test_images_stand_row_by_row(count, columns, expected, channels):
    x = noise(count, channels, 4, 6)
    picture = grid(x, columns)
    rows, columns = expected
    assert picture.shape == (rows * (4 + GAP) - GAP, columns * (6 + GAP) - GAP, channels)
    for number in range(count):
        top, left = number // columns * (4 + GAP), number % columns * (6 + GAP)
        assert (picture[top : top + 4, left : left + 6] == x[number].permute(1, 2, 0).numpy()).all()
        picture[top : top + 4, left : left + 6] = 255
    assert (picture == 255).all()  # all else is paper


def test_small_images_are_enlarged_pixel_by_pixel(tmp_path):
    x = noise(6, 1, 8, 8)
    write_grid(tmp_path / "grid.png", x, columns=3)
    seen = read(tmp_path / "grid.png")
    factor = seen.shape[0] // (2 * 8 + GAP)
    assert factor == 8
    assert (seen == grid(x, 3)[..., 0].repeat(factor, 0).repeat(factor, 1)).all()
    write_grid(tmp_path / "large.png", noise(2, 3, 100, 100))
    assert read(tmp_path / "large.png").shape == (100, 200 + GAP, 3)
    write_grid(tmp_path / "told.png", x, columns=3, scale=1)
    assert read(tmp_path / "told.png").shape == (18, 28)


@pytest.mark.parametrize(("x", "message"), [(noise(0, 1, 4, 4), "at least one"), (noise(2, 4, 4, 4), "not 4")])
def test_what_is_no_picture_is_refused(x, message, tmp_path):
    with pytest.raises(InputError, match=message):
        write_grid(tmp_path / "grid.png", x)
    with pytest.raises(InputError, match="no folder"):
        write_grid(tmp_path / "none/grid.png", noise(1, 1, 4, 4))
    assert not list(tmp_path.iterdir())


def test_a_strip_runs_from_noise_to_data(tmp_path):
    steps = torch.arange(101, dtype=torch.uint8).reshape(-1, 1, 1, 1, 1).expand(101, 3, 1, 64, 64)
    sample = 50 * torch.arange(3, dtype=torch.uint8).reshape(1, 3, 1, 1, 1)
    write_strip(tmp_path / "strip.png", steps + sample)
    seen = read(tmp_path / "strip.png")[:: 64 + GAP, :: 64 + GAP].astype(int)
    assert seen.shape == (3, 10)
    assert seen[0].tolist() == [0, 11, 22, 33, 44, 56, 67, 78, 89, 100]
    assert (seen - seen[0] == [[0], [50], [100]]).all()
    write_strip(tmp_path / "short.png", (steps + sample)[:3])
    assert read(tmp_path / "short.png")[0, :: 64 + GAP].tolist() == [0, 1, 2]


# folders


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_gives_back_its_images(tmp_path, channels):
    x = noise(25, channels, 5, 7)
    write_folder(tmp_path / "new/samples", x.split(10))
    folder = open_folder(tmp_path / "new/samples")
    assert torch.equal(folder.load().pixels, x)
    assert [path.name for path in folder.files[:2]] == ["000000.png", "000001.png"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["samples"]


def test_names_are_the_numbers_of_samples(tmp_path):
    write_folder(tmp_path / "a", [noise(3, 1, 4, 4)], start=999_999, labels=torch.tensor([4, 0, 2]))
    with (tmp_path / "a/labels.csv").open() as file:
        assert list(csv.reader(file)) == [
            ["file", "label"],
            ["999999.png", "4"],
            ["1000000.png", "0"],
            ["1000001.png", "2"],
        ]
    assert len(open_folder(tmp_path / "a")) == 3


def test_images_are_written_as_they_come(tmp_path):
    def chunks():
        for written in range(0, 12, 4):
            (building,) = tmp_path.iterdir()
            assert len(list(building.iterdir())) == written
            yield noise(4, 1, 4, 4)

    write_folder(tmp_path / "a", chunks())
    assert len(list((tmp_path / "a").iterdir())) == 12


def test_a_folder_is_whole_or_absent(tmp_path):
    def chunks():
        yield noise(4, 1, 4, 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "a", chunks())
    with pytest.raises(ValueError, match="shorter"):
        write_folder(tmp_path / "a", [noise(4, 1, 4, 4)], labels=torch.zeros(3))
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_but_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "empty", [noise(2, 1, 4, 4)])
    (tmp_path / "file").write_text("")
    for name in ("empty", "file", "file/below"):
        with pytest.raises(InputError, match=name):
            write_folder(tmp_path / name, [noise(2, 1, 4, 4)])
    assert len(list((tmp_path / "empty").iterdir())) == 2


# archives


@pytest.mark.parametrize("channels", [1, 3])
def test_an_archive_gives_back_its_images(tmp_path, channels):
    x, labels = noise(25, channels, 5, 7), torch.arange(25) % 4
    write_npz(tmp_path / "a.npz", (x.float() / 255).split(10), 25, (channels, 5, 7), labels)
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays.files == ["arr_0", "arr_1"]
        assert arrays["arr_0"].dtype == np.uint8
        assert (arrays["arr_0"] == x.permute(0, 2, 3, 1).numpy()).all()
        assert arrays["arr_1"].dtype == np.int64
    found = read_images(tmp_path / "a.npz")
    assert torch.equal(found.pixels, x)
    assert torch.equal(found.labels, labels)


def test_an_archive_without_labels_has_one_array(tmp_path):
    write_npz(tmp_path / "a.npz", [noise(3, 1, 5, 7)], 3, (1, 5, 7))
    assert np.load(tmp_path / "a.npz").files == ["arr_0"]


@pytest.mark.parametrize(
    ("count", "shape", "labels", "message"),
    [
        (4, (1, 5, 7), None, "expected 4 rows, got 3"),
        (3, (1, 7, 5), None, "no part of"),
        (3, (1, 5, 7), torch.zeros(2, dtype=torch.int64), "expected 3 rows, got 2"),
    ],
)
def test_an_archive_is_whole_or_absent(tmp_path, count, shape, labels, message):
    with pytest.raises(InputError, match=message):
        write_npz(tmp_path / "a.npz", [noise(3, 1, 5, 7)], count, shape, labels)
    assert not list(tmp_path.iterdir())
