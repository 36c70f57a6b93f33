"""Paths and bridges: scalars of time that agree with each other, with their definitions, and with torchcfm."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from torch.func import jvp

from flowgen.core import InputError, Pair
from flowgen.paths.bridge import BrownianBridge, ConstantBridge
from flowgen.schedules import DDPM, VE, VP, Cosine, Linear, OffsetCosine, Schedule

INSIDE = torch.linspace(0, 0.999, 500, dtype=torch.float64)
"""Times at which every coefficient of every path is finite; the log-SNR of some is infinite at the first."""
ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)


def blur(schedule: Schedule) -> float:
    """The share of the source that a path was asked to end with."""
    return schedule.sigma_min if isinstance(schedule, Linear) else 0.0


def test_derivatives_are_those_of_alpha_and_sigma(schedule):
    c = schedule.coeffs(INSIDE)
    for value, derivative in ((0, c.d_alpha), (1, c.d_sigma)):
        _, exact = jvp(lambda t, value=value: schedule.coeffs(t)[value], (INSIDE,), (torch.ones_like(INSIDE),))
        torch.testing.assert_close(derivative, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_schedule_ends_on_the_data_or_its_blur(schedule, dtype):
    c = schedule.coeffs(torch.ones(3, dtype=dtype))
    assert torch.equal(c.alpha, torch.ones(3, dtype=dtype))
    torch.testing.assert_close(c.sigma, torch.full((3,), blur(schedule), dtype=dtype), rtol=2e-6, atol=0)


def test_a_path_starts_on_almost_nothing_but_the_source(schedule):
    c = schedule.coeffs(ENDS)
    assert c.alpha[0] / c.sigma[0] < 0.06
    assert c.sigma[0] > 0.99


def test_coefficients_are_non_negative_and_finite(schedule):
    c = schedule.coeffs(INSIDE)
    assert all(x.isfinite().all() for x in c)
    assert (c.alpha >= 0).all()
    assert (c.sigma > 0).all()


def test_float32_coefficients_are_those_of_float64(schedule):
    t = torch.linspace(0.001, 0.999, 999)
    for single, double in zip(schedule.coeffs(t), schedule.coeffs(t.double()), strict=True):
        torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=1e-7)


def test_coefficients_keep_the_shape_and_type_of_time(schedule):
    t = torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for whole, single in zip(schedule.coeffs(t), schedule.coeffs(t[1, 2]), strict=True):
        assert whole.dtype == t.dtype
        torch.testing.assert_close(whole[1, 2], single, rtol=1e-12, atol=0)


def test_log_snr_strictly_increases(schedule):
    log_snr = schedule.log_snr(INSIDE[1:])
    assert log_snr.isfinite().all()
    assert (log_snr.diff() > 0).all()
    end = schedule.log_snr(ENDS)[1].item()
    assert end == (pytest.approx(-2 * math.log(blur(schedule)), rel=1e-12) if blur(schedule) else math.inf)


def test_time_inverts_log_snr(schedule):
    t = INSIDE[1:]
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=0, atol=1e-9)


def test_velocity_is_the_derivative_of_the_point_by_autodiff(schedule, normal):
    pair, t = Pair(normal("x0", 50, 3, 2), normal("x1", 50, 3, 2)), torch.linspace(0, 0.99, 50, dtype=torch.float64)
    _, exact = jvp(lambda t: schedule.at(pair, t).x, (t,), (torch.ones_like(t),))
    torch.testing.assert_close(schedule.at(pair, t).dx, exact, rtol=1e-10, atol=1e-10)


def test_a_point_at_the_end_is_the_data_and_its_blur(schedule, normal):
    pair = Pair(normal("x0", 5, 2), normal("x1", 5, 2))
    blurred = pair.x1 + blur(schedule) * pair.x0
    end = schedule.at(pair, torch.ones(5, dtype=torch.float64)).x
    torch.testing.assert_close(end, blurred, rtol=0, atol=1e-15 * (blur(schedule) > 0))


@pytest.mark.parametrize("schedule", [Cosine(), OffsetCosine(0.1), VP(), VP(1.0, 5.0), DDPM()], ids=str)
def test_variance_is_preserved(schedule):
    c = schedule.coeffs(torch.linspace(0, 1, 101, dtype=torch.float64))
    torch.testing.assert_close(c.alpha**2 + c.sigma**2, torch.ones(101, dtype=torch.float64), rtol=0, atol=1e-14)


def test_the_straight_path_has_constant_velocity(normal):
    pair, t = Pair(normal("x0", 9, 2), normal("x1", 9, 2)), torch.linspace(0, 1, 9, dtype=torch.float64)
    assert torch.equal(Linear().at(pair, t).dx, pair.x1 - pair.x0)


@pytest.mark.parametrize("schedule", [VP(), VP(0.5, 3.0)], ids=str)
def test_vp_solves_its_stochastic_differential_equation(schedule):
    """dx = -beta x / 2 dr + sqrt(beta) dw in r = 1 - t: the mean decays by beta / 2, the variance relaxes to 1."""

    def beta(r):
        return schedule.beta_min + (schedule.beta_max - schedule.beta_min) * r

    for t in (0.0, 0.3, 0.8, 0.999):
        alpha = math.exp(-quad(beta, 0, 1 - t)[0] / 2)
        variance = solve_ivp(lambda r, y: beta(r) * (1 - y), (0, 1 - t), [0.0], rtol=1e-10, atol=1e-12).y[0, -1]
        c = schedule.coeffs(torch.tensor(t, dtype=torch.float64))
        assert c.alpha.item() == pytest.approx(alpha, rel=1e-9)
        assert c.sigma.item() ** 2 == pytest.approx(variance, rel=1e-7)


@pytest.mark.parametrize("schedule", [VE(), VE(0.1, 10.0)], ids=str)
def test_ve_solves_its_stochastic_differential_equation(schedule):
    """dx = g dw in r = 1 - t with g = sigma_min k^r sqrt(2 log k), k = sigma_max / sigma_min."""
    k = schedule.sigma_max / schedule.sigma_min
    for t in (0.0, 0.3, 0.8, 0.999):
        variance = quad(lambda r: (schedule.sigma_min * k**r) ** 2 * 2 * math.log(k), 0, 1 - t, epsrel=1e-11)[0]
        assert schedule.coeffs(torch.tensor(t, dtype=torch.float64)).sigma.item() ** 2 == pytest.approx(
            variance, rel=1e-8
        )


@pytest.mark.parametrize("offset", [0.008, 0.1])
def test_the_offset_cosine_is_that_of_the_paper(offset):
    """The share of data after r of the way to noise is f(r) / f(0), f(r) = cos^2((r + s) / (1 + s) pi / 2)."""
    r = np.linspace(0, 1, 51)
    share = np.cos((r + offset) / (1 + offset) * np.pi / 2) ** 2
    found = OffsetCosine(offset).coeffs(torch.tensor(1 - r)).alpha.numpy() ** 2
    np.testing.assert_allclose(found, share / share[0], rtol=1e-12, atol=1e-30)


@pytest.mark.parametrize(("steps", "beta_min", "beta_max"), [(1000, 1e-4, 0.02), (7, 0.05, 0.9)])
def test_ddpm_keeps_the_share_of_data_of_each_step(steps, beta_min, beta_max):
    schedule, alpha = DDPM(steps, beta_min, beta_max), 1.0
    for k, beta in enumerate(np.linspace(beta_min, beta_max, steps), start=1):
        alpha *= math.sqrt(1 - beta)
        found = schedule.coeffs(torch.tensor(1 - k / steps, dtype=torch.float64)).alpha.item()
        assert found == pytest.approx(alpha, rel=1e-11)


def test_ddpm_of_many_steps_is_vp():
    t, errors = torch.linspace(0, 1, 101, dtype=torch.float64), []
    for steps in (500, 1000, 2000):
        few, limit = DDPM(steps, 0.1 / steps, 20 / steps).coeffs(t), VP().coeffs(t)
        errors.append((few.alpha - limit.alpha).abs().max().item())
    assert errors[0] < 0.01
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("schedule", [VP(), VP(0.5, 3.0)], ids=str)
def test_the_diffusion_of_vp_is_the_root_of_beta(schedule):
    r = torch.linspace(0.001, 1, 50, dtype=torch.float64)
    beta = schedule.beta_min + (schedule.beta_max - schedule.beta_min) * r
    torch.testing.assert_close(schedule.diffusion(1 - r), beta.sqrt(), rtol=1e-9, atol=0)


def test_the_diffusion_makes_the_variance_of_the_path(schedule):
    """Forward, in r = 1 - t, dx = -(alpha'/alpha) x dr + g dw: (sigma / alpha)^2 grows by (g / alpha)^2."""
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(8))
    for lo, hi in ((100, 300), (300, 900)):
        edges = torch.arange(lo, hi + 1, dtype=torch.float64) / 1000  # the cubics of DDPM meet at some of them
        r = (edges[:-1, None] + edges[1:, None] + edges.diff()[:, None] * nodes) / 2
        rate = (schedule.diffusion(1 - r) / schedule.coeffs(1 - r).alpha).square()
        grown = (rate * weights * edges.diff()[:, None] / 2).sum()
        c = schedule.coeffs(1 - edges[[0, -1]])
        torch.testing.assert_close(grown, (c.sigma / c.alpha).square().diff()[0], rtol=1e-9, atol=0)


def test_the_velocity_is_the_score_and_the_scaling(schedule, gaussian_flow, normal):
    """u = alpha' / alpha x + g^2 / 2 score, of a Gaussian whose score is known."""
    flow, x = gaussian_flow(schedule), normal("x", 20, 2)
    for t in (0.1, 0.5, 0.9):
        time = torch.tensor(t, dtype=torch.float64)
        c, (mean, std) = schedule.coeffs(time), flow.moments(t)
        score = -(x - mean) / std**2
        u = c.d_alpha / c.alpha * x + schedule.diffusion(time) ** 2 / 2 * score
        torch.testing.assert_close(u, flow.velocity(x, time.expand(20)), rtol=1e-8, atol=1e-8)


def torchcfm_matcher(schedule: Schedule):
    """The matcher of a path; that of a blurred one takes its noise for the source."""
    from torchcfm import conditional_flow_matching as cfm

    if blur(schedule):
        return cfm.TargetConditionalFlowMatcher(schedule.sigma_min)
    matchers = {Linear: cfm.ConditionalFlowMatcher, Cosine: cfm.VariancePreservingConditionalFlowMatcher}
    return matchers[type(schedule)](sigma=0.0)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Linear(0.1), Linear(0.9)], ids=str)
@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)])
def test_points_and_velocities_are_those_of_torchcfm(schedule, shape, normal):
    x0, x1 = normal("x0", 64, *shape), normal("x1", 64, *shape)
    t = torch.linspace(0, 1, 64, dtype=torch.float64)
    matcher = torchcfm_matcher(schedule)
    x = matcher.sample_xt(x0, x1, t, x0 if blur(schedule) else torch.zeros_like(x0))
    dx = matcher.compute_conditional_flow(x0, x1, t, x)
    point = schedule.at(Pair(x0, x1), t)
    torch.testing.assert_close(point.x, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(point.dx, dx, rtol=1e-12, atol=1e-12)


def test_marginals_have_the_moments_of_the_mixture(schedule, gaussian_flow, normal):
    flow = gaussian_flow(schedule)
    n = 20_000
    pair = Pair(normal("x0", n, 2), flow.mean + flow.std * normal("x1", n, 2))
    for t in (0.0, 0.4, 0.9):
        x = schedule.at(pair, torch.full((n,), t, dtype=torch.float64)).x
        mean, std = flow.moments(t)
        assert ((x.mean(0) - mean).abs() < 4 * std / n**0.5).all()
        assert ((x.std(0) / std - 1).abs() < 4 / (2 * n) ** 0.5).all()


@pytest.mark.parametrize(
    ("beta_min", "beta_max"), [(0.0, 20.0), (-1.0, 20.0), (5.0, 1.0), (0.1, np.inf), (np.nan, 20.0), (0.1, np.nan)]
)
def test_vp_refuses_parameters_that_make_no_path(beta_min, beta_max):
    with pytest.raises(InputError, match="beta_min"):
        VP(beta_min, beta_max)


@pytest.mark.parametrize(
    ("sigma_min", "sigma_max"), [(0.0, 50.0), (-1.0, 50.0), (1.0, 1.0), (5.0, 1.0), (0.1, np.inf), (np.nan, 1.0)]
)
def test_ve_refuses_parameters_that_make_no_path(sigma_min, sigma_max):
    with pytest.raises(InputError, match="sigma_min"):
        VE(sigma_min, sigma_max)


@pytest.mark.parametrize("offset", [0.0, -0.1, 1.0, np.nan])
def test_a_cosine_without_an_offset_is_another_path(offset):
    with pytest.raises(InputError, match="offset"):
        OffsetCosine(offset)


@pytest.mark.parametrize(
    ("parameters", "word"),
    [((1000, 0.0, 0.02), "beta_min"), ((1000, 0.1, 0.05), "beta_max"), ((1000, 0.1, 1.0), "beta_max"), ((1,), "steps")],
)
def test_ddpm_refuses_parameters_that_make_no_path(parameters, word):
    with pytest.raises(InputError, match=word):
        DDPM(*parameters)


@pytest.mark.parametrize("sigma_min", [-0.1, 1.0, 2.0, np.nan, np.inf])
def test_a_straight_path_refuses_a_blur_that_leaves_no_data(sigma_min):
    with pytest.raises(InputError, match="sigma_min"):
        Linear(sigma_min)


def test_every_path_is_held_to_these_laws(all_paths):
    assert {type(schedule) for schedule in all_paths} == set(Schedule.__subclasses__())


# bridges


@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("made", [ConstantBridge, BrownianBridge])
def test_a_bridge_refuses_a_noise_that_is_none(made, sigma):
    with pytest.raises(InputError, match="noise of a bridge"):
        made(sigma)


def test_the_derivative_of_a_bridge_is_that_of_its_width(bridge):
    t = torch.linspace(*bridge.span, 502, dtype=torch.float64)[1:-1]
    width, derivative = bridge.gamma(t)
    same, exact = jvp(lambda t: bridge.gamma(t)[0], (t,), (torch.ones_like(t),))
    torch.testing.assert_close(width, same, rtol=0, atol=0)
    torch.testing.assert_close(derivative, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bridge_is_finite_on_its_span(bridge, dtype):
    t = torch.tensor([bridge.span, (0.3, 0.5)], dtype=dtype)
    for value in bridge.gamma(t):
        assert value.isfinite().all()
        assert (value.shape, value.dtype) == (t.shape, dtype)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0])
def test_a_brownian_bridge_has_its_variance(sigma, normal):
    """n independent steps of variance sigma^2 / n that sum to W: the walk less t W returns to zero."""
    walks, n = 20_000, 16
    walk = (sigma / n**0.5 * normal("steps", walks, n)).cumsum(1)
    t = torch.arange(1, n + 1, dtype=torch.float64) / n
    pinned = walk - t * walk[:, -1:]
    width, _ = BrownianBridge(sigma).gamma(t)
    assert width[-1] == 0
    torch.testing.assert_close(pinned[:, -1], torch.zeros(walks, dtype=torch.float64), rtol=0, atol=1e-12)
    assert ((pinned[:, :-1].square().mean(0).sqrt() / width[:-1] - 1).abs() < 4 / (2 * walks) ** 0.5).all()


def test_a_brownian_bridge_is_zero_at_both_ends():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    width, slope = BrownianBridge(0.5).gamma(t)
    assert torch.equal(width[[0, -1]], torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(width, width.flip(0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(slope[1:-1], -slope[1:-1].flip(0), rtol=1e-9, atol=1e-12)
    assert width.argmax() == 50
