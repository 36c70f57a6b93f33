"""Folders of images: files that are not read are counted and named, and deep images are not black."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from flowgen.config import ImagesConfig, SplitConfig, load_data
from flowgen.core import InputError, Note
from flowgen.data.images.decoding import read_image
from flowgen.data.images.folder import open_folder

pytestmark = pytest.mark.journey

BITS = {10: 1023, 12: 4095, 14: 16383, 16: 65535}


def opened(folder, **options):
    """The folder, and what is told of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = open_folder(folder, **options)
    return made, [str(each.message) for each in caught if issubclass(each.category, Note)]


def write_grey(folder, *tops, shape=(4, 5)):
    """Images of 16 bits: a ramp from 0 to each top."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, top in enumerate(tops):
        x = np.linspace(0, top, shape[0] * shape[1]).round().astype(np.uint16).reshape(shape)
        Image.fromarray(x).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture
def folder(tmp_path):
    """Two images that are read."""
    for index in range(2):
        Image.fromarray(np.full((4, 5, 3), 100 * index, np.uint8)).save(tmp_path / f"{index}.png")
    return tmp_path


def test_files_that_are_left_out_are_counted_by_suffix(folder):
    for name in ("a.jxl", "b.JXL", "c.heic", "d.svg", "notes.txt", "LICENSE", ".DS_Store", ".x.jxl", "Thumbs.db"):
        (folder / name).touch()
    made, told = opened(folder)
    assert len(made) == 2
    assert told == [f"{folder}: left out 6 files: 2 .jxl, 1 without a suffix, 1 .heic, 1 .svg, 1 .txt"]


def test_a_folder_of_images_alone_says_nothing(folder):
    assert opened(folder)[1] == []


def test_a_class_that_is_not_read_at_all_is_named(folder, tmp_path):
    root = tmp_path / "classes"
    for name in ("cats", "dogs"):
        (root / name).mkdir(parents=True)
    for index in range(2):
        (folder / f"{index}.png").rename(root / "cats" / f"{index}.png")
        (root / "dogs" / f"{index}.jxl").touch()
    made, told = opened(root)
    assert made.classes == ("cats",)
    assert told == [f"{root}: left out 2 files: 2 .jxl; nothing is left of dogs"]


def test_a_folder_that_cannot_be_read_names_what_it_holds(tmp_path):
    for name in ("a.jxl", "b.heic", "c.heic"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"no images, but 2 \.heic, 1 \.jxl; they end in \.png"):
        open_folder(tmp_path)


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".tif", ".pnm", ".apng", ".avif"])
def test_what_pillow_reads_is_read(folder, suffix):
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    for index in range(2):
        (folder / f"{index}.png").unlink()
        format = {".jfif": "JPEG", ".jpe": "JPEG", ".pnm": "PPM", ".apng": "PNG"}.get(suffix)
        Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(folder / f"{index}{suffix}", format)
    made, told = opened(folder)
    assert told == []
    assert np.abs(made.load().pixels.numpy().astype(int) - 200).max() <= 3


@pytest.mark.parametrize("bits", BITS)
def test_white_is_that_of_the_evident_depth(tmp_path, bits):
    top = BITS[bits]
    made, told = opened(write_grey(tmp_path / "deep", top // 3, top - 2))
    levels = made.load().pixels.numpy()
    assert np.ptp(levels[1].astype(int)) == 255
    assert levels[0].max() == 85
    assert len(told) == (bits < 16)
    if told:
        assert f"taking images of 16 bits as of {bits}, with white at {top:,}" in told[0]
        assert "001.png" in told[0]


def test_the_depth_may_be_given(tmp_path):
    root = write_grey(tmp_path / "deep", 1000, 1000)
    made, told = opened(root, bits=12)
    assert told == []
    assert made.load().pixels.max() == round(1000 / 4095 * 255)
    data = load_data(str(root), SplitConfig(held_out=0), ImagesConfig(bits=16))
    assert data.distribution.x.max() == round(1000 / 65535 * 255)


def test_a_value_beyond_the_guess_is_refused(tmp_path):
    root = write_grey(tmp_path / "deep", *[4000] * 250)
    write_grey(tmp_path / "one", 5000)
    (tmp_path / "one" / "000.png").replace(root / "001.png")  # not among those that are looked at
    made, _ = opened(root)
    for read in (made.load, lambda: [next(made.chunks(250, seed=0))]):
        with pytest.raises(InputError, match=r"001\.png is of values up to 5,000.*images\.bits=16"):
            read()


def png(x, colour):
    """A PNG of 16 bits, `(H, W, C)`; its colour type is 2 for RGB, 4 for grey and alpha, 6 for RGBA."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", x.shape[1], x.shape[0], 16, colour, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in x)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("channels", "colour"), [(2, 4), (3, 2), (4, 6)])
def test_colours_that_would_be_black_are_refused(tmp_path, channels, colour):
    x = np.linspace(0, 4000, 20 * channels).reshape(4, 5, channels)
    if channels != 3:
        x[..., -1] = 65535  # opaque
    for index in range(2):
        (tmp_path / f"{index}.png").write_bytes(png(x, colour))
    with pytest.raises(InputError, match=r"0\.png: 12 bits of 16, of which only the upper 8 are read"):
        open_folder(tmp_path)
    assert opened(tmp_path, bits=16)[1] == []
    for index in range(2):
        (tmp_path / f"{index}.png").write_bytes(png(np.minimum(16 * x, 65535), colour))
    made, told = opened(tmp_path)
    assert told == []
    assert made.load().pixels.max() > 200


def test_an_image_to_edit_is_read_by_its_own_depth(tmp_path):
    write_grey(tmp_path, 4095)
    with pytest.warns(Note, match="of 12"):
        assert read_image(tmp_path / "000.png").max() == 255


def test_arrays_have_no_bits(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(InputError, match=r"images\.bits"):
        load_data(str(tmp_path / "x.npy"), SplitConfig(), ImagesConfig(bits=12))


@pytest.mark.filterwarnings("default::flowgen.core.Note")
def test_commands_tell_what_is_left_out(flowgen, tmp_path):
    root = write_grey(tmp_path / "deep", *[4000] * 6, shape=(8, 8))
    Path(root, "a.jxl").touch()
    code, _, err = flowgen("train", "deep", "--size", "tiny", "--steps", 1, "--batch-size", 2)
    assert code == 0, err
    assert err.count("left out 1 file: 1 .jxl") == 1
    assert err.count("as of 12, with white at 4,095") == 1
