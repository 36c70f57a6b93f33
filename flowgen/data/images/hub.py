"""Images from the Hugging Face hub, read by the package `datasets`; nothing else of flowgen uses the network."""

from __future__ import annotations

import importlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from flowgen.core import InputError
from flowgen.data.images.arrays import HUB, Images, make_images
from flowgen.data.images.decoding import (
    Broken,
    Form,
    Misfit,
    common_form,
    decode,
    quiet,
    read_bytes,
    unlike,
)
from flowgen.data.images.loading import cores
from flowgen.extras import install

__all__ = ["read_hub"]

SAMPLE, BLOCK = 100, 64
LABELS = ("label", "labels", "y")
HELD_OUT = ("test", "validation")


class _Place(NamedTuple):
    """Where a data set is: its name, its configuration, and the split to read."""

    name: str
    config: str | None
    split: str | None


class _Columns(NamedTuple):
    """The columns of images and of labels, and the names of the classes where they have names."""

    image: str
    label: str | None
    classes: tuple[str, ...]


def read_hub(name: str, size: int | None = None, channels: int | None = None, bits: int | None = None) -> Images:
    """Read the images of a data set of the hub into memory.

    Args:
        name: `hub:NAME`, `hub:OWNER/NAME` or `hub:OWNER/NAME/CONFIG`: the split `train`, with `test`, or else
            `validation`, as held-out rows. With `@SPLIT` behind, that split alone.
        size: each image becomes its centre square, resized to size x size.
        channels: 1 or 3; by default 1 if the images are grey, else 3.
        bits: of images that are stored in 16, see `open_folder`.

    Raises:
        InputError: if the package is not installed, there is no such data set, or it has no column of images; for
            broken images, and those of different sizes; for labels that are not numbers of classes.
    """
    datasets, place = _package(), _parsed(name)
    parts = _parts(datasets, place, name)
    columns = _columns(datasets, parts[0].features, name)
    if columns.label and len(parts) == 2 and _is_secret(parts[1][columns.label]):
        parts.pop()  # the publisher keeps these labels secret
    parts = [part.cast_column(columns.image, datasets.Image(decode=False)) for part in parts]
    form, example = _form(parts[0], columns.image, size, channels, bits)
    pixels = np.concatenate([_pixels(part, columns.image, form, example) for part in parts])
    labels = np.concatenate([np.asarray(part[columns.label]) for part in parts]) if columns.label else None
    held_out = sum(map(len, parts[1:]))
    return make_images(torch.from_numpy(pixels), labels, name=name, held_out=held_out, classes=columns.classes)


def _is_secret(labels: list[Any]) -> bool:
    return any(isinstance(label, int) and label < 0 for label in labels)


def _package() -> ModuleType:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise InputError(f"data from the hub need the package datasets: {install('hub')}") from error


def _parsed(name: str) -> _Place:
    path, _, split = name.removeprefix(HUB).partition("@")
    parts = path.split("/")
    if not all(parts) or len(parts) > 3:
        raise InputError(f"{name}: expected hub:NAME, hub:OWNER/NAME or hub:OWNER/NAME/CONFIG, and @SPLIT behind it")
    return _Place("/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or None)


def _parts(datasets: ModuleType, place: _Place, name: str) -> list[Any]:
    """Return the rows to read, and the held-out rows where there are any."""
    try:
        found = datasets.load_dataset(place.name, place.config, split=place.split)
    except Exception as error:  # of the network, the hub, the disk or the data set
        raise InputError(f"{name}: {' '.join(str(error).split())}") from error
    if place.split:
        return [found]
    if "train" not in found:
        raise InputError(f"{name}: no split named train; add @SPLIT, one of {', '.join(found)}")
    other = next((found[split] for split in HELD_OUT if split in found), None)
    return [found["train"]] if other is None else [found["train"], other]


def _columns(datasets: ModuleType, features: Any, name: str) -> _Columns:
    image = next((key for key, feature in features.items() if isinstance(feature, datasets.Image)), None)
    if image is None:
        raise InputError(f"{name}: no column of images among {', '.join(features)}")
    named = next((key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)), None)
    if named is not None:
        return _Columns(image, named, tuple(features[named].names))
    kinds = {key: str(getattr(features.get(key), "dtype", "")) for key in LABELS}
    return _Columns(image, next((key for key, kind in kinds.items() if "int" in kind or kind == "string"), None), ())


def _form(rows: Any, column: str, size: int | None, channels: int | None, bits: int | None) -> tuple[Form, str]:
    some = np.unique(np.linspace(0, len(rows) - 1, SAMPLE).round().astype(int))
    sources = ((f"image {row}", _source(rows[row][column])) for row in some.tolist())
    return common_form(sources, size, channels, strict=True, bits=bits)


def _source(cell: dict[str, Any]) -> io.BytesIO | Path:
    """Return where the encoded image is: a data set holds its bytes, or the path of a file."""
    return Path(cell["path"]) if cell["bytes"] is None else io.BytesIO(cell["bytes"])


def _encoded(cell: dict[str, Any]) -> bytes:
    return read_bytes(cell["path"]) if cell["bytes"] is None else cell["bytes"]


def _pixels(rows: Any, column: str, form: Form, example: str) -> np.ndarray:
    """Return all images, (N, C, H, W) uint8."""
    pixels = np.empty((len(rows), *form.shape), np.uint8)

    def fill(first: int) -> None:
        for row, cell in enumerate(rows[first : first + BLOCK][column], first):
            try:
                pixels[row] = decode(_encoded(cell), form)
            except Misfit as error:
                raise InputError(unlike(example, f"image {row}", error)) from error
            except Broken as error:
                raise InputError(f"image {row} cannot be read ({error})") from error

    with quiet(), ThreadPoolExecutor(cores()) as threads:
        for _ in threads.map(fill, range(0, len(rows), BLOCK)):
            pass
    return pixels
