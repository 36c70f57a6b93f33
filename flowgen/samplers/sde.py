"""Stochastic sampling: equations dx = f(x, t) dt + g(t) dW with the marginals of a flow.

A flow dx = u dt whose x_t has the density p_t shares it with every

    dx = (u + g(t)^2 / 2 grad log p_t(x)) dt + g(t) dW

(arXiv 2011.13456, 2303.08797): what the noise spreads, the score brings back. With the Brownian bridge of width sigma,
the pairs of entropic transport and g = sigma it is the Schroedinger bridge (arXiv 2302.00482, 2307.03672).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from flowgen import predictions
from flowgen.core import Field, InputError, expand_time, like
from flowgen.data import Gaussian
from flowgen.data.streams import source_rows
from flowgen.paths.bridge import Bridge
from flowgen.samplers.ode import Solver
from flowgen.schedules import Schedule

__all__ = ["BridgeScore", "Diffusion", "Drift", "EulerMaruyama", "Inside", "ReverseSDE", "ReverseTime", "ScoreOf"]

Diffusion = Callable[[Tensor], Tensor | float]
"""g(t): times of any shape to the width of the noise there, of that shape, or one number for all."""


@final
@dataclass(frozen=True)
class Inside:
    """g = sigma strictly inside the span of a bridge, and 0 at its ends and beyond.

    Where gamma is 0 there is no score: a step from there is the ODE's, which keeps the marginals as well. With sigma
    everywhere, what the noise model errs by at the first step of a Brownian bridge is made 150 times as large; that is
    for sources that the ODE cannot leave, where several rows start in one point.
    """

    bridge: Bridge
    sigma: float

    def __call__(self, t: Tensor) -> Tensor:
        lo, hi = self.bridge.span
        return self.sigma * ((t > lo) & (t < hi)).to(t.dtype)


@final
@dataclass(frozen=True)
class BridgeScore:
    """The score of a flow with a bridge, grad log p_t(x) = -E[z | x_t = x] / gamma(t): a Field.

    Beyond the span of the bridge, where gamma may be 0 and nothing was trained, it is the score at its end.

    Args:
        noise: E[z | x_t], which `objectives.BridgeNoise` teaches: a field, or the `Model` itself.
        bridge: the one that it was taught with.
    """

    noise: Field
    bridge: Bridge

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        inner = t.clamp(*self.bridge.span)
        return -self.noise(x, inner, cond=cond) / self.bridge.gamma(like(inner, x))[0]


@final
@dataclass(frozen=True)
class Drift:
    """The drift with which an equation of diffusion g keeps the marginals of a flow, u + g(t)^2 / 2 score: a Field.

    Where g is 0 it is the velocity alone, and the score is not asked.
    """

    velocity: Field
    score: Field
    diffusion: Diffusion

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        u, g = self.velocity(x, t, cond), torch.as_tensor(self.diffusion(t), dtype=t.dtype, device=t.device)
        return u + like(g.expand(t.shape), x).to(x) ** 2 / 2 * self.score(x, t, cond) if g.any() else u


@final
@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """The Euler-Maruyama method for dx = field(x, t) dt + g(t) dW:

    x_s = x + h field(x, t) + g(t) sqrt(|h|) z,  h = s - t,  z ~ N(0, I).

    Its order is that of the distribution of the end point. Where g is 0 a step is Euler's. A decreasing grid solves an
    equation that is written for time running backwards. The noise of a row is a function of the seed, the number of the
    row and the step (t, s), and of nothing else.

    Args:
        diffusion: g(t), that of the drift.
        seed: of the noise.
        first: the number of the first row of a batch; batches with other numbers have other noise.
    """

    order = 1
    diffusion: Diffusion
    seed: int = 0
    first: int = 0

    @property
    def stochastic(self) -> bool:
        return True

    def at(self, row: int) -> EulerMaruyama:
        return replace(self, first=self.first + row)

    def step(
        self, field: Field, x: Tensor, t: float, s: float, cond: Tensor | None = None, carry: Any = None
    ) -> tuple[Tensor, None]:
        end = torch.add(x, field(x, expand_time(t, x), cond), alpha=s - t)
        g = float(self.diffusion(torch.tensor(t, dtype=torch.float64)))
        if g == 0:
            return end, None
        z = source_rows(Gaussian(x.shape[1:]), self.first, self.first + len(x), self.seed, f"noise from {t!r} to {s!r}")
        return torch.add(end, z.to(x), alpha=g * math.sqrt(abs(s - t))), None


@final
@dataclass(frozen=True)
class ScoreOf:
    """The score of a flow from N(0, I) with independent pairs, read from its velocity: a Field.

    grad log p_t(x) = -E[x0 | x_t = x] / sigma(t), infinite at t = 1.
    """

    velocity: Field
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        c = self.schedule.coeffs(like(t, x))
        return predictions.convert(self.velocity(x, t, cond), x, c, predictions.velocity, predictions.score)


@final
@dataclass(frozen=True)
class ReverseTime:
    """g(t) = level path.diffusion(t): with level 1 the diffusion that takes data to noise, run backwards.

    Where alpha = 0 the diffusion is infinite, and this is 0: x there is the source alone, of which other noise makes
    another draw; an ODE's step keeps the marginals as well.

    Args:
        schedule: of the flow.
        level: of the noise; 0 is the ODE.

    Raises:
        InputError: unless 0 <= level < inf.
    """

    schedule: Schedule
    level: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.level < math.inf:
            raise InputError(f"the level of the noise must be finite and not negative, not {self.level}")

    def __call__(self, t: Tensor) -> Tensor:
        if self.level == 0:
            return torch.zeros_like(t)
        return self.level * torch.where(self.schedule.coeffs(t).alpha == 0, 0.0, self.schedule.diffusion(t))


@final
@dataclass(frozen=True)
class ReverseSDE(Solver):
    """The Euler-Maruyama method for the reverse diffusion of a flow from N(0, I), with the field alone:

    dx = (u + g^2 / 2 score) dt + g dW,  g = level path.diffusion(t),

    whose score is read from u: one evaluation a step. Level 0 is Euler's method for the ODE, level 1 the diffusion
    backwards (arXiv 2011.13456). The step to sigma = 0 is to the expected data.

    Args:
        schedule: of the field.
        level: of the noise.
        seed: of the noise.
        first: the number of the first row of a batch.

    Raises:
        InputError: unless 0 <= level < inf.
    """

    order = 1
    denoises_last: ClassVar[bool] = True
    schedule: Schedule
    level: float = 1.0
    seed: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        ReverseTime(self.schedule, self.level)  # refuses a level that it cannot have

    @property
    def _diffusion(self) -> ReverseTime:
        return ReverseTime(self.schedule, self.level)

    @property
    def stochastic(self) -> bool:
        return self.level > 0

    def at(self, row: int) -> ReverseSDE:
        return replace(self, first=self.first + row)

    def step(
        self, field: Field, x: Tensor, t: float, s: float, cond: Tensor | None = None, carry: Any = None
    ) -> tuple[Tensor, None]:
        if self.schedule.mark(s).sigma == 0:
            return predictions.expected(field, self.schedule, x, expand_time(t, x), cond).x1, None
        u = field(x, expand_time(t, x), cond)

        def known(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            return u

        drift = Drift(known, ScoreOf(known, self.schedule), self._diffusion)
        return EulerMaruyama(self._diffusion, self.seed, self.first).step(drift, x, t, s, cond)
