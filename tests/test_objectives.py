"""Time laws have the distribution that they name; flow matching is least at the exact conditional expectation."""

from itertools import cycle

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm, truncnorm
from torch import nn

from flowgen import predictions
from flowgen.core import InputError, Pair, generator, like
from flowgen.model import Model
from flowgen.objectives import FlowMatching, Splittable
from flowgen.paths.bridge import BrownianBridge, ConstantBridge
from flowgen.schedules import DDPM, Linear
from flowgen.times import (
    Discrete,
    Intervals,
    LogitNormal,
    LogNormal,
    Stratified,
    TimeDistribution,
    ToData,
    Uniform,
    UShaped,
    on_path,
)

# time laws


def test_a_time_law_has_its_distribution(known_times):
    t = known_times.distribution(200_000, generator(0, "times"))
    assert t.dtype == torch.float32
    assert kstest(t.double().numpy(), known_times.cdf).pvalue > 1e-3


def test_times_stay_between_source_and_data(known_times):
    t = torch.cat([known_times.distribution(4096, generator(seed, "times")) for seed in range(20)])
    assert t.min() >= 0
    assert t.max() <= 1


def test_times_are_a_function_of_the_generator(known_times, global_state_untouched):
    first, second, other = (known_times.distribution(30, generator(seed, "times")) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_every_time_law_is_held_to_these_laws(all_times):
    assert {type(known.distribution) for known in all_times} == set(TimeDistribution.__subclasses__())


@pytest.mark.parametrize("n", [1, 2, 7, 512])
def test_stratified_times_fall_one_in_each_stratum(n):
    for seed in range(10):
        t = Stratified()(n, generator(seed, "times")).double()
        assert torch.equal((t * n).floor().long().sort().values, torch.arange(n))


def test_a_stratified_time_is_independent_of_its_place():
    first = torch.stack([Stratified()(4, generator(seed, "times"))[0] for seed in range(2000)])
    assert kstest(first.numpy(), "uniform").pvalue > 1e-3


def test_stratified_times_have_less_variance_over_a_batch():
    def spread(law):
        return torch.stack([law(64, generator(seed, "times")).square().mean() for seed in range(200)]).std()

    assert spread(Stratified()) < spread(Uniform()) / 20


@pytest.mark.parametrize("steps", [2, 7, 1000])
def test_discrete_times_are_the_steps_of_a_grid(steps):
    seen = Discrete(steps)(50 * steps, generator(0, "times")).unique()
    torch.testing.assert_close(seen, torch.linspace(0, 1, steps))


def test_discrete_times_on_ddpm_are_its_steps():
    schedule = DDPM(steps=20, beta_min=0.01, beta_max=0.5)
    times = on_path(
        Discrete(20), Discrete(20)(1000, generator(0, "times")), schedule, predictions.span(schedule, predictions.noise)
    )
    torch.testing.assert_close(times.unique(), torch.arange(20) / 20)


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.5, 0.3)])
def test_log_normal_times_have_that_law_of_noise_on_every_path(schedule, mean, std):
    span = predictions.span(schedule, predictions.v)
    law = LogNormal(mean, std)
    drawn = law(20_000, generator(0, "times")).double()
    t = on_path(law, drawn, schedule, span)
    assert t.min() >= span[0]
    assert t.max() <= span[1]
    c = schedule.coeffs(t[(t > span[0]) & (t < span[1])])
    least, most = sorted(-schedule.log_snr(torch.tensor(span, dtype=torch.float64)).numpy() / 2)
    bounds = (least - mean) / std, (most - mean) / std
    assert kstest(((c.sigma / c.alpha).log().numpy() - mean) / std, truncnorm(*bounds).cdf).pvalue > 1e-3


def test_log_normal_noise_is_logit_normal_time_when_linear():
    quantiles = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    found = LogNormal(-0.4, 1.3).times(quantiles, Linear(), (0.0, 1.0))
    exact = torch.sigmoid(torch.from_numpy(norm(0.4, 1.3).ppf(quantiles.numpy())))
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=0)


@pytest.mark.parametrize("parameters", [(np.nan, 1.0), (0.0, 0.0), (0.0, -1.0), (0.0, np.inf)])
def test_log_normal_refuses_parameters_that_make_no_law(parameters):
    with pytest.raises(InputError, match="LogNormal"):
        LogNormal(*parameters)


@pytest.mark.parametrize("steps", [1, 0, 10**6])
def test_discrete_refuses_steps_that_make_no_law(steps):
    with pytest.raises(InputError, match="steps"):
        Discrete(steps)


@pytest.mark.parametrize("made", [Intervals, ToData])
def test_a_flow_map_refuses_times_that_are_of_noise(made):
    with pytest.raises(InputError, match="logit-normal"):
        made(LogNormal())


@pytest.mark.parametrize("a", [0.1, 4.0, 60.0])
def test_u_shaped_times_are_symmetric_and_prefer_both_ends(a):
    t = UShaped(a)(20_000, generator(0, "times")).double()
    error = 4 / 20_000**0.5
    for k in (1, 2, 3):
        wave = torch.sin(2 * torch.pi * k * (t - 0.5))  # odd about the middle
        assert abs(wave.mean()) < error
    share = ((t < 0.25) | (t > 0.75)).double().mean()
    exact = np.sinh(a / 2) - np.sinh(a / 4)
    assert abs(share - exact / np.sinh(a / 2)) < error


@pytest.mark.parametrize("parameters", [(0.0, 0.0), (0.0, -1.0), (np.nan, 1.0), (np.inf, 1.0), (0.0, np.inf)])
def test_logit_normal_refuses_parameters_that_make_no_law(parameters):
    with pytest.raises(InputError, match="LogitNormal"):
        LogitNormal(*parameters)


@pytest.mark.parametrize("a", [0.0, -1.0, 101.0, np.nan, np.inf])
def test_u_shaped_refuses_parameters_that_make_no_law(a):
    with pytest.raises(InputError, match="UShaped"):
        UShaped(a)


# flow matching

DRAWS = 20_000


class Tilted(nn.Module):
    """A net, plus weights times four waves of x and t."""

    def __init__(self, net):
        super().__init__()
        self.net, self.weights = net, nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, x, t, s, cond=None):
        t = t.unsqueeze(1)
        waves = torch.stack([torch.sin(k * x.flip(1) / 2 + 3 * k * t) for k in (1, 2, 3, 4)])
        return self.net(x, t.squeeze(1), s, cond) + torch.tensordot(self.weights, waves, dims=1)


def slopes(model, pair, objective):
    """The derivative of each pair's loss by each weight `(B, 4)`, exact since the loss is quadratic in them."""
    made = []
    for direction in torch.eye(4, dtype=torch.float64):
        losses = []
        for weights in (direction, -direction):
            model.net.weights.data = weights
            losses.append(objective(model, pair, generator(0, "objective")))
        made.append((losses[0] - losses[1]) / 2)
    model.net.weights.data = torch.zeros(4, dtype=torch.float64)
    return torch.stack(made, dim=1).detach()


@pytest.fixture
def matched(empirical_flow, exact_model, normal):
    """matched(path, prediction): the exact model of an empirical law, and independent pairs drawn for it."""

    def make(schedule, prediction):
        flow = empirical_flow(schedule)
        rows = torch.randint(len(flow.data), (DRAWS,), generator=generator(0, "rows"))
        return exact_model(flow, prediction), Pair(normal("source", DRAWS, 2), flow.data[rows])

    return make


@pytest.mark.costly
def test_flow_matching_is_least_at_the_conditional_expectation(usable, matched):
    """The gradient there is zero within its noise, in every direction."""
    model, pair = matched(*usable)
    model.net = Tilted(model.net)
    slope = slopes(model, pair, FlowMatching())
    assert (slope.mean(0).abs() < 4.5 * slope.std(0) / DRAWS**0.5 + 1e-12).all()


def test_the_loss_of_a_gaussian_is_the_conditional_variance(schedule, gaussian_flow, exact_model, normal):
    """Whatever the prediction y = a x1 + b x0, at the optimum the loss is the mean of Var(y | x_t) over time."""
    flow = gaussian_flow(schedule)
    pair = Pair(normal("source", DRAWS, 2), flow.mean + flow.std * normal("data", DRAWS, 2))
    loss = FlowMatching()(exact_model(flow, predictions.v), pair, generator(0, "objective")).detach()
    t = torch.linspace(*predictions.span(schedule, predictions.v), 20_001, dtype=torch.float64).unsqueeze(1)
    c = schedule.coeffs(t)
    # y = alpha x0 - sigma x1 and x = alpha x1 + sigma x0 are jointly Gaussian
    s = flow.std**2
    variance, marginal = c.alpha**2 + c.sigma**2 * s, c.alpha**2 * s + c.sigma**2
    covariance = c.alpha * c.sigma * (1 - s)
    exact = (variance - covariance**2 / marginal).mean()
    assert abs(loss.mean() - exact) < 4.5 * loss.std() / DRAWS**0.5


def test_a_loss_is_zero_where_the_pair_is_known(usable, exact_model, empirical_flow, normal):
    """With a single data point and its x_t, the prediction of a pair is the pair's."""
    schedule, prediction = usable
    flow = empirical_flow(schedule)
    single = type(flow)(schedule, flow.data[:1])
    pair = Pair(normal("source", 50, 2), flow.data[:1].expand(50, 2))
    loss = FlowMatching()(exact_model(single, prediction), pair, generator(0, "objective"))
    assert loss.shape == (50,)
    assert loss.max() < 1e-6


def first_and_last(n, generator):
    """A time law of nothing but the ends of [0, 1]."""
    return torch.arange(n).remainder(2).float()


def test_times_are_stretched_over_the_span_of_the_model(usable, normal, recorder):
    schedule, prediction = usable
    net = recorder
    pair = Pair(normal("x0", 10, 2).float(), normal("x1", 10, 2).float(), torch.arange(10))
    loss = FlowMatching(first_and_last)(Model(net, schedule, prediction), pair, generator(0, "objective"))
    _, t, s, cond = net.seen
    span = torch.tensor(predictions.span(schedule, prediction)).repeat(5)
    assert torch.equal(t, span)
    assert torch.equal(s, t)
    assert torch.equal(cond, pair.cond)
    assert loss.isfinite().all()


def test_a_loss_is_the_mean_over_its_own_event(normal, recorder):
    """Pairs do not see each other, and a larger event does not weigh more."""
    pair = Pair(normal("x0", 8, 2, 3), normal("x1", 8, 2, 3))
    model = Model(recorder)
    loss = FlowMatching()(model, pair, generator(0, "objective"))
    torch.testing.assert_close(loss, (pair.x1 - pair.x0).square().mean((1, 2)))
    wide = Pair(pair.x0.repeat(1, 5, 1), pair.x1.repeat(1, 5, 1))
    torch.testing.assert_close(FlowMatching()(model, wide, generator(0, "objective")), loss)


# in two halves


class Sum(nn.Module):
    """A net that reads everything."""

    def forward(self, x, t, s, cond=None):
        return x.cos() + like(t + 2 * s, x) + like(cond, x)


def in_rows(objective, model, pair):
    """The losses of a batch by its rows 0..2 and 3..7, of what was drawn for all of it."""
    drawn = objective.draw(pair.x1.shape, generator(0, "objective"))
    parts = []
    for rows in (slice(0, 3), slice(3, 8)):
        share = drawn._make(None if x is None else x[rows] for x in drawn)
        parts.append(objective.loss(model, pair.take(rows), share))
    return torch.cat(parts)


def test_the_losses_of_a_batch_are_those_of_its_parts(usable, normal, all_times):
    for known, shape in zip(all_times, cycle(((2,), (3, 4, 5)))):  # of shapes there is no end
        pair = Pair(normal("x0", 8, *shape), normal("x1", 8, *shape), torch.arange(8))
        model, objective = Model(Sum(), *usable), FlowMatching(known.distribution)
        torch.testing.assert_close(in_rows(objective, model, pair), objective(model, pair, generator(0, "objective")))


@pytest.mark.parametrize("shape", [(2,), (3, 4, 5)])
def test_losses_with_a_bridge_are_those_of_the_parts(schedule, bridge, shape, normal):
    pair = Pair(normal("x0", 8, *shape), normal("x1", 8, *shape), torch.arange(8))
    model, objective = Model(Sum(), schedule), FlowMatching(Stratified(), bridge)
    torch.testing.assert_close(in_rows(objective, model, pair), objective(model, pair, generator(0, "objective")))


def test_what_is_drawn_has_the_rows_of_the_batch(bridge):
    drawn = FlowMatching(bridge=bridge).draw((6, 2, 3), generator(0, "objective"))
    assert drawn.times.shape == (6,)
    assert drawn.noise.shape == (6, 2, 3)
    assert FlowMatching().draw((6, 2, 3), generator(0, "objective")).noise is None


def test_flow_matching_is_in_two_halves_and_a_function_is_not(bridge):
    assert isinstance(FlowMatching(bridge=bridge), Splittable)
    assert not isinstance(lambda model, pair, generator: pair.x1, Splittable)


# bridges


class BridgedNet(nn.Module):
    """The exact velocity of a Gaussian on a widened path: there dx_t/dt and x_t are jointly Gaussian."""

    def __init__(self, flow, bridge):
        super().__init__()
        self.flow, self.bridge = flow, bridge

    def forward(self, x, t, s, cond=None):
        c, (width, slope) = self.flow.schedule.coeffs(like(t, x)), self.bridge.gamma(like(t, x))
        if self.flow.schedule.exploding:
            x = x * torch.sqrt(c.alpha**2 + c.sigma**2)
        mean, variance = self.flow.mean, self.flow.std**2
        covariance = c.d_alpha * c.alpha * variance + c.d_sigma * c.sigma + slope * width
        marginal = c.alpha**2 * variance + c.sigma**2 + width**2
        return c.d_alpha * mean + covariance / marginal * (x - c.alpha * mean)


@pytest.fixture
def gaussian_pair(normal):
    """gaussian_pair(flow): independent pairs of a Gaussian flow."""
    return lambda flow: Pair(normal("source", DRAWS, 2), flow.mean + flow.std * normal("data", DRAWS, 2))


@pytest.mark.costly
def test_the_minimiser_with_a_bridge_is_the_velocity(schedule, bridge, gaussian_flow, gaussian_pair):
    flow = gaussian_flow(schedule)
    model = Model(Tilted(BridgedNet(flow, bridge)), schedule)
    slope = slopes(model, gaussian_pair(flow), FlowMatching(bridge=bridge))
    assert (slope.mean(0).abs() < 4.5 * slope.std(0) / DRAWS**0.5 + 1e-12).all()


def test_a_bridge_adds_its_variance_to_that_of_the_path(schedule, bridge, gaussian_flow, gaussian_pair, recorder):
    flow, t = gaussian_flow(schedule), 0.75
    FlowMatching(lambda n, generator: torch.full((n,), t), bridge)(
        Model(recorder, schedule), gaussian_pair(flow), generator(0, "objective")
    )
    x, t = recorder.seen[:2]
    if schedule.exploding:
        x = x * schedule.coeffs(t[0].double()).sigma.square().add(1).sqrt()
    mean, std = flow.moments(t[0].item())
    wide = torch.sqrt(std**2 + bridge.gamma(t[0].double())[0] ** 2)
    assert ((x.mean(0) - mean).abs() < 4 * wide / DRAWS**0.5).all()
    assert ((x.std(0) / wide - 1).abs() < 4 / (2 * DRAWS) ** 0.5).all()


def inner(n, generator):
    """Times away from both ends, where torchcfm's guard against a division by zero is felt."""
    return torch.linspace(0.02, 0.98, n)


@pytest.mark.parametrize("sigma", [0.1, 1.0])
@pytest.mark.parametrize("bridge", [ConstantBridge, BrownianBridge])
def test_points_with_a_bridge_are_those_of_torchcfm(bridge, sigma, normal, recorder):
    """torchcfm's noise is read off the point, and is standard normal; its velocity at the point is the target."""
    from torchcfm import conditional_flow_matching as cfm

    matchers = {ConstantBridge: cfm.ConditionalFlowMatcher, BrownianBridge: cfm.SchrodingerBridgeConditionalFlowMatcher}
    matcher = matchers[bridge](sigma)
    pair = Pair(normal("x0", 3000, 2), normal("x1", 3000, 2))
    loss = FlowMatching(inner, bridge(sigma))(Model(recorder), pair, generator(0, "objective"))
    x, t = (z.double() for z in recorder.seen[:2])
    noise = (x - matcher.compute_mu_t(*pair[:2], t)) / torch.as_tensor(matcher.compute_sigma_t(t)).reshape(-1, 1)
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert torch.corrcoef(torch.cat([noise, *pair[:2]], dim=1).T)[:2, 2:].abs().max() < 4 / 3000**0.5
    u = matcher.compute_conditional_flow(*pair[:2], t, x)
    torch.testing.assert_close(loss, u.square().mean(1), rtol=1e-5, atol=1e-5)


def test_times_stay_on_the_span_of_the_model_and_of_the_bridge(schedule, bridge, normal, recorder):
    pair = Pair(normal("x0", 10, 2).float(), normal("x1", 10, 2).float())
    model = Model(recorder, schedule)
    loss = FlowMatching(first_and_last, bridge)(model, pair, generator(0, "objective"))
    both = max(model.span[0], bridge.span[0]), min(model.span[1], bridge.span[1])
    torch.testing.assert_close(recorder.seen[1], torch.tensor(both).repeat(5), rtol=1e-6, atol=0)
    assert loss.isfinite().all()


def test_times_never_reach_the_ends_of_a_brownian_bridge(known_times, recorder):
    pair = Pair(torch.zeros(100_000, 1), torch.zeros(100_000, 1))
    loss = FlowMatching(known_times.distribution, BrownianBridge(1.0))(Model(recorder), pair, generator(0, "objective"))
    t = recorder.seen[1]
    assert t.min() > 0
    assert t.max() < 1
    assert loss.isfinite().all()


def test_the_noise_of_a_bridge_is_a_function_of_the_generator(bridge, normal, recorder, global_state_untouched):
    pair, seen = Pair(normal("x0", 8, 2), normal("x1", 8, 2)), []
    for seed in (1, 1, 2):
        FlowMatching(inner, bridge)(Model(recorder), pair, generator(seed, "objective"))
        seen.append(recorder.seen[0])
    assert torch.equal(seen[0], seen[1])
    assert (seen[0] != seen[2]).all()


def test_a_bridge_needs_the_velocity_as_target(usable, bridge, normal, recorder):
    schedule, prediction = usable
    pair = Pair(normal("x0", 8, 2), normal("x1", 8, 2))
    model, objective = Model(recorder, schedule, prediction), FlowMatching(bridge=bridge)
    if prediction is predictions.velocity:
        assert objective(model, pair, generator(0, "objective")).isfinite().all()
    else:
        with pytest.raises(InputError, match=f"velocity, not {prediction.__name__}"):
            objective(model, pair, generator(0, "objective"))
