"""The tables of names for the command line and the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowgen import couplings, optim
from flowgen.config.semidiscrete import SemidiscreteConfig
from flowgen.losses import LOSSES
from flowgen.objectives import TIMES
from flowgen.paths import BRIDGES, PATHS
from flowgen.solvers import SOLVERS
from flowgen.targets import TARGETS
from flowgen.weights import WEIGHTS

__all__ = ["BRIDGES", "COUPLINGS", "LOSSES", "PATHS", "SCHEDULES", "SOLVERS", "TARGETS", "TIMES", "WEIGHTS"]

COUPLINGS: dict[str, Any] = {**couplings.COUPLINGS, "semidiscrete": SemidiscreteConfig}
SCHEDULES: dict[str, Callable[[float, int, int], optim.Rate]] = {
    "constant": lambda lr, steps, warmup: optim.Constant(lr, warmup),
    "cosine": lambda lr, steps, warmup: optim.Cosine(lr, steps, warmup),
}
