"""The trajectories that a reflow learns from: those of its parent's flow, from the source forwards or from data
backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor

from flowgen import sampling
from flowgen.config import Config, ReflowConfig
from flowgen.core import Failure, Field, InputError, generator
from flowgen.data import Categorical, Distribution, streams
from flowgen.data.streams import BLOCK, chunks, whole_blocks
from flowgen.pairs.reflow import invert
from flowgen.runs.folder import Run, Trained, parent
from flowgen.samplers import grids
from flowgen.sampling import chunk_rows

__all__ = ["PairKind", "Trajectories", "halved"]

PairKind = Literal["generated", "inverted"]
"""From the source on, or from data back."""

SIGNED = ("parent_hash", "guidance", "round", "steps", "tolerance", "solver")
"""Settings that pairs are functions of."""
PROBE, IMAGE_PROBE = 1024, 64
"""Trajectories that tell how many steps all need."""
CLOSE = 0.8
"""Their error is to be so much below the tolerance, since the mean of all may be a little above theirs."""
MOST = 1000
"""Steps are doubled up to so many."""


def halved(steps: int) -> int:
    """Return the steps of the second solve that measures the error of the first: half as many, or two where there is
    one.
    """
    return steps // 2 or 2


class _Begun(NamedTuple):
    """Trajectories to follow: what is known of each, the name of the end that is not, and that end in so many steps."""

    known: dict[str, Tensor]
    found: str
    walk: Callable[[int], Tensor]


@final
@dataclass(frozen=True)
class Trajectories:
    """The trajectories behind the pairs of a run: trajectory i of a kind is a function of the seed, of i, and of its
    parent.

    Raises:
        InputError: where data are needed, if they have changed since the parent was trained.
    """

    config: Config
    reflow: ReflowConfig
    teacher: Trained

    @classmethod
    def of(cls, run: Run, device: str = "cpu") -> Trajectories:
        if run.config.reflow is None:
            raise InputError("this run is no reflow: it has no parent")
        return cls(run.config, run.config.reflow, parent(run.config.reflow, run.config.places, device))

    @property
    def counts(self) -> dict[PairKind, int]:
        """Return how many pairs there are of each kind, where there are any."""
        inverted = round(self.reflow.inverted * self.reflow.pairs)
        counts: dict[PairKind, int] = {"generated": self.reflow.pairs - inverted, "inverted": inverted}
        return {kind: count for kind, count in counts.items() if count}

    @property
    def signature(self) -> dict[str, Any]:
        """Return what trajectories are functions of, except their kind, their numbers and the steps that were taken.
        The data of inverted ones are those of the parent, whose weights identify them by their hash.
        """
        reflow = self.config.model_dump()["reflow"]
        return {"seed": self.config.seed, **{key: reflow[key] for key in SIGNED}}

    def follow(self, kind: PairKind, rows: range, steps: int) -> dict[str, Tensor]:
        """Return the tensors of trajectories of one kind, of which the first is the start of a block: `x1`, and `x0`
        where it is no function of the seed, both in half precision where they are images; `cond`, the labels of a
        labelled flow; and `error`, for each the root mean square distance in model units of its end from where other
        steps lead (`halved`).

        Raises:
            Failure: if an end is not finite.
        """
        begun = self._begin(kind, rows)
        fine, coarse = begun.walk(steps), begun.walk(halved(steps))
        if not fine.isfinite().all():
            raise Failure(f"the flow of {self.reflow.parent} does not end at finite values")
        error = (fine - coarse).flatten(1).square().mean(1).sqrt()
        ends = {**begun.known, begun.found: fine}
        return {"error": error, **{name: x.half() if x.ndim == 4 else x for name, x in ends.items()}}

    def steps(self, kind: PairKind) -> int:
        """Return how many steps the trajectories of a kind need: `reflow.steps`, doubled until their mean error is
        within `reflow.tolerance`, or they would be more than MOST. The first trajectories decide; a tolerance of 0
        keeps the steps as they are.
        """
        bound, steps = CLOSE * self.reflow.tolerance, self.reflow.steps
        first = range(min(self.counts[kind], IMAGE_PROBE if len(self.teacher.source.shape) == 3 else PROBE))
        while bound and 2 * steps <= MOST and self.follow(kind, first, steps)["error"].mean() > bound:
            steps *= 2
        return steps

    def sources(self) -> Tensor:
        """Return where generated trajectories start, in model units."""
        return streams.source_rows(
            self.teacher.source, 0, self.counts.get("generated", 0), self.config.seed, self._stream
        )

    @property
    def _stream(self) -> str:
        """Return the name of a stream that is not the noise of `flowgen sample` with the same seed."""
        return f"reflow {self.reflow.round}"

    @property
    def _field(self) -> Field:
        return self.teacher.guided(self.teacher.model.velocity, self.reflow.guidance)

    def _begin(self, kind: PairKind, rows: range) -> _Begun:
        if kind == "generated":
            cond = self._labels(rows)
            return _Begun({} if cond is None else {"cond": cond}, "x1", partial(self._ends, rows, cond))
        x1, cond = self._rows(rows)
        known = {"x1": x1} if cond is None else {"x1": x1, "cond": cond}
        kept = {name: x[: len(rows)].cpu() for name, x in known.items()}
        return _Begun(kept, "x0", lambda steps: self._starts(x1, cond, steps)[: len(rows)])

    def _ends(self, rows: range, cond: Tensor | None, steps: int) -> Tensor:
        """Return where the flow takes source points, in model units."""
        made = sampling.pair_chunks(
            self.teacher.model,
            self.teacher.source,
            rows.stop,
            grids.uniform(steps, *self.teacher.model.span),
            self.reflow.solver,
            seed=self.config.seed,
            stream=self._stream,
            start=rows.start,
            field=self._field,
            cond=cond,
        )
        return torch.cat([pair.x1 for pair in made])

    def _labels(self, rows: range) -> Tensor | None:
        """Return the labels of generated pairs, by their shares in the data; as many dropped as in the parent's
        training.
        """
        if self.teacher.labels is None:
            return None
        shares = torch.tensor(self.teacher.labels.weights)
        dropout = self.teacher.config.train.label_dropout
        kept = (1 - dropout) * shares / shares.sum()
        distribution = Categorical((*kept.tolist(), dropout))
        return streams.source_rows(distribution, rows.start, rows.stop, self.config.seed, f"{self._stream}: labels")

    @cached_property
    def _data(self) -> Distribution:
        """Return what the parent was trained on, in model units, images mirrored if they were then."""
        config = self.teacher.config
        data = self.teacher.check_data(config.load_data())
        distribution = config.ends(data, self.teacher.model.device).data
        return distribution

    def _rows(self, rows: range) -> tuple[Tensor, Tensor | None]:
        """Return rows of the data in model units, in whole blocks, all of them before one comes again; and their
        labels, of which as many are dropped as in the parent's training.
        """
        seed = generator(self.config.seed, f"{self._stream}: data").initial_seed()
        read = chunks(self._data, BLOCK, seed=seed, start=rows.start // BLOCK)
        x1, labels = zip(*islice(read, whole_blocks(len(rows)) // BLOCK), strict=True)
        if self.teacher.labels is None:
            return torch.cat(x1), None
        dropout, null = self.teacher.config.train.label_dropout, len(self.teacher.classes)
        distribution, stop = Categorical((1 - dropout, dropout)), rows.start + whole_blocks(len(rows))
        dropped = streams.source_rows(distribution, rows.start, stop, self.config.seed, f"{self._stream}: dropped")
        return torch.cat(x1), torch.where(dropped.bool(), null, torch.cat(labels).cpu())

    def _starts(self, x1: Tensor, cond: Tensor | None, steps: int) -> Tensor:
        """Return where the flow comes from to rows of data in whole blocks, in model units. A solver whose rows are
        joint takes a block at a time.

        Steps are shorter towards the data, t = 1 - (1 - u)^2 for even u: where the flow has narrowed what it carries,
        as pixels that are black in all images, the way back widens it, and the more so the nearer it is to the end.
        """
        model, solver = self.teacher.model, self.reflow.solver
        lo, hi = model.span
        grid = hi - (hi - lo) * (1 - grids.uniform(steps)) ** 2
        size = BLOCK if solver.couples_batch else whole_blocks(chunk_rows(self.teacher.source.shape))
        parts = x1.split(size)
        given = [None] * len(parts) if cond is None else cond.to(model.device).split(size)
        walked = (invert(model, x, grid, solver, y, self._field) for x, y in zip(parts, given, strict=True))
        return torch.cat([x.cpu() for x in walked])
