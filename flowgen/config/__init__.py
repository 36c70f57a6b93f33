"""Experiments: the only package that turns names into objects."""

from flowgen.config.data import ImagesConfig, LoadedData, SplitConfig, TableConfig, kind, load_data, read_rows
from flowgen.config.devices import find_device
from flowgen.config.experiment import Config, make_config, resolve_config
from flowgen.config.nets import NETS
from flowgen.config.objectives import OBJECTIVES, Teaching
from flowgen.config.parents import DistillConfig, ReflowConfig, Teacher
from flowgen.config.places import Places
from flowgen.config.samplers import GRIDS, SAMPLERS, sampling_by
from flowgen.config.semidiscrete import COUPLINGS
from flowgen.core import lookup
from flowgen.losses import LOSSES
from flowgen.predictions import PREDICTIONS
from flowgen.samplers.ode import SOLVERS
from flowgen.schedules import SCHEDULES
from flowgen.times import TIMES
from flowgen.training.optim import LR_SCHEDULES
from flowgen.weightings import WEIGHTS

__all__ = [
    "COUPLINGS",
    "GRIDS",
    "LOSSES",
    "LR_SCHEDULES",
    "NETS",
    "OBJECTIVES",
    "PREDICTIONS",
    "SAMPLERS",
    "SCHEDULES",
    "SOLVERS",
    "TIMES",
    "WEIGHTS",
    "Config",
    "DistillConfig",
    "ImagesConfig",
    "LoadedData",
    "Places",
    "ReflowConfig",
    "SplitConfig",
    "TableConfig",
    "Teacher",
    "Teaching",
    "find_device",
    "kind",
    "load_data",
    "lookup",
    "make_config",
    "read_rows",
    "resolve_config",
    "sampling_by",
]
