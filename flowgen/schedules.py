"""Probability paths x_t = alpha(t) x1 + sigma(t) x0, from the source at t = 0 to data at t = 1.

A path is four scalars of time: alpha, sigma and their derivatives. All paths here end on the data exactly,
alpha(1) = 1 and sigma(1) = 0 (but for Linear with a sigma_min, which is asked to), and start on the source alone or
(VP, VE) on almost nothing but the source.

A bridge widens a path by noise of its own, x_t = alpha x1 + sigma x0 + gamma(t) z with z ~ N(0, I).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from flowgen.core import Choices, InputError, Pair, Point, expand_time, like
from flowgen.registry import Objects

__all__ = [
    "DDPM",
    "SCHEDULES",
    "VE",
    "VP",
    "Coeffs",
    "Cosine",
    "Linear",
    "Mark",
    "OffsetCosine",
    "Schedule",
]


class Coeffs(NamedTuple):
    """alpha(t), sigma(t) and their time derivatives, each of the shape of t."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor

    @property
    def size(self) -> Tensor:
        """Return sqrt(alpha^2 + sigma^2), the size of x_t where both ends are of size 1."""
        return (self.alpha**2 + self.sigma**2).sqrt()  # torch.hypot has no ONNX


class Mark(NamedTuple):
    """The shares of data and source in x at a time: x = alpha x1 + sigma x0."""

    alpha: float
    sigma: float

    @property
    def level(self) -> float:
        """Return the noise level sigma / alpha, inf where alpha is 0."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def half_log_snr(self) -> float:
        """Return lambda = log(alpha / sigma), -inf and inf at the ends."""
        return -math.log(self.level) if 0 < self.level < math.inf else math.inf if self.alpha else -math.inf


class Schedule(ABC):
    """A schedule (alpha, sigma) that joins x0 to x1."""

    exploding: ClassVar[bool] = False
    """Whether |x_t| grows with sigma: the model then divides its input by sqrt(alpha^2 + sigma^2)."""

    @property
    def margin(self) -> float:
        """Return the share of the time axis that is left out at a singular end t = 1: one step in the thousand
        of DDPM.
        """
        return 1e-3

    @abstractmethod
    def coeffs(self, t: Tensor) -> Coeffs:
        """Return alpha, sigma, d alpha/dt and d sigma/dt at times t in [0, 1], any shape."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """Return the time at which log(alpha^2 / sigma^2) = log_snr; the inverse of `log_snr`."""

    @final
    def mark(self, t: float) -> Mark:
        """Return alpha and sigma at one time, as numbers of float64."""
        c = self.coeffs(torch.tensor(t, dtype=torch.float64))
        return Mark(c.alpha.item(), c.sigma.item())

    @final
    def log_snr(self, t: Tensor) -> Tensor:
        """Return log(alpha(t)^2 / sigma(t)^2), increasing in t, +inf at t = 1."""
        c = self.coeffs(t)
        return 2 * (c.alpha.log() - c.sigma.log())

    @final
    def diffusion(self, t: Tensor) -> Tensor:
        """Return g(t) of the diffusion whose marginals these are, any shape: g^2 = 2 sigma (alpha' sigma / alpha -
        sigma').

        The equation dx = (u + g^2 / 2 score) dt + g dW has the marginals of the flow u, and is the time reversal of
        the one that takes data to noise, without a score (arXiv 2011.13456). g^2 is beta of VP, and infinite where
        alpha = 0. The velocity is alpha' / alpha x + g^2 / 2 score.
        """
        c = self.coeffs(t)
        return (2 * c.sigma * (c.d_alpha * c.sigma / c.alpha - c.d_sigma)).sqrt()

    @final
    def at(self, pair: Pair, t: Tensor | float) -> Point:
        """Return the point of each pair at its time, or of all at one.

        x_t = alpha x1 + sigma x0,  dx_t/dt = alpha' x1 + sigma' x0.

        Shapes: ends `(B, *shape)`, t `(B,)`.

        Raises:
            InputError: for ends of unlike shapes.
        """
        pair.checked()
        t = expand_time(t, pair.x1)
        c = self.coeffs(like(t, pair.x1))
        return Point(c.alpha * pair.x1 + c.sigma * pair.x0, t, c.d_alpha * pair.x1 + c.d_sigma * pair.x0)


@final
@dataclass(frozen=True)
class Linear(Schedule):
    """The straight path: alpha = t, sigma = 1 - t, so that dx/dt = x1 - x0 (arXiv 2209.03003).

    With a sigma_min, sigma = 1 - (1 - sigma_min) t: it ends on the data blurred by sigma_min x0 (arXiv 2210.02747).

    Raises:
        InputError: unless 0 <= sigma_min < 1.
    """

    sigma_min: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < 1:
            raise InputError(f"Linear needs 0 <= sigma_min < 1, not {self.sigma_min}")

    def coeffs(self, t: Tensor) -> Coeffs:
        one, slope = torch.ones_like(t), 1 - self.sigma_min
        return Coeffs(t, 1 - slope * t, one, -slope * one)

    def time(self, log_snr: Tensor) -> Tensor:
        return 1 / (1 - self.sigma_min + torch.exp(-log_snr / 2))


@final
@dataclass(frozen=True)
class Cosine(Schedule):
    """A quarter turn: alpha = sin(pi t / 2), sigma = cos(pi t / 2) (arXiv 2102.09672, 2303.08797).

    alpha^2 + sigma^2 = 1, and the velocity is pi / 2 times the v of arXiv 2202.00512.
    """

    def coeffs(self, t: Tensor) -> Coeffs:
        quarter = math.pi / 2
        # sin of the rest of the turn, and not cos of t, so that sigma(1) is 0 to the last bit
        alpha, sigma = torch.sin(quarter * t), torch.sin(quarter * (1 - t))
        return Coeffs(alpha, sigma, quarter * sigma, -quarter * alpha)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.atan(torch.exp(log_snr / 2)) * (2 / math.pi)


@final
@dataclass(frozen=True)
class OffsetCosine(Schedule):
    """The cosine schedule of improved DDPM (arXiv 2102.09672): with a = pi / (2 (1 + offset)),

    alpha = sin(a t) / sin(a), sigma = sqrt(1 - alpha^2). Other than of `Cosine`, d sigma/dt is -inf at t = 1: the last
    noise goes at once.

    Raises:
        InputError: unless 0 < offset < 1.
    """

    offset: float = 0.008

    def __post_init__(self) -> None:
        if not 0 < self.offset < 1:
            raise InputError(f"OffsetCosine needs 0 < offset < 1, not {self.offset}: without one it is Cosine")

    @property
    def _turn(self) -> float:
        return math.pi / 2 / (1 + self.offset)

    def coeffs(self, t: Tensor) -> Coeffs:
        a, whole = self._turn, math.sin(self._turn)
        alpha, d_alpha = torch.sin(a * t) / whole, a * torch.cos(a * t) / whole
        # sin^2 a - sin^2 (a t), as a product, so that nothing is lost where sigma is small
        sigma = (torch.sin(a * (1 + t)) * torch.sin(a * (1 - t))).sqrt() / whole
        return Coeffs(alpha, sigma, d_alpha, -alpha * d_alpha / sigma)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.asin(math.sin(self._turn) * torch.sigmoid(log_snr).sqrt()) / self._turn


def _remaining(integral: Tensor, alpha: Tensor) -> Tensor:
    """Return sqrt(1 - exp(-integral)) beside alpha = exp(-integral / 2).

    By tanh, which keeps the digits of small ones where expm1 is exp less 1, as in ONNX.
    """
    return ((1 + alpha**2) * torch.tanh(integral / 2)).sqrt()


@final
@dataclass(frozen=True)
class VP(Schedule):
    """The variance-preserving diffusion with linear beta (arXiv 2006.11239, 2011.13456).

    With r = 1 - t and B(r) = beta_min r + (beta_max - beta_min) r^2 / 2:
    alpha = exp(-B / 2), sigma = sqrt(1 - alpha^2). alpha(0) = 0.0066 by default, and d sigma/dt is -inf at t = 1.

    Raises:
        InputError: unless 0 < beta_min <= beta_max.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise InputError(f"VP needs 0 < beta_min <= beta_max, not {self.beta_min} and {self.beta_max}")

    def coeffs(self, t: Tensor) -> Coeffs:
        r, slope = 1 - t, self.beta_max - self.beta_min
        integral = r * (self.beta_min + slope * r / 2)
        alpha = torch.exp(-integral / 2)
        sigma = _remaining(integral, alpha)
        d_alpha = alpha * (self.beta_min + slope * r) / 2
        return Coeffs(alpha, sigma, d_alpha, -alpha * d_alpha / sigma)

    def time(self, log_snr: Tensor) -> Tensor:
        integral = torch.nn.functional.softplus(-log_snr)
        slope = self.beta_max - self.beta_min
        return 1 - 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))


@final
@dataclass(frozen=True)
class DDPM(Schedule):
    """The diffusion of DDPM in its own steps (arXiv 2006.11239): after step k of `steps`, at t = 1 - k / steps,

    alpha^2 = prod_{i <= k} (1 - beta_i), with betas that rise evenly from beta_min to beta_max, and sigma^2 = 1 -
    alpha^2. Between steps log alpha is the smooth monotone cubic through them, so that ODE solvers keep their order.
    `VP` is its limit of many steps.

    Raises:
        InputError: unless 0 < beta_min <= beta_max < 1 and there are 2 to 100,000 steps.
    """

    steps: int = 1000
    beta_min: float = 1e-4
    beta_max: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < 1:
            raise InputError(f"DDPM needs 0 < beta_min <= beta_max < 1, not {self.beta_min} and {self.beta_max}")
        if not 2 <= self.steps <= 100_000:
            raise InputError(f"DDPM needs 2 to 100,000 steps, not {self.steps}")

    @property
    def margin(self) -> float:
        return 1 / self.steps

    @cached_property
    def _table(self) -> Tensor:
        """Return for each step: -log alpha^2 before it, what it adds, and the slopes at both its ends, `(4, steps)`."""
        betas = torch.linspace(self.beta_min, self.beta_max, self.steps, dtype=torch.float64)
        added = -torch.log1p(-betas)
        slopes = torch.cat([added[:1], 2 / (1 / added[1:] + 1 / added[:-1]), added[-1:]])
        return torch.stack([added.cumsum(0) - added, added, slopes[:-1], slopes[1:]])

    def coeffs(self, t: Tensor) -> Coeffs:
        place = (1 - t) * self.steps
        k = place.long().clamp(0, self.steps - 1)
        integral, slope = _cubic(place - k, *self._table.to(t)[:, k])
        alpha = torch.exp(-integral / 2)
        sigma = _remaining(integral, alpha)
        d_alpha = alpha * slope * self.steps / 2
        return Coeffs(alpha, sigma, d_alpha, -alpha * d_alpha / sigma)

    def time(self, log_snr: Tensor) -> Tensor:
        table, integral = self._table.to(log_snr), torch.nn.functional.softplus(-log_snr)
        k = (torch.searchsorted(table[0].contiguous(), integral, right=True) - 1).clamp(min=0)
        before, added, *_ = piece = table[:, k]
        u = (integral - before) / added
        for _ in range(NEWTON):
            reached, slope = _cubic(u, *piece)
            u = u + (integral - reached) / slope
        return 1 - (k + u) / self.steps


NEWTON = 6
"""Steps of Newton's method, each of which doubles the digits, from a straight line."""


def _cubic(u: Tensor, before: Tensor, added: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cubic from `before` at u = 0 to `before + added` at 1 with these slopes there, and its slope at u."""
    v = 1 - u
    value = before + u * (u * (1 + 2 * v) * added + v * (v * first - u * last))
    return value, 6 * u * v * added + v * (1 - 3 * u) * first + u * (3 * u - 2) * last


@final
@dataclass(frozen=True)
class VE(Schedule):
    """The variance-exploding diffusion (arXiv 2011.13456): alpha = 1 and, with r = 1 - t and k = sigma_max / sigma_min,

    sigma = sigma_min sqrt(k^(2 r) - 1), nearly sigma_max at t = 0; d sigma/dt is -inf at t = 1.

    Raises:
        InputError: unless 0 < sigma_min < sigma_max.
    """

    exploding: ClassVar[bool] = True
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise InputError(f"VE needs 0 < sigma_min < sigma_max, not {self.sigma_min} and {self.sigma_max}")

    def coeffs(self, t: Tensor) -> Coeffs:
        rate = 2 * math.log(self.sigma_max / self.sigma_min)
        half = rate / 2 * (1 - t)
        grown = 2 * torch.sinh(half) * torch.exp(half)  # exp(rate (1 - t)) - 1: not expm1, as of `_remaining`
        sigma = self.sigma_min * grown.sqrt()
        return Coeffs(
            torch.ones_like(t), sigma, torch.zeros_like(t), -rate / 2 * self.sigma_min**2 * (grown + 1) / sigma
        )

    def time(self, log_snr: Tensor) -> Tensor:
        rate = 2 * math.log(self.sigma_max / self.sigma_min)
        return 1 - torch.log1p(torch.exp(-log_snr) / self.sigma_min**2) / rate


SCHEDULES: Choices[Schedule] = Choices("schedule", Schedule, Objects("schedule"))
