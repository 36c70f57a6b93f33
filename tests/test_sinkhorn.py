"""Entropic couplings: plans are those that theory names, groups are solved as if alone, and pairs follow the plan."""

import math
import warnings
from itertools import permutations

import numpy as np
import ot
import pytest
import torch
from scipy.stats import chisquare, entropy, norm
from torch.utils._python_dispatch import TorchDispatchMode

from flowgen.core import InputError, Pair, generator
from flowgen.couplings import ExactOT, Sinkhorn, sinkhorn
from flowgen.couplings.bridge import SchroedingerBridge
from flowgen.couplings.sinkhorn import costs


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


@pytest.fixture
def easy_and_hard(normal):
    """Costs of two groups: one cloud, and two far ones whose sizes differ between the ends, so that mass must cross."""
    x0, x1 = normal("crossing 0", 2, 60, 2), normal("crossing 1", 2, 60, 2)
    x0[1, :30, 0] += 12
    x1[1, :33, 0] += 12
    return costs(x0, x1)


# plans


def marginal_error(log_plan):
    plan, n = log_plan.exp(), len(log_plan)
    return float((plan.sum(1) - 1 / n).abs().sum() + (plan.sum(0) - 1 / n).abs().sum())


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 1.0, 30.0])
def test_the_sinkhorn_plan_is_that_of_pot(made, epsilon):
    pair = made(30, 2)
    cost = squares(pair.x0, pair.x1)
    plan = sinkhorn(cost, epsilon * float(cost.mean()), tolerance=1e-10, iterations=100_000)
    uniform = np.full(30, 1 / 30)
    theirs = ot.sinkhorn(
        uniform, uniform, cost.numpy(), epsilon * float(cost.mean()), "sinkhorn_log", numItermax=100_000, stopThr=1e-12
    )
    np.testing.assert_allclose(plan.log_plan.exp().numpy(), theirs, atol=1e-9)


@pytest.mark.parametrize("iterations", [1, 2, 7, 2000])
def test_the_marginal_error_of_a_plan_is_what_it_reports(made, iterations):
    pair = made(30, 2)
    plan = sinkhorn(squares(pair.x0, pair.x1), 0.3, tolerance=1e-6, iterations=iterations)
    assert float(plan.error) == pytest.approx(marginal_error(plan.log_plan), abs=1e-12)
    assert plan.iterations <= iterations
    assert plan.converged == (plan.error < 1e-6)
    assert plan.converged or plan.iterations == iterations


def test_the_sinkhorn_plan_has_the_least_regularised_cost(made):
    """Any other plan with uniform marginals costs more: the derivative along every swap of mass is zero."""
    pair = made(12, 2)
    cost, epsilon = squares(pair.x0, pair.x1), 2.0
    log_plan = sinkhorn(cost, epsilon, tolerance=1e-12, iterations=50_000).log_plan
    slope = cost + epsilon * log_plan  # d/dP of <P, cost> + epsilon sum P log P, up to a constant
    swaps = slope[:-1, :-1] + slope[1:, 1:] - slope[:-1, 1:] - slope[1:, :-1]
    torch.testing.assert_close(swaps, torch.zeros_like(swaps), rtol=0, atol=1e-9)


@pytest.mark.costly
def test_sinkhorn_becomes_exact_ot_as_epsilon_falls(made, rng):
    pair = made(40, 2)
    cost = squares(pair.x0, pair.x1)
    least = ot.emd2([], [], cost.numpy())
    excess = []
    for epsilon in (1.0, 0.1, 0.01, 0.002):
        plan = Sinkhorn(epsilon, tolerance=1e-7, iterations=20_000).plan(pair.x0, pair.x1).log_plan.exp()
        excess.append(float((plan * cost).sum()) / least - 1)
    assert excess == sorted(excess, reverse=True)
    assert 0 < excess[-1] < 0.01
    assert total(Sinkhorn(0.002, iterations=20_000)(pair, rng)) / 40 == pytest.approx(least, rel=0.01)


def test_sinkhorn_becomes_the_independent_plan_as_epsilon_grows(made):
    pair = made(40, 2)
    plan = Sinkhorn(epsilon=1e6).plan(pair.x0, pair.x1).log_plan.exp()
    torch.testing.assert_close(plan, torch.full_like(plan, 1 / 1600), rtol=1e-4, atol=0)


@pytest.mark.costly
def test_infinite_epsilon_makes_permutations_alike(made, rng):
    pair = made(3, 2)
    entropic = Sinkhorn(epsilon=1e9)
    counts = dict.fromkeys(permutations(range(3)), 0)
    for _ in range(1200):
        counts[tuple(entropic(pair, rng).cond.tolist())] += 1
    assert chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.costly
@pytest.mark.parametrize("epsilon", [0.03, 0.1, 0.5])
def test_the_average_of_drawn_permutations_is_close_to_the_plan(made, rng, epsilon):
    pair, entropic, draws = made(12, 2), Sinkhorn(epsilon, tolerance=1e-8), 400
    average = torch.zeros(12, 12, dtype=torch.float64)
    for _ in range(draws):
        average[torch.arange(12), entropic(pair, rng).cond.long()] += 1 / draws / 12
    plan = entropic.plan(pair.x0, pair.x1).log_plan.exp()
    assert float((average - plan).abs().sum()) / 2 < 0.07
    assert float((plan - 1 / 144).abs().sum()) / 2 > 0.18  # the independent coupling is far from it


def test_the_unit_of_epsilon_is_the_mean_cost(made):
    pair = made(30, 2)
    plan, scaled = Sinkhorn().plan(pair.x0, pair.x1), Sinkhorn().plan(1000 * pair.x0, 1000 * pair.x1)
    torch.testing.assert_close(plan.log_plan, scaled.log_plan, rtol=1e-8, atol=1e-8)


def test_an_unconverged_plan_warns_of_its_error(made, rng):
    pair, entropic = made(30, 2), Sinkhorn(epsilon=0.005, tolerance=1e-6, iterations=3)
    with pytest.warns(RuntimeWarning, match=f"3 iterations.*{entropic.plan(pair.x0, pair.x1).error:.2g}"):
        coupled = entropic(pair, rng)
    assert torch.equal(coupled.cond.sort().values, pair.cond)


@pytest.mark.parametrize(
    "parameters",
    [(0.0, 1e-3), (-1.0, 1e-3), (math.inf, 1e-3), (math.nan, 1e-3), (0.1, 0.0), (0.1, math.nan), (0.1, 1e-3, 0)],
)
def test_sinkhorn_refuses_parameters_that_make_no_plan(parameters):
    with pytest.raises(InputError, match="Sinkhorn"):
        Sinkhorn(*parameters)


# groups


@pytest.mark.parametrize("shape", [(2,), (1, 3, 3)])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_costs_of_groups_are_their_squared_distances(normal, shape, offset):
    x0, x1 = normal("x0", 3, 20, *shape), normal("x1", 3, 20, *shape)
    for cost, a, b in zip(costs(x0 + offset, x1 + offset), x0, x1, strict=True):
        torch.testing.assert_close(cost, squares(a, b), rtol=1e-8, atol=1e-8)


@pytest.mark.costly
def test_plans_of_many_groups_are_those_of_each_alone(normal):
    cost = costs(normal("x0", 4, 30, 2), 2 * normal("x1", 4, 30, 2))
    epsilon = torch.tensor([0.3, 1.0, 5.0, 100.0]).double().view(4, 1, 1)
    plans = sinkhorn(cost, epsilon, tolerance=1e-10, iterations=20_000).log_plan
    for plan, one, unit in zip(plans, cost, epsilon, strict=True):
        alone = sinkhorn(one, float(unit), tolerance=1e-10, iterations=20_000).log_plan
        torch.testing.assert_close(plan.exp(), alone.exp(), rtol=0, atol=1e-10)


def test_a_batch_has_converged_when_its_worst_group_has(easy_and_hard):
    easy, hard = (sinkhorn(cost, 1.0, tolerance=1e-5, iterations=20_000) for cost in easy_and_hard)
    both = sinkhorn(easy_and_hard, 1.0, tolerance=1e-5, iterations=20_000)
    assert both.iterations == hard.iterations > easy.iterations
    assert both.error.max() < 1e-5
    early = sinkhorn(easy_and_hard, 1.0, tolerance=1e-5, iterations=easy.iterations)
    assert (early.error < 1e-5).tolist() == [True, False]
    assert not early.converged


def test_groups_are_coupled_within_themselves(made, rng):
    pair = made(47, 2)
    coupled = Sinkhorn(0.001, group=10, iterations=20_000)(pair, rng)
    for rows in torch.arange(47).split(10):
        part = ExactOT(group=0)(pair.take(rows), rng)
        assert total(coupled.take(rows)) == pytest.approx(total(part), rel=0.02)


def test_a_warning_states_the_error_of_the_worst_group(made, rng):
    pair, entropic = made(50, 2), Sinkhorn(0.005, group=10, iterations=2)
    worst = max(float(entropic.plan(pair.x0[rows], pair.x1[rows]).error) for rows in torch.arange(50).split(10))
    with pytest.warns(RuntimeWarning, match=f"error of {worst:.2g}"):
        entropic(pair, rng)


# convergence


@pytest.mark.parametrize("epsilon", [0.2, 0.05, 0.005, 0.002])
@pytest.mark.parametrize("dim", [1, 2, 64])
def test_small_epsilons_converge_within_a_few_hundred_updates(made, epsilon, dim):
    pair = made(128, dim)  # plain updates take up to some thousand
    assert Sinkhorn(epsilon, iterations=600).plan(pair.x0, pair.x1).converged


def test_mass_that_has_to_cross_a_gap_does(easy_and_hard):
    plan = sinkhorn(easy_and_hard, 0.05 * easy_and_hard.mean((1, 2), keepdim=True))
    assert plan.converged
    assert float(plan.log_plan[1].exp()[30:, :33].sum()) == pytest.approx(3 / 60, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [1e-3, 1e-6])
def test_sweeps_that_leave_the_range_of_floats_still_give_plans(normal, dtype, epsilon):
    cost = (3 * normal("cost", 2, 40, 40)).exp().to(dtype)
    plan = sinkhorn(cost, epsilon * cost.mean((1, 2), keepdim=True), iterations=300)
    assert plan.log_plan.dtype == dtype
    assert plan.log_plan.isfinite().all()
    torch.testing.assert_close(plan.log_plan.exp().sum(2), torch.full((2, 40), 1 / 40, dtype=dtype), rtol=0.02, atol=0)
    assert (plan.error < 0.5).all()


class Looks(TorchDispatchMode):
    """Counts how often Python looks at a value of a tensor, for which it would have to wait for a device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_device_is_waited_for_at_looks_only(easy_and_hard):
    with Looks() as looks:
        plan = sinkhorn(easy_and_hard, 1.0, tolerance=1e-30, iterations=500)
    assert plan.iterations == 500
    assert 50 <= looks.count <= 110


def test_rows_that_coincide_leave_the_other_groups_alone(made, rng):
    pair = made(20, 2)
    for x in pair[:2]:
        x[:10] = 1.0
    assert torch.equal(Sinkhorn(group=10)(pair, rng).cond.sort().values, pair.cond)
    facts, alone = Sinkhorn(group=10).diagnostics(pair.x0, pair.x1), Sinkhorn().plan(pair.x0[10:], pair.x1[10:])
    assert facts["plan_entropy"] == pytest.approx((1 + float(alone.entropy)) / 2, abs=1e-3)


# entropy and facts


def test_the_entropy_of_a_plan_is_that_of_scipy(normal):
    cost = costs(normal("x0", 4, 30, 2), normal("x1", 4, 30, 2))
    plan = sinkhorn(cost, torch.tensor([0.02, 0.3, 3.0, 1e6]).double().view(4, 1, 1), iterations=20_000)
    theirs = [entropy(log_plan.exp().flatten(), base=30) - 1 for log_plan in plan.log_plan]
    np.testing.assert_allclose(plan.entropy, theirs, atol=1e-4)
    assert plan.entropy.tolist() == sorted(plan.entropy.tolist())
    assert 0 < plan.entropy[0] < 0.2
    assert plan.entropy[3] == pytest.approx(1, abs=1e-6)


def test_the_entropy_of_a_sharp_plan_is_none(normal):
    x = 10 * normal("x", 1, 20, 3)
    assert float(sinkhorn(costs(x, x), 1e-3).entropy) == pytest.approx(0, abs=1e-3)


def test_one_row_has_no_entropy_and_no_error(made):
    plan = Sinkhorn().plan(*made(1, 2)[:2])
    assert float(plan.entropy) == float(plan.error) == 0


@pytest.mark.parametrize(
    "entropic", [Sinkhorn(0.3, 1e-9, 4, group=10), SchroedingerBridge(1.0, 1e-9, 4, group=10)], ids=str
)
def test_diagnostics_are_of_all_groups(made, entropic):
    pair = made(25, 2)
    plans = [entropic.plan(pair.x0[rows], pair.x1[rows]) for rows in torch.arange(25).split(10)]
    facts = entropic.diagnostics(pair.x0, pair.x1)
    assert facts["plan_entropy"] == pytest.approx(np.mean([float(plan.entropy) for plan in plans]), rel=1e-9)
    assert facts["marginal_error"] == pytest.approx(max(float(plan.error) for plan in plans), rel=1e-6)


def test_facts_are_those_of_the_classes(made):
    pair, labels = made(40, 2), torch.arange(40) % 2
    facts = Sinkhorn().diagnostics(pair.x0, pair.x1, labels)
    plans = [Sinkhorn().plan(pair.x0[labels == k], pair.x1[labels == k]) for k in (0, 1)]
    assert facts["plan_entropy"] == pytest.approx(sum(float(plan.entropy) for plan in plans) / 2, abs=1e-3)


# the Schroedinger bridge


def quantiles(n, std):
    """Rows `(n, 1)` that stand for N(0, std^2): their variance is std^2 to the last bit."""
    x = torch.from_numpy(norm.ppf((np.arange(n) + 0.5) / n)).unsqueeze(1)
    return x * (std / x.square().mean().sqrt())


def gaussian_covariance(a, b, sigma):
    """E[x0 x1] of the entropic plan between N(0, a^2) and N(0, b^2) with epsilon = 2 sigma^2 (arXiv 2006.02572)."""
    return (math.sqrt(4 * a**2 * b**2 + sigma**4) - sigma**2) / 2


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.5, 2.0)])
def test_the_bridge_between_gaussians_of_the_line_is_gaussian(a, b, sigma):
    x0, x1 = quantiles(600, a), quantiles(600, b)
    plan = SchroedingerBridge(sigma, tolerance=1e-8).plan(x0, x1).log_plan.exp()
    assert float(x0.T @ plan @ x1) == pytest.approx(gaussian_covariance(a, b, sigma), abs=0.003 * a * b)
    slope = 600 * plan @ x1 / x0  # the mean of x1 given x0 is linear
    inner = slope[150:250]
    torch.testing.assert_close(
        inner, torch.full_like(inner, gaussian_covariance(a, b, sigma) / a**2), rtol=0.01, atol=0
    )


@pytest.mark.parametrize("sigma", [0.5, 1.5])
def test_the_bridge_of_gaussians_is_that_of_each_axis(sigma):
    def grid(a, b):
        return torch.cartesian_prod(quantiles(24, a).squeeze(1), quantiles(24, b).squeeze(1))

    x0, x1 = grid(1.0, 0.5), grid(2.0, 1.0)
    plan = SchroedingerBridge(sigma, tolerance=1e-8).plan(x0, x1).log_plan.exp()
    expected = torch.diag(torch.tensor([gaussian_covariance(1, 2, sigma), gaussian_covariance(0.5, 1, sigma)]).double())
    torch.testing.assert_close(x0.T @ plan @ x1, expected, rtol=0.03, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.4, 2.0])
def test_swaps_of_ends_are_as_likely_as_under_brownian_motion(made, sigma):
    """P_ij P_kl / (P_il P_kj) is that of the transition density: the plan is the reference with other marginals."""
    pair = made(15, 2)
    log_plan = SchroedingerBridge(sigma).plan(pair.x0, pair.x1).log_plan
    density = norm.logpdf(pair.x1.unsqueeze(0), loc=pair.x0.unsqueeze(1), scale=sigma).sum(2)
    for x in (first := log_plan.numpy(), density):
        x -= x[:1] + x[:, :1] - x[0, 0]
    np.testing.assert_allclose(first, density, atol=1e-7)


def test_the_sigma_of_a_bridge_has_the_unit_of_the_ends(made):
    pair = made(30, 2)
    plan, scaled = (
        SchroedingerBridge(0.5).plan(pair.x0, pair.x1),
        SchroedingerBridge(50).plan(*(100 * x for x in pair[:2])),
    )
    torch.testing.assert_close(plan.log_plan, scaled.log_plan, rtol=1e-8, atol=1e-8)


def test_a_bridge_is_between_exact_ot_and_independence(made, rng):
    pair = made(40, 2)
    least = total(ExactOT()(pair, rng))
    assert total(SchroedingerBridge(0.02, iterations=20_000)(pair, rng)) == pytest.approx(least, rel=0.01)
    plan = SchroedingerBridge(1e4).plan(pair.x0, pair.x1).log_plan.exp()
    torch.testing.assert_close(plan, torch.full_like(plan, 1 / 1600), rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", [(1,), (2, 4, 4)])
@pytest.mark.parametrize("n", [1, 25])
def test_a_bridge_is_a_permutation_within_groups_and_classes(made, n, shape):
    pair, entropic = made(n, *shape), SchroedingerBridge(0.5, group=10)
    coupled, again = entropic(pair, generator(1, "bridge")), entropic(pair, generator(1, "bridge"))
    assert torch.equal(coupled.x0, pair.x0)
    assert torch.equal(coupled.x1, pair.x1[coupled.cond.long()])
    assert torch.equal(coupled.cond.sort().values, pair.cond)
    assert torch.equal(coupled.cond // 10, pair.cond // 10)
    assert torch.equal(again.cond, coupled.cond)
    labels = torch.arange(n) % 3
    assert torch.equal(entropic(pair._replace(cond=labels), generator(1, "bridge")).cond, labels)


@pytest.mark.parametrize("parameters", [(0.0,), (-1.0,), (math.inf,), (math.nan,), (1.0, 0.0), (1.0, 1e-3, 0)])
def test_a_bridge_refuses_parameters_that_make_no_plan(parameters):
    with pytest.raises(InputError, match="needs a positive"):
        SchroedingerBridge(*parameters)


def test_a_bridge_refuses_infinite_rows_and_unlike_ends(made, rng):
    pair = made(8, 2)
    with pytest.raises(InputError, match="8 and 7"):
        SchroedingerBridge()(pair._replace(x1=pair.x1[:7]), rng)
    pair.x1[2, 0] = math.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        SchroedingerBridge()(pair, rng)


def test_a_coupling_that_has_converged_warns_of_nothing(made, rng):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Sinkhorn(0.005)(made(256, 2), rng)
        SchroedingerBridge(0.3)(made(256, 2), rng)
