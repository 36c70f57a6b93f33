"""ODE solvers: one step of dx/dt = field(x, t) from t to s.

A Runge-Kutta method is a checked table of numbers and one stepping function; a multistep method carries its past from
step to step; the adaptive ones are torchdiffeq's, behind the same call.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from flowgen.core import Choices, Failure, Field, InputError, expand_time
from flowgen.registry import Objects

__all__ = ["SOLVERS", "AdamsBashforth2", "AdaptiveSolver", "RungeKutta", "Solver", "euler", "heun", "midpoint", "rk4"]


class Solver(ABC):
    """A method that steps a field through time.

    Attributes:
        order: order of convergence of the end point.
        couples_batch: whether the rows of a batch share what the step decides, so that each depends on the others.
        needs_flow_map: whether it steps with the average velocity of a flow map, in place of a field.
        denoises_last: whether it may step to t = 1 where the velocity is infinite there: it steps between expected
            ends.
    """

    order: int
    couples_batch: ClassVar[bool] = False
    needs_flow_map: ClassVar[bool] = False
    denoises_last: ClassVar[bool] = False

    def at(self, row: int) -> Solver:
        """Return the solver of a batch whose first row has this number: itself, unless a row's noise is its own."""
        return self

    @property
    def stochastic(self) -> bool:
        """Return whether it draws noise of its own, which pairs that are not independent do not allow."""
        return False

    @abstractmethod
    def step(
        self, field: Field, x: Tensor, t: float, s: float, cond: Tensor | None = None, carry: Any = None
    ) -> tuple[Tensor, Any]:
        """Move x from t to s.

        Args:
            x: `(B, *shape)` at time t.
            cond: handed to the field.
            carry: what the previous step returned beside x, None at the first.

        Returns:
            x at time s, and what the next step needs to know of this one.
        """


@final
@dataclass(frozen=True)
class RungeKutta(Solver):
    """An explicit Runge-Kutta method by its Butcher table.

    k_i = field(x + h sum_j a_ij k_j, t + c_i h),  x_s = x + h sum_i b_i k_i,  h = s - t.

    Args:
        a: the strictly lower triangle: row i holds the weights of k_0..k_{i-1}.
        b: weights of the stages.
        order: order of convergence.

    Raises:
        InputError: if the table has the wrong shape, or breaks sum b = 1 or (order 2 and up) sum b_i c_i = 1/2.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int

    def __post_init__(self) -> None:
        if [len(row) for row in self.a] != list(range(len(self.b))):
            raise InputError("row i of a Butcher table holds i weights, one row for each stage")
        first, second = sum(self.b), sum(b * c for b, c in zip(self.b, self.c, strict=True))
        if not math.isclose(first, 1) or (self.order > 1 and not math.isclose(second, 0.5)):
            raise InputError(f"not a consistent table: sum b = {first}, sum b c = {second}")

    @property
    def c(self) -> tuple[float, ...]:
        """Return the times of the stages, as shares of the step: the row sums of a."""
        return tuple(sum(row) for row in self.a)

    def step(
        self, field: Field, x: Tensor, t: float, s: float, cond: Tensor | None = None, carry: Any = None
    ) -> tuple[Tensor, None]:
        h = s - t
        stages: list[Tensor] = []
        for row, c in zip(self.a, self.c, strict=True):
            stages.append(field(_advance(x, h, row, stages), expand_time(t + c * h, x), cond))
        return _advance(x, h, self.b, stages), None


def _advance(x: Tensor, h: float, weights: tuple[float, ...], stages: list[Tensor]) -> Tensor:
    """Return x + h sum_i weights_i stages_i."""
    for weight, stage in zip(weights, stages, strict=True):
        if weight:
            x = torch.add(x, stage, alpha=h * weight)
    return x


euler = RungeKutta(a=((),), b=(1.0,), order=1)
midpoint = RungeKutta(a=((), (0.5,)), b=(0.0, 1.0), order=2)
heun = RungeKutta(a=((), (1.0,)), b=(0.5, 0.5), order=2)
rk4 = RungeKutta(a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4)


@final
@dataclass(frozen=True)
class AdamsBashforth2(Solver):
    """The two-step Adams-Bashforth method: order 2 for one evaluation a step.

    x_s = x + h ((1 + r/2) k - (r/2) k'), where k' is the slope of the step before, h' its length and r = h / h'.
    The first step is Euler's.
    """

    order = 2

    def step(
        self, field: Field, x: Tensor, t: float, s: float, cond: Tensor | None = None, carry: Any = None
    ) -> tuple[Tensor, tuple[Tensor, float]]:
        h, k = s - t, field(x, expand_time(t, x), cond)
        if carry is None:
            return torch.add(x, k, alpha=h), (k, h)
        before, h_before = carry
        r = h / h_before / 2
        return _advance(x, h, (1 + r, -r), [k, before]), (k, h)


@final
@dataclass(frozen=True)
class AdaptiveSolver(Solver):
    """torchdiffeq's adaptive methods; the grid says where to stop, the tolerances how many evaluations it takes.

    The step size is one for the whole batch, chosen from the root mean square error over all rows.

    Args:
        method: dopri5, dopri8, bosh3 or adaptive_heun.
        rtol: relative tolerance.
        atol: absolute tolerance.

    Raises:
        Failure: while stepping, if no step is short enough: the field is not smooth, or not finite.
    """

    couples_batch: ClassVar[bool] = True
    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        if self.method not in _ADAPTIVE_ORDERS:
            raise InputError(f"unknown adaptive method {self.method!r}: choose from {', '.join(_ADAPTIVE_ORDERS)}")
        if not (self.rtol > 0 and self.atol > 0):
            raise InputError(f"tolerances must be positive, not {self.rtol} and {self.atol}")

    @property
    def order(self) -> int:  # type: ignore[override]  # read-only here: the method fixes it
        return _ADAPTIVE_ORDERS[self.method]

    def step(
        self, field: Field, x: Tensor, t: float, s: float, cond: Tensor | None = None, carry: Any = None
    ) -> tuple[Tensor, None]:
        from torchdiffeq import odeint

        dtype = torch.promote_types(x.dtype, torch.float32)
        times = torch.tensor([t, s], dtype=dtype, device=x.device)

        def slope(time: Tensor, state: Tensor) -> Tensor:
            return field(state, time.to(dtype).clamp(times.min(), times.max()).expand(len(state)), cond)

        # torchdiffeq steps past the end and interpolates, and its first guess of a step looks ahead: where a field ends
        # with its path, both would ask for velocities that there are not
        options = {"step_t": times[1:]}
        try:
            states = odeint(slope, x, times, method=self.method, rtol=self.rtol, atol=self.atol, options=options)
        except AssertionError as error:
            raise Failure(f"{self.method} cannot go on between t = {t:.4g} and {s:.4g}: {error}") from error
        return states[-1], None


_ADAPTIVE_ORDERS = {"dopri5": 5, "dopri8": 8, "bosh3": 3, "adaptive_heun": 2}


ab2 = AdamsBashforth2()
dopri5, dopri8, bosh3 = AdaptiveSolver("dopri5"), AdaptiveSolver("dopri8"), AdaptiveSolver("bosh3")
adaptive_heun = AdaptiveSolver("adaptive_heun")

SOLVERS: Choices[Solver] = Choices("solver", Solver, Objects("solver"))
