"""Batches made by worker processes."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader

from flowgen.core import Failure, Part
from flowgen.data.epochs import positions
from flowgen.data.images.decoding import first_line

__all__ = ["Batches", "cores", "load_batches"]

T = TypeVar("T")


@dataclass(frozen=True)
class Batches:
    """The rows of each batch, without end: a part of the positions k size to (k + 1) size - 1 of a walk in epochs."""

    count: int
    size: int
    seed: int
    start: int
    part: Part

    def __iter__(self) -> Iterator[list[int]]:
        for k in itertools.count(self.start):
            whole = positions(self.count, k * self.size, (k + 1) * self.size, self.seed)
            yield whole[self.part.rows(self.size)].tolist()


def load_batches(read: Callable[[list[int]], T], batches: Batches, workers: int) -> Iterator[T]:
    """Yield read(rows) for each of the batches, in order, ahead of time in `workers` processes.

    In pinned memory where there is CUDA, for which results have a method `pin_memory`.

    Args:
        read: gives no tensors: these would take shared memory, of which a container may have little.

    Raises:
        Failure: if a worker died.
    """
    loader: DataLoader[Any] = DataLoader(
        _Reader(read),  # type: ignore[arg-type]
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # the default is the global one
    )
    try:
        yield from _started(loader)
    except RuntimeError as error:
        if not first_line(error).startswith("DataLoader worker"):
            raise
        raise Failure("a process that reads data died; is there too little memory?") from error


@dataclass(frozen=True)
class _Reader(Generic[T]):
    """The state of a worker process."""

    read: Callable[[list[int]], T]

    def __getitem__(self, rows: list[int]) -> T:
        return self.read(rows)


def _as_it_is(result: T) -> T:
    return result


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the loader's iterator once its workers have started.

    The loader's handler of signals would raise the death of a worker wherever the program is; without it, it is raised
    where a batch is waited for.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    with _interrupts_blocked():
        batches = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)
    return batches


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C from the processes started within: the main process handles it, and ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
