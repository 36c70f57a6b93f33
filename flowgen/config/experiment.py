"""A whole experiment, and how it is made from names and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError

from flowgen import objectives, paths, solvers, targets
from flowgen.config.data import SplitConfig, load_data
from flowgen.config.fields import Section, choice, explain, named, record
from flowgen.config.names import COUPLINGS, PATHS, SOLVERS, TARGETS, TIMES
from flowgen.core import InputError
from flowgen.couplings import Ends, ExactOT, Pool
from flowgen.data import TOYS, Gaussian, Law, Scaled, Scaling
from flowgen.model import Model
from flowgen.nn import MLP

__all__ = ["Config", "find_device", "make_config"]

DEVICES = ("cpu", "cuda", "mps")


class NetConfig(Section):
    """The network: an MLP with `depth` hidden layers of `width`, and time features of `frequencies`."""

    width: int = Field(64, ge=1, le=16384)
    depth: int = Field(3, ge=1, le=64)
    frequencies: int = Field(4, ge=0, le=256)


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
        raise InputError("; ".join(explain(dict(detail), Config) for detail in error.errors())) from error
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
