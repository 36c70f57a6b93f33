"""The folder of a run, its configuration, and its trained model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from flowgen.config import Config, LoadedData, Places, Teacher, find_device, make_config, resolve_config
from flowgen.config.places import absolute, moved, replaced
from flowgen.core import Field, InputError, StrPath, is_utf8
from flowgen.data import Categorical, Distribution
from flowgen.data.streams import source_rows
from flowgen.data.writing import new_file
from flowgen.guidance import Guided, Rescale
from flowgen.model import Model
from flowgen.runs.card import card
from flowgen.runs.kept import kept_by, of_this_version
from flowgen.runs.lock import held, remove
from flowgen.runs.log import board
from flowgen.runs.places import found_in, has_moved, weights_hash, written_in
from flowgen.settings import dump_toml, flat, override, read_toml
from flowgen.training import checkpoints

__all__ = ["Run", "Trained", "check_vacant", "load", "parent"]

EXTENSIBLE = {
    "device",
    "images.workers",
    "threads",
    "train.steps",
    "train.compile",
    "train.log",
    "train.preview_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
}
"""What may change when a run goes on; anything else would make it another experiment."""


@final
@dataclass(frozen=True)
class Run:
    """A run folder and its configuration."""

    folder: Path
    config: Config

    @classmethod
    def create(cls, folder: StrPath, config: Config, command: str, overwrite: bool = False) -> Run:
        """Make the folder, with the configuration and the model card, once the configuration is known to work.

        Raises:
            InputError: for data, a source or a device that training could not use; if there is something at `folder`
                already, unless that is a run and `overwrite` is set. Nothing has changed on the disk then.
        """
        folder = Path(folder)
        check_vacant(folder, overwrite)
        if folder.resolve() in config.parents:
            raise InputError(f"{folder} is the run to learn from, and cannot be replaced by what does")
        data = _check(config)
        settled = config.settled(data)
        config.tell_labels(data)
        try:
            if folder.exists():
                remove(folder) if overwrite else folder.rmdir()
            folder.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error
        run = cls(folder, settled)
        run.write_config()
        text = card(settled, command).encode(errors="backslashreplace")  # the command may name files that are not UTF-8
        (folder / "README.md").write_bytes(text)
        return run

    @classmethod
    def open(cls, folder: StrPath, places: Places = Places()) -> Run:  # noqa: B008
        """Open the run in a folder. The files that it names are looked for from there, and then from the current
        folder.

        Args:
            places: where its data and its source are now.

        Raises:
            InputError: if it is not a run folder, or there is nothing at a place.
        """
        folder = Path(folder)
        if not (folder / "config.toml").is_file():
            lacks = "it has no config.toml" if folder.exists() else "there is no such folder"
            raise InputError(f"{folder} is not a run folder: {lacks}")
        tree = found_in(of_this_version(read_toml(folder / "config.toml"), folder / "config.toml"), folder)
        for key, place in places._asdict().items():
            tree[key] = moved(tree.get(key, "gaussian"), place, key)
        return cls(folder, make_config(tree))

    def extended(self, tree: Mapping[str, Any], parent: Path | None = None) -> Run:
        """Return the same run, to be resumed under the settings of `tree`: how long, on what device, how often it is
        saved, and where its data and its source are now, as far as their hashes are known.

        Args:
            parent: where the run to learn from is now; None for where it says.

        Raises:
            InputError: if the tree changes anything else, or the run could not go on.
        """
        with held(self.folder):
            return self._extended(tree, parent)

    def _extended(self, tree: Mapping[str, Any], parent: Path | None) -> Run:
        before = self.config.model_dump()
        after: dict[str, Any] = before
        for key, value in flat(tree).items():
            after = override(after, key, value)
        after = after if parent is None else self._adopted(after, parent)
        run = Run(self.folder, resolve_config(after))
        old, new = flat(before), flat(run.config.model_dump())
        differ = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
        changed = [key for key in differ if key not in EXTENSIBLE and not has_moved(key, old, new)]
        longer, risen = new["train.steps"] != old["train.steps"], self.config.train.rising == run.config.train.rising
        anneals = self.config.objective.anneals
        if longer and not (risen and new["train.lr_schedule"] == "constant" and not anneals):
            changed.append("train.steps")  # what was done already had the rates of the old length
        if changed:
            key = min(changed, key=lambda key: (not key.endswith(".name"), key))
            raise InputError(f"--resume cannot change {key} from {old.get(key)} to {new.get(key)}: start another run")
        done = run.newest()
        if done > run.config.train.steps:
            raise InputError(f"{self.folder} is at step {done} already, beyond train.steps = {run.config.train.steps}")
        data = _check(run.config)
        if run.weights.exists():
            load(run.folder, "cpu", places=run.config.places).check_data(data)
        run.write_config()
        return run

    def _adopted(self, tree: Mapping[str, Any], parent: Path) -> dict[str, Any]:
        """Return the tree with another place of the run to learn from.

        Raises:
            InputError: if that is none that it learns from.
        """
        known = weights_hash(parent)
        if known not in {made.parent_hash for made in (self.config.reflow, self.config.distill) if made}:
            what = "learns from a run of other weights" if self.config.teacher else "learns from no run"
            raise InputError(f"--parent {parent}: {self.folder} {what}")
        return replaced(tree, lambda name, _: name, lambda name, hash: absolute(parent) if hash == known else name)

    def write_config(self) -> None:
        """Write config.toml atomically: other processes may be reading it."""
        with new_file(self.folder / "config.toml") as file:
            tree = self.config.model_dump()
            file.write(dump_toml(written_in(tree, self.folder)).encode())

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs"

    @property
    def potentials(self) -> Path:
        return self.folder / "potentials.safetensors"

    def averaged(self, width: float | None = None) -> Path:
        """Return the weights averaged with a width of `train.ema`; with the first of them where it is None.

        Raises:
            InputError: if the run has no such average.
        """
        widths = self.config.train.ema
        if width is None or width == widths[0]:
            return self.weights
        if width not in widths:
            raise InputError(f"{self.folder} has no average of width {width:g}: choose {' or '.join(map(str, widths))}")
        return self.folder / f"model-ema-{width}.safetensors"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def newest(self) -> int:
        """Return the step of the newest checkpoint, 0 where there is none."""
        return max(map(checkpoints.step, checkpoints.find(self.checkpoints)), default=0)

    def history(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl; a line that was cut short is left out."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


def check_vacant(folder: StrPath, overwrite: bool = False) -> None:
    """Refuse a folder for a new run that is not empty, unless it is a run that may be replaced.

    Raises:
        InputError: if there is something at a folder where a run is to be, unless that is a run, and may be replaced;
            for a name that files of weights cannot have.
    """
    folder = Path(folder)
    if not is_utf8(str(folder)):
        raise InputError(f"the run folder {str(folder)!r} has a name that is not UTF-8: choose another with --out")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / "config.toml").is_file():
        raise InputError(f"{folder} exists and is not a run folder; choose another with --out")
    if not overwrite:
        raise InputError(f"{folder} exists already; go on with --resume, start anew with --overwrite")


class Trained(NamedTuple):
    """The result of a run: the model with averaged weights, its source in model units, its columns, and the SHA-256 of
    the file of its data (None of a toy).

    classes: the names of its labels; empty where it has none. The label after the last means that there is none.
    labels: the distribution of the labels in the data; None without.
    """

    model: Model
    source: Distribution
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    labels: Categorical | None
    config: Config
    step: int
    data_hash: str | None

    def draw_labels(self, num: int, seed: int, stream: str = "labels") -> Tensor | None:
        """Draw labels by their shares in the data, `(num,)`: label i is a function of (seed, i). None without
        labels.
        """
        return None if self.labels is None else source_rows(self.labels, 0, num, seed, stream)

    def guided(
        self, field: Field, guidance: float, interval: tuple[float, float] = (0.0, 1.0), rescale: float = 0.0
    ) -> Field:
        """Return the field of the model, guided unless the weight is 1.

        Args:
            rescale: the share of `guidance.Rescale`; 0 for none.

        Raises:
            InputError: for guidance of a model that knows no labels, or a bad weight, interval or share.
        """
        rescaling = Rescale(self.model.schedule, rescale) if rescale else None
        guided = Guided(field, len(self.classes), guidance, interval, rescaling)
        if guidance == 1:
            return field
        if self.config.objective.maps:
            raise InputError("guidance of a flow map is part of its training: see flowgen distill RUN --guidance")
        if not self.classes:
            raise InputError("guidance needs a model that was trained with labels")
        if not self.config.train.label_dropout:
            raise InputError(
                "guidance needs labels that were hidden in training, now and then: train.label_dropout is 0"
            )
        return guided

    def check_scored(self, what: str) -> None:
        """Refuse a run whose velocity does not give the score, which the asked task needs.

        Raises:
            InputError: unless the velocity says the score, as what is to be done with the run needs it.
        """
        if not self.config.scored:
            raise InputError(
                f"{what} needs a run of a Gaussian source and independent pairs: train it --coupling independent"
            )

    @property
    def threads(self) -> int:
        """Return the number of CPU threads to compute the run on, unless another number is asked for."""
        return self.config.threads_of(self.model, self.source.shape)

    @property
    def seen(self) -> list[int]:
        """Return the labels that some training row had."""
        counts = self.labels.weights if self.labels else (1,) * len(self.classes)
        return [label for label, count in enumerate(counts) if count]

    @property
    def label_column(self) -> str:
        """Return the name of the column of labels, of tables that are written."""
        name = self.config.table.label_column
        return name if self.columns and name and name != "auto" else "label"

    def numbers_of(self, labels: Tensor, classes: tuple[str, ...], place: str) -> Tensor:
        """Return the numbers that the run has for the labels of other data, whose classes have these names.

        Raises:
            InputError: if it knows some of them not, or no training row had them.
        """
        if strange := [name for name in classes if name not in self.classes]:
            raise InputError(f"{place} has labels that this run does not know: {', '.join(strange[:10])}")
        numbers = torch.tensor([self.classes.index(name) for name in classes])[labels]
        self.check_seen(numbers.unique().tolist())
        return numbers

    def check_seen(self, labels: Iterable[int]) -> None:
        """Refuse labels that no training row had: the net has learned nothing about them.

        Raises:
            InputError: if no training row had one of the labels: what the net makes of it is nothing it has learned.
        """
        for label in set(labels) - set(self.seen):
            raise InputError(f"no training row has the label {self.classes[label]}: this run has not learned it")

    def check_data(self, data: LoadedData) -> LoadedData:
        """Return the data, with labels numbered as the run knows them.

        Raises:
            InputError: unless these are the data that the run was trained on: of others, other rows are held out.
        """
        if data.hash != self.data_hash:
            raise InputError(f"{self.config.data} has changed since the run began: what was held out cannot be told")
        if data.distribution.shape != self.source.shape:
            found = f"rows of shape {data.distribution.shape}, and the run has learned {self.source.shape}"
            raise InputError(f"{self.config.data} is read as {found}, by an earlier version: train it anew")
        if self.config.labels and not self.classes:  # an earlier version could not read them
            return data.unlabelled()
        # earlier versions had the classes 0, 1, 10, 11, 2
        return data.in_order(self.classes) if set(data.classes) == set(self.classes) else data


def load(
    folder: StrPath,
    device: str | None = None,
    ema: float | None = None,
    places: Places = Places(),  # noqa: B008
) -> Trained:
    """Load the model of a run folder, on `device`, or on that of its configuration.

    Args:
        ema: the width of the weight average, one of `train.ema`; None for the first.
        places: where its data and its source are now; None for where it says.

    Raises:
        InputError: if it is not a run folder, or has no readable weights yet.
    """
    run = Run.open(folder, places)
    kept = kept_by(run.averaged(ema), run.config)
    config = kept.config.model_copy(update={"threads": run.config.threads})  # as the run is computed on now
    source = config.source_distribution(kept.shape, deepcopy(kept.model.scaling), kept.columns)
    model = kept.model.to(find_device(device or run.config.device)).for_inference()
    labels = Categorical(kept.counts) if kept.counts else None
    return Trained(model, source, kept.columns, kept.classes, labels, config, kept.step, config.data_hash)


def _check(config: Config) -> LoadedData:
    """Check whether the run of a configuration could start; return its data.

    Raises:
        InputError: if it could not.
    """
    data = config.check()
    if config.train.log == "tensorboard":
        board()
    if config.reflow:
        _check_teacher(config.reflow, config.places, data, needs_velocity=True)
    if config.distill:
        _check_teacher(config.distill, config.places, data, needs_velocity=not config.objective.taught)
    if config.objective.guidance != 1 and not (data.classes and config.train.label_dropout):
        raise InputError(
            "guidance needs labels, some of which are hidden in training: see labels and train.label_dropout"
        )
    return data


def parent(teacher: Teacher, places: Places, device: str = "cpu") -> Trained:
    """Load the run that another learns from, whose weights must still have the recorded hash, on a device.

    Args:
        places: of the data and the source of that other, which are its own too.

    Raises:
        InputError: if it is not there, or its weights are others.
    """
    folder = Path(teacher.parent)
    if not (folder / "config.toml").is_file():
        raise InputError(f"{folder}: no such run; say where the run to learn from went, --parent PLACE")
    if weights_hash(folder) != teacher.parent_hash:
        raise InputError(f"{folder} has changed since it was learned from: its weights have another hash")
    return load(folder, device, places=places)


def _check_teacher(settings: Teacher, places: Places, data: LoadedData, needs_velocity: bool) -> None:
    """Refuse a run that cannot be learned from.

    Raises:
        InputError: if a run cannot be learned from.
    """
    teacher = parent(settings, places)
    teacher.check_data(data)
    teacher.guided(teacher.model.velocity, settings.guidance)
    if settings.guidance != 1 and not data.classes:
        raise InputError("guidance needs labels, and labels is false: what learns from a guided flow has to know them")
    if needs_velocity and not teacher.config.objective.fields:
        raise InputError(
            f"{settings.parent} jumps, and has no velocity to learn from: take the run that it learned from"
        )
    if data.classes and not teacher.classes:
        raise InputError(f"{settings.parent} knows no labels, and what learns from it cannot learn any: labels is true")
