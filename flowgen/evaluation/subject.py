"""What is measured: a trained run, the data that it never saw, and what of both is compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, final

import torch
from torch import Tensor

from flowgen import checkpoints
from flowgen.config import LoadedData, load_data, lookup
from flowgen.core import InputError, generator
from flowgen.data import Law, Rows, read_table
from flowgen.evaluation import views
from flowgen.evaluation.views import View
from flowgen.model import Model
from flowgen.nn import Classifier, fit_classifier
from flowgen.runs import Trained, load

__all__ = ["FEATURES", "Reference", "Subject", "TwoSets", "load_subject"]


class TwoSets(NamedTuple):
    """Two sets of the same law with no row in common, each `(n, *event)`: their distance is the floor."""

    first: Tensor
    second: Tensor


@final
class Reference:
    """The truth, of which two independent sets can be drawn again and again.

    Args:
        name: says in words what it is.
        law: `Rows` give disjoint random sets of their rows; any other law gives new draws.
    """

    def __init__(self, name: str, law: Law) -> None:
        self.name, self.law = name, law

    def size(self, num: int) -> int:
        """How many rows each of two sets has that should have `num`."""
        return min(num, len(self.law.x) // 2) if isinstance(self.law, Rows) else num

    def draw(self, num: int, seed: int, index: int) -> TwoSets:
        """Two sets of size(num) rows: a function of the arguments alone."""
        rng, size = generator(seed, "reference", index), self.size(num)
        if isinstance(self.law, Rows):
            x = self.law.x[torch.randperm(len(self.law.x), generator=rng)[: 2 * size]]
        else:
            x = self.law.sample(2 * size, rng)
        return TwoSets(x[:size], x[size:])


class Subject(NamedTuple):
    """A model with what it is measured by.

    name: of the run.
    source: in model units; where it is a table, of its held-out rows.
    trained_on: the training rows in data units, to find copies of; None for a law without rows.
    """

    name: str
    model: Model
    source: Law
    reference: Reference
    view: View
    trained_on: Tensor | None


def load_subject(
    folder: Path,
    against: str = "held-out",
    features: str | None = None,
    weights: Path | None = None,
    device: str | None = None,
) -> Subject:
    """The run in a folder, to be measured.

    Args:
        against: `held-out`, for what training did not see, or a file of rows.
        features: a name of FEATURES; None for `rows`, and `pca` for images.
        weights: a file of Inception's weights.
        device: of the model; None for the run's.

    Raises:
        InputError: for a folder that is no trained run, where nothing was held out, or for a bad file.
    """
    trained = load(folder, device)
    config, event = trained.config, trained.source.event
    data = load_data(config.data, config.split)
    view = lookup("features", features or ("rows" if len(event) == 1 else "pca"), FEATURES)
    return Subject(
        folder.name or folder.resolve().name,
        trained.model,
        config.source_law(event, trained.model.scaling, held_out=True),
        _reference(config.data, data, event, against),
        view(folder, trained, data, weights),
        data.law.x if isinstance(data.law, Rows) else None,
    )


def _reference(name: str, data: LoadedData, event: tuple[int, ...], against: str) -> Reference:
    if against == "held-out":
        law = data.unseen(name)
        kind = f"the {len(law.x)} held-out rows" if isinstance(law, Rows) else "new draws"
        return Reference(f"{kind} of {Path(name).name}, which training did not see", law)
    x = read_table(against).x
    if tuple(x.shape[1:]) != event:
        raise InputError(f"{against} has rows of shape {tuple(x.shape[1:])}, but samples are of shape {event}")
    return Reference(f"the {len(x)} rows of {against}", Rows(x))


Maker = Callable[[Path, Trained, LoadedData, Path | None], View]


def _rows(folder: Path, trained: Trained, data: LoadedData, weights: Path | None) -> View:
    return views.rows(trained.model.scaling)


def _pca(folder: Path, trained: Trained, data: LoadedData, weights: Path | None) -> View:
    law = data.law
    return views.principal(
        trained.model.scaling, law.x if isinstance(law, Rows) else law.sample(10_000, generator(0, "pca"))
    )


def _inception(folder: Path, trained: Trained, data: LoadedData, weights: Path | None) -> View:
    return views.inception(weights)


def _classifier(folder: Path, trained: Trained, data: LoadedData, weights: Path | None) -> View:
    """A classifier of the training rows, which is kept beside the run."""
    config, scaling = trained.config, trained.model.scaling
    if data.labels is None or not isinstance(data.law, Rows) or not isinstance(data.held_out, Rows):
        raise InputError(f"features of a classifier need labels, and {config.data} has none: an array y beside x")
    classes, path = data.labels[0].unique(), folder / "classifier.safetensors"
    net = Classifier(trained.source.event, len(classes), seed=config.split.seed)
    facts = {"data": config.data, "split": config.split.model_dump(), "classes": classes.tolist()}
    if path.exists():
        tensors, metadata = checkpoints.read_tensors(path)
        kept = json.loads(metadata["flowgen"])
        if kept["of"] == facts:
            net.load_state_dict(tensors)
            return views.classified(scaling, net.requires_grad_(False), kept["accuracy"])
    seen, unseen = (views.in_model_units(scaling, law.x) for law in (data.law, data.held_out))
    fit_classifier(net, seen, torch.searchsorted(classes, data.labels[0]), seed=config.split.seed)
    accuracy = (classes[net(unseen).argmax(1)] == data.labels[1]).double().mean().item()
    checkpoints.write_tensors(path, net.state_dict(), {"flowgen": json.dumps({"of": facts, "accuracy": accuracy})})
    return views.classified(scaling, net.requires_grad_(False), accuracy)


FEATURES: dict[str, Maker] = {"rows": _rows, "pca": _pca, "classifier": _classifier, "inception": _inception}
"""What can be compared, by name."""
