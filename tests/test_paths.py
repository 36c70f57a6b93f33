"""Paths: four scalars of time that agree with each other, with their definitions, and with torchcfm."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from torch.func import jvp

from flowgen.core import InputError, Pair
from flowgen.paths import VE, VP, Cosine, Linear, Path

INSIDE = torch.linspace(0, 0.999, 500, dtype=torch.float64)
"""Times at which every coefficient of every path is finite; the log-SNR of some is infinite at the first."""
ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)


def test_derivatives_are_those_of_alpha_and_sigma(path):
    c = path.coeffs(INSIDE)
    for value, derivative in ((0, c.d_alpha), (1, c.d_sigma)):
        _, exact = jvp(lambda t, value=value: path.coeffs(t)[value], (INSIDE,), (torch.ones_like(INSIDE),))
        torch.testing.assert_close(derivative, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_path_ends_on_the_data_exactly(path, dtype):
    c = path.coeffs(torch.ones(3, dtype=dtype))
    assert torch.equal(c.alpha, torch.ones(3, dtype=dtype))
    assert torch.equal(c.sigma, torch.zeros(3, dtype=dtype))


def test_a_path_starts_on_almost_nothing_but_the_source(path):
    c = path.coeffs(ENDS)
    assert c.alpha[0] / c.sigma[0] < 0.06
    assert c.sigma[0] > 0.99


def test_coefficients_are_non_negative_and_finite(path):
    c = path.coeffs(INSIDE)
    assert all(x.isfinite().all() for x in c)
    assert (c.alpha >= 0).all()
    assert (c.sigma > 0).all()


def test_float32_coefficients_are_those_of_float64(path):
    t = torch.linspace(0.001, 0.999, 999)
    for single, double in zip(path.coeffs(t), path.coeffs(t.double()), strict=True):
        torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=1e-7)


def test_coefficients_keep_the_shape_and_type_of_time(path):
    t = torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for whole, single in zip(path.coeffs(t), path.coeffs(t[1, 2]), strict=True):
        assert whole.dtype == t.dtype
        torch.testing.assert_close(whole[1, 2], single, rtol=1e-12, atol=0)


def test_log_snr_strictly_increases(path):
    log_snr = path.log_snr(INSIDE[1:])
    assert log_snr.isfinite().all()
    assert (log_snr.diff() > 0).all()
    assert path.log_snr(ENDS)[1] == math.inf


def test_time_inverts_log_snr(path):
    t = INSIDE[1:]
    torch.testing.assert_close(path.time(path.log_snr(t)), t, rtol=0, atol=1e-9)


def test_velocity_is_the_derivative_of_the_point_by_autodiff(path, normal):
    pair, t = Pair(normal("x0", 50, 3, 2), normal("x1", 50, 3, 2)), torch.linspace(0, 0.99, 50, dtype=torch.float64)
    _, exact = jvp(lambda t: path.at(pair, t).x, (t,), (torch.ones_like(t),))
    torch.testing.assert_close(path.at(pair, t).dx, exact, rtol=1e-10, atol=1e-10)


def test_a_point_at_the_end_is_the_data(path, normal):
    pair = Pair(normal("x0", 5, 2), normal("x1", 5, 2))
    assert torch.equal(path.at(pair, torch.ones(5, dtype=torch.float64)).x, pair.x1)


@pytest.mark.parametrize("path", [Cosine(), VP(), VP(1.0, 5.0)], ids=str)
def test_variance_is_preserved(path):
    c = path.coeffs(torch.linspace(0, 1, 101, dtype=torch.float64))
    torch.testing.assert_close(c.alpha**2 + c.sigma**2, torch.ones(101, dtype=torch.float64), rtol=0, atol=1e-14)


def test_the_straight_path_has_constant_velocity(normal):
    pair, t = Pair(normal("x0", 9, 2), normal("x1", 9, 2)), torch.linspace(0, 1, 9, dtype=torch.float64)
    assert torch.equal(Linear().at(pair, t).dx, pair.x1 - pair.x0)


@pytest.mark.parametrize("path", [VP(), VP(0.5, 3.0)], ids=str)
def test_vp_solves_its_stochastic_differential_equation(path):
    """dx = -beta x / 2 dr + sqrt(beta) dw in r = 1 - t: the mean decays by beta / 2, the variance relaxes to 1."""

    def beta(r):
        return path.beta_min + (path.beta_max - path.beta_min) * r

    for t in (0.0, 0.3, 0.8, 0.999):
        alpha = math.exp(-quad(beta, 0, 1 - t)[0] / 2)
        variance = solve_ivp(lambda r, y: beta(r) * (1 - y), (0, 1 - t), [0.0], rtol=1e-10, atol=1e-12).y[0, -1]
        c = path.coeffs(torch.tensor(t, dtype=torch.float64))
        assert c.alpha.item() == pytest.approx(alpha, rel=1e-9)
        assert c.sigma.item() ** 2 == pytest.approx(variance, rel=1e-7)


@pytest.mark.parametrize("path", [VE(), VE(0.1, 10.0)], ids=str)
def test_ve_solves_its_stochastic_differential_equation(path):
    """dx = g dw in r = 1 - t with g = sigma_min k^r sqrt(2 log k), k = sigma_max / sigma_min."""
    k = path.sigma_max / path.sigma_min
    for t in (0.0, 0.3, 0.8, 0.999):
        variance = quad(lambda r: (path.sigma_min * k**r) ** 2 * 2 * math.log(k), 0, 1 - t, epsrel=1e-11)[0]
        assert path.coeffs(torch.tensor(t, dtype=torch.float64)).sigma.item() ** 2 == pytest.approx(variance, rel=1e-8)


def torchcfm_matcher(path: Path):
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher, VariancePreservingConditionalFlowMatcher

    matchers = {Linear: ConditionalFlowMatcher, Cosine: VariancePreservingConditionalFlowMatcher}
    return matchers[type(path)](sigma=0.0)


@pytest.mark.parametrize("path", [Linear(), Cosine()], ids=str)
@pytest.mark.parametrize("event", [(2,), (3, 4, 4)])
def test_points_and_velocities_are_those_of_torchcfm(path, event, normal):
    x0, x1 = normal("x0", 64, *event), normal("x1", 64, *event)
    t = torch.linspace(0, 1, 64, dtype=torch.float64)
    with torch.random.fork_rng():
        _, x, dx = torchcfm_matcher(path).sample_location_and_conditional_flow(x0, x1, t)
    point = path.at(Pair(x0, x1), t)
    torch.testing.assert_close(point.x, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(point.dx, dx, rtol=1e-12, atol=1e-12)


def test_marginals_have_the_moments_of_the_mixture(path, gaussian_flow, normal):
    flow = gaussian_flow(path)
    n = 20_000
    pair = Pair(normal("x0", n, 2), flow.mean + flow.std * normal("x1", n, 2))
    for t in (0.0, 0.4, 0.9):
        x = path.at(pair, torch.full((n,), t, dtype=torch.float64)).x
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


def test_every_path_is_held_to_these_laws(all_paths):
    assert {type(path) for path in all_paths} == set(Path.__subclasses__())
