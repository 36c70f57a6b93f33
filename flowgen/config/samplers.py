"""Ways to sample by name: solvers of any field, samplers of diffusions, and time grids of both."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

from torch import Tensor

from flowgen.core import InputError, lookup
from flowgen.registry import Objects
from flowgen.samplers import DDIM, Ancestral, DPMSolverPP, EDMSampler, Langevin, PredictorCorrector, UniPC, grids
from flowgen.samplers.ode import SOLVERS, Solver
from flowgen.samplers.sde import ReverseSDE
from flowgen.sampling import Spacing
from flowgen.schedules import DDPM, Schedule

__all__ = ["GRIDS", "SAMPLERS", "Sampling", "sampling_by"]


class Made(NamedTuple):
    """A sampler of diffusions.

    make: (path, noise, seed) to the solver.
    noise: what is given for it by default, of solvers that can draw more or less; None of others.
    grid: the name of its paper's grid.
    """

    make: Callable[[Schedule, float, int], Solver]
    noise: float | None = None
    grid: str = "uniform"


ddim = Made(lambda schedule, eta, seed: DDIM(schedule, eta, seed=seed), noise=0.0)
ddpm = Made(lambda schedule, noise, seed: Ancestral(schedule, seed=seed))
ddpm_large = Made(lambda schedule, noise, seed: Ancestral(schedule, large=True, seed=seed))
dpmpp_2m = Made(lambda schedule, noise, seed: DPMSolverPP(schedule, 2), grid="log-snr")
dpmpp_3m = Made(lambda schedule, noise, seed: DPMSolverPP(schedule, 3), grid="log-snr")
unipc = Made(lambda schedule, noise, seed: UniPC(schedule), grid="log-snr")
edm = Made(lambda schedule, churn, seed: EDMSampler(schedule, churn, seed=seed), noise=0.0, grid="karras")
sde = Made(lambda schedule, level, seed: ReverseSDE(schedule, level, seed), noise=1.0)
pc = Made(
    lambda schedule, snr, seed: PredictorCorrector(ReverseSDE(schedule, 1.0, seed), schedule, snr, seed=seed),
    noise=0.16,
)
langevin = Made(lambda schedule, size, seed: Langevin(schedule, size, 10, seed=seed), noise=1.0, grid="log-snr")

SAMPLERS: Objects[Made] = Objects("sampler")


def quadratic(schedule: Schedule, steps: int, lo: float, hi: float) -> Tensor:
    """Return `grids.quadratic`, on any path."""
    return grids.quadratic(steps, lo, hi)


def shifted(schedule: Schedule, steps: int, lo: float, hi: float) -> Tensor:
    """Return `grids.shifted` by 3, on any path."""
    return grids.shifted(grids.uniform(steps, lo, hi), 3.0)


def _of_steps(spacing: Callable[[DDPM, int], Tensor]) -> Spacing:
    """Return a spacing of the steps of a path with discrete steps."""

    @wraps(spacing)
    def made(schedule: Schedule, steps: int, lo: float, hi: float) -> Tensor:
        if not isinstance(schedule, DDPM) or hi < 1:
            raise InputError(
                f"the grid {spacing.__name__} is of the steps of the path ddpm, down to the data: choose another, or a "
                "solver such as ddim on that path"
            )
        return spacing(schedule, steps)

    return made


trailing, leading, linspaced = _of_steps(grids.trailing), _of_steps(grids.leading), _of_steps(grids.linspaced)

GRIDS: Objects[Spacing] = Objects("grid")


class Sampling(NamedTuple):
    """How a model is sampled: None where the model decides."""

    solver: Solver | None
    spacing: Spacing


def sampling_by(
    solver: str | None, schedule: Schedule, noise: float | None = None, grid: str | None = None, seed: int = 0
) -> Sampling:
    """Return the way of sampling with these names, for a model on a path.

    Args:
        noise: what a sampler's noise is set by, where it is not to be as usual.

    Raises:
        InputError: for names that there are not, and noise for a solver that draws none, or no other.
    """
    found = SAMPLERS.get(solver or "")
    if noise is not None and (found is None or found.noise is None):
        able = ", ".join(name for name, made in SAMPLERS.items() if made.noise is not None)
        raise InputError(f"only some solvers can be given more or less noise: {able}")
    spacing = lookup("grid", grid or (found.grid if found else "uniform"), GRIDS)
    if found is None:
        return Sampling(lookup("solver", solver, {**SOLVERS, **dict.fromkeys(SAMPLERS)}) if solver else None, spacing)
    amount = found.noise or 0.0 if noise is None else noise
    return Sampling(found.make(schedule, amount, seed), spacing)
