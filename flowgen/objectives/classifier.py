"""Labels of points on a path: the training of a classifier, and its posterior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from flowgen.core import InputError, Pair, check_labels, like, row_labels
from flowgen.model import Model
from flowgen.times import Stratified, TimeDistribution, on_path

__all__ = ["Labelling", "Posterior", "log_prior"]


def log_prior(counts: Sequence[float]) -> Tensor:
    """Return the log of each label's share, `(K,)`, of its count plus one: no label is impossible."""
    seen = torch.tensor(counts, dtype=torch.float64) + 1
    return (seen / seen.sum()).log()


@final
@dataclass(frozen=True)
class Posterior:
    """p(label | x_t, t), the softmax of

    log prior + alpha / |(alpha, sigma)| f(x_t, t):

    where there is only noise, x says nothing of its label, and the gradient of its log goes to 0 with alpha. It is a
    `guidance.LogProb`.

    Args:
        model: a network with the path of the points; what it predicts is f, `(B, K)`, and no end of a path. On another
            path (`repath`) it says the same.
        log_prior: of the labels, `(K,)`.
    """

    model: Model
    log_prior: Tensor

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """Return unnormalised log-probabilities of all labels: x `(B, *shape)` and t `(B,)` to `(B, K)`."""
        c, f = self.model.schedule.coeffs(t), self.model.raw(x, t)
        if f.shape != (len(x), count := len(self.log_prior)):
            raise InputError(f"the net of a classifier must return ({len(x)}, {count}), not {tuple(f.shape)}")
        return self.log_prior.to(f) + like(c.alpha / c.size, f).to(f) * f

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return -F.cross_entropy(self.logits(x, t), cond, reduction="none")


@final
@dataclass(frozen=True)
class Labelling:
    """The cross-entropy of the labels of pairs, given where these are on the path, with t ~ times: an Objective.

    The minimiser is p(label | x_t, t) of the pairs (arXiv 2105.05233).
    """

    log_prior: Tensor
    times: TimeDistribution = field(default_factory=Stratified)

    def __call__(self, model: Model, pair: Pair, generator: torch.Generator) -> Tensor:
        if pair.cond is None:
            raise InputError("a classifier needs pairs with labels, and these have none")
        labels = row_labels(pair.cond, len(pair.x1))
        if labels.device.type == "cpu":  # a GPU would be waited for
            check_labels(labels, len(self.log_prior) - 1)
        t = on_path(self.times, self.times(len(pair.x1), generator), model.schedule, model.span)
        point = model.schedule.at(pair, t.to(pair.x1.device))
        return -Posterior(model, self.log_prior)(point.x, point.t, labels.to(pair.x1.device))
