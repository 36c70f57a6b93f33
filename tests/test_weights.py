"""Weights: the same errors of the same denoiser cost the same, whatever the network predicts."""

import math

import pytest
import torch

from flowgen import targets, weights
from flowgen.core import InputError, Pair, generator
from flowgen.model import Model
from flowgen.objectives import Draws, FlowMatching, Uniform
from flowgen.paths import VE, VP, Linear

WEIGHTS = {
    "simple": (weights.Simple(), lambda snr: snr),
    "truncated-snr": (weights.TruncatedSNR(), lambda snr: snr.clamp(min=1)),
    "truncated-snr-0.1": (weights.TruncatedSNR(0.1), lambda snr: snr.clamp(min=0.1)),
    "min-snr": (weights.MinSNR(), lambda snr: snr.clamp(max=5)),
    "min-snr-1": (weights.MinSNR(1.0), lambda snr: snr.clamp(max=1)),
    "edm": (weights.EDMWeight(), lambda snr: snr + 1 / 0.5**2),
    "edm-wide": (weights.EDMWeight(2.0), lambda snr: snr + 1 / 2.0**2),
}
"""Each weight, and what its paper gives to the error of the data at a ratio of signal to noise."""
OF_SLOPES = [weights.Likelihood(), weights.Sigmoid(), weights.Sigmoid(-1.0)]
INSIDE = torch.linspace(0.01, 0.99, 200, dtype=torch.float64)


@pytest.fixture(params=WEIGHTS.values(), ids=list(WEIGHTS))
def known(request):
    return request.param


def test_a_weight_of_the_data_is_that_of_the_paper(path, known):
    weight, exact = known
    snr = path.log_snr(INSIDE).exp()
    torch.testing.assert_close(weight(path.coeffs(INSIDE), targets.data), exact(snr), rtol=1e-9, atol=0)


def test_weights_of_the_noise_have_half_the_slope_of_the_log_snr(path):
    t = INSIDE.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(path.log_snr(t).sum(), t)
    found = weights.Likelihood()(path.coeffs(INSIDE), targets.noise)
    torch.testing.assert_close(found, slope / 2, rtol=1e-7, atol=0)
    for bias in (2.0, -1.0):
        found = weights.Sigmoid(bias)(path.coeffs(INSIDE), targets.noise)
        exact = torch.sigmoid(bias - path.log_snr(INSIDE)) * slope / 2
        torch.testing.assert_close(found, exact, rtol=1e-7, atol=0)


@pytest.mark.parametrize("weight", [known for known, _ in WEIGHTS.values()] + OF_SLOPES, ids=str)
def test_the_same_errors_cost_the_same_whatever_is_predicted(usable, weight, gaussian_flow, exact_model, normal):
    """A denoiser that takes the data for 0.3 more than it is expected to be."""
    path, target = usable
    flow, pair = gaussian_flow(path), Pair(normal("x0", 200, 2), normal("x1", 200, 2))
    t = torch.linspace(0.01, 0.99, 200, dtype=torch.float64)
    x, c = path.at(pair, t).x, path.coeffs(t.unsqueeze(1))
    exact = flow.ends(x, t)
    wrong = Pair(exact.x0 - c.alpha / c.sigma * 0.3, exact.x1 + 0.3)
    error = targets.encode(wrong, c, target) - targets.encode(exact, c, target)
    found = weight(path.coeffs(t), target) * error.square().mean(1)
    torch.testing.assert_close(found, weight(path.coeffs(t), targets.data) * 0.3**2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 3.0])
def test_edm_is_the_target_that_its_weight_leaves_as_it_is(path, sigma_data):
    """The loss of EDM is the bare squared error of its F."""
    found = weights.EDMWeight(sigma_data)(path.coeffs(INSIDE), targets.EDM(sigma_data))
    torch.testing.assert_close(found, torch.ones_like(found), rtol=1e-9, atol=0)


@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
def test_the_edm_target_is_that_of_the_paper(sigma_data, normal):
    """D = c_skip x + c_out F(c_in x) on x = x1 + s x0, with the constants of its table 1."""
    path, pair, t = VE(0.002, 80.0), Pair(normal("x0", 200, 3), normal("x1", 200, 3)), INSIDE
    s, d = path.coeffs(t.unsqueeze(1)).sigma, sigma_data
    x, c = path.at(pair, t).x, path.coeffs(t.unsqueeze(1))
    f = targets.encode(pair, c, targets.EDM(d))
    c_skip, c_out = d**2 / (s**2 + d**2), s * d / (s**2 + d**2).sqrt()
    torch.testing.assert_close(c_skip * x + c_out * f, pair.x1, rtol=1e-9, atol=1e-9)
    seen = []

    class Net(torch.nn.Module):
        def forward(self, x, t, s, cond=None):
            seen.append(x)
            return torch.zeros_like(x)

    Model(Net(), path, targets.EDM(d))(x, t)
    torch.testing.assert_close(seen[0], x / (s**2 + d**2).sqrt(), rtol=1e-12, atol=0)


def test_a_weight_multiplies_the_loss(path, known, normal, recorder):
    weight, _ = known
    pair = Pair(normal("x0", 30, 2), normal("x1", 30, 2))
    model = Model(recorder, path, targets.v)
    plain, weighted = FlowMatching(), FlowMatching(weight=weight)
    drawn = Draws(torch.rand(30, generator=generator(0, "times"), dtype=torch.float64), None)
    lo, hi = model.span
    factor = weight(path.coeffs(lo + (hi - lo) * drawn.times), targets.v)
    torch.testing.assert_close(weighted.loss(model, pair, drawn), factor * plain.loss(model, pair, drawn))


def test_weights_are_finite_from_noise_to_data(usable, known):
    path, target = usable
    lo, hi = targets.span(path, target)
    for weight in (known[0], weights.Sigmoid()):
        found = weight(path.coeffs(torch.tensor([lo, hi], dtype=torch.float64)), target)
        assert found.isfinite().all()
        assert (found >= 0).all()


def test_ddpm_is_trained_by_the_simplified_loss(normal, recorder):
    """The mean of |x0 - 0|^2 for a net that predicts no noise, at whatever times."""
    pair = Pair(normal("x0", 30, 2), normal("x1", 30, 2))
    loss = FlowMatching(Uniform())(Model(recorder, VP(), targets.noise), pair, generator(0, "objective"))
    torch.testing.assert_close(loss, pair.x0.square().mean(1))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("made", [weights.TruncatedSNR, weights.MinSNR, weights.EDMWeight, targets.EDM])
def test_a_parameter_that_makes_no_weight_is_refused(made, value):
    with pytest.raises(InputError, match="positive"):
        made(value)


@pytest.mark.parametrize("bias", [math.nan, math.inf])
def test_a_bias_that_is_not_finite_is_refused(bias):
    with pytest.raises(InputError, match="finite"):
        weights.Sigmoid(bias)


def test_a_weight_of_likelihood_is_infinite_at_the_data():
    assert weights.Likelihood()(Linear().coeffs(torch.ones(1)), targets.velocity).isinf().all()
