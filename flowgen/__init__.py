"""flowgen: flow matching and rectified flow.

A coupling pairs noise with data, a path joins each pair, a prediction says what the network predicts, an objective
scores it; then a solver integrates the learned field along a time grid.
"""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flowgen import (
    checkpoints,
    core,
    couplings,
    data,
    distributed,
    editing,
    grids,
    guidance,
    likelihood,
    losses,
    metrics,
    nn,
    objectives,
    optim,
    plots,
    predictions,
    repath,
    samplers,
    sampling,
    schedules,
    sde,
    solvers,
    training,
    weightings,
)
from flowgen.core import InputError, Pair, Point
from flowgen.couplings import (
    ExactOT,
    Independent,
    IndependentPairs,
    MultiscaleOT,
    Pool,
    Sinkhorn,
    batches,
    loader_pairs,
    with_null_labels,
)
from flowgen.guidance import AutoGuided, ClassifierGuided, Guided
from flowgen.model import Model
from flowgen.objectives import FlowMatching
from flowgen.reflow import Inversion, Reflow
from flowgen.sampling import sample, sample_chunks, solve, trajectory
from flowgen.schedules import DDPM, VE, VP, Cosine, Linear, OffsetCosine
from flowgen.solvers import AdamsBashforth2, AdaptiveSolver, RungeKutta, euler, heun, midpoint, rk4
from flowgen.training import Diverged, State, fit

if TYPE_CHECKING:
    from flowgen import (  # noqa: F401
        bench,
        classifying,
        config,
        distill,
        ema,
        evaluation,
        exporting,
        flowmaps,
        intervals,
        model,
        perceptual,
        reflow,
        runs,
        settings,
    )

__all__ = [
    "DDPM",
    "VE",
    "VP",
    "AdamsBashforth2",
    "AdaptiveSolver",
    "AutoGuided",
    "ClassifierGuided",
    "Cosine",
    "Diverged",
    "ExactOT",
    "FlowMatching",
    "Guided",
    "Independent",
    "IndependentPairs",
    "InputError",
    "Inversion",
    "Linear",
    "Model",
    "MultiscaleOT",
    "OffsetCosine",
    "Pair",
    "Point",
    "Pool",
    "Reflow",
    "RungeKutta",
    "Sinkhorn",
    "State",
    "batches",
    "checkpoints",
    "core",
    "couplings",
    "data",
    "distributed",
    "editing",
    "euler",
    "fit",
    "grids",
    "guidance",
    "heun",
    "likelihood",
    "loader_pairs",
    "losses",
    "metrics",
    "midpoint",
    "nn",
    "objectives",
    "optim",
    "plots",
    "predictions",
    "repath",
    "rk4",
    "sample",
    "sample_chunks",
    "samplers",
    "sampling",
    "schedules",
    "sde",
    "solve",
    "solvers",
    "training",
    "trajectory",
    "weightings",
    "with_null_labels",
]

_LATER = (
    "bench",
    "classifying",
    "config",
    "distill",
    "ema",
    "evaluation",
    "exporting",
    "flowmaps",
    "intervals",
    "model",
    "premetric",
    "reflow",
    "runs",
    "settings",
)
"""Modules that are imported when they are first asked for, since some of them take long: `flowgen.runs` is enough."""

if not TYPE_CHECKING:  # a type checker is to know what there is

    def __getattr__(name: str) -> Any:
        if name in _LATER:
            return import_module(f"flowgen.{name}")
        raise AttributeError(f"module 'flowgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
