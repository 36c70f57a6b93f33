"""Labels as they are asked for: by number or by name, one or several."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from flowgen.runs import Trained

__all__ = ["conditions", "label_number"]


def conditions(
    trained: Trained, num: int, label: str | None, labels: str | None, per_label: int, seed: int
) -> Tensor | None:
    """The label of each sample: the one that is asked for, so many of each, or as often as the data has them."""
    import torch

    from flowgen.core import InputError

    if label is None and labels is None:
        return trained.draw_labels(num, seed)
    if label is not None and labels is not None:
        raise InputError("give --label or --labels, not both")
    if not trained.classes:
        raise InputError("this run knows no labels: it was trained without. A classifier may: --classifier-guidance")
    if label is not None:
        return torch.full((num,), label_number(label, trained.classes))
    if per_label < 1:
        raise InputError(f"--per-label must be at least 1, not {per_label}")
    assert labels is not None
    return torch.tensor(_several(labels, trained.classes)).repeat_interleave(per_label)


def _several(text: str, classes: tuple[str, ...]) -> list[int]:
    """The labels of a list like 0-9, 0,3,5 or cat,dog."""
    from flowgen.core import InputError

    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if dash and part not in classes:
            between = range(label_number(first, classes), label_number(last, classes) + 1)
            if not between:
                raise InputError(f"--labels {part}: the first label comes after the last")
            found += between
        else:
            found.append(label_number(part, classes))
    return found


def label_number(text: str, classes: tuple[str, ...]) -> int:
    """The number of a label that is given by name or by number; a name comes first."""
    from flowgen.core import InputError

    text = text.strip()
    if text in classes:
        return classes.index(text)
    if text.isdecimal() and int(text) < len(classes):
        return int(text)
    shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    raise InputError(f"there is no label {text!r}: choose 0 to {len(classes) - 1}, or a name: {shown}")
