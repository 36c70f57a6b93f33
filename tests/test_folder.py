"""Folders of images: what is listed, in which order it is read, and what becomes of files that cannot be read."""

import itertools
import multiprocessing
import os
import pickle
import random
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowgen.core import Failure, InputError, Part, generator
from flowgen.data.epochs import positions
from flowgen.data.images import folder as folders
from flowgen.data.images.folder import open_folder

pytestmark = pytest.mark.journey


def write(path, level=0, size=(4, 3), mode="L"):
    """A file of one level: (level, level // 2, 7) where there are colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = level if mode == "L" else (level, level // 2, 7)
    Image.new(mode, size, colour).save(path)
    return path


@pytest.fixture
def numbered(tmp_path):
    """numbered(n): a folder of n images in two classes, whose level is their number in the order of the folder."""

    def make(n, name="numbered", **options):
        for number in range(n):
            write(tmp_path / name / ("cat" if number < n // 3 else "dog") / f"{number:03d}.png", number)
        return open_folder(tmp_path / name, **options)

    return make


def levels(pixels):
    """The number of each row, from its pixels, which must all be the same."""
    flat = pixels.flatten(1)
    assert (flat == flat[:, :1]).all()
    return flat[:, 0].tolist()


def spoil(folder, *rows):
    for row in rows:
        folder.file(row).write_bytes(b"spoilt")


def take(stream, count):
    chunks = list(itertools.islice(stream, count))
    stream.close()
    return chunks


def quietly(stream):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from stream


def same(first, second):
    return all(torch.equal(a, b) for pair in zip(first, second, strict=True) for a, b in zip(*pair, strict=True))


WORKERS = pytest.mark.parametrize("workers", [0, 2])

# listing


def test_folders_are_classes_with_what_lies_deeper(tmp_path):
    for name in ("b/z.png", "b/deep/er/a.PNG", "a/2.jpeg", "a/1.jpg", "a/x.tif", "C/3.WebP", "C/4.bmp", "a/5.gif"):
        write(tmp_path / name)
    for name in ("a/notes.txt", "labels.csv", "b/.hidden.png", ".thumbs/6.png", "empty/none.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    folder = open_folder(tmp_path)
    assert folder.classes == ("C", "a", "b")
    below = [str(path.relative_to(tmp_path)) for path in folder.files]
    assert below == ["C/3.WebP", "C/4.bmp", "a/1.jpg", "a/2.jpeg", "a/5.gif", "a/x.tif", "b/deep/er/a.PNG", "b/z.png"]
    assert folder.labels.tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert folder.without_labels().labels is None
    assert folder.without_labels().classes == ()


def test_a_folder_of_images_has_no_labels(tmp_path):
    for number in (10, 9, 2):
        write(tmp_path / f"{number}.png", number)
    folder = open_folder(tmp_path)
    assert folder.labels is None
    assert folder.classes == ()
    assert levels(folder.load().pixels) == [10, 2, 9]  # in the order of their names


def test_links_are_followed_once(tmp_path):
    root = tmp_path / "root"
    write(root / "cat/1.png")
    write(tmp_path / "elsewhere/2.png")
    (root / "cat/up").symlink_to(root)
    (root / "cat/self").symlink_to(root / "cat")
    (root / "cat/more").symlink_to(tmp_path / "elsewhere")
    (root / "cat/again").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    (root / "turning").symlink_to(root / "turning")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    folder = open_folder(root)
    assert folder.classes == ("cat", "dog")
    assert len(folder) == 3


def test_a_link_to_nothing_is_a_broken_image(tmp_path):
    for number in range(150):
        write(tmp_path / f"{number}.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nothing.png")
    folder = open_folder(tmp_path)
    assert len(folder) == 151
    with pytest.warns(UserWarning, match=r"1 of 151 .*lost\.png \(No such file"):
        assert len(folder.load().pixels) == 150


def test_names_of_any_bytes_are_files(tmp_path):
    for name in ("ü ñ.png", "new\nline.png", os.fsdecode(b"\xff\xfe.png")):
        write(tmp_path / "class\u00e9" / name, 9)
    assert levels(open_folder(tmp_path).load().pixels) == [9, 9, 9]


def mixed(root):
    write(root / "a.png"), write(root / "cat/b.png")


def split_folders(root):
    write(root / "train/a.png"), write(root / "test/b.png")


def two_sizes(root):
    write(root / "a.png", size=(4, 3)), write(root / "b.png", size=(3, 4))


def nothing_sound(root):
    for name in "ab":
        root.mkdir(exist_ok=True)
        (root / f"{name}.png").write_text(name)


MISTAKES = {
    "missing": (lambda root: None, "no such folder"),
    "file": (lambda root: root.write_text(""), "no such folder"),
    "empty": (lambda root: root.mkdir(), r"no images; they end in \.png, "),
    "one": (lambda root: write(root / "a.png"), "a single image"),
    "mixed": (mixed, r"images \(a.png\) beside folders of images \(cat\)"),
    "splits": (split_folders, r"parts of data .* give one: .*/test"),
    "sizes": (two_sizes, r"a.png is 4x3 in grey, and .*b.png is 3x4 in grey; --image-size"),
    "broken": (nothing_sound, "a.png cannot be read .* 2 of 2 are broken"),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=list(MISTAKES))
def test_mistakes_are_told_in_one_line(make, message, tmp_path):
    make(tmp_path / "root")
    with pytest.raises(InputError, match=message) as caught:
        open_folder(tmp_path / "root")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "root") in str(caught.value)


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 10**6}, {"channels": 2}, {"workers": -1}])
def test_options_are_checked(options, numbered):
    with pytest.raises(InputError, match=str(*options.values())):
        numbered(2, **options)


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    write(tmp_path / "cat/a.png"), write(tmp_path / "cat/b.png")
    scan = os.scandir

    def refuse(place):
        if place == tmp_path / "cat":
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"cat: the folder cannot be read \(Permission denied\)"):
        open_folder(tmp_path)


def test_the_hash_is_of_names_and_sizes(numbered):
    first, second = numbered(5, "a"), numbered(5, "b")
    assert first.hash == second.hash
    assert first.subset(torch.tensor([1, 2])).hash == first.hash
    write(first.root / "cat/new.png")
    spoil(second, 2)
    hashes = {first.hash, open_folder(first.root).hash, open_folder(second.root).hash}
    assert len(hashes) == 3


# what images become


def test_channels_are_those_of_the_files_or_as_told(tmp_path):
    write(tmp_path / "a.png", 100), write(tmp_path / "b.png", 50)
    assert open_folder(tmp_path).shape == (1, 3, 4)
    assert open_folder(tmp_path, channels=3).shape == (3, 3, 4)
    write(tmp_path / "c.png", 200, mode="RGB")
    folder = open_folder(tmp_path)
    assert folder.shape == (3, 3, 4)
    assert folder.load().pixels[:, :, 1, 1].tolist() == [[100] * 3, [50] * 3, [200, 100, 7]]
    assert open_folder(tmp_path, channels=1).load().pixels.shape == (3, 1, 3, 4)


def test_size_makes_all_alike(tmp_path):
    write(tmp_path / "a.png", 100, (40, 20)), write(tmp_path / "b.png", 50, (5, 9))
    folder = open_folder(tmp_path, size=8)
    assert folder.shape == (1, 8, 8)
    assert levels(folder.load().pixels) == [100, 50]


@pytest.fixture
def late(numbered):
    """A folder whose image number 1, at which opening does not look, is not like the others."""

    def make(**image):
        folder = numbered(205, channels=None, workers=0)
        write(folder.file(1), **image)
        return open_folder(folder.root, workers=0)

    return make


@pytest.mark.parametrize(
    ("image", "advice"), [({"size": (8, 8)}, "8x8; --image-size"), ({"mode": "RGB"}, "in colour; .*channels=3")]
)
@WORKERS
def test_an_odd_one_is_found_when_it_is_decoded(late, image, advice, workers):
    folder = folders.replace(late(**image), workers=workers)
    message = rf"000\.png is 4x3 in grey, and .*001\.png is {advice}"
    with pytest.raises(InputError, match=message):
        folder.load()
    with pytest.raises(InputError, match=message):
        take(folder.chunks(100, seed=0), 3)
    with pytest.raises(InputError, match=message):
        folder.subset(torch.tensor([1])).sample(1, generator(0, "draw"))


# reading


def test_all_are_loaded_with_their_labels(numbered):
    folder = numbered(200)
    images = folder.load()
    assert images.pixels.dtype == torch.uint8
    assert images.pixels.shape == (200, 1, 3, 4)
    assert levels(images.pixels) == list(range(200))
    assert images.labels.tolist() == [0] * 66 + [1] * 134
    assert images.classes == ("cat", "dog")
    assert images.hash == folder.hash


def test_a_part_of_a_folder_is_its_rows(numbered):
    folder = numbered(20).subset(torch.tensor([7, 3, 15]))
    assert levels(folder.load().pixels) == [7, 3, 15]
    assert folder.labels.tolist() == [1, 0, 1]
    assert {level for x, _ in take(folder.chunks(2, seed=0), 3) for level in levels(x)} == {7, 3, 15}


def test_it_is_a_law(numbered, global_state_untouched):
    folder = numbered(20)
    draws = [folder.sample(50, generator(seed, "draw")) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].dtype == torch.float32
    assert {round(level * 255) for level in levels(draws[0])} <= set(range(20))
    assert len({*levels(draws[0])}) > 10


@WORKERS
def test_a_chunk_is_the_rows_at_its_positions(numbered, workers):
    folder = numbered(23, workers=workers)
    walk = positions(23, 0, 12 * 7, seed=5)
    for k, (pixels, labels) in enumerate(take(folder.chunks(7, seed=5), 12)):
        rows = walk[7 * k : 7 * (k + 1)]
        assert pixels.dtype == torch.uint8
        assert levels(pixels) == rows.tolist()
        assert torch.equal(labels, folder.labels[rows])


def test_each_epoch_has_each_file_once(numbered):
    seen = [level for x, _ in take(numbered(21, workers=2).chunks(7, seed=0), 6) for level in levels(x)]
    assert sorted(seen[:21]) == sorted(seen[21:]) == list(range(21))
    assert seen[:21] != seen[21:]


def test_it_goes_on_where_it_stopped_and_reads_nothing_before(numbered, monkeypatch):
    folder = numbered(30)
    tail = take(folder.chunks(8, seed=1), 9)[6:]
    for workers in (0, 2):
        resumed = folders.replace(folder, workers=workers)
        assert same(take(resumed.chunks(8, seed=1, start=6), 3), tail)
    decoded, decode = [], folders.decode
    monkeypatch.setattr(folders, "decode", lambda *args: decoded.append(1) or decode(*args))
    take(folders.replace(folder, workers=0).chunks(8, seed=1, start=10**9), 1)
    assert len(decoded) == 8


@WORKERS
def test_parts_are_together_the_whole(numbered, workers):
    folder = numbered(30, workers=workers)
    whole = take(folder.chunks(10, seed=2), 4)
    parts = [take(folder.chunks(10, seed=2, part=Part(index, 3)), 4) for index in range(3)]
    joined = [tuple(map(torch.cat, zip(*pieces, strict=True))) for pieces in zip(*parts, strict=True)]
    assert same(joined, whole)


def test_without_labels_there_are_none(numbered):
    ((_, labels),) = take(numbered(5, workers=0).without_labels().chunks(2, seed=0), 1)
    assert labels is None


@WORKERS
def test_global_state_is_left_alone(numbered, workers, global_state_untouched):
    before = random.getstate(), signal.getsignal(signal.SIGCHLD), list(warnings.filters)
    take(numbered(9, workers=workers).chunks(3, seed=0), 2)
    assert (random.getstate(), signal.getsignal(signal.SIGCHLD), list(warnings.filters)) == before


def test_a_worker_can_be_sent_its_folder(numbered):
    """Where processes are not forked, what they hold is pickled: the names are one block, and small."""
    folder = numbered(60)
    sent = pickle.dumps(folder)
    assert levels(torch.from_numpy(pickle.loads(sent).read([4, 2]).pixels)) == [4, 2]  # noqa: S301
    assert len(sent) < 5000 + 60 * 20


# what cannot be read


def test_a_folder_without_broken_images_is_loaded_silently(numbered):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert levels(numbered(5).load().pixels) == [0, 1, 2, 3, 4]


def test_few_broken_images_are_left_out_and_named(numbered):
    folder = numbered(201)
    spoil(folder, 66, 150)
    with pytest.warns(UserWarning, match=r"2 of 201 .*066\.png \(not an image.*150\.png .*left out") as caught:
        images = folder.load()
    assert len(caught) == 1
    assert levels(images.pixels) == [n for n in range(201) if n not in (66, 150)]
    assert images.labels.tolist() == [0] * 66 + [1] * 133


@WORKERS
def test_the_next_good_image_takes_the_place_of_a_broken_one(numbered, workers):
    folder = numbered(201, workers=workers)
    before = take(folder.chunks(67, seed=3), 6)
    spoil(folder, 65, 200)
    stands_for = {65: 66, 200: 0}
    with pytest.warns(UserWarning, match=r"(065|200)\.png cannot be read .* the next image takes its place") as caught:
        after = take(folder.chunks(67, seed=3), 6)
    assert len(caught) == 2  # one for each file, though both were met in two epochs
    for (was, _), (now, labels) in zip(before, after, strict=True):
        assert levels(now) == [stands_for.get(level, level) for level in levels(was)]
        assert labels.tolist() == [int(level >= 67) for level in levels(now)]
    with pytest.warns(UserWarning, match=r"200\.png"):
        ((_, labels),) = take(folder.chunks(1, seed=3, start=positions(201, 0, 201, 3).tolist().index(200)), 1)
    assert labels.tolist() == [0]  # the label is that of the image shown


def test_neighbours_may_be_broken(numbered):
    folder = numbered(250, workers=0)
    spoil(folder, 7, 8)
    with pytest.warns(UserWarning, match="cannot be read"):
        ((pixels, _),) = take(folder.chunks(250, seed=0), 1)
    assert sorted(levels(pixels)) == [*range(7), 9, 9, *range(9, 250)]


@WORKERS
def test_one_in_a_hundred_is_too_many(numbered, workers):
    folder = numbered(200, workers=workers)
    spoil(folder, 10, 150)
    message = r"2 of 200 images cannot be read: cat/010\.png \(.*dog/150\.png"
    with pytest.raises(InputError, match=message):
        folder.load()
    with pytest.raises(Failure, match=message):
        take(quietly(folder.chunks(20, seed=0)), 10)


@WORKERS
def test_a_folder_of_nothing_but_broken_images_is_given_up_soon(numbered, workers):
    folder = numbered(240, workers=workers)
    spoil(folder, *range(240))
    with pytest.raises(Failure, match="3 of 240 images cannot be read"):
        next(folder.chunks(64, seed=0))
    with pytest.raises(InputError, match=r"240 of 240.*, \.\.\.$"):
        folder.load()
    with pytest.raises(InputError, match="100 of 100 are broken"):
        open_folder(folder.root)


def test_a_part_may_have_as_many_broken_images_as_the_whole(numbered):
    folder = numbered(250)
    spoil(folder, 1, 2)
    with pytest.warns(UserWarning, match="2 of"):
        assert levels(folder.subset(torch.arange(10)).load().pixels) == [0, *range(3, 10)]
    with pytest.raises(InputError):
        folder.subset(torch.tensor([1, 2])).load()
    with pytest.raises(Failure):
        next(folder.subset(torch.tensor([1, 2])).chunks(2, seed=0))


@WORKERS
def test_strict_folders_stand_no_broken_image(numbered, workers):
    folder = numbered(250, workers=workers, strict=True)
    spoil(folder, 1)  # one that opening does not look at
    with pytest.raises(InputError, match=r"001\.png"):
        open_folder(folder.root, strict=True).load()
    with pytest.raises(Failure, match=r"001\.png"):
        take(folder.chunks(50, seed=0), 5)
    spoil(folder, 0)
    with pytest.raises(InputError, match=r"000\.png cannot be read"):
        open_folder(folder.root, strict=True)


# processes


def test_the_death_of_a_worker_is_told_nowhere_else(numbered):
    stream = numbered(9, workers=1).chunks(3, seed=0)
    next(stream)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    time.sleep(0.5)  # here a handler of signals would raise
    with pytest.raises(Failure, match="died") as caught:
        take(stream, 10)
    assert "\n" not in str(caught.value)


def test_workers_outlive_an_interrupt_and_end_with_the_stream(numbered):
    before = set(multiprocessing.active_children())
    stream = numbered(9, workers=2).chunks(3, seed=0)
    next(stream)
    children = set(multiprocessing.active_children()) - before
    assert len(children) == 2
    for child in children:
        os.kill(child.pid, signal.SIGINT)
    for _ in range(20):
        next(stream)
    stream.close()
    for child in children:
        child.join(5)
        assert not child.is_alive()


def test_memory_does_not_grow_with_what_was_read(numbered):
    """Chunks of a megabyte, thirty of them: in this process and its worker there are a few at a time."""
    folder = numbered(4, workers=0, size=512)

    def resident():
        fields = map(str.split, Path("/proc/self/status").read_text().splitlines())
        return next(int(field[1]) for field in fields if field[0] == "VmRSS:")

    stream = folder.chunks(4, seed=0)
    for _ in range(5):
        next(stream)
    before = resident()
    for _ in range(30):
        next(stream)
    assert resident() - before < 8 * 1024


def test_rows_of_images_of_numpy_are_ours(numbered):
    """What is yielded may be written to."""
    ((pixels, _),) = take(numbered(4, workers=2).chunks(4, seed=0), 1)
    pixels += 1
    assert np.ptp(levels(pixels)) == 3
