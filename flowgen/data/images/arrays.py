"""Images in memory: from scikit-learn, idx files, NumPy arrays and the hub."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import re
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowgen.core import InputError
from flowgen.data.images.decoding import first_line, over_white
from flowgen.data.labels import read_labels
from flowgen.data.suffixes import suffix

__all__ = [
    "Images",
    "is_folder",
    "is_images",
    "make_images",
]

HUB = "hub:"
MAX_BYTES = 2**34
"""No array larger than this is read."""
MAX_LABEL = 10**6
IDX = re.compile(r".*[.-]idx3(-ubyte)?(\.gz)?")
ARRAYS, LABELS = ("x", "images", "arr_0"), ("y", "labels", "arr_1")
"""Names of arrays in an .npz, in the order of preference."""
DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
)
"""What reading a damaged NumPy file raises."""


class Images(NamedTuple):
    """Images in memory.

    pixels: `(N, C, H, W)`: uint8, or float32 as the file has them; C is 1 or 3.
    labels: `(N,)` int64 in [0, len(classes)), or None.
    classes: the names of the labels, in order; () without labels.
    held_out: so many rows at the end are the publisher's own test set; 0 where there is none.
    hash: SHA-256 of pixels and labels.
    no_labels: why an array of labels was left out, in words.
    """

    pixels: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    held_out: int = 0
    hash: str = ""
    no_labels: str = ""


def is_images(name: str) -> bool:
    """Return whether data of that name are images: `digits`, `hub:...`, a folder, an idx file, or an array of 3 or 4
    dimensions in `.npy` or `.npz`; of an array only the header is read.
    """
    path = Path(name)
    if name == "digits" or name.startswith(HUB) or path.is_dir():
        return True
    return path.is_file() and (bool(IDX.fullmatch(path.name)) or _dimensions(path) in (3, 4))


def is_folder(name: str) -> bool:
    """Return whether the images of that name are the files of a folder, for `open_folder`; `read_images` reads all
    others.
    """
    return name != "digits" and Path(name).is_dir() and not _idx_files(Path(name), "train")


def make_images(
    pixels: Tensor,
    labels: np.ndarray | None = None,
    *,
    name: str,
    held_out: int = 0,
    classes: tuple[str, ...] = (),
) -> Images:
    """Make images of `pixels` `(N, C, H, W)`, and check their labels.

    Args:
        labels: numbers of the `classes` `(N,)`, or, without any, labels as `read_labels` takes them.
        name: of the data, for messages.

    Raises:
        InputError: for labels as in `read_images`.
    """
    if labels is None:
        return Images(pixels, held_out=held_out, hash=_digest(pixels))
    if classes or (labels.dtype.kind in "iub" and labels.ndim == 1):
        labels = _checked_labels(labels, len(pixels), len(classes) - 1 if classes else MAX_LABEL, name)
    if not classes:
        try:
            numbers, classes = read_labels(labels, len(pixels), f"{name}: the array of labels")
        except InputError as error:  # it may be anything, a target of regression too
            return Images(pixels, held_out=held_out, hash=_digest(pixels), no_labels=str(error))
    else:
        numbers = torch.from_numpy(labels)
    return Images(pixels, numbers, classes, held_out, _digest(pixels, numbers))


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for x in tensors:
        digest.update(f"{x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.contiguous().numpy().data)
    return digest.hexdigest()


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target


# pixels


def prepared(pixels: np.ndarray, name: str, size: int | None, channels: int | None) -> Tensor:
    """Return (N, C, H, W) of 1 or 3 channels, uint8 or finite float32, of the size and channels that are asked for."""
    planes = _planes(pixels, name)
    if not planes.size:
        raise InputError(f"{name}: no images, but an array of shape {pixels.shape}")
    planes = _numbers(planes, name)
    if planes.shape[1] == 4:
        planes = _opaque(planes, name)
    x = torch.from_numpy(np.require(planes, requirements=["C", "W"]))
    if x.is_floating_point() and (bad := int((~x.flatten(1).isfinite().all(1)).sum())):
        raise InputError(f"{name}: {bad} of {len(x)} images hold NaN, infinite values, or numbers beyond float32")
    return _in_channels(x if size is None else _resized(x, size), channels)


def _in_channels(x: Tensor, channels: int | None) -> Tensor:
    """Convert grey to three equal channels, or colour to its luma, 0.299 red + 0.587 green + 0.114 blue."""
    if channels not in (None, 1, 3):
        raise InputError(f"images have 1 or 3 channels, not {channels}")
    if channels is None or channels == x.shape[1]:
        return x
    if channels == 3:
        return x.expand(-1, 3, -1, -1).contiguous()
    luma = torch.tensordot(x.movedim(1, 3).float(), torch.tensor([0.299, 0.587, 0.114]), 1).unsqueeze(1)
    return luma if x.is_floating_point() else luma.round().to(torch.uint8)


def _planes(pixels: np.ndarray, name: str) -> np.ndarray:
    """Return (N, C, H, W), a view; where both axes could be the channels, the last is."""
    if pixels.ndim == 3:
        return pixels[:, None]
    if pixels.ndim == 4 and pixels.shape[3] in (1, 3, 4):
        return np.moveaxis(pixels, 3, 1)
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3, 4):
        return pixels
    raise InputError(
        f"{name}: images are (N, H, W), or have 1, 3 or 4 channels on the last or second axis, and not "
        f"the shape {pixels.shape}"
    )


def _numbers(x: np.ndarray, name: str) -> np.ndarray:
    """Return the same numbers as uint8 or float32."""
    if x.dtype.kind == "b":
        return x * np.uint8(255)
    if x.dtype.kind in "iu":
        if x.dtype != np.uint8 and not (x.min() >= 0 and x.max() <= 255):
            raise InputError(f"{name}: whole numbers from {x.min()} to {x.max()}; images are 0 to 255, or floats")
        return x.astype(np.uint8, copy=False)
    if x.dtype.kind != "f":
        raise InputError(f"{name}: expected numbers, found values of type {x.dtype}")
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, and is counted
        return x.astype(np.float32, copy=False)


def _opaque(planes: np.ndarray, name: str) -> np.ndarray:
    if planes.dtype != np.uint8:
        raise InputError(f"{name}: four channels of floats; give RGBA as uint8, or three channels")
    return np.moveaxis(over_white(np.moveaxis(planes, 1, 3)), 3, 1)


def _resized(x: Tensor, size: int) -> Tensor:
    """Crop the centre squares, and resize them to size x size."""
    if size < 1:
        raise InputError(f"the image size must be at least 1, not {size}")
    height, width = x.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = x[:, :, top : top + side, left : left + side].contiguous()
    if side == size:
        return square
    blocks = (
        torch.nn.functional.interpolate(block, (size, size), mode="bicubic", antialias=True)
        for block in square.split(4096)
    )
    resized = torch.cat(list(blocks))
    # a cubic filter overshoots at edges: 8 bits stop at 0 and 255
    return resized.clamp(*x.aminmax()) if x.is_floating_point() else resized


def _checked_labels(labels: np.ndarray, count: int, top: int, name: str) -> np.ndarray:
    if labels.shape != (count,):
        raise InputError(f"{name}: {count} images, and labels of shape {labels.shape}")
    if labels.dtype.kind not in "iub":
        raise InputError(f"{name}: labels must be numbers of classes, not {labels.dtype}")
    if not (labels.min() >= 0 and labels.max() <= top):
        raise InputError(f"{name}: labels must be from 0 to {top:,}; they are from {labels.min()} to {labels.max()}")
    return labels.astype(np.int64)


# NumPy files


def _dimensions(path: Path) -> int | None:
    """Return the number of dimensions of the array in a file, from its header; None where it cannot be read."""
    try:
        if suffix(path) == ".npy":
            with path.open("rb") as file:
                return len(_shape(file))
        if suffix(path) == ".npz":
            with zipfile.ZipFile(path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                with archive.open(f"{_chosen(names, path)}.npy") as member:
                    return len(_shape(member))
    except DAMAGE:
        pass
    return None


def _shape(file: IO[bytes]) -> tuple[int, ...]:
    """Return the shape in the header of an array."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)[0]


def _chosen(names: list[str], path: Path) -> str:
    """Return which array of an archive holds the images."""
    others = [name for name in names if name not in LABELS]
    found = next((name for name in ARRAYS if name in names), others[0] if len(others) == 1 else None)
    if found is None:
        raise InputError(f"{path}: expected an array named {', '.join(ARRAYS)}, found {', '.join(names) or 'none'}")
    return found


def read_array(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read images and labels of an idx or a NumPy file."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if IDX.fullmatch(path.name):
        return _read_idx_pair(path)
    if suffix(path) not in (".npy", ".npz"):
        raise InputError(f"{path}: unknown suffix; images are .npy, .npz, idx files or a folder")
    try:
        return _read_archive(path) if suffix(path) == ".npz" else (np.load(path, mmap_mode="r"), None)
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(f"{path}: not a readable {path.suffix} file ({first_line(error)})") from error


def _read_archive(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with zipfile.ZipFile(path) as archive:
        _check_sizes(path, archive)
    with np.load(path, allow_pickle=False) as arrays:
        x = arrays[_chosen(arrays.files, path)]
        y = next((arrays[name] for name in LABELS if name in arrays.files), None)
    return x, y[:, 0] if y is not None and y.ndim == 2 and y.shape[1] == 1 else y


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive that would unpack to more than memory should hold."""
    for info in archive.infolist():
        if info.file_size > MAX_BYTES:
            raise InputError(f"{path}: {info.filename} has {info.file_size:,} bytes; {MAX_BYTES:,} is the limit")


# idx files


def _idx_files(folder: Path, *starts: str) -> list[Path]:
    """Return the idx files of images in a folder whose names begin so, uncompressed ones first."""
    try:
        files = sorted(path for start in starts for path in folder.glob(f"{start}-images*"))
    except OSError:
        return []
    return [path for path in files if IDX.fullmatch(path.name) and path.is_file()]


def read_idx_folder(folder: Path, size: int | None, channels: int | None) -> Images:
    train, test = _idx_files(folder, "train"), _idx_files(folder, "t10k", "test")
    if not train:
        raise InputError(f"{folder}: no train-images idx files; open_folder reads a folder of images")
    (pixels, labels), name = _read_idx_pair(train[0]), str(folder)
    if not test:
        return make_images(prepared(pixels, name, size, channels), labels, name=name)
    more, more_labels = _read_idx_pair(test[0])
    if more.shape[1:] != pixels.shape[1:]:
        raise InputError(f"{name}: training images of {pixels.shape[1:]} and test images of {more.shape[1:]} pixels")
    x = prepared(np.concatenate([pixels, more]), name, size, channels)
    both = None if labels is None or more_labels is None else np.concatenate([labels, more_labels])
    return make_images(x, both, name=name, held_out=len(more))


def _read_idx_pair(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the images of an idx file, and the labels beside it where there are any."""
    pixels, beside = _read_idx(path, 3), _idx_labels(path)
    labels = None if beside is None else _read_idx(beside, 1)
    if labels is not None and len(labels) != len(pixels):
        raise InputError(f"{path}: {len(pixels)} images, and {len(labels)} labels in {beside}")
    return pixels, labels


def _idx_labels(path: Path) -> Path | None:
    plain = path.name.removesuffix(".gz").replace("idx3", "idx1")
    before, found, after = plain.rpartition("images")
    names = [f"{before}labels{after}" if found else plain, plain]
    return next((file for name in names for end in ("", ".gz") if (file := path.with_name(name + end)).is_file()), None)


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read the unsigned bytes of an idx file of so many dimensions, plain or gzipped."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.open(file) if packed else file as stream:
                return _parse_idx(stream, dimensions, path)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a readable idx file ({error})") from error


def _parse_idx(stream: io.BufferedIOBase, dimensions: int, path: Path) -> np.ndarray:
    header = stream.read(4 + 4 * dimensions)
    if header[:4] != bytes([0, 0, 8, dimensions]) or len(header) < 4 + 4 * dimensions:
        raise InputError(f"{path}: not an idx file of unsigned bytes in {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    wanted = math.prod(shape)
    if wanted > MAX_BYTES:
        raise InputError(f"{path}: its header asks for {wanted:,} bytes; {MAX_BYTES:,} is the limit")
    data = bytearray()  # grows with what is there, not with what the header says
    while len(data) < wanted and (block := stream.read(min(2**20, wanted - len(data)))):
        data += block
    if len(data) < wanted or stream.read(1):
        raise InputError(f"{path}: {'more' if len(data) == wanted else 'fewer'} bytes than its header says: {wanted:,}")
    return np.frombuffer(data, np.uint8).reshape(shape)
