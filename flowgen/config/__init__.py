"""Experiments: the one place where names become objects."""

from flowgen.config.data import LoadedData, SplitConfig, load_data
from flowgen.config.experiment import Config, ReflowConfig, find_device, make_config
from flowgen.config.fields import lookup
from flowgen.config.names import COUPLINGS, PATHS, SOLVERS, TARGETS, TIMES

__all__ = [
    "COUPLINGS",
    "PATHS",
    "SOLVERS",
    "TARGETS",
    "TIMES",
    "Config",
    "LoadedData",
    "ReflowConfig",
    "SplitConfig",
    "find_device",
    "load_data",
    "lookup",
    "make_config",
]
