"""Semidiscrete transport: cells of equal mass, whose pairs cost the least, from any start of a stream."""

import math
from itertools import islice

import ot
import pytest
import torch
from scipy.stats import chisquare, norm

from flowgen.core import InputError, Pair, Part, generator
from flowgen.couplings import ExactOT, laguerre
from flowgen.couplings.semidiscrete import Potentials, Semidiscrete, ascend, assigned, chi_square, potentials
from flowgen.data import Gaussian, moons
from flowgen.pairs.batches import PairStream


@pytest.fixture(scope="module")
def rows():
    """300 rows of moons."""
    return moons().sample(300, generator(0, "rows"))


@pytest.fixture(scope="module")
def solved(rows):
    return potentials(Gaussian(), rows, seed=0, tolerance=0.01)


def squares(x, y):
    """|x_i - y_j|^2 by differences, float64."""
    return (x.double().flatten(1).unsqueeze(1) - y.double().flatten(1).unsqueeze(0)).square().sum(2)


def masses(source, rows, g, n=200_000):
    """How often fresh draws fall in each cell, by brute force."""
    hits = torch.zeros(len(rows))
    for k in range(0, n, 20_000):
        x = source.sample(20_000, generator(99, "masses", k)).flatten(1).double()
        cost = rows.double().square().sum(1) - g - 2 * x @ rows.double().T
        hits += cost.argmin(1).bincount(minlength=len(rows))
    return hits / n


# closed forms


@pytest.mark.costly
def test_cells_on_the_line_are_intervals_between_quantiles(normal):
    """|x - y_j|^2 - g_j = |x - y_i|^2 - g_i at x = (y_i + y_j) / 2 - (g_j - g_i) / 2 (y_j - y_i)."""
    y = normal("y", 10, 1)
    g = potentials(Gaussian((1,)), y, seed=0, tolerance=3e-4, draws_per_row=1e4).values
    order = y.squeeze(1).argsort()
    y, g = y.squeeze(1)[order].double(), g[order]
    borders = (y[1:] + y[:-1]) / 2 - (g[1:] - g[:-1]) / 2 / (y[1:] - y[:-1])
    shares = norm.cdf(borders.numpy())
    assert shares == pytest.approx([k / 10 for k in range(1, 10)], abs=0.012)


@pytest.mark.costly
def test_the_map_on_the_line_is_monotone(normal):
    y = normal("y", 50, 1)
    law = Semidiscrete(Gaussian((1,)), y, potentials(Gaussian((1,)), y, seed=0).values)
    pair = law(2000, generator(0, "pairs"))
    assert (pair.x1[pair.x0.squeeze(1).argsort()].squeeze(1).diff() >= 0).all()


@pytest.mark.parametrize("d", [2, 40])
def test_two_rows_share_the_source_by_a_plane_through_its_mean(normal, d):
    """|x - y_0|^2 - g_0 = |x - y_1|^2 - g_1 at x = 0, so that g_1 - g_0 = |y_1|^2 - |y_0|^2."""
    y = normal("y", 2, d) + 3
    found = potentials(Gaussian((d,)), y, seed=0, tolerance=1e-4, draws_per_row=1e5)
    squares = y.double().square().sum(1)
    unit = 2 * float((y[1] - y[0]).norm())
    assert float(found.values.diff() - squares.diff()) / unit == pytest.approx(0, abs=0.02)


@pytest.mark.costly
def test_the_dual_is_the_exact_cost_of_a_large_sample(rows, solved):
    """mean_x min_j (|x - y_j|^2 - g_j) + mean(g) is below every coupling's cost on a sample, and near the least."""
    x0 = Gaussian().sample(3000, generator(0, "sample"))
    exact = ot.emd2([], [], squares(x0, rows).numpy(), numItermax=10**6)
    index = assigned(x0, rows, solved.values)
    dual = (squares(x0, rows)[torch.arange(3000), index] - solved.values[index]).mean() + solved.values.mean()
    assert 0.96 * exact < float(dual) <= exact


@pytest.mark.costly
def test_the_dual_is_below_the_exact_cost_of_batches(rows, solved):
    pair = Pair(Gaussian().sample(6000, generator(0, "sample")), rows.repeat(20, 1))
    cost = (pair.x0 - ExactOT(group=50)(pair, generator(0, "none")).x1).square().sum(1).mean()
    made = Semidiscrete(Gaussian(), rows, solved.values)(6000, generator(0, "sample"))
    assert float((made.x0 - made.x1).square().sum(1).mean()) < 0.95 * float(cost)


# what the pairs keep


@pytest.mark.costly
@pytest.mark.parametrize("d", [2, 40])
def test_cells_have_equal_mass_and_their_chi_square(normal, d):
    y = normal("y", 60, d) * torch.linspace(0.2, 3, 60).unsqueeze(1)
    found = potentials(Gaussian((d,)), y, seed=0, tolerance=0.01)
    p = masses(Gaussian((d,)), y, found.values)
    assert float((60 * p - 1).square().mean()) < 0.015
    assert found.chi_square < 0.01


def test_a_few_draws_pass_a_test_of_uniform_rows(rows, solved):
    pair = Semidiscrete(Gaussian(), rows, solved.values)(3000, generator(0, "pairs"))
    hits = (squares(pair.x1, rows) == 0).sum(0)
    assert chisquare(hits.numpy()).pvalue > 1e-3
    assert torch.equal(pair.x0, Gaussian().sample(3000, generator(0, "pairs")))


def test_no_exchange_of_partners_lowers_the_cost(rows, solved):
    pair = Semidiscrete(Gaussian(), rows, solved.values)(400, generator(0, "pairs"))
    cost = squares(pair.x0, pair.x1)
    kept = cost.diagonal().unsqueeze(0) + cost.diagonal().unsqueeze(1)
    assert (kept <= cost + cost.T + 1e-5).all()


@pytest.mark.costly
def test_rows_of_each_class_share_the_whole_source(rows):
    labels = (rows[:, 0] > 0).long() * 3 + 2
    found = potentials(Gaussian(), rows, seed=0, labels=labels, tolerance=0.03)
    law = Semidiscrete(Gaussian(), rows, found.values, labels)
    pair = law(4000, generator(0, "pairs"))
    row = squares(pair.x1, rows).argmin(1)
    assert torch.equal(labels[row], pair.cond)
    counts = labels.unique(return_counts=True)[1].double()
    assert chisquare(pair.cond.unique(return_counts=True)[1].numpy(), (counts / 300 * 4000).numpy()).pvalue > 1e-3
    for label in (2, 5):
        x = pair.x0[pair.cond == label]
        assert float(x.mean(0).norm()) < 0.1
        p = masses(Gaussian(), rows[labels == label], found.values[labels == label])
        assert float((p * len(p) - 1).square().mean()) < 0.05


def test_the_chi_square_of_classes_is_that_of_all_rows(rows):
    labels = (rows[:, 0] > 0.7).long()
    both = next(iter(ascend(Gaussian(), rows, seed=0, labels=labels)))
    alone = [
        sum((len(p) * p - 1).square().sum() for p in [masses(Gaussian(), rows[labels == k], both.values[labels == k])])
        for k in (0, 1)
    ]
    assert both.chi_square == pytest.approx(float(sum(alone)) / 300, rel=0.3)


# what does not matter


@pytest.mark.costly
def test_shifts_and_orders_change_nothing(rows, solved):
    order = torch.randperm(300, generator=generator(0, "order"))
    shuffled = potentials(Gaussian(), rows[order], seed=0, tolerance=0.01).values
    torch.testing.assert_close(shuffled, solved.values[order], rtol=0, atol=1e-3)
    x0, shift = Gaussian().sample(500, generator(0, "x0")), torch.tensor([100.0, -30.0])
    index = assigned(x0, rows, solved.values)
    moved = potentials(Gaussian(), rows + shift, seed=0, tolerance=0.01).values
    for values, data in ((solved.values + 1e3, rows), (moved, rows + shift)):
        assert float((assigned(x0, data, values) == index).double().mean()) > 0.99


@pytest.mark.parametrize("d", [2, 3, 40])
@pytest.mark.parametrize("block", [1, 7, 64])
def test_the_cell_is_that_of_brute_force_whatever_the_blocks(normal, monkeypatch, block, d):
    x0, y, g = normal("x0", 200, d), 3 * normal("y", 100, d) + 5, normal("g", 100).double()
    monkeypatch.setattr(laguerre, "BLOCK", block)
    monkeypatch.setattr(laguerre, "SCORES", 50 * block)
    assert torch.equal(assigned(x0, y, g), (squares(x0, y) - g).argmin(1))


def test_neighbours_far_from_the_origin_are_told_apart():
    y = torch.tensor([[1e4, 0.0], [1e4 + 0.01, 0.0]])
    x0 = torch.tensor([[1e4, 0.0], [1e4 + 0.02, 0.0], [-1e3, 0.0]])
    assert assigned(x0, y, torch.zeros(2)).tolist() == [0, 1, 0]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_rows_that_are_all_equal_need_no_potentials(n):
    y = torch.full((n, 2), 7.0)
    found = potentials(Gaussian(), y, seed=0)
    assert found.chi_square == pytest.approx(0, abs=1e-12)
    pair = Semidiscrete(Gaussian(), y, found.values)(4, generator(0, "pairs"))
    assert torch.equal(pair.x1, torch.full((4, 2), 7.0))


def test_a_row_that_is_there_three_times_has_three_shares(normal):
    y = normal("y", 8, 2)
    y = torch.cat([y, y[:1], y[:1]])
    found = potentials(Gaussian(), y, seed=0, tolerance=0.003)
    p = masses(Gaussian(), y[:8], found.values[:8])
    assert p.tolist() == pytest.approx([0.3] + [0.1] * 7, abs=0.012)
    assert found.values[[0, 8]].diff() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_of_floats_are_solved_for_as_their_float32(rows, dtype):
    y = rows[:50].to(dtype)
    found = potentials(Gaussian(), y, seed=0, tolerance=0.05)
    torch.testing.assert_close(
        found.values, potentials(Gaussian(), y.float(), seed=0, tolerance=0.05).values, rtol=0, atol=1e-4
    )
    pair = Semidiscrete(Gaussian(), y, found.values)(10, generator(0, "pairs"))
    assert pair.x1.dtype == dtype
    assert pair.x0.dtype == torch.float32


def test_another_source_than_a_gaussian(normal):
    y = normal("y", 30, 2)
    found = potentials(moons(), y, seed=0, tolerance=0.02)
    assert float((30 * masses(moons(), y, found.values) - 1).square().mean()) < 0.03


# chi-square


@pytest.mark.costly
def test_chi_square_is_unbiased_also_for_few_draws():
    w, p = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.2, 0.4])
    truth = float(((p - w).square() / w).sum())
    rng = generator(0, "hits")
    found = [chi_square(torch.multinomial(p, 5, True, generator=rng).bincount(minlength=3), w) for _ in range(20_000)]
    assert sum(found) / len(found) == pytest.approx(truth, abs=4 * torch.tensor(found).std().item() / 20_000**0.5)


@pytest.mark.costly
def test_the_states_of_an_ascent_report_themselves(rows):
    """The chi-square of each state is that of its own potentials, within three of its standard errors and our own."""
    states = list(islice(ascend(Gaussian(), rows, seed=1), 12))
    assert [state.draws for state in states] == sorted({state.draws for state in states})
    draws = [last - first for first, last in zip([0, *(s.draws for s in states)], [s.draws for s in states])]  # noqa: B905
    for state, m in list(zip(states, draws, strict=True))[3::4]:
        truth = float((300 * masses(Gaussian(), rows, state.values) - 1).square().mean()) - 300 / 200_000
        error = math.sqrt(2 * 300 + 4 * m * truth) / m
        assert abs(state.chi_square - truth) < 3 * error + 0.1 * truth


@pytest.mark.costly
def test_an_ascent_that_ends_first_says_what_it_reached(rows):
    with pytest.warns(RuntimeWarning, match="chi-square"):
        found = potentials(Gaussian(), rows, seed=0, tolerance=1e-5, draws_per_row=20)
    assert found.draws <= 20 * 1324
    assert 0 < float((300 * masses(Gaussian(), rows, found.values) - 1).square().mean()) < 1


# seeds and streams


def test_potentials_are_a_function_of_the_seed(rows, global_state_untouched):
    def found(seed):
        return potentials(Gaussian(), rows[:40], seed=seed, tolerance=0.1)

    one, two, other = found(0), found(0), found(1)
    assert torch.equal(one.values, two.values)
    assert one[1:] == two[1:]
    assert not torch.equal(one.values, other.values)


@pytest.mark.parametrize("labelled", [False, True])
def test_a_later_stream_is_the_tail_and_parts_the_whole(rows, solved, labelled):
    labels = torch.arange(300) % 3 if labelled else None
    law = Semidiscrete(Gaussian(), rows, solved.values, labels)
    assert isinstance(law, PairStream)
    whole = list(islice(law.stream(11, seed=5), 4))
    tail = list(islice(law.stream(11, seed=5, start=2), 2))
    parts = [next(law.stream(11, seed=5, start=2, part=Part(k, 3))) for k in range(3)]
    for found in (tail[0], Pair.cat(parts)):
        for a, b in zip(whole[2], found, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
    assert not torch.equal(whole[0].x0, whole[1].x0)


def test_rows_of_any_shape_are_paired_as_their_flat_rows(normal, solved, rows):
    images = normal("images", 20, 1, 2, 3)
    g = normal("g", 20).double()
    x0 = normal("x0", 9, 1, 2, 3)
    assert torch.equal(assigned(x0, images, g), assigned(x0.flatten(1), images.flatten(1), g))
    assert Semidiscrete(Gaussian((1, 2, 3)), images, g)(5, generator(0, "pairs")).x1.shape == (5, 1, 2, 3)


# what is refused


def refused(data, **changed):
    return potentials(Gaussian(), data, **{"seed": 0} | changed)


@pytest.mark.parametrize(
    ("data", "changed", "words"),
    [
        (torch.zeros(0, 2), {}, "no rows"),
        (torch.zeros(4, 3), {}, "must agree"),
        (torch.zeros(4, 2, dtype=torch.uint8), {}, "floats"),
        (torch.full((4, 2), math.nan), {}, "NaN"),
        (torch.zeros(4, 2), {"labels": torch.zeros(3, dtype=torch.int64)}, "labels"),
        (torch.zeros(4, 2), {"labels": torch.zeros(4)}, "labels"),
        (torch.zeros(4, 2), {"tolerance": 0.0}, "positive"),
        (torch.zeros(4, 2), {"draws_per_row": math.nan}, "positive"),
    ],
)
def test_what_an_ascent_refuses(data, changed, words):
    with pytest.raises(InputError, match=words):
        refused(data, **changed)


def test_what_pairing_refuses(rows):
    g, x0, labels = torch.zeros(300), torch.zeros(2, 2), torch.zeros(300, dtype=torch.int64)
    with pytest.raises(InputError, match="potentials"):
        assigned(x0, rows, g[1:])
    with pytest.raises(InputError, match="NaN"):
        Semidiscrete(Gaussian(), rows, g * math.inf)
    with pytest.raises(InputError, match="NaN"):
        assigned(x0 / 0, rows, g)
    with pytest.raises(InputError, match="both or neither"):
        assigned(x0, rows, g, labels)
    with pytest.raises(InputError, match="the label 7"):
        assigned(x0, rows, g, labels, torch.tensor([0, 7]))
    with pytest.raises(InputError, match="as many labels"):
        assigned(x0, rows, g, labels, torch.tensor([0]))


def test_the_last_state_is_the_result(rows):
    *_, last = ascend(Gaussian(), rows[:40], seed=0, tolerance=0.1)
    assert isinstance(last, Potentials)
    assert torch.equal(last.values, potentials(Gaussian(), rows[:40], seed=0, tolerance=0.1).values)
