"""flowgen: flow matching and rectified flow.

A coupling pairs noise with data, a path joins each pair, a target says what the network predicts, an objective scores
it; then a solver walks the learned field along a time grid.
"""

__version__ = "0.1.0"

from flowgen import (
    checkpoints,
    core,
    couplings,
    data,
    distributed,
    grids,
    guidance,
    likelihood,
    losses,
    metrics,
    nn,
    objectives,
    optim,
    paths,
    plots,
    sampling,
    sde,
    solvers,
    targets,
    training,
)
from flowgen.core import InputError, Pair, Point
from flowgen.couplings import Ends, ExactOT, Independent, MultiscaleOT, Pool, Sinkhorn, batches, with_null_labels
from flowgen.guidance import Guided
from flowgen.model import Model
from flowgen.objectives import FlowMatching
from flowgen.paths import VE, VP, Cosine, Linear
from flowgen.reflow import Inversion, Reflow
from flowgen.sampling import sample, solve, walk
from flowgen.solvers import AdamsBashforth2, Adaptive, RungeKutta, euler, heun, midpoint, rk4
from flowgen.training import Diverged, State, fit

__all__ = [
    "VE",
    "VP",
    "AdamsBashforth2",
    "Adaptive",
    "Cosine",
    "Diverged",
    "Ends",
    "ExactOT",
    "FlowMatching",
    "Guided",
    "Independent",
    "InputError",
    "Inversion",
    "Linear",
    "Model",
    "MultiscaleOT",
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
    "euler",
    "fit",
    "grids",
    "guidance",
    "heun",
    "likelihood",
    "losses",
    "metrics",
    "midpoint",
    "nn",
    "objectives",
    "optim",
    "paths",
    "plots",
    "rk4",
    "sample",
    "sampling",
    "sde",
    "solve",
    "solvers",
    "targets",
    "training",
    "walk",
    "with_null_labels",
]
