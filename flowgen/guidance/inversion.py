"""Ways from data towards noise and back: SDEdit, inversion, and interpolation between two latents."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowgen.core import Field, InputError, expand_time, like
from flowgen.samplers.grids import checked
from flowgen.samplers.ode import Solver
from flowgen.sampling import solve
from flowgen.schedules import Schedule

__all__ = ["from_time", "inverted", "noised", "slerp"]


def noised(schedule: Schedule, x1: Tensor, x0: Tensor, t: float) -> Tensor:
    """Return data at time t of the path, alpha(t) x1 + sigma(t) x0, `(B, *shape)`: where SDEdit (arXiv 2108.01073)
    starts.

    At t = 0 it is where sampling starts, sigma(0) x0, though a diffusion has alpha(0) > 0: nothing is left of x1.
    """
    c = schedule.coeffs(like(expand_time(t, x1), x1))
    return (c.sigma * x0 if t == 0 else c.alpha * x1 + c.sigma * x0).to(x1)


def from_time(grid: Tensor, t: float) -> Tensor:
    """Return the rest of a grid from time t: t, and all later times of the grid; t alone where there are none.

    >>> from_time(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), 0.2).tolist()
    [0.2, 0.5, 1.0]

    Raises:
        InputError: unless t is within 0 and 1.
    """
    if not 0 <= t <= 1:
        raise InputError(f"a time is from 0 to 1, not {t}")
    return torch.cat([grid.new_tensor([t]), grid[grid > t]])


def inverted(field: Field, x1: Tensor, grid: Tensor, solver: Solver | str, cond: Tensor | None = None) -> Tensor:
    """Return where the flow reaches data x1 `(B, *shape)` from, at grid[0]: its ODE solved backwards along an
    increasing grid.

    `solve` on the same grid leads back to x1, to the solver's precision. On diffusions, whose velocity is infinite at
    t = 1, the grid ends at 1 - path.margin, and x1 is taken as the point there: alpha is nearly 1, and the little noise
    of that time is not added.
    """
    return solve(field, x1, checked(grid).flip(0), solver, cond)


def slerp(x: Tensor, y: Tensor, shares: Tensor) -> Tensor:
    """Return the great circle from x to y, rows of noise `(*shape)`, at shares u `(frames,)` of the arc, `(frames,
    *shape)`:

        sin((1 - u) w) / sin(w) x + sin(u w) / sin(w) y,  w the angle between x and y

    (Shoemake 1985), by sin(z) / z, so that it is the line where w = 0. Its ends are x and y. On the line between two
    rows of Gaussian noise the norm drops by a factor of about sqrt(2), and here it does not.
    """
    one, other = x.cpu().double().flatten(), y.cpu().double().flatten()  # not every device has float64
    # by the half angle, which keeps the digits that the cosine of a small one loses
    one, other = one / one.norm(), other / other.norm()
    w = 2 * torch.atan2((one - other).norm(), (one + other).norm())
    u = shares.to(w).reshape(-1, *[1] * x.ndim)
    first, second = (share * torch.sinc(share * w / math.pi) / torch.sinc(w / math.pi) for share in (1 - u, u))
    return (first * x + second * y).to(x)
