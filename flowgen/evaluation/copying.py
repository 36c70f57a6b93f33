"""The samples that most look like copies, beside the training images nearest to them."""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

from torch import Tensor

from flowgen.evaluation.measure import Settings, draw_start, follow
from flowgen.evaluation.subject import EvaluatedModel
from flowgen.metrics import nearest

__all__ = ["NearestTraining", "suspects"]

MOST = 12


class NearestTraining(NamedTuple):
    """Samples and the training images nearest to them, `(n, C, H, W)` in [0, 1], and the ratios of `metrics.nearest`,
    `(n,)`, in increasing order."""

    samples: Tensor
    images: Tensor
    ratios: Tensor


def suspects(subject: EvaluatedModel, settings: Settings) -> NearestTraining | None:
    """Return the samples of the first repeat, of the most steps, that are nearest to a training image relative to the
    second nearest, in the view of the subject; None unless these are images in memory.
    """
    if subject.trained_on is None or subject.seen is None or len(subject.seen.shape) != 3:
        return None
    start, steps = draw_start(subject, settings, 0), max(settings.steps)
    drawn = follow(subject, start, steps, settings.solver, settings.spacing).x
    scaling = deepcopy(subject.model.scaling).cpu()
    x = scaling.undo(drawn)
    found = nearest(subject.view.apply(x), subject.trained_on)
    least = found.ratio.argsort(stable=True)[:MOST]
    images = subject.seen.take(found.row[least]).values
    return NearestTraining(scaling.pixels(x[least]), scaling.pixels(images), found.ratio[least])
