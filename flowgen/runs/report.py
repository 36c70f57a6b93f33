"""What a run says of itself: its facts and its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowgen import checkpoints, grids, plots, sampling, solvers
from flowgen.config import Config, load_data
from flowgen.core import generator
from flowgen.runs.folder import Run, load

__all__ = ["describe", "illustrate"]


def illustrate(run: Run) -> None:
    """Draws the losses and samples of a run into its plots/."""
    trained, data = load(run.folder), load_data(run.config.data, run.config.split)
    folder = run.folder / "plots"
    folder.mkdir(exist_ok=True)
    history = run.history()
    if history:
        plots.losses(folder / "loss.png", [line["step"] for line in history], [line["loss"] for line in history])
    grid = grids.uniform(50, *trained.model.span)
    x = next(sampling.sample(trained.model, trained.source, 4000, grid, solvers.heun))
    truth = data.law.sample(4000, generator(run.config.seed, "plot"))
    plots.samples(folder / "samples.png", x, truth, trained.columns)


def describe(folder: Path) -> dict[str, Any]:
    """What a run is, as plain values: the facts of `flowgen info`.

    Raises:
        InputError: if it is not a run folder.
    """
    run = Run.open(folder)
    config, settings = run.config, run.config.model_dump()
    trained = load(folder, "cpu") if run.weights.exists() else None
    return {
        "run": str(folder),
        "kind": "reflow" if config.reflow else "flow",
        "data": config.data,
        "source": config.source,
        "path": settings["path"],
        "target": settings["target"],
        "coupling": {"name": "reflow", "pairs": config.reflow.pairs} if config.reflow else settings["coupling"],
        "parents": _parents(config),
        "steps": trained.step if trained else 0,
        "steps_planned": config.train.steps,
        "parameters": sum(x.numel() for x in trained.model.parameters()) if trained else None,
        "seed": config.seed,
        "hash": checkpoints.file_hash(run.weights) if trained else None,
        "checkpoints": [checkpoint.name for checkpoint in checkpoints.find(run.checkpoints)],
        "last_losses": run.history()[-5:],
    }


def _parents(config: Config) -> list[dict[str, str]]:
    """The runs that a reflow comes from, nearest first, as far as their folders are still there."""
    if config.reflow is None:
        return []
    folder = Path(config.reflow.parent)
    rest = _parents(Run.open(folder).config) if (folder / "config.toml").is_file() else []
    return [{"run": str(folder), "hash": config.reflow.parent_hash}, *rest]
