"""Couplings that relax the data: plans are optimal, draws follow them evenly, outliers get nothing."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linprog

from flowgen.core import InputError, Pair, generator
from flowgen.couplings import ExactOT, sinkhorn
from flowgen.couplings.unbalanced import Partial, Unbalanced

LAWS = {
    "partial": Partial(),
    "partial-half": Partial(0.5, group=7),
    "partial-all": Partial(1.0),
    "unbalanced": Unbalanced(),
    "unbalanced-loose": Unbalanced(0.2, 0.3, group=7),
    "unbalanced-held": Unbalanced(penalty=math.inf),
}
NEAR_WHOLE = 1e-9
"""Rounding of an expected count."""


@pytest.fixture(params=list(LAWS.values()), ids=list(LAWS))
def relaxed(request):
    return request.param


@pytest.fixture
def rng():
    return generator(0, "relaxed")


@pytest.fixture
def made(normal):
    """made(n, *shape): a pair of unlike clouds, each row with its own number, no label, as condition."""

    def make(n, *shape):
        return Pair(normal("x0", n, *shape), 2 * normal("x1", n, *shape) + 1, torch.arange(n).double())

    return make


@pytest.fixture
def with_outliers(normal):
    """with_outliers(distance): 120 pairs; the last 6 data rows are so far from a narrow cloud."""

    def make(distance):
        x0, x1 = normal("x0", 120, 2), 0.5 * normal("x1", 120, 2) + 1
        x1[114:, 0] += distance
        return Pair(x0, x1, torch.arange(120).double())

    return make


def squares(x0, x1):
    """|x0_i - x1_j|^2 by differences."""
    return (x0.double().flatten(1).unsqueeze(1) - x1.double().flatten(1).unsqueeze(0)).square().sum(2)


def total(pair):
    return float((pair.x0.double() - pair.x1.double()).square().sum())


def soft(relaxed, pair):
    """The plan of all rows."""
    plan = relaxed.plan(pair.x0, pair.x1)
    return plan if isinstance(relaxed, Partial) else plan.log_plan.exp()


# every relaxed coupling


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 4, 4)])
@pytest.mark.parametrize("n", [1, 4, 23])
def test_sources_stay_and_data_come_with_their_conditions(relaxed, made, rng, n, shape):
    pair = made(n, *shape)
    coupled = relaxed(pair, rng)
    assert torch.equal(coupled.x0, pair.x0)
    assert torch.equal(coupled.x1, pair.x1[coupled.cond.long()])
    assert relaxed(pair._replace(cond=None), rng).cond is None


def test_rows_with_labels_stay_in_their_class(relaxed, made, rng):
    pair, labels = made(60, 2), torch.arange(60) % 3
    coupled = relaxed(pair._replace(cond=labels), rng)
    assert torch.equal(coupled.cond, labels)
    came_from = squares(coupled.x1, pair.x1).argmin(1)
    assert torch.equal(labels[came_from], labels)


@pytest.mark.parametrize("make", [Partial, Unbalanced])
def test_rows_stay_in_their_group_and_the_last_may_be_short(make, made, rng):
    cond = make(group=10)(made(25, 2), rng).cond
    assert torch.equal(cond // 10, torch.arange(25).double() // 10)


def test_pairs_are_a_function_of_the_pair_and_the_generator(relaxed, made, global_state_untouched):
    pair, again = made(23, 2), made(23, 2)
    first, second = (relaxed(pair, generator(5, "same")) for _ in range(2))
    assert torch.equal(first.cond, second.cond)
    assert torch.equal(pair.x1, again.x1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_ends_keep_their_type(relaxed, made, rng, dtype):
    pair = made(23, 2)
    coupled = relaxed(Pair(pair.x0.to(dtype), pair.x1.to(dtype), pair.cond), rng)
    assert coupled.x1.dtype == dtype
    assert torch.equal(coupled.x1, pair.x1.to(dtype)[coupled.cond.long()])


@pytest.mark.parametrize("place", [1.0, 3.0])
def test_points_that_are_all_equal_are_coupled(relaxed, rng, place):
    pair = Pair(torch.ones(9, 2), torch.full((9, 2), place), torch.arange(9).double())
    assert torch.equal(relaxed(pair, rng).x1, pair.x1)


def test_equal_points_do_not_take_the_unit_from_costs(made):
    """Where more than half of the costs are 0, so is their median."""
    pair = made(12, 2)
    for x in pair[:2]:
        x[:11] = 0
    first, scaled = (soft(Unbalanced(), Pair(unit * pair.x0, unit * pair.x1)) for unit in (1, 1000))
    torch.testing.assert_close(first, scaled, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("end", ["x0", "x1"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_are_refused(relaxed, made, rng, end, bad):
    pair = made(8, 2)
    getattr(pair, end)[3, 1] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        relaxed(pair, rng)


def test_ends_of_different_length_are_refused(relaxed, made, rng):
    with pytest.raises(InputError, match="8 and 7"):
        relaxed(Pair(made(8, 2).x0, made(7, 2).x1), rng)


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        *((Partial, (mass,)) for mass in (0.0, -0.5, 1.1, math.nan)),
        *((Unbalanced, (epsilon,)) for epsilon in (0.0, -1.0, math.inf, math.nan)),
        *((Unbalanced, (0.1, penalty)) for penalty in (0.0, -1.0, math.nan)),
        (Unbalanced, (0.1, 1.0, 0.0)),
        (Unbalanced, (0.1, 1.0, 1e-3, 0)),
        (Partial, (0.9, -1)),
        (Unbalanced, (0.1, 1.0, 1e-3, 10, -1)),
    ],
)
def test_parameters_that_make_no_plan_are_refused(make, parameters):
    with pytest.raises(InputError, match=r"needs a|group must"):
        make(*parameters)


# what they are for


@pytest.mark.parametrize("distance", [8.0, 30.0, 1000.0])
@pytest.mark.parametrize("relaxed", [Partial(0.9), Unbalanced()], ids=["partial", "unbalanced"])
def test_outliers_get_no_pairs(relaxed, with_outliers, rng, distance):
    pair = with_outliers(distance)
    coupled = relaxed(pair, rng)
    assert int((coupled.cond >= 114).sum()) <= 1
    clean = ExactOT()(pair.take(slice(0, 114)), rng)
    moved, least = ((x.x1 - x.x0).norm(dim=1).mean() for x in (coupled, clean))
    assert 0.85 * least < moved < 1.15 * least
    with_all = ExactOT()(pair, rng)
    assert (with_all.x1 - with_all.x0).norm(dim=1).mean() > 1.2 * moved


# the plans of partial transport


def linear_program(cost, mass):
    """The least <P, cost> with rows that sum to 1/n and columns to at most 1/(mass n)."""
    n = len(cost)
    rows, columns = np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))
    found = linprog(cost.flatten(), columns, np.full(n, 1 / (mass * n)), rows, np.full(n, 1 / n))
    return found.fun


@pytest.mark.parametrize("mass", [0.05, 0.3, 0.5, 0.77, 0.9, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7, 12])
def test_the_partial_plan_costs_what_a_linear_program_finds(made, n, mass):
    pair = made(n, 2)
    cost, plan = squares(pair.x0, pair.x1), Partial(mass).plan(pair.x0, pair.x1)
    assert plan.min() >= 0
    torch.testing.assert_close(plan.sum(1), torch.full((n,), 1 / n).double())
    assert plan.sum(0).max() <= 1 / (mass * n) * (1 + 1e-9)
    assert float((plan * cost).sum()) == pytest.approx(linear_program(cost.numpy(), mass), rel=1e-9)


def test_the_partial_plan_costs_what_pot_finds(made):
    pair, uniform = made(80, 3), np.full(80, 1 / 80)
    cost = squares(pair.x0, pair.x1).numpy()
    theirs = ot.partial.partial_wasserstein2(uniform, uniform / 0.8, cost, m=uniform.sum())
    assert float((Partial(0.8).plan(pair.x0, pair.x1).numpy() * cost).sum()) == pytest.approx(theirs, rel=1e-9)


def test_a_mass_of_one_is_exact_ot(made, rng):
    pair = made(90, 2)
    for group in (0, 15, 20, 23):
        assert torch.equal(Partial(1.0, group)(pair, rng).cond, ExactOT(group)(pair, rng).cond)


def test_the_least_mass_gives_every_source_its_nearest_data(made, rng):
    pair = made(30, 2)
    assert torch.equal(Partial(1e-9)(pair, rng).cond.long(), squares(pair.x0, pair.x1).argmin(1))


def test_at_least_the_mass_is_used_at_the_least_cost(made):
    pair = made(40, 2)
    plans = {mass: Partial(mass).plan(pair.x0, pair.x1) for mass in (0.2, 0.5, 0.9, 1.0)}
    for mass, plan in plans.items():
        assert int((plan.sum(0) > 0).sum()) >= 40 * mass
    spent = [float((plan * squares(pair.x0, pair.x1)).sum()) for plan in plans.values()]
    assert spent == sorted(spent)


# the plans of unbalanced transport


def optimality(cost, log_plan, epsilon, penalty):
    """d/dP_ij of <P, cost> - epsilon H(P) + penalty KL(columns | uniform), which may depend on the row alone."""
    slope = cost + epsilon * log_plan + penalty * log_plan.logsumexp(0)
    return slope - slope.min(1, keepdim=True).values


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0, 1e4])
def test_the_unbalanced_plan_is_that_of_pot(made, epsilon, penalty):
    pair, uniform = made(30, 2), np.full(30, 1 / 30)
    cost = squares(pair.x0, pair.x1)
    unit = float(cost.median())
    plan = Unbalanced(epsilon, penalty, tolerance=1e-9, iterations=20_000).plan(pair.x0, pair.x1)
    theirs = ot.unbalanced.sinkhorn_unbalanced(
        uniform,
        uniform,
        cost.numpy(),
        epsilon * unit,
        (math.inf, penalty * unit),
        method="sinkhorn_translation_invariant",
        numItermax=100_000,
        stopThr=1e-13,
    )
    np.testing.assert_allclose(plan.log_plan.exp(), theirs, atol=1e-8)


@pytest.mark.parametrize("distance", [0.0, 10.0, 1000.0])
@pytest.mark.parametrize("penalty", [0.1, 3.0, 50.0])
def test_the_plan_is_optimal_however_far_the_outliers(with_outliers, distance, penalty):
    pair = with_outliers(distance)
    cost = squares(pair.x0, pair.x1)
    plan = Unbalanced(0.05, penalty, tolerance=1e-10, iterations=20_000).plan(pair.x0, pair.x1)
    unit = float(cost.median())
    assert plan.converged
    rest = optimality(cost, plan.log_plan, 0.05 * unit, penalty * unit)[:, plan.log_plan.logsumexp(0) > -600]
    assert rest.shape[1] >= 114
    torch.testing.assert_close(rest, rest[:, :1].expand_as(rest), rtol=0, atol=1e-5 * unit)
    torch.testing.assert_close(plan.log_plan.exp().sum(1), torch.full((120,), 1 / 120).double())


def test_the_error_falls_with_distance_from_the_optimum(made):
    pair = made(40, 2)
    best = soft(Unbalanced(0.02, 1.0, tolerance=1e-12, iterations=20_000), pair)
    for tolerance in (1e-2, 1e-4, 1e-6):
        plan = Unbalanced(0.02, 1.0, tolerance).plan(pair.x0, pair.x1)
        assert plan.error < tolerance
        assert float((plan.log_plan.exp() - best).abs().sum()) < 30 * tolerance


def test_an_infinite_penalty_gives_the_plan_of_sinkhorn(made):
    pair = made(40, 2)
    cost = squares(pair.x0, pair.x1)
    plan = sinkhorn(cost, 0.05 * float(cost.flatten().median()), tolerance=1e-9).log_plan.exp()
    for penalty in (math.inf, 1e9):
        torch.testing.assert_close(soft(Unbalanced(0.05, penalty, 1e-9), pair), plan, rtol=0, atol=1e-8)


@pytest.mark.parametrize("penalty", [1.0, 100.0, 1e4])
def test_large_penalties_converge_as_fast_as_small_ones(made, penalty):
    pair = made(128, 2)
    assert Unbalanced(0.05, penalty, tolerance=1e-8).plan(pair.x0, pair.x1).iterations <= 100


def test_without_a_penalty_sources_draw_by_their_own_costs(made):
    pair = made(40, 2)
    cost = squares(pair.x0, pair.x1)
    alone = torch.softmax(-cost / (0.3 * cost.flatten().median()), 1) / 40
    torch.testing.assert_close(soft(Unbalanced(0.3, 1e-9), pair), alone, rtol=0, atol=1e-6)


def test_plans_have_no_unit_but_that_of_the_data(relaxed, made):
    pair = made(30, 2)
    torch.testing.assert_close(
        soft(relaxed, pair), soft(relaxed, Pair(1000 * pair.x0, 1000 * pair.x1)), rtol=1e-7, atol=1e-9
    )


def test_outliers_do_not_blur_the_others(with_outliers):
    near, far = (soft(Unbalanced(tolerance=1e-8), with_outliers(distance)) for distance in (30.0, 1000.0))
    assert float((near - far).abs().sum()) < 0.02


def test_a_plan_that_has_not_converged_is_used_with_a_warning(made, rng):
    pair = made(30, 2)
    with pytest.warns(RuntimeWarning, match="2 iterations"):
        coupled = Unbalanced(epsilon=0.005, iterations=2)(pair, rng)
    assert torch.equal(coupled.x0, pair.x0)


def test_diagnostics_are_of_all_groups(made):
    pair, relaxed = made(25, 2), Unbalanced(group=10, tolerance=1e-8)
    plans = [relaxed.plan(pair.x0[rows], pair.x1[rows]) for rows in torch.arange(25).split(10)]
    facts = relaxed.diagnostics(pair.x0, pair.x1)
    assert facts["plan_entropy"] == pytest.approx(np.mean([float(plan.entropy) for plan in plans]), abs=1e-6)
    assert 0 < facts["marginal_error"] < 1e-8


# draws

DRAWS = 600


def counted(relaxed, pair, rng):
    """How often each pair came up, `(draws, n, n)`."""
    n = len(pair.x0)
    index = torch.stack([relaxed(pair, rng).cond.long() for _ in range(DRAWS)])
    return torch.nn.functional.one_hot(index, n).double()


@pytest.mark.costly
@pytest.mark.parametrize("relaxed", [Partial(0.9), Partial(0.37), Unbalanced(0.1, 1.0), Unbalanced(0.5, 0.1)], ids=str)
def test_data_rows_are_used_as_often_as_expected(relaxed, made, rng):
    pair = made(15, 2)
    used, mean = counted(relaxed, pair, rng).sum(1), 15 * soft(relaxed, pair).sum(0)
    assert (used >= (mean + NEAR_WHOLE).floor()).all()
    assert (used <= (mean - NEAR_WHOLE).ceil()).all()
    deviation = ((mean - mean.floor()) * (mean.ceil() - mean) / DRAWS).sqrt()
    assert ((used.mean(0) - mean).abs() < 4.5 * deviation + NEAR_WHOLE).all()


@pytest.mark.costly
@pytest.mark.parametrize(("n", "mass"), [(15, 0.9), (15, 0.37), (23, 0.6), (40, 0.3), (40, 0.8)])
def test_partial_pairs_are_drawn_from_the_plan_of_each_row(made, rng, n, mass):
    pair = made(n, 2)
    average, given = counted(Partial(mass), pair, rng).mean(0), (n * soft(Partial(mass), pair)).clamp(max=1)
    assert ((given > 0.05) & (given < 0.95)).any()  # there is something to draw
    assert ((average - given).abs() < 4.5 * (given * (1 - given) / DRAWS).sqrt() + NEAR_WHOLE).all()


def test_rows_that_share_nothing_are_drawn_independently(made, rng):
    pair = made(15, 2)
    twice = Pair(*(torch.cat([x, x + 1000]) for x in pair))
    index = torch.stack([Partial(0.9)(twice, rng).cond for _ in range(50)])
    left, right = index[:, :15], index[:, 15:] - 1000
    assert int((left != left[0]).any(1).sum()) > 10
    assert int((left != right).any(1).sum()) > 10


@pytest.mark.costly
@pytest.mark.parametrize("relaxed", [Unbalanced(0.1, 1.0), Unbalanced(0.5, 0.1), Unbalanced(0.05, 3.0)], ids=str)
def test_unbalanced_pairs_are_nearly_drawn_from_the_plan(relaxed, made, rng):
    pair = made(15, 2)
    average, plan = counted(relaxed, pair, rng).mean(0) / 15, soft(relaxed, pair)
    assert float((average - plan).abs().sum()) / 2 < 0.07
    assert float((plan - 1 / 225).abs().sum()) / 2 > 0.18  # the independent coupling is far from it
