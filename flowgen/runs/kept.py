"""The facts in the weights' file of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flowgen import checkpoints
from flowgen.config import Config, make_config
from flowgen.core import InputError
from flowgen.data import Scaling
from flowgen.model import Model

__all__ = ["Kept", "kept_by", "recorded_before"]


class Kept(NamedTuple):
    """The facts in the weights' file of a run, without its data or its source."""

    model: Model
    config: Config
    event: tuple[int, ...]
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    counts: tuple[float, ...]
    step: int


def kept_by(weights: Path, here: Config) -> Kept:
    """Return what is in the file of a run's weights, on the CPU.

    Args:
        here: the configuration in the folder, which knows the places of what it names.

    Raises:
        InputError: if there are none yet, or they cannot be read.
    """
    if not weights.exists():
        raise InputError(f"{weights.parent} has no weights yet: train it to its first checkpoint, with --resume")
    tensors, metadata = checkpoints.read_tensors(weights)
    try:
        facts = json.loads(metadata["flowgen"])
        config, event = _config_of(facts, here), tuple(facts["event"])
        scaling = Scaling(tensors["scaling.shift"], tensors["scaling.scale"])
        classes, counts = tuple(facts.get("classes", ())), tuple(map(float, facts.get("counts", ())))
        model = config.model(event, scaling, len(classes))
        model.load_state_dict(tensors)
        return Kept(model, config, event, tuple(facts["columns"]), classes, counts, int(facts["step"]))
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{weights}: not the weights of a flowgen run ({error})") from error


def _config_of(facts: Mapping[str, Any], here: Config) -> Config:
    """Return the configuration that is kept with weights, with the places of what it names from that of the folder."""
    tree = recorded_before(facts["config"])
    tree |= {"data": here.data, "source": here.source, "data_hash": here.data_hash or facts.get("data_hash")}
    for section, made in (("reflow", here.reflow), ("distill", here.distill)):
        if made and tree.get(section):
            tree[section] = {**tree[section], "parent": made.parent}
    return make_config(tree)


def recorded_before(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a run with the defaults of its time: before there was a split, nothing was held out;
    before it was by class, labels that were asked for were learned if there were any.
    """
    split = {"stratify": False, **tree.get("split", {"held_out": 0.0})}
    before = "stratify" not in tree.get("split", {}) and tree.get("labels") is True
    return {**tree, "split": split, **({"labels": "auto"} if before else {})}
