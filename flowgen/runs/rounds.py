"""Rounds of reflow: runs that learn from the pairs that another run's flow makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flowgen import checkpoints, grids, sampling
from flowgen.config import Config, ReflowConfig, make_config
from flowgen.core import InputError, Pair
from flowgen.couplings import StoredPairs
from flowgen.model import Model
from flowgen.runs.folder import Run, Trained, load
from flowgen.settings import override

__all__ = ["make_pairs", "reflow_config", "stored_pairs", "warm_start"]


def reflow_config(
    parent: Path, settings: Mapping[str, Any], *, steps: int | None = None, seed: int | None = None
) -> Config:
    """The configuration of a reflow of the run in `parent`: the parent's own, but for where the pairs come from.

    The student predicts the velocity on the straight path, at times towards both ends (arXiv 2405.20320).

    Args:
        settings: `pairs`, `steps` and `solver` of ReflowConfig, where they are not the defaults.
        steps: training steps; None for as many as the parent's.
        seed: None for the parent's seed.
    """
    trained = load(parent)
    before = trained.config.reflow
    reflow = {
        "parent": str(parent.resolve()),
        "parent_hash": checkpoints.file_hash(Run.open(parent).weights),
        "round": before.round + 1 if before else 1,
        **settings,
    }
    tree = trained.config.model_dump(exclude={"pool"})
    tree |= {"path": "linear", "target": "velocity", "times": "u-shaped", "reflow": reflow}
    if steps is not None:
        tree = override(tree, "train.steps", steps)
    return make_config(tree if seed is None else {**tree, "seed": seed})


def make_pairs(run: Run) -> Iterator[int]:
    """Makes the pairs of a reflow run with its parent's flow, and yields how many there are so far.

    Raises:
        InputError: if the parent's weights are not those that the run names by their hash.
    """
    reflow = _reflow(run.config)
    teacher = _parent(reflow)
    grid = grids.uniform(reflow.steps, *teacher.model.span)
    stream = f"reflow {reflow.round}"  # not the noise that `flowgen sample` draws with the same seed
    made: list[Pair] = []
    for pair in sampling.pairs(
        teacher.model, teacher.source, reflow.pairs, grid, reflow.solver, seed=run.config.seed, stream=stream
    ):
        made.append(pair)
        yield sum(len(pair.x0) for pair in made)
    pairs = Pair.cat(made)
    checkpoints.write_tensors(run.pairs, {"x0": pairs.x0, "x1": pairs.x1}, {"parent_hash": reflow.parent_hash})


def stored_pairs(run: Run) -> StoredPairs:
    """The pairs of a reflow run.

    Raises:
        InputError: if they are missing, or were made by another parent.
    """
    tensors, metadata = checkpoints.read_tensors(run.pairs)
    if metadata.get("parent_hash") != _reflow(run.config).parent_hash:
        raise InputError(f"{run.pairs}: these pairs were made by another parent; remove them to make them anew")
    return StoredPairs(Pair(tensors["x0"], tensors["x1"]))


def warm_start(model: Model, config: Config) -> None:
    """Gives the model its parent's weights, where the parent is such a model too.

    Raises:
        InputError: if the parent's weights are not those that the configuration names by their hash.
    """
    teacher = _parent(_reflow(config))
    before = teacher.config
    if (before.path, before.target, before.net) == (config.path, config.target, config.net):
        model.load_state_dict(teacher.model.state_dict())


def _reflow(config: Config) -> ReflowConfig:
    if config.reflow is None:
        raise InputError("this run is no reflow: it has no parent")
    return config.reflow


def _parent(reflow: ReflowConfig) -> Trained:
    """The parent, whose weights are still those of the hash."""
    run = Run.open(Path(reflow.parent))
    if checkpoints.file_hash(run.weights) != reflow.parent_hash:
        raise InputError(f"{run.folder} has changed since its reflow began: its weights have another hash")
    return load(run.folder)
