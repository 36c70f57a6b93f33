"""Checkpoints: named tensors in a folder that is whole or does not exist."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowgen.core import InputError, StrPath

__all__ = ["file_hash", "find", "load", "read_tensors", "save", "step", "write_tensors"]

TENSORS, DIGEST = "state.safetensors", "state.json"


def find(folder: StrPath) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first."""
    folder = Path(folder)
    return sorted(folder.glob("step-*"))


def step(checkpoint: StrPath) -> int:
    """Return the step of a checkpoint."""
    checkpoint = Path(checkpoint)
    return int(checkpoint.name.removeprefix("step-"))


def save(folder: StrPath, step: int, tensors: Mapping[str, Tensor], keep: int) -> Path:
    """Write `folder/step-<step>` and remove all but the newest `keep` checkpoints.

    The files are written to a temporary folder, synced, and renamed: whatever interrupts it, the checkpoints of other
    steps stay whole, and that of this step is complete or absent.

    Raises:
        OSError: if the disk is full or not writable; nothing else has changed then.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:09d}"
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder))
    try:
        save_file(_contiguous(tensors), building / TENSORS)
        digest = {"step": step, "sha256": file_hash(building / TENSORS)}
        (building / DIGEST).write_text(json.dumps(digest))
        for name, mode in ((TENSORS, 0o644), (DIGEST, 0o644), (".", 0o755)):
            (building / name).chmod(mode)  # the temporary folder is private, the run is not
            _sync(building / name)
        if final.exists():  # only a run that goes on from before a checkpoint gets here
            shutil.rmtree(final)
        building.rename(final)
        _sync(folder)
    except SafetensorError as error:
        raise OSError(f"cannot write {final}: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    for old in find(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def load(checkpoint: StrPath) -> dict[str, Tensor]:
    """Load the tensors of a checkpoint.

    Raises:
        InputError: if it is damaged; the message names the checkpoint and the one before it.
    """
    checkpoint = Path(checkpoint)
    try:
        digest = json.loads((checkpoint / DIGEST).read_text())
        if file_hash(checkpoint / TENSORS) != digest["sha256"]:
            raise ValueError("its checksum differs")
        return load_file(checkpoint / TENSORS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        before = [c.name for c in find(checkpoint.parent) if c.name < checkpoint.name]
        advice = f"remove that folder to go on from {before[-1]}" if before else "there is none before it"
        raise InputError(f"checkpoint {checkpoint} is damaged ({error}); {advice}") from error


def write_tensors(path: StrPath, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file at `path` atomically: readers see the old file or the new one, never a part.

    Raises:
        OSError: if the disk is full or not writable; the old file is still there then.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=".building-", dir=path.parent)
    os.close(handle)
    building = Path(name)
    try:
        save_file(_contiguous(tensors), building, metadata=dict(metadata))
        building.chmod(0o644)
        _sync(building)
        building.replace(path)
        _sync(path.parent)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        building.unlink(missing_ok=True)


def read_tensors(path: StrPath) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file.

    Raises:
        InputError: if it is missing or not a safetensors file.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error


def file_hash(path: StrPath) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    path = Path(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in the one layout that a file has, each with memory of its own.

    Weights may be stored channels last, and be tied to one another: all names of a tied weight are in the file.
    """
    seen, alone = set[int](), dict[str, Tensor]()
    for name, x in tensors.items():
        x, place = x.contiguous(), x.untyped_storage().data_ptr()
        alone[name] = x.clone() if place in seen else x
        seen.add(place)
    return alone


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
