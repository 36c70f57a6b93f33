"""Metrics: plain functions on tensors."""

from flowgen.metrics.distances import energy_distance, mmd, sliced_wasserstein2, wasserstein2
from flowgen.metrics.features import frechet_distance, kernel_distance
from flowgen.metrics.geometry import Geometry, endpoint_error, geometry, normalised_path_energy
from flowgen.metrics.neighbours import Manifold, Nearest, copies, manifold, nearest, nearest_ratio

__all__ = [
    "Geometry",
    "Manifold",
    "Nearest",
    "copies",
    "endpoint_error",
    "energy_distance",
    "frechet_distance",
    "geometry",
    "kernel_distance",
    "manifold",
    "mmd",
    "nearest",
    "nearest_ratio",
    "normalised_path_energy",
    "sliced_wasserstein2",
    "wasserstein2",
]
