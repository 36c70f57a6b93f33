"""Experiments: the one place where names become objects."""

from flowgen.config.data import ImagesConfig, LoadedData, SplitConfig, load_data, read_rows
from flowgen.config.experiment import Config, ReflowConfig, find_device, make_config
from flowgen.config.fields import lookup
from flowgen.config.names import COUPLINGS, PATHS, SCHEDULES, SOLVERS, TARGETS, TIMES
from flowgen.config.nets import NETS

__all__ = [
    "COUPLINGS",
    "NETS",
    "PATHS",
    "SCHEDULES",
    "SOLVERS",
    "TARGETS",
    "TIMES",
    "Config",
    "ImagesConfig",
    "LoadedData",
    "ReflowConfig",
    "SplitConfig",
    "find_device",
    "load_data",
    "lookup",
    "make_config",
    "read_rows",
]
