"""Nearly exact optimal transport of many rows at once, coarse to fine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from flowgen.core import InputError, Pair, generator
from flowgen.couplings.exact import assign, check_group, classes, rematched, squared_distances, transport_cost

__all__ = ["Anchors", "MultiscaleOT", "anchored"]

EXACT_UP_TO = 1024
"""Rows that are cheap enough to solve exactly: 70 ms on one CPU core."""

PREPARED = 24_576
"""At most so many rows are drawn to learn what leads all batches."""

ANCHORS, SPREAD = 1536, 8
"""At most so many of them are anchors, a second of work in 8 dimensions, where twice as many take seven for pairs that
cost 1 % less; each is chosen from so many rows at least."""

TREE_BELOW = 4
"""Dimensions in which a tree finds the nearest anchor fast, and it leads as well as the dual potentials do. There all
rows that are drawn become anchors: nearly exact pairs lead as well as few exact ones, and are sooner found."""

SWEEPS = 2
"""Of those pairs. They take half a second, where 3072 exact anchors take six for pairs that cost 0.4 % less at most."""

OWN = 0.1
"""How much the place of a row counts beside that of its anchor: the rows of one anchor keep their order. Of 0, 0.01 and
0.1 the last gave the least costs, in 2 to 8 dimensions."""


class Anchors(NamedTuple):
    """An exact solution for some rows, which guides that of more.

    Shapes: x0 and x1 `(m, d)`, row i of one coupled with row i of the other; potentials g `(m,)` of the rows of x1,
    from the dual problem: max mean(f) + mean(g) where f_i + g_j <= |x0_i - x1_j|^2; None below `TREE_BELOW` dimensions,
    where nobody reads them.
    """

    x0: Tensor
    x1: Tensor
    potentials: Tensor | None = None

    def lead(self, x: Tensor) -> Tensor:
        """Return approximately where optimal transport takes source points `(n, d)`."""
        index = self._nearest(x) if x.shape[1] < TREE_BELOW else self._cells(x)
        return self.x1[index] + OWN * (x - self.x0[index])

    def _nearest(self, x: Tensor) -> Tensor:
        from scipy.spatial import cKDTree

        return torch.from_numpy(cKDTree(self.x0.numpy()).query(x.numpy())[1])

    def _cells(self, x: Tensor) -> Tensor:
        """Return argmin_j |x - x1_j|^2 - g_j, some rows at a time: all distances at once would be a gigabyte."""
        assert self.potentials is not None
        height = self.x1.square().sum(1) - self.potentials
        return torch.cat([torch.addmm(height, rows, self.x1.T, alpha=-2).argmin(1) for rows in x.split(1024)])


def anchored(x0: Tensor, x1: Tensor) -> Anchors:
    """Solve the transport of rows `(m, d)` exactly (POT's network simplex)."""
    import ot

    weights, cost = np.full(len(x0), 1 / len(x0)), transport_cost(x0, x1).numpy()
    # 10^7 pivots are out of reach: the simplex ends at an optimum, whose plan is a permutation
    plan, log = ot.emd(weights, weights, cost, numItermax=10**7, log=True)
    index = torch.from_numpy(plan.argmax(1))
    return Anchors(x0, x1[index], torch.from_numpy(log["v"]).to(x1)[index])


@final
@dataclass(frozen=True)
class MultiscaleOT:
    """Optimal transport for the squared distance, between more rows than can be solved exactly.

    Some rows, evenly spread, are solved exactly: the anchors. They say about where each source row goes. There both
    sets are halved again and again, at the median of a random direction, until at most `leaf` rows of each are left;
    these are paired exactly. Then the pairs are divided anew by where they end, `sweeps` times, and each part is solved
    again, which never raises the cost. Up to 1024 rows are solved exactly as they are. No pairs cost more than those
    that came.

    In the plane, the pairs of 51,200 rows cost less than exact transport in groups of 512, for a sixth of the time;
    in 4 or 8 dimensions about as much, for a third of it. Rows with labels are paired anew within each class.

    Args:
        group: solve for each run of `group` rows apart; 0 solves for all rows together.
        leaf: the most rows of the last exact problems.
        sweeps: how often the pairs are divided and solved once more.

    Raises:
        InputError: if the ends differ in their number of rows, or hold NaN or infinite values.
    """

    group: int = 0
    leaf: int = 32
    sweeps: int = 0

    def __post_init__(self) -> None:
        check_group(self.group)
        if not 2 <= self.leaf <= EXACT_UP_TO or self.sweeps < 0:
            bounds = f"leaf must be from 2 to {EXACT_UP_TO} and sweeps at least 0"
            raise InputError(f"{bounds}, not {self.leaf} and {self.sweeps}")

    def __call__(self, pair: Pair, generator: torch.Generator) -> Pair:
        return rematched(pair, self.group, lambda x0, x1: self._matched(x0, x1, None, generator))

    def prepared(self, rows: int, draw: Callable[[int], Pair]) -> MultiscaleOT | _Led:
        """Return the same coupling, with anchors that lead all its batches of so many rows.

        Where there are labels, or few rows, each batch has anchors of its own.
        """
        rows = min(rows, self.group or rows)
        if rows <= EXACT_UP_TO:
            return self
        pair = draw(min(PREPARED, rows))
        if len(classes(pair)) > 1:
            return self
        return _Led(self, _leading(_rows(pair.x0), _rows(pair.x1), generator(0, "anchors")))

    def _matched(self, x0: Tensor, x1: Tensor, anchors: Anchors | None, generator: torch.Generator) -> Tensor:
        """Return the permutation for some rows."""
        if len(x0) <= EXACT_UP_TO:
            return assign(transport_cost(x0, x1))
        x, y = _rows(x0), _rows(x1)
        led = (anchors or _anchors(x, y, min(EXACT_UP_TO, len(x) // 4), generator)).lead(x)
        levels = max(0, math.ceil(math.log2(len(x) / self.leaf)))
        order_x, order_y = _divided([led, y], levels, generator)
        found = _solved(x, y, order_x, order_y, 2**levels)
        # pairs that were coupled before may be better as they are
        permutation = min(torch.arange(len(x)), found, key=lambda to: float((x - y[to]).square().sum()))
        for _ in range(self.sweeps):
            ends = y[permutation]
            (order,) = _divided([ends], levels, generator)
            permutation = _solved(x, y, order, permutation[order], 2**levels)
        return permutation


@final
@dataclass(frozen=True)
class _Led:
    """A multiscale coupling whose anchors are known."""

    coupling: MultiscaleOT
    anchors: Anchors

    @property
    def group(self) -> int:
        return self.coupling.group

    def __call__(self, pair: Pair, generator: torch.Generator) -> Pair:
        match = self.coupling._matched
        return rematched(pair, self.group, lambda x0, x1: match(x0, x1, self.anchors, generator))


def _rows(x: Tensor) -> Tensor:
    """Return rows `(n, d)` float32 about their mean, which changes no pair: rounding is that of the spread, not of the
    offset.

    Raises:
        InputError: if a value is NaN or infinite.
    """
    x = x.detach().flatten(1).cpu().to(torch.promote_types(x.dtype, torch.float32))
    x = (x - x.mean(0)).float()
    if not x.isfinite().all():
        raise InputError("cannot couple rows that hold NaN or infinite values")
    return x


def _leading(x: Tensor, y: Tensor, generator: torch.Generator) -> Anchors:
    """Return the anchors that lead all batches, of rows that were drawn for it."""
    if x.shape[1] >= TREE_BELOW:
        return _anchors(x, y, min(ANCHORS, len(x) // SPREAD), generator)
    few = _anchors(x, y, min(EXACT_UP_TO, len(x) // 4), generator, _paired)
    return Anchors(x, y[MultiscaleOT(sweeps=SWEEPS)._matched(x, y, few, generator)])


def _paired(x0: Tensor, x1: Tensor) -> Anchors:
    """Solve the transport of rows about their mean exactly, without potentials, by scipy: POT would take longer to
    import.
    """
    from scipy.optimize import linear_sum_assignment

    # less potentials the costs have the same solution; it is found in a quarter of the time with those of the linear
    # map A between Gaussian distributions of these covariances, |x|^2 - x A x
    cov0, cov1 = (torch.atleast_2d(x.double().T.cov()) for x in (x0, x1))
    root = _root(cov0)
    back = torch.linalg.pinv(root, hermitian=True)
    linear = back @ _root(root @ cov1 @ root) @ back
    cost = transport_cost(x0, x1) - (x0 * (x0 - x0 @ linear.to(x0))).sum(1, keepdim=True)
    cost -= cost.min(0).values
    cost -= cost.min(1, keepdim=True).values
    return Anchors(x0, x1[torch.from_numpy(linear_sum_assignment(cost.numpy())[1])])


def _root(matrix: Tensor) -> Tensor:
    """Return the square root of a covariance `(d, d)`."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _anchors(
    x: Tensor, y: Tensor, m: int, generator: torch.Generator, solve: Callable[[Tensor, Tensor], Anchors] = anchored
) -> Anchors:
    """Return the anchors of m rows of each set: one from each of m cells of equal size.

    So spread, they leave hardly anything of the luck of m random rows, whose masses differ from place to place by a
    share of 1 / sqrt(m): on moons to 8gaussians the cost of pairs varied by 3 % with that, and by 0.3 % without.
    """
    levels = math.ceil(math.log2(m))
    orders = [_divided([z], levels, generator)[0] for z in (x, y)]
    middle = (torch.arange(m) * len(x) + len(x) // 2) // m
    return solve(*(z[order[middle]] for z, order in zip((x, y), orders, strict=True)))


def _cells(n: int, parts: int) -> Tensor:
    """Return the part of each of n places `(n,)`: the sizes of the parts differ by at most one."""
    return torch.arange(n) * parts // n


def _divided(sets: list[Tensor], levels: int, generator: torch.Generator) -> list[Tensor]:
    """Return the rows of each set `(n, d)`, in the order of parts that are found by halving `levels` times.

    All sets are cut along the same directions, each at its own medians, so that their parts have the same sizes.
    """
    n, d = sets[0].shape
    orders = [torch.arange(n) for _ in sets]
    for level in range(levels):
        part = _cells(n, 2**level)
        directions = torch.randn(2**level, d, generator=generator)[part]
        orders = [order[_ranked((x[order] * directions).sum(1), part)] for x, order in zip(sets, orders, strict=True)]
    return orders


def _ranked(values: Tensor, part: Tensor) -> Tensor:
    """Return the order of rows by part, then by value."""
    order = values.argsort(stable=True)
    return order[part[order].argsort(stable=True)]


def _solved(x: Tensor, y: Tensor, order_x: Tensor, order_y: Tensor, parts: int) -> Tensor:
    """Return the permutation that is optimal within each part: runs of rows of x and of y in these orders."""
    from scipy.optimize import linear_sum_assignment

    permutation = torch.empty(len(x), dtype=torch.int64)
    sizes = _cells(len(x), parts).bincount(minlength=parts)
    starts = sizes.cumsum(0) - sizes
    for size in sizes.unique().tolist():  # one or two sizes: the parts of each are one tensor
        rows = starts[sizes == size].unsqueeze(1) + torch.arange(size)
        i, j = order_x[rows], order_y[rows]
        costs = squared_distances(x[i], y[j]).numpy()
        best = torch.from_numpy(np.stack([linear_sum_assignment(cost)[1] for cost in costs]))
        permutation[i] = j.gather(1, best)
    return permutation
