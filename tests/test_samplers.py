"""Samplers on flows whose expected ends are known: where they lead, how fast they converge, what they ask."""

import math
from itertools import pairwise, product

import pytest
import torch

from flowgen import grids, predictions
from flowgen.core import InputError, expand_time, like
from flowgen.samplers import DDIM, Ancestral, DPMSolverPP, EDMSampler, Langevin, PredictorCorrector, UniPC
from flowgen.samplers.flow_map import FlowMapStep
from flowgen.samplers.ode import euler, rk4
from flowgen.samplers.sde import ReverseSDE
from flowgen.sampling import Counted, solve, trajectory
from flowgen.schedules import VE, VP, Linear

SOLVERS = {
    "ddim": DDIM,
    "ddim-half": lambda schedule: DDIM(schedule, 0.5),
    "ddim-whole": lambda schedule: DDIM(schedule, 1.0),
    "ancestral": Ancestral,
    "ancestral-large": lambda schedule: Ancestral(schedule, large=True),
    "dpm-solver-1": lambda schedule: DPMSolverPP(schedule, 1),
    "dpm-solver-2": DPMSolverPP,
    "dpm-solver-3": lambda schedule: DPMSolverPP(schedule, 3),
    "unipc": UniPC,
    "heun": EDMSampler,
    "churned": lambda schedule: EDMSampler(schedule, 0.3, 0.05, 20.0, 1.01),
    "stochastic-none": lambda schedule: ReverseSDE(schedule, 0.0),
    "stochastic": ReverseSDE,
    "corrected": lambda schedule: PredictorCorrector(Ancestral(schedule), schedule),
    "langevin": lambda schedule: Langevin(schedule, steps=3),
}
ORDERS = {"ddim": 1, "dpm-solver-1": 1, "dpm-solver-2": 2, "heun": 2}


@pytest.fixture(params=list(SOLVERS.values()), ids=list(SOLVERS))
def make(request):
    """Every sampler, of a path."""
    return request.param


def field_of(flow):
    """The velocity field of a flow whose expected ends are known, which refuses to be asked where it is infinite."""

    def velocity(x, t, cond=None):
        assert (t >= 0).all()
        assert (flow.schedule.coeffs(t).sigma > 0).all()
        return predictions.encode(flow.ends(x, t), flow.schedule.coeffs(like(t, x)), predictions.velocity)

    return velocity


def first(schedule, x0):
    """Where sampling starts."""
    return schedule.coeffs(torch.zeros((), dtype=torch.float64)).sigma * x0


@pytest.fixture
def one_point(empirical_flow):
    """A flow to a single point of the plane, and the point."""

    def make(schedule):
        flow = empirical_flow(schedule)
        return type(flow)(schedule, flow.data[:1]), flow.data[:1]

    return make


# where they land


@pytest.mark.costly
def test_with_a_single_data_point_every_sampler_lands_on_it(make, one_point, normal, all_paths):
    """And never asks for the velocity there. A schedule that ends on blurred data has nothing special at its end."""
    for schedule in all_paths:
        flow, point = one_point(schedule)
        solver = make(schedule)
        assert solver.denoises_last
        x, end = first(schedule, normal("source", 6, 2)), schedule.coeffs(torch.ones((), dtype=torch.float64)).sigma
        for grid in (grids.uniform(1), grids.uniform(6), grids.karras(schedule, 6)):
            reached = solve(field_of(flow), x, grid, solver)
            assert reached.isfinite().all()
            if end == 0:
                torch.testing.assert_close(reached, point.expand(6, 2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(SOLVERS.keys() - {"churned"}))
def test_the_step_to_the_data_is_to_what_is_expected(name, empirical_flow, normal, all_paths):
    """Of a churned step, to what is expected where it has gone back to."""
    for schedule in all_paths:
        flow, x, t = empirical_flow(schedule), normal("source", 6, 2), torch.full((6,), 0.7, dtype=torch.float64)
        if schedule.coeffs(torch.ones(1)).sigma == 0:
            x1 = flow.ends(x, t).x1
            torch.testing.assert_close(
                SOLVERS[name](schedule).step(field_of(flow), x, 0.7, 1.0)[0], x1, rtol=1e-9, atol=1e-9
            )


EVALUATIONS = {"heun": 13, "churned": 13, "corrected": 13, "langevin": 3 * 6 + 1}


@pytest.mark.parametrize("name", SOLVERS)
def test_what_a_walk_of_seven_steps_costs(name, empirical_flow, normal):
    field = Counted(field_of(empirical_flow(VP())))
    solve(field, normal("source", 6, 2), grids.uniform(7), SOLVERS[name](VP()))
    assert field.evaluations == EVALUATIONS.get(name, 7)


def test_a_level_that_is_infinite_is_left_by_eulers_step(empirical_flow, normal):
    schedule, x = Linear(), normal("source", 6, 2)
    field = Counted(field_of(empirical_flow(schedule)))
    end, _ = EDMSampler(schedule, 0.3).step(field, x, 0.0, 0.2)
    assert field.evaluations == 1
    torch.testing.assert_close(end, x + 0.2 * field(x, expand_time(0.0, x)))


def test_the_condition_reaches_every_evaluation(make, normal, all_paths):
    for schedule in all_paths:
        seen, labels = [], torch.arange(6)

        def field(x, t, cond=None, seen=seen):
            seen.append(cond)
            return x

        solve(field, normal("source", 6, 2), grids.uniform(5, 0.1, 0.9), make(schedule), labels)
        assert len(seen) >= 5
        assert all(cond is labels for cond in seen)


@pytest.mark.costly
def test_samples_and_times_keep_their_type(make, one_point, normal, all_paths):
    for schedule, dtype in product(all_paths, (torch.float32, torch.float64)):
        flow, _ = one_point(schedule)
        exact = field_of(type(flow)(schedule, flow.data.to(dtype)))

        def field(x, t, cond=None, dtype=dtype, exact=exact):
            assert t.dtype == dtype
            return exact(x, t)

        x = first(schedule, normal("source", 6, 2)).to(dtype)
        assert solve(field, x, grids.uniform(4, 0, 0.9), make(schedule)).dtype == dtype


# what they are the same as


@pytest.mark.parametrize("grid", [grids.uniform(11, 0.1, 0.9), grids.quadratic(8, 0.3, 0.97)])
def test_ddim_is_eulers_method_in_the_noise_level(schedule, empirical_flow, grid, normal):
    """dy/dl = x0 with y = x / alpha and l = sigma / alpha."""
    flow, c = empirical_flow(schedule), schedule.coeffs(grid)

    def slope(y, level, cond=None):
        t = schedule.time(-2 * level.log())
        return flow.ends(like(schedule.coeffs(t).alpha, y) * y, t).x0

    x = normal("source", 6, 2)
    y = solve(slope, x / c.alpha[0], c.sigma / c.alpha, euler)
    for solver in (DDIM(schedule), DPMSolverPP(schedule, 1)):
        torch.testing.assert_close(solve(field_of(flow), x, grid, solver), c.alpha[-1] * y, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    "make", [DDIM, lambda schedule: DPMSolverPP(schedule, 1), lambda schedule: ReverseSDE(schedule, 0.0)]
)
def test_on_the_straight_path_it_is_eulers_method(make, empirical_flow, normal):
    flow, x = empirical_flow(Linear()), normal("source", 6, 2)
    exact = trajectory(field_of(flow), x, grids.uniform(9), euler)
    for ours, end in zip(trajectory(field_of(flow), x, grids.uniform(9), make(Linear())), exact, strict=True):
        torch.testing.assert_close(ours, end, rtol=1e-9, atol=1e-9)


def test_ddim_with_all_noise_is_ddpm(schedule, empirical_flow, normal):
    flow, x = empirical_flow(schedule), first(schedule, normal("source", 6, 2))
    for grid in (grids.uniform(9), grids.karras(schedule, 12)):
        ddim = trajectory(field_of(flow), x, grid, DDIM(schedule, 1.0, seed=3))
        for ours, end in zip(ddim, trajectory(field_of(flow), x, grid, Ancestral(schedule, seed=3)), strict=True):
            torch.testing.assert_close(ours, end, rtol=1e-9, atol=1e-9)


@pytest.mark.costly
def test_ddim_walks_back_where_it_came_from(schedule, gaussian_flow, normal):
    """As closely as steps are short."""
    flow, x, errors = gaussian_flow(schedule), normal("source", 6, 2), []
    for steps in (20, 40, 80):
        grid = grids.uniform(steps, 0.1, 0.9)
        there = solve(flow.velocity, x, grid, DDIM(schedule))
        errors.append(float((solve(flow.velocity, there, grid.flip(0), DDIM(schedule)) - x).abs().max()))
    assert math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.3)


@pytest.mark.costly
@pytest.mark.parametrize("name", ["ddim", "dpm-solver-2", "dpm-solver-3", "unipc", "heun"])
def test_without_noise_they_walk_back_to_the_source(name, schedule, gaussian_flow, normal):
    """To t = 0 itself, where there may be no data left in x."""
    flow, x = gaussian_flow(schedule), normal("source", 6, 2)
    source = flow.map(x, 0.9, 0.0)
    found = solve(flow.velocity, x, grids.uniform(100, 0, 0.9).flip(0), SOLVERS[name](schedule))
    off = (found - source).abs().max() / source.abs().max()
    assert off < (0.03 if name == "ddim" else 0.01)


# how fast they converge


@pytest.mark.costly
@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_at_the_order_of_the_sampler(name, schedule, gaussian_flow, normal):
    flow, solver = gaussian_flow(schedule), SOLVERS[name](schedule)
    assert solver.order == ORDERS[name]
    mean, std = flow.moments(0.05)
    x = mean + std * normal("source", 50, 2)
    exact, errors = flow.map(x, 0.05, 0.9), []
    for steps in (68, 136):  # whole numbers of steps to a step of the path of 20
        errors.append(float((solve(flow.velocity, x, grids.uniform(steps, 0.05, 0.9), solver) - exact).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.25)
    assert errors[-1] < 0.05


@pytest.mark.costly
def test_unipc_is_of_a_higher_order_than_its_guess(schedule, gaussian_flow, normal):
    """Order 3 once its first step, of order 1, is forgotten; it is never below 2."""
    flow, errors = gaussian_flow(schedule), []
    mean, std = flow.moments(0.05)
    x = mean + std * normal("source", 50, 2)
    exact = flow.map(x, 0.05, 0.9)
    for steps, solver in ((68, UniPC(schedule)), (136, UniPC(schedule)), (136, DPMSolverPP(schedule))):
        errors.append(float((solve(flow.velocity, x, grids.uniform(steps, 0.05, 0.9), solver) - exact).abs().max()))
    assert 1.9 < math.log2(errors[0] / errors[1]) < 3.2
    assert errors[1] < errors[2] / 2


@pytest.mark.parametrize("order", [1, 2, 3])
def test_one_step_from_a_true_past_is_of_one_order_more(order, schedule, gaussian_flow, normal):
    """The first steps of a walk have no past, and are less exact: here each begins on the solution."""
    flow, x, errors = gaussian_flow(schedule), normal("source", 50, 2), []
    for h in (0.02, 0.01, 0.005):
        carry, times = None, [0.6 - 2.7 * h, 0.6 - 1.2 * h, 0.6, 0.6 + h]  # steps of several lengths
        for t, s in pairwise(times):
            end, carry = DPMSolverPP(schedule, order).step(flow.velocity, flow.map(x, 0.6, t), t, s, None, carry)
        errors.append(float((end - flow.map(x, 0.6, 0.6 + h)).abs().max()))
    assert math.log2(errors[1] / errors[2]) == pytest.approx(order + 1, abs=0.25)


@pytest.mark.costly
def test_whole_walks_lead_where_the_flow_to_several_points_does(schedule, empirical_flow, normal):
    """From t = 0 to the data, on levels evenly apart, beside a fine solution of the same field."""
    flow, x = empirical_flow(schedule), first(schedule, normal("source", 40, 2))

    def grid(steps):
        return grids.log_snr(schedule, steps, 0.0, 0.95)

    exact = solve(field_of(flow), x, grid(150), rk4)
    for solver in (DPMSolverPP(schedule), DPMSolverPP(schedule, 3), UniPC(schedule), EDMSampler(schedule)):
        ends = [solve(field_of(flow), x, grid(steps), solver) for steps in (30, 60)]
        coarse, fine = (float((end - exact).square().mean().sqrt()) for end in ends)
        assert fine < min(0.005, 0.55 * coarse)  # of order 2, with room


# what is refused


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda schedule: DDIM(schedule, -0.1), "eta"),
        (lambda schedule: DDIM(schedule, 1.1), "eta"),
        (lambda schedule: DDIM(schedule, math.nan), "eta"),
        (lambda schedule: DPMSolverPP(schedule, 0), "orders 1, 2 and 3"),
        (lambda schedule: DPMSolverPP(schedule, 4), "orders 1, 2 and 3"),
        (lambda schedule: EDMSampler(schedule, -1.0), "churn >= 0"),
        (lambda schedule: EDMSampler(schedule, math.nan), "churn >= 0"),
        (lambda schedule: EDMSampler(schedule, 0.1, 2.0, 1.0), "lo <= hi"),
        (lambda schedule: EDMSampler(schedule, 0.1, noise=0.0), "noise > 0"),
        (lambda schedule: PredictorCorrector(FlowMapStep(), schedule), "jumps"),
        (lambda schedule: PredictorCorrector(euler, schedule, 0.0), "snr"),
        (lambda schedule: PredictorCorrector(euler, schedule, 1.0), "snr"),
        (lambda schedule: PredictorCorrector(euler, schedule, steps=-1), "steps"),
        (lambda schedule: Langevin(schedule, 0.0), "size"),
        (lambda schedule: Langevin(schedule, 4.0), "size"),
        (lambda schedule: Langevin(schedule, steps=0), "steps"),
        (lambda schedule: ReverseSDE(schedule, -0.1), "not negative"),
        (lambda schedule: ReverseSDE(schedule, math.inf), "finite"),
    ],
)
def test_samplers_that_there_are_not_are_refused(make, match):
    with pytest.raises(InputError, match=match):
        make(VE())


@pytest.mark.parametrize("name", ["ddim-half", "ddim-whole", "ancestral", "ancestral-large"])
def test_noise_is_not_walked_back(name, schedule, gaussian_flow, normal):
    with pytest.raises(InputError, match="increasing"):
        solve(
            gaussian_flow(schedule).velocity,
            normal("x", 4, 2),
            grids.uniform(3, 0.2, 0.8).flip(0),
            SOLVERS[name](schedule),
        )
