"""Couplings that keep the source and relax the data: rows that cost too much are used less, or not at all.

They are for data with outliers. They are the only couplings that may drop data rows and use others twice: the
distribution of the data ends is not that of the data. Every source row is kept, since sampling starts from the
distribution of the source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from flowgen.core import InputError, Pair
from flowgen.couplings.exact import check_group, rematched, transport_cost
from flowgen.couplings.sinkhorn import Entropic, Plan, check_stop, coupled, mean_cost, permutation, sinkhorn

__all__ = ["Partial", "Unbalanced"]


@final
@dataclass(frozen=True)
class Partial:
    """Exact partial optimal transport (arXiv 2002.08276): the most expensive data rows may be left out.

    P = argmin <P, cost> over plans whose rows sum to 1/n and whose columns sum to at most 1/(mass n): a share of up to
    1 - mass of the data is left out, and the rest makes up for it. Each source row draws its data row from P given the
    row, and a data row that is expected c times is used floor(c) or ceil(c) times. With mass 1 it is ExactOT.

    Args:
        mass: the least share of the data that is used, in (0, 1].
        group: solve for each run of `group` rows apart, as ExactOT does.

    Raises:
        InputError: unless 0 < mass <= 1; if the ends differ in their number of rows, or hold NaN or infinite values.
    """

    mass: float = 0.9
    group: int = 128

    def __post_init__(self) -> None:
        check_group(self.group)
        if not 0 < self.mass <= 1:
            raise InputError(f"partial transport needs a mass over 0 and at most 1, not {self.mass}")

    def __call__(self, pair: Pair, generator: torch.Generator) -> Pair:
        return rematched(pair, self.group, lambda x0, x1: _drawn(self.plan(x0, x1), generator))

    def plan(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Return the plan of all rows as one group, `(B, B)`; x0 and x1 `(B, *shape)`."""
        return partial_plan(transport_cost(x0, x1), self.mass)


ROUNDING = 1e-9
"""A smaller part of a row is the rounding of the simplex, and would tie rows and columns that share nothing."""


def partial_plan(cost: Tensor, mass: float) -> Tensor:
    """Return argmin <P, cost> over plans `(n, n)` whose rows sum to 1/n and whose columns sum to at most 1/(mass n).

    A source point that costs nothing takes what the columns have left. The support of P is a forest.

    Raises:
        InputError: if a cost is NaN or infinite.
    """
    import ot

    if not cost.isfinite().all():
        raise InputError("cannot couple rows that hold NaN or infinite values")
    n = len(cost)
    room = min(1 / mass, n)  # no column can get more than all rows have
    rows, columns = np.append(np.full(n, 1 / n), room - 1), np.full(n, room / n)
    with_rest = np.vstack([cost.double().numpy(), np.zeros(n)])
    # 10^7 pivots are out of reach for any batch, and a failure is told by POT itself, with a UserWarning
    shares = n * ot.emd(rows, columns, with_rest, numItermax=10**7)[:n]
    shares[shares < ROUNDING] = 0
    return torch.from_numpy(shares / (n * shares.sum(1, keepdims=True)))


def _drawn(plan: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the column of each row, `(n,)`, from a plan whose support is a forest of rows and columns.

    A circle of length 1 is divided among the columns of each row, by n times the plan, so that the arcs of a column in
    its several rows follow one another. One point of the circle, drawn for each tree, names the column of each row:
    with the probability that the plan asks for, and each column as often as its arcs go round, rounded up or down.
    """
    shares = len(plan) * plan.numpy()
    starts, tree = _arcs(shares)
    points = torch.rand(len(plan), generator=generator, dtype=torch.float64).numpy()[tree]
    since = (points[:, None] - starts) % 1.0
    return torch.from_numpy(np.where(shares > 0, since, np.inf).argmin(1))  # the arc that began last before the point


def _arcs(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the arc of each row and column starts, `(n, n)`, and the number of the first row of each row's tree.

    Arcs of a row, and arcs of a column, follow one another, from the one by which the tree reached it.
    """
    n = len(shares)
    edges, starts, tree = _edges(shares), np.zeros_like(shares), np.full(2 * n, -1)
    for root in range(n):
        waiting = [(root, 0.0)] if tree[root] < 0 else []
        while waiting:
            node, place = waiting.pop()
            tree[node] = root
            for child, edge in edges[node]:
                if tree[child] < 0:
                    starts[edge] = place
                    place += shares[edge]
                    waiting.append((child, place))
    return starts, tree[:n]


def _edges(shares: np.ndarray) -> list[list[tuple[int, tuple[int, int]]]]:
    """Return, for rows 0 to n - 1 and columns n to 2 n - 1 of a plan, the neighbours and the entry that joins them."""
    edges: list[list[tuple[int, tuple[int, int]]]] = [[] for _ in range(2 * len(shares))]
    for row, column in np.argwhere(shares).tolist():
        edges[row].append((len(shares) + column, (row, column)))
        edges[len(shares) + column].append((row, (row, column)))
    return edges


@final
@dataclass(frozen=True)
class Unbalanced(Entropic):
    """Entropic optimal transport that holds the source and relaxes the data (arXiv 1607.05816, 2311.15100).

    P = argmin <P, cost> - epsilon H(P) + penalty KL(columns | uniform) over plans whose rows sum to 1/n: a data row
    whose potential is g is used exp(-g / penalty) times as often. Each data row is used floor(c) or ceil(c) times, with
    mean c = n sum_i P_ij; rows are then matched with what is used as by `Sinkhorn`, so that each draws its data row
    nearly from P given the row. With an infinite penalty P is the plan of `sinkhorn`.

    Args:
        epsilon: regularisation, relative to the median cost of the group, which outliers do not move.
        penalty: of the divergence of data from uniform, relative to the median cost; the less, the more is left out.
        tolerance: the marginal error at which a plan has converged.
        iterations: after so many updates an unconverged plan is used, with a RuntimeWarning that states its error.
        group: solve for each run of `group` rows apart, as ExactOT does.

    Raises:
        InputError: if epsilon, the penalty or the tolerance is not positive, or there is no iteration; if the ends
            differ in their number of rows, or hold NaN or infinite values.
    """

    epsilon: float = 0.05
    penalty: float = 3.0
    tolerance: float = 1e-3
    iterations: int = 2000
    group: int = 128

    def __post_init__(self) -> None:
        check_group(self.group)
        check_stop(self.tolerance, self.iterations)
        if not 0 < self.epsilon < math.inf or not self.penalty > 0:
            raise InputError(
                f"unbalanced transport needs a positive epsilon and penalty, not {self.epsilon} and {self.penalty}"
            )

    def __call__(self, pair: Pair, generator: torch.Generator) -> Pair:
        return coupled(pair, self.group, self.plans, _matched, generator)

    def plans(self, cost: Tensor) -> Plan:
        epsilon = self.epsilon * _median_cost(cost)
        return sinkhorn(cost, epsilon, self.tolerance, self.iterations, slack=self.epsilon / self.penalty)


def _median_cost(cost: Tensor) -> Tensor:
    """Return the median cost of each group, `(G, 1, 1)`; the mean where that is 0."""
    median = cost.flatten(1).median(1).values.reshape(-1, 1, 1)
    return median.where(median > 0, mean_cost(cost))


def _matched(log_plan: Tensor, generator: torch.Generator) -> Tensor:
    """Return the column of each row, `(G, n)`: draw how often each is used first, then which rows use it."""
    groups, n, _ = log_plan.shape
    used = _counts(n * log_plan.exp().sum(1).cpu(), generator)
    columns = torch.arange(n).repeat(groups).repeat_interleave(used.flatten()).view(groups, n)
    # factors of columns, as the number of times that each is used, change nothing in the distribution of a permutation
    order = permutation(log_plan.cpu().gather(2, columns.unsqueeze(1).expand(-1, n, -1)), generator)
    return columns.gather(1, order)


def _counts(means: Tensor, generator: torch.Generator) -> Tensor:
    """Draw whole numbers `(G, n)`, each the mean rounded up or down at random, that sum to n as the means do."""
    ends = means.cumsum(1)
    ends[:, -1] = means.shape[1]  # and not nearly
    point = torch.rand(len(means), 1, generator=generator, dtype=torch.float64)
    return (ends + point).floor().diff(dim=1, prepend=torch.zeros_like(point)).long()
