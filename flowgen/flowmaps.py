"""Flow maps: objectives that teach the average velocity u(x, t, s) of a flow, x_s = x_t + (s - t) u(x_t, t, s).

The end x_s of a trajectory does not depend on where on it one stands. Along dx/dt = v(x, t) that is, with D_t the
derivative as x moves too and m a time between t and s,

    u(x, t, t) = v(x, t)                                                    the diagonal
    u = v + (s - t) D_t u,  D_t u = du/dt + (v . grad) u                    MeanFlow (arXiv 2505.13447)
    (s - t) u(x_t, t, s) = (m - t) u(x_t, t, m) + (s - m) u(x_m, m, s)      semigroup (arXiv 2410.12557)

Each objective asks the network for one side, and takes the other from the network as it is, without gradient. The
velocity is that of a teacher; where there is none, dx_t/dt of a pair, whose mean it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple, Protocol, final

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowgen.core import Field, FlowMap, InputError, Pair, Point, like
from flowgen.losses import Adaptive, Loss, Squared
from flowgen.model import Model
from flowgen.objectives import LogitNormal, TimeLaw

__all__ = [
    "AlphaFlow",
    "Annealed",
    "EndPoint",
    "IntervalLaw",
    "Intervals",
    "MeanFlow",
    "OfPairs",
    "OfTeacher",
    "Shortcut",
    "Spans",
    "Steps",
    "ToData",
    "Velocity",
]


class Spans(NamedTuple):
    """What the objectives of flow maps draw for each pair: times t <= s on [0, 1], each `(B,)` float32."""

    t: Tensor
    s: Tensor


class IntervalLaw(Protocol):
    """A law of pairs of times t <= s."""

    def __call__(self, n: int, generator: torch.Generator) -> Spans: ...


@final
@dataclass(frozen=True)
class Intervals:
    """Two times of a law, in order; a share of them on the diagonal s = t, where the velocity itself is learned.

    Raises:
        InputError: unless the share is within 0 and 1.
    """

    times: TimeLaw = field(default_factory=LogitNormal)
    diagonal: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.diagonal <= 1:
            raise InputError(f"the share of the diagonal must be within 0 and 1, not {self.diagonal}")

    def __call__(self, n: int, generator: torch.Generator) -> Spans:
        one, other = self.times(n, generator), self.times(n, generator)
        t, s = torch.minimum(one, other), torch.maximum(one, other)
        still = torch.randperm(n, generator=generator) < round(self.diagonal * n)  # so many of every batch
        return Spans(t, torch.where(still, t, s))


@final
@dataclass(frozen=True)
class ToData:
    """From a time of a law to the data, s = 1."""

    times: TimeLaw = field(default_factory=LogitNormal)

    def __call__(self, n: int, generator: torch.Generator) -> Spans:
        t = self.times(n, generator)
        return Spans(t, torch.ones_like(t))


@final
@dataclass(frozen=True)
class Steps:
    """From one time of an even grid to the next, t = i / steps.

    Raises:
        InputError: unless there is at least one step.
    """

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"a grid needs at least one step, not {self.steps}")

    def __call__(self, n: int, generator: torch.Generator) -> Spans:
        i = torch.randint(self.steps, (n,), generator=generator)
        return Spans(i / self.steps, (i + 1) / self.steps)


class Velocity(Protocol):
    """What is taken for the velocity of the flow at points of pairs.

    Attributes:
        exact: whether it is the velocity itself, and not only so in the mean.
    """

    exact: ClassVar[bool]

    def __call__(self, model: Model, point: Point, cond: Tensor | None) -> Tensor: ...


@final
@dataclass(frozen=True)
class OfPairs:
    """dx_t/dt of the pairs, whose mean is the velocity, with guidance folded in, so that a sample costs one evaluation:

    v(x, t, null) + guidance (dx_t/dt - v(x, t, null)),

    where the network's own diagonal is the velocity without a label (arXiv 2505.13447). Rows without a label are not
    guided.

    Args:
        guidance: its weight; 1 for none.
        null: the label that says that there is none.
    """

    exact: ClassVar[bool] = False
    guidance: float = 1.0
    null: int = 0

    def __call__(self, model: Model, point: Point, cond: Tensor | None) -> Tensor:
        if self.guidance == 1 or cond is None:
            return point.dx
        with torch.no_grad():
            without = model.velocity(point.x, point.t, torch.full_like(cond, self.null))
        guided = torch.lerp(without, point.dx, self.guidance)
        return torch.where(like(cond == self.null, guided), point.dx, guided)


@final
@dataclass(frozen=True)
class OfTeacher:
    """The velocity of a teacher, guided or not. Rows without a label have its velocity without one."""

    exact: ClassVar[bool] = True
    field: Field

    def __call__(self, model: Model, point: Point, cond: Tensor | None) -> Tensor:
        with torch.no_grad():
            return self.field(point.x, point.t, cond)


@final
@dataclass(frozen=True)
class MeanFlow:
    """MeanFlow in its improved form (arXiv 2505.13447, 2512.02012): one `torch.func.jvp`,

    loss_i = distance(u(x_t, t, s) - v - (s - t) D_t u),  t, s ~ intervals,

    with D_t u held constant, along the velocity that is exact: a teacher's, else the network's own diagonal u(x, t, t),
    and not that of the pair. With intervals that end at s = 1 these are continuous-time consistency models
    (arXiv 2410.11081).

    The derivative needs attention in its mathematical form, which is chosen here, and a net that is not compiled.

    Args:
        intervals: between which times.
        velocity: of the pairs, or of a teacher.
        distance: of u from what it should be.
    """

    intervals: IntervalLaw = field(default_factory=Intervals)
    velocity: Velocity = field(default_factory=OfPairs)
    distance: Loss = field(default_factory=Adaptive)

    def __call__(self, model: Model, pair: Pair, generator: torch.Generator) -> Tensor:
        return self.loss(model, pair, self.draw(pair.x1.shape, generator))

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Spans:
        """The times of each pair."""
        return self.intervals(shape[0], generator)

    def loss(self, model: Model, pair: Pair, drawn: Spans) -> Tensor:
        """The losses `(B,)` between given times."""
        point, s = _point(model, pair, drawn)
        v = self.velocity(model, point, pair.cond)
        with torch.no_grad():
            along = v if self.velocity.exact else model.velocity(point.x, point.t, pair.cond)
            target = v + like(s - point.t, v) * _derivative(model, point, s, pair.cond, along)
        return self.distance(model.average(point.x, point.t, s, pair.cond) - target)


def _derivative(model: Model, point: Point, s: Tensor, cond: Tensor | None, along: Tensor) -> Tensor:
    """D_t u(x_t, t, s) as x moves along a velocity; s stays. Only rows off the diagonal are asked, others are 0."""
    derivative, moving = torch.zeros_like(point.x), (s > point.t).nonzero().squeeze(1)
    if len(moving) == 0:
        return derivative
    x, t, s, along = (each[moving] for each in (point.x, point.t, s, along))
    label = None if cond is None else cond[moving]
    with sdpa_kernel(SDPBackend.MATH):
        found = torch.func.jvp(lambda x, t: model.average(x, t, s, label), (x, t), (along, torch.ones_like(t)))[1]
    return derivative.index_copy(0, moving, found.to(derivative.dtype))


@final
@dataclass(frozen=True)
class Shortcut:
    """Shortcut models (arXiv 2410.12557): two jumps of half the way teach one,

    loss_i = distance(u(x_t, t, s) - u(x_t, t, m) / 2 - u(x_m, m, s) / 2),  m = (t + s) / 2,
    x_m = x_t + (m - t) u(x_t, t, m),

    and on the diagonal the velocity.

    Args:
        intervals: between which times; those of `Intervals`, as in what came after the paper, and not only powers of 2.
        velocity: of the pairs, or of a teacher.
        distance: of u from what it should be.
        halves: whose the two jumps are; None for the network's own, as it is. With those of a teacher, on `Steps`, this
            is progressive distillation (arXiv 2202.00512), and the velocity is not asked.
    """

    intervals: IntervalLaw = field(default_factory=Intervals)
    velocity: Velocity = field(default_factory=OfPairs)
    distance: Loss = field(default_factory=Squared)
    halves: FlowMap | None = None

    def __call__(self, model: Model, pair: Pair, generator: torch.Generator) -> Tensor:
        return self.loss(model, pair, self.draw(pair.x1.shape, generator))

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Spans:
        """The times of each pair."""
        return self.intervals(shape[0], generator)

    def loss(self, model: Model, pair: Pair, drawn: Spans) -> Tensor:
        """The losses `(B,)` between given times."""
        point, s = _point(model, pair, drawn)
        jump, middle = self.halves or model.average, (point.t + s) / 2
        with torch.no_grad():
            first = jump(point.x, point.t, middle, pair.cond)
            second = jump(point.x + like(middle - point.t, first) * first, middle, s, pair.cond)
        both = (first + second) / 2
        still = like(s == point.t, both)
        target = torch.where(still, self.velocity(model, point, pair.cond), both) if still.any() else both
        return self.distance(model.average(point.x, point.t, s, pair.cond) - target)


@final
@dataclass(frozen=True)
class AlphaFlow:
    """The first share of the way along the velocity, and the rest by the network as it is (arXiv 2510.20771):

    loss_i = distance(u(x_t, t, s) - share v - (1 - share) u(x_m, m, s)) / share,
    m = t + share (s - t),  x_m = x_t + (m - t) v.

    On the diagonal it is the velocity that is learned, at full weight: errors are O(share) elsewhere, and not there.
    share 1 is flow matching, whatever s is, and share -> 0 MeanFlow, without its derivative. With intervals that end at
    s = 1 these are consistency models (arXiv 2303.01469), and with a share that falls as training goes on, `Annealed`,
    those of arXiv 2406.14548.

    Args:
        intervals: between which times.
        velocity: of the pairs, or of a teacher.
        distance: of u from what it should be.
        share: of the way, in (0, 1].
    """

    intervals: IntervalLaw = field(default_factory=Intervals)
    velocity: Velocity = field(default_factory=OfPairs)
    distance: Loss = field(default_factory=Squared)
    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"the first share of the way must be above 0 and at most 1, not {self.share}")

    def __call__(self, model: Model, pair: Pair, generator: torch.Generator) -> Tensor:
        return self.loss(model, pair, self.draw(pair.x1.shape, generator))

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Spans:
        """The times of each pair."""
        return self.intervals(shape[0], generator)

    def loss(self, model: Model, pair: Pair, drawn: Spans) -> Tensor:
        """The losses `(B,)` between given times."""
        point, s = _point(model, pair, drawn)
        v, step = self.velocity(model, point, pair.cond), self.share * (s - point.t)
        with torch.no_grad():
            rest = model.average(point.x + like(step, v) * v, point.t + step, s, pair.cond)
        still = s == point.t
        target = torch.where(like(still, v), v, torch.lerp(rest, v, self.share))
        losses = self.distance(model.average(point.x, point.t, s, pair.cond) - target)
        return torch.where(still, losses, losses / self.share)


@final
@dataclass(frozen=True)
class EndPoint:
    """Regression of the end of a whole trajectory: loss_i = distance(u(x0, 0, 1) - (x1 - sigma(0) x0)).

    For pairs that a flow has made (arXiv 2209.03003): of others, it learns the mean of the data.
    """

    distance: Loss = field(default_factory=Squared)

    def __call__(self, model: Model, pair: Pair, generator: torch.Generator) -> Tensor:
        return self.loss(model, pair, self.draw(pair.x1.shape, generator))

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Spans:
        """The whole way, for each pair."""
        return Spans(torch.zeros(shape[0]), torch.ones(shape[0]))

    def loss(self, model: Model, pair: Pair, drawn: Spans) -> Tensor:
        """The losses `(B,)`."""
        point, s = _point(model, pair, drawn)
        return self.distance(model.average(point.x, point.t, s, pair.cond) - (pair.x1 - point.x))


def _point(model: Model, pair: Pair, drawn: Spans) -> tuple[Point, Tensor]:
    """Where each pair is at the first of its times, and the other one, on the device."""
    t, s = (time.to(pair.x1.device) for time in drawn)
    return model.path.at(pair, t), s


@final
@dataclass(frozen=True)
class Annealed:
    """AlphaFlow whose first share of the way falls from 1, in halves, as training goes on (arXiv 2406.14548).

    share = max(last, 2^(-k)) in the k-th of equal parts of the steps: it begins as flow matching, and a network that
    knows its velocity already does not unlearn it.

    Args:
        objective: whose share is replaced.
        steps: of the whole training.
        last: the least share, in (0, 1].

    Raises:
        InputError: for a share beyond that.
    """

    objective: AlphaFlow
    steps: int
    last: float = 2.0**-7

    def __post_init__(self) -> None:
        if not 0 < self.last <= 1:
            raise InputError(f"the least share of the way must be above 0 and at most 1, not {self.last}")

    def share(self, step: int) -> float:
        """After so many steps."""
        parts = math.ceil(-math.log2(self.last)) + 1
        return max(self.last, 2.0 ** -(step * parts // max(1, self.steps)))

    def at(self, step: int) -> AlphaFlow:
        """The objective of a step."""
        return replace(self.objective, share=self.share(step))
