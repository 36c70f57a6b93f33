"""flowgen: flow matching and rectified flow.

A coupling pairs noise with data, a path joins each pair, a prediction says what the network predicts, an objective
scores it; then a solver integrates the learned field along a time grid.

Names and modules are imported when they are first asked for, so that `import flowgen` takes no time.
"""

__version__ = "0.2.0.dev0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same for type checkers, which do not run what follows
    from flowgen import (  # noqa: F401
        bench,
        config,
        core,
        couplings,
        data,
        evaluation,
        guidance,
        interop,
        likelihood,
        losses,
        metrics,
        model,
        nn,
        objectives,
        pairs,
        plots,
        predictions,
        registry,
        repath,
        runs,
        samplers,
        sampling,
        schedules,
        settings,
        times,
        training,
        weightings,
    )
    from flowgen.core import InputError as InputError
    from flowgen.core import Pair as Pair
    from flowgen.core import Point as Point
    from flowgen.couplings import ExactOT as ExactOT
    from flowgen.couplings import Independent as Independent
    from flowgen.couplings import MultiscaleOT as MultiscaleOT
    from flowgen.couplings import Sinkhorn as Sinkhorn
    from flowgen.guidance import AutoGuided as AutoGuided
    from flowgen.guidance import ClassifierGuided as ClassifierGuided
    from flowgen.guidance import Guided as Guided
    from flowgen.model import Model as Model
    from flowgen.objectives import FlowMatching as FlowMatching
    from flowgen.objectives import classifier as classifier
    from flowgen.objectives import flow_maps as flow_maps
    from flowgen.objectives import perceptual as perceptual
    from flowgen.pairs import IndependentPairs as IndependentPairs
    from flowgen.pairs import Pool as Pool
    from flowgen.pairs import batches as batches
    from flowgen.pairs import loader_pairs as loader_pairs
    from flowgen.pairs import reflow as reflow
    from flowgen.pairs import with_null_labels as with_null_labels
    from flowgen.pairs.reflow import Inversion as Inversion
    from flowgen.pairs.reflow import Reflow as Reflow
    from flowgen.paths import bridge as bridge
    from flowgen.samplers import flow_map as flow_map
    from flowgen.samplers import grids as grids
    from flowgen.samplers import ode as ode
    from flowgen.samplers import sde as sde
    from flowgen.samplers.ode import AdamsBashforth2 as AdamsBashforth2
    from flowgen.samplers.ode import AdaptiveSolver as AdaptiveSolver
    from flowgen.samplers.ode import RungeKutta as RungeKutta
    from flowgen.samplers.ode import euler as euler
    from flowgen.samplers.ode import heun as heun
    from flowgen.samplers.ode import midpoint as midpoint
    from flowgen.samplers.ode import rk4 as rk4
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
    from flowgen.training import checkpoints as checkpoints
    from flowgen.training import distributed as distributed
    from flowgen.training import ema as ema
    from flowgen.training import loop as loop
    from flowgen.training import optim as optim
    from flowgen.training.loop import Diverged as Diverged
    from flowgen.training.loop import State as State
    from flowgen.training.loop import fit as fit

_NAMES = {
    "core": "InputError Pair Point",
    "couplings": "ExactOT Independent MultiscaleOT Sinkhorn",
    "guidance": "AutoGuided ClassifierGuided Guided",
    "model": "Model",
    "objectives": "FlowMatching",
    "pairs": "IndependentPairs Pool batches loader_pairs with_null_labels",
    "pairs.reflow": "Inversion Reflow",
    "samplers.ode": "AdamsBashforth2 AdaptiveSolver RungeKutta euler heun midpoint rk4",
    "sampling": "sample sample_chunks solve trajectory",
    "schedules": "DDPM VE VP Cosine Linear OffsetCosine",
    "training.loop": "Diverged State fit",
}
_MODULES = (
    "bench config core couplings data evaluation guidance interop likelihood losses metrics model nn objectives "
    "objectives.classifier objectives.flow_maps objectives.perceptual pairs pairs.reflow paths.bridge plots "
    "predictions registry repath runs samplers samplers.flow_map samplers.grids samplers.ode samplers.sde sampling "
    "schedules settings times training training.checkpoints training.distributed training.ema training.loop "
    "training.optim weightings"
)
_PLACES = {name: module for module, names in _NAMES.items() for name in names.split()}
_FOUND = {module.rpartition(".")[2]: module for module in _MODULES.split()}

__all__ = [*_PLACES, *_FOUND]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a public name or a module of the package (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module 'flowgen' has no attribute {name!r}")
        found = import_module(f"flowgen.{_PLACES.get(name) or _FOUND[name]}")
        return globals().setdefault(name, getattr(found, name) if name in _PLACES else found)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
