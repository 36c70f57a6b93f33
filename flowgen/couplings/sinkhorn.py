"""Entropic optimal transport in the log domain."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from flowgen.core import InputError, Pair
from flowgen.couplings.exact import assign, check_group, rematched, transport_cost

__all__ = ["Plan", "Sinkhorn", "sinkhorn"]


class Plan(NamedTuple):
    """A transport plan between two uniform marginals.

    log_plan: `(B, B)`, log of the plan, whose entries sum to 1.
    error: sum_i |sum_j plan_ij - 1/B| + sum_j |sum_i plan_ij - 1/B|, the marginal error.
    iterations: updates of both potentials.
    """

    log_plan: Tensor
    error: float
    iterations: int


def sinkhorn(cost: Tensor, epsilon: float, tolerance: float = 1e-3, iterations: int = 2000) -> Plan:
    """The entropic plan argmin <P, cost> - epsilon H(P) with uniform marginals (arXiv 1306.0895), in the log domain.

    P_ij = exp((f_i + g_j - cost_ij) / epsilon), f and g updated in turn until the marginal error is under `tolerance`.

    Shapes: cost `(B, B)`, any device; epsilon in the units of the cost.
    """
    n, scaled = len(cost), -cost / epsilon
    f = g = cost.new_zeros(n)
    error = math.inf
    for iteration in range(1, iterations + 1):
        f = -torch.logsumexp(scaled + g, dim=1) - math.log(n)
        columns = torch.logsumexp(scaled + f.unsqueeze(1), dim=0)
        # the rows are exact after the update of f: the columns hold the whole error
        error = float(((columns + g).exp() - 1 / n).abs().sum())
        if error < tolerance or iteration == iterations:
            break
        g = -columns - math.log(n)
    return Plan(scaled + f.unsqueeze(1) + g, error, iteration)


@final
@dataclass(frozen=True)
class Sinkhorn:
    """Entropic optimal transport coupling (arXiv 1306.0895, 2302.00482).

    A permutation drawn from the plan: with Gumbel noise G, pi = argmax sum_i log plan[i, pi(i)] + G[i, pi(i)]. Where no
    two rows want the same column this draws each row from its conditional law; where they do, the one that loses takes
    its next best, and no point is dropped. As epsilon -> 0 it is ExactOT, as epsilon -> infinity a random permutation.

    Args:
        epsilon: regularisation, relative to the mean cost of the group.
        tolerance: the marginal error at which the plan has converged.
        iterations: after so many updates an unconverged plan is used, with a RuntimeWarning that states its error.
        group: solve for each run of `group` rows apart, as ExactOT does.
    """

    epsilon: float = 0.05
    tolerance: float = 1e-3
    iterations: int = 2000
    group: int = 128

    def __post_init__(self) -> None:
        check_group(self.group)
        if not 0 < self.epsilon < math.inf or not self.tolerance > 0 or self.iterations < 1:
            raise InputError("Sinkhorn needs a positive epsilon and tolerance, and at least one iteration")

    def plan(self, x0: Tensor, x1: Tensor) -> Plan:
        """The plan of a batch, with its marginal error; x0 and x1 `(B, *event)`."""
        cost = transport_cost(x0, x1)
        # equal points everywhere make the mean cost 0, and any plan optimal: the unit of epsilon is then free
        scale = float(cost.mean()) or 1.0
        return sinkhorn(cost, self.epsilon * scale, self.tolerance, self.iterations)

    def __call__(self, pair: Pair, generator: torch.Generator) -> Pair:
        return rematched(pair, self.group, lambda x0, x1: self._drawn(self.plan(x0, x1), generator))

    def _drawn(self, plan: Plan, generator: torch.Generator) -> Tensor:
        """A permutation drawn from a plan."""
        if plan.error >= self.tolerance:
            warnings.warn(
                f"Sinkhorn stopped after {plan.iterations} iterations with a marginal error of {plan.error:.2g}, "
                f"over the tolerance of {self.tolerance:.2g}: raise iterations or epsilon",
                RuntimeWarning,
                stacklevel=2,
            )
        uniform = torch.rand(plan.log_plan.shape, generator=generator, dtype=torch.float64)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))  # rand may be exactly 0, whose log is -inf
        return assign(-(plan.log_plan + gumbel))
