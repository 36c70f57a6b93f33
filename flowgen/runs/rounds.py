"""Rounds of reflow: runs that learn from the pairs that another run's flow makes, and begin with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowgen import checkpoints
from flowgen.config import Config, make_config
from flowgen.config.recipes import reflow_defaults
from flowgen.model import Model
from flowgen.runs.folder import Run, load
from flowgen.runs.pairs import parent as load_parent
from flowgen.settings import override

__all__ = ["reflow_config", "warm_start"]


def reflow_config(parent: Path, settings: Mapping[str, Any]) -> Config:
    """The configuration of a reflow of the run in `parent`: the parent's own, but for where the pairs come from.

    The student predicts the velocity on the straight path, at times towards both ends (arXiv 2405.20320).

    Args:
        settings: dotted keys and their values, such as `reflow.pairs` or `train.steps`, where they are to differ.
    """
    trained = load(parent, "cpu")
    before = trained.config.reflow
    reflow = {
        "parent": str(parent.resolve()),
        "parent_hash": checkpoints.file_hash(Run.open(parent).weights),
        "round": before.round + 1 if before else 1,
        **reflow_defaults(trained.config.data),
    }
    tree = trained.config.model_dump(exclude={"pool"})
    tree |= {"path": "linear", "target": "velocity", "times": "u-shaped", "bridge": "constant", "reflow": reflow}
    for key, value in settings.items():
        tree = override(tree, key, value)
    return make_config(tree)


def warm_start(model: Model, config: Config) -> None:
    """Gives the model its parent's weights, where the parent is such a model too.

    Raises:
        InputError: if the parent's weights are not those that the configuration names by their hash.
    """
    if config.reflow is None:
        return
    teacher = load_parent(config.reflow)
    before = teacher.config
    if (before.path, before.target, before.net, before.labels) == (
        config.path,
        config.target,
        config.net,
        config.labels,
    ):
        model.load_state_dict(teacher.model.state_dict())
