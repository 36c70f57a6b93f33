"""Cells of a table on disk: computed once, then reused."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path

import torch
from torch import nn

from flowgen.bench.table2d import Cell, Protocol, Result, network, run
from flowgen.core import Failure, InputError
from flowgen.training import checkpoints

__all__ = ["found", "missing", "run_all"]

POLL = 0.2
"""Seconds until a caller may leave the loop, when no cell ends."""


def found(folder: Path, cell: Cell, protocol: Protocol) -> Result | None:
    """Return the result of a cell that is on disk, or None.

    Raises:
        InputError: if it was made under another protocol, or is damaged.
    """
    path = _place(folder, cell, "json")
    if not path.exists():
        return None
    try:
        kept = json.loads(path.read_bytes())
        itself, made, result = Cell(**kept["cell"]), Protocol(**kept["protocol"]), Result(**kept["result"])
        if itself != cell or not all(isinstance(value, float | int) for value in result):
            raise ValueError("it does not hold the cell of its name")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged, or of another version ({error}): remove it, to make it anew") from error
    if made != protocol:
        raise InputError(f"{path} is of another protocol ({_differences(made, protocol)}): choose another folder")
    return result


def _differences(made: Protocol, wanted: Protocol) -> str:
    rows = zip(made._asdict().items(), wanted, strict=True)
    return ", ".join(f"{name} {theirs}, not {ours}" for (name, theirs), ours in rows if theirs != ours)


def missing(folder: Path, cells: list[Cell], protocol: Protocol) -> list[Cell]:
    """Return the cells that are not on disk yet; see `found`."""
    return [cell for cell in cells if found(folder, cell, protocol) is None]


def run_all(folder: Path, cells: list[Cell], protocol: Protocol, jobs: int = 1) -> Generator[int, None, None]:
    """Run cells into a folder, each after its teacher, in `jobs` processes of one thread.

    Yields how many are done, again and again.

    Leaving the loop ends the processes: the cells under way are lost, and no other.

    Raises:
        InputError: if the weights of a teacher cannot be read.
        Failure: if a training diverges, or a process dies.
    """
    # the longest first, so that none is left over at the end; then seed by seed, so that every row has some early
    left = sorted(cells, key=lambda cell: (not cell.slow, cell.seed))
    running: dict[Future[None], Cell] = {}
    with _processes(jobs) as pool:
        while left or running:
            waiting = {*left, *running.values()}
            ready = [cell for cell in left if cell.teacher not in waiting]
            left = [cell for cell in left if cell.teacher in waiting]
            running |= {_submit(pool, folder, cell, protocol): cell for cell in ready}
            for future in wait(running, POLL, FIRST_COMPLETED).done:
                future.result()
                del running[future]
            yield len(cells) - len(left) - len(running)


@contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes of one thread each, which end at once when the block is left early."""
    others = set(active_children())
    # spawned, and not forked: a fork of a process whose threads are at work may never wake
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise Failure("a process died, perhaps for want of memory: run the same again with fewer jobs") from error
    except BaseException:
        for child in set(active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, folder: Path, cell: Cell, protocol: Protocol) -> Future[None]:
    """Submit a cell to the pool. A process that it starts keeps SIGINT blocked, so that the caller handles Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_run, folder, cell, protocol)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(folder: Path, cell: Cell, protocol: Protocol) -> None:
    """Run a cell. Its result is written last, so that a cell with a result has weights too."""
    teacher = None if cell.teacher is None else _trained(folder, cell.teacher, protocol)
    result, net = run(cell, protocol, teacher)
    checkpoints.write_tensors(_place(folder, cell, "safetensors"), net.state_dict(), {})
    text = json.dumps({"cell": cell._asdict(), "protocol": protocol._asdict(), "result": result._asdict()})
    path = _place(folder, cell, "json")
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)  # in one motion: a result is whole or absent


def _trained(folder: Path, cell: Cell, protocol: Protocol) -> nn.Module:
    """Return the trained network of a cell."""
    net, path = network(protocol, cell.seed), _place(folder, cell, "safetensors")
    tensors, _ = checkpoints.read_tensors(path)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path} holds another network: remove it and its .json, to make them anew") from error
    return net


def _place(folder: Path, cell: Cell, suffix: str) -> Path:
    return folder / f"{'_'.join(map(str, cell)).replace(' ', '-')}.{suffix}"
