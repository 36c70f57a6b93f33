"""Targets: rows of a 2x2 system that turn into each other, and into known truths."""

import pytest
import torch
from torch.autograd import grad
from torch.func import jvp

from flowgen import targets
from flowgen.core import InputError, Pair, like
from flowgen.paths import VP, Cosine

TIMES = torch.linspace(0.05, 0.95, 40, dtype=torch.float64)


@pytest.fixture
def pair(normal):
    return Pair(normal("source", 40, 3), normal("data", 40, 3))


def known(path, pair, t, target):
    """What each target is, without its row."""
    x = path.at(pair, t).x
    if target is targets.velocity:
        return jvp(lambda t: path.at(pair, t).x, (t,), (torch.ones_like(t),))[1]
    if target is targets.score:
        c, x = path.coeffs(like(t, x)), x.requires_grad_()
        log_density = torch.distributions.Normal(c.alpha * pair.x1, c.sigma).log_prob(x).sum()
        return grad(log_density, x)[0]
    c = path.coeffs(like(t, x))
    if isinstance(target, targets.EDM):  # (x1 - c_skip x) / c_out, on x_t / alpha = x1 + s x0
        s, d = c.sigma / c.alpha, target.sigma_data
        return (pair.x1 - d**2 / (s**2 + d**2) * x / c.alpha) * (s**2 + d**2).sqrt() / (s * d)
    return {
        targets.data: lambda: pair.x1,
        targets.noise: lambda: pair.x0,
        targets.v: lambda: (c.alpha * x - pair.x1 * (c.alpha**2 + c.sigma**2)) / c.sigma,
    }[target]()


def test_every_target_is_what_its_name_says(path, target, pair):
    y = targets.encode(pair, path.coeffs(like(TIMES, pair.x1)), target)
    torch.testing.assert_close(y, known(path, pair, TIMES, target), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("to", [targets.velocity, targets.data, targets.noise, targets.v, targets.score])
def test_every_target_becomes_every_other_and_comes_back(path, target, to, pair):
    c, x = path.coeffs(like(TIMES, pair.x1)), path.at(pair, TIMES).x
    there = targets.convert(known(path, pair, TIMES, target), x, c, target, to)
    torch.testing.assert_close(there, known(path, pair, TIMES, to), rtol=1e-6, atol=1e-7)
    back = targets.convert(there, x, c, to, target)
    torch.testing.assert_close(back, known(path, pair, TIMES, target), rtol=1e-6, atol=1e-7)


def test_a_prediction_gives_both_ends_back(path, target, pair):
    c, x = path.coeffs(like(TIMES, pair.x1)), path.at(pair, TIMES).x
    ends = targets.ends(known(path, pair, TIMES, target), x, c, target)
    torch.testing.assert_close(ends.x0, pair.x0, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ends.x1, pair.x1, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("path", [Cosine(), VP()], ids=str)
def test_v_is_the_velocity_in_the_angle_where_variance_is_preserved(path, pair):
    """With alpha = sin(phi) and sigma = cos(phi), dx/dphi is -v."""
    c = path.coeffs(TIMES)
    angle = torch.atan2(c.alpha, c.sigma)

    def point(phi):
        return phi.sin().unsqueeze(1) * pair.x1 + phi.cos().unsqueeze(1) * pair.x0

    _, turned = jvp(point, (angle,), (torch.ones_like(angle),))
    torch.testing.assert_close(
        targets.encode(pair, path.coeffs(like(TIMES, pair.x1)), targets.v), -turned, rtol=1e-9, atol=1e-9
    )


def test_conversions_turn_the_exact_expectations_of_a_gaussian_into_each_other(path, target, gaussian_flow, normal):
    flow = gaussian_flow(path)
    mean, std = flow.moments(0.6)
    x, t = mean + std * normal("points", 40, 2), torch.full((40,), 0.6, dtype=torch.float64)
    c, ends = path.coeffs(like(t, x)), flow.ends(x, t)
    truth = {
        targets.velocity: flow.velocity(x, t),
        targets.data: ends.x1,
        targets.noise: ends.x0,
        targets.score: flow.score(x, t),
    }
    y = targets.encode(ends, c, target)
    for to, exact in truth.items():
        torch.testing.assert_close(targets.convert(y, x, c, target, to), exact, rtol=1e-7, atol=1e-8)


def recovered(path, target, pair, t):
    """The velocity that a true prediction of `target` gives at time t."""
    times = torch.full((len(pair.x0),), t, dtype=torch.float64)
    c, x = path.coeffs(like(times, pair.x0)), path.at(pair, times).x
    return targets.convert(targets.encode(pair, c, target), x, c, target, targets.velocity)


def exact_velocity(path, pair, t):
    return path.at(pair, torch.full((len(pair.x0),), t, dtype=torch.float64)).dx


def test_a_target_determines_the_velocity_on_its_span(usable, pair):
    path, target = usable
    for t in targets.span(path, target):
        truth = exact_velocity(path, pair, t)
        torch.testing.assert_close(recovered(path, target, pair, t), truth, rtol=1e-6, atol=1e-7)


def test_a_span_is_as_wide_as_it_can_be(usable, pair):
    path, target = usable
    lo, hi = targets.span(path, target)
    assert lo == 0
    assert hi in (1, 1 - path.margin)
    finite = recovered(path, target, pair, 1.0).isfinite().all() and exact_velocity(path, pair, 1.0).isfinite().all()
    assert bool(finite) == (hi == 1)


def test_targets_that_say_nothing_of_the_data_at_the_start_are_refused(singular, pair):
    path, target = singular
    assert not recovered(path, target, pair, 0.0).isfinite().all()
    with pytest.raises(InputError, match=target.__name__):
        targets.span(path, target)
