"""The facts in the weights' file of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flowgen.config import Config, make_config
from flowgen.core import InputError
from flowgen.data import Scaling
from flowgen.model import Model
from flowgen.training import checkpoints

__all__ = ["Kept", "kept_by", "of_this_version"]


class Kept(NamedTuple):
    """The facts in the weights' file of a run, without its data or its source."""

    model: Model
    config: Config
    shape: tuple[int, ...]
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
        config, shape = _config_of(weights, facts, here), tuple(facts["shape"])
        scaling = Scaling(tensors["scaling.shift"], tensors["scaling.scale"])
        classes, counts = tuple(facts.get("classes", ())), tuple(map(float, facts.get("counts", ())))
        model = config.model(shape, scaling, len(classes))
        model.load_state_dict(tensors)
        return Kept(model, config, shape, tuple(facts["columns"]), classes, counts, int(facts["step"]))
    except InputError:
        raise
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{weights}: not the weights of a flowgen run ({error})") from error


def _config_of(weights: Path, facts: Mapping[str, Any], here: Config) -> Config:
    """Return the configuration that is kept with weights, with the places of what it names from that of the folder."""
    tree = of_this_version(facts["config"], weights)
    tree |= {"data": here.data, "source": here.source, "data_hash": here.data_hash or facts.get("data_hash")}
    for section, made in (("reflow", here.reflow), ("distill", here.distill)):
        if made and tree.get(section):
            tree[section] = {**tree[section], "parent": made.parent}
    return make_config(tree)


def of_this_version(tree: dict[str, Any], where: Path) -> dict[str, Any]:
    """Return the configuration that a run has recorded.

    Raises:
        InputError: if version 0.1 recorded it, whose settings have other names.
    """
    if "schedule" not in tree:
        raise InputError(f"{where} is of a run of flowgen 0.1, which this version does not read: train it anew")
    return tree
