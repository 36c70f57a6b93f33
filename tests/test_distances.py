"""Distances between sets: laws that hold for all, other implementations of each, and closed forms."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import sqrt

import numpy as np
import ot
import pytest
import scipy.stats
import torch
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor

from flowgen.core import InputError, generator
from flowgen.metrics import distances, energy_distance, frechet_distance, mmd, pairwise, wasserstein2
from flowgen.metrics import sliced_wasserstein2 as sliced_by


def sliced(x: Tensor, y: Tensor, projections: int = 64) -> float:
    return sliced_by(x, y, generator(0, "directions"), projections)


@dataclass(frozen=True)
class Distance:
    """A distance, the degree of its scaling, and whether it knows laws alone: rows said twice are rows said once."""

    between: Callable[[Tensor, Tensor], float]
    degree: float
    of_laws: bool = True


DISTANCES = {
    "w2": Distance(wasserstein2, 1),
    "sliced": Distance(sliced, 1),
    "energy": Distance(energy_distance, 1 / 2),
    "mmd": Distance(mmd, 0),
    "frechet": Distance(frechet_distance, 2, of_laws=False),
}
UNEQUAL = {name: known for name, known in DISTANCES.items() if name != "w2"}
"""Those between sets of different sizes too."""
DIMS = [1, 2, 5, pairwise.DIRECT + 5]


@pytest.fixture(params=DISTANCES.values(), ids=list(DISTANCES))
def known(request) -> Distance:
    return request.param


@pytest.fixture(params=UNEQUAL.values(), ids=list(UNEQUAL))
def unequal(request) -> Distance:
    return request.param


@pytest.fixture(params=DIMS)
def sets(request, normal) -> tuple[Tensor, Tensor]:
    """Two sets of a different mean, spread and shape, in one of several dimensions."""
    x, y = normal("x", 60, request.param), normal("y", 60, request.param)
    return x, 0.5 + 1.5 * y + 0.2 * y.square()


def shuffled(x: Tensor) -> Tensor:
    return x[torch.randperm(len(x), generator=generator(0, "order"))]


def close(value: float, rel: float = 1e-9):
    return pytest.approx(value, rel=rel)


# laws of all


def test_equal_sets_are_at_distance_zero_in_any_order(known, sets):
    for x in sets:
        assert known.between(x, x) == pytest.approx(0, abs=1e-6)
        assert known.between(x, shuffled(x)) == pytest.approx(0, abs=1e-6)


def test_unequal_sets_are_apart(known, sets):
    assert known.between(*sets) > 0.05


def test_a_distance_is_symmetric(known, sets):
    x, y = sets
    assert known.between(x, y) == close(known.between(y, x))


def test_a_distance_does_not_see_the_order_of_rows(known, sets):
    x, y = sets
    assert known.between(shuffled(x), y) == close(known.between(x, y))
    assert known.between(x, shuffled(y)) == close(known.between(x, y))


def test_a_distance_moves_with_space(known, sets):
    x, y = sets
    assert known.between(x + 3, y + 3) == close(known.between(x, y))
    assert known.between(-x, -y) == close(known.between(x, y))


def test_a_distance_turns_with_space(known, sets, normal):
    x, y = sets
    turn, _ = torch.linalg.qr(normal("turn", x.shape[1], x.shape[1]))
    if known.between is sliced:  # true in the mean over directions
        many = 4096
        assert sliced(x @ turn, y @ turn, many) == close(sliced(x, y, many), 0.03)
    else:
        assert known.between(x @ turn, y @ turn) == close(known.between(x, y))


@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
def test_a_distance_scales_by_its_degree(known, sets, scale):
    x, y = sets
    assert known.between(scale * x, scale * y) == close(scale**known.degree * known.between(x, y))


@pytest.mark.parametrize("dim", DIMS)
def test_a_distance_grows_as_one_set_moves_away(known, normal, dim):
    x, y = (z - z.mean(0) for z in (normal("x", 60, dim), normal("y", 60, dim)))
    found = [known.between(x, y + shift) for shift in (0, 0.5, 1, 2, 4, 8)]
    assert (np.diff(found) > 0).all()


def test_far_from_the_origin_a_distance_keeps_its_digits(known, sets):
    x, y = sets
    assert known.between(x + 1e4, y + 1e4) == close(known.between(x, y), 1e-6)


def test_a_distance_of_float32_is_that_in_float64(known, sets):
    x, y = (z.float() for z in sets)
    assert known.between(x, y) == known.between(x.double(), y.double())
    assert known.between(x, y) == close(known.between(*sets), 1e-4)


def test_a_distance_between_images_is_that_of_their_pixels(known, normal):
    x, y = normal("x", 20, 3, 2, 4), normal("y", 20, 3, 2, 4)
    assert known.between(x, y) == close(known.between(x.flatten(1), y.flatten(1)))


def test_a_column_of_zeros_changes_nothing(known, sets):
    if known.between is sliced:  # it is a mean over the directions of another space
        return
    x, y = sets
    padded = (torch.nn.functional.pad(z, (2, 1)) for z in sets)
    assert known.between(*padded) == close(known.between(x, y), 1e-7)


def test_a_set_said_twice_is_the_same_law(known, sets):
    if not known.of_laws:  # a covariance divides by N - 1
        return
    x, y = sets
    assert known.between(torch.cat([x, x]), y.repeat_interleave(2, 0)) == close(known.between(x, y))


def test_sets_of_different_sizes_are_compared_as_laws(unequal, sets):
    """60 rows and 40 rows are 120 and 120."""
    x, y = sets[0], sets[1][:40]
    between = partial(mmd, width=1.0) if unequal.between is mmd else unequal.between  # which else goes by all rows
    assert between(x, y) == close(between(y, x))
    if unequal.of_laws:
        assert between(x, y) == close(between(x.repeat_interleave(2, 0), y.repeat_interleave(3, 0)))


def test_the_triangle_inequality_holds(known, normal):
    x, y, z = (scale * normal(name, 50, 2) + shift for name, scale, shift in (("x", 1, 0), ("y", 2, 1), ("z", 0.5, 0)))
    power = 1 / 2 if known.between is frechet_distance else 1  # which is the square of a distance
    xy, xz, zy = (known.between(*both) ** power for both in ((x, y), (x, z), (z, y)))
    assert xy <= xz + zy
    assert xz <= xy + zy
    assert zy <= xy + xz


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_on_either_side(known, normal, bad):
    x, y = normal("x", 5, 2), normal("y", 5, 2)
    y[2, 1] = bad
    for both in ((x, y), (y, x)):
        with pytest.raises(InputError, match=r"^.*1 of 5 rows hold NaN or infinite values$"):
            known.between(*both)


def test_an_empty_set_or_an_empty_event_is_refused(known, normal):
    x = normal("x", 5, 2)
    for both in ((x[:0], x[:0]), (x[:, :0], x[:, :0]), (x[:, 0], x[:, 0])):
        with pytest.raises(InputError, match=r"too small to measure|has rows, of shape"):
            known.between(*both)


def test_one_empty_set_is_refused(unequal, normal):
    x = normal("x", 5, 2)
    for both in ((x, x[:0]), (x[:0], x)):
        with pytest.raises(InputError, match="too small to measure"):
            unequal.between(*both)


@pytest.mark.parametrize("shape", [(3,), (1,), (2, 1), (1, 2)])
def test_rows_of_another_event_are_refused(known, normal, shape):
    with pytest.raises(InputError, match="cannot compare rows of shape"):
        known.between(normal("x", 5, 2), normal("y", 5, *shape))


def test_a_distance_is_the_same_in_blocks(known, sets, monkeypatch):
    whole = known.between(*sets)
    for block in (1, 7, 61, 1000):
        monkeypatch.setattr(pairwise, "BLOCK", block)
        direct = sets[0].shape[1] <= pairwise.DIRECT  # beyond, a product of matrices rounds by its shape
        assert known.between(*sets) == close(whole, 1e-12 if direct else 1e-9)


@pytest.mark.parametrize("dim", [2, pairwise.DIRECT + 1])
@pytest.mark.parametrize("between", [energy_distance, mmd])
def test_no_more_pairs_than_a_block_are_held_at_once(between, normal, dim, pairs_held, monkeypatch):
    between(normal("x", 250, dim), normal("y", 130, dim))
    assert sum(pairs_held) == 250**2 + 130**2 + 250 * 130
    assert 500 < max(pairs_held) <= 1000
    pairs_held.clear()
    monkeypatch.setattr(pairwise, "BLOCK", 99)  # less than a row
    between(normal("x", 250, dim), normal("y", 130, dim))
    assert max(pairs_held) == 250


@pytest.mark.parametrize("dim", [1, 3, 20])
@pytest.mark.parametrize("between", [energy_distance, mmd])
def test_both_ways_to_square_differences_agree(between, normal, dim, monkeypatch):
    x, y = normal("x", 200, dim) + 100, 2 * normal("y", 150, dim) + 100
    direct = between(x, y)
    monkeypatch.setattr(pairwise, "DIRECT", 0)
    assert between(x, y) == close(direct, 1e-8)


# exact optimal transport


def test_w2_in_one_dimension_is_that_of_sorted_points(normal):
    x, y = normal("x", 300, 1), 2 * normal("y", 300, 1) + 1
    sorted_squares = (x.sort(dim=0).values - y.sort(dim=0).values).square().mean()
    assert wasserstein2(x, y) == close(sorted_squares.sqrt().item())


def test_w2_to_a_monotone_image_is_the_length_of_the_map(normal):
    """y = A x + b with A symmetric and positive is a gradient of a convex function, and so an optimal map."""
    x, root = normal("x", 200, 3), normal("A", 3, 3)
    y = x @ (root @ root.T + 0.1 * torch.eye(3)) + torch.tensor([1.0, -2.0, 0.5])
    exact = (x - y).square().sum(1).mean().sqrt().item()
    assert wasserstein2(x, y.flip(0)) == close(exact)


def test_w2_between_gaussians_tends_to_its_closed_form(normal):
    """W2^2 = |m - n|^2 + sum (s - r)^2 for diagonal covariances s^2 and r^2."""
    mean, std = torch.tensor([3.0, -1.0]), torch.tensor([0.5, 2.0])
    exact = sqrt(mean.square().sum() + (std - 1).square().sum())
    assert wasserstein2(normal("x", 1000, 2), mean + std * normal("y", 1000, 2)) == close(exact, 0.03)


def test_w2_is_between_that_of_means_and_any_pairing(normal):
    x, y = normal("x", 100, 2), normal("y", 100, 2) + 0.3
    mean, paired = (x - y).mean(0).norm().item(), (x - y).square().sum(1).mean().sqrt().item()
    assert mean < wasserstein2(x, y) < paired


def test_w2_knows_how_far_one_set_was_moved(normal):
    x, y, shift = normal("x", 100, 2), normal("y", 100, 2) + 1, torch.tensor([3.0, 4.0], dtype=torch.float64)
    moved = wasserstein2(x, y) ** 2 + 25 + 2 * ((x - y).mean(0) @ shift).item()
    assert wasserstein2(x + shift, y) ** 2 == close(moved)


@pytest.mark.parametrize("sizes", [(5, 6), (6, 5)])
def test_w2_between_unequal_sets_is_refused(normal, sizes):
    with pytest.raises(InputError, match="equally many points, not {} and {}".format(*sizes)):
        wasserstein2(*(normal("x", rows, 2) for rows in sizes))


def test_w2_of_too_many_rows_is_that_of_the_first_and_says_so(normal, monkeypatch):
    x, y = normal("x", 50, 2), normal("y", 50, 2) + 1
    first = wasserstein2(x[:20], y[:20])
    monkeypatch.setattr(distances, "EXACT", 50)
    with warnings.catch_warnings(action="error"):
        whole = wasserstein2(x, y)
    monkeypatch.setattr(distances, "EXACT", 20)
    with pytest.warns(UserWarning, match="first 20 of 50"):
        assert wasserstein2(x, y) == first
    assert first != whole


# sliced


def directions(dim: int, count: int) -> np.ndarray:
    """The directions that `sliced` draws."""
    theta = torch.randn(dim, count, generator=generator(0, "directions"), dtype=torch.float64)
    return (theta / theta.norm(dim=0)).numpy()


@pytest.mark.parametrize("rows", [60, 40, 7])
def test_sliced_is_that_of_pot(sets, rows):
    x, y = sets[0].numpy(), sets[1][:rows].numpy()
    theta = directions(x.shape[1], 64)
    assert sliced(sets[0], sets[1][:rows]) == close(ot.sliced_wasserstein_distance(x, y, projections=theta))


@pytest.mark.parametrize("rows", [60, 40, 7])
def test_sliced_is_the_root_of_the_mean_of_exact_shadows(sets, rows):
    x, y = sets[0].numpy(), sets[1][:rows].numpy()
    theta = directions(x.shape[1], 10)
    squares = [ot.emd2_1d(*(np.ascontiguousarray(z @ d) for z in (x, y)), metric="sqeuclidean") for d in theta.T]
    assert sliced(sets[0], sets[1][:rows], 10) == close(sqrt(np.mean(squares)), 1e-7)


def test_sliced_in_one_dimension_is_the_distance_of_quantiles():
    """{0, 1} and {0, 1, 2}: the quantiles differ by 1 on [1/3, 1/2] and on [2/3, 1]."""
    x, y = torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [0.0], [1.0]])
    assert sliced(x, y) == close(sqrt(1 / 2))


@pytest.mark.costly
@pytest.mark.parametrize("dim", [1, 2, 5, 30])
@pytest.mark.parametrize("axis", [True, False])
def test_sliced_w2_tends_to_its_closed_form(normal, dim, axis):
    """x to s x + m moves every shadow monotonely: SW2^2 = mean of <theta, m>^2 + (1 - s)^2 <theta, C theta>."""
    x = normal("x", 50, dim)
    x = x - x.mean(0)
    m = 3 * torch.eye(dim, dtype=torch.float64)[0] if axis else normal("shift", dim)
    exact = m.square().sum() / dim + 0.5**2 * x.square().sum(1).mean() / dim
    assert sliced(x, 0.5 * x + m, 6000) == close(sqrt(exact), 0.04)


def test_sliced_is_less_than_w2_over_the_root_of_the_dimension(sets):
    x, y = sets
    bound = wasserstein2(x, y) / sqrt(x.shape[1])
    assert sliced(x, y, 4096) <= bound * (1.02 if x.shape[1] > 1 else 1 + 1e-9)


def test_sliced_is_a_function_of_the_generator(normal, global_state_untouched):
    x, y = normal("x", 30, 3), normal("y", 30, 3)
    first, second, other = (sliced_by(x, y, generator(seed, "directions")) for seed in (1, 1, 2))
    assert first == second
    assert first != other


# energy distance and maximum mean discrepancy


@pytest.mark.parametrize("rows", [200, 70])
def test_energy_distance_in_one_dimension_is_that_of_scipy(normal, rows):
    x, y = normal("x", 200, 1), 1.5 * normal("y", rows, 1) + 0.4
    exact = scipy.stats.energy_distance(x.flatten().numpy(), y.flatten().numpy())
    assert energy_distance(x, y) == close(exact)


@pytest.mark.parametrize("rows", [60, 35])
def test_energy_distance_is_three_means_over_all_pairs(sets, rows):
    x, y = sets[0].numpy(), sets[1][:rows].numpy()
    square = 2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean()
    assert energy_distance(sets[0], sets[1][:rows]) == close(sqrt(square))


@pytest.mark.parametrize("rows", [60, 35])
@pytest.mark.parametrize("width", [None, 0.7, 5.0])
def test_mmd_is_that_of_the_kernels_of_scikit_learn(sets, width, rows):
    x, y = sets[0].numpy(), sets[1][:rows].numpy()
    middle = width or sqrt(np.trace(np.atleast_2d(np.cov(np.concatenate([x, y]).T, ddof=0))))

    def kernel(a, b):
        return np.mean([rbf_kernel(a, b, gamma=1 / (2 * (middle * s) ** 2)) for s in (1 / 4, 1 / 2, 1, 2, 4)])

    square = kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)
    assert mmd(sets[0], sets[1][:rows], width) == close(sqrt(square))


def test_mmd_is_at_most_the_root_of_two_and_reaches_it(normal):
    """Two points far apart for every kernel: 1 + 1 - 0."""
    x = torch.zeros(5, 2)
    assert mmd(x, x + 1e3, width=1.0) == close(sqrt(2))
    assert mmd(normal("x", 30, 2), normal("y", 30, 2) + 1) < sqrt(2)


def test_mmd_with_a_width_scales_with_it(sets):
    x, y = sets
    assert mmd(10 * x, 10 * y, 10 * 0.8) == close(mmd(x, y, 0.8))


@pytest.mark.parametrize("width", [0.0, -1.0, np.nan, np.inf])
def test_a_kernel_without_a_positive_width_is_refused(normal, width):
    with pytest.raises(InputError, match="width"):
        mmd(normal("x", 5, 2), normal("y", 5, 2), width)


def test_rows_that_are_all_equal_have_no_width():
    with pytest.raises(InputError, match="all rows may be equal"):
        mmd(torch.ones(5, 2), torch.ones(7, 2))
