"""Distances between the features of two sets, by their first moments: the figures of the image papers."""

from __future__ import annotations

import torch
from torch import Tensor

from flowgen.metrics.pairwise import checked, per_block

__all__ = ["frechet_distance", "kernel_distance"]


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Return the squared 2-Wasserstein distance of the Gaussians with the means and covariances of both sets,

    FD = |m - n|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2)),

    which is the FID where the features are Inception's (arXiv 1706.08500). It is biased upward, by
    the square of the number of features over the number of rows: compare only figures of equally many rows.

    Shapes: x `(N, *shape)`, y `(M, *shape)`. Units: squared ones of x.

    Raises:
        InputError: for fewer than 2 rows, different events, NaN or infinite values.
    """
    x, y = checked(x, y, rows=2)
    a, b = _factor(x), _factor(y)
    # tr (A^(1/2) B A^(1/2))^(1/2) is the nuclear norm of a b^T, in which no root of a rounding error is taken
    cross = torch.linalg.matrix_norm(a @ b.T, "nuc")
    distance = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * cross
    return max(distance.item(), 0.0)


def _factor(x: Tensor) -> Tensor:
    """Return R, of no more rows than columns, with R^T R the covariance of x."""
    return torch.linalg.qr((x - x.mean(0)) / (len(x) - 1) ** 0.5, mode="r").R


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Return the squared MMD of the cubic kernel k(x, y) = (x.y / d + 1)^3, without the bias of the sets' size,

    KD = mean over i != j of k(x_i, x_j) + the same of y - 2 mean over all i, j of k(x_i, y_j),

    which is the KID where the features are Inception's (arXiv 1801.01401). Its mean is 0 for equal distributions, so it
    may come out negative.

    Shapes: x `(N, *shape)`, y `(M, *shape)`.

    Raises:
        InputError: for fewer than 2 rows, different events, NaN or infinite values.
    """
    x, y = checked(x, y, rows=2)
    within = sum((_kernel_sum(z, z) - _cubic((z * z).sum(1), z.shape[1]).sum().item()) / _pairs(z) for z in (x, y))
    return within - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def _cubic(product: Tensor, dim: int) -> Tensor:
    return (product / dim + 1) ** 3


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    return sum(_cubic(part @ y.T, x.shape[1]).sum().item() for part in x.split(per_block(len(y))))


def _pairs(x: Tensor) -> int:
    return len(x) * (len(x) - 1)
