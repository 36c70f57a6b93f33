"""Images to files: grids to look at, folders and archives to measure.

Images are `(N, C, H, W)` on the CPU, of 1 or 3 channels: uint8, or floats in [0, 1].
"""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowgen.core import InputError, StrPath
from flowgen.data.writing import counted, new_file, write_array, write_labels

__all__ = ["grid", "to_uint8", "write_folder", "write_grid", "write_npz", "write_strip"]

VISIBLE = 64
"""Images are enlarged up to about this side, in pixels."""
GAP, PAPER = 2, 255
"""Between the images of a grid, before they are enlarged: the width of the gap, and its grey."""
COLUMNS = 10
"""The most columns of a strip."""
LABELS = "labels.csv"


def to_uint8(x: Tensor) -> Tensor:
    """Convert floats in [0, 1] to 0..255, rounded, and clamped outside; uint8 stays as it is; NaN is 0."""
    return x if x.dtype == torch.uint8 else (x.nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8)


def grid(x: Tensor, columns: int | None = None, scale: int = 1) -> np.ndarray:
    """Return images side by side, row by row, with white gaps: `(height, width, C)` uint8.

    Args:
        columns: images in a row; by default the grid is about square.
        scale: each pixel becomes a square of so many.

    Raises:
        InputError: if there is no image, or it has not 1 or 3 channels.
    """
    count, channels, height, width = x.shape
    if not count:
        raise InputError("a picture needs at least one image")
    if channels not in (1, 3):
        raise InputError(f"pictures have 1 or 3 channels, not {channels}")
    columns = min(columns or int(np.ceil(np.sqrt(count))), count)
    rows = -(-count // columns)
    cells = np.full((rows * columns, height + GAP, width + GAP, channels), PAPER, np.uint8)
    cells[:count, :height, :width] = to_uint8(x).permute(0, 2, 3, 1).numpy()
    whole = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    whole = whole.reshape(rows * (height + GAP), columns * (width + GAP), channels)[:-GAP, :-GAP]
    return whole.repeat(scale, 0).repeat(scale, 1)


def write_grid(path: StrPath, x: Tensor, columns: int | None = None, scale: int | None = None) -> None:
    """Write a grid of images as PNG; small images are enlarged by a whole factor, unless `scale` says otherwise.

    Raises:
        InputError: as `grid`, and if the folder is missing or cannot be written to.
    """
    scale = scale or max(1, VISIBLE // max(x.shape[2:]))
    with new_file(path) as file:
        _picture(grid(x, columns, scale)).save(file, "PNG")


def write_strip(path: StrPath, states: Tensor) -> None:
    """Write the states of samples: a row for each sample, time from left to right, in at most ten columns.

    Args:
        states: `(steps + 1, N, C, H, W)`.

    Raises:
        InputError: as `write_grid`.
    """
    times = torch.linspace(0, len(states) - 1, min(len(states), COLUMNS)).round().long()
    write_grid(path, states[times].transpose(0, 1).flatten(0, 1), columns=len(times))


def check_empty(path: Path) -> None:
    """Refuse a place for a new folder where something exists.

    Raises:
        InputError: if there is something at a place where a folder is to be.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} exists and is not an empty folder: remove it, or choose another")


def write_folder(
    path: StrPath, chunks: Iterable[Tensor], start: int = 0, labels: Tensor | np.ndarray | None = None
) -> None:
    """Write each image as PNG as it comes, named by its number: 000000.png, ...

    The folder takes its name once it is complete.

    Args:
        start: number of the first image.
        labels: `(N,)`, one an image, numbers or names; written to `labels.csv` in the folder.

    Raises:
        InputError: if `path` exists and is not an empty folder, or cannot be made.
        OSError: if the disk is full.
    """
    path = Path(path)
    check_empty(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=path.parent))
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}") from error
    try:
        names = []
        for number, image in enumerate(_each(chunks), start):
            names.append(f"{number:06d}.png")
            _picture(image).save(building / names[-1])
        if labels is not None:
            _write_labels(building / LABELS, names, labels.tolist())
        building.chmod(0o755)
        os.replace(building, path)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_npz(
    path: StrPath,
    chunks: Iterable[Tensor],
    count: int,
    shape: tuple[int, ...],
    labels: Tensor | np.ndarray | None = None,
) -> None:
    """Write images as they come to the array `arr_0` `(count, H, W, C)` uint8, the format of guided-diffusion's
    evaluation.

    Args:
        chunks: together `count` images of shape `shape` (C, H, W).
        labels: `(count,)`, numbers or names, written as `arr_1`.

    Raises:
        InputError: if the chunks are not that many images of that shape, or the folder is missing.
        OSError: if the disk is full.
    """
    channels, height, width = shape
    shape = (count, height, width, channels)
    last = (to_uint8(chunk).permute(0, 2, 3, 1) for chunk in chunks)
    with new_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            write_array(member, counted(last, shape), shape, "|u1")
        if labels is not None:
            write_labels(archive, "arr_1.npy", labels, count)


def _each(chunks: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """Yield the images, (H, W, C) uint8."""
    for chunk in chunks:
        yield from to_uint8(chunk).permute(0, 2, 3, 1).numpy()


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else np.ascontiguousarray(image))


def _write_labels(path: Path, names: list[str], labels: list[Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "label"])
        writer.writerows(zip(names, labels, strict=True))
