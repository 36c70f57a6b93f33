"""Couplings: which noise goes with which data."""

from flowgen.couplings.ahead import ahead
from flowgen.couplings.batches import Draw, Ends, Pool, StoredPairs, Streamed, batches, with_null_labels
from flowgen.couplings.exact import Coupling, ExactOT, Independent, assign, transport_cost
from flowgen.couplings.sinkhorn import Plan, Sinkhorn, sinkhorn

__all__ = [
    "Coupling",
    "Draw",
    "Ends",
    "ExactOT",
    "Independent",
    "Plan",
    "Pool",
    "Sinkhorn",
    "StoredPairs",
    "Streamed",
    "ahead",
    "assign",
    "batches",
    "sinkhorn",
    "transport_cost",
    "with_null_labels",
]
