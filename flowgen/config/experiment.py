"""A whole experiment, and how it is built from names and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, model_validator

from flowgen import losses, predictions, schedules, weightings
from flowgen.config.data import (
    DataKind,
    ImagesConfig,
    LoadedData,
    SplitConfig,
    TableConfig,
    data_hash,
    kind,
    load_data,
    named_kind,
)
from flowgen.config.defaults import BATCH_SIZE, filled
from flowgen.config.devices import find_device
from flowgen.config.fields import Choice, Record, Section, explain
from flowgen.config.nets import NETS, MLPConfig, NetConfig
from flowgen.config.objectives import OBJECTIVES, FlowMatchingConfig, ObjectiveConfig, Parts, Teaching
from flowgen.config.parents import DistillConfig, ReflowConfig, Teacher
from flowgen.config.places import Places, absolute, check_same, check_there, is_place, places_of
from flowgen.config.semidiscrete import COUPLINGS, SemidiscreteConfig
from flowgen.core import InputError, note
from flowgen.couplings import Coupling, Independent, MultiscaleOT
from flowgen.couplings.exact import LARGEST
from flowgen.data import Distribution, Flipped, Gaussian, Scaled, Scaling, TensorDataset
from flowgen.losses import LOSSES
from flowgen.model import Model
from flowgen.objectives import Objective, StepwiseObjective
from flowgen.pairs import IndependentPairs, Pool
from flowgen.paths.bridge import BRIDGES, BrownianBridge, ConstantBridge
from flowgen.predictions import PREDICTIONS
from flowgen.schedules import SCHEDULES
from flowgen.settings import check_texts
from flowgen.threads import fitting
from flowgen.times import TIMES, LogNormal, TimeDistribution, Uniform
from flowgen.training.distributed import Processes
from flowgen.training.optim import LR_SCHEDULES, LRSchedule
from flowgen.weightings import WEIGHTS

__all__ = ["Config", "make_config", "resolve_config"]


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else value


Widths = Annotated[
    tuple[Annotated[float, Field(gt=0, lt=0.28)], ...],
    BeforeValidator(_several),
    PlainSerializer(lambda widths: widths[0] if len(widths) == 1 else widths),
    Field(min_length=1),
]
"""Widths of weight averages: a number, or several, of which the first is the one to sample from."""


class TrainConfig(Section):
    """Training: AdamW, whose rate rises over `warmup` steps and then stays or falls, and weight averages."""

    steps: int = Field(20_000, ge=1)
    batch_size: int = Field(BATCH_SIZE, ge=1)
    accumulate: int = Field(1, ge=1)
    lr: float = Field(1e-3, gt=0)
    warmup: int = Field(0, ge=0)
    lr_schedule: Annotated[LRSchedule, Choice("lr_schedule", LR_SCHEDULES)] = LR_SCHEDULES["constant"]
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(10.0, gt=0)
    ema: Widths = (0.05,)
    label_dropout: float = Field(0.1, ge=0, lt=1)
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    compile: bool = False
    log: Literal["jsonl", "tensorboard"] = "jsonl"
    log_every: int = Field(100, ge=1)
    preview_every: int = Field(0, ge=0)
    checkpoint_every: int = Field(1000, ge=1)
    keep_checkpoints: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        if self.accumulate > self.batch_size:
            raise InputError(f"train.batch_size = {self.batch_size} cannot be split into {self.accumulate} parts")
        if len(set(self.ema)) < len(self.ema):
            raise InputError(f"the widths of train.ema must be different, not {', '.join(map(str, self.ema))}")
        return self

    @property
    def rising(self) -> int:
        """Return the steps of the warm-up: at most half of all."""
        return min(self.warmup, self.steps // 2)

    def rate(self, step: int) -> float:
        """Return the learning rate after `step` steps."""
        return self.lr_schedule(self.lr, self.steps, self.rising)(step)


class Config(Section):
    """A whole experiment. `make_config` builds it from names and numbers.

    threads: of the CPU, on which everything of a run is computed; None for as many as fit its net and batch.
    data_hash, source_hash: of a run, whose data and source have these and no other; None before there is one, and of
        toys.
    """

    data: str
    source: str = "gaussian"
    data_hash: str | None = None
    source_hash: str | None = None
    labels: bool | Literal["auto"] = False
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = "auto"
    threads: int | None = Field(None, ge=1, le=1024)
    schedule: Annotated[schedules.Schedule, Choice("schedule", SCHEDULES)] = schedules.Linear()
    prediction: Annotated[predictions.Prediction, Choice("prediction", PREDICTIONS)]
    coupling: Annotated[Coupling | SemidiscreteConfig, Choice("coupling", COUPLINGS)] = MultiscaleOT()
    pool: Annotated[Pool, Record("pool", Pool)]
    bridge: Annotated[ConstantBridge | BrownianBridge, Choice("bridge", BRIDGES)] = ConstantBridge()
    objective: Annotated[ObjectiveConfig, Choice("objective", OBJECTIVES)] = FlowMatchingConfig()
    times: Annotated[TimeDistribution, Choice("time distribution", TIMES)] = Uniform()
    loss: Annotated[losses.Loss, Choice("loss", LOSSES)] = losses.Squared()
    weight: Annotated[weightings.Weight, Choice("weight", WEIGHTS)] = weightings.Unweighted()
    net: Annotated[NetConfig, Choice("net", NETS)] = MLPConfig()
    images: ImagesConfig = ImagesConfig()
    table: TableConfig = TableConfig()
    split: SplitConfig = SplitConfig()
    train: TrainConfig = TrainConfig()
    reflow: ReflowConfig | None = None
    distill: DistillConfig | None = None

    @property
    def teacher(self) -> Teacher | None:
        """Return the run that this one learns from, if any."""
        return self.distill or self.reflow

    @property
    def parents(self) -> list[Path]:
        """Return the folders of the runs that this one learns from."""
        return [Path(made.parent).resolve() for made in (self.distill, self.reflow) if made]

    @property
    def whole(self) -> bool:
        """Return whether training learns the velocity of trajectories from t = 0 to 1, as flow maps need it."""
        return self.prediction is predictions.velocity and predictions.span(self.schedule, self.prediction) == (
            0.0,
            1.0,
        )

    @property
    def independent(self) -> bool:
        """Return whether the two ends of the pairs are independent."""
        return isinstance(self.coupling, Independent) and not self.reflow

    @property
    def scored(self) -> bool:
        """Return whether the learned velocity gives the score: Gaussian source, independent pairs, no bridge."""
        return self.independent and self.source == "gaussian" and not self.bridge.sigma

    @property
    def coupled(self) -> bool:
        """Return whether independent pairs, in place of the coupled ones, would make it `scored`."""
        ends = self.source == "gaussian" and not self.reflow and self.objective.fields
        return ends and not isinstance(self.coupling, Independent)

    @property
    def places(self) -> Places:
        """Return the places of its data and its source, for those that are files and exist."""
        return places_of(self.data, self.source)

    def read_data(self) -> LoadedData:
        """Read the data, with their labels also where the configuration does not use them.

        Raises:
            InputError: if they are not there, are bad, or are others than those of the run.
        """
        check_there("data", self.data, self.data_hash)
        data = load_data(self.data, self.split, self.images, self.table)
        check_same("data", self.data, self.data_hash, data.hash)
        return data

    def load_data(self) -> LoadedData:
        """Load the data, without their labels where the configuration does not use them.

        Raises:
            InputError: for bad data, or if it asks for labels and they have none.
        """
        data = self.read_data()
        if self.labels is True and not data.classes:
            raise InputError(f"labels = true, and there are none: {data.no_labels}")
        return data if self.labels else data.unlabelled()

    def settled(self, data: LoadedData) -> Config:
        """Return the same configuration with what was left open filled in from these data: whether they have labels,
        the column that holds them, the hashes of data and source, and the threads.

        Raises:
            InputError: if the net cannot be built for these data.
        """
        table = self.table.model_copy(update={"label_column": data.label_column or self.table.label_column})
        labels = bool(data.classes) if self.labels == "auto" else self.labels
        source = data_hash(self.source, self.images) if is_place(self.source) else None
        threads = self.threads_of(
            self.model(data.distribution.shape, data.scaling, len(data.classes)), data.distribution.shape
        )
        settled = {"labels": labels, "table": table, "data_hash": data.hash, "source_hash": source, "threads": threads}
        return self.model_copy(update=settled)

    def threads_of(self, model: Model, shape: tuple[int, ...]) -> int:
        """Return the number of threads to compute on: the configured one, or one that fits the size of the model and
        batch.
        """
        return self.threads or fitting(model.net, shape, self.train.batch_size // self.train.accumulate)

    def model(self, shape: tuple[int, ...], scaling: Scaling, classes: int = 0) -> Model:
        """Return the untrained model of a shape; its first weights are a function of the seed."""
        return Model(self.net.build(shape, classes, self.seed), self.schedule, self.prediction, scaling)

    def load_source(self, shape: tuple[int, ...], columns: tuple[str, ...]) -> LoadedData:
        """Load the source data, with the columns of a table in the order of those of the data to learn."""
        check_there("source", self.source, self.source_hash)
        found = load_data(self.source, self.split, self.images, self.table, labels_needed=False)
        check_same("source", self.source, self.source_hash, found.hash)
        return found.with_columns(columns, shape, self.source)

    def source_distribution(
        self, shape: tuple[int, ...], scaling: Scaling, columns: tuple[str, ...] = ()
    ) -> Distribution:
        """Return the source in model units: standard normal by default, or data of its own, in the units of the data.

        Args:
            columns: the names of the columns of the data, by which those of a table are found.
        """
        if self.source == "gaussian":
            return Gaussian(shape)
        return Scaled(self.load_source(shape, columns).distribution, scaling)

    def ends(self, data: LoadedData, device: torch.device) -> IndependentPairs:
        """Return the ends that training draws, in model units: data in memory are on the device, images mirrored if so
        set.
        """
        distribution = data.distribution
        if (
            isinstance(distribution, TensorDataset) and distribution.x.dtype == torch.float64
        ):  # once, and not for each batch
            standard = TensorDataset(data.scaling.in_model_units(distribution.x), distribution.labels).to(device)
            return IndependentPairs(self.source_distribution(distribution.shape, data.scaling, data.columns), standard)
        distribution = distribution.to(device) if isinstance(distribution, TensorDataset) else distribution
        distribution = Flipped(distribution) if self.images.flip and len(distribution.shape) == 3 else distribution
        return IndependentPairs(
            self.source_distribution(distribution.shape, data.scaling, data.columns),
            Scaled(distribution, deepcopy(data.scaling).to(device)),
        )

    def make_objective(self, classes: int = 0, teaching: Teaching | None = None) -> Objective | StepwiseObjective:
        """Return what training minimises, with so many labels, taught by another run where one is distilled."""
        bridge = self.bridge if self.bridge.sigma else None
        parts = Parts(self.times, bridge, self.loss, self.weight, self.train.steps, classes, teaching)
        return self.objective.build(parts)

    def device_of(self, processes: Processes) -> torch.device:
        """Return the device of one of the processes; of a single process, the configured one."""
        return find_device(self.device) if processes.part.of == 1 else processes.device

    def precision(self, device: torch.device) -> torch.dtype | None:
        """Return the type of matrix products; where it is left open, the one in which CUDA devices are fast."""
        half = {"auto": device.type == "cuda", "float32": False, "bfloat16": True}[self.train.precision]
        return torch.bfloat16 if half else None

    def check(self) -> LoadedData:
        """Check whether training could start: read the data and the source, and try the device. The net is built where
        the configuration is `settled`.

        Returns:
            the data.

        Raises:
            InputError: if it could not.
        """
        data = self.load_data()
        IndependentPairs(
            self.source_distribution(data.distribution.shape, data.scaling, data.columns), data.distribution
        )
        device = find_device(self.device)
        if isinstance(self.coupling, SemidiscreteConfig) and not self.reflow:
            self.coupling.check(data, device)
        return data

    def tell_labels(self, data: LoadedData) -> None:
        """Report what becomes of labels that the configuration does not mention.

        Args:
            data: as the configuration uses them.
        """
        if self.labels == "auto" and not data.classes:
            note(f"training without labels: {data.no_labels}")
        elif data.unused and not self.teacher:
            count = f"{data.unused} classes" if data.unused > 1 else "one class"
            note(f"{self.data}: its labels, of {count}, are not used; --set labels=true learns them")
        for column in (name for name in data.columns if name.strip().lower() in ("label", "labels", "class")):
            note(f"{self.data}: the column {column} is learned as numbers; --label-column {column} learns labels")


def resolve_config(tree: Mapping[str, Any]) -> Config:
    """Validate an experiment as `make_config` does, after a look at the disk: a place is kept in full, so that a run
    works from any folder, and the data have the recipe of their kind.

    Raises:
        InputError: as `make_config`.
    """
    check_texts(tree)
    name = tree.get("data")
    files = {key: absolute(tree[key]) for key in ("data", "source") if _is_file(tree.get(key))}
    return make_config({**tree, **files}, kind(name) if isinstance(name, str) else None)


def make_config(tree: Mapping[str, Any], kind: DataKind | None = None) -> Config:
    """Validate an experiment given as nested tables. Nothing is read.

    Where the tree is silent, images have their recipe, the paths of diffusions are the diffusions they stand for, by
    prediction, coupling and times, the ends of a Schroedinger bridge have its noise between them, data with labels are
    split by class, and couplings that solve something share their work over a pool, which holds the group that is asked
    for.

    Args:
        kind: of data that are a file or a folder, whose recipe is filled in; None for no recipe. `resolve_config` looks
            it up.

    Raises:
        InputError: for unknown keys and names (with the nearest known one), texts that are empty or not UTF-8, values
            out of range, and a prediction that is singular on the path or says nothing of a bridge, a weight that is
            infinite, groups that are too large for their coupling, mirrored images whose rows are to be given, and a
            flow map with what it cannot be trained with.
    """
    check_texts(tree)
    try:
        config = Config.model_validate(filled(tree, named_kind(tree.get("data")) or kind))
    except ValidationError as error:
        raise InputError("; ".join(explain(dict(detail), Config) for detail in error.errors())) from error
    _, end = predictions.span(config.schedule, config.prediction)
    if isinstance(config.weight, weightings.Likelihood) and end == 1:
        raise InputError("weight likelihood is infinite at the data: it needs the path vp, ddpm, offset-cosine or ve")
    _check_map(config)
    if config.bridge.sigma and config.prediction is not predictions.velocity:
        raise InputError("noise on the path (bridge.sigma) needs the prediction velocity")
    rows = config.pool.batches * config.train.batch_size
    group = min(getattr(config.coupling, "group", 1) or rows, rows)
    if group > LARGEST and not isinstance(config.coupling, MultiscaleOT) and not config.reflow:
        raise InputError(
            f"this coupling solves at most {LARGEST} rows together, not {group}: give a smaller coupling.group "
            "(--ot-batch), or take multiscale"
        )
    if config.images.flip and isinstance(config.coupling, SemidiscreteConfig):
        raise InputError("a semidiscrete coupling knows the images as they are: set images.flip to false")
    return config


def _check_map(config: Config) -> None:
    """Refuse settings that do not go with an objective that trains a flow map.

    Raises:
        InputError: if the objective trains a flow map, and what is set beside it does not go with that.
    """
    kind, name = config.objective, config.model_dump()["objective"]["name"]
    if not kind.maps:
        return
    if not config.whole:
        raise InputError(f"objective {name} needs the prediction velocity on the path linear or cosine")
    if not isinstance(config.weight, weightings.Unweighted):
        raise InputError(f"objective {name} weighs all times alike: leave out weight")
    if isinstance(config.times, LogNormal):
        raise InputError(
            f"objective {name} needs times on [0, 1], not those of a distribution of noise levels: choose logit-normal"
        )
    if config.bridge.sigma:
        raise InputError(f"objective {name} follows trajectories, which have no noise: set bridge.sigma to 0")
    if kind.differentiates and config.train.compile:
        raise InputError(f"objective {name} differentiates the net: set train.compile to false, or choose shortcut")
    if isinstance(config.net, MLPConfig) and not config.net.two_times:
        raise InputError(f"objective {name} needs a net that reads two times: leave out net.two_times = false")
    if kind.pairs and not config.reflow:
        raise InputError(f"objective {name} learns from the pairs of another run: use flowgen distill RUN")
    if kind.taught and not config.distill:
        raise InputError(f"objective {name} learns from another run: use flowgen distill RUN")
    if kind.guidance != 1 and config.teacher:
        raise InputError("what learns from a run has the guidance of that: give --guidance, not objective.guidance")


def _is_file(name: Any) -> bool:
    """Return whether a name of data is that of a file or a folder that exists."""
    return isinstance(name, str) and is_place(name) and Path(name).exists()
