"""The classifier of a run's noisy data, which guides its samples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from flowgen import __version__
from flowgen.config import Config, LoadedData
from flowgen.core import InputError, Pair, StrPath, expand_time, generator
from flowgen.data import Categorical, Gaussian, TensorDataset
from flowgen.model import Model
from flowgen.nn import NoisyClassifier
from flowgen.objectives.classifier import Labelling, Posterior, log_prior
from flowgen.pairs import batches
from flowgen.runs.folder import Trained
from flowgen.training import checkpoints
from flowgen.training.loop import State, fit
from flowgen.training.optim import CosineRate

__all__ = [
    "Accuracy",
    "TrainedClassifier",
    "accuracies",
    "classifier_file",
    "labelled_data",
    "load_classifier",
    "train_classifier",
]

LR, WEIGHT_DECAY, EMA, CLIP = 1e-3, 1e-2, 0.1, 1.0
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Where it is measured, as shares of the model's span."""


class TrainedClassifier(NamedTuple):
    """A classifier, the names of its classes, and the distribution of the labels in the data."""

    posterior: Posterior
    classes: tuple[str, ...]
    labels: Categorical


class Accuracy(NamedTuple):
    """The share of held-out rows that a classifier labels correctly at time t, and its cross-entropy in nats."""

    t: float
    accuracy: float
    nats: float


def classifier_file(folder: StrPath) -> Path:
    """Return the classifier's place in a run folder."""
    return Path(folder) / "noisy-classifier.safetensors"


def labelled_data(trained: Trained) -> LoadedData:
    """Return the data of a run with their labels, also for a run that does not use them.

    Raises:
        InputError: if they have none, or have changed since the run began, or a classifier could not guide the run.
    """
    config = trained.config
    if config.objective.maps:
        raise InputError("this run has learned to jump, and jumps cannot be guided by a classifier")
    trained.check_scored("a classifier")
    data = trained.check_data(config.read_data())
    if len(data.classes) < 2:
        found = f"{config.data} has the one {data.classes[0]}" if data.classes else data.no_labels
        raise InputError(f"a classifier needs labels of two classes: {found}")
    return data


def train_classifier(
    folder: StrPath, trained: Trained, data: LoadedData, steps: int, batch_size: int, seed: int, device: torch.device
) -> Iterator[float]:
    """Train a classifier of the training rows on a run's own path, yield the losses, and keep it in the folder.

    Batch k and its noise are functions of the seed and of k.

    Args:
        data: those of `labelled_data`.

    Raises:
        Diverged: before the weights move, if the loss is not finite; nothing is kept then.
    """
    config, shape, classes = trained.config, trained.source.shape, len(data.classes)
    prior, start = log_prior(data.counts), NoisyClassifier(shape, classes, seed=seed)
    state = State(_model(trained, start).to(device), LR, WEIGHT_DECAY, EMA)
    pairs = batches(config.ends(data, device), batch_size, seed=seed)
    rate = CosineRate(LR, steps, steps // 20)
    yield from fit(state, pairs, Labelling(prior), steps, seed=seed, clip=CLIP, rate=rate)
    facts = {**_facts(config, trained), "classes": data.classes, "counts": data.counts, "steps": steps, "seed": seed}
    metadata = {"flowgen": json.dumps({"version": __version__, **facts})}
    checkpoints.write_tensors(classifier_file(folder), state.ema.state_dict(), metadata)


def load_classifier(folder: StrPath, trained: Trained) -> TrainedClassifier:
    """Load the classifier in the folder of a run, on the run's device.

    Raises:
        InputError: if there is none, or it is of other data or another path than the run.
    """
    path = classifier_file(folder)
    if not path.exists():
        raise InputError(f"{folder} has no classifier yet: flowgen train-classifier {folder}")
    tensors, metadata = checkpoints.read_tensors(path)
    try:
        facts: dict[str, Any] = json.loads(metadata["flowgen"])
        if isinstance(facts["split"], dict):
            facts["split"] = {"stratify": False, **facts["split"]}  # of earlier versions
        classes, counts = tuple(facts["classes"]), tuple(map(float, facts["counts"]))
        for key, value in _facts(trained.config, trained).items():
            if facts[key] != value:
                raise InputError(f"{path} is of another {key} than this run: train it anew, with --overwrite")
        model = _model(trained, NoisyClassifier(trained.source.shape, len(classes)))
        model.load_state_dict(tensors)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not the classifier of a flowgen run ({error})") from error
    model = model.to(trained.model.device).for_inference()
    return TrainedClassifier(
        Posterior(model, log_prior(counts).to(model.device, torch.float32)), classes, Categorical(counts)
    )


@torch.no_grad()
def accuracies(known: TrainedClassifier, rows: TensorDataset, seed: int = 0) -> Iterator[Accuracy]:
    """Yield how often the classifier is right on rows with labels, in data units, at some times of its path."""
    model, labels = known.posterior.model, rows.labels
    assert labels is not None, "rows to measure by have labels"
    x1 = model.scaling.in_model_units(rows.values).to(model.device)
    x0 = Gaussian(rows.shape).sample(len(rows), generator(seed, "noise of a classifier")).to(x1)
    lo, hi = model.span
    for share in TIMES:
        t = lo + (hi - lo) * share
        x = model.schedule.at(Pair(x0, x1), expand_time(t, x1)).x
        logits = torch.cat([known.posterior.logits(part, expand_time(t, part)) for part in x.split(1024)]).cpu()
        found = (logits.argmax(1) == labels).double().mean().item()
        yield Accuracy(t, found, F.cross_entropy(logits, labels).item())


def _model(trained: Trained, net: NoisyClassifier) -> Model:
    """Return a classifier on the path, and in the units, of a run."""
    return Model(net, trained.model.schedule, trained.model.prediction, trained.model.scaling).cpu()


def _facts(config: Config, trained: Trained) -> dict[str, Any]:
    """Return what a classifier and its run must agree in."""
    tree = json.loads(json.dumps(config.model_dump()))  # as it reads from a file, where tuples are lists
    return {
        "data": trained.data_hash or config.data,
        "split": tree["split"],
        "schedule": tree["schedule"],
        "shape": list(trained.source.shape),
    }
