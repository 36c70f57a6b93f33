"""Couplings that need no regularisation: the independent one, and exact optimal transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from flowgen.core import Choices, InputError, Pair
from flowgen.registry import Objects

__all__ = [
    "COUPLINGS",
    "Coupling",
    "ExactOT",
    "Independent",
    "Reporting",
    "assign",
    "check_group",
    "classes",
    "rematched",
    "squared_distances",
    "transport_cost",
    "widest",
]


class Coupling(Protocol):
    """A pairing of source with data: takes a batch of ends and returns the same ends, paired anew.

    Source rows keep their place; data rows move with their condition. No row is dropped or used twice, but by the
    couplings that are for that (`relaxed`).
    """

    def __call__(self, pair: Pair, generator: torch.Generator) -> Pair: ...


COUPLINGS: Choices[Coupling] = Choices("coupling", Callable, Objects("coupling", "", "drawn"))


@runtime_checkable
class Reporting(Coupling, Protocol):
    """A coupling that reports how good its plan is."""

    def diagnostics(self, x0: Tensor, x1: Tensor, cond: Tensor | None = None) -> dict[str, float]:
        """Return figures by their names, of the plan for a batch of ends `(B, *shape)`."""
        ...


@final
@dataclass(frozen=True)
class Independent:
    """The pairs unchanged: x0 and x1 drawn independently stay independent."""

    def __call__(self, pair: Pair, generator: torch.Generator) -> Pair:
        return pair


@final
@dataclass(frozen=True)
class ExactOT:
    """Exact minibatch optimal transport for the squared distance (arXiv 2302.00482, 2304.14772).

    pi = argmin over permutations of sum_i |x0_i - x1_pi(i)|^2, and x0_i is paired with x1_pi(i). Rows with labels are
    paired anew within each class.

    Args:
        group: solve for each run of `group` rows apart; 0 solves for all rows together. The time grows with the cube
            of the group, while the transport cost falls ever more slowly: beyond 1024 rows take MultiscaleOT.

    Raises:
        InputError: if the group is larger than 8192; if the ends differ in their number of rows, or hold NaN or
            infinite values.
    """

    group: int = 512

    def __post_init__(self) -> None:
        check_group(self.group)
        if self.group > LARGEST:
            raise InputError(
                f"exact transport solves at most {LARGEST} rows together, not {self.group}: see multiscale"
            )

    def __call__(self, pair: Pair, generator: torch.Generator) -> Pair:
        return rematched(pair, self.group, lambda x0, x1: assign(transport_cost(x0, x1)))


def check_group(group: int) -> None:
    """Refuse a negative group with InputError."""
    if group < 0:
        raise InputError(f"group must be a number of rows, or 0 for all, not {group}")


def rematched(pair: Pair, group: int, match: Callable[[Tensor, Tensor], Tensor]) -> Pair:
    """Return the pair with its data rows, and their conditions, permuted by `match(x0, x1)` within each group of rows.

    Rows with labels, a condition `(B,)` of whole numbers, are permuted within their class: else the source of a class
    would not be the source that sampling draws from (arXiv 2503.10636).
    """
    if len(pair.x0) != len(pair.x1):
        raise InputError(f"a coupling needs as many source as data rows, not {len(pair.x0)} and {len(pair.x1)}")
    index = torch.empty(len(pair.x1), dtype=torch.int64)
    for rows in classes(pair):
        for block in rows.split(group or len(rows)):
            index[block] = block[match(pair.x0[block], pair.x1[block]).cpu()]
    return Pair(pair.x0, pair.x1[index], None if pair.cond is None else pair.cond[index])


def classes(pair: Pair) -> list[Tensor]:
    """Return the numbers of the rows of each class; all rows, where the condition is not a label."""
    if pair.cond is None or pair.cond.ndim != 1 or pair.cond.is_floating_point():
        return [torch.arange(len(pair.x1))]
    labels = pair.cond.cpu()
    return [(labels == label).nonzero().squeeze(1) for label in labels.unique()]


def transport_cost(x0: Tensor, x1: Tensor) -> Tensor:
    """Return the squared distances |x0_i - x1_j|^2, `(B, B)` float64 on the CPU.

    Shapes: x0 and x1 `(B, *shape)`.

    Raises:
        InputError: if the ends differ in their number of rows.
    """
    if len(x0) != len(x1):
        raise InputError(f"a coupling needs as many source as data rows, not {len(x0)} and {len(x1)}")
    return squared_distances(*(z.flatten(1).cpu() for z in (x0, x1)))


def widest(device: torch.device) -> torch.dtype:
    """Return the widest float type of a device: float64, but float32 on mps."""
    return torch.float32 if device.type == "mps" else torch.float64


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return |x_i - y_j|^2 on the device of y: x `(..., n, d)` and y `(..., m, d)` to `(..., n, m)`.

    Raises:
        InputError: for more rows than memory has room for.
    """
    if max(x.shape[-2], y.shape[-2]) > LARGEST:
        raise InputError(f"at most {LARGEST} rows are solved together, not {y.shape[-2]}: give a smaller group")
    x, y = (z.detach().to(y.device, widest(y.device)) for z in (x, y))
    centre = y.mean(-2, keepdim=True)  # distances do not change, and rounding is that of the spread, not of the offset
    x, y = x - centre, y - centre
    squares = x.square().sum(-1, keepdim=True) + y.square().sum(-1).unsqueeze(-2)
    return torch.sub(squares, x @ y.mT, alpha=2).clamp_(min=0)


LARGEST = 8192
"""Rows of the largest group: a matrix of 0.5 GB, and half a minute."""

SCIPY_BELOW = 64
"""Below this many rows scipy's assignment is faster than POT's network simplex (both timed on 2 CPU cores, 2 to 64
dimensions: 0.05 against 0.10 ms at 32 rows, 1.7 against 0.8 ms at 128, 60 against 16 ms at 512)."""


def assign(cost: Tensor) -> Tensor:
    """Return the permutation pi `(B,)` with the least sum_i cost[i, pi(i)]; cost `(B, B)`.

    Raises:
        InputError: if a cost is NaN or infinite.
    """
    if not cost.isfinite().all():
        raise InputError("cannot couple rows that hold NaN or infinite values")
    values = cost.double().numpy()
    return torch.from_numpy(_scipy(values) if len(values) < SCIPY_BELOW else _simplex(values))


def _scipy(cost: np.ndarray) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(cost)[1]


def _simplex(cost: np.ndarray) -> np.ndarray:
    """Return the permutation of POT's network simplex: a vertex of the transport polytope with equal weights is one."""
    import ot

    weights = np.full(len(cost), 1 / len(cost))
    # 10^7 pivots are out of reach for any batch: the simplex ends at the optimum, which is checked below
    plan, log = ot.emd(weights, weights, cost, numItermax=10**7, log=True)
    index = plan.argmax(1)
    optimal = log["warning"] is None and np.array_equal(np.sort(index), np.arange(len(index)))
    return index if optimal else _scipy(cost)
