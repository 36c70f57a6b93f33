"""Bridges between Gaussians, whose every marginal, velocity, score and noise is known in closed form.

For linear drifts the end of an Euler-Maruyama walk is affine in its start and its noise, which can be replayed: its
law is computed to the last digits, and not estimated.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from scipy.stats import kstest
from torch import nn
from torch.func import jvp

from flowgen.core import Pair, generator, like
from flowgen.data import Gaussian
from flowgen.model import Model
from flowgen.objectives import BridgeNoise, FlowMatching, Splittable
from flowgen.paths.bridge import BrownianBridge, ConstantBridge
from flowgen.samplers.grids import uniform
from flowgen.samplers.ode import euler
from flowgen.samplers.sde import BridgeScore, Drift, EulerMaruyama, Inside
from flowgen.sampling import sample, solve, trajectory


@dataclass(frozen=True)
class Gaussians:
    """Ends N(m0, s0^2) and N(m1, s1^2) with covariance c, joined by straight lines and a bridge."""

    m0: float
    s0: float
    m1: float
    s1: float
    c: float
    bridge: BrownianBridge | ConstantBridge

    def mean(self, t):
        return (1 - t) * self.m0 + t * self.m1

    def variance(self, t):
        g = self.bridge.gamma(t)[0]
        return (1 - t) ** 2 * self.s0**2 + t**2 * self.s1**2 + 2 * t * (1 - t) * self.c + g**2

    def velocity(self, x, t, cond=None):
        """E[dx_t/dt | x_t], by Gaussian conditioning; at the ends of time, that of the ends of the span."""
        t = like(t.clamp(*self.bridge.span), x)
        g, slope = self.bridge.gamma(t)
        covariance = t * self.s1**2 - (1 - t) * self.s0**2 + (1 - 2 * t) * self.c + g * slope
        return self.m1 - self.m0 + covariance / self.variance(t) * (x - self.mean(t))

    def noise(self, x, t, cond=None):
        """E[z | x_t]."""
        t = like(t, x)
        return self.bridge.gamma(t)[0] / self.variance(t) * (x - self.mean(t))

    def score(self, x, t, cond=None):
        t = like(t, x)
        return (self.mean(t) - x) / self.variance(t)

    def pairs(self, normal, n):
        a, b = normal("source", n, 1), normal("data", n, 1)
        rest = math.sqrt(self.s1**2 - (self.c / self.s0) ** 2)
        return Pair(self.m0 + self.s0 * a, self.m1 + self.c / self.s0 * a + rest * b)


def entropic(s0, s1, sigma):
    """The covariance of entropic transport with epsilon = 2 sigma^2 between Gaussians (arXiv 2006.02572)."""
    return (math.sqrt(4 * s0**2 * s1**2 + sigma**4) - sigma**2) / 2


FLOWS = {
    "independent": Gaussians(-0.5, 1.0, 2.0, 0.5, 0.0, BrownianBridge(0.8)),
    "entropic": Gaussians(0.3, 0.7, -1.0, 1.4, entropic(0.7, 1.4, 1.2), BrownianBridge(1.2)),
    "blurred": Gaussians(0.0, 1.0, 1.0, 0.4, 0.3, ConstantBridge(0.5)),
}
INNER = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)


@pytest.fixture(params=list(FLOWS.values()), ids=list(FLOWS))
def flow(request):
    return request.param


def widths(flow):
    """Several g, any of which keeps the marginals."""
    sigma = flow.bridge.sigma
    return {
        "that of the bridge": lambda t: sigma,
        "inside": Inside(flow.bridge, sigma),
        "growing": lambda t: 0.3 + t,
        "tapered": lambda t: 2 * sigma * (t * (1 - t)).sqrt(),
    }


WIDTHS = list(widths(FLOWS["blurred"]))


def drift_of(flow, g):
    return Drift(flow.velocity, BridgeScore(flow.noise, flow.bridge), g)


# the objective


class Line(nn.Module):
    """A net a x + b."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x, t, s, cond=None):
        return self.weights[0] * x + self.weights[1]


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_the_noise_that_is_least_in_error_is_its_expectation(flow, t, normal):
    """Newton's step on a quadratic loss is the least squares line; E[z | x_t] is a line too."""
    n, model = 20_000, Model(Line())
    objective = BridgeNoise(flow.bridge, lambda n, generator: torch.full((n,), t))
    losses = objective(model, flow.pairs(normal, n), generator(0, "objective"))
    (slope,) = torch.autograd.grad(losses.mean(), model.net.weights, create_graph=True)
    curvature = torch.stack([torch.autograd.grad(each, model.net.weights, retain_graph=True)[0] for each in slope])
    a, b = torch.linalg.solve(curvature, -slope.detach())
    time = torch.tensor([t], dtype=torch.float64)
    ends = flow.noise(torch.tensor([[0.0], [1.0]], dtype=torch.float64), time)
    error = 4.5 / (n * float(flow.variance(time).clamp(max=1))) ** 0.5  # z and x have about unit size
    assert float(ends[1] - ends[0]) == pytest.approx(float(a), abs=error)
    assert float(ends[0]) == pytest.approx(float(b), abs=2 * error)


def test_it_looks_where_flow_matching_with_the_bridge_does(schedule, bridge, normal, recorder):
    pair = Pair(normal("x0", 50, 2), normal("x1", 50, 2), torch.arange(50))
    seen = []
    for objective in (FlowMatching(bridge=bridge), BridgeNoise(bridge)):
        objective(Model(recorder, schedule), pair, generator(0, "objective"))
        seen.append(recorder.seen)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_its_loss_is_bounded_to_the_ends_of_time(bridge, normal, recorder):
    """The bare net predicts 0: what is left is z^2, whose mean is 1 at all times."""
    pair = Pair(normal("x0", 20_000, 1), normal("x1", 20_000, 1))
    objective = BridgeNoise(bridge, lambda n, generator: torch.arange(n).remainder(2).float())
    loss = objective(Model(recorder), pair, generator(0, "objective"))
    for end in (loss[::2], loss[1::2]):
        assert end.mean() == pytest.approx(1, abs=4.5 * 2**0.5 / 100)
    assert kstest(loss.numpy(), "chi2", (1,)).pvalue > 1e-3


class Sum(nn.Module):
    """A net that reads everything."""

    def forward(self, x, t, s, cond=None):
        return x.cos() + like(t + 2 * s, x) + like(cond, x)


@pytest.mark.parametrize("shape", [(2,), (3, 4, 5)])
def test_the_losses_of_a_batch_are_those_of_its_parts(bridge, schedule, shape, normal):
    pair = Pair(normal("x0", 8, *shape), normal("x1", 8, *shape), torch.arange(8))
    model, objective = Model(Sum(), schedule), BridgeNoise(bridge)
    assert isinstance(objective, Splittable)
    drawn = objective.draw(pair.x1.shape, generator(0, "objective"))
    parts = [objective.loss(model, pair.take(r), drawn._make(x[r] for x in drawn)) for r in (slice(3), slice(3, 8))]
    torch.testing.assert_close(torch.cat(parts), objective(model, pair, generator(0, "objective")))


# score and drift


def test_the_score_of_a_bridge_is_that_of_its_marginals(flow, normal):
    x = normal("points", 99, 1)
    score = BridgeScore(flow.noise, flow.bridge)
    torch.testing.assert_close(score(x, INNER), flow.score(x, INNER), rtol=1e-10, atol=1e-10)
    for end in (0.0, 1.0):  # the span leaves out 1e-5
        t = torch.full((99,), end, dtype=torch.float64)
        torch.testing.assert_close(score(x, t), flow.score(x, t), rtol=0, atol=1e-3)


@pytest.mark.parametrize("g", WIDTHS)
def test_the_drift_moves_mean_and_variance_as_the_flow_does(flow, g):
    """For dx = (A x + b) dt + g dW: mean' = A mean + b and variance' = 2 A variance + g^2."""
    width, one = widths(flow)[g], torch.ones_like(INNER)
    field, mean = drift_of(flow, width), flow.mean(INNER).unsqueeze(1)
    at_mean = field(mean, INNER).squeeze(1)
    slope = field(mean + 1, INNER).squeeze(1) - at_mean
    for moment, change in (
        (flow.mean, at_mean),
        (flow.variance, 2 * slope * flow.variance(INNER) + torch.as_tensor(width(INNER), dtype=torch.float64) ** 2),
    ):
        torch.testing.assert_close(jvp(moment, (INNER,), (one,))[1], change, rtol=1e-9, atol=1e-9)


def test_the_drift_leads_to_the_expected_end(normal):
    """A mixture of Brownian bridges: each goes to its end at (x1 - x) / (1 - t) (arXiv 2307.03672)."""
    for flow in (FLOWS["independent"], FLOWS["entropic"]):
        x, t = normal("points", 99, 1), INNER.unsqueeze(1)
        covariance = (1 - t) * flow.c + t * flow.s1**2
        end = flow.m1 + covariance / flow.variance(t) * (x - flow.mean(t))
        drift = drift_of(flow, lambda t, flow=flow: flow.bridge.sigma)
        torch.testing.assert_close(drift(x, INNER), (end - x) / (1 - t), rtol=1e-9, atol=1e-9)


def test_where_there_is_no_noise_the_score_is_not_asked(flow, normal):
    x = normal("points", 7, 1)
    drift = Drift(flow.velocity, None, Inside(flow.bridge, 1.0))
    for end in (0.0, 1.0, flow.bridge.span[0]):
        t = torch.full((7,), end, dtype=torch.float64)
        assert torch.equal(drift(x, t), flow.velocity(x, t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drift_and_step_agree_on_where_there_is_no_noise(flow, normal, dtype):
    x, g = normal("x", 5, 1).to(dtype), Inside(flow.bridge, 1.0)
    for end in (0.0, 1.0, *flow.bridge.span):
        step, _ = EulerMaruyama(g).step(Drift(flow.velocity, None, g), x, end, 0.5)
        assert torch.equal(step, euler.step(flow.velocity, x, end, 0.5)[0])


def test_rows_with_and_without_noise_go_together(flow, normal):
    """Each row has a time of its own, and its score is of use where g is not 0 alone."""
    x, t = normal("points", 3, 1), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    field = drift_of(flow, Inside(flow.bridge, 1.0))
    one_by_one = [field(x[i : i + 1], t[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(field(x, t), torch.cat(one_by_one), rtol=1e-12, atol=0)


def test_the_condition_reaches_velocity_and_noise(normal):
    """Images, each with a label; the net of the model knows its time and its label."""
    x, t, cond = normal("x", 4, 3, 2, 2), torch.full((4,), 0.25, dtype=torch.float64), torch.arange(4)
    bridge, model = BrownianBridge(2.0), Model(Sum())
    drift = Drift(lambda x, t, cond: like(cond, x) + x, BridgeScore(model, bridge), lambda t: 4 * t)
    noise = x.cos() + 0.75 + cond.reshape(4, 1, 1, 1)
    gamma = 2 * (0.25 * 0.75) ** 0.5
    torch.testing.assert_close(drift(x, t, cond), cond.reshape(4, 1, 1, 1) + x - noise / gamma / 2)


# Euler-Maruyama


def noises(g, seed, rows, grid):
    """The standard normal noise of each row in each step, `(rows, steps)`, by stepping from 0 with nothing else."""
    still = EulerMaruyama(lambda t: 1.0, seed)
    zero = torch.zeros(rows, 1, dtype=torch.float64)
    steps = [(still.step(lambda x, t, c: 0 * x, zero, t, s)[0] / math.sqrt(abs(s - t))) for t, s in pairwise(grid)]
    return torch.cat(steps, dim=1)


def affine(field, g, steps, normal):
    """At each time of a walk its constant, and the weights of its start and of the noises, `(steps, 2 + steps)`."""
    grid, rows = uniform(steps), steps + 40
    x0 = normal("start", rows, 1)
    known = torch.cat([torch.ones_like(x0), x0, noises(g, 5, rows, grid.tolist())], dim=1)
    states = torch.cat(list(trajectory(field, x0, grid, EulerMaruyama(g, 5))), dim=1)
    solved = torch.linalg.lstsq(known, states)
    torch.testing.assert_close(known @ solved.solution, states, rtol=0, atol=1e-8)  # affine indeed
    return solved.solution.T


def moments(weights, flow):
    """Mean and variance at each time of a walk that starts as the flow does."""
    start = flow.variance(torch.zeros((), dtype=torch.float64))
    return weights[:, 0] + weights[:, 1] * flow.m0, weights[:, 1] ** 2 * start + weights[:, 2:].square().sum(1)


@pytest.mark.costly
@pytest.mark.parametrize("g", WIDTHS)
def test_a_walk_keeps_the_marginals_at_weak_order_one(flow, g, normal):
    """At every time of the grid. The mean goes a straight line, where steps are exact but for the ends of the span."""
    errors = []
    for steps in (20, 40, 80, 160):
        mean, variance = moments(affine(drift_of(flow, widths(flow)[g]), widths(flow)[g], steps, normal), flow)
        t = uniform(steps)[1:]
        torch.testing.assert_close(mean, flow.mean(t), rtol=0, atol=2e-6)
        errors.append(float((variance - flow.variance(t)).abs().max()))
    assert 0.85 < math.log2(errors[-2] / errors[-1]) < 1.3  # the time of the largest error may change
    assert errors[-1] < 0.003


@pytest.mark.parametrize("name", ["independent", "entropic"])
def test_only_entropic_pairs_are_the_pairs_of_their_own_sde(name, normal):
    """The Schroedinger bridge is Markov: its SDE leads from a start to the end that it was paired with, in law."""
    flow = FLOWS[name]
    errors = []
    for steps in (40, 80, 160):
        g = widths(flow)["that of the bridge"]
        covariance = affine(drift_of(flow, g), g, steps, normal)[-1, 1] * flow.s0**2
        errors.append(abs(float(covariance) - flow.c))
    if name == "entropic":
        assert math.log2(errors[-2] / errors[-1]) == pytest.approx(1, abs=0.15)
        assert errors[-1] < 0.005
    else:
        assert errors[-1] > 0.05


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_a_walk_between_two_points_is_a_brownian_bridge(sigma, normal):
    """Euler-Maruyama on dx = (b - x) / (1 - t) dt + sigma dW, to the digit, and at order 1 the bridge."""
    flow, errors = Gaussians(-1.0, 0.0, 2.0, 0.0, 0.0, BrownianBridge(sigma)), []
    for steps in (25, 50, 100):
        mean, variance = moments(affine(drift_of(flow, lambda t: sigma), lambda t: sigma, steps, normal), flow)
        k = torch.arange(1, steps, dtype=torch.float64)
        t = k / steps
        shrunk = ((steps - k) ** 2 * (1 / (steps - k) ** 2).cumsum(0)) * sigma**2 / steps
        torch.testing.assert_close(variance[:-1], shrunk, rtol=1e-3, atol=1e-6)  # the span begins at 1e-5, not 0
        torch.testing.assert_close(mean, flow.mean(uniform(steps)[1:]), rtol=0, atol=1e-3)
        errors.append(float((variance[:-1] - sigma**2 * t * (1 - t)).abs().max()))
        assert float(variance[-1]) == pytest.approx(sigma**2 / steps, rel=1e-3)
    assert math.log2(errors[-2] / errors[-1]) == pytest.approx(1, abs=0.15)


def test_one_step_is_what_it_says(normal):
    """On a decreasing grid too, where the noise is no less noise."""
    x = normal("x", 5, 2, 3)
    for t, s in ((0.25, 0.5), (0.5, 0.25), (0.0, 1.0)):
        z = EulerMaruyama(lambda t: 1.0, 3).step(lambda x, t, c: 0 * x, 0 * x, t, s)[0] / math.sqrt(abs(s - t))
        end, _ = EulerMaruyama(lambda t: 3 - t, 3).step(lambda x, t, c: x**2 + like(t, x), x, t, s)
        exact = x + (s - t) * (x**2 + t) + (3 - t) * math.sqrt(abs(s - t)) * z
        torch.testing.assert_close(end, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_noise_it_is_eulers_method_bit_for_bit(flow, normal, dtype):
    x = normal("x", 70, 1).to(dtype)
    field = Drift(flow.velocity, None, lambda t: 0.0)
    for grid in (uniform(13), uniform(13).flip(0)):
        noiseless = list(trajectory(field, x, grid, EulerMaruyama(lambda t: 0.0)))
        assert all(torch.equal(a, b) for a, b in zip(noiseless, trajectory(flow.velocity, x, grid, euler), strict=True))
        assert noiseless[-1].dtype == dtype


def test_noise_is_normal_and_independent():
    grid = uniform(40).tolist()
    z = noises(None, 1, 500, grid)
    assert kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    both = torch.cat([z, noises(None, 2, 500, grid), noises(None, 1, 500, grid[::-1])], dim=1)
    assert (torch.corrcoef(both.T) - torch.eye(120)).abs().max() < 5 / 500**0.5
    assert (torch.corrcoef(z) - torch.eye(500)).abs().max() < 5.5 / 40**0.5


def test_a_row_has_the_noise_of_its_number_in_any_batch(flow, normal):
    x, g = normal("x", 200, 1), lambda t: 0.7
    whole = solve(drift_of(flow, g), x, uniform(6), EulerMaruyama(g, 4))
    for first, last in ((0, 200), (0, 1), (64, 128), (37, 151), (199, 200)):
        part = solve(drift_of(flow, g), x[first:last], uniform(6), EulerMaruyama(g, 4, first))
        assert torch.equal(part, whole[first:last])


def test_samples_do_not_depend_on_the_chunks_they_are_drawn_in(flow):
    """Each row has noise of its own, whichever chunk it is in."""
    model, g = Model(Line()), lambda t: 0.7
    drift = drift_of(flow, g)

    def drawn(num, chunk):
        return sample(model, Gaussian((1,)), num, uniform(4), EulerMaruyama(g, 4), chunk=chunk, field=drift)

    whole = drawn(300, 512)
    assert torch.equal(drawn(300, 64), whole)
    assert torch.equal(drawn(130, 128), whole[:130])
    assert len(whole.unique()) == 300


def test_a_walk_that_is_interrupted_goes_on_with_other_noise(flow, normal):
    x, g = normal("x", 20, 1), lambda t: 0.7
    solver, grid = EulerMaruyama(g, 4), uniform(10)
    field = drift_of(flow, g)
    half = solve(field, x, grid[:6], solver)
    assert torch.equal(solve(field, half, grid[5:], solver), solve(field, x, grid, solver))


def test_the_noise_is_a_function_of_the_seed(flow, normal, global_state_untouched):
    x, g = normal("x", 20, 1), lambda t: 0.7
    first, again, other = (solve(drift_of(flow, g), x, uniform(5), EulerMaruyama(g, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert (first != other).all()
