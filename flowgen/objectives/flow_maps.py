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
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, final

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowgen.core import Field, FlowMap, InputError, Named, Pair, Point, like
from flowgen.losses import LOSSES, Loss
from flowgen.model import Model
from flowgen.times import Intervals, TimePairDistribution, TimePairs

__all__ = [
    "AlphaFlow",
    "Annealed",
    "EndPoint",
    "MeanFlow",
    "OfPairs",
    "OfTeacher",
    "Shortcut",
    "Velocity",
]


class Velocity(Protocol):
    """The velocity of the flow at points of pairs, as the objective takes it.

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

    where the network's own diagonal is the velocity without a label (arXiv 2505.13447), which intervals without a
    diagonal do not teach it. Rows without a label are not guided.

    Args:
        guidance: its weight; 1 for none.
        null: the label that says that there is none, which guidance needs.

    Raises:
        InputError: for guidance without that label.
    """

    exact: ClassVar[bool] = False
    guidance: float = 1.0
    null: int | None = None

    def __post_init__(self) -> None:
        if self.guidance != 1 and self.null is None:
            raise InputError("guidance needs the label that says that there is none")

    def __call__(self, model: Model, point: Point, cond: Tensor | None) -> Tensor:
        if self.guidance == 1 or cond is None or self.null is None:
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


class _OverIntervals(ABC):
    """The common part of objectives of a flow map: the diagonal s = t learns the velocity, and each class says what the
    rest learns.
    """

    intervals: TimePairDistribution
    velocity: Velocity
    distance: Loss

    def __call__(self, model: Model, pair: Pair, generator: torch.Generator) -> Tensor:
        return self.loss(model, pair, self.draw(pair.x1.shape, generator))

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> TimePairs:
        """Draw the times of each pair."""
        return self.intervals(shape[0], generator)

    def loss(self, model: Model, pair: Pair, drawn: TimePairs) -> Tensor:
        """Return the losses `(B,)` between given times."""
        (point, s), moving = _point(model, pair, drawn), drawn.s > drawn.t  # told on the CPU, where times are drawn
        target = torch.empty_like(point.x)
        with torch.no_grad():
            for rows, taught in ((~moving, self._still), (moving, self._moving)):
                if rows.any():
                    index = rows.nonzero().squeeze(1).to(s.device)
                    label = None if pair.cond is None else pair.cond[index]
                    found = taught(model, Point(*(x[index] for x in point)), s[index], label)
                    target.index_copy_(0, index, found.to(target.dtype))
        return self._weighed(self.distance(model.average(point.x, point.t, s, pair.cond) - target), moving.to(s.device))

    def _still(self, model: Model, point: Point, s: Tensor, cond: Tensor | None) -> Tensor:
        """Return the target of u(x_t, t, t)."""
        return self.velocity(model, point, cond)

    @abstractmethod
    def _moving(self, model: Model, point: Point, s: Tensor, cond: Tensor | None) -> Tensor:
        """Return the target of u(x_t, t, s), for t < s."""

    def _weighed(self, losses: Tensor, moving: Tensor) -> Tensor:
        return losses


@final
@dataclass(frozen=True)
class MeanFlow(_OverIntervals):
    """MeanFlow in its improved form (arXiv 2505.13447, 2512.02012): one `torch.func.jvp`,

    loss_i = distance(u(x_t, t, s) - v - (s - t) D_t u),  t, s ~ intervals,

    with D_t u held constant, along the velocity that is exact: a teacher's, else the network's own diagonal u(x, t, t),
    and that of the pair, which is so in the mean, only where the diagonal is not learned. With intervals that end at
    s = 1 these are continuous-time consistency models (arXiv 2410.11081).

    The derivative needs attention in its mathematical form, which is chosen here, a net that is not compiled, and one
    whose convolutions are not stored channels last.

    Args:
        intervals: between which times.
        velocity: of the pairs, or of a teacher.
        distance: of u from what it should be.
    """

    intervals: TimePairDistribution = field(default_factory=Intervals)
    velocity: Velocity = field(default_factory=OfPairs)
    distance: Named[Loss] = Named(LOSSES, "adaptive")

    def _moving(self, model: Model, point: Point, s: Tensor, cond: Tensor | None) -> Tensor:
        v = self.velocity(model, point, cond)
        known = self.velocity.exact or not self.intervals.diagonal
        along = v if known else model.velocity(point.x, point.t, cond)

        def u(x: Tensor, t: Tensor) -> Tensor:
            return model.average(x, t, s, cond)

        with sdpa_kernel(SDPBackend.MATH):
            derivative = torch.func.jvp(u, (point.x, point.t), (along.to(point.x.dtype), torch.ones_like(point.t)))[1]
        return v + like(s - point.t, v) * derivative


@final
@dataclass(frozen=True)
class Shortcut(_OverIntervals):
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

    intervals: TimePairDistribution = field(default_factory=Intervals)
    velocity: Velocity = field(default_factory=OfPairs)
    distance: Named[Loss] = Named(LOSSES, "squared")
    halves: FlowMap | None = None

    def _moving(self, model: Model, point: Point, s: Tensor, cond: Tensor | None) -> Tensor:
        jump, middle = self.halves or model.average, (point.t + s) / 2
        first = jump(point.x, point.t, middle, cond)
        second = jump(point.x + like(middle - point.t, first) * first, middle, s, cond)
        return (first + second) / 2


@final
@dataclass(frozen=True)
class AlphaFlow(_OverIntervals):
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
        absolute: whether it is a share of all times, min(share, s - t), and not of the way from t to s. The last step
            then reaches s, where the velocity alone is the truth; what learns no diagonal drifts without that.

    Raises:
        InputError: for a share out of these bounds.
    """

    intervals: TimePairDistribution = field(default_factory=Intervals)
    velocity: Velocity = field(default_factory=OfPairs)
    distance: Named[Loss] = Named(LOSSES, "squared")
    share: float = 0.1
    absolute: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"the first share of the way must be above 0 and at most 1, not {self.share}")

    def _moving(self, model: Model, point: Point, s: Tensor, cond: Tensor | None) -> Tensor:
        v, way = self.velocity(model, point, cond), s - point.t
        step = way.clamp(max=self.share) if self.absolute else self.share * way
        rest = model.average(point.x + like(step, v) * v, point.t + step, s, cond)
        return torch.lerp(rest, v.to(rest.dtype), like(step / way, rest).to(rest.dtype))

    def _weighed(self, losses: Tensor, moving: Tensor) -> Tensor:
        return torch.where(moving, losses / self.share, losses)


@final
@dataclass(frozen=True)
class EndPoint:
    """Regression of the end of a whole trajectory: loss_i = distance(u(x0, 0, 1) - (x1 - sigma(0) x0)).

    For pairs that a flow has made (arXiv 2209.03003): of others, it learns the mean of the data.
    """

    distance: Named[Loss] = Named(LOSSES, "squared")

    def __call__(self, model: Model, pair: Pair, generator: torch.Generator) -> Tensor:
        return self.loss(model, pair, self.draw(pair.x1.shape, generator))

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> TimePairs:
        """Return the whole interval, for each pair."""
        return TimePairs(torch.zeros(shape[0]), torch.ones(shape[0]))

    def loss(self, model: Model, pair: Pair, drawn: TimePairs) -> Tensor:
        """Return the losses `(B,)`."""
        point, s = _point(model, pair, drawn)
        return self.distance(model.average(point.x, point.t, s, pair.cond) - (pair.x1 - point.x))


def _point(model: Model, pair: Pair, drawn: TimePairs) -> tuple[Point, Tensor]:
    """Return the point of each pair at the first of its times, and the other time, on the device."""
    t, s = (time.to(pair.x1.device) for time in drawn)
    return model.schedule.at(pair, t), s


@final
@dataclass(frozen=True)
class Annealed:
    """AlphaFlow whose first share of the interval falls from 1, in halves, during training (arXiv 2406.14548).

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
        """Return the share after so many steps."""
        parts = math.ceil(-math.log2(self.last)) + 1
        return max(self.last, 2.0 ** -(step * parts // max(1, self.steps)))

    def at(self, step: int) -> AlphaFlow:
        """Return the objective of a step."""
        return replace(self.objective, share=self.share(step))
