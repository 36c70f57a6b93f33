"""Run folders: an experiment on disk that documents itself, and can be stopped and resumed.

config.toml          every setting, resolved
model.safetensors    the averaged weights; configuration and columns in the metadata
checkpoints/         the whole training state, the newest few
pairs/               of a reflow: the pairs that its parent's flow made, in shards
round.json           of a reflow: how straight it is, and how far from the data, beside its parent
potentials.*         of a semidiscrete coupling: what shares the source out among the rows of the data
model-ema-*          the same by the other averages, where there are several
.lock                while a process writes here
metrics.jsonl        one line for every `log_every` steps; tensorboard/ where it is asked for
plots/  README.md    pictures, and the model card with the command that made it
"""

from flowgen.config import Places
from flowgen.runs.classifier import (
    Accuracy,
    TrainedClassifier,
    accuracies,
    classifier_file,
    labelled_data,
    load_classifier,
    train_classifier,
)
from flowgen.runs.densities import Asked, asked_rows, check_density, log_likelihoods
from flowgen.runs.distillation import distill_config, stages
from flowgen.runs.editing import Editor
from flowgen.runs.folder import Run, Trained, check_vacant, load
from flowgen.runs.guiding import Guidance, guided, load_weak
from flowgen.runs.lock import remove
from flowgen.runs.pairs import EndpointError, endpoint_errors, make_pairs
from flowgen.runs.potentials import find_potentials
from flowgen.runs.report import describe, illustrate
from flowgen.runs.rounds import reflow_config, round_file
from flowgen.runs.sampler import ChosenSampler, jump_counts, sampler
from flowgen.runs.train import Progress, train

__all__ = [
    "Accuracy",
    "Asked",
    "ChosenSampler",
    "Editor",
    "EndpointError",
    "Guidance",
    "Places",
    "Progress",
    "Run",
    "Trained",
    "TrainedClassifier",
    "accuracies",
    "asked_rows",
    "check_density",
    "check_vacant",
    "classifier_file",
    "describe",
    "distill_config",
    "endpoint_errors",
    "find_potentials",
    "guided",
    "illustrate",
    "jump_counts",
    "labelled_data",
    "load",
    "load_classifier",
    "load_weak",
    "log_likelihoods",
    "make_pairs",
    "reflow_config",
    "remove",
    "round_file",
    "sampler",
    "stages",
    "train",
    "train_classifier",
]
