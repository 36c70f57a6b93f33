"""The facts and pictures of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from flowgen import plots, sampling
from flowgen.config import Config
from flowgen.core import StrPath, generator
from flowgen.data import Distribution
from flowgen.data.images.pictures import write_grid
from flowgen.model import Model
from flowgen.runs.folder import Run, Trained, load
from flowgen.runs.kept import kept_by
from flowgen.runs.rounds import round_file
from flowgen.runs.sampler import ChosenSampler, sampler
from flowgen.threads import computing
from flowgen.training import checkpoints

__all__ = ["describe", "illustrate", "preview"]


FIGURES = ("straightness", "one_step", "marginal")
"""What is measured of a round."""


def illustrate(run: Run) -> None:
    """Draw the losses and samples of a run into its plots/."""
    trained = load(run.folder, places=run.config.places)
    with computing(trained.threads):
        _illustrated(run, trained)


def _illustrated(run: Run, trained: Trained) -> None:
    folder = run.folder / "plots"
    folder.mkdir(exist_ok=True)
    history = run.history()
    if history:
        plots.losses(folder / "loss.png", [line["step"] for line in history], [line["loss"] for line in history])
    if len(trained.source.shape) == 3:
        _draw_images(folder / "samples.png", run.config, trained.model, trained.source, trained.seen)
        return
    solver, grid = sampler(run.config, trained.model, trained.source, seed=run.config.seed)
    cond = trained.draw_labels(4000, run.config.seed)
    x = sampling.sample(trained.model, trained.source, 4000, grid, solver, cond=cond)
    truth = run.config.load_data().distribution.sample(4000, generator(run.config.seed, "plot"))
    plots.samples(folder / "samples.png", x, truth, trained.columns)


def preview(run: Run, model: Model, source: Distribution, classes: Sequence[int], step: int) -> Path:
    """Draw what a model makes of some labels during its training, from the same noise at every step; return the
    picture.
    """
    folder = run.folder / "plots" / "previews"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.png"
    if len(source.shape) == 3:
        _draw_images(path, run.config, model, source, classes)
    else:
        cond = torch.tensor(classes)[torch.arange(2000) % len(classes)] if classes else None
        solver, grid = _quick(run.config, model, source)
        plots.samples(path, sampling.sample(model, source, 2000, grid, solver, cond=cond))
    return path


def _quick(config: Config, model: Model, source: Distribution) -> ChosenSampler:
    """Return the sampler of a configuration for a preview: in 20 steps, or its jumps."""
    return sampler(config, model, source, steps=None if config.objective.maps else 20, seed=config.seed)


def _draw_images(path: Path, config: Config, model: Model, source: Distribution, classes: Sequence[int]) -> None:
    """Draw a grid of samples: a row for each of the first ten labels, or eight rows."""
    rows = min(len(classes), 10) or 8
    cond = torch.tensor(classes[:rows]).repeat_interleave(8) if classes else None
    solver, grid = _quick(config, model, source)
    x = sampling.sample(model, source, 8 * rows, grid, solver, seed=config.seed, cond=cond)
    write_grid(path, deepcopy(model.scaling).cpu().pixels(x), columns=8)


def describe(folder: StrPath) -> dict[str, Any]:
    """Return what a run is, as plain values: the facts of `flowgen info`.

    Raises:
        InputError: if it is not a run folder.
    """
    folder = Path(folder)
    run = Run.open(folder)
    config, settings = run.config, run.config.model_dump()
    kept = kept_by(run.weights, config) if run.weights.exists() else None
    return {
        "run": str(folder),
        "kind": _kind(config),
        "objective": settings["objective"],
        "data": config.data,
        "source": config.source,
        "schedule": settings["schedule"],
        "prediction": settings["prediction"],
        "times": settings["times"],
        "weight": settings["weight"],
        "net": settings["net"],
        "coupling": {"name": "reflow", "pairs": config.reflow.pairs} if config.reflow else settings["coupling"],
        "parents": _parents(folder, config),
        "round": _round(folder),
        "steps": kept.step if kept else 0,
        "steps_planned": config.train.steps,
        "classes": list(kept.classes) if kept else [],
        "parameters": sum(x.numel() for x in kept.model.parameters()) if kept else None,
        "seed": config.seed,
        "hash": checkpoints.file_hash(run.weights) if kept else None,
        "checkpoints": [checkpoint.name for checkpoint in checkpoints.find(run.checkpoints)],
        "last_losses": run.history()[-5:],
    }


def _round(folder: Path) -> dict[str, Any] | None:
    """Return the result of a round of reflow, beside its parent: the means of its figures; None where it was not
    measured.
    """
    try:
        kept = json.loads(round_file(folder).read_text())
        runs = {run: {name: fmean(kept[run][name]) for name in FIGURES} for run in ("parent", "made")}
        return {**runs, "floor": fmean(kept["floor"]), **{name: kept[name] for name in ("gain", "drifted")}}
    except (OSError, KeyError, ValueError, TypeError):
        return None


def _kind(config: Config) -> str:
    """Return what a run is, in a word or two."""
    if config.objective.maps:
        return "distillation" if config.teacher else "flow map"
    return "reflow" if config.reflow else "flow"


def _parents(folder: Path, config: Config) -> list[dict[str, str]]:
    """Return the runs that a run comes from, nearest first, as far as their folders still exist, each once."""
    found, seen = list[dict[str, str]](), {folder.resolve()}
    while (teacher := config.teacher) is not None:
        found.append({"run": teacher.parent, "hash": teacher.parent_hash})
        place = Path(teacher.parent).resolve()
        if place in seen or not (place / "config.toml").is_file():
            break
        seen.add(place)
        config = Run.open(place).config
    return found
