"""The subject of an evaluation: a trained run, the data that it never saw, and the features that are compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from flowgen.config import LoadedData, Places, lookup, read_rows
from flowgen.config.places import named, shown
from flowgen.core import Field, InputError, StrPath, generator
from flowgen.data import Categorical, Distribution, Gaussian, ImageFolder, Scaled, TensorDataset
from flowgen.data.tables import column_order
from flowgen.evaluation import views
from flowgen.evaluation.views import FeatureExtractor
from flowgen.model import Model
from flowgen.nn import Classifier, fit_classifier
from flowgen.runs import ChosenSampler, Run, Trained, jump_counts, load, sampler
from flowgen.samplers import flow_map, ode
from flowgen.samplers.ode import Solver
from flowgen.training import checkpoints

__all__ = ["FEATURES", "EvaluatedModel", "Reference", "Sound", "load_sound", "load_subject", "subject_of"]


@final
class Reference:
    """A distribution of which independent sets can be drawn again and again.

    Args:
        name: says in words what it is.
        distribution: `TensorDataset` give disjoint random sets of their rows; any other distribution gives new draws.
        sets: how many sets are drawn at a time: two of the truth, whose distance is the floor.
    """

    def __init__(self, name: str, distribution: Distribution, sets: int = 2) -> None:
        self.name, self.distribution, self.sets = name, distribution, sets

    def size(self, num: int) -> int:
        """Return how many rows each set has that should have `num`."""
        return min(num, len(self.distribution) // self.sets) if isinstance(self.distribution, TensorDataset) else num

    def draw(self, size: int, seed: int, index: int) -> tuple[Tensor, ...]:
        """Draw the sets, each `(size, *shape)`: a function of the arguments and the number of sets alone."""
        rng, total = generator(seed, f"evaluate {self.sets}", index), self.sets * size
        if isinstance(self.distribution, TensorDataset):
            return self.distribution.take(torch.randperm(len(self.distribution), generator=rng)[:total]).values.split(
                size
            )
        return self.distribution.sample(total, rng).split(size)


class EvaluatedModel(NamedTuple):
    """A model with the settings that measure it.

    name: of the run.
    model: the model.
    source: where samples start, one set in model units; of a table, its held-out rows.
    reference: the truth, two sets in data units.
    view: what of samples and truth is compared.
    trained_on: the training rows as the view has them, to find copies of; None for a distribution without rows.
    facts: what else a reader of the figures should know.
    labels: the distribution of the labels that samples are asked for; None without.
    guided: what is walked, made of the model's velocity.
    fields: whether the model has a velocity.
    jump_counts: in how many steps a flow map can jump; empty for a velocity.
    sampler: what a solver, a number of steps and a seed become for this model; it refuses what was not learned.
    seen: the training rows themselves, of `trained_on`.
    """

    name: str
    model: Model
    source: Reference
    reference: Reference
    view: FeatureExtractor
    trained_on: Tensor | None = None
    facts: dict[str, Any] | None = None
    labels: Categorical | None = None
    guided: Callable[[Field], Field] = lambda field: field
    fields: bool = True
    jump_counts: tuple[int, ...] = ()
    sampler: Callable[[Solver | None, int | None, int], ChosenSampler] | None = None
    seen: TensorDataset | None = None

    def suited(
        self, solver: Solver | None, steps: Sequence[int] | None, seed: int = 0
    ) -> tuple[Solver, tuple[int, ...]]:
        """Return a solver and its numbers of steps; where they are left open, those to measure this model with.

        Raises:
            InputError: for what the model has not learned.
        """
        solver = solver or (flow_map.FlowMapStep() if self.jump_counts else ode.euler)
        if steps is None:
            adaptive = isinstance(solver, ode.AdaptiveSolver)
            steps = self.jump_counts or (1,) if solver.needs_flow_map else (1,) if adaptive else (1, 2, 4, 8, 16, 100)
        if min(steps, default=0) < 1:
            raise InputError(f"steps must be at least 1, not {min(steps, default=0)}")
        if self.sampler is not None:
            solver = [self.sampler(solver, count, seed).solver for count in steps][-1]
        return solver, tuple(steps)

    def size(self, num: int) -> int:
        """Return how many rows a set has that should have `num`."""
        return min(self.source.size(num), self.reference.size(num))


class Sound(NamedTuple):
    """A run that could be read, with its data as they were when it was trained."""

    folder: Path
    trained: Trained
    data: LoadedData


def load_subject(
    folder: StrPath,
    against: StrPath | None = None,
    features: str | None = None,
    weights: StrPath | None = None,
    device: str | None = None,
    guidance: float = 1.0,
    header: str | None = None,
    places: Places = Places(),  # noqa: B008
) -> EvaluatedModel:
    """Load the run in a folder, to be measured: `subject_of` what `load_sound` reads."""
    return subject_of(load_sound(folder, device, places), against, features, weights, guidance, header)


def load_sound(folder: StrPath, device: str | None = None, places: Places = Places()) -> Sound:  # noqa: B008
    """Read a run and its data.

    Args:
        device: of the model; None for the run's.
        places: where the data and the source of the run are now; None for where it says.

    Raises:
        InputError: for a folder that is no trained run, or data that are missing or have changed since.
    """
    trained = load(folder, device, places=places)
    return Sound(Path(folder), trained, trained.check_data(trained.config.read_data()))


def subject_of(
    run: Sound,
    against: StrPath | None = None,
    features: str | None = None,
    weights: StrPath | None = None,
    guidance: float = 1.0,
    header: str | None = None,
) -> EvaluatedModel:
    """Return what a run is measured by.

    Args:
        against: a file of true rows; None for what training did not see.
        features: a name of FEATURES; None for `rows`, and `pca` for images.
        weights: a file of Inception's weights.
        guidance: the weight of guidance; 1 for none.
        header: whether the first line of `against` holds names, `yes` or `no`; None for what the run's data have.

    Raises:
        InputError: for what does not apply to the run, where nothing was held out, or for a bad file.
    """
    folder, trained, data = run
    config, shape = trained.config, trained.source.shape
    trained.guided(trained.model.velocity, guidance)  # what is wrong with it is said before the work
    truth = _held_out(config.data, data) if against is None else _of_file(Path(against), trained, data, header)
    make_view = lookup("features", features or ("rows" if len(shape) == 1 else "pca"), FEATURES)
    view = make_view(folder, trained, data, None if weights is None else Path(weights))
    facts = {
        "data": named(config.data),
        "data_hash": data.hash,
        "split": config.split.model_dump(),
        "step": trained.step,
        "weights_hash": checkpoints.file_hash(Run.open(folder).weights),
        "guidance": guidance,
    }
    return EvaluatedModel(
        folder.name or folder.resolve().name,
        trained.model,
        _source(trained),
        truth,
        view,
        view.apply(data.distribution.values) if isinstance(data.distribution, TensorDataset) else None,
        facts,
        trained.labels,
        lambda field: trained.guided(field, guidance),
        config.objective.fields,
        jump_counts(config),
        lambda solver, steps, seed: sampler(config, trained.model, trained.source, solver, steps, seed),
        data.distribution if isinstance(data.distribution, TensorDataset) else None,
    )


def _held_out(name: str, data: LoadedData) -> Reference:
    distribution = data.unseen(name)
    kind = f"the {len(distribution)} held-out rows" if isinstance(distribution, TensorDataset) else "new draws"
    return Reference(f"{kind} of {Path(name).name}, which training did not see", distribution)


def _of_file(path: Path, trained: Trained, data: LoadedData, header: str | None) -> Reference:
    distribution, columns = read_rows(str(path), trained.config.images, trained.config.table.asked(header))
    if len(distribution.shape) != len(trained.source.shape) or (
        len(distribution.shape) > 1 and distribution.shape != trained.source.shape
    ):
        raise InputError(f"{path} has rows of shape {distribution.shape}, samples are of {trained.source.shape}")
    if len(distribution.shape) == 1:
        distribution = TensorDataset(
            distribution.x[
                :, column_order(columns, distribution.shape[0], trained.columns, trained.source.shape[0], str(path))
            ]
        )
    seen = set(_each(data.distribution.values)) if isinstance(data.distribution, TensorDataset) else set()
    count = sum(row in seen for row in _each(distribution.values))
    return Reference(
        f"the {len(distribution)} rows of {shown(path)}" + (f", {count} of which training saw" if count else ""),
        distribution,
    )


def _each(x: Tensor) -> Iterator[bytes]:
    """Yield the bytes of each row, so that equal rows are equal; 0 is added, since -0 is 0."""
    return (row.tobytes() for row in (x + 0.0).numpy())


def _source(trained: Trained) -> Reference:
    config, scaling = trained.config, trained.model.scaling
    if config.source == "gaussian":
        return Reference("gaussian", Gaussian(trained.source.shape), sets=1)
    distribution = config.load_source(trained.source.shape, trained.columns).unseen(config.source)
    if isinstance(distribution, TensorDataset):
        x = views.in_model_units(scaling, distribution.values)
        return Reference(f"the {len(x)} held-out rows of {Path(config.source).name}", TensorDataset(x), sets=1)
    return Reference(config.source, Scaled(distribution, deepcopy(scaling).cpu()), sets=1)


Maker = Callable[[Path, Trained, LoadedData, Path | None], FeatureExtractor]


def _rows(folder: Path, trained: Trained, data: LoadedData, weights: Path | None) -> FeatureExtractor:
    return views.rows(trained.model.scaling)


def _pca(folder: Path, trained: Trained, data: LoadedData, weights: Path | None) -> FeatureExtractor:
    distribution = data.distribution
    x = (
        distribution.values
        if isinstance(distribution, TensorDataset)
        else distribution.sample(10_000, generator(0, "pca"))
    )
    return views.principal(trained.model.scaling, x)


def _inception(folder: Path, trained: Trained, data: LoadedData, weights: Path | None) -> FeatureExtractor:
    views.check_image(trained.source.shape)  # before anything is fetched
    return views.inception(trained.model.scaling, weights)


def _classifier(folder: Path, trained: Trained, data: LoadedData, weights: Path | None) -> FeatureExtractor:
    """Return a classifier of the training rows, which is kept beside the run."""
    config, scaling = trained.config, trained.model.scaling
    distribution, held_out = data.distribution, data.held_out
    if isinstance(distribution, ImageFolder):
        raise InputError(
            f"features of a classifier need the images in memory: {config.data} is larger than images.memory"
        )
    if (
        not (isinstance(distribution, TensorDataset) and isinstance(held_out, TensorDataset))
        or distribution.labels is None
        or held_out.labels is None
    ):
        raise InputError(f"features of a classifier need labels: {data.no_labels or f'{config.data} has none'}")
    classes, path = len(data.classes), folder / "classifier.safetensors"
    if classes < 2:
        raise InputError(f"features of a classifier need two classes: {config.data} has the one {data.classes[0]}")
    net = Classifier(trained.source.shape, classes, seed=config.split.seed)
    of = {"data_hash": data.hash, "split": config.split.model_dump()}
    accuracy = _kept(path, net, of)
    if accuracy is None:
        fit_classifier(
            net, views.in_model_units(scaling, distribution.values), distribution.labels, seed=config.split.seed
        )
        found = views.labels_by(scaling, net, held_out.values)
        accuracy = (found == held_out.labels).double().mean().item()
        checkpoints.write_tensors(path, net.state_dict(), {"flowgen": json.dumps({"of": of, "accuracy": accuracy})})
    return views.classified(scaling, net.requires_grad_(False), accuracy)


def _kept(path: Path, net: Classifier, of: dict[str, Any]) -> float | None:
    """Return the accuracy of the classifier in a file, and load its weights into `net`; None if there is none of this
    data.
    """
    try:
        tensors, metadata = checkpoints.read_tensors(path)
        kept = json.loads(metadata["flowgen"])
        if kept["of"] != of:
            return None
        net.load_state_dict(tensors)
        return float(kept["accuracy"])
    except (InputError, KeyError, ValueError, TypeError, RuntimeError):  # missing, damaged, or another's: made anew
        return None


FEATURES: dict[str, Maker] = {"rows": _rows, "pca": _pca, "classifier": _classifier, "inception": _inception}
"""What can be compared, by name."""
