"""The result of rounds of reflow: how much straighter each made the flow, and how far from the data it is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from torch import Tensor

from flowgen import metrics
from flowgen.config import Places
from flowgen.core import InputError
from flowgen.data.writing import new_file
from flowgen.evaluation.measure import (
    Estimate,
    Settings,
    draw_start,
    draw_truth,
    estimate,
    fine_steps,
    follow,
    trajectories,
)
from flowgen.evaluation.pairing import Say
from flowgen.evaluation.subject import EvaluatedModel, load_subject
from flowgen.runs import Run, round_file
from flowgen.samplers import ode
from flowgen.training import checkpoints

__all__ = ["Figures", "Round", "measure_round"]

ROWS = Settings(num=2000, repeats=5)
IMAGES = Settings(num=500, repeats=3)
"""Networks of images are expensive."""
WORSE = 0.25
"""A marginal that is so much worse than that of the first flow has drifted."""


Repeats = tuple[float, ...]
"""A figure of each set that was drawn; those of two runs are of the same sets."""


class Figures(NamedTuple):
    """The figures of a run, from the same starts and beside the same true rows for all.

    run, hash, guidance: its folder, its weights, and the guidance of its flow: a parent's is that of its pairs.
    straightness: of 100 Euler steps, see `metrics.geometry`; 0 for lines.
    one_step: how far samples of one Euler step are from the data.
    marginal: how far those of many steps are, whatever the solver.
    """

    run: str
    hash: str
    guidance: float
    straightness: Repeats
    one_step: Repeats
    marginal: Repeats


class Round(NamedTuple):
    """A round of reflow beside its parent, and beside the first flow of all, since the errors of rounds add up.

    how: what was compared with what; `distance` is the name of the distances.
    floor: the distance of true rows from other true rows.
    """

    how: dict[str, Any]
    floor: Repeats
    first: Figures
    parent: Figures
    made: Figures

    @property
    def gain(self) -> float:
        """Return how much straighter the flow is than its parent, relative to the first flow: (parent - made) / first,
        of their straightness.
        """
        first, parent, made = (fmean(run.straightness) for run in (self.first, self.parent, self.made))
        return (parent - made) / first

    @property
    def drift(self) -> Estimate:
        """Return how much farther from the data the flow is than the first one was, set by set."""
        return estimate([x - y for x, y in zip(self.made.marginal, self.first.marginal, strict=True)])

    @property
    def drifted(self) -> bool:
        """Return whether the flow is more than WORSE farther, and farther than true data, beyond chance; or not
        finite.
        """
        base = max(fmean(self.first.marginal), fmean(self.floor))
        near = fmean(self.made.marginal) <= (1 + WORSE) * base
        return not (near or self.drift.mean <= self.drift.ci95)

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON values, runs by their names; None for what is not finite."""
        figures = {name: getattr(self, name) for name in ("first", "parent", "made")}
        runs = {name: {**each._asdict(), "run": Path(each.run).resolve().name} for name, each in figures.items()}
        facts = {"gain": self.gain, "drift": self.drift._asdict(), "drifted": self.drifted}
        return dict(_plain({"how": self.how, "floor": self.floor, **runs, **facts}))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return list(map(_plain, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value


def measure_round(run: Run, say: Say = lambda text: None) -> Round:
    """Measure a trained reflow, its parent, and the first flow of all, and keep the figures in its folder.

    What is kept there, or with its parent, of the same weights and data, is not measured again.

    Raises:
        InputError: for a run that is no reflow, or where no rows were held out, or too few to compare.
    """
    if run.config.reflow is None:
        raise InputError(f"{run.folder} is no reflow: it has no parent")
    places = run.config.places
    subject = load_subject(run.folder, places=places)
    how = _how(subject)
    known = {**_known(Path(run.config.reflow.parent), how), **_known(run.folder, how)}
    made, parent, *rest = (_figures(folder, guidance, known, places, say) for folder, guidance in _line(run))
    found = Round(how, _floor(subject), rest[-1] if rest else parent, parent, made)
    with new_file(round_file(run.folder)) as file:
        file.write(json.dumps(found.plain(), indent=1, allow_nan=False).encode())
    return found


def _line(run: Run) -> list[tuple[Path, float]]:
    """Return the run and its ancestors, nearest first, each with its guidance: the parent, and the last that is still
    as it was.
    """
    line = [(run.folder, 1.0)]
    while (reflow := run.config.reflow) is not None:
        folder = Path(reflow.parent)
        weights = folder / "model.safetensors"
        if len(line) > 1 and not (weights.exists() and checkpoints.file_hash(weights) == reflow.parent_hash):
            break
        line.append((folder, reflow.guidance))
        run = Run.open(folder)
    return [*line[:2], *line[2:][-1:]]


def _settings(subject: EvaluatedModel) -> Settings:
    return IMAGES if subject.view.features else ROWS


def _how(subject: EvaluatedModel) -> dict[str, Any]:
    """Return what is compared with what.

    Raises:
        InputError: for sets of less than two rows.
    """
    settings = _settings(subject)
    rows = subject.size(settings.num)
    if rows < 2:
        raise InputError(f"{subject.reference.name}, are too few to measure a round")
    return {
        "distance": "Fréchet distance" if subject.view.features else "energy distance",
        "compared": subject.view.name,
        "reference": subject.reference.name,
        "data_hash": (subject.facts or {}).get("data_hash"),
        "source": subject.source.name,
        "rows_per_set": rows,
        "repeats": settings.repeats,
        "seed": settings.seed,
    }


def _distance(subject: EvaluatedModel, x: Tensor, truth: Tensor) -> float:
    """Return the distance between rows in data units, in the features of the view."""
    seen, real = subject.view.apply(x), subject.view.apply(truth)
    return (metrics.frechet_distance if subject.view.features else metrics.energy_distance)(seen, real)


def _floor(subject: EvaluatedModel) -> Repeats:
    settings = _settings(subject)
    sets = (draw_truth(subject, settings, index) for index in range(settings.repeats))
    return tuple(_distance(subject, other, truth) for truth, other in sets)


def _figures(
    folder: Path, guidance: float, known: dict[tuple[str, float], Figures], places: Places, say: Say
) -> Figures:
    """Return the figures of a run, whose data and source have these places, measured unless they are known."""
    found = checkpoints.file_hash(Run.open(folder).weights)
    if (found, guidance) in known:
        return known[found, guidance]._replace(run=str(folder))
    subject = load_subject(folder, guidance=guidance, places=places)
    settings, fine = _settings(subject), fine_steps(subject)
    straight, one, many = list[float](), list[float](), list[float]()
    for index in range(settings.repeats):
        say(f"{folder.name}, set {index + 1} of {settings.repeats}")
        start, truth = draw_start(subject, settings, index), draw_truth(subject, settings, index)[0]
        begun = start._replace(x0=subject.model.start(start.x0))
        straight.append(trajectories(subject, begun)["straightness"])
        for steps, solver, distances in ((1, ode.euler, one), (fine, ode.rk4, many)):
            ends = follow(subject, start, steps, solver).x
            x = subject.model.scaling.undo(ends.to(subject.model.device)).cpu()
            distances.append(_distance(subject, x, truth) if x.isfinite().all() else math.nan)
    return Figures(str(folder), found, guidance, tuple(straight), tuple(one), tuple(many))


def _known(folder: Path, how: dict[str, Any]) -> dict[tuple[str, float], Figures]:
    """Return the figures kept in a folder that were measured in this way; empty where there are none, or not whole."""
    try:
        kept = json.loads(round_file(folder).read_text())
        if kept["how"] != how:
            return {}
        runs = [_read(kept[name]) for name in ("first", "parent", "made")]
    except (OSError, KeyError, ValueError, TypeError):
        return {}
    return {(figures.hash, figures.guidance): figures for figures in runs}


def _read(plain: dict[str, Any]) -> Figures:
    """Read the figures from JSON values."""
    values = {
        name: tuple(math.nan if value is None else float(value) for value in plain[name])
        for name in ("straightness", "one_step", "marginal")
    }
    return Figures(plain["run"], plain["hash"], plain["guidance"], **values)
