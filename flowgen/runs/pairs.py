"""The pairs of a reflow on disk: shards that are whole or do not exist, each end checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flowgen.core import InputError, Pair
from flowgen.pairs import StoredPairs
from flowgen.runs.folder import Run
from flowgen.runs.lock import held
from flowgen.runs.trajectories import PairKind, Trajectories, halved
from flowgen.threads import computing
from flowgen.training import checkpoints
from flowgen.training.distributed import ALONE, Processes

__all__ = ["EndpointError", "endpoint_errors", "make_pairs", "stored_pairs"]

SHARD, IMAGE_SHARD = 8192, 512
"""Pairs of a shard, in whole blocks: what an interrupt may lose. Ends of images are expensive."""


class _Shard(NamedTuple):
    """A file of trajectories of one kind: those with the numbers `rows`."""

    path: Path
    kind: PairKind
    rows: range


def make_pairs(run: Run, processes: Processes = ALONE) -> Iterator[int]:
    """Make the missing shards of a reflow run with its parent's flow, and yield how many pairs there are so far.

    A shard holds what `Trajectories.follow` gives of one kind; sources of generated pairs are not kept, since they are
    functions of the seed. All shards of a kind take as many steps as the first that was made. Several processes make a
    shard each at a time of those that are missing.

    Raises:
        InputError: if another process is writing to the run, the parent's weights are not those that the run names by
            their hash, or there are shards of another parent.
        Failure: if an end is not finite.
        OSError: if the disk is full; the shards that are there stay.
    """
    with held(run.folder) if processes.first else nullcontext():
        yield from _made(run, processes)


def _made(run: Run, processes: Processes) -> Iterator[int]:
    plan = Trajectories.of(run, str(run.config.device_of(processes)))
    run.pairs.mkdir(exist_ok=True)
    with computing(run.config.threads or plan.teacher.threads):
        yield from _followed(run, plan, processes)


def _followed(run: Run, plan: Trajectories, processes: Processes) -> Iterator[int]:
    part = processes.part
    missing = [shard for shard in _shards(run, plan) if not shard.path.exists()]
    made = plan.reflow.pairs - sum(len(shard.rows) for shard in missing)
    yield made
    steps = _steps(run, plan, missing, processes)  # when all have looked, and before one of them writes
    for first in range(0, len(missing), part.of):
        shared = missing[first : first + part.of]
        for shard in shared[part.index : part.index + 1]:
            tensors = plan.follow(shard.kind, shard.rows, steps[shard.kind])
            checkpoints.write_tensors(shard.path, tensors, _metadata(plan, shard, steps[shard.kind]))
        processes.barrier()  # none waits for longer than a shard takes
        made += sum(len(shard.rows) for shard in shared)
        yield made


def _shards(run: Run, plan: Trajectories) -> list[_Shard]:
    """Return all shards, those of generated pairs first."""
    size = IMAGE_SHARD if len(plan.teacher.source.shape) == 3 else SHARD
    parts = [
        (kind, range(first, min(first + size, count)))
        for kind, count in plan.counts.items()
        for first in range(0, count, size)
    ]
    return [_Shard(run.pairs / f"shard-{i:05d}.safetensors", kind, rows) for i, (kind, rows) in enumerate(parts)]


def _metadata(plan: Trajectories, shard: _Shard, steps: int) -> dict[str, str]:
    """Return what the tensors of a shard are functions of."""
    rows = [shard.rows.start, shard.rows.stop]
    return {"flowgen": json.dumps({**plan.signature, "kind": shard.kind, "rows": rows, "taken": steps})}


def _steps(run: Run, plan: Trajectories, missing: list[_Shard], processes: Processes) -> dict[PairKind, int]:
    """Return the steps of each kind that has missing shards: those of existing shards, or what the first process finds
    for all.
    """
    steps = dict[PairKind, int]()
    for kind in dict.fromkeys(shard.kind for shard in missing):
        there = [s for s in _shards(run, plan) if s.kind == kind and s not in missing]
        steps[kind] = _read(plan, there[0])[1] if there else _agreed(plan, kind, processes)
    processes.barrier()
    return steps


def _agreed(plan: Trajectories, kind: PairKind, processes: Processes) -> int:
    """Return the steps of a kind that the first process finds."""
    found = torch.tensor(plan.steps(kind) if processes.part.index == 0 else 0)
    processes.broadcast([found])
    return int(found)


def _read(plan: Trajectories, shard: _Shard) -> tuple[dict[str, Tensor], int]:
    """Read the tensors of a shard, and how many steps were taken.

    Raises:
        InputError: if it was made by another parent, with other settings, or for other rows.
    """
    tensors, metadata = checkpoints.read_tensors(shard.path)
    steps = _taken(metadata)
    if metadata != _metadata(plan, shard, steps):
        raise InputError(
            f"{shard.path.parent}: these pairs were made by another parent, or with other settings; remove them to "
            "make them anew"
        )
    return tensors, steps


def _taken(metadata: dict[str, str]) -> int:
    """Return the steps of a shard from its metadata; 0 where these do not say."""
    try:
        return int(json.loads(metadata["flowgen"])["taken"])
    except (KeyError, ValueError, TypeError):
        return 0


def _all(run: Run, plan: Trajectories) -> Iterator[tuple[_Shard, dict[str, Tensor], int]]:
    """Yield all shards with their tensors and steps.

    Raises:
        InputError: if one is missing, or is not what it should be.
    """
    shards, steps = _shards(run, plan), dict[PairKind, int]()
    there = sum(shard.path.exists() for shard in shards)
    if there < len(shards):
        raise InputError(
            f"{run.pairs} holds {there} of {len(shards)} shards: go on with the command in {run.folder}/README.md, and "
            "--resume"
        )
    for shard in shards:
        tensors, taken = _read(plan, shard)
        if taken != steps.setdefault(shard.kind, taken):
            raise InputError(f"{run.pairs}: some pairs took {taken} steps, others not; remove them to make them anew")
        yield shard, tensors, taken


def stored_pairs(run: Run) -> StoredPairs:
    """Return the pairs of a reflow run, generated ones before inverted ones; training goes through all in random order.

    Raises:
        InputError: if they are missing, or were made by another parent.
    """
    plan = Trajectories.of(run)
    shards = [tensors for _, tensors, _ in _all(run, plan)]
    x1 = torch.cat([shard["x1"] for shard in shards])
    cond = torch.cat([shard["cond"] for shard in shards]) if "cond" in shards[0] else None
    kept = [shard["x0"] for shard in shards if "x0" in shard]
    return StoredPairs(Pair(_joined(plan, kept), x1, cond))


def _joined(plan: Trajectories, kept: list[Tensor]) -> Tensor:
    """Return the sources that are functions of the seed, and then those that were kept; not copied where there is one
    kind.
    """
    if "generated" not in plan.counts:
        return torch.cat(kept).float()
    return torch.cat([plan.sources(), *(x.float() for x in kept)]) if kept else plan.sources()


class EndpointError(NamedTuple):
    """How far the ends of pairs of one kind, found in so many steps, are from those of other steps, in model units:
    their mean, and the worst.
    """

    kind: PairKind
    pairs: int
    steps: int
    mean: float
    worst: float

    @property
    def other(self) -> int:
        """Return the other number of steps, against which the error is measured."""
        return halved(self.steps)


def endpoint_errors(run: Run) -> list[EndpointError]:
    """Return the accuracy of the pairs of a reflow run, of each existing kind.

    Raises:
        InputError: if they are missing, or were made by another parent.
    """
    plan = Trajectories.of(run)
    errors, steps = dict[PairKind, list[Tensor]](), dict[PairKind, int]()
    for shard, tensors, taken in _all(run, plan):
        errors.setdefault(shard.kind, []).append(tensors["error"])
        steps[shard.kind] = taken
    joined = {kind: torch.cat(parts) for kind, parts in errors.items()}
    return [EndpointError(k, len(e), steps[k], e.mean().item(), e.max().item()) for k, e in joined.items()]
