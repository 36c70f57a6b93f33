"""Graphs to export: functions of named batches, made of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor, nn

from flowgen.core import InputError, generator
from flowgen.data import Gaussian
from flowgen.model import Model
from flowgen.runs import Trained
from flowgen.samplers.flow_map import ConsistencySampler, FlowMapStep
from flowgen.samplers.ode import Solver
from flowgen.sampling import asked

__all__ = ["Graph", "SamplerGraph", "VelocityGraph", "sampler", "velocity"]


@final
class SamplerGraph(nn.Module):
    """Source points to samples, by the steps of a solver, one after another.

    Args:
        model: its velocity is walked, or its average velocity, by a solver that jumps.
        times: the grid, as numbers: what is traced has to hold them, and not to compute them.
        solver: of steps that are fixed.
        scaled: whether source points come in data units; else in model units, as Gaussian noise does.

    Shapes: noise `(B, *shape)`, labels int64 `(B,)` or None, to samples `(B, *shape)` in data units.
    """

    def __init__(self, model: Model, times: Sequence[float], solver: Solver, scaled: bool = False) -> None:
        super().__init__()
        self.model, self.times, self.solver, self.scaled = model, tuple(times), solver, scaled
        self.width = float(model.start(torch.ones((), dtype=torch.float64)))

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        kind = next(self.model.net.parameters()).dtype
        x0 = self.model.scaling.apply_to(noise).to(kind) if self.scaled else noise
        field, x, carry = asked(self.model, self.solver), self.width * x0, None
        for t, s in pairwise(self.times):
            x, carry = self.solver.step(field, x, t, s, labels, carry)
        return self.model.scaling.undo(x)


@final
class VelocityGraph(nn.Module):
    """The velocity field of a model, in model units.

    Shapes: x `(B, *shape)`, t `(B,)`, labels int64 `(B,)` or None, to dx/dt `(B, *shape)`.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.model.velocity(x, t, labels)


@final
@dataclass(frozen=True)
class Graph:
    """A module with the names of its inputs, all of them batches, and examples of them.

    Args:
        module: `module(*inputs) -> output`.
        inputs: `x` or `noise`, `t`, `labels`: those that the module reads, in order.
        output: its name.
        trained: what it was made of.
        words: says what it is.
        facts: goes into the file beside it.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    output: str
    trained: Trained
    words: str
    facts: dict[str, Any] = field(default_factory=dict)

    def draw(self, rows: int) -> tuple[Tensor, ...]:
        """Draw random inputs of a batch of so many rows: a function of their number."""
        made = {"x": self._source, "noise": self._noise, "t": self._times, "labels": self._labels}
        return tuple(made[name](rows) for name in self.inputs)

    def _source(self, rows: int) -> Tensor:
        return self.trained.source.sample(rows, generator(0, "export source", rows))

    def _noise(self, rows: int) -> Tensor:
        x0 = self._source(rows)
        return self.trained.model.scaling.undo(x0) if _scaled(self.trained) else x0

    def _times(self, rows: int) -> Tensor:
        lo, hi = self.trained.model.span
        return lo + (hi - lo) * torch.rand(rows, generator=generator(0, "export times", rows))

    def _labels(self, rows: int) -> Tensor:
        known = len(self.trained.classes) + 1
        return torch.randint(known, (rows,), generator=generator(0, "export labels", rows))


def sampler(trained: Trained, grid: Tensor, solver: Solver) -> Graph:
    """Return the map from source points to samples that a solver makes on a grid.

    Raises:
        InputError: for a solver that chooses its steps by what it meets, or draws noise between them.
    """
    steps = len(grid) - 1
    if solver.couples_batch:
        raise InputError("an adaptive solver has no fixed steps to export: choose euler, midpoint, heun, rk4 or ab2")
    if isinstance(solver, ConsistencySampler):
        if steps > 1:
            raise InputError("a consistency model draws noise between its jumps: export it with --steps 1")
        solver = FlowMapStep()  # the same, where there is nothing between
    facts = {"steps": steps, "source": "data units" if _scaled(trained) else "model units", "samples": "data units"}
    module = SamplerGraph(trained.model, grid.tolist(), solver, _scaled(trained)).eval()
    words = f"samples in {steps} step{'s' * (steps > 1)}"
    return Graph(module, ("noise", *_labelled(trained)), "samples", trained, words, facts | _facts(trained))


def velocity(trained: Trained) -> Graph:
    """Return the velocity of the flow. The facts say how to take its ends to data units: x scale + shift."""
    scaling = trained.model.scaling
    facts = {"span": trained.model.span, "shift": scaling.shift.tolist(), "scale": scaling.scale.tolist()}
    module = VelocityGraph(trained.model).eval()
    return Graph(module, ("x", "t", *_labelled(trained)), "velocity", trained, "the velocity", facts | _facts(trained))


def _labelled(trained: Trained) -> tuple[str, ...]:
    return ("labels",) if trained.classes else ()


def _scaled(trained: Trained) -> bool:
    """Return whether the source is data, whose units are those of the samples."""
    return not isinstance(trained.source, Gaussian)


def _facts(trained: Trained) -> dict[str, Any]:
    return {"shape": trained.source.shape, "classes": trained.classes, "columns": trained.columns, "step": trained.step}
