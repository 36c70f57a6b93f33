"""Rounds of reflow: runs that learn from the pairs that another run's flow makes, and begin with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowgen.config import Config, Places, kind, resolve_config
from flowgen.config.defaults import reflow_defaults
from flowgen.config.places import absolute
from flowgen.core import StrPath
from flowgen.runs.folder import Run, load
from flowgen.settings import override
from flowgen.training import checkpoints

__all__ = ["reflow_config", "round_file"]

FORGIVING = 0.3
"""The c of the pseudo-Huber loss: it is square up to errors of 0.3 in model units. With a smaller one all errors count
as far off, and flows that are nearly straight before become less so."""


def round_file(folder: StrPath) -> Path:
    """Return the file where a reflow keeps the result of its round."""
    return Path(folder) / "round.json"


def refitted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what settings leave open of a configuration that they change: the threads, where the net or the batch
    that those fit are to differ."""
    work = any(key.startswith("net") or key in ("train.batch_size", "train.accumulate") for key in settings)
    return {"threads": None} if work else {}


def reflow_config(parent: StrPath, settings: Mapping[str, Any], places: Places = Places()) -> Config:  # noqa: B008
    """Return the configuration of a reflow of the run in `parent`: the parent's own, except for the origin of the
    pairs.

    The student predicts the velocity on the straight path, at times towards both ends, by the pseudo-Huber loss
    (arXiv 2405.20320).

    Args:
        settings: dotted keys and their values, such as `reflow.pairs` or `train.steps`, where they are to differ.
        places: where the data and the source of the parent are now; None for where it says.
    """
    parent = Path(parent)
    trained = load(parent, "cpu", places=places)
    before = trained.config.reflow
    reflow = {
        "parent": absolute(parent),
        "parent_hash": checkpoints.file_hash(Run.open(parent).weights),
        "round": before.round + 1 if before else 1,
        **reflow_defaults(trained.config.data, kind(trained.config.data)),
    }
    tree = trained.config.model_dump(exclude={"pool", "objective", "distill"})
    tree |= {
        "schedule": "linear",
        "prediction": "velocity",
        "times": "u-shaped",
        "bridge": "constant",
        "weight": "unweighted",
    }
    tree |= {"loss": {"name": "pseudo-huber", "c": FORGIVING}, "reflow": reflow}
    tree |= refitted(settings)
    for key, value in settings.items():
        tree = override(tree, key, value)
    return resolve_config(tree)
