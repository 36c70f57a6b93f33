"""Solving a field along a grid, and drawing samples that are functions of their number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any, final

import torch
from torch import Tensor

from flowgen.core import (
    Evaluated,
    Field,
    InputError,
    Pair,
    like,
    numbers,
    shaped,
    whole,
)
from flowgen.data.distributions import Distribution
from flowgen.data.streams import BLOCK, as_distribution, source_rows, whole_blocks
from flowgen.model import Model, check_model
from flowgen.samplers.grids import checked, uniform
from flowgen.samplers.ode import SOLVERS, Solver
from flowgen.schedules import Schedule
from flowgen.training.distributed import ALONE, Processes

__all__ = [
    "Counted",
    "SolverFlowMap",
    "Spacing",
    "asked",
    "chunk_rows",
    "even",
    "flow",
    "grid_of",
    "pair_chunks",
    "sample",
    "sample_chunks",
    "solve",
    "trajectory",
]


def trajectory(
    field: Evaluated, x: Tensor, grid: Tensor, solver: Solver | str, cond: Tensor | None = None
) -> Iterator[Tensor]:
    """Yield x at each time of the grid after the first.

    Args:
        solver: an object or its name, such as "heun".

    Shapes: x `(B, *shape)` at grid[0], grid `(steps + 1,)`. A decreasing grid walks back from data to source.
    """

    def same_shape(x: Tensor, *times_and_cond: Any, **named: Any) -> Tensor:
        return shaped(field(x, *times_and_cond, **named), x, "the field")

    solver, carry = SOLVERS(solver), None
    for t, s in pairwise(checked(grid).tolist()):
        x, carry = solver.step(same_shape, x, t, s, cond, carry)
        yield x


def solve(field: Evaluated, x: Tensor, grid: Tensor, solver: Solver | str, cond: Tensor | None = None) -> Tensor:
    """Return x at the last time of the grid. It is differentiable; call it under `torch.no_grad()` to sample."""
    for end in trajectory(field, x, grid, solver, cond):
        x = end
    return x


@torch.no_grad()
def flow(
    model: Model,
    x0: Tensor,
    grid: Tensor | int,
    solver: Solver | str,
    cond: Tensor | None = None,
    field: Evaluated | None = None,
) -> Tensor:
    """Return where the model's flow takes source points `(B, *shape)`, in model units.

    Args:
        grid: the times of the steps, or how many even steps to take over the model's span.
        field: walked in place of what the solver asks of the model: one that counts, or guides.
    """
    solver = SOLVERS(solver)
    return solve(field or asked(model, solver), model.start(x0), _grid(model, grid, solver), solver, cond)


def asked(model: Model, solver: Solver | str) -> Evaluated:
    """Return what a solver evaluates of a model: its velocity, or its average velocity, to jump."""
    return model.average if SOLVERS(solver).needs_flow_map else model.velocity


Spacing = Callable[[Schedule, int, float, float], Tensor]
"""A kind of grid: (path, steps, lo, hi) to steps + 1 times."""


def even(schedule: Schedule, steps: int, lo: float, hi: float) -> Tensor:
    """Return `grids.uniform`, on any path."""
    return uniform(steps, lo, hi)


def grid_of(model: Model, solver: Solver | str, steps: int, spacing: Spacing = even) -> Tensor:
    """Return the grid on which a solver walks a model: over its span, and on to the data for a solver that
    lands there.
    """
    lo, hi = model.span
    return spacing(model.schedule, steps, lo, 1.0 if SOLVERS(solver).denoises_last else hi)


def _grid(model: Model, grid: Tensor | int, solver: Solver) -> Tensor:
    """Return the times of a grid, or of so many even steps; of two times at least, and from the source to the data."""
    times = grid_of(model, solver, int(grid)) if isinstance(grid, int | Integral) else checked(grid)
    if len(times) < 2 or times[-1] <= times[0]:
        raise InputError(f"a grid to sample on runs from the source to the data, not from {times[0]} to {times[-1]}")
    return times


class Counted:
    """A field or a flow map that counts its evaluations (the NFE of the papers), and the rows that they were of."""

    def __init__(self, field: Evaluated) -> None:
        self.field, self.evaluations, self.rows = field, 0, 0

    def __call__(self, *args: Any, **named: Any) -> Tensor:
        self.evaluations += 1
        self.rows += len(args[0])
        return self.field(*args, **named)


def chunk_rows(shape: tuple[int, ...]) -> int:
    """Return how many rows of a shape to follow at a time: 8192 points, a few hundred small images."""
    return max(BLOCK, min(8192, 2**18 // math.prod(shape)))


def pair_chunks(
    model: Model,
    source: Distribution | Tensor,
    num: int,
    grid: Tensor | int,
    solver: Solver | str,
    *,
    seed: int = 0,
    stream: str = "sample",
    chunk: int | None = None,
    start: int = 0,
    field: Evaluated | None = None,
    cond: Tensor | None = None,
) -> Iterator[Pair]:
    """Yield source points and where the flow takes them, in model units on the CPU: pairs of at most `chunk` rows.

    Pair i is a function of (seed, stream, i, its condition), whatever num, chunk and start are; memory is that of one
    chunk. For that, a solver whose rows are joint solves one block and one condition at a time. A stream of its own
    keeps samples apart from those that another use of the same seed draws.

    Args:
        chunk: the most rows at a time; None for as many as `chunk_rows` says.
        start: the first pair, a multiple of BLOCK.
        cond: the condition of each pair start..num-1, `(num - start, ...)`.

    Raises:
        InputError: unless num and chunk are positive, start is at a block, and there are as many conditions as pairs.
    """
    if whole("start", start, 0) % BLOCK:
        raise InputError(f"pairs start at a multiple of {BLOCK}, not at {start}")
    source = as_distribution(source)
    num, size = _sizes(model, source, num, chunk, cond, start)
    drawn = _Drawn.of(model, source, grid, solver, seed, stream, field)
    firsts = range(start, num, size)
    return (drawn.pairs(first, min(first + size, num), _rows(cond, first - start, size)) for first in firsts)


@final
@dataclass(frozen=True)
class _Drawn:
    """What pairs are drawn with, checked."""

    model: Model
    source: Distribution
    grid: Tensor
    solver: Solver
    seed: int
    stream: str
    field: Evaluated | None

    @classmethod
    def of(
        cls,
        model: Model,
        source: Distribution,
        grid: Tensor | int,
        solver: Solver | str,
        seed: int,
        stream: str,
        field: Evaluated | None,
    ) -> _Drawn:
        solver = SOLVERS(solver)
        return cls(model, source, _grid(model, grid, solver), solver, whole("the seed", seed, None), stream, field)

    def pairs(self, first: int, stop: int, cond: Tensor | None) -> Pair:
        """Return pairs first..stop-1 with their conditions; the first is at a block."""
        x0 = numbers(source_rows(self.source, first, whole_blocks(stop), self.seed, self.stream), self.model.dtype)
        given = None
        if cond is not None:
            given = self.model.admit_cond(_padded(cond, len(x0)))
        walk_to = _jointly if self.solver.couples_batch else flow
        ends = walk_to(self.model, x0, self.grid, self.solver.at(first), given, self.field)
        kept = slice(stop - first)
        return Pair(x0[kept], ends.cpu()[kept], None if given is None else given[kept].cpu())


def _jointly(
    model: Model, x0: Tensor, grid: Tensor, solver: Solver, cond: Tensor | None, field: Evaluated | None
) -> Tensor:
    """Return the result of `flow`, but a block at a time, and once for each of its conditions, so that no row sees what
    others are.
    """
    ends = []
    for rows in (slice(row, row + BLOCK) for row in range(0, len(x0), BLOCK)):
        if cond is None:
            ends.append(flow(model, x0[rows], grid, solver, None, field))
            continue
        distinct, index = cond[rows].unique(dim=0, return_inverse=True)
        alike = [flow(model, x0[rows], grid, solver, one.expand_as(cond[rows]), field) for one in distinct]
        ends.append(torch.stack(alike)[index, torch.arange(BLOCK)])
    return torch.cat(ends)


def _sizes(
    model: Model, source: Distribution, num: int, chunk: int | None, cond: Tensor | None, start: int = 0
) -> tuple[int, int]:
    """Return where rows end, and how many to follow at a time, after checking that each has a condition."""
    check_model(model)
    rows = whole("the number of samples", whole("the number of samples", num) - start)
    size = chunk_rows(source.shape) if chunk is None else whole("the chunk size", chunk)
    if cond is not None and not (isinstance(cond, Tensor) and cond.ndim):
        raise InputError(f"cond is a tensor of the condition of each sample, not {cond!r:.40}")
    if cond is not None and len(cond) != rows:
        raise InputError(f"{rows} samples need as many conditions, not {len(cond)}")
    if cond is not None:
        model.check_labels(cond)
    return rows + start, whole_blocks(size)


def _rows(cond: Tensor | None, first: int, count: int) -> Tensor | None:
    return None if cond is None else cond[first : first + count]


def _padded(x: Tensor, rows: int) -> Tensor:
    """Return x with its last row repeated, `(rows, ...)`."""
    return torch.cat([x, x[-1:].expand(rows - len(x), *x.shape[1:])])


def sample(
    model: Model,
    source: Distribution | Tensor,
    num: int,
    grid: Tensor | int,
    solver: Solver | str,
    *,
    seed: int = 0,
    chunk: int | None = None,
    field: Evaluated | None = None,
    cond: Tensor | None = None,
) -> Tensor:
    """Return all samples in one tensor `(num, *shape)`, in data units on the CPU.

    Sample i is a function of (seed, i, its condition), whatever num and chunk are. The device holds one chunk at a
    time, the CPU all samples (twice, while they are joined): use `sample_chunks` where that is too much, or where
    several processes sample together.

    Args:
        source: the distribution of x0 that the model was trained from, in model units; a tensor stands for the
            distribution of its rows, of which each sample starts at a random one (`flow` starts at each).
        grid: the times of the steps, see `flowgen.samplers.grids`; a whole number for so many even steps over the
            model's span.
        solver: an object, or its name as on the command line, such as "heun".
        seed: of the source points, and of the noise of a solver that draws some.
        chunk: the most rows on the device at a time; None for as many as `chunk_rows` says.
        field: walked in place of what the solver asks of the model: one that counts, or guides.
        cond: the condition of each sample, `(num, ...)`.

    Raises:
        InputError: at once, unless num and chunk are positive whole numbers, the grid runs from the source to the data,
            and there are as many conditions as samples.
    """
    made = sample_chunks(model, source, num, grid, solver, seed=seed, chunk=chunk, field=field, cond=cond)
    return torch.cat(list(made))


def sample_chunks(
    model: Model,
    source: Distribution | Tensor,
    num: int,
    grid: Tensor | int,
    solver: Solver | str,
    *,
    seed: int = 0,
    chunk: int | None = None,
    field: Evaluated | None = None,
    cond: Tensor | None = None,
    processes: Processes = ALONE,
) -> Iterator[Tensor]:
    """Yield the rows of `sample` in order, at most `chunk` at a time: memory is that of one chunk.

    Args:
        processes: those that sample together: each makes a chunk at a time, and only the first yields them.
    """
    source = as_distribution(source)
    num, size = _sizes(model, source, num, chunk, cond)
    drawn, part = _Drawn.of(model, source, grid, solver, seed, "sample", field), processes.part

    def chunks() -> Iterator[Tensor]:
        for first in range(0, num, size * part.of):
            start = min(first + part.index * size, num)
            stop = min(start + size, num)
            x = model.scaling.undo(torch.empty(0, *source.shape, device=model.device))
            if start < stop:
                made = drawn.pairs(start, stop, _rows(cond, start, stop - start))
                x = model.scaling.undo(made.x1.to(model.device))
            rows = processes.gathered(x)
            if rows is not None:
                yield rows

    return chunks()


@final
@dataclass(frozen=True)
class SolverFlowMap:
    """The average velocity of a field from t to s, (x_s - x_t) / (s - t), by a few steps of a solver: a FlowMap.

    Each row has times of its own: with t_r = t + r (s - t), all walk dx/dr = (s - t) v(x, t_r) from r = 0 to 1.

    Args:
        field: the velocity v.
        solver: one whose steps are fixed.
        steps: from t to s.
    """

    field: Field
    solver: Solver | str
    steps: int

    def __call__(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        delta = s - t

        def rescaled(x: Tensor, r: Tensor, cond: Tensor | None = None) -> Tensor:
            return like(delta, x) * self.field(x, t + r * delta, cond)

        end = solve(rescaled, x, uniform(self.steps), self.solver, cond)
        return (end - x) / like(delta, x)
