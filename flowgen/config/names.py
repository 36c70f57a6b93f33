"""The tables of names for the command line and the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowgen import couplings
from flowgen.config.semidiscrete import SemidiscreteConfig
from flowgen.losses import LOSSES
from flowgen.paths.bridge import BRIDGES
from flowgen.predictions import PREDICTIONS
from flowgen.samplers.ode import SOLVERS
from flowgen.schedules import SCHEDULES
from flowgen.times import TIMES
from flowgen.training import optim
from flowgen.weightings import WEIGHTS

__all__ = ["BRIDGES", "COUPLINGS", "LOSSES", "LR_SCHEDULES", "PREDICTIONS", "SCHEDULES", "SOLVERS", "TIMES", "WEIGHTS"]

COUPLINGS: dict[str, Any] = {**couplings.COUPLINGS, "semidiscrete": SemidiscreteConfig}
LRSchedule = Callable[[float, int, int], optim.Rate]
"""The learning rate at its highest, the steps of training and those of the warm-up, to the rate of each step."""
LR_SCHEDULES: dict[str, LRSchedule] = {
    "constant": lambda lr, steps, warmup: optim.ConstantRate(lr, warmup),
    "cosine": lambda lr, steps, warmup: optim.CosineRate(lr, steps, warmup),
}
