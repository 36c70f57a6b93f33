"""Targets: rows of a 2x2 system that turn into each other, and into known truths."""

import pytest
import torch
from torch.autograd import grad
from torch.func import jvp

from flowgen import predictions
from flowgen.core import InputError, Pair, like
from flowgen.schedules import VP, Cosine

TIMES = torch.linspace(0.05, 0.95, 40, dtype=torch.float64)


@pytest.fixture
def pair(normal):
    return Pair(normal("source", 40, 3), normal("data", 40, 3))


def known(schedule, pair, t, prediction):
    """What each prediction is, without its row."""
    x = schedule.at(pair, t).x
    if prediction is predictions.velocity:
        return jvp(lambda t: schedule.at(pair, t).x, (t,), (torch.ones_like(t),))[1]
    if prediction is predictions.score:
        c, x = schedule.coeffs(like(t, x)), x.requires_grad_()
        log_density = torch.distributions.Normal(c.alpha * pair.x1, c.sigma).log_prob(x).sum()
        return grad(log_density, x)[0]
    c = schedule.coeffs(like(t, x))
    if isinstance(prediction, predictions.EDM):  # (x1 - c_skip x) / c_out, on x_t / alpha = x1 + s x0
        s, d = c.sigma / c.alpha, prediction.sigma_data
        return (pair.x1 - d**2 / (s**2 + d**2) * x / c.alpha) * (s**2 + d**2).sqrt() / (s * d)
    return {
        predictions.data: lambda: pair.x1,
        predictions.noise: lambda: pair.x0,
        predictions.v: lambda: (c.alpha * x - pair.x1 * (c.alpha**2 + c.sigma**2)) / c.sigma,
    }[prediction]()


def test_every_target_is_what_its_name_says(schedule, prediction, pair):
    y = predictions.encode(pair, schedule.coeffs(like(TIMES, pair.x1)), prediction)
    torch.testing.assert_close(y, known(schedule, pair, TIMES, prediction), rtol=1e-9, atol=1e-9)


def test_every_target_becomes_every_other_and_comes_back(schedule, prediction, pair):
    c, x = schedule.coeffs(like(TIMES, pair.x1)), schedule.at(pair, TIMES).x
    for to in (predictions.velocity, predictions.data, predictions.noise, predictions.v, predictions.score):
        there = predictions.convert(known(schedule, pair, TIMES, prediction), x, c, prediction, to)
        torch.testing.assert_close(there, known(schedule, pair, TIMES, to), rtol=1e-6, atol=1e-7)
        back = predictions.convert(there, x, c, to, prediction)
        torch.testing.assert_close(back, known(schedule, pair, TIMES, prediction), rtol=1e-6, atol=1e-7)


def test_a_prediction_gives_both_ends_back(schedule, prediction, pair):
    c, x = schedule.coeffs(like(TIMES, pair.x1)), schedule.at(pair, TIMES).x
    ends = predictions.ends(known(schedule, pair, TIMES, prediction), x, c, prediction)
    torch.testing.assert_close(ends.x0, pair.x0, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ends.x1, pair.x1, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("schedule", [Cosine(), VP()], ids=str)
def test_v_is_the_velocity_in_the_angle(schedule, pair):
    """With alpha = sin(phi) and sigma = cos(phi), dx/dphi is -v."""
    c = schedule.coeffs(TIMES)
    angle = torch.atan2(c.alpha, c.sigma)

    def point(phi):
        return phi.sin().unsqueeze(1) * pair.x1 + phi.cos().unsqueeze(1) * pair.x0

    _, turned = jvp(point, (angle,), (torch.ones_like(angle),))
    torch.testing.assert_close(
        predictions.encode(pair, schedule.coeffs(like(TIMES, pair.x1)), predictions.v), -turned, rtol=1e-9, atol=1e-9
    )


def test_conversions_agree_on_a_gaussian(schedule, prediction, gaussian_flow, normal):
    flow = gaussian_flow(schedule)
    mean, std = flow.moments(0.6)
    x, t = mean + std * normal("points", 40, 2), torch.full((40,), 0.6, dtype=torch.float64)
    c, ends = schedule.coeffs(like(t, x)), flow.ends(x, t)
    truth = {
        predictions.velocity: flow.velocity(x, t),
        predictions.data: ends.x1,
        predictions.noise: ends.x0,
        predictions.score: flow.score(x, t),
    }
    y = predictions.encode(ends, c, prediction)
    for to, exact in truth.items():
        torch.testing.assert_close(predictions.convert(y, x, c, prediction, to), exact, rtol=1e-7, atol=1e-8)


def recovered(schedule, prediction, pair, t):
    """The velocity that a true prediction of this kind gives at time t."""
    times = torch.full((len(pair.x0),), t, dtype=torch.float64)
    c, x = schedule.coeffs(like(times, pair.x0)), schedule.at(pair, times).x
    return predictions.convert(predictions.encode(pair, c, prediction), x, c, prediction, predictions.velocity)


def exact_velocity(schedule, pair, t):
    return schedule.at(pair, torch.full((len(pair.x0),), t, dtype=torch.float64)).dx


def test_a_target_determines_the_velocity_on_its_span(usable, pair):
    schedule, prediction = usable
    for t in predictions.span(schedule, prediction):
        truth = exact_velocity(schedule, pair, t)
        torch.testing.assert_close(recovered(schedule, prediction, pair, t), truth, rtol=1e-6, atol=1e-7)


def test_a_span_is_as_wide_as_it_can_be(usable, pair):
    schedule, prediction = usable
    lo, hi = predictions.span(schedule, prediction)
    assert lo == 0
    assert hi in (1, 1 - schedule.margin)
    finite = (
        recovered(schedule, prediction, pair, 1.0).isfinite().all()
        and exact_velocity(schedule, pair, 1.0).isfinite().all()
    )
    assert bool(finite) == (hi == 1)


def test_predictions_without_data_at_the_start_are_refused(singular, pair):
    schedule, prediction = singular
    assert not recovered(schedule, prediction, pair, 0.0).isfinite().all()
    with pytest.raises(InputError, match=prediction.__name__):
        predictions.span(schedule, prediction)
