"""flowgen: flow matching and rectified flow.

A coupling pairs noise with data, a path joins each pair, a prediction says what the network predicts, an objective
scores it; then a solver integrates the learned field along a time grid.

Names and modules are imported when they are first asked for, so that `import flowgen` takes no time.
"""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same for type checkers, which do not run what follows
    from flowgen import (  # noqa: F401
        bench,
        checkpoints,
        classifying,
        config,
        core,
        couplings,
        data,
        distill,
        distributed,
        editing,
        ema,
        evaluation,
        exporting,
        flowmaps,
        grids,
        guidance,
        intervals,
        likelihood,
        losses,
        metrics,
        model,
        nn,
        objectives,
        optim,
        perceptual,
        plots,
        predictions,
        reflow,
        repath,
        runs,
        samplers,
        sampling,
        schedules,
        sde,
        settings,
        solvers,
        training,
        weightings,
    )
    from flowgen.core import InputError as InputError
    from flowgen.core import Pair as Pair
    from flowgen.core import Point as Point
    from flowgen.couplings import ExactOT as ExactOT
    from flowgen.couplings import Independent as Independent
    from flowgen.couplings import IndependentPairs as IndependentPairs
    from flowgen.couplings import MultiscaleOT as MultiscaleOT
    from flowgen.couplings import Pool as Pool
    from flowgen.couplings import Sinkhorn as Sinkhorn
    from flowgen.couplings import batches as batches
    from flowgen.couplings import loader_pairs as loader_pairs
    from flowgen.couplings import with_null_labels as with_null_labels
    from flowgen.guidance import AutoGuided as AutoGuided
    from flowgen.guidance import ClassifierGuided as ClassifierGuided
    from flowgen.guidance import Guided as Guided
    from flowgen.model import Model as Model
    from flowgen.objectives import FlowMatching as FlowMatching
    from flowgen.reflow import Inversion as Inversion
    from flowgen.reflow import Reflow as Reflow
    from flowgen.sampling import sample as sample
    from flowgen.sampling import sample_chunks as sample_chunks
    from flowgen.sampling import solve as solve
    from flowgen.sampling import trajectory as trajectory
    from flowgen.schedules import DDPM as DDPM
    from flowgen.schedules import VE as VE
    from flowgen.schedules import VP as VP
    from flowgen.schedules import Cosine as Cosine
    from flowgen.schedules import Linear as Linear
    from flowgen.schedules import OffsetCosine as OffsetCosine
    from flowgen.solvers import AdamsBashforth2 as AdamsBashforth2
    from flowgen.solvers import AdaptiveSolver as AdaptiveSolver
    from flowgen.solvers import RungeKutta as RungeKutta
    from flowgen.solvers import euler as euler
    from flowgen.solvers import heun as heun
    from flowgen.solvers import midpoint as midpoint
    from flowgen.solvers import rk4 as rk4
    from flowgen.training import Diverged as Diverged
    from flowgen.training import State as State
    from flowgen.training import fit as fit

_NAMES = {
    "core": "InputError Pair Point",
    "couplings": "ExactOT Independent IndependentPairs MultiscaleOT Pool Sinkhorn "
    "batches loader_pairs with_null_labels",
    "guidance": "AutoGuided ClassifierGuided Guided",
    "model": "Model",
    "objectives": "FlowMatching",
    "reflow": "Inversion Reflow",
    "sampling": "sample sample_chunks solve trajectory",
    "schedules": "DDPM VE VP Cosine Linear OffsetCosine",
    "solvers": "AdamsBashforth2 AdaptiveSolver RungeKutta euler heun midpoint rk4",
    "training": "Diverged State fit",
}
_MODULES = (
    "bench checkpoints classifying config core couplings data distill distributed editing ema evaluation exporting "
    "flowmaps grids guidance intervals likelihood losses metrics model nn objectives optim perceptual plots "
    "predictions reflow repath runs samplers sampling schedules sde settings solvers training weightings "
)
_PLACES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [*_PLACES, *_MODULES.split()]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a public name or a module of the package (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module 'flowgen' has no attribute {name!r}")
        found = import_module(f"flowgen.{_PLACES.get(name, name)}")
        return globals().setdefault(name, getattr(found, name) if name in _PLACES else found)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
