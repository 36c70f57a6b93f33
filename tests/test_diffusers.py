"""Each sampler takes the steps of diffusers' scheduler of that name, on our path of its noise schedule, in float64."""

import math
from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest
import torch

from flowgen import grids, predictions
from flowgen.core import Failure, expand_time, generator, like
from flowgen.interop.to_diffusers import diffusers_parts
from flowgen.samplers import DDIM, Ancestral, DPMSolverPP, EDMSampler, Random, UniPC
from flowgen.samplers.ode import euler
from flowgen.sampling import trajectory
from flowgen.schedules import DDPM, VE, Linear

pytestmark = pytest.mark.journey

MODULES = [
    "ddim",
    "ddpm",
    "dpmsolver_multistep",
    "euler_ancestral_discrete",
    "flow_match_euler_discrete",
    "heun_discrete",
    "unipc_multistep",
    "deprecated.karras_ve",
]
PATH = DDPM()
T = PATH.steps


class Double:
    """torch or numpy, whose float32 is float64."""

    def __init__(self, module):
        self._module, self.float32 = module, module.float64

    def __getattr__(self, name):
        return getattr(self._module, name)


def scheduling(name):
    """A module of diffusers' schedulers. Its import takes seconds, which only its tests are to take."""
    try:
        diffusers_parts()  # before all else of diffusers, which then does without a torchvision of another torch
    except Failure as reason:
        pytest.skip(str(reason))
    *folder, last = name.split(".")
    return import_module(".".join(["diffusers.schedulers", *folder, f"scheduling_{last}"]))


@pytest.fixture(autouse=True)
def doubled(monkeypatch):
    """diffusers computes its tables, and some of its steps, in float32: here it is made to do all in float64."""
    for each in map(scheduling, MODULES):
        monkeypatch.setattr(each, "torch", Double(torch))
        if hasattr(each, "np"):
            monkeypatch.setattr(each, "np", Double(np))


@pytest.fixture
def same_noise(monkeypatch):
    """The k-th draw of a scheduler is the k-th of ours."""
    drawn = {"ours": 0, "theirs": 0}

    def draw(who, x):
        drawn[who] += 1
        return torch.randn(x, generator=generator(0, "noise", drawn[who]), dtype=torch.float64)

    monkeypatch.setattr(Random, "normal", lambda self, x, stream: draw("ours", x.shape))
    for each in map(scheduling, MODULES):
        if hasattr(each, "randn_tensor"):
            monkeypatch.setattr(each, "randn_tensor", lambda shape, **named: draw("theirs", tuple(shape)))
    return drawn


def noise_of(x, t):
    """A predicted noise that is not linear in anything."""
    return torch.sin(2 * x + like(t, x)) + 0.3 * x.cos()


def field_on(schedule):
    """The velocity of a network that predicts that noise on a path."""

    def velocity(x, t, cond=None):
        return predictions.convert(
            noise_of(x, t), x, schedule.coeffs(like(t, x)), predictions.noise, predictions.velocity
        )

    return velocity


def steps_of(scheduler, grid, x):
    """x after each of the scheduler's steps, whose noise levels are those of a grid."""
    for t, time in zip(grid.tolist()[:-1], scheduler.timesteps, strict=True):
        x = scheduler.step(noise_of(x, expand_time(t, x)), time, x, return_dict=False)[0]
        yield x


def same(ours, theirs, atol=1e-9):
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert b.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=atol, atol=atol)


def times_of(scheduler):
    """The grid of a scheduler on our path: its step k is the k + 1st of ours; and then the data."""
    return 1 - torch.cat([scheduler.timesteps.double() + 1, torch.zeros(1)]) / T


@pytest.fixture
def x(normal):
    return normal("x", 5, 2, 3)


def test_the_path_is_their_schedule():
    scheduler = scheduling("ddpm").DDPMScheduler()
    alpha = PATH.coeffs(1 - torch.arange(1, T + 1, dtype=torch.float64) / T).alpha
    torch.testing.assert_close(alpha**2, scheduler.alphas_cumprod, rtol=1e-11, atol=0)


SPACINGS = {"trailing": grids.trailing, "leading": grids.leading, "linspace": grids.linspaced}


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 8, 20, 50, 600, 1000])
def test_discrete_grids_are_their_spacings(spacing, steps):
    scheduler = scheduling("ddim").DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    expected = times_of(scheduler)
    if steps == 1 and spacing == "linspace":
        expected[0] = 0.0  # theirs is the step nearest to the data, from which there is nothing to sample
    torch.testing.assert_close(SPACINGS[spacing](PATH, steps), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(spacing, eta, x, same_noise):
    """Not the spacing linspace, whose steps their DDIM takes to be as long as those of leading."""
    scheduler = scheduling("ddim").DDIMScheduler(clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(20)
    step = scheduler.step
    scheduler.step = lambda *args, **named: step(*args, eta=eta, **named)
    grid = SPACINGS[spacing](PATH, 20)
    same(trajectory(field_on(PATH), x, grid, DDIM(PATH, eta)), steps_of(scheduler, grid, x))
    assert same_noise["ours"] == (19 if eta else 0)


@pytest.mark.costly
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [20, 150])
def test_ancestral(large, spacing, steps, x, same_noise):
    kind = "fixed_large" if large else "fixed_small"
    scheduler = scheduling("ddpm").DDPMScheduler(variance_type=kind, clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    grid = times_of(scheduler)
    same(trajectory(field_on(PATH), x, grid[:-1], Ancestral(PATH, large)), list(steps_of(scheduler, grid, x))[:-1])
    assert same_noise == {"ours": steps - 1, "theirs": steps - 1 + (spacing == "trailing")}


def test_ancestral_steps_to_the_mean(x, same_noise):
    """To the data nothing is added; in theirs, only where it is from their step 0, to which trailing does not lead."""
    settings = {"variance_type": "fixed_large", "timestep_spacing": "linspace"}
    scheduler = scheduling("ddpm").DDPMScheduler(clip_sample=False, **settings)
    scheduler.set_timesteps(12)
    grid = times_of(scheduler)
    same(trajectory(field_on(PATH), x, grid, Ancestral(PATH, True)), steps_of(scheduler, grid, x))


def test_ddim_with_all_noise_is_their_ancestral_euler(x, same_noise):
    """Theirs walks x / alpha."""
    scheduler = scheduling("euler_ancestral_discrete").EulerAncestralDiscreteScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    grid = grids.trailing(PATH, 20)
    alphas, ours = PATH.coeffs(grid).alpha, list(trajectory(field_on(PATH), x, grid, DDIM(PATH, 1.0)))
    y = x / alphas[0]
    for k, time in enumerate(scheduler.timesteps):
        noise = noise_of(alphas[k] * y, expand_time(grid[k].item(), y))
        y = scheduler.step(noise, time, y, return_dict=False)[0]
        torch.testing.assert_close(ours[k], alphas[k + 1] * y, rtol=1e-9, atol=1e-9)
        same_noise["theirs"] = same_noise["theirs"] - (k == 19)  # at the end they add noise of width 0


def multistep(module, name, **settings):
    scheduler = getattr(module, name)(timestep_spacing="trailing", **settings)
    scheduler.set_timesteps(20)
    return scheduler


def test_dpm_solver_of_two_steps(x):
    scheduler = multistep(scheduling("dpmsolver_multistep"), "DPMSolverMultistepScheduler", solver_order=2)
    grid = grids.trailing(PATH, 20)
    same(trajectory(field_on(PATH), x, grid, DPMSolverPP(PATH, 2)), steps_of(scheduler, grid, x))


def test_dpm_solver_of_three_steps_with_the_whole_curvature(x):
    """Theirs takes half of the second derivative of x1 in lambda: what is missing is added to each of its steps."""
    scheduler = multistep(scheduling("dpmsolver_multistep"), "DPMSolverMultistepScheduler", solver_order=3)
    grid = grids.trailing(PATH, 20)
    ours, levels = list(trajectory(field_on(PATH), x, grid, DPMSolverPP(PATH, 3))), PATH.log_snr(grid) / 2
    c, seen = PATH.coeffs(grid), []
    for k, time in enumerate(scheduler.timesteps):
        noise = noise_of(x, expand_time(grid[k].item(), x))
        seen.append((x - c.sigma[k] * noise) / c.alpha[k])
        theirs = scheduler.step(noise, time, x, return_dict=False)[0]
        if 2 <= k < 19:
            h, (a, b, d) = levels[k + 1] - levels[k], levels[k - 2 : k + 1]
            second = 2 * ((seen[-1] - seen[-2]) / (d - b) - (seen[-2] - seen[-3]) / (b - a)) / (d - a)
            u = torch.linspace(0, 1, 20_001, dtype=torch.float64) * h  # the integral, by the trapezoidal rule
            theirs += c.alpha[k + 1] * torch.trapezoid(torch.exp(u - h) * u**2 / 2, u) * second / 2
        torch.testing.assert_close(ours[k], theirs, rtol=1e-9, atol=1e-9)
        x = ours[k]


def test_unipc(x):
    scheduler = multistep(scheduling("unipc_multistep"), "UniPCMultistepScheduler", solver_order=2, solver_type="bh2")
    grid = grids.trailing(PATH, 20)
    ours = list(trajectory(field_on(PATH), x, grid, UniPC(PATH)))
    same(ours, steps_of(scheduler, grid, x))


def test_heun_on_the_levels_of_karras(x):
    """Theirs walks x / alpha, and takes a step of two evaluations in two."""
    scheduler = scheduling("heun_discrete").HeunDiscreteScheduler(
        beta_start=1e-4, beta_end=0.02, use_karras_sigmas=True
    )
    scheduler.set_timesteps(12)
    grid = grids.karras(PATH, 12)
    c = PATH.coeffs(grid)
    levels = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])
    torch.testing.assert_close(c.sigma / c.alpha, levels, rtol=1e-9, atol=0)
    ours, y = list(trajectory(field_on(PATH), x, grid, EDMSampler(PATH))), x / c.alpha[0]
    for k, time in enumerate(scheduler.timesteps):
        place = (k + 1) // 2
        noise = noise_of(c.alpha[place] * y, expand_time(grid[place].item(), y))
        y = scheduler.step(noise, time, y, return_dict=False)[0]
        if k % 2:
            torch.testing.assert_close(ours[place - 1], c.alpha[place] * y, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours[-1], y, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", [PATH, VE(sigma_min=0.02, sigma_max=100.0)], ids=["ddpm", "ve"])
def test_churned_steps_are_those_of_karras_ve(schedule, x, same_noise):
    """With noise at some levels and not at others. Theirs is on sigma, with x / alpha; its model gives -x0."""
    scheduler = scheduling("deprecated.karras_ve").KarrasVeScheduler(s_churn=2.0, s_min=0.05, s_max=20.0, s_noise=1.007)
    scheduler.set_timesteps(15)
    grid = grids.karras(schedule, 15)
    solver = EDMSampler(schedule, churn=2.0 / 15, lo=0.05, hi=20.0, noise=1.007)

    def out(y, level):
        t = schedule.time(-2 * torch.log(torch.as_tensor(level, dtype=torch.float64))).item()
        alpha = schedule.coeffs(torch.tensor(t, dtype=torch.float64)).alpha
        return -noise_of(alpha * y, expand_time(t, y))

    for t, s in pairwise(grid.tolist()):
        before, after = (schedule.coeffs(torch.tensor(time, dtype=torch.float64)) for time in (t, s))
        level, following = (before.sigma / before.alpha).item(), (after.sigma / after.alpha).item()
        drawn = same_noise["ours"]
        ours, _ = solver.step(field_on(schedule), x, t, s)
        same_noise["theirs"] = drawn
        y, raised = scheduler.add_noise_to_input(x / before.alpha, level)
        assert (same_noise["ours"] > drawn) == (raised > level) == (0.05 <= level <= 20)
        end, slope = scheduler.step(out(y, raised), raised, following, y, return_dict=False)
        if following:
            corrected = scheduler.step_correct(out(end, following), raised, following, y, end, slope, return_dict=False)
            end = corrected[0]
        x = after.alpha * end
        torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_euler_on_the_straight_path_with_shifted_times(shift, x):
    scheduler = scheduling("flow_match_euler_discrete").FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=(1 - grids.uniform(9)[:-1]).tolist())
    grid = grids.shifted(grids.uniform(9), shift)
    torch.testing.assert_close(1 - grid, scheduler.sigmas.double(), rtol=1e-12, atol=1e-12)

    def velocity(x, t, cond=None):
        return noise_of(x, t)

    ours = trajectory(velocity, x, grid, euler)
    for now, then, end in zip(grid.tolist(), scheduler.timesteps, ours, strict=False):
        x = scheduler.step(-noise_of(x, expand_time(now, x)), then, x, return_dict=False)[0]  # dx / dsigma
        torch.testing.assert_close(end, x, rtol=1e-12, atol=1e-12)
    assert Linear().coeffs(grid).sigma[-1] == 0
    assert math.isclose(grid[1].item(), (1 / 9) / (shift - (shift - 1) / 9))
