"""Couplings: the same ends paired anew."""

import math
from itertools import permutations

import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from flowgen.core import InputError, Pair, generator
from flowgen.couplings import ExactOT, Independent, Sinkhorn, assign, transport_cost
from flowgen.couplings.exact import SCIPY_BELOW

AROUND_THE_SWITCH = [2, 17, SCIPY_BELOW - 1, SCIPY_BELOW, SCIPY_BELOW + 1, 150]


@pytest.fixture
def rng():
    return generator(0, "couplings")


@pytest.fixture
def made(normal):
    """made(n, *shape): a pair of unlike clouds, each row with its own number, no label, as condition."""

    def make(n, *shape):
        return Pair(normal("x0", n, *shape), 2 * normal("x1", n, *shape) + 1, torch.arange(n).double())

    return make


def squares(x0, x1):
    """|x0_i - x1_j|^2 by differences."""
    return (x0.double().flatten(1).unsqueeze(1) - x1.double().flatten(1).unsqueeze(0)).square().sum(2)


def total(pair):
    return float((pair.x0.double() - pair.x1.double()).square().sum())


# every coupling


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 4, 4)])
@pytest.mark.parametrize("n", [1, 4, 23])
def test_a_coupling_is_a_permutation_of_the_data(coupling, made, rng, n, shape):
    pair = made(n, *shape)
    coupled = coupling(pair, rng)
    assert torch.equal(coupled.x0, pair.x0)
    assert torch.equal(coupled.cond.sort().values, pair.cond)
    assert torch.equal(coupled.x1, pair.x1[coupled.cond.long()])


def test_a_coupling_without_condition_gives_none(coupling, made, rng):
    assert coupling(made(10, 2)._replace(cond=None), rng).cond is None


def test_a_coupling_leaves_its_input_and_global_state_alone(coupling, made, rng, global_state_untouched):
    pair, again = made(23, 2), made(23, 2)
    coupling(pair, rng)
    assert torch.equal(pair.x1, again.x1)


def test_a_coupling_is_a_function_of_the_pair_and_the_generator(coupling, made):
    first, second = (coupling(made(23, 2), generator(5, "same")) for _ in range(2))
    assert torch.equal(first.cond, second.cond)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_coupling_keeps_the_type_of_its_ends(coupling, made, rng, dtype):
    pair = made(23, 2)
    coupled = coupling(Pair(pair.x0.to(dtype), pair.x1.to(dtype), pair.cond), rng)
    assert coupled.x1.dtype == dtype
    assert torch.equal(coupled.x1, pair.x1.to(dtype)[coupled.cond.long()])


@pytest.mark.parametrize("n", [3, SCIPY_BELOW + 1])
def test_a_coupling_stands_points_that_are_all_equal(coupling, rng, n):
    pair = Pair(torch.ones(n, 2), torch.full((n, 2), 3.0), torch.arange(n).double())
    assert torch.equal(coupling(pair, rng).cond.sort().values, pair.cond)


@pytest.mark.parametrize("grouped", [ExactOT(group=10), Sinkhorn(group=10)], ids=["exact", "sinkhorn"])
def test_rows_stay_in_their_group_and_the_last_may_be_short(grouped, made, rng):
    cond = grouped(made(25, 2), rng).cond
    assert torch.equal(cond // 10, torch.arange(25).double() // 10)


@pytest.mark.parametrize("solved", [ExactOT(), Sinkhorn(), ExactOT(group=0)], ids=["exact", "sinkhorn", "whole"])
class TestWhatSolvedCouplingsRefuse:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("end", ["x0", "x1"])
    @pytest.mark.filterwarnings("ignore:Sinkhorn stopped")
    def test_rows_that_are_not_finite(self, solved, made, rng, end, bad):
        pair = made(8, 2)
        getattr(pair, end)[3, 1] = bad
        with pytest.raises(InputError, match="NaN or infinite"):
            solved(pair, rng)

    def test_ends_of_different_length(self, solved, made, rng):
        with pytest.raises(InputError, match="8 and 7"):
            solved(Pair(made(8, 2).x0, made(7, 2).x1), rng)


def test_groups_of_fewer_than_no_rows_are_refused():
    for make in (ExactOT, Sinkhorn):
        with pytest.raises(InputError, match="group"):
            make(group=-1)


# exact optimal transport


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_transport_cost_is_the_squared_distance(made, offset):
    pair = made(20, 3)
    cost = transport_cost(pair.x0 + offset, pair.x1 + offset)
    torch.testing.assert_close(cost, squares(pair.x0, pair.x1), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n", range(1, 7))
def test_exact_ot_finds_what_trying_every_permutation_finds(made, rng, n):
    pair = made(n, 2)
    least = min(total(Pair(pair.x0, pair.x1[list(order)])) for order in permutations(range(n)))
    assert total(ExactOT()(pair, rng)) == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize("n", AROUND_THE_SWITCH)
def test_exact_ot_costs_what_scipy_and_pot_find(made, rng, n):
    pair = made(n, 4)
    cost = squares(pair.x0, pair.x1).numpy()
    found = total(ExactOT(group=0)(pair, rng))
    rows, columns = linear_sum_assignment(cost)
    assert found == pytest.approx(cost[rows, columns].sum(), rel=1e-10)
    assert found / n == pytest.approx(ot.emd2([], [], cost), rel=1e-9)


@pytest.mark.parametrize("n", AROUND_THE_SWITCH)
def test_assign_solves_any_cost_and_not_only_distances(normal, n):
    cost = 10 * normal("cost", n, n)
    index = assign(cost).numpy()
    assert sorted(index) == list(range(n))
    rows, columns = linear_sum_assignment(cost.numpy())
    assert cost.numpy()[rows, index].sum() == pytest.approx(cost.numpy()[rows, columns].sum(), rel=1e-10)


@pytest.mark.parametrize("group", [0, 1, 5, 128])
def test_exact_ot_never_costs_more_than_the_pairs_as_they_came(made, rng, group):
    pair = made(90, 3)
    assert total(ExactOT(group)(pair, rng)) <= total(pair) * (1 + 1e-12)


def test_larger_groups_never_cost_more(made, rng):
    costs = [total(ExactOT(group)(made(120, 2), rng)) for group in (1, 5, 10, 30, 60, 120)]
    assert costs == sorted(costs, reverse=True)


def test_one_row_groups_are_the_independent_coupling(made, rng):
    pair = made(12, 2)
    assert torch.equal(ExactOT(group=1)(pair, rng).cond, Independent()(pair, rng).cond)


@pytest.mark.parametrize("n", [20, SCIPY_BELOW + 6])
def test_exact_ot_does_not_see_the_order_of_its_rows(made, rng, n):
    pair = made(n, 2)
    partner = ExactOT()(pair, rng).cond
    order, other = torch.randperm(n, generator=rng), torch.randperm(n, generator=rng)
    shuffled = ExactOT()(Pair(pair.x0[order], pair.x1[other], pair.cond[other]), rng)
    assert torch.equal(shuffled.cond, partner[order])


def test_exact_ot_does_not_see_a_translation_of_either_end(made, rng):
    pair = made(40, 2)
    shift = torch.tensor([300.0, -20.0])
    moved = ExactOT()(pair._replace(x1=pair.x1 + shift), rng)
    assert torch.equal(moved.cond, ExactOT()(pair, rng).cond)


@pytest.mark.parametrize("n", [20, SCIPY_BELOW + 6])
def test_exact_ot_in_one_dimension_sorts(made, rng, n):
    pair = made(n, 1)
    coupled = ExactOT()(pair, rng)
    order = coupled.x0.squeeze(1).argsort()
    assert torch.equal(coupled.x1[order], pair.x1.sort(dim=0).values)


@pytest.mark.parametrize("n", [20, SCIPY_BELOW + 6])
def test_exact_ot_finds_every_row_of_two_equal_clouds(normal, rng, n):
    x = normal("cloud", n, 3)
    order = torch.randperm(n, generator=rng)
    assert torch.equal(ExactOT()(Pair(x, x[order]), rng).x1, x)


@pytest.mark.parametrize("n", [20, SCIPY_BELOW + 6])
def test_exact_ot_of_duplicated_points_is_a_permutation(normal, rng, n):
    x0, x1 = normal("x0", n // 2, 2).repeat(2, 1), normal("x1", n // 2, 2).repeat(2, 1)
    coupled = ExactOT()(Pair(x0, x1, torch.arange(n).double()), rng)
    assert torch.equal(coupled.cond.sort().values, torch.arange(n).double())
    assert total(coupled) / n == pytest.approx(ot.emd2([], [], squares(x0, x1).numpy()), rel=1e-9)
