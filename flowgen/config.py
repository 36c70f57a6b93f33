"""Experiments: the one place where names become objects."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, TypeAdapter, ValidationError
from torch import Tensor

from flowgen import objectives, paths, solvers, targets
from flowgen.checkpoints import file_hash
from flowgen.core import InputError
from flowgen.couplings import Ends, ExactOT, Independent, Pool, Sinkhorn
from flowgen.data import TOYS, Gaussian, Law, Rows, Scaled, Scaling, read_table, splitting
from flowgen.data.tables import READERS
from flowgen.model import Model
from flowgen.nn import MLP

__all__ = [
    "COUPLINGS",
    "PATHS",
    "SOLVERS",
    "TARGETS",
    "TIMES",
    "Config",
    "LoadedData",
    "find_device",
    "load_data",
    "lookup",
    "make_config",
]

T = TypeVar("T")

PATHS: dict[str, type] = {"linear": paths.Linear, "cosine": paths.Cosine, "vp": paths.VP, "ve": paths.VE}
TARGETS: dict[str, targets.Target] = {
    "velocity": targets.velocity,
    "data": targets.data,
    "noise": targets.noise,
    "v": targets.v,
    "score": targets.score,
}
COUPLINGS: dict[str, type] = {"independent": Independent, "exact": ExactOT, "sinkhorn": Sinkhorn}
TIMES: dict[str, type] = {
    "uniform": objectives.Uniform,
    "stratified": objectives.Stratified,
    "logit-normal": objectives.LogitNormal,
    "u-shaped": objectives.UShaped,
}
SOLVERS: dict[str, solvers.Solver] = {
    "euler": solvers.euler,
    "midpoint": solvers.midpoint,
    "heun": solvers.heun,
    "rk4": solvers.rk4,
    "ab2": solvers.AdamsBashforth2(),
    **{name: solvers.Adaptive(name) for name in ("dopri5", "dopri8", "bosh3")},
    "adaptive-heun": solvers.Adaptive("adaptive_heun"),
}

DEVICES = ("cpu", "cuda", "mps")


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """table[name].

    Raises:
        InputError: if there is no such name; the message has the nearest one, and all of them.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1, cutoff=0.4)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise InputError(f"unknown {kind} {name!r}{hint}: choose from {', '.join(table) or 'none'}")


def record(kind: str, made: type) -> Any:
    """A field that is given as a table of the parameters of the dataclass `made`, and holds the object itself."""

    def build(value: Any) -> Any:
        if isinstance(value, made):
            return value
        if not isinstance(value, Mapping):
            raise InputError(f"{kind} is a table of {', '.join(field.name for field in dataclasses.fields(made))}")
        return _construct(kind, made, value)

    return Annotated[Any, PlainValidator(build), PlainSerializer(dataclasses.asdict)]


def choice(kind: str, table: Mapping[str, type]) -> Any:
    """A field that is given as a name, or as a table {name = ..., parameters}, and holds the object itself."""

    def build(value: Any) -> Any:
        if isinstance(value, tuple(table.values())):
            return value
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise InputError(f"{kind} needs a name: choose from {', '.join(table)}")
        parameters = {key: x for key, x in value.items() if key != "name"}
        return _construct(f"{kind} {value['name']}", lookup(kind, value["name"], table), parameters)

    def dump(value: Any) -> dict[str, Any]:
        name = next(name for name, made in table.items() if made is type(value))
        return {"name": name, **dataclasses.asdict(value)}

    return Annotated[Any, PlainValidator(build), PlainSerializer(dump)]


def named(kind: str, table: Mapping[str, Any]) -> Any:
    """A field that is given as a name, and holds the object of that name."""

    def build(value: Any) -> Any:
        return value if value in table.values() else lookup(kind, str(value), table)

    def dump(value: Any) -> str:
        return next(name for name, made in table.items() if made is value)

    return Annotated[Any, PlainValidator(build), PlainSerializer(dump)]


def _construct(kind: str, made: type, parameters: Mapping[str, Any]) -> Any:
    """made(**parameters), with the parameters checked against the fields of the dataclass."""
    known = {field.name: field for field in dataclasses.fields(made)}
    for key in parameters:
        lookup(f"parameter of {kind}", key, known)
    try:
        return TypeAdapter(made).validate_python(dict(parameters))
    except ValidationError as error:
        raise InputError("; ".join(f"{kind}: {_explain(dict(detail))}" for detail in error.errors())) from error


class Section(BaseModel):
    """A part of the configuration: immutable, without unknown keys, without infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NetConfig(Section):
    """The network: an MLP with `depth` hidden layers of `width`, and time features of `frequencies`."""

    width: int = Field(64, ge=1, le=16384)
    depth: int = Field(3, ge=1, le=64)
    frequencies: int = Field(4, ge=0, le=256)


class SplitConfig(Section):
    """Rows of a table that training never sees: a share of them, drawn by a seed that reflows keep."""

    held_out: float = Field(0.1, ge=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**63)


class TrainConfig(Section):
    """Training: AdamW at a constant rate, and a weight average of relative width `ema`."""

    steps: int = Field(20_000, ge=1)
    batch_size: int = Field(512, ge=1)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(10.0, gt=0)
    ema: float = Field(0.05, gt=0, lt=0.28)
    log_every: int = Field(100, ge=1)
    checkpoint_every: int = Field(1000, ge=1)
    keep_checkpoints: int = Field(2, ge=1)


class ReflowConfig(Section):
    """The pairs of a reflow: `pairs` trajectories of the parent's flow, in `steps` steps of `solver`."""

    parent: str
    parent_hash: str
    round: int = Field(1, ge=1)
    pairs: int = Field(100_000, ge=1, le=10**8)
    steps: int = Field(50, ge=1)
    solver: named("solver", SOLVERS) = solvers.heun  # type: ignore[valid-type]


class Config(Section):
    """A whole experiment. `make_config` builds it from names and numbers."""

    data: str
    source: str = "gaussian"
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = "auto"
    path: choice("path", PATHS) = paths.Linear()  # type: ignore[valid-type]
    target: named("target", TARGETS)  # type: ignore[valid-type]
    coupling: choice("coupling", COUPLINGS) = ExactOT()  # type: ignore[valid-type]
    pool: record("pool", Pool)  # type: ignore[valid-type]
    times: choice("time law", TIMES) = objectives.Uniform()  # type: ignore[valid-type]
    net: NetConfig = NetConfig()
    split: SplitConfig = SplitConfig()
    train: TrainConfig = TrainConfig()
    reflow: ReflowConfig | None = None

    def model(self, event: tuple[int, ...], scaling: Scaling) -> Model:
        """The untrained model of rows `(D,)`; its first weights are a function of the seed."""
        (dim,) = event
        net = MLP(dim, self.net.width, self.net.depth, self.net.frequencies, seed=self.seed)
        return Model(net, self.path, self.target, scaling)

    def source_law(self, event: tuple[int, ...], scaling: Scaling) -> Law:
        """The source in model units: standard normal by default, or data of its own, in the units of the data."""
        if self.source == "gaussian":
            return Gaussian(event)
        return Scaled(load_data(self.source, self.split).law, scaling)

    def check(self) -> None:
        """Finds out whether training could start: reads the data and the source, and tries the device.

        Raises:
            InputError: if it could not.
        """
        data = load_data(self.data, self.split)
        Ends(self.source_law(data.law.event, data.scaling), data.law)
        find_device(self.device)


def find_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one.

    Raises:
        InputError: if this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in DEVICES:
        raise InputError(f"unknown device {name!r}: choose auto, cpu, cuda, cuda:1 or mps")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} is not available here: {str(error).split('. ')[0]}") from error


def make_config(tree: Mapping[str, Any]) -> Config:
    """Validates an experiment given as nested tables.

    Where the tree is silent, VP and VE are the diffusions they stand for, target noise and an independent coupling, and
    couplings that solve something share their work over a pool.

    Raises:
        InputError: for unknown keys and names (with the nearest known one), values out of range, and a target that is
            singular on the path.
    """
    try:
        config = Config.model_validate(_resolved(tree))
    except ValidationError as error:
        raise InputError("; ".join(_explain(dict(detail)) for detail in error.errors())) from error
    targets.span(config.path, config.target)
    return config


def _resolved(tree: Mapping[str, Any]) -> dict[str, Any]:
    diffusion = _name(tree.get("path")) in ("vp", "ve")
    natural = {"target": "noise", "coupling": "independent"} if diffusion else {"target": "velocity"}
    tree = {**natural, **tree}
    solved = _name(tree.get("coupling")) != "independent" and not tree.get("reflow")
    choices = {
        key: {"name": name, **tree[key]}
        for key, name in {"path": "linear", "coupling": "exact", "times": "uniform"}.items()
        if isinstance(tree.get(key), Mapping)
    }
    files = {key: str(Path(tree[key]).resolve()) for key in ("data", "source") if _is_file(tree.get(key))}
    return {
        "pool": {"batches": 100, "reuse": 10} if solved else {"batches": 10, "reuse": 1},
        **tree,
        **choices,
        **files,
    }


def _is_file(name: Any) -> bool:
    """Whether a name of data is that of a file; a file's place is kept in full, so that a run works from any folder."""
    return isinstance(name, str) and name not in TOYS and Path(name).exists()


def _name(value: Any) -> Any:
    return value.get("name") if isinstance(value, Mapping) else value


def _explain(detail: dict[str, Any]) -> str:
    """One clause of a validation error: the key, and what is wrong with it."""
    place = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        section: Any = Config
        for part in place[:-1]:
            section = section.model_fields[part].annotation
            section = ReflowConfig if part == "reflow" else section
        near = difflib.get_close_matches(place[-1], section.model_fields, n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"unknown configuration key {'.'.join(place)}{hint}: choose from {', '.join(section.model_fields)}"
    if detail["type"] == "value_error":  # one of ours, which says all
        return detail["msg"].removeprefix("Value error, ")
    value = detail.get("input")
    given = f", not {value!r}" if isinstance(value, str | int | float) else ""
    return ": ".join(filter(None, [".".join(place), detail["msg"]])) + given


class LoadedData(NamedTuple):
    """What training draws from, in data units, and what it does not see.

    law: of training.
    held_out: of evaluation: the same for a toy, whose every draw is new; other rows of a table; None without any.
    scaling: takes data into model units.
    columns: their names.
    labels: classes of the training rows and of the held-out rows, where the file has them.
    hash: SHA-256 of the file; None of a toy.
    """

    law: Law
    held_out: Law | None
    scaling: Scaling
    columns: tuple[str, ...]
    labels: tuple[Tensor, Tensor] | None = None
    hash: str | None = None

    def unseen(self, name: str) -> Law:
        """The held-out law.

        Raises:
            InputError: if there is none.
        """
        if self.held_out is None:
            raise InputError(f"no row of {name} was held out from training: there is nothing to evaluate on")
        return self.held_out


def load_data(name: str, split: SplitConfig) -> LoadedData:
    """The data of a toy's name, or of a table's file. Toys keep their units; tables are standardised, by training rows.

    Raises:
        InputError: for an unknown name or a bad file.
    """
    if name in TOYS:
        law = TOYS[name]()
        return LoadedData(law, law, Scaling(), ())
    path = Path(name)
    if path.suffix not in READERS and not path.exists():
        lookup("data", name, TOYS)
    table = read_table(path)
    seen, unseen = splitting.split(table.x, split.held_out, split.seed)
    if len(seen) < 2:
        raise InputError(f"{name}: training needs at least 2 rows, found {len(seen)}, with {len(unseen)} held out")
    x = table.x[seen]
    return LoadedData(
        Rows(x),
        Rows(table.x[unseen]) if len(unseen) else None,
        Scaling.standardising(x),
        table.columns,
        None if table.labels is None else (table.labels[seen], table.labels[unseen]),
        file_hash(path),
    )
