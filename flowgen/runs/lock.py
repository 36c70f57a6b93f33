"""The lock of a run folder: only one process writes there at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowgen.core import InputError

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

__all__ = ["held", "remove"]

_held = set[int]()
"""The descriptors of the locks of this process."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run folder while the context lasts. The lock dies with its process, however that ends.

    Raises:
        InputError: if it is held already, by another process or in this one.
    """
    if fcntl is None:
        yield
        return
    path = folder / ".lock"
    descriptor = _locked(path)
    _held.add(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held, so that no other locks a file that is gone
        _held.discard(descriptor)
        os.close(descriptor)


def remove(folder: Path) -> None:
    """Remove a run folder.

    Raises:
        InputError: if another process is writing there.
    """
    with held(folder):
        shutil.rmtree(folder)


def _locked(path: Path) -> int:
    """Return the descriptor of a locked file that lies at the path."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise InputError(f"{path.parent} is being written by another process: wait, or stop that") from error
        except OSError:  # a file system without locks
            return descriptor
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)  # its holder removed it between the two calls


def _forget() -> None:
    """Close in a forked child what its parent holds: a lock would live as long as the last of its descriptors."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
