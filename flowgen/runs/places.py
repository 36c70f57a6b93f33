"""The places that a run names, as its configuration is written and read: relative to its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowgen.config import ImagesConfig
from flowgen.config.data import data_hash
from flowgen.config.places import found, found_run, is_place, named, recorded, replaced
from flowgen.training import checkpoints

__all__ = ["found_in", "has_moved", "named_in", "weights_hash", "written_in"]


def written_in(tree: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the tree of a configuration as the config.toml of a folder has it."""
    return replaced(tree, lambda name, _: recorded(name, folder), lambda name, _: recorded(name, folder))


def named_in(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree of a configuration with the names of its files and runs, without their places, for others to
    read.
    """
    return replaced(tree, lambda name, _: named(name), lambda name, _: named(name))


def found_in(tree: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the tree in the config.toml of a folder, with the current places of what it names."""
    images = ImagesConfig(**tree.get("images", {}))

    def data(name: str, known: str | None) -> str:
        return found(name, folder, (lambda path: data_hash(str(path), images) == known) if known else None)

    def parent(name: str, known: str | None) -> str:
        return found_run(name, folder, lambda path: weights_hash(path) == known)

    return replaced(tree, data, parent)


def weights_hash(folder: Path) -> str | None:
    """Return the SHA-256 of the weights of the run in a folder; None without any."""
    weights = folder / "model.safetensors"
    return checkpoints.file_hash(weights) if weights.is_file() else None


def has_moved(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether a dotted key of two configurations is a place that may change, since the hash of its content is
    known, and will be checked.
    """
    if key in ("reflow.parent", "distill.parent"):
        return True
    if key not in ("data", "source") or not old.get(f"{key}_hash"):
        return False
    return is_place(str(old[key])) and is_place(str(new[key]))
