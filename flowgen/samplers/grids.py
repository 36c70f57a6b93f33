"""Time grids: where a solver steps. A grid is a 1-D float64 tensor of increasing times.

Spacings in the noise level have no even steps to where it is 0 or infinite: `log_snr` moves the last of its even times
there, and `karras` adds a step. The discrete ones are for solvers that land: their last time is the data, t = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flowgen.core import InputError, whole
from flowgen.schedules import DDPM, Schedule

__all__ = [
    "checked",
    "discrete",
    "karras",
    "leading",
    "linspaced",
    "log_snr",
    "quadratic",
    "shifted",
    "trailing",
    "uniform",
]


def uniform(steps: int, lo: float = 0.0, hi: float = 1.0) -> Tensor:
    """Return steps + 1 evenly spaced times from lo to hi.

    >>> uniform(4).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    if whole("the number of steps", steps, least=None) < 1:
        raise InputError(f"a grid needs at least one step, not {steps}")
    return torch.linspace(lo, hi, steps + 1, dtype=torch.float64)


def checked(grid: Tensor | Sequence[float]) -> Tensor:
    """Return the times of a grid `(steps + 1,)`, which may be a list of numbers.

    Raises:
        InputError: unless they are finite numbers in a row.
    """
    try:
        times = grid if isinstance(grid, Tensor) else torch.as_tensor(grid, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"a grid is a tensor of times, such as grids.uniform(20): {error}") from None
    if times.ndim != 1 or not len(times):
        raise InputError(f"a grid is a tensor of times, such as grids.uniform(20), not of shape {tuple(times.shape)}")
    if not times.isfinite().all():
        raise InputError("a grid of times holds NaN or infinite values")
    return times


def log_snr(schedule: Schedule, steps: int, lo: float = 0.0, hi: float = 1.0, margin: float = 1e-3) -> Tensor:
    """Return steps + 1 times from lo to hi, evenly spaced in log(alpha^2 / sigma^2) between them (arXiv 2206.00927).

    The log-SNR is infinite at the ends of most paths: the even spacing runs from lo + margin to hi - margin, and the
    first and last time are then moved to lo and hi. It never runs on beyond 1 - path.margin, where no net was asked.
    """
    inner = uniform(steps, 0, 1)
    first, last = schedule.log_snr(
        torch.tensor([lo + margin, min(hi - margin, 1 - schedule.margin)], dtype=torch.float64)
    )
    grid = schedule.time(first + (last - first) * inner)
    grid[0], grid[-1] = lo, hi
    return grid


def quadratic(steps: int, lo: float = 0.0, hi: float = 1.0) -> Tensor:
    """Return steps + 1 times from lo to hi, evenly spaced in sqrt(1 - t): the nearer to the data, the shorter the
    steps.

    That is the quadratic spacing of DDIM (arXiv 2010.02502), k_i = floor(c i^2), before it is rounded.

    >>> quadratic(2).tolist()
    [0.0, 0.75, 1.0]
    """
    roots = uniform(steps, math.sqrt(1 - lo), math.sqrt(1 - hi))
    return _between(1 - roots**2, lo, hi)


def karras(schedule: Schedule, steps: int, lo: float = 0.0, hi: float = 1.0, rho: float = 7.0) -> Tensor:
    """Return steps + 1 times from lo to hi, evenly spaced in (sigma / alpha)^(1 / rho) between them (arXiv 2206.00364).

    Where hi has no noise it is a step of its own, as there: the spacing runs to hi - path.margin, and hi follows.
    Where lo has an infinite level, the spacing runs from lo + path.margin, and its first time is then moved to lo. The
    time of a level of your choice, for either, is path.time(-2 log level).

    Raises:
        InputError: unless rho > 0 and there is a step.
    """
    if not 0 < rho < math.inf:
        raise InputError(f"karras needs a positive and finite rho, not {rho}")
    ends = torch.tensor([lo, hi], dtype=torch.float64)
    infinite, noiseless = schedule.log_snr(ends).isinf().tolist()
    if noiseless:
        if steps < 2:
            return uniform(steps, lo, hi)
        before = karras(schedule, steps - 1, lo, hi - schedule.margin, rho)
        return torch.cat([before, ends[1:]])
    ends[0] += schedule.margin * infinite
    first, last = torch.exp(-schedule.log_snr(ends) / 2 / rho).tolist()
    return _between(schedule.time(-2 * rho * uniform(steps, first, last).log()), lo, hi)


def shifted(grid: Tensor, shift: float) -> Tensor:
    """Return a grid with its steps moved towards the noise (shift > 1) or the data, and the same ends (arXiv
    2403.03206).

    With r = (1 - t) from 1 to 0 along the grid, r becomes shift r / (1 + (shift - 1) r). On the straight path from 0 to
    1 that takes sigma / alpha times shift, which keeps the noise of larger images where that of smaller ones was.

    Raises:
        InputError: unless shift is positive and finite.

    >>> shifted(uniform(2), 3).tolist()
    [0.0, 0.25, 1.0]
    """
    if not 0 < shift < math.inf:
        raise InputError(f"a grid needs a positive and finite shift, not {shift}")
    lo, hi = grid[0].item(), grid[-1].item()
    share = (grid - lo) / (hi - lo)
    return _between(lo + (hi - lo) * share / (shift + (1 - shift) * share), lo, hi)


def discrete(schedule: DDPM, grid: Tensor) -> Tensor:
    """Return a grid with each time moved to the nearest that is a step of the path: 1 - k / path.steps, k an integer.

    Raises:
        InputError: if two times are moved to the same step.
    """
    rounded = 1 - ((1 - grid) * schedule.steps).round() / schedule.steps
    if (rounded.diff() <= 0).any():
        raise InputError(f"{len(grid) - 1} steps are too many for a path of {schedule.steps}: choose fewer")
    return rounded


def trailing(schedule: DDPM, steps: int) -> Tensor:
    """Return steps of the path from its first, T, every T / steps of them: `uniform` in its steps (arXiv
    2305.08891).
    """
    return discrete(schedule, uniform(steps))


def linspaced(schedule: DDPM, steps: int) -> Tensor:
    """Return steps of the path evenly from its first to its last, and then the data (arXiv 2102.09672)."""
    if steps < 2:
        return uniform(steps)
    return discrete(
        schedule, torch.cat([uniform(steps - 1, 0, 1 - schedule.margin), torch.ones(1, dtype=torch.float64)])
    )


def leading(schedule: DDPM, steps: int) -> Tensor:
    """Return steps of the path counted from the data, k = 1, 1 + c, 1 + 2 c, ... with c = floor(T / steps).

    The spacing of DDIM's code (arXiv 2010.02502). It does not begin at t = 0, where the noise does that it is given
    (arXiv 2305.08891): it is here to repeat what was made with it.

    Raises:
        InputError: for more steps than the path has.
    """
    if not 1 <= steps <= schedule.steps:
        raise InputError(f"a path of {schedule.steps} steps has between 1 and {schedule.steps} of them, not {steps}")
    visited = 1 + schedule.steps // steps * torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    return 1 - torch.cat([visited, torch.zeros(1, dtype=torch.float64)]) / schedule.steps


def _between(grid: Tensor, lo: float, hi: float) -> Tensor:
    """Return the grid with its ends exactly lo and hi."""
    grid[0], grid[-1] = lo, hi
    return grid
