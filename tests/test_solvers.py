"""Solvers converge at their order on an equation that flatters none of them, and tables that are no method are refused.

The equation is coupled, non-linear, not symmetric and depends on time:

    x' = -2 t x^2,  y' = x y;   x = x0 / (1 + x0 t^2),  y = y0 exp(sqrt(x0) atan(sqrt(x0) t)).
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from flowgen import core
from flowgen.core import InputError, expand_time
from flowgen.samplers import ode
from flowgen.samplers.grids import uniform
from flowgen.samplers.ode import AdamsBashforth2, AdaptiveSolver, RungeKutta, euler, heun, rk4
from flowgen.sampling import Counted, solve, trajectory


def field(z, t, cond=None):
    x, y = z.unbind(1)
    return torch.stack([-2 * t * x**2, x * y], dim=1)


def truth(z, t):
    """The solution at time t that starts in z at time 0."""
    x, y = z.unbind(1)
    root = x.sqrt()
    return torch.stack([x / (1 + x * t**2), y * torch.exp(root * torch.atan(root * t))], dim=1)


@pytest.fixture
def start():
    return torch.tensor([[0.5, 1.0], [1.0, -0.7], [2.0, 0.3]], dtype=torch.float64)


def error(solver, start, grid):
    return float((solve(field, start, grid, solver) - truth(start, 1.0)).abs().max())


def alternating(steps):
    """Steps h, 2h, h, 2h, ...: a grid whose neighbouring steps never become alike."""
    lengths = torch.ones(steps, dtype=torch.float64)
    lengths[1::2] = 2
    times = torch.cat([torch.zeros(1, dtype=torch.float64), lengths.cumsum(0)])
    return times / times[-1]


def stretched(steps):
    """Steps that grow from 0.1 to 1.9 of their mean."""
    u = uniform(steps)
    return 0.1 * u + 0.9 * u**2


@pytest.mark.parametrize("grid", [uniform, alternating, stretched])
def test_the_error_falls_at_the_order_of_the_solver(fixed_step, start, grid):
    solver, _ = fixed_step
    errors = [error(solver, start, grid(steps)) for steps in (32, 64, 128)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders[-1] == pytest.approx(solver.order, abs=0.25)
    assert errors[-1] < 0.05


@pytest.mark.parametrize("grid", [uniform, alternating, stretched])
def test_a_decreasing_grid_walks_back_at_the_same_order(fixed_step, start, grid):
    solver, _ = fixed_step
    errors = []
    for steps in (32, 64, 128):
        back = solve(field, truth(start, 1.0), grid(steps).flip(0), solver)
        errors.append(float((back - start).abs().max()))
    assert math.log2(errors[1] / errors[2]) == pytest.approx(solver.order, abs=0.3)


def test_every_state_of_a_walk_is_on_the_solution(fixed_step, start):
    solver, _ = fixed_step
    grid = alternating(400)
    for t, z in zip(grid.tolist()[1:], trajectory(field, start, grid, solver), strict=True):
        assert (z - truth(start, t)).abs().max() < 0.02


def test_a_constant_velocity_is_exact_in_one_step(fixed_step, normal):
    solver, _ = fixed_step
    x0, x1 = normal("x0", 6, 2, 3), normal("x1", 6, 2, 3)
    end = solve(lambda x, t, cond=None: x1 - x0, x0, uniform(1), solver)
    torch.testing.assert_close(end, x1, rtol=1e-12, atol=1e-12)


def test_a_field_of_straight_lines_is_exact_in_one_euler_step(normal):
    """The rectified flow to a scaled copy, x_t = (1 - t) x + t a x: straight lines of a field that varies."""
    x, a = normal("x0", 6, 3), 3.0
    end = solve(lambda x, t, cond=None: (a - 1) * x / (1 + (a - 1) * t.unsqueeze(1)), x, uniform(1), euler)
    torch.testing.assert_close(end, a * x, rtol=1e-12, atol=1e-12)


def test_a_step_costs_its_stages(fixed_step, start):
    solver, evaluations = fixed_step
    counted = Counted(field)
    solve(counted, start, uniform(7), solver)
    assert counted.evaluations == 7 * evaluations


@pytest.mark.costly
def test_gradients_flow_through_a_walk(fixed_step, start):
    """dx(1) / dx0 = 1 / (1 + x0)^2."""
    solver, _ = fixed_step
    leaf = start.clone().requires_grad_()
    solve(field, leaf, uniform(400), solver)[:, 0].sum().backward()
    torch.testing.assert_close(leaf.grad[:, 0], (1 + start[:, 0]) ** -2, rtol=0.01, atol=0.0)


def test_condition_reaches_every_evaluation(fixed_step):
    solver, _ = fixed_step
    speed = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    end = solve(lambda x, t, cond: cond.unsqueeze(1) + 0 * x, torch.zeros(3, 1).double(), uniform(5), solver, speed)
    torch.testing.assert_close(end.squeeze(1), speed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_field_sees_the_times_of_the_grid_in_at_least_float32(fixed_step, dtype):
    solver, _ = fixed_step
    seen = []

    def watched(x, t, cond=None):
        seen.append(t)
        return torch.zeros_like(x)

    end = solve(watched, torch.zeros(2, 1, dtype=dtype), torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64), solver)
    times = torch.stack(seen)
    assert end.dtype == dtype
    assert times.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(times[:, 0], times[:, 1])
    assert times.min() == 0
    assert torch.tensor(0.3, dtype=times.dtype) in times
    assert times.max() <= 1


# Adams-Bashforth


def test_adams_bashforth_is_exact_for_straight_slopes():
    """x' = t: a rule of order 2 is exact for it, and the Euler step that starts it is off by h^2 / 2."""
    grid = torch.tensor([0.0, 0.1, 0.35, 0.4, 1.0], dtype=torch.float64)
    end = solve(lambda x, t, cond=None: t.unsqueeze(1), torch.zeros(1, 1).double(), grid, AdamsBashforth2())
    assert end.item() == pytest.approx(0.5 - 0.1**2 / 2, abs=1e-12)


def test_adams_bashforth_with_even_steps_is_the_textbook_method(start):
    h, z = 0.125, start
    slopes = [field(z, expand_time(0.0, z))]
    z = z + h * slopes[0]
    for k in range(1, 8):
        slopes.append(field(z, expand_time(k * h, z)))
        z = z + h * (1.5 * slopes[-1] - 0.5 * slopes[-2])
    torch.testing.assert_close(solve(field, start, uniform(8), AdamsBashforth2()), z, rtol=1e-13, atol=1e-13)


# Butcher tables


def order_conditions(table):
    """Sums that a method of order 1, 2, 3, 3, 4, 4, 4, 4 makes 1, 1/2, 1/3, 1/6, 1/4, 1/8, 1/12, 1/24."""
    n = len(table.b)
    a = np.array([[*row, *[0.0] * (n - len(row))] for row in table.a])
    b, c = np.array(table.b), np.array(table.c)
    sums = [b.sum(), b @ c, b @ c**2, b @ a @ c, b @ c**3, b @ (c * (a @ c)), b @ a @ c**2, b @ a @ a @ c]
    needed = [1, 1 / 2, 1 / 3, 1 / 6, 1 / 4, 1 / 8, 1 / 12, 1 / 24]
    return list(zip((1, 2, 3, 3, 4, 4, 4, 4), sums, needed, strict=True))


@pytest.mark.parametrize("table", [euler, ode.midpoint, heun, rk4], ids=["euler", "midpoint", "heun", "rk4"])
def test_tables_meet_the_conditions_of_their_order(table):
    conditions = order_conditions(table)
    assert all(made == pytest.approx(needed) for order, made, needed in conditions if order <= table.order)
    above = [(made, needed) for order, made, needed in conditions if order == table.order + 1]
    assert not above or any(made != pytest.approx(needed) for made, needed in above)


@pytest.mark.parametrize(
    ("a", "b", "order"),
    [
        (((),), (0.9,), 1),
        (((), (0.5,)), (0.5, 0.6), 1),
        (((), (0.5,)), (1.0, 0.0), 2),
        (((), (1.0,)), (0.0, 1.0), 2),
        (((), (0.5,)), (1.0,), 1),
        (((),), (0.5, 0.5), 1),
        (((0.0,), (0.5, 0.0)), (0.0, 1.0), 2),
        (((), (0.5, 0.0)), (0.0, 1.0), 2),
        (((),), (math.nan,), 1),
        ((), (), 1),
    ],
)
def test_tables_that_are_no_explicit_method_are_refused(a, b, order):
    with pytest.raises(InputError, match=r"Butcher|consistent"):
        RungeKutta(a, b, order)


def test_a_new_table_is_a_new_method(start):
    """Kutta's third-order rule."""
    third = RungeKutta(((), (0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), 3)
    coarse, fine = error(third, start, uniform(32)), error(third, start, uniform(64))
    assert math.log2(coarse / fine) == pytest.approx(3, abs=0.25)


# adaptive methods


@pytest.mark.costly
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_adaptive_methods_keep_their_tolerance(adaptive, start, tolerance):
    method, multiple = adaptive
    assert error(AdaptiveSolver(method, tolerance, tolerance), start, uniform(1)) < multiple * tolerance


def test_a_smaller_tolerance_costs_more_and_errs_less(adaptive, start):
    errors, costs = [], []
    for tolerance in (1e-3, 1e-6):
        counted = Counted(field)
        end = solve(counted, start, uniform(1), AdaptiveSolver(adaptive[0], tolerance, tolerance))
        errors.append(float((end - truth(start, 1.0)).abs().max()))
        costs.append(counted.evaluations)
    assert errors[1] < errors[0] / 10
    assert costs[1] > costs[0]


@pytest.mark.costly
def test_adaptive_methods_come_back(adaptive, start):
    method, multiple = adaptive
    solver = AdaptiveSolver(method, 1e-6, 1e-6)
    there = solve(field, start, uniform(2), solver)
    back = solve(field, there, uniform(2).flip(0), solver)
    torch.testing.assert_close(back, start, rtol=0, atol=10 * multiple * 1e-6)


@pytest.mark.parametrize("speed", [1.0, 1e-3])
def test_adaptive_methods_never_look_outside_their_step(adaptive, start, speed):
    """Fields end with their path; the slower they are, the longer the step that a method would like to take."""

    def bounded(x, t, cond=None):
        assert ((t >= 0) & (t <= 0.5)).all()
        return speed * field(x, t)

    grid = torch.tensor([0.0, 0.5], dtype=torch.float64)
    for times in (grid, grid.flip(0)):
        solve(bounded, start, times, AdaptiveSolver(adaptive[0]))


def test_adaptive_methods_see_the_condition(adaptive):
    speed, solver = torch.tensor([1.0, 2.0], dtype=torch.float64), AdaptiveSolver(adaptive[0], 1e-6, 1e-6)
    end = solve(lambda x, t, cond: cond[:, None] * x, torch.ones(2, 1).double(), uniform(1), solver, speed)
    torch.testing.assert_close(end.squeeze(1), speed.exp(), rtol=1e-3, atol=0)


def test_adaptive_methods_say_where_no_step_is_short_enough(adaptive):
    def blows_up(x, t, cond=None):
        return torch.where(t[:, None] > 0.5, math.nan, 1.0) + 0 * x

    with pytest.raises(core.Failure, match=adaptive[0]):
        solve(blows_up, torch.zeros(2, 1), uniform(1), AdaptiveSolver(adaptive[0]))


def test_unknown_methods_and_tolerances_are_refused():
    with pytest.raises(InputError, match="dopri5"):
        AdaptiveSolver("dopri55")
    for tolerances in ((0.0, 1e-5), (1e-5, -1.0), (math.nan, 1e-5)):
        with pytest.raises(InputError, match="tolerances"):
            AdaptiveSolver("dopri5", *tolerances)
