"""Guidance by a measurement: pseudo-inverse guidance, for flows and diffusions alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowgen import predictions
from flowgen.core import Field, fixed, gradients, like
from flowgen.guidance.measurements import Measurement
from flowgen.schedules import Coeffs, Schedule

__all__ = ["PiGDM", "Spread", "unit_variance"]

Spread = Callable[[Coeffs], Tensor]
"""r^2, the variance of x1 given x_t, of what broadcasts with x."""


def unit_variance(c: Coeffs) -> Tensor:
    """Return r^2 of data N(m, I): sigma^2 / (alpha^2 + sigma^2)."""
    return c.sigma**2 / (c.alpha**2 + c.sigma**2)


@final
@dataclass(frozen=True)
class PiGDM:
    """The velocity field of the data with A x1 = y, by pseudo-inverse guidance: a Field.

    The velocity is alpha' / alpha x + g^2 / 2 score, and given y the score has grad log p(y | x_t) beside its own. With
    p(x1 | x_t) taken as N(x1_hat, r^2 I), x1_hat = E[x1 | x_t], that makes

        v(x, t | y) = v(x, t) + g^2 / (2 r^2) (d x1_hat / d x)^T A^+ (y - A x1_hat),
        g^2 / 2 = sigma (alpha' sigma / alpha - sigma')

    (Song et al., Pseudoinverse-guided diffusion models, ICLR 2023; of flows, arXiv 2310.04432). It is exact where x1
    given x_t is so spread: for Gaussian data of one variance, and for data whose entries are independent and Gaussian
    behind a `Mask`, with an r^2 each. Beside each evaluation it takes a vector-Jacobian product of the field.

    Where alpha = 0 that is 0 times infinity: d x1_hat / d x is alpha / sigma^2 Cov[x1 | x_t], and with the covariance
    r^2 I the term is alpha' A^+ (y - A x1_hat). Where sigma = 0, x_t is the data and says nothing of x0, with y or
    without: the field stands as it is.

    Args:
        field: of a Gaussian source, paired independently.
        schedule: of the field.
        measurement: A.
        y: what was measured, in model units: a row each, or one for all.
        spread: r^2.
        since: the time from which to guide; before, the field stands. Where alpha is small, what a network errs by in
            predicting noise is in x1_hat, and in its derivative, sigma / alpha times over.
    """

    field: Field
    schedule: Schedule
    measurement: Measurement
    y: Tensor
    spread: Spread = unit_variance
    since: float = 0.0

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        inside = t >= self.since
        if not inside.any():
            return self.field(x, t, cond)
        c = self.schedule.coeffs(like(t, x))
        with gradients():
            at, c = fixed(x).requires_grad_(), type(c)(*map(fixed, c))
            v = self.field(at, fixed(t), None if cond is None else fixed(cond))
            x1 = predictions.ends(v, at, c, predictions.velocity).x1
            misfit = self.measurement.inverse(self.y - self.measurement.apply(x1.detach()))
            (pulled,) = torch.autograd.grad(x1, at, (misfit / self.spread(c)).to(x1))
        guided = c.sigma * (c.d_alpha * c.sigma / c.alpha - c.d_sigma) * pulled
        guided = torch.where(c.alpha == 0, c.d_alpha * misfit, guided)
        return v.detach() + torch.where(like(inside, x) & (c.sigma > 0), guided, 0).to(v)
