"""Flow matching with a second loss on features of the data that a prediction leads to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowgen import predictions
from flowgen.core import InputError, Named, Pair, like
from flowgen.losses import LOSSES, Loss
from flowgen.model import Model
from flowgen.objectives import FlowMatching
from flowgen.objectives.flow_matching import Draws
from flowgen.times import TIMES, TimeDistribution, on_path

__all__ = ["PerceptualLoss"]

LATEST = 1e-3
"""1 - t is taken to be no less: nearer to the data, features in float32 differ by little but their rounding."""


@final
@dataclass(frozen=True)
class PerceptualLoss:
    """Flow matching with a premetric of features beside its loss, for the pairs of a reflow (arXiv 2405.20320):

    loss_i = distance(error) + weight / (1 - t) distance(embed(x1_hat) - embed(x1)),

    where x1_hat is the data end that the prediction stands for. On the straight path x1_hat - x1 = (1 - t) error: over
    1 - t, the features see an error of the velocity alike at all times.

    Args:
        embed: data in model units `(B, *shape)` to features `(B, ...)`; differentiable, and not trained here.
        weight: of the features.
        times: where to look.
        distance: of both errors; one that grows in proportion to large errors fits the weight of times.

    Raises:
        InputError: for a weight that is not positive.
    """

    embed: Callable[[Tensor], Tensor]
    weight: float = 1.0
    times: Named[TimeDistribution] = Named(TIMES, "u-shaped")
    distance: Named[Loss] = Named(LOSSES, "pseudo-huber")

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise InputError(f"PerceptualLoss needs a positive weight, not {self.weight}")

    def __call__(self, model: Model, pair: Pair, generator: torch.Generator) -> Tensor:
        return self.loss(model, pair, self.draw(pair.x1.shape, generator))

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Draws:
        """Draw times."""
        return FlowMatching(self.times).draw(shape, generator)

    def loss(self, model: Model, pair: Pair, drawn: Draws) -> Tensor:
        """Return the losses `(B,)` at given times, which are stretched over the model's span."""
        point = model.schedule.at(pair, on_path(self.times, drawn.times, model.schedule, model.span).to(pair.x1.device))
        coeffs = model.schedule.coeffs(like(point.t, pair.x1))
        y = model(point.x, point.t, point.t, pair.cond)
        matched = self.distance(y - predictions.encode(pair, coeffs, model.prediction))
        found = predictions.ends(y, point.x, coeffs, model.prediction).x1
        with torch.no_grad():
            truth = self.embed(pair.x1)
        seen = self.distance(self.embed(found) - truth)
        return matched + self.weight / (1 - point.t).clamp(min=LATEST) * seen
