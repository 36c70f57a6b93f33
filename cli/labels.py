"""Labels as they are asked for: by name or by number, one or several."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from flowgen.data.labels import Labels
    from flowgen.runs import Trained

__all__ = ["conditions", "kept_labels", "label_number"]


def conditions(
    trained: Trained, num: int, label: str | None, labels: str | None, per_label: int, seed: int
) -> Tensor | None:
    """Return the label of each sample: the one asked for, so many of each, or as often as in the data."""
    import torch

    from flowgen.core import InputError
    from flowgen.data.classes import several

    if label is None and labels is None:
        return trained.draw_labels(num, seed)
    if label is not None and labels is not None:
        raise InputError("give --label or --labels, not both")
    if not trained.classes:
        raise InputError("this run knows no labels: it was trained without. A classifier may: --classifier-guidance")
    if label is not None:
        return torch.full((num,), label_number(label, trained))
    if per_label < 1:
        raise InputError(f"--per-label must be at least 1, not {per_label}")
    assert labels is not None
    found = several(labels, trained.classes)
    trained.check_seen(found)
    return torch.tensor(found).repeat_interleave(per_label)


def label_number(label: str, trained: Trained) -> int:
    """Return the number of a --label that a run has learned."""
    from flowgen.core import InputError
    from flowgen.data.classes import find

    if not trained.classes:
        raise InputError("this run knows no labels: it was trained without")
    number = find(label, trained.classes)
    trained.check_seen([number])
    return number


def kept_labels(out: Path, labels: Labels | None) -> Labels | None:
    """Return the labels to write to a file; none for an array, which has no place for them, with a note."""
    from flowgen.core import note
    from flowgen.data.suffixes import suffix

    if labels is not None and suffix(out) == ".npy":
        note(f"{out} has no place for labels: write .npz to keep them")
        return None
    return labels
