"""A measurement as plain values, and as curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from flowgen import __version__
from flowgen.data import Rows
from flowgen.evaluation.measure import Estimate, Quality, Settings
from flowgen.evaluation.subject import Subject
from flowgen.metrics.distances import EXACT
from flowgen.plots import Curve

__all__ = ["SHARES", "TITLES", "Evaluation", "curves"]

TITLES = {
    "w2": "W2",
    "sliced_w2": "sliced W2",
    "energy": "energy distance",
    "mmd": "MMD",
    "frechet": "Fréchet distance",
    "kernel": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "copies": "copies",
    "endpoint_error": "solver error",
}
"""The figures of a quality, as a person reads them."""
SHARES = [TITLES[name] for name in ("precision", "recall", "coverage", "copies")]
"""Those that lie between 0 and 1."""


class Evaluation(NamedTuple):
    """All that was measured of a run."""

    subject: Subject
    settings: Settings
    floor: dict[str, Estimate]
    quality: list[Quality]
    geometry: dict[str, Estimate]
    kl: Estimate | None

    def plain(self) -> dict[str, Any]:
        """Everything as values that JSON holds: what was compared, how, and what came out."""
        subject, settings = self.subject, self.settings
        law, size = subject.reference.law, subject.reference.size(settings.num)
        return {
            "run": subject.name,
            "flowgen": __version__,
            "torch": torch.__version__,
            "device": str(subject.model.device),
            "reference": subject.reference.name,
            "reference_rows": len(law.x) if isinstance(law, Rows) else None,
            "compared": subject.view.name,
            "rows_per_set": size,
            "w2_rows": None if subject.view.features else min(size, EXACT),
            "repeats": settings.repeats,
            "neighbours": settings.neighbours,
            "seed": settings.seed,
            "solver": repr(settings.solver),
            "floor": _plain(self.floor),
            "quality": [
                {"steps": q.steps, "nfe": q.nfe, "seconds_per_1000": q.seconds, **_plain(q.figures)}
                for q in self.quality
            ],
            "geometry": _plain(self.geometry),
            "kl": None if self.kl is None else _plain({"kl": self.kl})["kl"],
        }


def _plain(estimates: dict[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {name: {"mean": e.mean, "ci95": None if math.isnan(e.ci95) else e.ci95} for name, e in estimates.items()}


def curves(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Curve]]:
    """For each figure of the chart, the curve of each run: the two first distances, and coverage."""
    first, second, *_ = evaluations[0].floor
    return {
        TITLES[figure]: {
            e.subject.name: Curve(
                [q.nfe for q in e.quality],
                [q.figures[figure].mean for q in e.quality],
                [q.figures[figure].ci95 for q in e.quality],
                e.floor[figure].mean,
            )
            for e in evaluations
        }
        for figure in (first, second, "coverage")
    }
