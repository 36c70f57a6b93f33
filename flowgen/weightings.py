"""Weights of a loss at each time, by the noise there.

Given x_t, an error e0 of the expected noise is one of e1 = -(sigma / alpha) e0 in the expected data, and of
e_y = (det / alpha) e0 in any prediction (`flowgen.predictions`). So a weight that is said of one means the same for
all,

    w e_y^2,  w = alpha^2 / det^2 times the weight of noise = sigma^2 / det^2 times that of data,

and whatever the network predicts, the same errors of the same denoiser cost the same (arXiv 2303.00848).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from flowgen.core import Choices, InputError
from flowgen.predictions import Prediction, determinant
from flowgen.registry import Objects
from flowgen.schedules import Coeffs

__all__ = ["WEIGHTS", "EDMWeight", "Likelihood", "MinSNR", "Sigmoid", "Simple", "TruncatedSNR", "Unweighted", "Weight"]


class Weight(Protocol):
    """The weight of the squared error of a prediction where the path has these coefficients, of the shape of time."""

    def __call__(self, c: Coeffs, prediction: Prediction) -> Tensor: ...


def _of(c: Coeffs, prediction: Prediction, noise: Tensor) -> Tensor:
    """Return a weight from alpha^2 times that of noise, which is finite where alpha or sigma is zero."""
    return noise / determinant(c, prediction) ** 2


@final
@dataclass(frozen=True)
class Unweighted:
    """1: the squared error of the prediction as it is."""

    def __call__(self, c: Coeffs, prediction: Prediction) -> Tensor:
        return torch.ones_like(c.alpha)


@final
@dataclass(frozen=True)
class Simple:
    """1 for noise, SNR = alpha^2 / sigma^2 for data: the simplified loss of DDPM (arXiv 2006.11239)."""

    def __call__(self, c: Coeffs, prediction: Prediction) -> Tensor:
        return _of(c, prediction, c.alpha**2)


@final
@dataclass(frozen=True)
class TruncatedSNR:
    """max(SNR, least) for data: `Simple`, with no less for the data where there is much noise (arXiv 2202.00512).

    Raises:
        InputError: unless least is positive and finite.
    """

    least: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("TruncatedSNR", "least", self.least)

    def __call__(self, c: Coeffs, prediction: Prediction) -> Tensor:
        return _of(c, prediction, torch.maximum(c.alpha**2, self.least * c.sigma**2))


@final
@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) for data: `Simple`, with no more for the data where there is little noise (arXiv 2303.09556).

    Raises:
        InputError: unless gamma is positive and finite.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        _check_positive("MinSNR", "gamma", self.gamma)

    def __call__(self, c: Coeffs, prediction: Prediction) -> Tensor:
        return _of(c, prediction, torch.minimum(c.alpha**2, self.gamma * c.sigma**2))


@final
@dataclass(frozen=True)
class Sigmoid:
    """sigmoid(bias - log SNR) d log SNR / dt / 2 for noise: little near the data (arXiv 2303.00848, 2410.19324).

    Raises:
        InputError: unless the bias is finite.
    """

    bias: float = 2.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.bias):
            raise InputError(f"Sigmoid needs a finite bias, not {self.bias}")

    def __call__(self, c: Coeffs, prediction: Prediction) -> Tensor:
        slope = c.d_alpha * c.sigma - c.d_sigma * c.alpha
        more = math.exp(self.bias)
        return _of(c, prediction, more * c.alpha * c.sigma * slope / (more * c.sigma**2 + c.alpha**2))


@final
@dataclass(frozen=True)
class EDMWeight:
    """(s^2 + sigma_data^2) / (s sigma_data)^2 for data, with s = sigma / alpha (arXiv 2206.00364).

    It is what gives the prediction `targets.EDM` of the same sigma_data the weight 1.

    Raises:
        InputError: unless sigma_data is positive and finite.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _check_positive("the weight EDM", "sigma_data", self.sigma_data)

    def __call__(self, c: Coeffs, prediction: Prediction) -> Tensor:
        return _of(c, prediction, (c.sigma / self.sigma_data) ** 2 + c.alpha**2)


@final
@dataclass(frozen=True)
class Likelihood:
    """d log SNR / dt / 2 for noise: with uniform times, the bound of the likelihood (arXiv 2101.09258, 2107.00630).

    It is infinite at t = 1, so that it is for paths whose span ends before: those of diffusions.
    """

    def __call__(self, c: Coeffs, prediction: Prediction) -> Tensor:
        return _of(c, prediction, c.alpha * (c.d_alpha * c.sigma - c.d_sigma * c.alpha) / c.sigma)


def _check_positive(kind: str, name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InputError(f"{kind} needs a positive {name}, not {value}")


WEIGHTS: Choices[Weight] = Choices("weight", Callable, Objects("weight"))
