"""Distances between two sets of samples."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from flowgen.core import InputError
from flowgen.couplings import transport_cost

__all__ = ["wasserstein2"]


def wasserstein2(x: Tensor, y: Tensor) -> float:
    """The exact 2-Wasserstein distance between two sets of equally many points,

    W2 = sqrt(min over permutations pi of mean_i |x_i - y_pi(i)|^2),

    by POT's network simplex: about 1 s for 2,000 points and 10 s for 8,000. Two sets from the same law are not at
    distance 0: that distance, the noise floor, falls slowly with their size and belongs beside every figure.

    Shapes: x and y `(N, *event)`.

    Raises:
        InputError: if the sets differ in size, or hold NaN or infinite values.
    """
    import ot

    cost = transport_cost(x, y)
    if not cost.isfinite().all():
        raise InputError("cannot measure a distance to rows that hold NaN or infinite values")
    weights = np.full(len(cost), 1 / len(cost))
    value, log = ot.emd2(weights, weights, cost.numpy(), numItermax=10**8, log=True)
    if log["warning"] is not None:
        raise RuntimeError(f"optimal transport of {len(cost)} points did not finish: {log['warning']}")
    return float(np.sqrt(max(value, 0.0)))
