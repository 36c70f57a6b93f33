"""The defaults of an experiment, by its data."""

from __future__ import annotations

from typing import Any

from flowgen.config.data import kind

__all__ = ["recipe_of", "reflow_defaults"]

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


def recipe_of(name: str) -> dict[str, Any]:
    """Return the default settings for data."""
    return RECIPES[_key(name)]


def reflow_defaults(name: str) -> dict[str, Any]:
    """Return the default settings for a reflow of a flow to data."""
    return REFLOWS.get(_key(name), {})


def _key(name: str) -> str:
    return name if name == "digits" else kind(name)
