"""Run folders: an experiment on disk that explains itself, can be left, and taken up again.

config.toml          every setting, resolved
model.safetensors    the averaged weights; configuration and columns in the metadata
checkpoints/         the whole training state, the newest few
pairs/               of a reflow: the pairs that its parent's flow made, in shards
potentials.*         of a semidiscrete coupling: what shares the source out among the rows of the data
model-ema-*          the same by the other averages, where there are several
metrics.jsonl        one line for every `log_every` steps; tensorboard/ where it is asked for
plots/  README.md    pictures, and the model card with the command that made it
"""

from flowgen.runs.folder import Run, Trained, load
from flowgen.runs.pairs import Accuracy, accuracy, make_pairs
from flowgen.runs.potentials import find_potentials
from flowgen.runs.report import describe, illustrate
from flowgen.runs.rounds import reflow_config
from flowgen.runs.train import Progress, train

__all__ = [
    "Accuracy",
    "Progress",
    "Run",
    "Trained",
    "accuracy",
    "describe",
    "find_potentials",
    "illustrate",
    "load",
    "make_pairs",
    "reflow_config",
    "train",
]
