"""Couplings by name."""

from __future__ import annotations

from collections.abc import Callable

from flowgen.core import Choices
from flowgen.couplings.bridge import SchroedingerBridge
from flowgen.couplings.exact import Coupling, ExactOT, Independent
from flowgen.couplings.multiscale import MultiscaleOT
from flowgen.couplings.sinkhorn import Sinkhorn
from flowgen.couplings.unbalanced import Partial, Unbalanced

__all__ = ["COUPLINGS"]

COUPLINGS: Choices[Coupling] = Choices(
    "coupling",
    Callable,
    {
        "independent": Independent,
        "multiscale": MultiscaleOT,
        "exact": ExactOT,
        "sinkhorn": Sinkhorn,
        "unbalanced": Unbalanced,
        "partial": Partial,
        "bridge": SchroedingerBridge,
    },
)
