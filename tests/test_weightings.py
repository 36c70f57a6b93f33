"""Weights: the same errors of the same denoiser cost the same, whatever the network predicts."""

import math

import pytest
import torch

from flowgen import predictions, weightings
from flowgen.core import InputError, Pair, generator
from flowgen.model import Model
from flowgen.objectives import FlowMatching
from flowgen.objectives.flow_matching import Draws
from flowgen.schedules import VE, VP, Linear
from flowgen.times import Uniform

WEIGHTS = {
    "simple": (weightings.Simple(), lambda snr: snr),
    "truncated-snr": (weightings.TruncatedSNR(), lambda snr: snr.clamp(min=1)),
    "truncated-snr-0.1": (weightings.TruncatedSNR(0.1), lambda snr: snr.clamp(min=0.1)),
    "min-snr": (weightings.MinSNR(), lambda snr: snr.clamp(max=5)),
    "min-snr-1": (weightings.MinSNR(1.0), lambda snr: snr.clamp(max=1)),
    "edm": (weightings.EDMWeight(), lambda snr: snr + 1 / 0.5**2),
    "edm-wide": (weightings.EDMWeight(2.0), lambda snr: snr + 1 / 2.0**2),
}
"""Each weight, and what its paper gives to the error of the data at a ratio of signal to noise."""
OF_SLOPES = [weightings.Likelihood(), weightings.Sigmoid(), weightings.Sigmoid(-1.0)]
INSIDE = torch.linspace(0.01, 0.99, 200, dtype=torch.float64)


@pytest.fixture(params=WEIGHTS.values(), ids=list(WEIGHTS))
def known(request):
    return request.param


def test_a_weight_of_the_data_is_that_of_the_paper(schedule):
    for weight, exact in WEIGHTS.values():
        snr = schedule.log_snr(INSIDE).exp()
        torch.testing.assert_close(weight(schedule.coeffs(INSIDE), predictions.data), exact(snr), rtol=1e-9, atol=0)


def test_weights_of_noise_have_half_the_slope_of_log_snr(schedule):
    t = INSIDE.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(schedule.log_snr(t).sum(), t)
    found = weightings.Likelihood()(schedule.coeffs(INSIDE), predictions.noise)
    torch.testing.assert_close(found, slope / 2, rtol=1e-7, atol=0)
    for bias in (2.0, -1.0):
        found = weightings.Sigmoid(bias)(schedule.coeffs(INSIDE), predictions.noise)
        exact = torch.sigmoid(bias - schedule.log_snr(INSIDE)) * slope / 2
        torch.testing.assert_close(found, exact, rtol=1e-7, atol=0)


def test_the_same_errors_cost_the_same_whatever_is_predicted(usable, gaussian_flow, exact_model, normal):
    """A denoiser that takes the data for 0.3 more than it is expected to be."""
    for weight in (*(known for known, _ in WEIGHTS.values()), *OF_SLOPES):
        schedule, prediction = usable
        flow, pair = gaussian_flow(schedule), Pair(normal("x0", 200, 2), normal("x1", 200, 2))
        t = torch.linspace(0.01, 0.99, 200, dtype=torch.float64)
        x, c = schedule.at(pair, t).x, schedule.coeffs(t.unsqueeze(1))
        exact = flow.ends(x, t)
        wrong = Pair(exact.x0 - c.alpha / c.sigma * 0.3, exact.x1 + 0.3)
        error = predictions.encode(wrong, c, prediction) - predictions.encode(exact, c, prediction)
        found = weight(schedule.coeffs(t), prediction) * error.square().mean(1)
        torch.testing.assert_close(found, weight(schedule.coeffs(t), predictions.data) * 0.3**2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 3.0])
def test_edm_is_the_target_that_its_weight_leaves_as_it_is(schedule, sigma_data):
    """The loss of EDM is the bare squared error of its F."""
    found = weightings.EDMWeight(sigma_data)(schedule.coeffs(INSIDE), predictions.EDM(sigma_data))
    torch.testing.assert_close(found, torch.ones_like(found), rtol=1e-9, atol=0)


@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
def test_the_edm_target_is_that_of_the_paper(sigma_data, normal):
    """D = c_skip x + c_out F(c_in x) on x = x1 + s x0, with the constants of its table 1."""
    schedule, pair, t = VE(0.002, 80.0), Pair(normal("x0", 200, 3), normal("x1", 200, 3)), INSIDE
    s, d = schedule.coeffs(t.unsqueeze(1)).sigma, sigma_data
    x, c = schedule.at(pair, t).x, schedule.coeffs(t.unsqueeze(1))
    f = predictions.encode(pair, c, predictions.EDM(d))
    c_skip, c_out = d**2 / (s**2 + d**2), s * d / (s**2 + d**2).sqrt()
    torch.testing.assert_close(c_skip * x + c_out * f, pair.x1, rtol=1e-9, atol=1e-9)
    seen = []

    class Net(torch.nn.Module):
        def forward(self, x, t, s, cond=None):
            seen.append(x)
            return torch.zeros_like(x)

    Model(Net(), schedule, predictions.EDM(d))(x, t)
    torch.testing.assert_close(seen[0], x / (s**2 + d**2).sqrt(), rtol=1e-12, atol=0)


def test_a_weight_multiplies_the_loss(schedule, normal, recorder):
    for weight, _ in WEIGHTS.values():
        pair = Pair(normal("x0", 30, 2), normal("x1", 30, 2))
        model = Model(recorder, schedule, predictions.v)
        plain, weighted = FlowMatching(), FlowMatching(weight=weight)
        drawn = Draws(torch.rand(30, generator=generator(0, "times"), dtype=torch.float64), None)
        lo, hi = model.span
        factor = weight(schedule.coeffs(lo + (hi - lo) * drawn.times), predictions.v)
        torch.testing.assert_close(weighted.loss(model, pair, drawn), factor * plain.loss(model, pair, drawn))


def test_weights_are_finite_from_noise_to_data(usable, known):
    schedule, prediction = usable
    lo, hi = predictions.span(schedule, prediction)
    for weight in (known[0], weightings.Sigmoid()):
        found = weight(schedule.coeffs(torch.tensor([lo, hi], dtype=torch.float64)), prediction)
        assert found.isfinite().all()
        assert (found >= 0).all()


def test_ddpm_is_trained_by_the_simplified_loss(normal, recorder):
    """The mean of |x0 - 0|^2 for a net that predicts no noise, at whatever times."""
    pair = Pair(normal("x0", 30, 2), normal("x1", 30, 2))
    loss = FlowMatching(Uniform())(Model(recorder, VP(), predictions.noise), pair, generator(0, "objective"))
    torch.testing.assert_close(loss, pair.x0.square().mean(1))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("made", [weightings.TruncatedSNR, weightings.MinSNR, weightings.EDMWeight, predictions.EDM])
def test_a_parameter_that_makes_no_weight_is_refused(made, value):
    with pytest.raises(InputError, match="positive"):
        made(value)


@pytest.mark.parametrize("bias", [math.nan, math.inf])
def test_a_bias_that_is_not_finite_is_refused(bias):
    with pytest.raises(InputError, match="finite"):
        weightings.Sigmoid(bias)


def test_a_weight_of_likelihood_is_infinite_at_the_data():
    assert weightings.Likelihood()(Linear().coeffs(torch.ones(1)), predictions.velocity).isinf().all()
