"""The image files of a folder, and their classes."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flowgen.core import InputError, is_utf8
from flowgen.data.classes import ordered
from flowgen.data.images.decoding import SUFFIXES

__all__ = ["File", "LeftOut", "list_hash", "list_images", "number"]

HIDDEN = ("thumbs.db", "desktop.ini")
"""What Windows hides."""
SHOWN = 10
"""So many suffixes and classes are named."""
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


class File(NamedTuple):
    """A file of a folder: its path below it, its bytes, and the folder of its class, or nothing."""

    name: bytes
    size: int
    folder: str = ""


class LeftOut(NamedTuple):
    """The files of a folder that are not read: how many of each suffix, and the class folders that have no others."""

    by_suffix: Counter[str]
    classes: tuple[str, ...] = ()

    @property
    def files(self) -> int:
        return self.by_suffix.total()

    @property
    def suffixes(self) -> str:
        """Return the suffixes in words, the most frequent first: 10 .jxl, 2 .txt."""
        ordered = sorted(self.by_suffix.items(), key=lambda item: (-item[1], item[0]))
        shown = [f"{count} {suffix or 'without a suffix'}" for suffix, count in ordered[:SHOWN]]
        return ", ".join([*shown, "..."] if len(ordered) > SHOWN else shown)

    def __str__(self) -> str:
        lost = f"; nothing is left of {', '.join(self.classes[:SHOWN])}" if self.classes else ""
        more = ", ..." if len(self.classes) > SHOWN else ""
        return f"left out {self.files} file{'s' * (self.files > 1)}: {self.suffixes}{lost}{more}"


def list_images(root: Path) -> tuple[list[File], LeftOut]:
    """Return the images of a folder, class by class, and what else is there."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    try:
        loose, folders, others = _entries(root, "")
        below = {name: _below(root, name) for name in sorted(folders)}
    except OSError as error:
        raise InputError(f"{error.filename or root}: the folder cannot be read ({error.strerror})") from error
    deep = [file for files, _ in below.values() for file in files]
    if loose and deep:
        raise InputError(
            f"{root}: images ({os.fsdecode(loose[0].name)}) beside folders of images ({deep[0].folder}); "
            "they must all be in class folders, or none"
        )
    if deep and {file.folder for file in deep} <= SPLITS:
        raise InputError(f"{root}: its folders are parts of data and not classes; give one: {root / deep[0].folder}")
    if unnamed := next((file.folder for file in deep if not is_utf8(file.folder)), None):
        raise InputError(f"{root}: the name of the class folder {unnamed!r} is not UTF-8: rename it")
    lost = tuple(name for name, (files, strange) in below.items() if strange and deep and not files)
    others = sum((strange for _, strange in below.values()), others)
    return sorted(loose) or deep, LeftOut(others, lost)


def _below(root: Path, folder: str) -> tuple[list[File], Counter[str]]:
    """List the images in a class folder at any depth, sorted, and the suffixes of other files; a folder that links lead
    back to is not read again.
    """
    files, others, waiting, seen = list[File](), Counter[str](), [folder], {_identity(root)}
    while waiting:
        current = waiting.pop()
        if (identity := _identity(root / current)) not in seen:
            seen.add(identity)
            found, folders, strange = _entries(root / current, current)
            files += [file._replace(folder=folder) for file in found]
            others += strange
            waiting += sorted(folders, reverse=True)
    return sorted(files), others


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _entries(place: Path, below: str) -> tuple[list[File], list[str], Counter[str]]:
    """Return the images and the folders directly in `place`, as paths that begin with `below`, and the suffixes of
    others.
    """
    files, folders, others = list[File](), list[str](), Counter[str]()
    with os.scandir(place) as entries:
        for entry in entries:
            path = os.path.join(below, entry.name)
            if entry.name.startswith(".") or entry.name.lower() in HIDDEN:
                continue
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                folders.append(path)
            elif entry.name.lower().endswith(SUFFIXES) and (size := _size(entry)) is not None:
                files.append(File(os.fsencode(path), size))
            elif os.path.isfile(entry.path):  # and no link that leads nowhere, or to itself
                others[os.path.splitext(entry.name)[1].lower()] += 1
    return files, folders, others


def _size(entry: os.DirEntry[str]) -> int | None:
    """Return the bytes of a file; 0 of a link to nothing, which is a broken image; None of pipes and the like."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        return 0
    return entry.stat().st_size if entry.is_file() else None


def list_hash(files: list[File]) -> str:
    """Return the SHA-256 of names and sizes."""
    return hashlib.sha256(b"".join(b"%b\0%d\n" % file[:2] for file in files)).hexdigest()


def number(files: list[File]) -> tuple[tuple[str, ...], Tensor | None]:
    """Return the classes and the labels."""
    classes = ordered(file.folder for file in files)
    if classes == ("",):
        return (), None
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, torch.tensor([numbers[file.folder] for file in files])
