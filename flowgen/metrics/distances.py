"""Distances between two sets of samples. All are 0 for equal sets, and grow as one distribution moves away from the
other.

Two sets from the same distribution are not at distance 0: what remains, the floor, falls with the size of the sets, and
belongs beside every figure.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from flowgen.core import InputError
from flowgen.couplings import transport_cost
from flowgen.metrics.pairwise import checked, mean_over_pairs, per_block

__all__ = ["EXACT", "energy_distance", "mmd", "sliced_wasserstein2", "wasserstein2"]

EXACT = 10_000
"""Rows up to which the 2-Wasserstein distance is solved; its time and memory grow with the square of that."""


def wasserstein2(x: Tensor, y: Tensor) -> float:
    """Return the exact 2-Wasserstein distance between two sets of equally many points,

    W2 = sqrt(min over permutations pi of mean_i |x_i - y_pi(i)|^2),

    by POT's network simplex: about 1 s for 2,000 points and 10 s for 8,000. Its floor in d dimensions falls as slowly
    as N^(-1/d) (N^(-1/2) at best).

    Of more than EXACT points, the first EXACT of each set are compared, and a UserWarning says so: put the rows in
    random order, or take `sliced_wasserstein2`.

    Shapes: x and y `(N, *shape)`. Units: those of x.

    Raises:
        InputError: if the sets differ in size or shape, are empty, or hold NaN or infinite values.
    """
    import ot

    if len(x) != len(y):
        raise InputError(f"optimal transport is between equally many points, not {len(x)} and {len(y)}")
    if len(x) > EXACT:
        warnings.warn(f"the exact W2 distance of the first {EXACT} of {len(x)} points", stacklevel=2)
        x, y = x[:EXACT], y[:EXACT]
    cost = transport_cost(*checked(x, y)).numpy()
    weights = np.full(len(cost), 1 / len(cost))
    value, log = ot.emd2(weights, weights, cost, numItermax=10**8, log=True)
    if log["warning"] is not None:
        raise RuntimeError(f"optimal transport of {len(cost)} points did not finish: {log['warning']}")
    return float(np.sqrt(max(value, 0.0)))


def sliced_wasserstein2(x: Tensor, y: Tensor, generator: torch.Generator, projections: int = 256) -> float:
    """Return the 2-Wasserstein distance of one-dimensional projections, averaged over directions (arXiv 1902.00434 for
    more):

    SW2 = sqrt(mean over theta of W2^2(<theta, x>, <theta, y>)),  theta uniform on the unit sphere.

    The shadow of a line is solved by sorting, so that a million points take seconds, and the floor falls as N^(-1/2)
    in any dimension, for distributions in one piece; where modes are apart, as slowly as N^(-1/4). SW2 <= W2 / sqrt(d).

    Shapes: x `(N, *shape)`, y `(M, *shape)`. Units: those of x.

    Args:
        generator: of the directions; the same directions make figures comparable.

    Raises:
        InputError: if the events differ, a set is empty, or holds NaN or infinite values.
    """
    import ot

    x, y = checked(x, y)
    theta = torch.randn(x.shape[1], projections, generator=generator, dtype=torch.float64).to(x.device)
    theta /= theta.norm(dim=0)
    parts = theta.split(per_block(8 * max(len(x), len(y))), dim=1)  # POT keeps some eight arrays of both sets
    squares = [ot.wasserstein_1d(x @ part, y @ part, p=2) for part in parts]
    return float(torch.cat(squares).mean().clamp(min=0).sqrt())


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Return the energy distance of Szekely and Rizzo (doi 10.1016/j.jspi.2013.03.018),

    D = sqrt(2 E|x - y| - E|x - x'| - E|y - y'|),

    over all pairs of rows, a row with itself too. It is 0 only between equal distributions, and needs no tuning.

    Shapes: x `(N, *shape)`, y `(M, *shape)`. Units: the square root of those of x.

    Raises:
        InputError: if the events differ, a set is empty, or holds NaN or infinite values.
    """
    x, y = checked(x, y)

    def mean(a: Tensor, b: Tensor) -> float:
        return mean_over_pairs(a, b, lambda distance: distance)

    return max(2 * mean(x, y) - mean(x, x) - mean(y, y), 0.0) ** 0.5


OCTAVES = 5
"""Kernels of `mmd`, each twice as wide as the one before."""


def mmd(x: Tensor, y: Tensor, width: float | None = None) -> float:
    """Return the maximum mean discrepancy of Gaussian kernels of several widths (Gretton et al., JMLR 13, 2012),

    MMD = sqrt(E k(x, x') + E k(y, y') - 2 E k(x, y)),  k(x, y) = mean over s of exp(-|x - y|^2 / (2 s^2)),
    s = width times 1/4, 1/2, 1, 2, 4,

    over all pairs of rows, a row with itself too.

    Shapes: x `(N, *shape)`, y `(M, *shape)`. Units: none, 0 to sqrt(2).

    Args:
        width: of the middle kernel, in units of x; None for sqrt(trace of the covariance of both sets together).

    Raises:
        InputError: if the events differ, a set is empty, or holds NaN or infinite values; if all rows are equal, or the
            width is not positive.
    """
    x, y = checked(x, y)
    if width is None:
        width = torch.cat([x, y]).var(0, correction=0).sum().sqrt().item()
    if not 0 < width < math.inf:
        raise InputError(f"the width of a kernel must be positive, not {width} (all rows may be equal)")
    widest = -0.5 / (width * 2 ** (OCTAVES // 2)) ** 2

    def kernel(distance: Tensor) -> Tensor:
        power = distance.square().mul_(widest).exp_()
        total = power.clone()
        for _ in range(OCTAVES - 1):  # half the width is the fourth power
            total += power.square_().square_()
        return total.div_(OCTAVES)

    def mean(a: Tensor, b: Tensor) -> float:
        return mean_over_pairs(a, b, kernel)

    return max(mean(x, x) + mean(y, y) - 2 * mean(x, y), 0.0) ** 0.5
