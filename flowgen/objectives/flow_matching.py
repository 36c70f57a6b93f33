"""Flow matching: the regression of a prediction, or of the noise of a bridge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from flowgen import predictions
from flowgen.core import InputError, Named, Pair, Point, like
from flowgen.losses import LOSSES, Loss, Squared
from flowgen.model import Model
from flowgen.paths.bridge import Bridge
from flowgen.times import TIMES, TimeDistribution, on_path
from flowgen.weightings import WEIGHTS, Unweighted, Weight

__all__ = [
    "BridgeNoise",
    "Draws",
    "FlowMatching",
    "Objective",
    "Splittable",
    "StepwiseObjective",
]


class Objective(Protocol):
    """Scores a model on a batch of pairs: one loss for each pair, `(B,)`."""

    def __call__(self, model: Model, pair: Pair, generator: torch.Generator) -> Tensor: ...


@runtime_checkable
class Splittable(Objective, Protocol):
    """An objective in two halves: it is `loss(model, pair, draw(pair.x1.shape, generator))`.

    What it draws for a whole batch can be divided like the batch itself, so that several processes, or several
    accumulated gradients, come to the losses of one.
    """

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Any:
        """Return the draws for a batch of shape `(B, *shape)`: a NamedTuple of tensors `(B, ...)` on the CPU,
        or None.
        """

    def loss(self, model: Model, pair: Pair, drawn: Any) -> Tensor:
        """Return one loss for each pair `(B,)`, given its rows of what was drawn."""


@runtime_checkable
class StepwiseObjective(Protocol):
    """An objective that changes during training."""

    def at(self, step: int) -> Objective:
        """Return the objective after so many steps."""


class Draws(NamedTuple):
    """What flow matching draws for each pair: its time on [0, 1] `(B,)`, and noise `(B, *shape)` for a bridge."""

    times: Tensor
    noise: Tensor | None


@final
@dataclass(frozen=True)
class FlowMatching:
    """Conditional flow matching (arXiv 2210.02747, 2209.03003, 2302.00482): the loss of the error of the prediction,

    loss_i = weight(t) distance(model(x_t, t) - (a(t) x1 + b(t) x0)),  t ~ times,

    where (a, b) is the model's prediction; for the prediction velocity that is u(x_t, t) - dx_t/dt. Times are stretched
    over the model's span. With the path VP and the prediction noise it is the simplified loss of DDPM (arXiv
    2006.11239).

    Args:
        times: the distribution of training times.
        bridge: noise on the path, x_t + gamma z with z ~ N(0, I), whose velocity dx_t/dt + gamma' z is then learned.
        distance: of the prediction from its target. Only the square has the mean, and so the velocity of the flow, as
            its minimiser, unless each point of the path has one pair alone, as after a reflow.
        weight: how much each time counts.

    Raises:
        InputError: for a bridge with another prediction than the velocity, from which the ends could not be read.
    """

    times: Named[TimeDistribution] = Named(TIMES, "uniform")
    bridge: Bridge | None = None
    distance: Named[Loss] = Named(LOSSES, "squared")
    weight: Named[Weight] = Named(WEIGHTS, "unweighted")

    def __call__(self, model: Model, pair: Pair, generator: torch.Generator) -> Tensor:
        return self.loss(model, pair, self.draw(pair.x1.shape, generator))

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Draw times, and the noise of the bridge if there is one."""
        times = self.times(shape[0], generator)
        return Draws(times, None if self.bridge is None else torch.randn(*shape, generator=generator))

    def loss(self, model: Model, pair: Pair, drawn: Draws) -> Tensor:
        """Return the losses `(B,)` at given times and noise."""
        point = _point(model, pair, drawn, self.times, self.bridge)
        if model.prediction is predictions.velocity:
            y = point.dx
        elif self.bridge is None:
            y = predictions.encode(pair, model.schedule.coeffs(like(point.t, pair.x1)), model.prediction)
        else:
            raise InputError(f"a bridge needs the prediction velocity, not {model.prediction.__name__}")
        losses = self.distance(model(point.x, point.t, point.t, pair.cond) - y)
        if isinstance(self.weight, Unweighted):
            return losses
        return self.weight(model.schedule.coeffs(point.t), model.prediction) * losses


@final
@dataclass(frozen=True)
class BridgeNoise:
    """The noise of a bridge, given where it led: the mean squared error of the model's bare prediction to z,

    loss_i = mean over x of (model(x_t + gamma z, t) - z)^2,  z ~ N(0, I),  t ~ times.

    The minimiser is E[z | x_t], from which `sde.BridgeScore` makes the score of a flow that is trained with the same
    bridge: -E[z | x_t] / gamma (arXiv 2303.08797, 2307.03672). Unlike the score, it is bounded as gamma goes to 0. The
    model's prediction is not looked at; times are those of `FlowMatching` with the bridge.
    """

    bridge: Bridge
    times: Named[TimeDistribution] = Named(TIMES, "uniform")

    def __call__(self, model: Model, pair: Pair, generator: torch.Generator) -> Tensor:
        return self.loss(model, pair, self.draw(pair.x1.shape, generator))

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Draw times and the noise of the bridge."""
        return FlowMatching(self.times, self.bridge).draw(shape, generator)

    def loss(self, model: Model, pair: Pair, drawn: Draws) -> Tensor:
        """Return the losses `(B,)` at given times and noise."""
        point = _point(model, pair, drawn, self.times, self.bridge)
        return Squared()(model(point.x, point.t, point.t, pair.cond) - drawn.noise.to(point.x))  # type: ignore[union-attr]


def _point(model: Model, pair: Pair, drawn: Draws, times: TimeDistribution, bridge: Bridge | None) -> Point:
    """Return the point of each pair at its time, which is within the spans of the model and of the bridge."""
    lo, hi = model.span
    if bridge is not None:
        lo, hi = max(lo, bridge.span[0]), min(hi, bridge.span[1])
    point = model.schedule.at(pair, on_path(times, drawn.times, model.schedule, (lo, hi)).to(pair.x1.device))
    return point if bridge is None or drawn.noise is None else widened(point, bridge, drawn.noise)


def widened(point: Point, bridge: Bridge, noise: Tensor) -> Point:
    """Return a point of the path with the noise z `(B, *shape)` of a bridge: x + gamma z and dx + gamma' z."""
    z = noise.to(point.x)
    gamma, d_gamma = bridge.gamma(like(point.t, point.x))
    return Point(point.x + gamma * z, point.t, point.dx + d_gamma * z)
