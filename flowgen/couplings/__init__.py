"""Couplings: which source point is paired with which data point."""

from flowgen.couplings.bridge import SchroedingerBridge
from flowgen.couplings.conditional import Conditioned
from flowgen.couplings.exact import COUPLINGS, Coupling, ExactOT, Independent, Reporting, assign, transport_cost
from flowgen.couplings.multiscale import MultiscaleOT
from flowgen.couplings.semidiscrete import Potentials, Semidiscrete, ascend
from flowgen.couplings.sinkhorn import Plan, Sinkhorn, sinkhorn
from flowgen.couplings.unbalanced import Partial, Unbalanced

__all__ = [
    "COUPLINGS",
    "Conditioned",
    "Coupling",
    "ExactOT",
    "Independent",
    "MultiscaleOT",
    "Partial",
    "Plan",
    "Potentials",
    "Reporting",
    "SchroedingerBridge",
    "Semidiscrete",
    "Sinkhorn",
    "Unbalanced",
    "ascend",
    "assign",
    "sinkhorn",
    "transport_cost",
]
