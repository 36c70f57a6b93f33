"""What a network predicts: rows of a 2x2 system.

A target is a row (a, b) of time, y = a x1 + b x0. Beside the path, x_t = alpha x1 + sigma x0, it makes a system of two
equations for the two ends, so any prediction becomes any other by solving it:

    x1 = (b x - sigma y) / det,   x0 = (alpha y - a x) / det,   det = alpha b - sigma a.

Where det is zero the prediction says nothing about one of the ends: the target is singular there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowgen.core import Field, InputError, Pair, like
from flowgen.paths import Coeffs, Path

__all__ = ["Target", "convert", "data", "encode", "ends", "expected", "noise", "score", "span", "v", "velocity"]

Row = tuple[Tensor, Tensor]
Target = Callable[[Coeffs], Row]


def velocity(c: Coeffs) -> Row:
    """y = dx_t/dt: the row (alpha', sigma')."""
    return c.d_alpha, c.d_sigma


def data(c: Coeffs) -> Row:
    """y = x1: the row (1, 0)."""
    return torch.ones_like(c.alpha), torch.zeros_like(c.alpha)


def noise(c: Coeffs) -> Row:
    """y = x0: the row (0, 1) (arXiv 2006.11239)."""
    return torch.zeros_like(c.alpha), torch.ones_like(c.alpha)


def v(c: Coeffs) -> Row:
    """y = alpha x0 - sigma x1: the row (-sigma, alpha), never singular (arXiv 2202.00512)."""
    return -c.sigma, c.alpha


def score(c: Coeffs) -> Row:
    """y = grad log p(x_t | x1) = -x0 / sigma: the row (0, -1 / sigma). Needs Gaussian x0 and independent pairs."""
    return torch.zeros_like(c.alpha), -1 / c.sigma


def encode(pair: Pair, c: Coeffs, target: Target) -> Tensor:
    """The target of a pair: y = a x1 + b x0. Shapes: ends and y `(B, *event)`, c of `path.coeffs(like(t, x))`."""
    a, b = target(c)
    return a * pair.x1 + b * pair.x0


def ends(y: Tensor, x: Tensor, c: Coeffs, target: Target) -> Pair:
    """Both ends from a prediction y at x_t: the 2x2 system of this module, solved."""
    a, b = target(c)
    det = c.alpha * b - c.sigma * a
    return Pair((c.alpha * y - a * x) / det, (b * x - c.sigma * y) / det)


def convert(y: Tensor, x: Tensor, c: Coeffs, source: Target, to: Target) -> Tensor:
    """The prediction y of target `source` at x_t, as target `to`."""
    return y if source is to else encode(ends(y, x, c, source), c, to)


def expected(field: Field, path: Path, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Pair:
    """Both ends that a velocity field expects at x_t `(B, *event)`, t `(B,)`: E[x0 | x_t] and E[x1 | x_t]."""
    return ends(field(x, t, cond), x, path.coeffs(like(t, x)), velocity)


def span(path: Path, target: Target) -> tuple[float, float]:
    """The times (lo, hi) on which `target` determines a finite velocity on `path`; grids and time laws stay inside.

    hi is 1, or 1 - path.margin where the system is singular at the data end (target data everywhere; every target on
    diffusions, whose velocity is infinite there).

    Raises:
        InputError: where the system is singular at t = 0, since sampling has to start there: noise and score on paths
            with alpha(0) = 0.
    """
    c = path.coeffs(torch.tensor([0.0, 1.0], dtype=torch.float64))
    a, b = target(c)
    det = c.alpha * b - c.sigma * a
    start, end = (det.isfinite() & (det != 0) & c.d_alpha.isfinite() & c.d_sigma.isfinite()).tolist()
    if not start:
        raise InputError(
            f"target {target.__name__} is singular at t = 0 of the path {type(path).__name__.lower()}, where sampling "
            "starts: it does not determine a velocity there. Choose velocity, v or data, or the path vp or ve"
        )
    return 0.0, 1.0 if end else 1 - path.margin
