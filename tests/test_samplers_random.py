"""Samplers with noise keep the marginals of a flow.

On the flow to a Gaussian a walk is affine in its start and in each of its draws. The draws are replaced by unit
vectors, so that the law of the end is computed to the last digits, and not estimated.
"""

import math

import pytest
import torch
from scipy.stats import kstest
from torch import nn

from flowgen import sde
from flowgen.core import InputError, like
from flowgen.data import Gaussian
from flowgen.model import Model
from flowgen.samplers import DDIM, Ancestral, DPMSolverPP, EDMSampler, Langevin, PredictorCorrector, Random, UniPC
from flowgen.samplers.flow_map import FlowMapStep
from flowgen.samplers.grids import karras, log_snr, uniform
from flowgen.samplers.ode import AdaptiveSolver, euler, heun
from flowgen.samplers.sde import Drift, EulerMaruyama, ReverseSDE, ReverseTime, ScoreOf
from flowgen.sampling import sample, solve, trajectory
from flowgen.schedules import VE, VP, Linear

RANDOM = {
    "ddim-half": lambda schedule, seed=0: DDIM(schedule, 0.5, seed=seed),
    "ddim-whole": lambda schedule, seed=0: DDIM(schedule, 1.0, seed=seed),
    "ancestral": lambda schedule, seed=0: Ancestral(schedule, seed=seed),
    "ancestral-large": lambda schedule, seed=0: Ancestral(schedule, True, seed=seed),
    "churned": lambda schedule, seed=0: EDMSampler(schedule, 0.2, seed=seed),
    "stochastic": lambda schedule, seed=0: ReverseSDE(schedule, 0.7, seed=seed),
    "corrected": lambda schedule, seed=0: PredictorCorrector(Ancestral(schedule, seed=seed), schedule, seed=seed),
    "corrected-heun": lambda schedule, seed=0: PredictorCorrector(heun, schedule, seed=seed),
    "langevin": lambda schedule, seed=0: Langevin(schedule, steps=3, seed=seed),
}


@pytest.fixture
def law(monkeypatch):
    """law(solver, flow, grid, mean, std): mean and standard deviation (2,) of the end of a walk from N(mean, std^2).

    Row 0 starts at 0, rows 1 and 2 at the unit vectors, without noise; in row 3 + k both coordinates of draw k are 1.
    """
    draws = []

    def unit(x):
        z = torch.zeros_like(x)
        if 3 + len(draws) < len(x):
            z[3 + len(draws)] = 1
        draws.append(None)
        return z

    monkeypatch.setattr(Random, "normal", lambda self, x, stream: unit(x))
    monkeypatch.setattr(sde, "source_rows", lambda law, first, stop, seed, stream: unit(torch.zeros(stop, 2).double()))

    def make(solver, flow, grid, mean, std):
        draws.clear()
        solve(flow.velocity, torch.zeros(1, 2).double(), grid, solver)
        rows = torch.zeros(3 + len(draws), 2, dtype=torch.float64)
        rows[1, 0] = rows[2, 1] = 1
        draws.clear()
        end = solve(flow.velocity, rows, grid, solver)
        weights = end - end[0]
        slope = weights[1:3].sum(0)  # coordinates do not mix
        variance = (slope * std) ** 2 + weights[3:].square().sum(0)
        return end[0] + slope * mean, variance.sqrt()

    return make


@pytest.fixture
def errors(law):
    """errors(solver, flow, grid): by how much the mean and deviation at the end are not those of the flow."""

    def make(solver, flow, grid):
        ours = law(solver, flow, grid, *flow.moments(grid[0]))
        return max(float((a - b).abs().max()) for a, b in zip(ours, flow.moments(grid[-1]), strict=True))

    return make


def order(errors, solver_of, flow):
    """The order of the last halving of the steps, and the last error. A step of the path of 20 steps is several."""
    coarse, fine = (errors(solver_of(steps), flow, uniform(steps, 0.05, 0.9)) for steps in (34, 68))
    return math.log2(coarse / fine), fine


# the marginals


@pytest.mark.costly
@pytest.mark.parametrize(
    "make",
    [
        lambda schedule: DDIM(schedule, 0.5),
        lambda schedule: DDIM(schedule, 1.0),
        lambda schedule: Ancestral(schedule, large=True),
        lambda schedule: ReverseSDE(schedule, 0.5),
        ReverseSDE,
        lambda schedule: ReverseSDE(schedule, 1.5),
    ],
    ids=["ddim-half", "ddim-whole", "ancestral-large", "stochastic-half", "stochastic", "stochastic-more"],
)
def test_noise_keeps_the_marginals_at_weak_order_one(make, schedule, gaussian_flow, errors):
    """The reverse diffusion of VE is nearly of order two on this law, by chance."""
    slope, error = order(errors, lambda steps: make(schedule), gaussian_flow(schedule))
    assert 0.75 < slope < (2.2 if schedule.exploding else 1.3)
    assert error < 0.08


@pytest.mark.costly
@pytest.mark.parametrize("churned", [(0.0, math.inf), (0.2, 3.0)])
def test_churn_that_shrinks_with_steps_keeps_order_two(churned, schedule, gaussian_flow, errors):
    lo, hi = churned
    slope, error = order(errors, lambda steps: EDMSampler(schedule, 8 / steps, lo, hi), gaussian_flow(schedule))
    assert slope == pytest.approx(2, abs=0.1)
    assert error < 0.007


def test_churning_adds_the_noise_of_the_level_it_goes_back_to(schedule, gaussian_flow, errors, law):
    """With no way to go after, the law is the marginal of that earlier time: its Heun step back is all that errs."""
    flow, found = gaussian_flow(schedule), []
    for churn in (0.1, 0.05, 0.025):
        grid = torch.tensor([0.5, 0.5], dtype=torch.float64)
        found.append(errors(EDMSampler(schedule, churn), flow, grid))
    assert 2.6 < math.log2(found[1] / found[2]) < 3.4
    assert errors(EDMSampler(schedule, 0.1, lo=1e-9, hi=1e-8), flow, grid) < 1e-9
    longer = [law(EDMSampler(schedule, 0.1, noise=noise), flow, grid, *flow.moments(0.5))[1] for noise in (1.0, 1.1)]
    assert (longer[1] > longer[0]).all()


def test_churn_is_bounded(gaussian_flow, normal):
    """By gamma = sqrt(2) - 1, and by the level of t = 0: there is no earlier time to go back to."""
    schedule, x = VP(), normal("x", 5, 2)
    flow = gaussian_flow(schedule)
    most, more, none = (EDMSampler(schedule, churn) for churn in (math.sqrt(2) - 1, 5.0, 0.0))
    for t in (0.0, 0.01, 0.5):
        ends = [solver.step(flow.velocity, x, t, 0.6)[0] for solver in (most, more, none)]
        assert torch.equal(ends[0], ends[1])
        assert torch.equal(ends[0], ends[2]) == (t == 0)


def test_churn_is_right_for_a_point_from_the_first_step_on(schedule, gaussian_flow, law):
    """Also where it is cut short, at levels near that of t = 0. The way back, along straight lines, is exact."""
    flow = gaussian_flow(schedule)
    exact = type(flow)(schedule, flow.mean, torch.zeros_like(flow.std))
    mean, deviation = law(EDMSampler(schedule, 0.3), exact, uniform(12, 0.005, 0.9), *exact.moments(0.005))
    torch.testing.assert_close(mean, exact.moments(0.9)[0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(deviation, exact.moments(0.9)[1], rtol=1e-8, atol=1e-8)


@pytest.mark.costly
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_each_variance_of_ddpm_is_right_for_its_data(schedule, gaussian_flow, law, steps):
    """However few the steps: the small one for a point, the large one for N(0, I) (arXiv 2006.11239)."""
    flow = gaussian_flow(schedule)
    for std, large in ((0.0, False), (1.0, True)):
        exact = type(flow)(schedule, flow.mean * (not large), torch.full_like(flow.std, std))
        for hi in (0.6, 0.95):
            for lo in (0.0, 0.2):
                mean, deviation = law(Ancestral(schedule, large), exact, uniform(steps, lo, hi), *exact.moments(lo))
                torch.testing.assert_close(mean, exact.moments(hi)[0], rtol=1e-9, atol=1e-9)
                torch.testing.assert_close(deviation, exact.moments(hi)[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_right_for_a_point_at_every_level(eta, schedule, gaussian_flow, law):
    flow = gaussian_flow(schedule)
    exact = type(flow)(schedule, flow.mean, torch.zeros_like(flow.std))
    mean, deviation = law(DDIM(schedule, eta), exact, uniform(4, 0, 0.9), *exact.moments(0.0))
    torch.testing.assert_close(mean, exact.moments(0.9)[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(deviation, exact.moments(0.9)[1], rtol=1e-9, atol=1e-9)


@pytest.mark.costly
@pytest.mark.parametrize("name", ["ddim-whole", "churned", "stochastic"])
def test_whole_walks_lead_near_the_data(name, schedule, gaussian_flow, law):
    """Many steps from what sampling starts with: N(0, sigma(0)^2), even where the path is not all noise there."""
    flow = gaussian_flow(schedule)
    sigma = schedule.coeffs(torch.zeros((), dtype=torch.float64)).sigma
    solver = EDMSampler(schedule, 0.05) if name == "churned" else RANDOM[name](schedule)
    mean, std = law(solver, flow, log_snr(schedule, 80), torch.zeros(2).double(), sigma)
    assert (mean - flow.mean).abs().max() < 0.03
    assert (std - flow.moments(1.0)[1]).abs().max() < 0.12


# Langevin


@pytest.mark.costly
@pytest.mark.parametrize("snr", [0.05, 0.3])
def test_moves_at_a_level_settle_at_its_marginal(snr, schedule, gaussian_flow, law):
    """x + e score + sqrt(2 e) z has the stationary variance V / (1 - e / (2 V)) on N(m, V)."""
    flow, t = gaussian_flow(schedule), 0.6
    mean, std = flow.moments(t)
    e = 2 * (snr * schedule.coeffs(torch.tensor(t, dtype=torch.float64)).sigma) ** 2
    v = std**2
    shrunk = (1 - e / v) ** (2 * 60)
    solver, grid = Langevin(schedule, (2 * snr) ** 2, steps=60), torch.tensor([0.1, t], dtype=torch.float64)
    found, deviation = law(solver, flow, grid, mean, (v / (1 - e / (2 * v))).sqrt())
    torch.testing.assert_close(found, mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(deviation**2, v / (1 - e / (2 * v)), rtol=1e-9, atol=1e-9)
    _, other = law(solver, flow, grid, mean, 0.0)
    torch.testing.assert_close(other**2, (1 - shrunk) * v / (1 - e / (2 * v)), rtol=1e-9, atol=0)


def test_a_corrected_step_ends_with_moves_of_langevin(schedule, gaussian_flow, law):
    flow, grid = gaussian_flow(schedule), torch.tensor([0.4, 0.5], dtype=torch.float64)
    predicted = law(DDIM(schedule, 1.0), flow, grid, *flow.moments(0.4))
    both = law(PredictorCorrector(DDIM(schedule, 1.0), schedule, 0.2, steps=3), flow, grid, *flow.moments(0.4))
    after = law(Langevin(schedule, 0.16, steps=3), flow, grid, *predicted)
    for a, b in zip(both, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.costly
def test_corrected_steps_bring_a_wrong_law_nearer(schedule, gaussian_flow, law):
    flow, grid = gaussian_flow(schedule), uniform(60, 0.05, 0.9)
    mean, std = flow.moments(0.05)
    start, right = (mean + 1, 1.5 * std), flow.moments(0.9)
    alone, helped = (law(s, flow, grid, *start) for s in (heun, PredictorCorrector(heun, schedule, 0.2, steps=2)))
    for a, b, exact in zip(alone, helped, right, strict=True):
        assert (b - exact).abs().max() < 0.6 * (a - exact).abs().max()


@pytest.mark.costly
def test_annealed_moves_lead_to_the_data_if_there_are_enough(gaussian_flow, law):
    """On the paper's path, whose levels fall evenly in their logarithm. The last are too low to move much."""
    schedule = VE(sigma_min=0.02, sigma_max=20.0)
    flow = gaussian_flow(schedule)
    mean, std = law(Langevin(schedule, steps=100), flow, log_snr(schedule, 10), torch.zeros(2).double(), 20.0)
    torch.testing.assert_close(mean, flow.mean, rtol=0, atol=0.001)
    torch.testing.assert_close(std, flow.std, rtol=0.08, atol=0)


def test_a_corrected_multistep_method_starts_anew_each_time(schedule, gaussian_flow, normal):
    x, grid, flow = normal("x", 7, 2), uniform(6, 0.1, 0.9), gaussian_flow(schedule)
    anew = solve(flow.velocity, x, grid, DDIM(schedule))
    for solver in (DPMSolverPP(schedule, 3), UniPC(schedule)):
        corrected = solve(flow.velocity, x, grid, PredictorCorrector(solver, schedule, steps=0))
        torch.testing.assert_close(corrected, anew, rtol=1e-9, atol=1e-9)


def test_corrected_is_as_its_predictor():
    assert PredictorCorrector(DDIM(VP()), VP()).denoises_last
    assert not PredictorCorrector(heun, VP()).denoises_last
    assert PredictorCorrector(AdaptiveSolver(), VP()).couples_batch
    assert not PredictorCorrector(heun, VP()).couples_batch
    with pytest.raises(InputError, match="jumps"):
        PredictorCorrector(FlowMapStep(), VP())


# reverse diffusions


def test_the_score_is_read_from_the_velocity(schedule, gaussian_flow, normal):
    flow, t = gaussian_flow(schedule), torch.linspace(0, 0.99, 9, dtype=torch.float64)
    x = normal("x", 9, 2)
    torch.testing.assert_close(ScoreOf(flow.velocity, schedule)(x, t), flow.score(x, t), rtol=1e-6, atol=1e-8)


def test_the_reverse_diffusion_has_its_level(schedule):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    for level in (0.0, 0.3, 2.0):
        torch.testing.assert_close(ReverseTime(schedule, level)(t), level * schedule.diffusion(t))
    start = torch.zeros(2)
    g = ReverseTime(schedule)(start)
    assert torch.equal(g, torch.zeros(2) if schedule.coeffs(start).alpha[0] == 0 else schedule.diffusion(start))


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_one_evaluation_does_what_velocity_and_score_do(level, schedule, gaussian_flow, normal):
    flow, g = gaussian_flow(schedule), ReverseTime(schedule, level)
    x, grid = normal("x", 70, 2), uniform(6, 0, 0.9)
    drift = Drift(flow.velocity, ScoreOf(flow.velocity, schedule), g)
    both = solve(drift, x, grid, EulerMaruyama(g, 5, 3))
    torch.testing.assert_close(
        solve(flow.velocity, x, grid, ReverseSDE(schedule, level, 5, 3)), both, rtol=1e-9, atol=1e-9
    )
    assert torch.equal(solve(flow.velocity, x, grid, euler), both) == (level == 0)


# the noise


@pytest.fixture(params=list(RANDOM.values()), ids=list(RANDOM))
def make(request):
    return request.param


def test_a_row_has_the_noise_of_its_number_in_any_batch(make, gaussian_flow, normal):
    for schedule in (Linear(), VP()):
        flow, x, grid = gaussian_flow(schedule), normal("x", 150, 2), uniform(4, 0, 0.9)
        whole = solve(flow.velocity, x, grid, make(schedule, 4).at(7))
        for first, last in ((0, 150), (0, 1), (64, 128), (37, 120), (149, 150)):
            part = solve(flow.velocity, x[first:last], grid, make(schedule, 4).at(7).at(first))
            torch.testing.assert_close(part, whole[first:last], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(solve(flow.velocity, x, grid, make(schedule, 4)), whole)


class Line(nn.Module):
    """A net that brings x towards 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, t, s, cond=None):
        return 1 - x


def test_samples_do_not_depend_on_the_chunks_they_are_drawn_in(make):
    model = Model(Line())

    def drawn(num, chunk):
        return sample(model, Gaussian((1,)), num, uniform(4), make(model.schedule, 4), chunk=chunk)

    whole = drawn(300, 512)
    assert torch.equal(drawn(300, 64), whole)
    assert torch.equal(drawn(130, 128), whole[:130])


def test_the_noise_is_a_function_of_the_seed(make, gaussian_flow, normal, global_state_untouched):
    schedule = VP()
    flow, x = gaussian_flow(schedule), normal("x", 20, 2)
    ends = [solve(flow.velocity, x, uniform(4, 0, 0.9), make(schedule, seed)) for seed in (1, 1, 2)]
    assert torch.equal(ends[0], ends[1])
    assert (ends[0] != ends[2]).all()


def test_the_draws_of_a_walk_are_normal_and_independent(make, gaussian_flow, monkeypatch):
    """Of one another, from step to step, move to move, and in a predictor and what corrects it."""
    seen, schedule = [], VP()
    for module, name in ((Random, "normal"), (sde, "source_rows")):
        draw = getattr(module, name)

        def spy(*args, draw=draw):
            seen.append(draw(*args))
            return seen[-1]

        monkeypatch.setattr(module, name, spy)
    x = torch.zeros(400, 2, dtype=torch.float64)
    solve(gaussian_flow(schedule).velocity, x, uniform(4, 0.05, 0.9), make(schedule))
    z = torch.cat(seen, dim=1)
    assert z.shape[1] >= 8
    assert kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    assert (torch.corrcoef(z.T) - torch.eye(z.shape[1])).abs().max() < 0.25


@pytest.mark.parametrize("make", [DDIM, EDMSampler, lambda schedule: ReverseSDE(schedule, 0.0)])
def test_without_noise_nothing_is_drawn(make, gaussian_flow, normal, monkeypatch):
    def none(*args):
        raise AssertionError("a draw")

    monkeypatch.setattr(Random, "normal", none)
    monkeypatch.setattr(sde, "source_rows", none)
    schedule = VP()
    for _ in trajectory(
        gaussian_flow(schedule).velocity, normal("x", 5, 2), karras(schedule, 6, 0, 0.99), make(schedule)
    ):
        pass


def test_a_row_moves_by_its_own_score_alone(gaussian_flow, normal):
    """Whatever the other rows are, also where they are far away."""
    schedule, x = VP(), normal("x", 4, 2)
    flow, solver = gaussian_flow(schedule), PredictorCorrector(heun, schedule)
    far = torch.cat([x[:1], 100 + 50 * x[1:]])
    ends = [solver.step(flow.velocity, rows, 0.3, 0.4)[0][0] for rows in (x, far)]
    assert torch.equal(*ends)
    assert like(ends[0], x).shape == (2, 1)
