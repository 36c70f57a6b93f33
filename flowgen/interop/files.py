"""Places for exports, which are whole or do not exist, and packages that they need."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowgen.core import InputError
from flowgen.extras import install

__all__ = ["check_new", "need", "new_place", "size"]


def need(*packages: str) -> None:
    """Refuse to go on without packages that are not installed.

    Raises:
        InputError: for packages that are not installed.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(f"this format needs {' and '.join(missing)}: {install('export')}")


def check_new(path: Path, overwrite: bool, mark: str | None = None) -> None:
    """Refuse a place that is taken, unless it may be overwritten.

    Args:
        mark: a file within a folder of this kind; None for a file.

    Raises:
        InputError: unless something can be written at a path: a file or folder that is there is replaced if
            `overwrite` is set, but nothing of another kind.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if mark is None and path.is_dir():
        raise InputError(f"{path} is a folder, and not a file to write")
    if mark and path.exists() and not (path / mark).is_file():
        raise InputError(f"{path} exists and is no such export; choose another with --out")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already: replace it with --overwrite, or choose another with --out")


@contextmanager
def new_place(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`: the file or folder made there takes its name if the block ends well.

    Raises:
        InputError: if the folder cannot be written to.
    """
    try:
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=path.parent))
    except OSError as error:
        raise InputError(f"cannot write to the folder {path.parent}: {error.strerror}") from error
    try:
        made = building / path.name
        yield made
        if path.is_dir():  # a folder, unlike a file, is not replaced by a rename
            path.rename(old := building / "old")
            try:
                os.replace(made, path)
            except BaseException:
                old.rename(path)
                raise
        else:
            os.replace(made, path)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
