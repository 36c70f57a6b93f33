"""Samplers with the exact score of a Gaussian mixture: ODE samplers converge at their order, others keep the marginal.

The mixture is known at every time of a path: sum_k w_k N(alpha m_k, alpha^2 s_k^2 + sigma^2).
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from flowgen import grids, sde
from flowgen.core import generator, like
from flowgen.samplers import DDIM, Ancestral, DPMSolverPP, EDMSampler, PredictorCorrector, UniPC
from flowgen.samplers.ode import heun, rk4
from flowgen.sampling import solve
from flowgen.schedules import DDPM, VE, VP, Cosine, Linear, OffsetCosine, Schedule

WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MEANS = torch.tensor([[1.5, 0.5], [-1.5, 1.0], [0.0, -1.5]], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64)
SCHEDULES = [Linear(), Cosine(), VP(), OffsetCosine(), DDPM(), VE(0.05, 20.0)]
FIRST, LAST = 0.2, 0.9
"""Times between which no sampler comes near a singular end."""


@dataclass(frozen=True)
class Mixture:
    """The exact velocity and the law of a path from N(0, I) to the mixture, with independent pairs."""

    schedule: Schedule

    def parts(self, t):
        """The deviation `(..., K)` of each component, and alpha, at times of any shape."""
        c = self.schedule.coeffs(t)
        return ((c.alpha.unsqueeze(-1) * STDS) ** 2 + c.sigma.unsqueeze(-1) ** 2).sqrt(), c.alpha.unsqueeze(-1)

    def sample(self, n, t):
        """Points of the marginal at a time."""
        rng = generator(0, "mixture", round(1000 * t))
        k = torch.multinomial(WEIGHTS, n, replacement=True, generator=rng)
        width, alpha = self.parts(torch.tensor(t, dtype=torch.float64))
        z = torch.randn(n, 2, dtype=torch.float64, generator=rng)
        return alpha * MEANS[k] + width[k].unsqueeze(1) * z

    def cdf(self, direction, t):
        """The distribution function of the marginal along a unit vector."""
        width, alpha = self.parts(torch.tensor(t, dtype=torch.float64))
        centre = (alpha * (MEANS @ direction)).numpy()
        return lambda x: (norm.cdf((np.asarray(x)[:, None] - centre) / width.numpy()) * WEIGHTS.numpy()).sum(1)

    def velocity(self, x, t, cond=None):
        """E[dx_t / dt | x_t = x]: of each component that of its Gaussian, in proportion to how likely it is."""
        width, alpha = self.parts(t)
        away = x.unsqueeze(1) - alpha.unsqueeze(2) * MEANS  # (B, K, 2)
        logits = WEIGHTS.log() - away.square().sum(2) / (2 * width**2) - 2 * width.log()
        rest = away / width.unsqueeze(2) ** 2
        c = self.schedule.coeffs(like(t, away))
        x1, x0 = MEANS + c.alpha * STDS.unsqueeze(1) ** 2 * rest, c.sigma * rest
        each = c.d_alpha * x1 + c.d_sigma * x0
        return (logits.softmax(1).unsqueeze(2) * each).sum(1)


def log_snr_between(schedule, steps):
    ends = schedule.log_snr(torch.tensor([FIRST, LAST], dtype=torch.float64))
    grid = schedule.time(ends[0] + (ends[1] - ends[0]) * grids.uniform(steps))
    grid[0], grid[-1] = FIRST, LAST
    return grid


@cache
def known_ends(schedule):
    """Points of the mixture, and where its flow leads."""
    x = Mixture(schedule).sample(60, FIRST)
    return x, solve(Mixture(schedule).velocity, x, log_snr_between(schedule, 250), rk4)


@pytest.mark.costly
@pytest.mark.parametrize(
    ("make", "order"),
    [(DDIM, 1), (DPMSolverPP, 2), (UniPC, 2), (EDMSampler, 2), (lambda schedule: heun, 2), (lambda schedule: rk4, 4)],
    ids=["ddim", "dpm++2m", "unipc", "edm", "heun", "rk4"],
)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_samplers_have_their_order_on_a_mixture(make, order, schedule):
    mixture = Mixture(schedule)
    x, truth = known_ends(schedule)
    errors = [
        (solve(mixture.velocity, x, log_snr_between(schedule, steps), make(schedule)) - truth)
        .square()
        .mean()
        .sqrt()
        .item()
        for steps in (40, 80)
    ]
    least = order - 0.4 if not (order == 4 and isinstance(schedule, DDPM)) else 2  # whose path is a spline of order 3
    assert math.log2(errors[0] / errors[1]) > least
    assert errors[1] < 0.03


@pytest.mark.costly
@pytest.mark.parametrize(
    "make",
    [
        Ancestral,
        lambda schedule: DDIM(schedule, 1.0),
        lambda schedule: DDIM(schedule, 0.5),
        lambda schedule: EDMSampler(schedule, 0.05),
        lambda schedule: sde.ReverseSDE(schedule, 0.5),
        lambda schedule: sde.ReverseSDE(schedule, 1.0),
        lambda schedule: sde.ReverseSDE(schedule, 1.5),
        lambda schedule: PredictorCorrector(DDIM(schedule), schedule, 0.1),
    ],
    ids=["ddpm", "ddim-1", "ddim-0.5", "edm", "sde-0.5", "sde-1", "sde-1.5", "corrected"],
)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_noise_keeps_the_marginal_of_a_mixture(make, schedule):
    """From the marginal of one time to that of another, along three directions."""
    mixture = Mixture(schedule)
    end = solve(mixture.velocity, mixture.sample(2000, FIRST), log_snr_between(schedule, 80), make(schedule))
    for angle in (0.0, 1.0, 2.0):
        direction = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        assert kstest((end @ direction).numpy(), mixture.cdf(direction, LAST)).pvalue > 1e-3


@pytest.mark.costly
def test_the_law_says_where_noise_has_gone_wrong():
    """The reverse diffusion without its noise shrinks."""
    mixture = Mixture(VP())
    drift = sde.Drift(mixture.velocity, sde.ScoreOf(mixture.velocity, VP()), VP().diffusion)
    end = solve(drift, mixture.sample(3000, FIRST), log_snr_between(VP(), 150), heun)
    assert kstest(end[:, 0].numpy(), mixture.cdf(torch.tensor([1.0, 0.0], dtype=torch.float64), LAST)).pvalue < 1e-6
