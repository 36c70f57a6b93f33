"""Measures by nearest neighbours: whether samples look like data, cover the data, or copy it.

What is kept of a block is written into tensors made before: small ones that stay, allocated between blocks that go,
would hold the memory of the blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flowgen.core import InputError
from flowgen.metrics.pairwise import checked, distances

__all__ = ["Manifold", "Nearest", "copies", "manifold", "nearest", "nearest_ratio"]


class Manifold(NamedTuple):
    """Precision, recall, density and coverage of two sets, by balls around their rows that reach to the k-th neighbour.

    precision: share of samples inside the ball of some data row: are they plausible? (arXiv 1904.06991)
    recall: share of data rows inside the ball of some sample: can the model make them? (arXiv 1904.06991)
    density: data balls around a sample, in the mean, over k: as precision, but not fooled by one far data row; 1 for
        equal distributions, and may exceed it (arXiv 2002.09797)
    coverage: share of data rows with a sample inside their ball: are any modes left out? (arXiv 2002.09797)
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(x: Tensor, data: Tensor, k: int = 5) -> Manifold:
    """Return precision, recall, density and coverage of samples x against data, by k-th nearest neighbours.

    Shapes: x `(N, *shape)`, data `(M, *shape)`, or features of both.

    Raises:
        InputError: unless both sets have more than k >= 1 rows, of one shape, without NaN or infinite values.
    """
    if k < 1 or min(len(x), len(data)) <= k:
        raise InputError(f"{k} neighbours need more rows than that, not {len(x)} samples and {len(data)} rows of data")
    x, data = checked(x, data)
    reach, reach_data = _reach(x, k), _reach(data, k)
    inside = torch.zeros(len(x), dtype=torch.float64, device=x.device)  # data balls around each sample
    recalled, covered = torch.empty(2, len(data), dtype=torch.bool, device=x.device)
    for rows, block in distances(data, x):
        balls = block <= reach_data[rows].unsqueeze(1)
        inside += balls.sum(0)
        covered[rows] = balls.any(1)
        recalled[rows] = (block <= reach).any(1)
    return Manifold(
        precision=_share(inside > 0),
        recall=_share(recalled),
        density=inside.mean().item() / k,
        coverage=_share(covered),
    )


def _reach(x: Tensor, k: int) -> Tensor:
    """Return the distance of each row to its k-th nearest other row, `(N,)`."""
    reach = x.new_empty(len(x))
    for rows, block in distances(x, x):  # the row itself is the first of k + 1
        reach[rows] = block.kthvalue(k + 1, dim=1).values
    return reach * (1 + 1e-9)  # so that rounding puts no row of the very edge outside


def _share(which: Tensor) -> float:
    return which.double().mean().item()


class Nearest(NamedTuple):
    """The data row nearest to each sample, `(N,)` int64, and d1 / d2, `(N,)` float64 in [0, 1], of the distances to it
    and to the second nearest.
    """

    row: Tensor
    ratio: Tensor


def nearest(x: Tensor, data: Tensor) -> Nearest:
    """Return the nearest row of data of each sample, and its distance over that of the second nearest: near 0 for a
    copy.

    The ratio is 0 where the nearest is met exactly. Rows of data that are equal count as one, the first.

    Shapes: x `(N, *shape)`, data `(M, *shape)`.

    Raises:
        InputError: for fewer than 2 rows of data that differ, different events, NaN or infinite values.
    """
    x, data = checked(x, data)
    data, number = _distinct(data)
    if len(data) < 2:
        raise InputError(f"a second nearest neighbour needs 2 rows of data that differ, not {len(data)}")
    row, ratio = number.new_empty(len(x)), x.new_empty(len(x))
    for rows, block in distances(x, data):
        two = block.topk(2, dim=1, largest=False).indices
        # by differences: the block's rounding would make up the ratio of a copy
        far = (data[two] - x[rows].unsqueeze(1)).norm(dim=2)
        first, second = far.sort(dim=1).values.unbind(1)
        ratio[rows] = torch.where(first == 0, 0.0, first / second)
        row[rows] = number[two.gather(1, far.argmin(1, keepdim=True)).squeeze(1)]
    return Nearest(row, ratio)


def _distinct(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows, and the number of the first row that equals each."""
    rows, which = x.unique(dim=0, return_inverse=True)
    numbers = torch.arange(len(x), device=x.device)
    return rows, numbers.new_full((len(rows),), len(x)).scatter_reduce(0, which, numbers, "amin")


def nearest_ratio(x: Tensor, data: Tensor) -> Tensor:
    """Return the ratios d1 / d2 of `nearest`, `(N,)`.

    Raises:
        InputError: as `nearest`.
    """
    return nearest(x, data).ratio


def copies(x: Tensor, data: Tensor, threshold: float = 1 / 3) -> float:
    """Return the memorisation ratio: the share of samples whose nearest row of the training data is nearer than
    `threshold` times the second nearest (arXiv 2310.02664). Rows that were not trained on give its floor.

    Raises:
        InputError: as `nearest_ratio`.
    """
    return _share(nearest_ratio(x, data) < threshold)
