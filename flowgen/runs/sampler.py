"""The sampler of a run, by what it has learned."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from flowgen.config import Config
from flowgen.core import InputError
from flowgen.data import Distribution
from flowgen.model import Model
from flowgen.samplers.flow_map import ConsistencySampler, FlowMapStep
from flowgen.samplers.ode import AdaptiveSolver, Solver, heun
from flowgen.sampling import Spacing, even, grid_of

__all__ = ["ChosenSampler", "jump_counts", "sampler"]

STEPS = 50


def jump_counts(config: Config) -> tuple[int, ...]:
    """Return the numbers of steps to try for what a configuration trains; empty for a velocity, which does not jump."""
    kind = config.objective
    return () if not kind.maps else (kind.jumps,) if _only(config) else (1, 2, 4, 8)


def _only(config: Config) -> bool:
    """Return whether there is only one number of jumps: a consistency model that jumps again needs noise that may be
    drawn anew, and not that of its pair.
    """
    return config.objective.fixed or (config.objective.to_data and not config.independent)


class ChosenSampler(NamedTuple):
    """A solver and the grid of its steps."""

    solver: Solver
    grid: Tensor


def sampler(
    config: Config,
    model: Model,
    source: Distribution,
    solver: Solver | None = None,
    steps: int | None = None,
    seed: int = 0,
    spacing: Spacing = even,
) -> ChosenSampler:
    """Return the sampler of what a configuration trains: Heun's method for a velocity, jumps for a flow map.

    Args:
        solver: another than that.
        steps: other than 50 for a velocity, one jump for a flow map, or as many as it has learned.
        seed: of the noise of a consistency model that makes several jumps.
        spacing: of the grid, which is even by default.

    Raises:
        InputError: for a solver that asks of the model what it has not learned, jumps of another number than it has,
            and noise where pairs are not independent.
    """
    kind = config.objective
    solver = solver or (FlowMapStep() if kind.maps else heun)
    if solver.needs_flow_map and not kind.maps:
        raise InputError("this run has learned a velocity, and cannot jump: choose another solver")
    if not (solver.needs_flow_map or kind.fields):
        raise InputError("this run has learned to jump, and has no velocity to solve: choose the solver jump")
    if solver.stochastic and not config.scored:
        raise InputError(
            "only between independent pairs of Gaussian noise and data, without a bridge, can noise be drawn anew: "
            "choose a solver that draws none, such as heun, ddim or dpm++2m, or train with --coupling independent"
        )
    if steps is None:
        steps = kind.jumps if solver.needs_flow_map else 1 if isinstance(solver, AdaptiveSolver) else STEPS
    if solver.needs_flow_map and _only(config) and steps != kind.jumps:
        raise InputError(f"this run has learned to jump in {kind.jumps} step{'s' * (kind.jumps > 1)}, not in {steps}")
    if solver.needs_flow_map and kind.to_data:
        solver = ConsistencySampler(model.schedule, source, seed)
    return ChosenSampler(solver, grid_of(model, solver, steps, spacing))
