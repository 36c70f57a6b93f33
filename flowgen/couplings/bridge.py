"""The coupling of the Schroedinger bridge between the source and the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowgen.core import InputError, Pair
from flowgen.couplings.exact import check_group
from flowgen.couplings.sinkhorn import Entropic, Plan, check_stop, coupled, permutation, sinkhorn

__all__ = ["SchroedingerBridge"]


@final
@dataclass(frozen=True)
class SchroedingerBridge(Entropic):
    """The ends of the Schroedinger bridge whose reference is sigma times a Brownian motion (arXiv 2106.01357).

    They are the entropic plan of the squared distance with epsilon = 2 sigma^2, for which exp(-|x0 - x1|^2 / epsilon)
    is the transition density of the reference from time 0 to 1. With `BrownianBridge(sigma)` between its ends it is
    the whole bridge: SB-CFM (arXiv 2302.00482). Pairs are a permutation drawn from the plan, as by `Sinkhorn`, whose
    epsilon is relative to the mean cost; here it is absolute. As sigma -> 0 it is ExactOT, as sigma -> infinity a
    random permutation.

    Args:
        sigma: noise of the reference, in the units of the ends.
        tolerance: the marginal error at which a plan has converged.
        iterations: after so many updates an unconverged plan is used, with a RuntimeWarning that states its error.
        group: solve for each run of `group` rows apart, as ExactOT does.

    Raises:
        InputError: if sigma or the tolerance is not positive, or there is no iteration; if the ends differ in their
            number of rows, or hold NaN or infinite values.
    """

    sigma: float = 1.0
    tolerance: float = 1e-3
    iterations: int = 2000
    group: int = 128

    def __post_init__(self) -> None:
        check_group(self.group)
        check_stop(self.tolerance, self.iterations)
        if not 0 < self.sigma < math.inf:
            raise InputError(f"a Schroedinger bridge needs a positive sigma, not {self.sigma}")

    def __call__(self, pair: Pair, generator: torch.Generator) -> Pair:
        return coupled(pair, self.group, self.plans, permutation, generator)

    def plans(self, cost: Tensor) -> Plan:
        return sinkhorn(cost, 2 * self.sigma**2, self.tolerance, self.iterations)
