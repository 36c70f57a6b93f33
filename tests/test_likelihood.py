"""The log-likelihood agrees with flows whose density is known, and with the Jacobian of the flow's own map."""

import math
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal

from flowgen import likelihood, predictions
from flowgen.core import InputError, Pair
from flowgen.data import Gaussian, Scaling, eight_gaussians
from flowgen.likelihood import Rademacher, bits_per_dim, dequantised, divergence, log_likelihood, probes
from flowgen.model import Model
from flowgen.nn import MLP
from flowgen.repath import repath
from flowgen.samplers.grids import log_snr, uniform
from flowgen.samplers.ode import AdaptiveSolver, rk4
from flowgen.sampling import flow
from flowgen.schedules import VE, VP, Cosine, Linear


class Affine(nn.Module):
    """The field A x + b."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = nn.Parameter(a), b

    def forward(self, x, t, s, cond=None):
        return x @ self.a.T + self.b


def smooth_net(dim, gain=2.5):
    """A random network of float64, far from linear."""
    net = MLP(dim, 16, 2, frequencies=1, activation=nn.Tanh, seed=dim).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight *= gain
    return net


# divergence


def known(x, t, cond=None):
    a, b, c = x.unbind(1)
    return torch.stack([a**2 * b * t, torch.sin(a * b) + c, c.exp() * a], dim=1)


def test_the_divergence_of_a_known_field_is_exact(normal):
    """d/da (a^2 b t) + d/db (sin(a b) + c) + d/dc (e^c a)."""
    x, t = normal("x", 50, 3), torch.linspace(0, 1, 50, dtype=torch.float64)
    a, b, c = x.unbind(1)
    v, div = divergence(known, x, t)
    assert torch.equal(v, known(x, t))
    torch.testing.assert_close(div, 2 * a * b * t + a * torch.cos(a * b) + a * c.exp(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 3)])
def test_the_divergence_is_the_trace_of_the_jacobian(normal, shape):
    net, x, t = smooth_net(math.prod(shape)), normal("x", 20, *shape), torch.linspace(0, 1, 20, dtype=torch.float64)
    v, div = divergence(lambda x, t, cond: net(x.flatten(1), t).unflatten(1, shape), x, t)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda row, time: net(row[None], time[None])[0]))(x.flatten(1), t)
    assert v.shape == x.shape
    torch.testing.assert_close(div, jacobians.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-12, atol=1e-12)


def test_a_constant_field_has_no_divergence(normal):
    x, t = normal("x", 9, 2), torch.linspace(0, 1, 9)
    for field in (lambda x, t, cond: torch.ones_like(x), lambda x, t, cond: t.double().unsqueeze(1).expand_as(x)):
        v, div = divergence(field, x, t)
        assert torch.equal(v, field(x, t, None))
        assert torch.equal(div, torch.zeros(9, dtype=torch.float64))


def test_the_condition_reaches_the_field_and_no_gradient_stays(normal):
    net, x, cond = smooth_net(2), normal("x", 9, 2), torch.arange(9.0, dtype=torch.float64).unsqueeze(1)
    with torch.no_grad():
        v, div = divergence(lambda x, t, cond: cond * net(x, t), x, torch.zeros(9), cond)
    torch.testing.assert_close(div, cond[:, 0] * divergence(lambda x, t, _: net(x, t), x, torch.zeros(9))[1])
    assert not v.requires_grad
    assert not div.requires_grad
    assert all(weight.grad is None for weight in net.parameters())


# Hutchinson's estimate


def all_signs(rows, *shape):
    """Every vector of signs, each for all rows: `(2^D, rows, *shape)`."""
    every = torch.tensor(list(product((-1.0, 1.0), repeat=math.prod(shape))), dtype=torch.float64)
    return every.reshape(-1, 1, *shape).expand(-1, rows, *shape)


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 3)])
def test_over_all_signs_the_estimate_is_the_divergence(normal, shape):
    """Each is as likely as any other, so that their mean is the expectation."""
    net, x, t = smooth_net(math.prod(shape)), normal("x", 7, *shape), torch.linspace(0, 1, 7, dtype=torch.float64)
    field = lambda x, t, cond: net(x.flatten(1), t).unflatten(1, shape)  # noqa: E731
    v, exact = divergence(field, x, t)
    found, estimate = likelihood.estimated_divergence(field, x, t, None, all_signs(7, *shape))
    assert torch.equal(found, v)
    assert not estimate.requires_grad
    torch.testing.assert_close(estimate, exact, rtol=1e-12, atol=1e-12)
    one = likelihood.estimated_divergence(field, x, t, None, all_signs(7, *shape)[:1])[1]
    assert math.prod(shape) == 1 or (one - exact).abs().max() > 0.01


@pytest.mark.parametrize("law", [Rademacher((3,)), Gaussian((3,))], ids=["signs", "normal"])
def test_the_estimate_is_unbiased_and_signs_vary_less(normal, law):
    """Of e^T A e with A symmetric: 2 |A|^2 for normal probes, and without the diagonal for signs."""
    a, x = normal("A", 3, 3), normal("x", 4000, 3)
    a = a + a.T
    drawn = probes(law, 4000, 2, seed=3).double()
    _, found = likelihood.estimated_divergence(lambda x, t, cond: x @ a.T, x, torch.zeros(4000), None, drawn)
    square = a.square().sum() - (a.diagonal().square().sum() if isinstance(law, Rademacher) else 0)
    variance = 2 * square / 2  # of the mean of two
    assert abs(found.mean() - a.trace()) < 4 * (variance / 4000).sqrt()
    torch.testing.assert_close(found.var(), variance, rtol=0.15, atol=0)


def test_the_probes_of_a_row_are_a_function_of_its_number():
    whole, part = probes(Rademacher((2, 3)), 200, 3, seed=1), probes(Rademacher((2, 3)), 50, 3, seed=1, first=130)
    assert torch.equal(whole[:, 130:180], part)
    assert set(whole.unique().tolist()) == {-1.0, 1.0}
    assert whole.mean().abs() < 4 / math.sqrt(whole.numel())
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, probes(Rademacher((2, 3)), 200, 3, seed=2))
    with pytest.raises(InputError, match="at least one probe, not 0"):
        probes(Rademacher((2,)), 5, 0, seed=0)


def test_a_probe_stays_the_same_along_a_trajectory(normal):
    """Of a field A x the estimate is then e^T A e at all times, and so is its integral."""
    a, x = normal("A", 3, 3), normal("x", 20, 3)
    drawn = probes(Gaussian((3,)), 20, 2, seed=0).double()
    model = Model(Affine(a, torch.zeros(3, dtype=torch.float64)))
    found = log_likelihood(model, Gaussian((3,)), x, uniform(100), rk4, probes=drawn)
    x0 = x @ torch.matrix_exp(-a).T
    estimate = torch.einsum("pbi,ij,pbj->b", drawn, a, drawn) / 2
    torch.testing.assert_close(found, Gaussian((3,)).log_density(x0) - estimate, rtol=1e-6, atol=1e-6)


def test_over_all_probes_the_log_likelihood_is_the_exact_one(normal):
    model, x = Model(smooth_net(3)), normal("x", 6, 3)
    exact = log_likelihood(model, Gaussian((3,)), x, uniform(20), rk4)
    found = log_likelihood(model, Gaussian((3,)), x, uniform(20), rk4, probes=all_signs(6, 3))
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


# closed forms


@pytest.mark.parametrize("estimated", [False, True])
def test_each_row_has_the_density_of_its_own_label(normal, estimated):
    """A field A x + b of the label makes a Gaussian of another mean for each."""
    a, b = normal("A", 2, 2), normal("b", 3, 2)
    x, cond = normal("x", 12, 2), torch.arange(12) % 3

    class Labelled(Affine):
        def forward(self, x, t, s, cond=None):
            return x @ self.a.T + b[cond]

    flowed = torch.matrix_exp(a)
    mean = torch.linalg.solve(a, (flowed - torch.eye(2)) @ b.T).T[cond]
    drawn = all_signs(12, 2) if estimated else None
    found = log_likelihood(Model(Labelled(a, b)), Gaussian(), x, uniform(60), rk4, cond, drawn)
    torch.testing.assert_close(found, MultivariateNormal(mean, flowed @ flowed.T).log_prob(x), rtol=1e-6, atol=1e-6)


@pytest.mark.costly
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_a_linear_field_makes_a_gaussian_of_known_covariance(normal, dim):
    """x1 = E x0 + int e^(A s) b ds with E = e^A, so that the law is N(A^-1 (E - 1) b, E E^T)."""
    a, b, x = normal("A", dim, dim), normal("b", dim), 2 * normal("x", 30, dim)
    flowed = torch.matrix_exp(a)
    mean = torch.linalg.solve(a, (flowed - torch.eye(dim)) @ b)
    found = log_likelihood(Model(Affine(a, b)), Gaussian((dim,)), x, uniform(100), rk4)
    torch.testing.assert_close(found, MultivariateNormal(mean, flowed @ flowed.T).log_prob(x), rtol=1e-6, atol=1e-6)


@pytest.mark.costly
def test_densities_are_those_of_the_exact_flow(usable, gaussian_flow, exact_model, normal):
    """The flow from N(0, sigma(0)^2) is affine: back to where a point came from, and its lengths by their ratio."""
    schedule, prediction = usable
    exact = gaussian_flow(schedule)
    model = exact_model(exact, prediction).double()
    x = exact.mean + 1.5 * exact.std * normal("x", 20, 2)
    lo, hi = model.span
    (_, narrow), (_, wide) = exact.moments(hi), exact.moments(lo)
    sigma = schedule.coeffs(torch.zeros((), dtype=torch.float64)).sigma
    truth = (Normal(0.0, sigma).log_prob(exact.map(x, hi, lo)) + torch.log(wide / narrow)).sum(1)
    found = log_likelihood(model, Gaussian(), x, log_snr(schedule, 60, lo, hi), rk4)
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)


@pytest.mark.costly
@pytest.mark.parametrize("schedule", [Linear(), VP(), VE(), VE(0.05, 20.0)], ids=str)
def test_the_density_of_an_exact_model_is_that_of_its_data(schedule, gaussian_flow, exact_model, normal):
    exact = gaussian_flow(schedule)
    model = exact_model(exact, predictions.v).double()
    x = exact.mean + exact.std * normal("x", 20, 2)
    start = schedule.coeffs(torch.zeros((), dtype=torch.float64))
    left_out = float(start.alpha / start.sigma) + 0.003 * (model.span[1] < 1)  # at the start, and at the end of time
    found = log_likelihood(model, Gaussian(), x, log_snr(schedule, 80, *model.span), rk4)
    truth = Normal(exact.mean, exact.std).log_prob(x).sum(1)
    torch.testing.assert_close(found, truth, rtol=0, atol=5 * left_out + 1e-4)


@pytest.mark.costly
@pytest.mark.parametrize("scale", [[3.0, 0.1], [-3.0, 0.1]])
def test_the_density_is_in_the_units_of_the_data(gaussian_flow, exact_model, normal, scale):
    """What is N(mean, std) to the model is N(shift + scale mean, |scale| std) outside."""
    exact = gaussian_flow(Linear())
    shift, scale = torch.tensor([100.0, -2.0], dtype=torch.float64), torch.tensor(scale, dtype=torch.float64)
    model = exact_model(exact, predictions.velocity).double()
    model.scaling = Scaling(shift, scale)
    outside = Normal(shift + scale * exact.mean, scale.abs() * exact.std)
    x = outside.loc + outside.scale * normal("x", 30, 2)
    found = log_likelihood(model, Gaussian(), x, uniform(100), rk4)
    torch.testing.assert_close(found, outside.log_prob(x).sum(1), rtol=1e-6, atol=1e-6)


def test_one_scale_for_all_columns_counts_for_each(normal):
    x = normal("x", 20, 3)
    still = Model(Affine(torch.zeros(3, 3), torch.zeros(3)), scaling=Scaling(torch.tensor(1.0), torch.tensor(2.0)))
    truth = Normal(1.0, 2.0).log_prob(x).sum(1)
    torch.testing.assert_close(log_likelihood(still, Gaussian((3,)), x, uniform(1), rk4), truth)


def test_a_flow_that_stands_still_has_the_density_of_its_source(normal, recorder):
    source, x = eight_gaussians(), 4 * normal("x", 30, 2)
    found = log_likelihood(Model(recorder), source, x, uniform(2), rk4)
    torch.testing.assert_close(found, source.log_density(x), rtol=1e-9, atol=1e-9)


def test_the_density_of_images_is_that_of_their_pixels(normal):
    a, b, x = 0.3 * normal("A", 6, 6), normal("b", 6), normal("x", 20, 2, 3)

    class Image(nn.Module):
        def __init__(self):
            super().__init__()
            self.flat = Affine(a, b)

        def forward(self, x, t, s, cond=None):
            assert x.shape[1:] == (2, 3)
            return self.flat(x.flatten(1), t, s).unflatten(1, (2, 3))

    scale = Scaling(torch.zeros(2, 3), torch.arange(1.0, 7.0).reshape(2, 3))
    flat = Scaling(torch.zeros(6), torch.arange(1.0, 7.0))
    wide = log_likelihood(Model(Image(), scaling=scale), Gaussian((2, 3)), x, uniform(20), rk4)
    rows = log_likelihood(Model(Affine(a, b), scaling=flat), Gaussian((6,)), x.flatten(1), uniform(20), rk4)
    torch.testing.assert_close(wide, rows, rtol=1e-9, atol=1e-9)


# networks


@pytest.mark.costly
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_density_is_the_sources_over_the_determinant(normal, dim):
    """log p(x1) = log p(x0) - log |det dx1/dx0|, with the Jacobian of the forward map as the solver walks it."""
    model, x0, grid = Model(smooth_net(dim)), normal("x0", 15, dim), uniform(60)

    def forward(row):
        x = row.unsqueeze(0)
        for t, s in pairwise(grid.tolist()):
            x, _ = rk4.step(model.velocity, x, t, s)
        return x.squeeze(0)

    jacobians = torch.func.vmap(torch.func.jacrev(forward))(x0)
    stretched = torch.linalg.slogdet(jacobians).logabsdet.detach()
    assert stretched.std() > 0.1  # no trivial flow
    x1 = flow(model, x0, grid, rk4)
    found = log_likelihood(model, Gaussian((dim,)), x1, grid, rk4)
    torch.testing.assert_close(found, Normal(0.0, 1.0).log_prob(x0).sum(1) - stretched, rtol=1e-5, atol=1e-5)


@pytest.mark.costly
@pytest.mark.parametrize("scaling", [None, Scaling(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 2.0]))])
def test_a_density_sums_to_one(scaling):
    """By the trapezoidal rule on a box that holds all but the far tails."""
    model = Model(smooth_net(2, gain=2.0).float(), scaling=scaling)
    side = torch.linspace(-8, 8, 97)
    box = model.scaling.undo(torch.cartesian_prod(side, side))
    cell = (side[1] - side[0]).item() ** 2 * model.scaling.scale.expand(2).prod().item()
    density = log_likelihood(model, Gaussian(), box, uniform(12), rk4).exp()
    assert density.sum().item() * cell == pytest.approx(1, abs=2e-4)
    assert density.reshape(97, 97)[[0, -1]].max() < 1e-5


@pytest.mark.costly
@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [
        (VP(), predictions.v),
        (VP(0.5, 0.5), predictions.noise),
        (VE(0.1, 4.0), predictions.noise),
        (VE(0.1, 4.0), predictions.v),
    ],
    ids=lambda made: getattr(made, "__name__", str(made)),
)
def test_a_density_of_a_diffusion_sums_to_one(schedule, prediction):
    model = Model(smooth_net(2, gain=0.7).float(), schedule, prediction)
    reach = 8 * max(1.0, model.start(torch.ones(1)).item())
    side = torch.linspace(-reach, reach, 121)
    grid = log_snr(schedule, 24, *model.span)
    density = log_likelihood(model, Gaussian(), torch.cartesian_prod(side, side), grid, rk4).exp()
    assert density.sum().item() * (side[1] - side[0]).item() ** 2 == pytest.approx(1, abs=2e-3)
    assert density.reshape(121, 121)[[0, -1]].max() < 1e-4


@pytest.mark.costly
@pytest.mark.parametrize("paths", [(Linear(), Cosine()), (Cosine(), Linear())], ids=str)
def test_a_model_on_another_path_has_the_same_density(paths, normal):
    here, there = paths
    model, x = Model(smooth_net(2), here, predictions.v), normal("x", 30, 2)
    found, moved = (log_likelihood(made, Gaussian(), x, uniform(80), rk4) for made in (model, repath(model, there)))
    assert found.std() > 0.5
    torch.testing.assert_close(moved, found, rtol=0, atol=1e-4)


# shades


def test_dequantised_images_lie_evenly_about_their_shades():
    shades = torch.arange(256).repeat(40).reshape(-1, 1, 1, 1) / 255
    x = dequantised(shades, 1 / 255, seed=0)
    place = (x - shades).double() * 255
    assert place.abs().max() <= 0.5 + 1e-4
    assert torch.equal((x * 255).round()[place.abs() < 0.499], (shades * 255).round()[place.abs() < 0.499])
    counts = torch.histc(place.float(), 10, -0.5, 0.5)
    assert (counts - 1024).abs().max() < 5 * 32
    assert torch.equal(dequantised(shades[300:400], 1 / 255, seed=0, first=300), x[300:400])
    assert not torch.equal(dequantised(shades, 1 / 255, seed=1), x)


def test_eight_bits_are_what_an_image_of_even_noise_takes():
    """All 256 values of each pixel alike: the density is 1 over 256 intervals of 1 / 255."""
    log_density = torch.full((3,), 12 * math.log(255 / 256), dtype=torch.float64)
    bits = bits_per_dim(log_density + 12 * math.log(1 / 255), 12)
    torch.testing.assert_close(bits, torch.full((3,), 8.0, dtype=torch.float64))


@pytest.mark.costly
@pytest.mark.parametrize("schedule", [Linear(), VP()], ids=str)
def test_probabilities_of_shades_are_of_their_intervals(schedule, gaussian_flow, exact_model):
    """The mean of the density over an interval, times its length, is its probability: of 17 shades of a pixel that is a
    Gaussian in [-1, 1], the difference of its distribution function. The mean of the logarithm is less."""
    step, draws = 1 / 16, 2000
    exact = GaussianPixel(gaussian_flow(schedule))
    model = exact_model(exact, predictions.v).double()
    model.scaling = Scaling.of_range(0.0, 1.0)
    shades = torch.linspace(0, 1, 17, dtype=torch.float64).repeat_interleave(draws).reshape(-1, 1, 1, 1)
    grid = log_snr(schedule, 30, *model.span)
    x = dequantised(shades, step, seed=0)
    found = (log_likelihood(model, Gaussian((1, 1, 1)), x, grid, rk4) + math.log(step)).reshape(17, draws)
    law = exact.end(model.span[1])
    edges = 2 * (torch.linspace(-0.5, 16.5, 18, dtype=torch.float64) / 16) - 1
    truth = law.cdf(edges).diff()
    torch.testing.assert_close(found.exp().mean(1), truth, rtol=0.03, atol=0)
    assert (found.mean(1) < truth.log() + 0.01).all()
    assert (found.mean(1) < truth.log() - 0.01).any()


class GaussianPixel:
    """The exact flow to images of one pixel, the first column of a flow in the plane."""

    def __init__(self, flow):
        self.schedule = flow.schedule
        self.flow = replace(flow, mean=0.2 * flow.mean[:1], std=flow.std[:1])

    def ends(self, x, t):
        return Pair(*(end.reshape(x.shape) for end in self.flow.ends(x.flatten(1), t)[:2]))

    def end(self, t):
        mean, std = self.flow.moments(t)
        return Normal(mean, std)


@pytest.mark.costly
def test_the_error_falls_at_the_order_of_the_solver(fixed_step, normal):
    solver, _ = fixed_step
    model, x = Model(smooth_net(2)), normal("x", 10, 2)
    truth = log_likelihood(model, Gaussian(), x, uniform(200), rk4)
    errors = [
        (log_likelihood(model, Gaussian(), x, uniform(n), solver) - truth).abs().mean().item() for n in (16, 32, 64)
    ]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders[-1] == pytest.approx(solver.order, abs=0.35)


@pytest.mark.costly
def test_an_adaptive_solver_finds_the_same_density(normal):
    model, x = Model(smooth_net(2)), normal("x", 10, 2)
    adaptive = log_likelihood(model, Gaussian(), x, uniform(1), AdaptiveSolver("dopri5", 1e-8, 1e-8))
    torch.testing.assert_close(adaptive, log_likelihood(model, Gaussian(), x, uniform(50), rk4), rtol=0, atol=1e-5)


def test_the_density_in_float32_is_that_in_float64(normal):
    x, net = normal("x", 20, 2), smooth_net(2).float()
    single = log_likelihood(Model(net), Gaussian(), x.float(), uniform(20), rk4)
    double = log_likelihood(Model(net.double()), Gaussian(), x.float(), uniform(20), rk4)
    assert single.dtype == double.dtype == torch.float64
    torch.testing.assert_close(single, double, rtol=0, atol=2e-5)


def test_data_with_a_constant_column_have_no_density(normal):
    scaling = Scaling(torch.zeros(2), torch.tensor([1.0, 0.0]))
    with pytest.raises(InputError, match="constant column"):
        log_likelihood(Model(smooth_net(2), scaling=scaling), Gaussian(), normal("x", 5, 2), uniform(2), rk4)
