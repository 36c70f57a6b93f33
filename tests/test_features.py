"""Distances of features: Gaussians with chosen moments, the kernels of scikit-learn, and a mean without bias."""

from math import comb, sqrt

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel

from flowgen.core import InputError
from flowgen.metrics import frechet_distance, kernel_distance, pairwise, wasserstein2


@pytest.fixture
def gaussian_set(normal):
    """gaussian_set(name, rows, mean, root): a set with exactly that mean, and the covariance root root^T."""

    def make(name, rows, mean, root):
        x = normal(name, rows, root.shape[1])
        x = x - x.mean(0)
        spread = torch.linalg.cholesky(x.T @ x / (rows - 1))
        return mean + torch.linalg.solve(spread, x.T).T @ root.T

    return make


def frechet_by_scipy(m, a, n, b):
    """|m - n|^2 + tr(A + B - 2 sqrt(A B))."""
    m, a, n, b = (z.numpy() for z in (m, a, n, b))
    return float(np.sum((m - n) ** 2) + np.trace(a + b - 2 * np.real(sqrtm(a @ b))))


@pytest.mark.parametrize("dim", [1, 2, 5, 20])
def test_frechet_distance_of_chosen_moments_is_that_of_scipy(gaussian_set, normal, dim):
    (m, a), (n, b) = ((normal(f"mean {name}", dim), normal(f"root {name}", dim, dim)) for name in "xy")
    x, y = gaussian_set("x", 60, m, a), gaussian_set("y", 80, n, b)
    assert frechet_distance(x, y) == pytest.approx(frechet_by_scipy(m, a @ a.T, n, b @ b.T), rel=1e-6)


@pytest.mark.parametrize("dim", [1, 2, 5, 20])
@pytest.mark.parametrize("rank", [None, 1, 0])
def test_frechet_distance_with_common_axes_is_of_widths(gaussian_set, normal, dim, rank):
    """|m - n|^2 + sum (s - r)^2 over the axes, of which x has no width beyond `rank`."""
    axes, _ = torch.linalg.qr(normal("axes", dim, dim))
    s, r = normal("s", dim).abs(), normal("r", dim).abs()
    s[rank:] *= rank is None
    m, n = normal("m", dim), normal("n", dim)
    x, y = gaussian_set("x", 50, m, axes * s), gaussian_set("y", 50, n, axes * r)
    exact = (m - n).square().sum() + (s - r).square().sum()
    assert frechet_distance(x, y) == pytest.approx(exact.item(), rel=1e-6)


def test_frechet_distance_of_few_rows_is_of_their_planes(normal):
    """The cross term is the sum of the singular values of X Y^T, of the centred rows, over the root of both N - 1."""
    x, y = normal("x", 10, 40), normal("y", 14, 40) + 0.3
    a, b = ((z - z.mean(0)) / sqrt(len(z) - 1) for z in (x, y))
    cross = torch.linalg.svdvals(a @ b.T).sum()
    exact = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * cross
    assert frechet_distance(x, y) == pytest.approx(exact.item(), rel=1e-6)
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-5)


def test_frechet_distance_of_equal_rows_is_that_of_two_points():
    x, y = torch.zeros(5, 3), torch.tensor([1.0, 2.0, 2.0]).expand(4, 3)
    assert frechet_distance(x, y) == pytest.approx(9, rel=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_frechet_distance_is_at_most_w2_and_equal_for_a_stretch(normal, dim):
    """Of all sets with given moments the Gaussians are nearest; N - 1 for N in the covariance stretches their part."""
    x, y = normal("x", 80, dim), 1 + 0.5 * normal("y", 80, dim) ** 2
    root = normal("stretch", dim, dim)
    stretched = x @ (root @ root.T + 0.1 * torch.eye(dim)) - 0.7
    for other, equal in ((y, False), (stretched, True)):
        moved = (x.mean(0) - other.mean(0)).square().sum().item()
        bound = moved + 80 / 79 * (wasserstein2(x, other) ** 2 - moved)
        found = frechet_distance(x, other)
        assert found == pytest.approx(bound, rel=1e-7) if equal else 0.1 * bound < found < bound


def test_frechet_distance_sees_nothing_but_two_moments(normal):
    """A set and its mirror through the mean have the same moments, whatever else they differ in."""
    x = normal("x", 50, 3).square()
    assert frechet_distance(x, 2 * x.mean(0) - x) == pytest.approx(0, abs=1e-6)


def kernel_by_sklearn(x, y):
    """Means of (x.y / d + 1)^3, without the diagonals of the sets with themselves."""

    def kernel(a, b):
        return polynomial_kernel(a, b, degree=3, gamma=1 / a.shape[1], coef0=1)

    def within(a):
        return kernel(a, a)[~np.eye(len(a), dtype=bool)].mean()

    return within(x) + within(y) - 2 * kernel(x, y).mean()


@pytest.mark.parametrize("dim", [1, 2, 5, 30])
@pytest.mark.parametrize("rows", [50, 33, 2])
def test_kernel_distance_is_that_of_the_kernels_of_scikit_learn(normal, dim, rows):
    x, y = normal("x", 50, dim), 1.3 * normal("y", rows, dim) + 0.2
    assert kernel_distance(x, y) == pytest.approx(kernel_by_sklearn(x.numpy(), y.numpy()), rel=1e-9, abs=1e-9)


@pytest.mark.costly
@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("rows", [(2, 2), (5, 5), (4, 9)])
def test_kernel_distance_has_the_true_one_as_its_mean(normal, shift, rows):
    """In one dimension (x y + 1)^3 = sum over j of comb(3, j) x^j y^j, so that of the laws is a sum over moments."""
    x, y = normal("x", 2000, rows[0], 1), normal("y", 2000, rows[1], 1) + shift
    found = torch.tensor([kernel_distance(*both) for both in zip(x, y, strict=True)])
    moments = (1, 0, 1, 0), (1, shift, 1 + shift**2, 3 * shift + shift**3)
    exact = sum(comb(3, j) * (m - n) ** 2 for j, (m, n) in enumerate(zip(*moments, strict=True)))
    assert abs(found.mean() - exact) < 4 * found.std() / 2000**0.5
    if not shift:
        assert (found < 0).any()


def test_kernel_distance_is_symmetric_and_invariant(normal):
    x, y = normal("x", 50, 4), normal("y", 30, 4) + 1
    turn, _ = torch.linalg.qr(normal("turn", 4, 4))
    for other in (kernel_distance(y, x), kernel_distance(x.flip(0), y), kernel_distance(x @ turn, y @ turn)):
        assert other == pytest.approx(kernel_distance(x, y), rel=1e-9)


def test_kernel_distance_grows_as_one_set_moves_away(normal):
    x, y = normal("x", 50, 4), normal("y", 50, 4)
    assert (np.diff([kernel_distance(x, y + shift) for shift in (0, 0.5, 1, 2, 4)]) > 0).all()


@pytest.mark.parametrize("block", [1, 100, 1000])
def test_kernel_distance_is_the_same_in_blocks(normal, block, monkeypatch):
    x, y = normal("x", 50, 4), normal("y", 30, 4) + 1
    whole = kernel_distance(x, y)
    monkeypatch.setattr(pairwise, "BLOCK", block)
    assert kernel_distance(x, y) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_features_of_any_shape_and_type_are_rows_of_float64(normal, distance):
    x, y = normal("x", 20, 2, 3).float(), normal("y", 20, 2, 3).float()
    assert distance(x, y) == distance(x.double().flatten(1), y.double().flatten(1))


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_sets_without_a_spread_to_measure_are_refused(normal, distance):
    x = normal("x", 5, 2)
    for both in ((x, x[:1]), (x[:1], x), (x[:0], x)):
        with pytest.raises(InputError, match="needs 2 rows or more"):
            distance(*both)
    with pytest.raises(InputError, match="cannot compare rows"):
        distance(x, x[:, :1])
    with pytest.raises(InputError, match="1 of 5 rows hold NaN"):
        distance(x, torch.where(torch.arange(10).reshape(5, 2) == 3, torch.nan, x))
