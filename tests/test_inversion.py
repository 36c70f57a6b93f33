"""To noise and back: as exact as the solver, and of Gaussian data where the closed form says."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from flowgen import guidance, predictions
from flowgen.config import sampling_by
from flowgen.core import Pair, expand_time
from flowgen.runs import ChosenSampler, Editor
from flowgen.samplers.grids import uniform
from flowgen.samplers.ode import AdaptiveSolver, euler, heun, rk4
from flowgen.sampling import grid_of, solve
from flowgen.schedules import DDPM, VE, VP, Cosine, Linear, OffsetCosine


@pytest.mark.costly
@pytest.mark.parametrize("solver", [euler, heun, rk4], ids=["euler", "heun", "rk4"])
@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=["linear", "cosine"])
def test_there_and_back_is_as_exact_as_the_solver(gaussian_flow, normal, schedule, solver):
    """Both ways, and both together, at the solver's order of convergence."""
    flow, x1 = gaussian_flow(schedule), normal("data", 8, 2)
    there, back = [], []
    for steps in (20, 40, 80):
        latent = guidance.inverted(flow.velocity, x1, uniform(steps), solver)
        there.append((latent - flow.map(x1, 1.0, 0.0)).norm().item())
        back.append((solve(flow.velocity, latent, uniform(steps), solver) - x1).norm().item())
    for errors in (there, back):
        orders = [math.log2(a / b) for a, b in pairwise(errors)]
        # Heun's way back undoes a part of what its way there errs by, and RK4's does too
        assert min(orders) > solver.order - 0.35


FEW_STEPS = DDPM(steps=20, beta_min=0.01, beta_max=0.6)


def smooth_pieces(schedule, lo, hi):
    """A grid of the span that also stops where one cubic of a DDPM meets the next: no step is rejected there."""
    knots = (
        torch.arange(schedule.steps, dtype=torch.float64) / schedule.steps
        if isinstance(schedule, DDPM)
        else torch.empty(0)
    )
    return torch.cat([uniform(4, lo, hi), knots[(knots > lo) & (knots < hi)].double()]).unique()


@pytest.fixture(
    params=[Linear(), Cosine(), VP(), OffsetCosine(), FEW_STEPS, VE()], ids=lambda schedule: type(schedule).__name__
)
def smooth(request):
    """Paths whose velocity an adaptive method can follow to its tolerance."""
    return request.param


@pytest.mark.costly
def test_an_exact_field_leads_there_and_back(gaussian_flow, smooth, normal):
    """On diffusions from the end of the span, where the point is taken to be."""
    flow, x1 = gaussian_flow(smooth), normal("data", 8, 2)
    grid = smooth_pieces(smooth, *predictions.span(smooth, predictions.velocity))
    solver = AdaptiveSolver("dopri8", rtol=1e-11, atol=1e-11)
    latent = guidance.inverted(flow.velocity, x1, grid, solver)
    lo, hi = grid[0].item(), grid[-1].item()
    torch.testing.assert_close(latent, flow.map(x1, hi, lo), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(solve(flow.velocity, latent, grid, solver), x1, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.7, 1.0])
def test_a_noised_point_is_on_the_path(schedule, normal, strength):
    x1, x0, t = normal("data", 8, 2), normal("noise", 8, 2), 1 - strength
    begun = guidance.noised(schedule, x1, x0, t)
    c = schedule.coeffs(torch.tensor(t, dtype=torch.float64))
    if strength == 1:  # where sampling starts, whatever was there
        assert torch.equal(begun, guidance.noised(schedule, 100 + x1, x0, t))
        torch.testing.assert_close(begun, c.sigma * x0)
    else:
        torch.testing.assert_close(begun, schedule.at(Pair(x0, x1), expand_time(t, x1)).x)


@pytest.mark.costly
@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
def test_a_redrawn_point_is_where_the_flow_takes_its_noised_one(gaussian_flow, smooth, normal, strength):
    flow, t, (lo, hi) = gaussian_flow(smooth), 1 - strength, predictions.span(smooth, predictions.velocity)
    begun = guidance.noised(smooth, normal("data", 8, 2), normal("noise", 8, 2), t)
    grid = guidance.from_time(smooth_pieces(smooth, lo, hi), t)
    made = solve(flow.velocity, begun, grid, AdaptiveSolver("dopri8", rtol=1e-9, atol=1e-9))
    torch.testing.assert_close(made, flow.map(begun, t, hi), rtol=1e-6, atol=1e-6)


def test_the_rest_of_a_grid_begins_where_it_is_told():
    grid = uniform(4)
    assert guidance.from_time(grid, 0.0).tolist() == grid.tolist()
    assert guidance.from_time(grid, 0.5).tolist() == [0.5, 0.75, 1.0]
    assert guidance.from_time(grid, 0.6).tolist() == [0.6, 0.75, 1.0]
    assert guidance.from_time(grid, 1.0).tolist() == [1.0]


def angle(x, y):
    x, y = x.flatten(), y.flatten()
    return torch.acos(x @ y / x.norm() / y.norm()).item()


def test_a_great_circle_turns_evenly_and_keeps_the_norm(normal):
    x, y = normal("x", 3, 4), normal("y", 3, 4)
    y = y * x.norm() / y.norm()
    way = guidance.slerp(x, y, torch.linspace(0, 1, 6, dtype=torch.float64))
    torch.testing.assert_close(way[0], x)
    torch.testing.assert_close(way[-1], y)
    for one, other in pairwise(way):
        assert angle(one, other) == pytest.approx(angle(x, y) / 5)
        assert other.norm().item() == pytest.approx(x.norm().item())
    # in the plane of its ends
    assert torch.linalg.matrix_rank(way.flatten(1), rtol=1e-9) == 2


def test_a_great_circle_of_the_plane_is_a_rotation():
    turn = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    way = guidance.slerp(*torch.tensor([[1.0, 0.0], [-0.8, 0.6]], dtype=torch.float64), turn)
    whole = math.acos(-0.8)
    for share, point in zip(turn.tolist(), way, strict=True):
        assert point.tolist() == pytest.approx([math.cos(share * whole), math.sin(share * whole)])


@pytest.mark.parametrize("apart", [0.0, 1e-9, 1e-5])
def test_between_points_of_one_direction_it_is_the_line(normal, apart):
    x = normal("x", 12)
    y = 3 * x + apart * normal("y", 12)
    way = guidance.slerp(x, y, torch.tensor([0.5], dtype=torch.float64))
    torch.testing.assert_close(way[0], (x + y) / 2, rtol=0, atol=1e-9 + apart**2)


@pytest.mark.costly
@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "dpm++3m", "unipc", "edm", "heun"])
@pytest.mark.parametrize("schedule", [DDPM(steps=50, beta_min=0.002, beta_max=0.35), VP(), Linear()], ids=repr)
def test_a_run_is_inverted_by_every_solver_that_draws_nothing(gaussian_flow, exact_model, normal, name, schedule):
    """On the grids that they have by name, also where the path has few steps of its own."""
    model, x = exact_model(gaussian_flow(schedule), predictions.v).double(), normal("data", 3, 2)
    chosen, spacing = sampling_by(name, schedule)
    for steps, bound in ((8, math.inf), (40, 0.5 if name == "ddim" else 0.05)):
        grid = grid_of(model, chosen, steps, spacing)
        editor = Editor(SimpleNamespace(model=model), model.velocity, ChosenSampler(chosen, grid))
        back = editor.back(editor.invert(x))
        assert back.isfinite().all()
        assert (back - x).abs().max() < bound
