"""Guidance for the samples of a run: its labels, a classifier of them, or a weaker run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowgen.config import Places
from flowgen.core import Field, InputError, StrPath
from flowgen.guidance import AutoGuided, ClassifierGuided, Rescale
from flowgen.repath import repath
from flowgen.runs.classifier import TrainedClassifier
from flowgen.runs.folder import Trained, load

__all__ = ["Guidance", "guided", "load_weak"]


@final
@dataclass(frozen=True)
class Guidance:
    """How the samples of a run are guided.

    Args:
        weight: of guidance by labels, or by `weak` where there is one; 1 for none.
        interval: the times at which to guide.
        rescale: the share of `guidance.Rescale`; 0 for none.
        weak: another run, whose errors are led away from.
        known: the classifier of `by_classifier`.
        by_classifier: the weight of guidance by a classifier; 0 for none.
    """

    weight: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    weak: Trained | None = None
    known: TrainedClassifier | None = None
    by_classifier: float = 0.0


@final
@dataclass(frozen=True)
class _Unlabelled:
    """A field that is evaluated without the label, which is for the classifier alone."""

    field: Field

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.field(x, t, None)


def guided(trained: Trained, field: Field, by: Guidance) -> Field:
    """Return the field of a run's model, guided by labels or by a weaker run, and then by a classifier.

    Raises:
        InputError: for guidance that the run has not what it needs for, or a bad weight, interval or share.
    """
    if by.rescale and not (len(trained.source.shape) == 3 and by.weight > 1):
        raise InputError("a rescaled guidance is of images, whose weight of guidance is above 1")
    schedule = trained.model.schedule
    if by.weak is None:
        field = trained.guided(field, by.weight, by.interval, by.rescale)
    else:
        field = _auto_guided(trained, field, by, by.weak)
    if by.known is None or not by.by_classifier:
        return field
    if trained.config.objective.maps:
        raise InputError("this run has learned to jump, and jumps cannot be guided by a classifier")
    if not trained.classes:
        field = _Unlabelled(field)
    elif trained.classes != by.known.classes:
        raise InputError("the classifier has other classes than this run: train it anew, with --overwrite")
    posterior = by.known.posterior
    elsewhere = type(posterior)(repath(posterior.model, schedule), posterior.log_prior)
    return ClassifierGuided(field, elsewhere, schedule, by.by_classifier, by.interval)


def _auto_guided(trained: Trained, field: Field, by: Guidance, weak: Trained) -> Field:
    if by.weight == 1:
        raise InputError("a weaker run guides with a weight other than 1: give --guidance, such as 2")
    if trained.config.objective.maps:
        raise InputError("this run has learned to jump, and jumps cannot be guided by a weaker run")
    schedule = trained.model.schedule
    there = repath(weak.model, schedule)
    # of noise that the weaker run has never seen it says nothing
    first, last = max(by.interval[0], there.span[0]), min(by.interval[1], there.span[1])
    if first > last:
        return field
    rescale = Rescale(schedule, by.rescale) if by.rescale else None
    return AutoGuided(field, there.velocity, by.weight, (first, last), rescale)


def load_weak(
    folder: StrPath,
    trained: Trained,
    device: str | None = None,
    places: Places = Places(),  # noqa: B008
) -> Trained:
    """Load the run in a folder that is to guide another.

    Raises:
        InputError: unless it has a velocity, and learned the same data in the same units, their labels if the other run
            learned any, from pairs that were made alike.
    """
    weak = load(folder, device, places=places)
    if not weak.config.objective.fields:
        raise InputError(f"{folder} jumps, and has no velocity to be guided by")
    data = [(run.data_hash or run.config.data, run.source.shape, run.config.split) for run in (trained, weak)]
    units = [[x.cpu().double() for x in run.model.scaling.buffers()] for run in (trained, weak)]
    if data[0][:2] == data[1][:2] and trained.config.split.stratify != weak.config.split.stratify:
        way = f"split.stratify={str(trained.config.split.stratify).lower()}"
        raise InputError(f"{folder} has other rows held out than this run: train it anew, with --set {way}")
    if data[0] != data[1] or not all(map(torch.equal, *units)):
        raise InputError(f"{folder} has learned other data than this run, or a part of them: it cannot guide it")
    if weak.classes and weak.classes != trained.classes:
        raise InputError(f"{folder} has learned labels that this run does not know: it cannot guide it")
    sources = [run.config.source_hash or run.config.source for run in (trained, weak)]
    kinds = [(type(run.config.coupling), bool(run.config.reflow)) for run in (trained, weak)]
    if sources[0] != sources[1] or kinds[0] != kinds[1]:
        raise InputError(f"{folder} has learned from pairs of another kind than this run: it cannot guide it")
    return weak
