"""The image files of a folder, and their classes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flowgen.core import InputError, is_utf8
from flowgen.data.classes import ordered
from flowgen.data.decoding import SUFFIXES

__all__ = ["File", "list_hash", "list_images", "number"]

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


class File(NamedTuple):
    """A file of a folder: its path below it, its bytes, and the folder of its class, or nothing."""

    name: bytes
    size: int
    folder: str = ""


def list_images(root: Path) -> list[File]:
    """The images of a folder, class by class."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    try:
        loose, folders = _entries(root, "")
        deep = [file for name in sorted(folders) for file in _below(root, name)]
    except OSError as error:
        raise InputError(f"{error.filename or root}: the folder cannot be read ({error.strerror})") from error
    if loose and deep:
        raise InputError(
            f"{root}: images ({os.fsdecode(loose[0].name)}) beside folders of images ({deep[0].folder}); "
            "they must all be in class folders, or none"
        )
    if deep and {file.folder for file in deep} <= SPLITS:
        raise InputError(f"{root}: its folders are parts of data and not classes; give one: {root / deep[0].folder}")
    if unnamed := next((file.folder for file in deep if not is_utf8(file.folder)), None):
        raise InputError(f"{root}: the name of the class folder {unnamed!r} is not UTF-8: rename it")
    return sorted(loose) or deep


def _below(root: Path, folder: str) -> list[File]:
    """The images in a class folder, however deep, sorted; a folder that links lead to again is not read again."""
    files, waiting, seen = [], [folder], {_identity(root)}
    while waiting:
        current = waiting.pop()
        if (identity := _identity(root / current)) not in seen:
            seen.add(identity)
            found, folders = _entries(root / current, current)
            files += [file._replace(folder=folder) for file in found]
            waiting += sorted(folders, reverse=True)
    return sorted(files)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _entries(place: Path, below: str) -> tuple[list[File], list[str]]:
    """The images and the folders right in `place`, as paths that begin with `below`."""
    files, folders = [], []
    with os.scandir(place) as entries:
        for entry in entries:
            path = os.path.join(below, entry.name)
            if entry.name.startswith("."):
                continue
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                folders.append(path)
            elif entry.name.lower().endswith(SUFFIXES) and (size := _size(entry)) is not None:
                files.append(File(os.fsencode(path), size))
    return files, folders


def _size(entry: os.DirEntry[str]) -> int | None:
    """The bytes of a file; 0 of a link to nothing, which is a broken image; None of pipes and the like."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        return 0
    return entry.stat().st_size if entry.is_file() else None


def list_hash(files: list[File]) -> str:
    """SHA-256 of names and sizes."""
    return hashlib.sha256(b"".join(b"%b\0%d\n" % file[:2] for file in files)).hexdigest()


def number(files: list[File]) -> tuple[tuple[str, ...], Tensor | None]:
    """The classes and the labels."""
    classes = ordered(file.folder for file in files)
    if classes == ("",):
        return (), None
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, torch.tensor([numbers[file.folder] for file in files])
