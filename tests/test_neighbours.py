"""Nearest neighbours: known answers, a brute-force twin, and what two equal laws give in the mean."""

import subprocess
import sys
from math import prod

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from flowgen.core import InputError, generator
from flowgen.metrics import Manifold, copies, manifold, nearest, nearest_ratio, pairwise

DIMS = [1, 2, 5, pairwise.DIRECT + 5]
WIDE = pairwise.DIRECT + 25
"""A dimension in which distances come from a product of matrices."""


def to_neighbour(x, k):
    """The distance of each row to its k-th neighbour, without itself."""
    return NearestNeighbors(n_neighbors=k).fit(x).kneighbors()[0][:, -1]


def by_brute_force(x, data, k):
    """Ball by ball: what lies in the balls around data, and around samples."""
    balls, balls_of_x = to_neighbour(data, k), to_neighbour(x, k)
    far = np.linalg.norm(x[:, None] - data[None], axis=2)
    return Manifold(
        precision=np.mean([any(far[i] <= balls) for i in range(len(x))]),
        recall=np.mean([any(far[:, j] <= balls_of_x) for j in range(len(data))]),
        density=sum((far[i] <= balls).sum() for i in range(len(x))) / (k * len(x)),
        coverage=np.mean([far[:, j].min() <= balls[j] for j in range(len(data))]),
    )


def clusters(normal, rows, dim=2):
    """Two clusters of so many rows each, far from each other."""
    return normal("one", rows, dim), normal("two", rows, dim) + 1000


# precision, recall, density and coverage


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("rows", "scale"), [(80, 1.0), (50, 0.5), (120, 2.0)])
def test_the_manifold_is_that_of_brute_force(normal, dim, k, rows, scale):
    x, data = scale * normal("x", rows, dim) + 0.2, normal("data", 80, dim)
    assert manifold(x, data, k) == pytest.approx(by_brute_force(x.numpy(), data.numpy(), k), rel=1e-12)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("k", [1, 5])
def test_samples_that_are_the_data_have_all_of_it(normal, dim, k):
    """Each ball holds its centre and k more."""
    data = normal("data", 60, dim)
    assert manifold(data.flip(0), data, k) == pytest.approx((1, 1, (k + 1) / k, 1), rel=1e-12)


@pytest.mark.parametrize("dim", DIMS)
def test_samples_far_from_the_data_have_none_of_it(normal, dim):
    data = normal("data", 60, dim)
    assert manifold(normal("x", 60, dim) + 1000, data) == (0, 0, 0, 0)


@pytest.mark.parametrize("k", [1, 5])
def test_samples_of_one_cluster_cover_half_of_the_data(normal, k):
    one, two = clusters(normal, 40)
    found = manifold(one, torch.cat([one, two]), k)
    assert found == pytest.approx((1, 0.5, (k + 1) / k, 0.5), rel=1e-12)


def test_data_of_one_cluster_makes_half_of_samples_wrong(normal):
    one, two = clusters(normal, 40)
    assert manifold(torch.cat([one, two]), one) == pytest.approx((0.5, 1, (6 / 5) / 2, 1), rel=1e-12)


def test_one_far_row_of_data_fools_precision_but_not_density(normal):
    """Its ball reaches to the data, and so over all that lies between."""
    data = torch.cat([normal("data", 99, 2), torch.tensor([[1000.0, 0.0]])])
    between = normal("x", 50, 2) + torch.tensor([500.0, 0.0])
    found = manifold(between, data, k=5)
    assert found.precision == 1
    assert found.density == pytest.approx(1 / 5)
    assert found.coverage == pytest.approx(1 / 100)


@pytest.mark.parametrize("dim", [2, 4, WIDE])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("unit", [1.0, 0.1])
def test_balls_of_whole_numbers_hold_their_edges(dim, k, unit):
    """Squares of distances are whole numbers too: another reach is no matter of rounding."""
    rng = np.random.default_rng(dim)
    top = 2 if dim == WIDE else 9
    x, data = rng.integers(0, top, (70, dim)), rng.integers(0, top, (90, dim))
    far, reach, reach_data = (((a[:, None] - b[None]) ** 2).sum(2) for a, b in ((x, data), (x, x), (data, data)))
    reach, reach_data = (np.sort(squares)[:, k] for squares in (reach, reach_data))
    inside = far <= reach_data
    found = manifold(*(torch.from_numpy(unit * a) for a in (x, data)), k)
    assert (far == reach_data).sum() > 10
    assert found.recall == pytest.approx((far <= reach[:, None]).any(0).mean())
    assert found.density == pytest.approx(inside.sum() / (k * 70))
    assert (found.precision, found.coverage) == pytest.approx((inside.any(1).mean(), inside.any(0).mean()))


@pytest.mark.parametrize("dim", [2, WIDE])
def test_recall_is_the_precision_of_data_among_samples(normal, dim):
    x, data = 0.8 * normal("x", 70, dim), normal("data", 90, dim)
    here, there = manifold(x, data, 3), manifold(data, x, 3)
    assert 0 < here.recall < 1 or dim == WIDE
    assert (here.recall, here.precision) == (there.precision, there.recall)


@pytest.mark.parametrize("dim", [2, 6])
@pytest.mark.parametrize(("k", "rows", "samples"), [(1, 50, 50), (3, 40, 80), (5, 80, 40)])
def test_equal_laws_have_density_one_and_a_known_coverage(k, rows, samples, dim):
    """A row is left out if the k nearest of all others are data: prod over i of (N - i) / (N + M - i), i = 1..k."""
    found = []
    for draw in range(60):
        x, data = (torch.randn(n, dim, generator=generator(draw, name)) for name, n in (("x", samples), ("data", rows)))
        found.append(manifold(x, data, k))
    density, coverage = np.array([(f.density, f.coverage) for f in found]).T
    exact = 1 - prod((rows - i) / (rows + samples - i) for i in range(1, k + 1))
    assert abs(density.mean() - 1) < 4 * density.std() / 60**0.5
    assert abs(coverage.mean() - exact) < 4 * coverage.std() / 60**0.5


@pytest.mark.parametrize("dim", [2, WIDE])
def test_the_manifold_does_not_see_order_place_turn_or_scale(normal, dim):
    x, data = 0.8 * normal("x", 70, dim), normal("data", 90, dim)
    turn, _ = torch.linalg.qr(normal("turn", dim, dim))
    found = manifold(x, data, 3)
    for a, b in (
        (x.flip(0), data),
        (x, data.flip(0)),
        (x + 1e4, data + 1e4),
        (x @ turn, data @ turn),
        (1e-3 * x, 1e-3 * data),
        (x.unflatten(1, (2, -1)), data.unflatten(1, (2, -1))),
    ):
        assert manifold(a, b, 3) == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize("k", [0, -1, 5, 9])
def test_neighbours_that_there_are_not_are_refused(normal, k):
    few, many = normal("few", 5, 2), normal("many", 50, 2)
    for both in ((few, many), (many, few)):
        with pytest.raises(InputError, match=rf"^{k} neighbours need more rows"):
            manifold(*both, k)


def test_four_neighbours_are_found_among_five_rows(normal):
    few, many = normal("few", 5, 2), normal("many", 50, 2)
    assert manifold(few, many, 4) == pytest.approx(by_brute_force(few.numpy(), many.numpy(), 4))


# copies


@pytest.mark.parametrize("dim", DIMS)
def test_the_nearest_row_is_that_of_brute_force(normal, dim, pairs_held):
    data = normal("data", 40, dim)
    data = torch.cat([data, data.flip(0), data[:3] + 5])
    x = normal("x", 60, dim)
    far = np.linalg.norm(x.numpy()[:, None] - data.numpy()[None], axis=2)
    assert nearest(x, data).row.tolist() == far.argmin(1).tolist()
    assert nearest(data, data).row.tolist() == [*range(40), *reversed(range(40)), 80, 81, 82]
    assert torch.equal(nearest(x, data).ratio, nearest_ratio(x, data))


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_ratio_is_that_of_the_two_nearest_rows(normal, dim, offset):
    x, data = normal("x", 70, dim) + offset, normal("data", 90, dim) + offset
    near = NearestNeighbors(n_neighbors=2, algorithm="brute").fit((data - offset).numpy())
    first, second = near.kneighbors((x - offset).numpy())[0].T
    np.testing.assert_allclose(nearest_ratio(x, data), first / second, rtol=1e-6)


@pytest.mark.parametrize("dim", DIMS)
def test_the_ratio_is_between_0_and_1(normal, dim):
    data = normal("data", 90, dim)
    data = torch.cat([data, data, data + 1e-9])
    for x in (normal("x", 70, dim), data[:9], data[:9] + 1e-9, torch.zeros(3, dim)):
        ratio = nearest_ratio(x, data)
        assert (ratio >= 0).all()
        assert (ratio <= 1).all()


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_exact_copies_of_repeated_rows_are_counted(normal, dim, times, offset):
    """The data is offset from the origin and said `times` over; a third of the samples are its rows."""
    data = normal("data", 90, dim) + offset
    x = torch.cat([data[:20], normal("x", 40, dim) + offset + 1000])
    held = torch.cat([data] * times)
    assert (nearest_ratio(x, held)[:20] == 0).all()
    assert copies(x, held) == pytest.approx(1 / 3)


def test_the_middle_between_two_rows_is_no_copy_of_either():
    data = torch.tensor([[0.0, 0.0], [1.0, 0.0], [50.0, 0.0]])
    x = torch.tensor([[0.5, 3.0], [0.25, 0.0], [0.2, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(nearest_ratio(x, data), torch.tensor([1, 1 / 3, 1 / 4, 1 / 2], dtype=torch.float64))
    assert copies(x, data) == 1 / 4  # a ratio of 1/3 is not below it
    assert copies(x, data, 0.3) == 1 / 4
    assert copies(x, data, 0.6) == 3 / 4


@pytest.mark.costly
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("threshold", [1 / 3, 0.7])
def test_fresh_draws_look_like_copies_as_expected(dim, threshold):
    """Where data is locally uniform, d1 / d2 < r where the nearest falls in a ball of r^d the volume."""
    shares = []
    for draw in range(40):
        data = torch.rand(500, dim, generator=generator(draw, "data"))
        x = 0.25 + 0.5 * torch.rand(200, dim, generator=generator(draw, "x"))  # away from the edges
        shares.append(copies(x, data, threshold))
    exact, found = threshold**dim, np.array(shares)
    assert abs(found.mean() - exact) < 4 * found.std() / 40**0.5


@pytest.mark.parametrize("dim", [2, WIDE])
def test_the_ratio_does_not_see_place_turn_or_scale(normal, dim):
    x, data = normal("x", 70, dim), normal("data", 90, dim)
    turn, _ = torch.linalg.qr(normal("turn", dim, dim))
    ratio = nearest_ratio(x, data)
    for a, b in ((x, data.flip(0)), (x + 1e3, data + 1e3), (x @ turn, data @ turn), (1e-3 * x, 1e-3 * data)):
        torch.testing.assert_close(nearest_ratio(a, b), ratio, rtol=1e-7, atol=0)
    torch.testing.assert_close(nearest_ratio(x.flip(0), data), ratio.flip(0), rtol=1e-9, atol=0)


def test_a_second_row_of_data_is_needed(normal):
    x = normal("x", 5, 2)
    for refused in (nearest_ratio, copies):
        for one in (x[:1], x[:1].repeat(3, 1)):
            with pytest.raises(InputError, match="needs 2 rows of data that differ, not 1"):
                refused(x, one)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_near_copies_of_repeated_rows_are_counted(normal, times):
    """A row that is there twice is no nearer second neighbour of itself."""
    data = normal("data", 200, 2)
    assert copies(data + 1e-6 * normal("noise", 200, 2), data.repeat(times, 1)) == 1


# both


@pytest.mark.parametrize("found", [manifold, nearest_ratio, copies])
def test_sets_that_cannot_be_compared_are_refused(normal, found):
    x, y = normal("x", 9, 2), normal("y", 9, 2)
    y[3, 0] = torch.nan
    for both, message in (
        ((x, y), "1 of 9 rows hold NaN"),
        ((y, x), "1 of 9 rows hold NaN"),
        ((x, normal("z", 9, 3)), "cannot compare rows of shape"),
        ((x[:, :0], x[:, :0]), "too small to measure"),
    ):
        with pytest.raises(InputError, match=message):
            found(*both)


@pytest.mark.parametrize("dim", [2, WIDE])
@pytest.mark.parametrize("block", [1, 100, 1000])
def test_neighbours_are_the_same_in_blocks(normal, dim, block, monkeypatch):
    x, data = 0.8 * normal("x", 70, dim), normal("data", 90, dim)
    whole, ratio = manifold(x, data, 3), nearest_ratio(x, data)
    monkeypatch.setattr(pairwise, "BLOCK", block)
    assert manifold(x, data, 3) == pytest.approx(whole, rel=1e-12)
    torch.testing.assert_close(nearest_ratio(x, data), ratio, rtol=1e-12, atol=0)


@pytest.mark.parametrize("found", [manifold, nearest_ratio])
def test_no_more_pairs_than_a_block_are_held_at_once(normal, found, pairs_held):
    found(normal("x", 250, 2), normal("data", 130, 2))
    assert 500 < max(pairs_held) <= 1000


MEMORY = """
import resource, torch
from flowgen.metrics import copies
x, data = torch.rand(2, 30_000, 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
copies(x, data)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is not the same everywhere")
def test_blocks_that_are_done_with_give_their_memory_back():
    """All pairs at once would take 7 GB."""
    grown = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True).stdout
    assert int(grown) / 1024 < 500


def test_neighbours_in_float32_are_those_in_float64(normal):
    x, data = normal("x", 70, 3).float(), normal("data", 90, 3).float()
    assert manifold(x, data) == manifold(x.double(), data.double())
    assert torch.equal(nearest_ratio(x, data), nearest_ratio(x.double(), data.double()))
