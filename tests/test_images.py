"""Images in memory: files give what was put in, and damaged ones one line that says what is wrong."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from flowgen.core import InputError
from flowgen.data.images import arrays as module
from flowgen.data.images.arrays import is_folder, is_images, make_images
from flowgen.data.images.reading import read_images


def noise(*shape, kind=np.uint8):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape).astype(kind)


def refused(path, message, **options):
    with pytest.raises(InputError, match=message) as caught:
        read_images(path, **options)
    assert "\n" not in str(caught.value)


def test_digits():
    digits = read_images("digits")
    assert is_images("digits")
    assert not is_folder("digits")
    assert digits.pixels.shape == (1797, 1, 8, 8)
    assert digits.pixels.dtype == torch.float32
    assert (digits.pixels.min(), digits.pixels.max()) == (0, 1)
    assert (digits.pixels[:, 0].numpy() * 16 == load_digits().images).all()
    assert digits.classes == tuple("0123456789")
    assert digits.labels.tolist() == load_digits().target.tolist()


# idx


def idx(x, magic=None):
    return (magic or bytes([0, 0, 8, x.ndim])) + struct.pack(f">{x.ndim}I", *x.shape) + x.tobytes()


def write(path, data):
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


NAMES = {
    "train-images-idx3-ubyte": "train-labels-idx1-ubyte",
    "train-images-idx3-ubyte.gz": "train-labels-idx1-ubyte.gz",
    "emnist-letters.images.idx3-ubyte.gz": "emnist-letters.labels.idx1-ubyte",
    "faces.idx3-ubyte": "faces.idx1-ubyte.gz",
    "images-of-images-idx3-ubyte": "images-of-labels-idx1-ubyte",
}


@pytest.mark.parametrize(("name", "labels_name"), NAMES.items())
def test_an_idx_file_comes_with_the_labels_beside_it(tmp_path, name, labels_name):
    x, labels = noise(5, 4, 3), np.array([7, 2, 7, 9, 2], np.uint8)
    path = write(tmp_path / name, idx(x))
    assert read_images(path).labels is None
    write(tmp_path / labels_name, idx(labels))
    found = read_images(str(path))
    assert is_images(str(path))
    assert (found.pixels[:, 0].numpy() == x).all()
    assert found.labels.tolist() == [1, 0, 1, 2, 0]
    assert found.classes == ("2", "7", "9")
    assert found.held_out == 0


@pytest.fixture
def idx_folder(tmp_path):
    """A folder with a training set of five images and the test set of three, and these."""
    train, test = noise(5, 4, 3), noise(3, 4, 3)
    write(tmp_path / "train-images-idx3-ubyte.gz", idx(train))
    write(tmp_path / "train-labels-idx1-ubyte.gz", idx(np.arange(5, dtype=np.uint8)))
    write(tmp_path / "t10k-images-idx3-ubyte.gz", idx(test))
    write(tmp_path / "t10k-labels-idx1-ubyte.gz", idx(np.array([4, 6, 0], np.uint8)))
    return tmp_path, train, test


@pytest.mark.parametrize("start", ["t10k", "test"])
def test_a_folder_of_idx_files_has_its_own_test_set(idx_folder, start):
    folder, train, test = idx_folder
    for path in folder.glob("t10k*"):
        path.rename(folder / path.name.replace("t10k", start))
    found = read_images(folder)
    assert is_images(str(folder))
    assert not is_folder(str(folder))
    assert found.held_out == 3
    assert (found.pixels[:-3, 0].numpy() == train).all()
    assert (found.pixels[-3:, 0].numpy() == test).all()
    assert found.labels.tolist() == [0, 1, 2, 3, 4, 4, 5, 0]
    assert found.classes == ("0", "1", "2", "3", "4", "6")


def test_a_folder_may_lack_its_test_set_or_labels(idx_folder):
    folder, _, _ = idx_folder
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    assert read_images(folder).labels is None
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    assert read_images(folder).held_out == 0
    assert len(read_images(folder).labels) == 5


def test_training_and_test_images_are_of_one_size(idx_folder):
    folder, _, _ = idx_folder
    write(folder / "t10k-images-idx3-ubyte.gz", idx(noise(3, 5, 3)))
    refused(folder, r"training images of \(4, 3\) and test images of \(5, 3\)")


DAMAGES = {
    "magic": (lambda data: b"\1" + data[1:], "not an idx file"),
    "type": (lambda data: data[:2] + b"\x0d" + data[3:], "not an idx file of unsigned bytes"),
    "dimensions": (lambda data: data[:3] + b"\1" + data[4:], "in 3 dimensions"),
    "header": (lambda data: data[:11], "not an idx file"),
    "empty": (lambda data: b"", "not an idx file"),
    "short": (lambda data: data[:-1], "fewer bytes than its header says: 60"),
    "long": (lambda data: data + b"\0", "more bytes than its header says: 60"),
    "count": (lambda data: data[:4] + b"\0\0\0\6" + data[8:], "fewer bytes"),
    "no images": (lambda data: data[:4] + bytes(4) + data[8:16], "no images"),
    "no width": (lambda data: data[:12] + bytes(4), "no images"),
    "claims": (lambda data: data[:4] + b"\xff\xff\xff\xff" * 3 + data[16:], "asks for .* is the limit"),
    "claims much": (lambda data: data[:4] + struct.pack(">3I", 2**22, 64, 60) + data[16:], "fewer bytes"),
}


@pytest.mark.parametrize("name", ["a.idx3-ubyte", "a.idx3-ubyte.gz"])
@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_idx_file_is_refused_without_its_memory(tmp_path, damage, message, name):
    import tracemalloc

    path = write(tmp_path / name, damage(idx(noise(5, 4, 3))))
    tracemalloc.start()
    try:
        refused(path, message)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_damaged_compression_is_refused(tmp_path):
    whole = gzip.compress(idx(noise(50, 40, 30)))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for data in (whole[: len(whole) // 2], whole[:-4], bytes(flipped), whole[:5]):
        path = tmp_path / "a.idx3-ubyte.gz"
        path.write_bytes(data)
        refused(path, "a.idx3-ubyte.gz: ")


def test_no_more_is_unpacked_than_the_header_says(tmp_path):
    """Sixty bytes of images, and then a gigabyte of zeros."""
    path = tmp_path / "a.idx3-ubyte.gz"
    with gzip.open(path, "wb") as file:
        file.write(idx(noise(5, 4, 3)))
        for _ in range(4):
            file.write(bytes(2**24))
    read = gzip.GzipFile.read
    amounts = []
    original = module._parse_idx

    def spy(stream, *args):
        stream.read = lambda size=-1: amounts.append(size) or read(stream, size)
        return original(stream, *args)

    module._parse_idx = spy
    try:
        refused(path, "more bytes")
    finally:
        module._parse_idx = original
    assert sum(amounts) == 16 + 60 + 1
    assert min(amounts) >= 0


def test_labels_are_as_many_as_images(tmp_path):
    path = write(tmp_path / "a-images-idx3-ubyte", idx(noise(5, 4, 3)))
    write(tmp_path / "a-labels-idx1-ubyte", idx(noise(6)))
    refused(path, "5 images, and 6 labels")


# arrays


def saved(tmp_path, x, **others):
    """The array as .npy, or with others as .npz."""
    if others:
        np.savez(tmp_path / "a.npz", x=x, **others)
        return tmp_path / "a.npz"
    np.save(tmp_path / "a.npy", x)
    return tmp_path / "a.npy"


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.uint16, np.float32, np.float64, np.float16])
def test_numbers_stay_what_they_are(tmp_path, kind):
    found = read_images(saved(tmp_path, noise(5, 4, 6, kind=kind))).pixels
    assert found.dtype == (torch.uint8 if np.dtype(kind).kind in "iu" else torch.float32)
    assert (found[:, 0].numpy() == noise(5, 4, 6)).all()


def test_truth_values_are_black_and_white(tmp_path):
    assert read_images(saved(tmp_path, noise(5, 4, 6) > 99)).pixels.unique().tolist() == [0, 255]


def test_channels_may_be_first_or_last(tmp_path):
    x = noise(5, 4, 6, 3)
    channels_first = np.moveaxis(x, 3, 1)
    for given in (x, channels_first, np.asfortranarray(x)):
        found = read_images(saved(tmp_path, given))
        assert (found.pixels.numpy() == channels_first).all()
        assert found.pixels.is_contiguous()
    assert read_images(saved(tmp_path, noise(5, 3, 6, 3))).pixels.shape == (5, 3, 3, 6)  # both could be: the last is


def test_what_was_read_is_our_own(tmp_path):
    """A file that changes later changes nothing, and pixels may be written to."""
    path = saved(tmp_path, noise(5, 4, 6))
    found = read_images(path)
    found.pixels.zero_()
    assert (np.load(path) == noise(5, 4, 6)).all()


def test_four_channels_are_seen_on_white(tmp_path):
    x = noise(5, 4, 6, 4)
    alpha = x[..., 3:] / 255
    seen = x[..., :3] * alpha + 255 * (1 - alpha)
    for given in (x, np.moveaxis(x, 3, 1)[..., :5]):
        found = read_images(saved(tmp_path, given)).pixels
        assert np.abs(found.numpy() - np.moveaxis(seen, 3, 1)[..., : found.shape[3]]).max() <= 0.5
    refused(saved(tmp_path, x.astype(np.float32)), "four channels of floats")


BAD = {
    "one dimension": (noise(5), r"not the shape \(5,\)"),
    "five dimensions": (noise(5, 4, 3, 2, 1), r"not the shape"),
    "two channels": (noise(5, 2, 4, 4)[:, :, :, :2], r"1, 3 or 4 channels"),
    "no image": (noise(0, 4, 4), "no images"),
    "no pixel": (noise(5, 4, 0), "no images"),
    "negative": (noise(5, 4, 4, kind=np.int64) - 1, "whole numbers from -1 to"),
    "large": (noise(5, 4, 4, kind=np.int64) + 300, "whole numbers from 3"),
    "text": (np.full((5, 4, 4), "a"), "values of type <U1"),
    "complex": (noise(5, 4, 4, kind=np.complex64), "values of type complex64"),
    "nan": (np.where(noise(5, 4, 4) == noise(5, 4, 4)[2, 1, 1], np.nan, 1.0), "of 5 images hold NaN"),
    "infinite": (np.full((5, 4, 4), np.inf), "5 of 5 images hold"),
    "beyond float32": (np.full((5, 4, 4), 1e300), "numbers beyond float32"),
    "objects": (np.full((5, 4, 4), None), "not a readable .npy"),
}


@pytest.mark.parametrize(("x", "message"), BAD.values(), ids=list(BAD))
def test_other_arrays_are_refused(tmp_path, x, message):
    refused(saved(tmp_path, x), message)


def test_damaged_files_are_refused(tmp_path):
    whole = saved(tmp_path, noise(5, 4, 4)).read_bytes()
    claims = whole.replace(b"(5, 4, 4), ", b"(9" + b"9" * 8 + b", 4), ")
    for data in (b"", b"text", whole[:-1], whole[:40], claims):
        (tmp_path / "a.npy").write_bytes(data)
        refused(tmp_path / "a.npy", "not a readable .npy file")
    np.savez_compressed(tmp_path / "b.npz", x=noise(50, 40, 40))
    whole = (tmp_path / "b.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for data in (b"", b"text", whole[:-30], bytes(flipped), (tmp_path / "a.npy").read_bytes()):
        (tmp_path / "b.npz").write_bytes(data)
        refused(tmp_path / "b.npz", "not a readable .npz file")
    refused(tmp_path / "none.npy", "no such file")
    (tmp_path / "a.txt").write_text("")
    refused(tmp_path / "a.txt", "unknown suffix")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "no train-images")


@pytest.mark.costly
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_damage_anywhere_is_told_in_one_line(tmp_path, suffix):
    others = {"y": np.arange(5)} if suffix == "npz" else {}
    whole = np.frombuffer(saved(tmp_path, noise(5, 4, 4), **others).read_bytes(), np.uint8)
    rng, path, messages = np.random.default_rng(0), tmp_path / f"b.{suffix}", []
    for _ in range(400):
        damaged = whole.copy()
        damaged[rng.integers(0, 140, 2)] = rng.integers(0, 256, 2)
        path.write_bytes(damaged.tobytes())
        is_images(str(path))
        try:
            read_images(path)
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert not any("\n" in message for message in messages)


def test_very_large_archives_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((5, 20, 20), np.uint8))
    refused(tmp_path / "a.npz", "2,128 bytes; 1,000 is the limit")


def test_the_array_is_found_by_its_name(tmp_path):
    x, other = noise(5, 4, 4), noise(2, 4, 4)
    for names in ({"x": x, "images": other}, {"images": x, "arr_0": other}, {"arr_0": x, "z": other}, {"z": x}):
        np.savez(tmp_path / "a.npz", **names)
        assert is_images(str(tmp_path / "a.npz"))
        assert (read_images(tmp_path / "a.npz").pixels[:, 0].numpy() == x).all()
    np.savez(tmp_path / "a.npz", u=x, v=x)
    refused(tmp_path / "a.npz", "expected an array named x, images, arr_0, found u, v")


@pytest.mark.parametrize("name", ["y", "labels", "arr_1"])
@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.uint64])
def test_labels_are_numbered_in_their_order(tmp_path, name, kind):
    labels = np.array([30, 5, 30, 7, 5])
    for given in (labels, labels[:, None]):
        found = read_images(saved(tmp_path, noise(5, 4, 4), **{name: given.astype(kind)}))
        assert found.labels.tolist() == [2, 0, 2, 1, 0]
        assert found.classes == ("5", "7", "30")


def test_labels_that_are_none_are_left_alone(tmp_path):
    for other in (np.linspace(0, 1, 5), np.zeros((5, 2), np.int64), np.zeros(5, complex)):
        assert read_images(saved(tmp_path, noise(5, 4, 4), y=other)).labels is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, -1, 0, 0], "from -1 to 1"),
        ([0, 1, 2, 0, 10**6 + 1], "from 0 to 1,000,000; they are from 0 to 1000001"),
        ([0, 1], r"5 images, and labels of shape \(2,\)"),
    ],
)
def test_labels_out_of_range_are_refused(tmp_path, labels, message):
    refused(saved(tmp_path, noise(5, 4, 4), y=np.array(labels)), message)


def test_numbers_of_given_classes_stay(tmp_path):
    x = torch.zeros(3, 1, 2, 2)
    found = make_images(x, np.array([2, 0, 2]), name="a", classes=("red", "green", "blue"))
    assert found.labels.tolist() == [2, 0, 2]
    assert found.classes == ("red", "green", "blue")
    with pytest.raises(InputError, match="from 0 to 2"):
        make_images(x, np.array([3, 0, 2]), name="a", classes=("red", "green", "blue"))


# kinds, sizes, hashes


def test_only_the_header_says_what_is_an_image(tmp_path):
    """A file of which nothing but its header is there."""
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 32, 32)})
    assert is_images(str(path))


def test_tables_and_other_things_are_no_images(tmp_path):
    assert not is_images(str(saved(tmp_path, noise(5, 4))))
    assert not is_images(str(saved(tmp_path, noise(5, 4), y=noise(5))))
    assert not is_images(str(saved(tmp_path, noise(5))))
    assert not is_images("moons")
    (tmp_path / "a.csv").write_text("1,2")
    assert not is_images(str(tmp_path / "a.csv"))
    for name in ("b.npy", "b.npz"):
        (tmp_path / name).write_text("text")
        assert not is_images(str(tmp_path / name))
    np.savez(tmp_path / "c.npz", u=noise(5, 4, 4), v=noise(5, 4, 4))
    assert not is_images(str(tmp_path / "c.npz"))


def test_folders_and_the_hub_are_images(tmp_path):
    assert is_images(str(tmp_path))
    assert is_folder(str(tmp_path))
    assert is_images("hub:mnist")
    assert not is_folder("hub:mnist")


def test_size_takes_the_centre_square(tmp_path):
    x = noise(5, 4, 10)
    path = saved(tmp_path, x)
    assert (read_images(path, size=4).pixels[:, 0].numpy() == x[:, :, 3:7]).all()
    refused(path, "at least 1, not 0", size=0)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_size_averages_what_is_too_fine_and_stays_in_range(tmp_path, kind):
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(kind)
    edges = np.where(np.arange(64) < 30, 0, 255).astype(kind) * np.ones((64, 1), kind)
    found = read_images(saved(tmp_path, np.stack([board, edges])), size=16).pixels
    assert (found[0].float() - 127).abs().max() <= 2
    assert (found.min(), found.max()) == (0, 255)
    assert found.dtype == torch.from_numpy(board).dtype


def test_size_means_the_same_for_arrays_as_for_files(tmp_path):
    from flowgen.data.images.folder import open_folder

    x = noise(3, 40, 50, 3) // 4 + 40
    (tmp_path / "files").mkdir()
    for number, image in enumerate(x):
        Image.fromarray(image).save(tmp_path / "files" / f"{number}.png")
    for size in (13, 20, 64):
        array = read_images(saved(tmp_path, x), size=size).pixels.int()
        assert (array - open_folder(tmp_path / "files", size=size).load().pixels.int()).abs().max() <= 1


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_channels_are_as_asked_for(tmp_path, kind):
    colour, grey = (noise(*shape).astype(kind) for shape in ((5, 4, 6, 3), (5, 4, 6)))
    same = read_images(saved(tmp_path, colour), channels=3).pixels
    assert (same.permute(0, 2, 3, 1).numpy() == colour).all()
    luma = colour @ np.array([0.299, 0.587, 0.114])
    found = read_images(saved(tmp_path, colour), channels=1).pixels
    assert found.dtype == same.dtype
    np.testing.assert_allclose(found[:, 0].numpy(), luma, atol=0.51 if kind == np.uint8 else 1e-4)
    triple = read_images(saved(tmp_path, grey), channels=3).pixels
    assert (triple.numpy() == grey[:, None]).all()
    assert triple.shape == (5, 3, 4, 6)
    with pytest.raises(InputError, match="1 or 3 channels, not 2"):
        read_images(saved(tmp_path, grey), channels=2)


def test_the_hash_is_of_what_was_read(tmp_path):
    x, labels = noise(5, 4, 4), np.arange(5)
    plain, packed = write(tmp_path / "a.idx3-ubyte", idx(x)), write(tmp_path / "b.idx3-ubyte.gz", idx(x))
    assert read_images(plain).hash == read_images(packed).hash == read_images(saved(tmp_path, x)).hash
    others = [
        read_images(plain),
        read_images(saved(tmp_path, x, y=labels)),
        read_images(saved(tmp_path, x, y=labels[::-1].copy())),
        read_images(saved(tmp_path, x.reshape(5, 8, 2))),
        read_images(saved(tmp_path, x ^ 1)),
    ]
    assert len({found.hash for found in others}) == 5
