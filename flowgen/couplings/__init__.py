"""Couplings: which source point is paired with which data point."""

from flowgen.couplings.batches import (
    IndependentPairs,
    PairSampler,
    PairStream,
    Pool,
    Prepared,
    StoredPairs,
    batches,
    with_null_labels,
)
from flowgen.couplings.bridge import SchroedingerBridge
from flowgen.couplings.conditions import Conditioned
from flowgen.couplings.exact import Coupling, ExactOT, Independent, Reporting, assign, transport_cost
from flowgen.couplings.loaders import loader_pairs
from flowgen.couplings.multiscale import MultiscaleOT
from flowgen.couplings.names import COUPLINGS
from flowgen.couplings.prefetch import in_order, prefetch
from flowgen.couplings.semidiscrete import Potentials, Semidiscrete, ascend
from flowgen.couplings.sinkhorn import Plan, Sinkhorn, sinkhorn
from flowgen.couplings.unbalanced import Partial, Unbalanced

__all__ = [
    "COUPLINGS",
    "Conditioned",
    "Coupling",
    "ExactOT",
    "Independent",
    "IndependentPairs",
    "MultiscaleOT",
    "PairSampler",
    "PairStream",
    "Partial",
    "Plan",
    "Pool",
    "Potentials",
    "Prepared",
    "Reporting",
    "SchroedingerBridge",
    "Semidiscrete",
    "Sinkhorn",
    "StoredPairs",
    "Unbalanced",
    "ascend",
    "assign",
    "batches",
    "in_order",
    "loader_pairs",
    "prefetch",
    "sinkhorn",
    "transport_cost",
    "with_null_labels",
]
