"""The defaults of an experiment, by its data, its path and its coupling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowgen import schedules
from flowgen.config.data import DataKind
from flowgen.config.nets import sized
from flowgen.config.objectives import OBJECTIVES, FlowMatchingConfig
from flowgen.couplings import SchroedingerBridge
from flowgen.settings import merged

__all__ = ["filled", "recipe_of", "reflow_defaults"]

BATCH_SIZE = 512
DIFFUSIONS: dict[str, dict[str, Any]] = {
    "vp": {"prediction": "noise", "coupling": "independent"},
    "ddpm": {"prediction": "noise", "coupling": "independent"},
    "offset-cosine": {"prediction": "v", "coupling": "independent"},
    "ve": {"prediction": "noise", "coupling": "independent"},
}
"""What goes with the paths of diffusions, where nothing else is asked for."""
DRAWN = ("independent", "semidiscrete")
"""Couplings that have nothing to solve in a batch."""


IMAGES: dict[str, Any] = {
    "labels": "auto",
    "split": {"stratify": True},
    "coupling": "independent",
    "pool": {"batches": 1, "reuse": 1},
    "net": {"name": "unet", "size": "small"},
    "train": {
        "batch_size": 128,
        "lr": 2e-4,
        "warmup": 500,
        "clip": 1.0,
        "precision": "auto",
        "preview_every": 1000,
    },
}
DIGITS: dict[str, Any] = {
    **IMAGES,
    "times": "stratified",
    "net": {"name": "unet", "size": "tiny", "dropout": 0.1},
    "train": {
        **IMAGES["train"],
        "steps": 2500,
        "batch_size": 64,
        "lr": 2e-3,
        "warmup": 125,
        "lr_schedule": "cosine",
        "ema": 0.07,
        "preview_every": 500,
    },
}

RECIPES: dict[str, dict[str, Any]] = {"toy": {}, "table": {}, "images": IMAGES, "digits": DIGITS}
"""The settings of each kind of data, where they are not the defaults; `digits` have their own."""

REFLOWS: dict[str, dict[str, Any]] = {
    "images": {"pairs": 20_000},
    "digits": {"pairs": 6000, "steps": 20, "tolerance": 0.04},  # their shades are 0.125 apart
}
"""The same for the pairs of a reflow."""


def recipe_of(name: Any, kind: DataKind | None) -> dict[str, Any]:
    """Return the default settings for data of a name and a kind."""
    return RECIPES.get("digits" if name == "digits" else str(kind), {})


def reflow_defaults(name: str, kind: DataKind) -> dict[str, Any]:
    """Return the default settings for a reflow of a flow to data."""
    return REFLOWS.get("digits" if name == "digits" else kind, {})


def filled(tree: Mapping[str, Any], kind: DataKind | None) -> dict[str, Any]:
    """Return the tree with open values filled in: the defaults of its data, then of its path, then of its coupling.

    Args:
        kind: of the data; None where it is not known, and nothing follows from it.
    """
    given, recipe = tree.get("pool", {}), recipe_of(tree.get("data"), kind)
    natural: dict[str, Any] = {"prediction": "velocity", **DIFFUSIONS.get(str(_name(tree.get("schedule"))), {})}
    if _name(tree.get("schedule")) == "ddpm":
        natural["times"] = {"name": "discrete", "steps": _table(tree["schedule"]).get("steps", schedules.DDPM().steps)}
    if _name(tree.get("coupling")) == "bridge" and not tree.get("reflow"):
        sigma = _table(tree["coupling"]).get("sigma", SchroedingerBridge().sigma)
        natural["bridge"] = {"name": "brownian", "sigma": sigma}
    objective = OBJECTIVES.get(str(_name(tree.get("objective"))), FlowMatchingConfig)
    tree = merged(merged(recipe, {**natural, **_labelling(tree, kind)}), tree)
    if objective.maps and _name(tree.get("net")) in (None, "mlp"):
        tree["net"] = {"name": "mlp", "two_times": True, **_table(tree.get("net"))}
    named = {
        "schedule": "linear",
        "coupling": "multiscale",
        "objective": "flow-matching",
        "times": "uniform",
        "net": "mlp",
        "bridge": "constant",
        "loss": "squared",
        "weight": "unweighted",
    }
    tables = {key: {"name": name, **tree[key]} for key, name in named.items() if isinstance(tree.get(key), Mapping)}
    if "net" in tables:
        tables["net"] = sized(tables["net"])
    pool = {**_pool(tree, recipe.get("pool")), **given} if isinstance(given, Mapping) else given
    return {**tree, **tables, "pool": pool}


def _labelling(tree: Mapping[str, Any], kind: DataKind | None) -> dict[str, Any]:
    """Return what follows from labels that are asked for, or from a column of them: they are learned, and split by
    class.
    """
    column = _table(tree.get("table")).get("label_column")
    found: dict[str, Any] = {"labels": True} if column else {}
    if tree.get("labels", column):
        found["split"] = {"stratify": True}
    if tree.get("labels") is True and kind == "table":
        found["table"] = {"label_column": "auto"}
    return found


def _pool(tree: Mapping[str, Any], pool: dict[str, int] | None) -> dict[str, int]:
    """Return the pool where none is set: that of the recipe or of the coupling, large enough for the group."""
    solved = _name(tree.get("coupling")) not in DRAWN and not tree.get("reflow")
    pool = pool or ({"batches": 100, "reuse": 10} if solved else {"batches": 10, "reuse": 1})
    group, size = _table(tree.get("coupling")).get("group"), _table(tree.get("train")).get("batch_size", BATCH_SIZE)
    if solved and isinstance(group, int) and isinstance(size, int) and size > 0:
        pool = {**pool, "batches": max(pool["batches"], -(-group // size))}
    return pool


def _name(value: Any) -> Any:
    return value.get("name") if isinstance(value, Mapping) else value


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
