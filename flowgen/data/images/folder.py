"""Folders of image files: listed at once, decoded on demand."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from flowgen.core import WHOLE, Failure, InputError, Part, note
from flowgen.data.images.arrays import Images
from flowgen.data.images.decoding import (
    SUFFIXES,
    Broken,
    Form,
    Misfit,
    common_form,
    decode,
    quiet,
    read_bytes,
    unlike,
)
from flowgen.data.images.listing import list_hash, list_images, number
from flowgen.data.images.loading import Batches, cores, load_batches

__all__ = ["ImageFolder", "open_folder"]

SAMPLE = 100
"""So many files, evenly spread, say what the images of a folder are like."""
MAX_WORKERS = 8
SHOWN = 3
"""So many broken files are named in a message."""


@final
@dataclass(frozen=True, eq=False)
class ImageFolder:
    """The images of a folder: a distribution whose draws are decoded when they are drawn. `open_folder` makes one.

    Images that cannot be read are named. While they are fewer than one in a hundred of the folder's, a stream has the
    next good file in place of each, and `load` leaves them out; then both raise an error, and `strict` ones at the
    first.

    Args:
        root: the folder.
        names: paths of the files below it, `(N,)` bytes: one block of memory, which worker processes share.
        labels: `(N,)` int64 in [0, len(classes)), or None.
        classes: names of the class folders, in order.
        form: what each image becomes.
        example: one of the files, with its size, for messages.
        total: number of files of the whole folder, of which this may be a part.
        hash: SHA-256 of the names and sizes of the whole folder's files, in order.
    """

    root: Path
    names: np.ndarray = field(repr=False)
    labels: Tensor | None = field(repr=False)
    classes: tuple[str, ...]
    form: Form
    example: str
    total: int
    hash: str
    strict: bool = False
    workers: int = 0

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.form.shape

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files, in order."""
        return tuple(map(self.file, range(len(self))))

    def file(self, row: int) -> Path:
        """Return the file of a row."""
        return self.root / os.fsdecode(self.names[row])

    def subset(self, index: Tensor) -> ImageFolder:
        """Return the folder of the rows at `index`."""
        labels = None if self.labels is None else self.labels[index]
        return replace(self, names=self.names[index.numpy()], labels=labels)

    def without_labels(self) -> ImageFolder:
        """Return the same files without labels."""
        return replace(self, labels=None, classes=())

    @property
    def limit(self) -> int:
        """Return the number of broken files that is too many."""
        return 1 if self.strict else min(math.ceil(self.total / 100), len(self))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n images with replacement, `(n, C, H, W)` float32 in [0, 1].

        Raises:
            InputError, Failure: as `chunks`.
        """
        chunk = self.read(torch.randint(len(self), (n,), generator=generator).tolist())
        _Watch(self).see(chunk)
        return chunk.tensor.float() / 255

    def load(self) -> Images:
        """Load all images into memory, uint8, decoded on several threads.

        Raises:
            InputError: if too many are broken, or one is not like the others.
        """
        pixels, broken = np.empty((len(self), *self.shape), np.uint8), dict[int, str]()

        def fill(rows: range) -> None:
            for row in rows:
                try:
                    pixels[row] = self.decode(row)
                except Broken as error:
                    broken[row] = str(error)

        blocks = [range(first, min(first + 64, len(self))) for first in range(0, len(self), 64)]
        with quiet(), ThreadPoolExecutor(cores()) as threads:
            for _ in threads.map(fill, blocks):
                pass
        if not broken:
            return Images(torch.from_numpy(pixels), self.labels, self.classes, hash=self.hash)
        if len(broken) >= self.limit:
            raise InputError(_summary(self, broken))
        warnings.warn(f"{_summary(self, broken)}; they are left out", stacklevel=2)
        good = torch.from_numpy(np.delete(np.arange(len(self)), sorted(broken)))
        labels = None if self.labels is None else self.labels[good]
        return Images(torch.from_numpy(pixels[good.numpy()]), labels, self.classes, hash=self.hash)

    def chunks(
        self, size: int, *, seed: int, start: int = 0, part: Part = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield an endless stream of batches, decoded ahead by `workers` processes, or on demand if there are none.

        Batch k is a function of the seed and of k alone: the rows at positions k size to (k + 1) size - 1 of a walk
        through all files, in a new order each epoch. To start at a later one costs nothing.

        Args:
            size: rows of a whole batch.
            start: the first batch.
            part: the share of each batch to read.

        Yields:
            pixels `(n, C, H, W)` uint8, in pinned memory where there is CUDA, and labels `(n,)` or None.

        Raises:
            InputError: if an image is not like the others.
            Failure: if too many are broken, or a worker died.
        """
        watch, batches = _Watch(self), Batches(len(self), size, seed, start, part)
        for chunk in load_batches(self.read, batches, self.workers):
            watch.see(chunk)
            yield chunk.tensor, None if self.labels is None else self.labels[torch.from_numpy(chunk.rows)]

    def decode(self, row: int) -> np.ndarray:
        """Return the pixels of a row, `(C, H, W)` uint8.

        Raises:
            Broken: if they cannot be read.
            InputError: if the image is not like the others.
        """
        try:
            return decode(read_bytes(self.file(row)), self.form)
        except Misfit as error:
            raise InputError(unlike(self.example, str(self.file(row)), error)) from error

    def read(self, rows: list[int]) -> Chunk:
        """Return the images of `rows`, with the next good image in place of a broken one."""
        pixels, taken, broken = np.zeros((len(rows), *self.shape), np.uint8), np.array(rows, np.int64), dict[int, str]()
        try:
            with quiet():
                for slot, row in enumerate(rows):
                    taken[slot], pixels[slot] = self._next_good(row, broken)
        except InputError as error:
            return Chunk(pixels, taken, broken, str(error))
        return Chunk(pixels, taken, broken)

    def _next_good(self, row: int, broken: dict[int, str]) -> tuple[int, np.ndarray | int]:
        while len(broken) < self.limit:
            try:
                return row, self.decode(row)
            except Broken as error:
                broken[row] = str(error)
                row = (row + 1) % len(self)
        return row, np.zeros(self.shape, np.uint8)  # never seen: with so many broken, the chunk is refused


@dataclass
class Chunk:
    """Decoded rows: pixels `(n, C, H, W)`, the numbers of the rows, and the broken files among them.

    Arrays go through a pipe from a worker process; a tensor is made of them, or of their pinned copy, here.
    """

    pixels: np.ndarray | Tensor
    rows: np.ndarray
    broken: dict[int, str]
    error: str = ""

    @property
    def tensor(self) -> Tensor:
        return self.pixels if isinstance(self.pixels, Tensor) else torch.from_numpy(self.pixels)

    def pin_memory(self) -> Chunk:
        """Pin the images in memory; a loader with `pin_memory` calls this."""
        return replace(self, pixels=self.tensor.pin_memory())


class _Watch:
    """The broken files of a stream: warns of each once, and ends the stream when there are too many."""

    def __init__(self, folder: ImageFolder) -> None:
        self.folder, self.broken = folder, dict[int, str]()

    def see(self, chunk: Chunk) -> None:
        if chunk.error:
            raise InputError(chunk.error)
        new = {row: reason for row, reason in chunk.broken.items() if row not in self.broken}
        self.broken |= new
        if len(self.broken) >= self.folder.limit:
            raise Failure(_summary(self.folder, self.broken))
        for row, reason in new.items():
            warnings.warn(
                f"{self.folder.file(row)} cannot be read ({reason}): the next image takes its place", stacklevel=3
            )


def _summary(folder: ImageFolder, broken: dict[int, str]) -> str:
    """Return one line that counts the broken files, and names the first."""
    first = [f"{os.fsdecode(folder.names[row])} ({broken[row]})" for row in sorted(broken)[:SHOWN]]
    more = ["..."] if len(broken) > SHOWN else []
    return f"{folder.root}: {len(broken)} of {len(folder)} images cannot be read: {', '.join(first + more)}"


def open_folder(
    path: Path | str,
    *,
    size: int | None = None,
    channels: int | None = None,
    workers: int | None = None,
    strict: bool = False,
    bits: int | None = None,
) -> ImageFolder:
    """List the images of a folder, and find out their form from a hundred of them.

    The images lie in the folder itself, or each in the folder of its class: then the names of these are the classes, by
    value where all are numbers, else by name, and deeper folders belong to the class above. Hidden files are ignored,
    and folders without images; what else is left out is noted. Links are followed.

    Args:
        size: each image becomes its centre square, resized to size x size; without it, all must be of one size.
        channels: 1 or 3; by default 1 if all are grey, else 3.
        workers: processes that decode a stream; by default one a core, and at most MAX_WORKERS.
        strict: one broken image is an error.
        bits: of images that are stored in 16, from 8 to 16; by default guessed by their values, with a note.

    Raises:
        InputError: if the folder is missing, cannot be read, or holds fewer than 2 images, images beside class folders,
            or images of different sizes.
    """
    if not str(path).strip():  # Path("") is the current folder
        raise InputError("the name of the folder is empty")
    root = Path(path)
    if workers is not None and workers < 0:
        raise InputError(f"the number of workers must not be negative: {workers}")
    files, left_out = list_images(root)
    if not files:
        found = f", but {left_out.suffixes}" if left_out.files else ""
        raise InputError(f"{root}: no images{found}; they end in {', '.join(SUFFIXES)}")
    if len(files) == 1:
        raise InputError(f"{root}: a single image; training needs at least 2")
    if left_out.files:
        note(f"{root}: {left_out}")
    classes, labels = number(files)
    some = np.unique(np.linspace(0, len(files) - 1, SAMPLE).round().astype(int))
    paths = (root / os.fsdecode(files[row].name) for row in some)
    form, example = common_form(((str(path), path) for path in paths), size, channels, strict, bits)
    return ImageFolder(
        root=root,
        names=np.array([file.name for file in files]),
        labels=labels,
        classes=classes,
        form=form,
        example=example,
        total=len(files),
        hash=list_hash(files),
        strict=strict,
        workers=min(cores(), MAX_WORKERS) if workers is None else workers,
    )
