"""Predictions of a network: rows of a 2x2 system.

A prediction is a row (a, b) of time, y = a x1 + b x0. Beside the path, x_t = alpha x1 + sigma x0, it makes a system of
two equations for the two ends, so any prediction becomes any other by solving it:

    x1 = (b x - sigma y) / det,   x0 = (alpha y - a x) / det,   det = alpha b - sigma a.

Where det is zero the prediction says nothing about one of the ends: the prediction is singular there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from flowgen.core import Choices, Field, InputError, Pair, like
from flowgen.registry import Objects
from flowgen.schedules import Coeffs, Schedule

__all__ = [
    "EDM",
    "PREDICTIONS",
    "Prediction",
    "Row",
    "Sized",
    "convert",
    "data",
    "determinant",
    "encode",
    "ends",
    "expected",
    "noise",
    "score",
    "size",
    "span",
    "v",
    "velocity",
]

Row = tuple[Tensor, Tensor]


class Prediction(Protocol):
    """Coefficients of a path to the row (a, b) of the prediction there."""

    @property
    def __name__(self) -> str: ...

    def __call__(self, c: Coeffs) -> Row: ...


def velocity(c: Coeffs) -> Row:
    """Return y = dx_t/dt: the row (alpha', sigma')."""
    return c.d_alpha, c.d_sigma


def data(c: Coeffs) -> Row:
    """Return y = x1: the row (1, 0)."""
    return torch.ones_like(c.alpha), torch.zeros_like(c.alpha)


def noise(c: Coeffs) -> Row:
    """Return y = x0: the row (0, 1) (arXiv 2006.11239)."""
    return torch.zeros_like(c.alpha), torch.ones_like(c.alpha)


def v(c: Coeffs) -> Row:
    """Return y = alpha x0 - sigma x1: the row (-sigma, alpha), never singular (arXiv 2202.00512)."""
    return -c.sigma, c.alpha


def score(c: Coeffs) -> Row:
    """Return y = grad log p(x_t | x1) = -x0 / sigma: the row (0, -1 / sigma). Needs Gaussian x0 and independent
    pairs.
    """
    return torch.zeros_like(c.alpha), -1 / c.sigma


@final
@dataclass(frozen=True)
class EDM:
    """EDM's network F, never singular (arXiv 2206.00364): with n = sqrt(sigma^2 + sigma_data^2 alpha^2) the row

    (sigma / (sigma_data n), -sigma_data alpha / n),

    which on VE is the data, c_skip x + c_out F, solved for F. A model divides the input of its net by n, too.

    Args:
        sigma_data: of the data in the model's units; 0.5 for images in [-1, 1], 1 for tables that were standardised.

    Raises:
        InputError: unless sigma_data is positive and finite.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < math.inf:
            raise InputError(f"the prediction edm needs a positive sigma_data, not {self.sigma_data}")

    @property
    def __name__(self) -> str:
        return "edm"

    def size(self, c: Coeffs) -> Tensor:
        """Return n, the size of x_t."""
        return torch.sqrt(c.sigma**2 + (self.sigma_data * c.alpha) ** 2)

    def __call__(self, c: Coeffs) -> Row:
        n = self.size(c)
        return c.sigma / (self.sigma_data * n), -self.sigma_data * c.alpha / n


@runtime_checkable
class Sized(Prediction, Protocol):
    """A prediction whose net sees x_t / size."""

    def size(self, c: Coeffs) -> Tensor: ...


def size(schedule: Schedule, prediction: Prediction) -> Callable[[Coeffs], Tensor] | None:
    """Return what x_t is divided by before a net sees it: as the prediction says, or |(alpha, sigma)| where that
    grows."""
    if isinstance(prediction, Sized):
        return prediction.size
    return (lambda c: c.size) if schedule.exploding else None


def determinant(c: Coeffs, prediction: Prediction) -> Tensor:
    """Return det = alpha b - sigma a, of the shape of c."""
    a, b = prediction(c)
    return c.alpha * b - c.sigma * a


def encode(pair: Pair, c: Coeffs, prediction: Prediction) -> Tensor:
    """Return the prediction of a pair: y = a x1 + b x0. Shapes: ends and y `(B, *shape)`, c of `path.coeffs(like(t,
    x))`.
    """
    a, b = prediction(c)
    return a * pair.x1 + b * pair.x0


def ends(y: Tensor, x: Tensor, c: Coeffs, prediction: Prediction) -> Pair:
    """Return both ends from a prediction y at x_t: the 2x2 system of this module, solved."""
    (a, b), det = prediction(c), determinant(c, prediction)
    return Pair((c.alpha * y - a * x) / det, (b * x - c.sigma * y) / det)


def convert(y: Tensor, x: Tensor, c: Coeffs, source: Prediction, to: Prediction) -> Tensor:
    """Return the prediction y of prediction `source` at x_t, as prediction `to`."""
    return y if source is to else encode(ends(y, x, c, source), c, to)


def expected(field: Field, schedule: Schedule, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Pair:
    """Return both ends that a velocity field expects at x_t `(B, *shape)`, t `(B,)`: E[x0 | x_t] and E[x1 | x_t]."""
    return ends(field(x, t, cond), x, schedule.coeffs(like(t, x)), velocity)


def span(schedule: Schedule, prediction: Prediction, start: float = 0.0) -> tuple[float, float]:
    """Return the times (lo, hi) on which `prediction` determines a finite velocity on `path`; grids and time
    distributions stay inside.

    hi is 1, or 1 - path.margin where the system is singular at the data end (prediction data everywhere; every
    prediction on diffusions, whose velocity is infinite there).

    Args:
        start: lo, where sampling starts.

    Raises:
        InputError: where the system is singular at the start: noise and score on paths with alpha(0) = 0.
    """
    c = schedule.coeffs(torch.tensor([start, 1.0], dtype=torch.float64))
    det = determinant(c, prediction)
    begins, ends_well = (det.isfinite() & (det != 0) & c.d_alpha.isfinite() & c.d_sigma.isfinite()).tolist()
    if not begins:
        name = re.sub("(?<=[a-z])(?=[A-Z])", "-", type(schedule).__name__).lower()
        raise InputError(
            f"prediction {prediction.__name__} is singular at t = {start:.3g} of the path {name}, where "
            "sampling starts: it does not determine a velocity there. Choose velocity, v, edm or data, or the path vp, "
            "ddpm or ve"
        )
    return start, 1.0 if ends_well else 1 - schedule.margin


PREDICTIONS: Choices[Prediction] = Choices("prediction", Callable, Objects("prediction"))
