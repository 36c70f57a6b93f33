"""Jumps of a known flow map are exact, noise that is drawn anew leaves the law of the data as it is, and what a solver
makes of a field converges to its flow map."""

import pytest
import torch

from flowgen.core import generator
from flowgen.data import Categorical, Gaussian
from flowgen.data.streams import BLOCK, source_rows
from flowgen.model import Model
from flowgen.nn import MLP
from flowgen.samplers.flow_map import ConsistencySampler, FlowMapStep
from flowgen.samplers.grids import uniform
from flowgen.samplers.ode import AdamsBashforth2, euler, rk4
from flowgen.sampling import Counted, SolverFlowMap, asked, flow, pair_chunks, sample, solve, trajectory

PLANE = Gaussian((2,))
GRIDS = {
    "one": uniform(1),
    "four": uniform(4),
    "uneven": torch.tensor([0.0, 0.9, 0.91, 1.0], dtype=torch.float64),
    "inside": torch.tensor([0.2, 0.7], dtype=torch.float64),
    "back": uniform(3).flip(0),
    "to and fro": torch.tensor([0.0, 0.8, 0.3, 1.0], dtype=torch.float64),
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_jumps_by_the_known_map_are_exact_on_any_grid(grid, whole_flow, normal):
    first, last = grid[0].item(), grid[-1].item()
    x = whole_flow.map(normal("x", 100, 2), 0.0, first)
    counted = Counted(whole_flow.average)
    end = solve(counted, x, grid, FlowMapStep())
    torch.testing.assert_close(end, whole_flow.map(x, first, last), rtol=1e-10, atol=1e-10)
    assert (counted.evaluations, counted.rows) == (len(grid) - 1, 100 * (len(grid) - 1))


def test_every_state_on_the_way_of_jumps_is_exact(whole_flow, normal):
    x, grid = normal("x", 100, 2), uniform(5)
    for t, state in zip(grid[1:].tolist(), trajectory(whole_flow.average, x, grid, FlowMapStep()), strict=True):
        torch.testing.assert_close(state, whole_flow.map(x, 0.0, t), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_jump_asks_for_both_times_and_hands_on_the_condition(dtype, recorder):
    x, cond = torch.zeros(3, 2, dtype=dtype), torch.arange(3)
    FlowMapStep().step(recorder, x, 0.25, 0.75, cond)
    _, t, s, given = recorder.seen
    assert t.dtype == s.dtype == dtype
    assert t.tolist() == [0.25] * 3
    assert s.tolist() == [0.75] * 3
    assert given is cond


def test_a_model_is_asked_for_what_its_solver_takes(whole_flow, map_model, normal):
    model, x0 = map_model(whole_flow.schedule, whole_flow.average), normal("x0", 50, 2)
    for solver, name in (
        (FlowMapStep(), "average"),
        (ConsistencySampler(whole_flow.schedule, PLANE), "average"),
        (euler, "velocity"),
    ):
        assert asked(model, solver) == getattr(model, name)
    torch.testing.assert_close(flow(model, x0, uniform(1), FlowMapStep()), whole_flow.map(x0, 0.0, 1.0))
    torch.testing.assert_close(flow(model, x0, uniform(50), rk4), whole_flow.map(x0, 0.0, 1.0), rtol=1e-4, atol=1e-4)


# noise that is drawn anew


class Double:
    """The standard normal law of the plane in float64."""

    shape = (2,)

    def sample(self, n, generator):
        return torch.randn(n, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_consistency_samples_of_a_known_map_fit_the_data(steps, whole_flow, map_model):
    model, n = map_model(whole_flow.schedule, whole_flow.average), 40_000
    (made,) = pair_chunks(
        model, Double(), n, uniform(steps), ConsistencySampler(whole_flow.schedule, Double()), chunk=n
    )
    z = (made.x1 - whole_flow.mean) / whole_flow.std
    assert (z.mean(0).abs() < 4.5 / n**0.5).all()
    moments = z.T @ z / n - torch.eye(2)
    assert (moments.abs() < 4.5 * 2**0.5 / n**0.5).all()
    assert ((z**4).mean(0) - 3).abs().max() < 4.5 * 96**0.5 / n**0.5
    alike = torch.corrcoef(torch.cat([made.x0, z], 1).T)[:2, 2:].diagonal()
    assert ((alike > 0.999) == (steps == 1)).all()  # of several steps, a sample is more than its start


def test_a_consistency_step_goes_to_the_data_and_back(whole_flow, normal):
    """The noise is standard normal, and is not that of another time, another seed, or the start of the sample."""
    n, seen = 10_000, {"start": source_rows(Double(), 0, 10_000, 0)}
    x = whole_flow.map(seen["start"], 0.0, 0.3)
    for seed, s in ((0, 0.4), (0, 0.9), (1, 0.4)):
        there, carry = ConsistencySampler(whole_flow.schedule, Double(), seed).step(whole_flow.average, x, 0.3, s)
        c = whole_flow.schedule.coeffs(torch.tensor(s, dtype=torch.float64))
        seen[seed, s] = (there - c.alpha * whole_flow.map(x, 0.3, 1.0)) / c.sigma
        assert carry is None
    noise = torch.cat(list(seen.values()), 1)
    assert (noise.mean(0).abs() < 4.5 / n**0.5).all()
    assert (noise.T.cov() - torch.eye(8)).abs().max() < 4.5 * 2**0.5 / n**0.5


def test_the_last_step_of_renoise_is_the_end_itself(whole_flow, normal):
    x = normal("x", 20, 2)
    end, _ = ConsistencySampler(whole_flow.schedule, Double()).step(whole_flow.average, x, 0.3, 1.0)
    torch.testing.assert_close(end, whole_flow.map(x, 0.3, 1.0), rtol=1e-12, atol=1e-12)


def test_the_noise_of_a_row_does_not_depend_on_its_batch(whole_flow, normal):
    x, solver = normal("x", 300, 2), ConsistencySampler(whole_flow.schedule, PLANE, seed=5)
    whole, _ = solver.step(whole_flow.average, x, 0.3, 0.6)
    for first, last in ((0, 10), (64, 128), (100, 101), (130, 300)):
        some, _ = solver.at(first).step(whole_flow.average, x[first:last], 0.3, 0.6)
        torch.testing.assert_close(some, whole[first:last], rtol=1e-12, atol=1e-12)
    assert solver.at(10).at(20) == solver.at(30)
    assert solver.at(0) == solver


SOLVERS = {
    "jump": lambda schedule: FlowMapStep(),
    "renoise": lambda schedule: ConsistencySampler(schedule, PLANE, seed=3),
}


@pytest.mark.parametrize("make", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("steps", [1, 3])
def test_sample_i_is_the_same_whatever_else_is_asked_for(make, steps, whole_flow, global_state_untouched):
    net = MLP(2, 16, 2, classes=3, two_times=True)
    torch.nn.init.normal_(net.delta.weight, generator=generator(0, "gap"))
    model, cond = Model(net, whole_flow.schedule), source_rows(Categorical((1.0, 1.0, 1.0)), 0, 300, 0)
    solver = make(whole_flow.schedule)

    def made(num, chunk):
        return sample(model, PLANE, num, uniform(steps), solver, chunk=chunk, cond=cond[:num], seed=2)

    whole = made(300, None)
    for num, chunk in ((1, None), (50, 7), (100, BLOCK), (300, BLOCK), (300, 2 * BLOCK)):
        assert torch.equal(made(num, chunk), whole[:num])
    late = list(pair_chunks(model, PLANE, 300, uniform(steps), solver, seed=2, start=2 * BLOCK, cond=cond[2 * BLOCK :]))
    assert torch.equal(torch.cat([pair.x1 for pair in late]), whole[2 * BLOCK :])


# what a solver makes of a field


def rows(normal):
    """Points, and two times of each; some go back."""
    x, (t, s) = normal("x", 40, 2), normal("times", 2, 40).sigmoid()
    return x, t, torch.where((s - t).abs() < 0.1, t - 0.1 * (t - 0.5).sign(), s)


def test_what_a_solver_makes_of_a_field_converges_at_its_order(fixed_step, whole_flow, normal):
    solver, _ = fixed_step
    x, t, s = rows(normal)
    known, errors = whole_flow.average(x, t, s), []
    for steps in (16, 32):
        errors.append((SolverFlowMap(whole_flow.velocity, solver, steps)(x, t, s) - known).norm().item())
    assert errors[0] / errors[1] > 0.8 * 2**solver.order  # midpoint is of order 3 on the straight path
    assert errors[1] < {1: 0.5, 2: 0.02, 4: 1e-5}[solver.order]


def test_a_flow_map_takes_one_evaluation_a_step(fixed_step, normal):
    solver, evaluations = fixed_step
    x, t, s = rows(normal)
    cond, seen = torch.arange(40), []

    def field(x, t, cond=None):
        seen.append((t, cond))
        return x

    SolverFlowMap(field, solver, 3)(x, t, s, cond)
    assert len(seen) == 3 * evaluations
    assert all(given is cond for _, given in seen)
    torch.testing.assert_close(seen[0][0], t)
    within = [((at - t) / (s - t)) for at, _ in seen]
    assert all(((share > -1e-9) & (share < 1 + 1e-9)).all() for share in within)


def test_a_constant_field_is_its_own_average(normal):
    x, t, s = rows(normal)
    for solver in (euler, rk4, AdamsBashforth2()):
        found = SolverFlowMap(lambda x, t, cond=None: torch.ones_like(x) * 3, solver, 2)(x, t, s)
        torch.testing.assert_close(found, torch.full_like(x, 3.0))
