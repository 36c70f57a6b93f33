"""A measurement as plain values, and as curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from flowgen import __version__
from flowgen.data import TensorDataset
from flowgen.evaluation.measure import Estimate, Quality, Settings, density_points
from flowgen.evaluation.subject import EvaluatedModel
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
    "agreement": "labels right",
    "endpoint_error": "solver error",
}
"""The figures of a quality, as a person reads them."""
SHARES = [TITLES[name] for name in ("precision", "recall", "coverage", "copies", "agreement")]
"""Those that lie between 0 and 1."""


class Evaluation(NamedTuple):
    """All that was measured of a run."""

    subject: EvaluatedModel
    settings: Settings
    floor: dict[str, Estimate]
    quality: list[Quality]
    geometry: dict[str, Estimate]
    kl: Estimate | None

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON values: what was compared, how, and the results; None for what is not finite."""
        subject, settings = self.subject, self.settings
        distribution, size = subject.reference.distribution, subject.size(settings.num)
        return {
            "run": subject.name,
            **(subject.facts or {}),
            "flowgen": __version__,
            "torch": torch.__version__,
            "device": str(subject.model.device),
            "source": subject.source.name,
            "reference": subject.reference.name,
            "reference_rows": len(distribution) if isinstance(distribution, TensorDataset) else None,
            "compared": subject.view.name,
            "features": subject.view.features,
            "rows_per_set": size,
            "w2_rows": None if subject.view.features else min(size, EXACT),
            "kl_rows": None if self.kl is None else density_points(settings),
            "repeats": settings.repeats,
            "neighbours": settings.neighbours,
            "seed": settings.seed,
            "solver": settings.named,
            "grid": settings.grid,
            "noise": settings.noise,
            "floor": _plain(self.floor),
            "quality": [
                {"steps": q.steps, "nfe": q.nfe, "seconds_per_1000": q.seconds, **_plain(q.figures)}
                for q in self.quality
            ],
            "geometry": _plain(self.geometry),
            "kl": None if self.kl is None else _plain({"kl": self.kl})["kl"],
        }


def _plain(estimates: dict[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {
        name: {key: value if math.isfinite(value) else None for key, value in estimate._asdict().items()}
        for name, estimate in estimates.items()
    }


def curves(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Curve]]:
    """Return, for each figure of the chart, the curve of each run."""
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
        for figure in evaluations[0].subject.view.chart
    }
