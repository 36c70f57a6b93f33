"""A model on another path: the same flow but for scale, and DDIM as Euler's method on the straight path."""

import pytest
import torch

from flowgen import grids, predictions
from flowgen.data import Gaussian, Scaling
from flowgen.model import Model
from flowgen.nn import MLP
from flowgen.repath import repath
from flowgen.samplers.ode import euler, rk4
from flowgen.sampling import flow, sample, solve
from flowgen.schedules import VE, VP, Cosine, Linear, OffsetCosine


@pytest.fixture
def repathed(elsewhere, gaussian_flow, exact_model):
    """An exact model of any kind, read on another path, and the exact flow of that."""
    old, prediction, new = elsewhere
    return repath(exact_model(gaussian_flow(old), prediction), new), gaussian_flow(new)


def test_an_exact_model_is_exact_on_any_path(repathed, normal):
    """At all times whose noise it has seen."""
    model, exact = repathed
    old = model.net.model
    for t in torch.linspace(model.span[0], model.span[1], 9, dtype=torch.float64)[1:-1].tolist():
        log_snr = model.schedule.log_snr(torch.tensor(t, dtype=torch.float64))
        if log_snr > old.schedule.log_snr(torch.tensor(old.span[1], dtype=torch.float64)):
            continue
        mean, std = exact.moments(t)
        x, time = mean + std * normal("x", 20, 2), torch.full((20,), t, dtype=torch.float64)
        truth = exact.velocity(x, time)
        torch.testing.assert_close(model.velocity(x, time), truth, rtol=1e-6, atol=1e-6 * truth.abs().max().item())


def test_another_schedule_starts_where_noise_was_seen(repathed):
    model, _ = repathed
    old = model.net.model
    first = torch.tensor(model.span[0], dtype=torch.float64)
    least = old.schedule.log_snr(torch.tensor(old.span[0], dtype=torch.float64))
    assert 0 <= first < 0.3
    if first > 0:
        torch.testing.assert_close(model.schedule.log_snr(first), least, rtol=1e-6, atol=0)


@pytest.mark.costly
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), OffsetCosine(), VE(sigma_max=1000.0)], ids=str)
def test_the_same_samples_come_by_any_path(schedule, gaussian_flow, exact_model, normal):
    """Trajectories of one probability flow, but for scale, so that their ends are the same."""
    model, x0 = exact_model(gaussian_flow(VP()), predictions.v), normal("x0", 50, 2)
    other = repath(model, schedule)
    truth = flow(model, x0, grids.log_snr(VP(), 60, *model.span), rk4)
    ends = flow(other, x0, grids.uniform(60, *other.span), rk4)
    torch.testing.assert_close(ends, truth, rtol=0, atol=5e-3)


def test_ddim_is_eulers_method_on_the_straight_path(normal):
    """x_s = alpha_s x1 + sigma_s x0 with the ends that are expected at t (arXiv 2010.02502), over alpha + sigma."""
    torch.manual_seed(0)
    model = Model(MLP(2), VP(), predictions.noise).double()
    straight, grid = repath(model, Linear()), grids.uniform(12, 0.0, 0.999)
    x = normal("x", 30, 2)
    c = model.schedule.coeffs(grid)
    times = Linear().time(model.schedule.log_snr(grid))
    with torch.no_grad():
        found = solve(straight.velocity, x / (c.alpha + c.sigma)[0], times, euler) * (c.alpha + c.sigma)[-1]
        for k in range(12):
            x0, x1 = model.ends(x, grid[k].expand(30))[:2]
            x = c.alpha[k + 1] * x1 + c.sigma[k + 1] * x0
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)


def test_the_same_path_is_the_same_model():
    model = Model(MLP(2), VP(), predictions.noise)
    assert repath(model, VP()) is model


def test_labels_and_scaling_go_along(normal):
    model = Model(
        MLP(2, classes=3), VP(), predictions.noise, Scaling(torch.tensor([5.0, 5.0]), torch.tensor([2.0, 0.5]))
    )
    other, x, label = repath(model, Linear()), normal("x", 9, 2).float(), torch.arange(9) % 3
    t = torch.full((9,), 0.4)
    log_snr = Linear().log_snr(t)
    old = VP().time(log_snr)
    scale = torch.hypot(*VP().coeffs(old)[:2]) / torch.hypot(*Linear().coeffs(t)[:2])
    torch.testing.assert_close(
        other(x, t, cond=label), model(x * scale[:, None], old, cond=label), rtol=1e-4, atol=1e-4
    )
    start, end = normal("start", 9, 2).float(), repath(model, Linear()).scaling.undo(x)
    torch.testing.assert_close(end, x * torch.tensor([2.0, 0.5]) + 5)
    torch.testing.assert_close(other.start(start), VP().coeffs(old.new_zeros(())).sigma * start, rtol=0.02, atol=0)


def test_a_blur_that_a_path_ends_with_is_kept_away_from():
    """The net of Linear(sigma_min) has seen no less noise than that, and is asked for no later time."""
    model = Model(MLP(2), Linear(sigma_min=0.1), predictions.velocity)
    x = sample(repath(model, Cosine()), Gaussian((2,)), 64, grids.uniform(4), rk4)
    assert x.isfinite().all()
