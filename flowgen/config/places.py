"""Places of the data, the source and the parents that a run names: how they are written, and found again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from flowgen.core import InputError
from flowgen.data import TOYS
from flowgen.data.images.arrays import HUB

__all__ = [
    "Places",
    "absolute",
    "check_same",
    "check_there",
    "found",
    "found_run",
    "is_place",
    "moved",
    "named",
    "places_of",
    "recorded",
    "replaced",
    "shown",
]

PARENTS = ("reflow", "distill")
"""Sections that name a run to learn from."""
Change = Callable[[str, str | None], str]
"""A place and the hash of what is there, where it is known, to a place."""


class Places(NamedTuple):
    """The places of the data and the source of a run that are not where the run says; None for where it says."""

    data: str | None = None
    source: str | None = None


def is_place(name: str) -> bool:
    """Return whether a name of data is that of a file or a folder."""
    return name not in TOYS and name != "digits" and not name.startswith(HUB)


def absolute(name: str | Path) -> str:
    """Return the full path of a place, with its links kept, unless it goes back over one."""
    return os.path.realpath(name) if ".." in PurePath(name).parts else os.path.abspath(name)


def recorded(name: str, folder: Path) -> str:
    """Return a place as it is written down: relative to a folder; its last name alone where the path names the user."""
    if not is_place(name):
        return name
    try:
        way = PurePath(os.path.relpath(absolute(name), absolute(folder)))
    except ValueError:  # on another drive
        return named(name)
    return named(name) if _private() & {*way.parts[:-1]} else _place(way.as_posix())


def named(name: str) -> str:
    """Return the last name of a place; what is no place stays."""
    return _place(PurePath(absolute(name)).name) if is_place(name) else name


def shown(path: Path | str) -> str:
    """Return a place as it is written into files: relative to the current folder where it was typed in full."""
    way = Path(path)
    return recorded(str(path), Path.cwd()) if way.is_absolute() or _private() & {*way.parts[:-1]} else str(path)


def found(name: str, folder: Path, agrees: Callable[[Path], bool] | None = None) -> str:
    """Return the full path of a recorded name: relative to a folder, or to the current one.

    Args:
        agrees: tells, of several places where there is something, which one is meant.
    """
    return _first([Path(folder, name), Path(name)], Path.exists, agrees) if is_place(name) else name


def found_run(name: str, folder: Path, agrees: Callable[[Path], bool]) -> str:
    """Return the full path of a recorded run, as `found`; it may also lie beside `folder`, under its name."""
    tries = [Path(folder, name), Path(absolute(folder)).with_name(PurePath(name).name), Path(name)]
    return _first(tries, lambda path: (path / "config.toml").is_file(), agrees)


def moved(name: str, place: str | None, option: str) -> str:
    """Return the full path of the place given for what a run names; `name` itself where none is given.

    Raises:
        InputError: if there is nothing, or the run has no use for a place.
    """
    if place is None:
        return name
    if not is_place(name):
        raise InputError(f"--{option} {place}: this run is of {name}, which has no place: leave it out")
    if not is_place(place) or not Path(place).exists():
        raise InputError(f"--{option} {place}: there is no such file or folder")
    return absolute(place)


def places_of(data: str, source: str) -> Places:
    """Return those of the two that are places and exist."""
    return Places(*(name if is_place(name) and Path(name).exists() else None for name in (data, source)))


def check_there(what: str, name: str, known: str | None) -> None:
    """Refuse a place where nothing exists any more, if a run has data or a source with a hash.

    Raises:
        InputError: if a run has data or a source of a hash, and nothing is there any more.
    """
    if known and is_place(name) and not Path(name).exists():
        raise InputError(f"{name}: no such file or folder; say where the {what} of this run went, --{what} PLACE")


def check_same(what: str, name: str, known: str | None, hash: str | None) -> None:
    """Refuse a place whose hash is not that of the run's data or source.

    Raises:
        InputError: if a run has data or a source of a hash, and this is another.
    """
    if known and hash != known:
        raise InputError(f"{name} has changed since the run began, or is not its {what}: the hash is another")


def replaced(tree: Mapping[str, Any], data: Change, parent: Change) -> dict[str, Any]:
    """Return the tree of a configuration with its places changed: of data and source, and of the runs to learn from."""
    new = {key: data(tree[key], tree.get(f"{key}_hash")) for key in ("data", "source") if key in tree}
    taught = {key: tree[key] for key in PARENTS if isinstance(tree.get(key), Mapping)}
    parents = {key: {**made, "parent": parent(made["parent"], made["parent_hash"])} for key, made in taught.items()}
    return {**tree, **new, **parents}


def _first(tries: list[Path], there: Callable[[Path], bool], agrees: Callable[[Path], bool] | None) -> str:
    """Return the first place that exists and, where several do, agrees; or the first of all."""
    # by the names of folders, and as the disk has them where these are links
    ways = list(dict.fromkeys(Path(full(path)) for path in tries for full in (os.path.abspath, os.path.realpath)))
    some = [way for way in ways if there(way)]
    if agrees and len({way.resolve() for way in some}) > 1:
        some = [way for way in some if agrees(way)] or some
    return str((some or ways)[0])


def _place(text: str) -> str:
    """Return a place as text that cannot be the name of a toy."""
    return text if is_place(text) else f"./{text}"


def _private() -> set[str]:
    """Return names of folders that reveal who the user is."""
    return {Path.home().name, *(os.environ.get(key, "") for key in ("USER", "LOGNAME", "USERNAME"))} - {""}
