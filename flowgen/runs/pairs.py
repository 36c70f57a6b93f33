"""The pairs of a reflow on disk: shards that are whole or do not exist, each end checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flowgen import checkpoints, grids, sampling
from flowgen.config import Config, ReflowConfig
from flowgen.core import Failure, InputError, Pair
from flowgen.couplings import StoredPairs
from flowgen.data import Categorical
from flowgen.distributed import ALONE, Processes
from flowgen.runs.folder import Run, Trained, load

__all__ = ["Accuracy", "accuracy", "make_pairs", "parent", "stored_pairs"]

SHARD, IMAGE_SHARD = 8192, 512
"""Pairs of a shard, in whole blocks: what an interrupt may cost. Ends of images are dear."""


def parent(reflow: ReflowConfig, device: str = "cpu") -> Trained:
    """The parent of a reflow, whose weights are still those of the hash, on a device.

    Raises:
        InputError: if they are not.
    """
    run = Run.open(Path(reflow.parent))
    if checkpoints.file_hash(run.weights) != reflow.parent_hash:
        raise InputError(f"{run.folder} has changed since its reflow began: its weights have another hash")
    return load(run.folder, device)


def make_pairs(run: Run, processes: Processes = ALONE) -> Iterator[int]:
    """Makes the shards of a reflow run that are not there yet with its parent's flow, and yields how many pairs there
    are so far.

    A shard holds the ends `x1`, in half precision where they are images, the labels of a labelled flow, and `error`:
    for each pair the root mean square distance, in model units, from where other steps end: half as many, or two for
    one. Sources are not kept, since pair i's is a function of the seed and of i. Several processes make a shard each at
    a time of those that are missing.

    Raises:
        InputError: if the parent's weights are not those that the run names by their hash.
        Failure: if an end is not finite.
        OSError: if the disk is full; the shards that are there stay.
    """
    plan, part = _Plan.of(run, str(run.config.device_of(processes))), processes.part
    run.pairs.mkdir(exist_ok=True)
    missing = [(index, rows) for index, rows in enumerate(plan.shards) if not _path(run, index).exists()]
    made = plan.reflow.pairs - sum(len(rows) for _, rows in missing)
    yield made
    processes.barrier()  # all have looked before one of them writes
    for first in range(0, len(missing), part.of):
        shared = missing[first : first + part.of]
        for index, rows in shared[part.index : part.index + 1]:
            checkpoints.write_tensors(_path(run, index), plan.make(rows), {"flowgen": plan.signature})
        processes.barrier()  # none waits for longer than a shard takes
        made += sum(len(rows) for _, rows in shared)
        yield made


class _Plan(NamedTuple):
    """What the pairs of a run are made of."""

    config: Config
    reflow: ReflowConfig
    teacher: Trained

    @classmethod
    def of(cls, run: Run, device: str = "cpu") -> _Plan:
        if run.config.reflow is None:
            raise InputError("this run is no reflow: it has no parent")
        return cls(run.config, run.config.reflow, parent(run.config.reflow, device))

    @property
    def stream(self) -> str:
        """Not the noise that `flowgen sample` draws with the same seed."""
        return f"reflow {self.reflow.round}"

    @property
    def signature(self) -> str:
        """What the pairs are functions of."""
        return json.dumps({"seed": self.config.seed, **self.config.model_dump()["reflow"], "parent": None})

    @property
    def shards(self) -> list[range]:
        """The pairs of each shard."""
        rows = IMAGE_SHARD if len(self.teacher.source.event) == 3 else SHARD
        return [range(first, min(first + rows, self.reflow.pairs)) for first in range(0, self.reflow.pairs, rows)]

    def make(self, rows: range) -> dict[str, Tensor]:
        """The tensors of a shard."""
        reflow, cond = self.reflow, self.labels(rows)
        fine = self.ends(rows, reflow.steps, cond)
        coarse = self.ends(rows, reflow.steps // 2 or 2, cond)
        if not fine.isfinite().all():
            raise Failure(f"the flow of {reflow.parent} does not end at finite values")
        error = (fine - coarse).flatten(1).square().mean(1).sqrt()
        x1 = fine.half() if fine.ndim == 4 else fine
        return {"x1": x1, "error": error} if cond is None else {"x1": x1, "error": error, "cond": cond}

    def ends(self, rows: range, steps: int, cond: Tensor | None) -> Tensor:
        """Where the teacher's flow takes the pairs, in model units."""
        model, source, solver = self.teacher.model, self.teacher.source, self.reflow.solver
        made = sampling.pairs(
            model,
            source,
            rows.stop,
            grids.uniform(steps, *model.span),
            solver,
            seed=self.config.seed,
            stream=self.stream,
            start=rows.start,
            field=self.teacher.guided(model.velocity, self.reflow.guidance),
            cond=cond,
        )
        return torch.cat([pair.x1 for pair in made])

    def labels(self, rows: range) -> Tensor | None:
        """The labels of pairs, by their shares in the data; as many are dropped as in the parent's training."""
        if self.teacher.labels is None:
            return None
        shares = torch.tensor(self.teacher.labels.weights)
        dropout = self.teacher.config.train.label_dropout
        kept = (1 - dropout) * shares / shares.sum()
        law = Categorical((*kept.tolist(), dropout))
        first = rows.start - rows.start % sampling.BLOCK
        drawn = sampling.starts(law, first, rows.stop, self.config.seed, f"{self.stream}: labels")
        return drawn[rows.start - first :]

    def sources(self) -> Tensor:
        """Where all pairs start, in model units."""
        return sampling.starts(self.teacher.source, 0, self.reflow.pairs, self.config.seed, self.stream)


def _path(run: Run, index: int) -> Path:
    return run.pairs / f"shard-{index:05d}.safetensors"


def _shards(run: Run, plan: _Plan) -> Iterator[dict[str, Tensor]]:
    """The tensors of all shards.

    Raises:
        InputError: if one is missing, or was made by another parent or with other settings.
    """
    there = sum(_path(run, index).exists() for index in range(len(plan.shards)))
    if there < len(plan.shards):
        raise InputError(f"{run.pairs} holds {there} of {len(plan.shards)} shards: go on with flowgen reflow --resume")
    for index, rows in enumerate(plan.shards):
        tensors, metadata = checkpoints.read_tensors(_path(run, index))
        if metadata.get("flowgen") != plan.signature or len(tensors["x1"]) != len(rows):
            raise InputError(f"{run.pairs}: these pairs were made by another parent; remove them to make them anew")
        yield tensors


def stored_pairs(run: Run) -> StoredPairs:
    """The pairs of a reflow run.

    Raises:
        InputError: if they are missing, or were made by another parent.
    """
    plan = _Plan.of(run)
    shards = list(_shards(run, plan))
    x1 = torch.cat([shard["x1"] for shard in shards])
    cond = torch.cat([shard["cond"] for shard in shards]) if "cond" in shards[0] else None
    return StoredPairs(Pair(plan.sources(), x1, cond))


class Accuracy(NamedTuple):
    """How far the ends of pairs are from where other steps end, in model units: their mean, and the worst."""

    steps: int
    mean: float
    worst: float


def accuracy(run: Run) -> Accuracy:
    """The accuracy of the pairs of a reflow run."""
    plan = _Plan.of(run)
    error = torch.cat([shard["error"] for shard in _shards(run, plan)])
    return Accuracy(plan.reflow.steps // 2 or 2, error.mean().item(), error.max().item())
