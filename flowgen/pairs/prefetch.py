"""Pairs that are prepared in a thread while a step is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

import torch
from torch import Tensor

from flowgen.core import Pair

__all__ = ["in_order", "prefetch"]

T = TypeVar("T")

PATIENCE = 0.1
"""Seconds between looks at whether the other side is still there."""


@contextmanager
def prefetch(pairs: Iterator[Pair], device: torch.device, depth: int = 2) -> Iterator[Iterator[Pair]]:
    """Yield the same pairs in the same order, on a device, made by a thread up to `depth` batches before they are asked
    for.

    The thread ends with the context. Drawing, indexing and copying leave Python free to run, and so do not slow down
    the step that they overlap with. What is raised there is raised here, where the pair would have come.
    """
    made: Queue[Pair | BaseException | None] = Queue(depth)
    left = Event()

    def put(x: Pair | BaseException | None) -> None:
        while not left.is_set():
            try:
                return made.put(x, timeout=PATIENCE)
            except Full:
                continue

    def work() -> None:
        try:
            for pair in pairs:
                put(_copied(pair, device))
                if left.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield _taken(made, thread)
    finally:
        left.set()
        thread.join()


def in_order(tasks: Iterable[Callable[[], T]], threads: int, depth: int) -> Iterator[T]:
    """Yield the results of tasks in their order, computed by threads, up to `depth` tasks ahead.

    What a task raises is raised in its place. Closing the iterator waits for the tasks under way, and drops the rest.
    """
    if not threads:
        yield from (task() for task in tasks)
        return
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, "coupling") as pool:
        try:
            for task in tasks:
                waiting.append(pool.submit(task))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _taken(made: Queue[Pair | BaseException | None], thread: Thread) -> Iterator[Pair]:
    while True:
        try:
            x = made.get(timeout=PATIENCE)
        except Empty:
            if not thread.is_alive() and made.empty():
                raise RuntimeError("the thread that makes pairs has died") from None
            continue
        if isinstance(x, BaseException):
            raise x
        if x is None:
            return
        yield x


def _copied(pair: Pair, device: torch.device) -> Pair:
    return Pair(*(None if x is None else _copy(x, device) for x in pair))  # type: ignore[arg-type]


def _copy(x: Tensor, device: torch.device) -> Tensor:
    """Copy x to a device; from pinned memory, so that the copy is asynchronous."""
    if device.type != "cuda" or x.device.type == "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
