"""Streams of coupled pairs: batch by batch, from pools, loaders and stored files, prefetched."""

from flowgen.pairs.batches import (
    IndependentPairs,
    PairSampler,
    PairStream,
    Pool,
    Prepared,
    StoredPairs,
    batches,
    with_null_labels,
)
from flowgen.pairs.loaders import loader_pairs
from flowgen.pairs.prefetch import in_order, prefetch

__all__ = [
    "IndependentPairs",
    "PairSampler",
    "PairStream",
    "Pool",
    "Prepared",
    "StoredPairs",
    "batches",
    "in_order",
    "loader_pairs",
    "prefetch",
    "with_null_labels",
]
