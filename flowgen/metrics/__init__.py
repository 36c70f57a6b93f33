"""Metrics: plain functions on tensors."""

from flowgen.metrics.distances import wasserstein2
from flowgen.metrics.geometry import Geometry, geometry, normalised_path_energy

__all__ = ["Geometry", "geometry", "normalised_path_energy", "wasserstein2"]
