"""Conditional optimal transport: the coupling within at weight 0, none at infinity, and a fair source between."""

import math
from itertools import permutations, product

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from flowgen.core import InputError, Pair, generator
from flowgen.couplings import ExactOT, Independent, Sinkhorn
from flowgen.couplings.bridge import SchroedingerBridge
from flowgen.couplings.conditional import Conditioned, found_weight
from flowgen.couplings.unbalanced import Partial, Unbalanced
from flowgen.pairs import batches

INNER = {
    "exact": ExactOT(),
    "exact-groups": ExactOT(group=7),
    "sinkhorn": Sinkhorn(),
    "bridge": SchroedingerBridge(2.0),
    "independent": Independent(),
}


@pytest.fixture
def rng():
    return generator(0, "conditions")


@pytest.fixture(params=list(INNER.values()), ids=list(INNER))
def inner(request):
    return request.param


@pytest.fixture
def made(normal):
    """made(n, *shape): a pair of unlike clouds, and as condition two numbers of each data row."""

    def make(n, *shape):
        x1 = 2 * normal("x1", n, *shape) + 1
        return Pair(normal("x0", n, *shape), x1, x1.flatten(1)[:, :1] * torch.tensor([1.0, -0.5]) + normal("c", n, 2))

    return make


def costs(pair, weight):
    """|x0_i - x1_j|^2 + weight |c_i - c_j|^2, one by one."""
    x0, x1, cond = (x.double().flatten(1).numpy() for x in pair)
    return np.array([[((a - b) ** 2).sum() + weight * ((c - d) ** 2).sum() for b, d in zip(x1, cond, strict=True)]
                     for a, c in zip(x0, cond, strict=True)])  # fmt: skip


def partners(pair, coupled):
    """Which row of the data each source row got; rows are unlike one another."""
    return (coupled.x1.flatten(1).unsqueeze(1) == pair.x1.flatten(1)).all(2).double().argmax(1)


# every coupling within


@pytest.mark.parametrize("weight", [None, 0.0, 0.7, 1e6])
def test_it_is_a_permutation_of_the_data_and_its_conditions(inner, weight, made, rng):
    for n, shape in product((1, 2, 23), ((1,), (2, 3, 4))):
        pair = made(n, *shape)
        coupled = Conditioned(inner, weight)(pair, rng)
        index = partners(pair, coupled)
        assert torch.equal(index.sort().values, torch.arange(n))
        for end, was in zip(coupled, pair.take(index)._replace(x0=pair.x0), strict=True):
            assert torch.equal(end, was)
            assert end.dtype == was.dtype


@pytest.mark.parametrize("inner", [*INNER.values(), Partial(), Unbalanced(penalty=0.1)], ids=str)
def test_without_weight_it_is_the_coupling_within(inner, made):
    pair = made(40, 3)
    conditioned = Conditioned(inner, 0.0)(pair, generator(3, "same"))
    plain = inner(pair, generator(3, "same"))
    assert torch.equal(conditioned.x1, plain.x1)
    assert torch.equal(conditioned.cond, plain.cond)


@pytest.mark.parametrize(
    "law", [Conditioned(weight=1e8), Conditioned(ratio=0.0), Conditioned(SchroedingerBridge(), 1e8)]
)
def test_a_condition_of_its_own_keeps_its_pair_at_last(law, made, rng):
    pair = made(100, 3)
    assert not torch.equal(ExactOT()(pair, rng).x1, pair.x1)
    assert torch.equal(law(pair, rng).x1, pair.x1)


def test_it_leaves_its_input_and_global_state_alone(inner, made, rng, global_state_untouched):
    pair, again = made(23, 2), made(23, 2)
    Conditioned(inner)(pair, rng)
    assert all(torch.equal(a, b) for a, b in zip(pair, again, strict=True))


# the cost


@pytest.mark.parametrize("weight", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_it_finds_what_trying_every_permutation_finds(made, rng, n, weight):
    pair = made(n, 2)
    cost = costs(pair, weight)
    index = partners(pair, Conditioned(weight=weight)(pair, rng))
    least = min(cost[range(n), order].sum() for order in map(list, permutations(range(n))))
    assert cost[range(n), index].sum() == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2)])
def test_it_finds_what_scipy_finds_at_the_weight_that_it_found(made, rng, shape):
    pair = made(80, *shape)
    cost = costs(pair, found_weight(*pair, 0.01))
    index = partners(pair, Conditioned(ExactOT(group=0))(pair, rng))
    assert cost[range(80), index].sum() == pytest.approx(cost[linear_sum_assignment(cost)].sum(), rel=1e-10)


def test_more_weight_brings_conditions_nearer_and_rows_apart(made, rng):
    pair = made(100, 3)
    coupled = [Conditioned(weight=weight)(pair, rng) for weight in (0.0, 0.1, 1.0, 10.0, 1e3)]
    moved = [float((each.cond - pair.cond).square().sum()) for each in coupled]
    length = [float((each.x1 - pair.x0).square().sum()) for each in coupled]
    assert moved == sorted(moved, reverse=True)
    assert length == sorted(length)
    assert len(set(moved)) == 5


def test_labels_written_as_numbers_are_kept_apart_as_labels_are(normal, rng):
    labels = torch.arange(60) % 3
    pair = Pair(normal("x0", 60, 2), normal("x1", 60, 2), labels)
    within = ExactOT()(pair, rng)
    numbers = pair._replace(cond=torch.nn.functional.one_hot(labels).double())
    for law in (Conditioned(weight=1e7), Conditioned()):
        coupled = law(numbers, rng)
        assert torch.equal(coupled.x1, within.x1)
        assert torch.equal(coupled.cond.argmax(1), within.cond)


@pytest.mark.parametrize("weight", [None, 1.0])
def test_it_does_not_see_the_order_of_the_pairs(made, rng, weight):
    pair, order = made(60, 2), torch.randperm(60, generator=rng)
    coupled = Conditioned(weight=weight)(pair, rng).take(order)
    shuffled = Conditioned(weight=weight)(pair.take(order), rng)
    assert all(torch.equal(a, b) for a, b in zip(coupled, shuffled, strict=True))


def test_the_weight_takes_up_the_unit_of_conditions(made, rng):
    pair = made(60, 2)
    plain = Conditioned()(pair, rng)
    assert torch.equal(Conditioned()(pair._replace(cond=40 * pair.cond + 7), rng).x1, plain.x1)
    turned = pair.cond @ torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)
    assert torch.equal(Conditioned()(pair._replace(cond=turned), rng).x1, plain.x1)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_conditions_of_any_shape_and_type_of_float(made, normal, rng, shape, dtype):
    pair = made(30, 2)
    cond = normal("other", 30, *shape).to(dtype)
    wide = pair._replace(cond=cond.double().reshape(30, -1))
    got, same = Conditioned(weight=2.0)(pair._replace(cond=cond), rng), Conditioned(weight=2.0)(wide, rng)
    assert torch.equal(got.x1, same.x1)
    assert got.cond.dtype == dtype
    assert got.cond.shape == cond.shape


# the weight


def share(pair, weight):
    """The share of pairs (i, j), j != i, that cost less than the pair i came in."""
    cost = costs(pair, weight)
    n, own = len(cost), np.diag(cost)[:, None]
    return (cost < own * (1 - 1e-9)).sum() / (n * (n - 1))


@pytest.mark.parametrize("ratio", [0.0, 0.003, 0.01, 0.1, 0.2])
@pytest.mark.parametrize("n", [20, 60])
def test_the_weight_found_is_the_least_for_its_ratio(made, n, ratio):
    pair, one = made(n, 3), 1 / (n * (n - 1))
    weight = found_weight(*pair, ratio)
    assert share(pair, 0.0) > 0.2
    assert ratio - one < share(pair, weight) <= ratio
    assert share(pair, weight * (1 - 1e-6)) > share(pair, weight)


@pytest.mark.parametrize("ratio", [0.7, 1.0])
def test_no_weight_is_needed_where_few_pairs_cost_less(made, ratio):
    pair = made(40, 3)
    assert share(pair, 0.0) < 0.7
    assert found_weight(*pair, ratio) == 0


@pytest.mark.parametrize("classes", [2, 5])
def test_equal_conditions_beyond_the_ratio_part_the_others(normal, classes):
    cond = torch.arange(40) % classes
    pair = Pair(normal("x0", 40, 2), normal("x1", 40, 2), 100 + normal("of a class", classes, 5)[cond])
    weight = found_weight(*pair, 0.001)
    equal, cost = np.equal.outer(cond.numpy(), cond.numpy()), costs(pair, 0.0)
    within = ((cost < np.diag(cost)[:, None]) & equal).sum() / (40 * 39)
    assert within > 0.01
    assert share(pair, weight) == pytest.approx(within)
    assert share(pair, weight * (1 - 1e-6)) > within


@pytest.mark.parametrize("weight", [None, 5.0])
def test_conditions_that_are_all_equal_change_nothing(made, rng, weight):
    pair = made(70, 2)
    equal = Pair(pair.x0, pair.x1, torch.full((70, 3), 0.1, dtype=torch.float64))
    assert found_weight(*equal, 0.01) == 0
    assert torch.equal(Conditioned(weight=weight)(equal, rng).x1, ExactOT()(equal, rng).x1)


@pytest.mark.parametrize("n", [1, 2])
def test_a_weight_is_found_for_the_fewest_rows(made, n):
    assert found_weight(*made(n, 2), 0.01) >= 0


# what it is for


def planted(n, generator):
    """Data that is its condition and a little noise in the first coordinate, and noise alone in the second."""
    cond = torch.randn(n, 1, generator=generator)
    noise = torch.randn(n, 2, generator=generator)
    return Pair(torch.randn(n, 2, generator=generator), torch.cat([cond + 0.3 * noise[:, :1], noise[:, 1:]], 1), cond)


def test_the_source_is_independent_of_the_condition():
    def correlation(coupling):
        stream = batches(planted, 256, seed=0, coupling=coupling)
        rows = Pair.cat([next(stream) for _ in range(8)])
        return float(torch.corrcoef(torch.cat([rows.x0, rows.cond], dim=1).T)[0, 2])

    error = 4 / (8 * 256) ** 0.5
    assert correlation(ExactOT()) > 0.85
    assert abs(correlation(Conditioned())) < error
    assert abs(correlation(Conditioned(weight=1e3))) < error
    assert correlation(Conditioned(weight=1.0)) > 5 * error  # too little weight is not enough


def test_what_no_condition_tells_is_still_transported():
    """Within a condition the second coordinate is free: there the rows come as near as the first keeps apart."""
    pair = planted(512, generator(0, "pairs"))
    second = [
        (coupled.x0 - coupled.x1)[:, 1].square().mean() for coupled in (pair, Conditioned()(pair, generator(0, "c")))
    ]
    assert second[1] < 0.6 * second[0]


# what is refused


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(InputError, match="weight of a condition"):
        Conditioned(weight=weight)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan])
def test_a_ratio_that_is_no_share_is_refused(ratio):
    with pytest.raises(InputError, match="ratio"):
        Conditioned(ratio=ratio)


@pytest.mark.parametrize(
    "cond", [None, torch.arange(8), torch.ones(8, dtype=torch.bool)], ids=["none", "labels", "bits"]
)
def test_rows_without_numbers_as_condition_are_refused(made, rng, cond):
    with pytest.raises(InputError, match="conditions that are floats"):
        Conditioned()(made(8, 2)._replace(cond=cond), rng)


@pytest.mark.parametrize("weight", [None, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(made, rng, weight, bad):
    for place in range(3):
        pair = made(8, 2)
        pair[place][3, 1] = bad
        with pytest.raises(InputError, match="NaN or infinite"):
            Conditioned(weight=weight)(pair, rng)


@pytest.mark.parametrize("weight", [None, 1.0])
@pytest.mark.parametrize("short", ["x0", "x1", "cond"])
def test_rows_of_different_number_are_refused(made, rng, weight, short):
    pair = made(8, 2)
    with pytest.raises(InputError, match=r"7.*8|8.*7"):
        Conditioned(weight=weight)(pair._replace(**{short: getattr(pair, short)[:7]}), rng)
