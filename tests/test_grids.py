"""Grids increase from their first time to their last, exactly."""

import pytest
import torch

from flowgen.core import InputError
from flowgen.samplers.grids import (
    discrete,
    karras,
    leading,
    linspaced,
    log_snr,
    quadratic,
    shifted,
    trailing,
    uniform,
)
from flowgen.schedules import DDPM, VE, VP, Linear

STEPS = [1, 2, 3, 10, 100, 1000]


@pytest.fixture(params=["uniform", "log_snr"])
def grid_of(request, schedule):
    """grid_of(steps, lo, hi), each grid on each path."""
    return uniform if request.param == "uniform" else lambda steps, lo, hi: log_snr(schedule, steps, lo, hi)


def test_a_grid_increases_between_exact_ends(grid_of, schedule):
    for steps in STEPS:
        for lo, hi in ((0.0, 1.0), (0.0, 0.999), (0.2, 0.7)):
            grid = grid_of(steps, lo, hi)
            assert grid.dtype == torch.float64
            assert len(grid) == steps + 1
            assert (grid[0].item(), grid[-1].item()) == (lo, hi)
            assert (grid.diff() > 0).all()


@pytest.mark.parametrize("steps", STEPS)
def test_uniform_steps_are_even(steps):
    length = uniform(steps, 0.2, 0.7).diff()
    torch.testing.assert_close(length, torch.full_like(length, 0.5 / steps), rtol=1e-9, atol=0)


@pytest.mark.parametrize("hi", [1.0, 0.999])
def test_log_snr_steps_are_even_in_the_log_snr_between_the_ends(schedule, hi):
    levels = schedule.log_snr(log_snr(schedule, 40, 0.0, hi)[1:-1]).diff()
    torch.testing.assert_close(levels, levels.mean().expand(38), rtol=1e-6, atol=0)
    margins = (
        schedule.log_snr(torch.tensor([1e-3, min(hi - 1e-3, 1 - schedule.margin)], dtype=torch.float64)).diff().item()
    )
    assert levels.sum().item() == pytest.approx(margins * 38 / 40, rel=1e-6)


@pytest.mark.parametrize("steps", [0, -1])
def test_a_grid_without_steps_is_refused(schedule, steps):
    for make in (uniform, lambda steps: log_snr(schedule, steps)):
        with pytest.raises(InputError, match="at least one step"):
            make(steps)


# spacings of diffusions


def level(schedule, t):
    return torch.exp(-schedule.log_snr(t) / 2)


@pytest.mark.parametrize("steps", STEPS)
def test_other_grids_increase_between_exact_ends(schedule, steps):
    for lo, hi in ((0.0, 1.0), (0.0, 0.999), (0.2, 0.7)):
        for grid in (karras(schedule, steps, lo, hi), quadratic(steps, lo, hi), shifted(uniform(steps, lo, hi), 3.0)):
            assert grid.dtype == torch.float64
            assert len(grid) == steps + 1
            assert (grid[0].item(), grid[-1].item()) == (lo, hi)
            assert (grid.diff() > 0).all()


@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_karras_steps_are_even_in_a_root_of_the_level(schedule, rho):
    roots = level(schedule, karras(schedule, 30, 0.2, 0.9, rho)) ** (1 / rho)
    torch.testing.assert_close(roots.diff(), (roots[-1] - roots[0]).expand(30) / 30, rtol=1e-8, atol=1e-12)


def test_karras_ends_with_a_step_from_the_margin(schedule):
    """And is the same before it; where the level is infinite at first, its spacing begins at the margin."""
    grid, end = karras(schedule, 9), schedule.coeffs(torch.ones(1, dtype=torch.float64)).sigma
    if end > 0:
        assert not torch.isin(1 - schedule.margin, grid)
        grid = torch.cat([grid, grid[-1:]])
    else:
        assert grid[-2].item() == pytest.approx(1 - schedule.margin, abs=1e-12)
    levels = level(schedule, grid[:-1]) ** (1 / 7)
    if schedule.coeffs(torch.zeros(1)).alpha == 0:
        assert levels[0].isinf()
        levels[0] = level(schedule, torch.tensor(schedule.margin, dtype=torch.float64)) ** (1 / 7)
    torch.testing.assert_close(levels.diff(2), torch.zeros(len(levels) - 2).double(), rtol=0, atol=1e-8)


def test_karras_is_edms_formula():
    """On sigma from 80 to 0.002 in 18 levels, and then 0 (arXiv 2206.00364, table 1)."""
    schedule = VE(sigma_min=0.002, sigma_max=100.0)
    lo, hi = schedule.time(-2 * torch.tensor([80.0, 0.002], dtype=torch.float64).log()).tolist()
    i, sevenths = torch.arange(18, dtype=torch.float64), (80 ** (1 / 7), 0.002 ** (1 / 7))
    found = level(schedule, karras(schedule, 17, lo, hi))
    torch.testing.assert_close(found, (sevenths[0] + i / 17 * (sevenths[1] - sevenths[0])) ** 7, rtol=1e-8, atol=0)


def test_quadratic_steps_are_even_in_the_root_of_what_is_left():
    for lo, hi in ((0.0, 1.0), (0.1, 0.8)):
        roots = (1 - quadratic(12, lo, hi)).sqrt()
        torch.testing.assert_close(roots.diff(), (roots[-1] - roots[0]).expand(12) / 12, rtol=1e-7, atol=0)


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
def test_a_shift_multiplies_the_level_of_the_straight_path(shift):
    grid = torch.tensor([0.0, 0.1, 0.25, 0.7, 0.99, 1.0], dtype=torch.float64)
    before, after = (level(Linear(), t)[1:-1] for t in (grid, shifted(grid, shift)))
    torch.testing.assert_close(after, shift * before, rtol=1e-12, atol=0)
    torch.testing.assert_close(shifted(shifted(grid, shift), 1 / shift), grid, rtol=1e-12, atol=1e-15)
    assert grid[1] == 0.1  # the grid that was given is as it was


def test_a_shift_keeps_the_ends_of_a_grid():
    whole, part = shifted(uniform(7), 2.5), shifted(uniform(7, 0.2, 0.6), 2.5)
    torch.testing.assert_close(part, 0.2 + 0.4 * whole, rtol=1e-12, atol=0)


DISCRETE = {"trailing": trailing, "linspaced": linspaced, "leading": leading}


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_discrete_grids_are_steps_of_the_path_and_then_the_data(name, steps):
    grid = DISCRETE[name](DDPM(steps=20), steps)
    k = (1 - grid) * 20
    torch.testing.assert_close(k, k.round(), rtol=0, atol=1e-12)
    assert len(grid) == steps + 1
    assert grid.dtype == torch.float64
    assert (grid.diff() > 0).all()
    assert grid[-1] == 1
    if name != "leading":
        assert grid[0] == 0
    if name != "trailing" and steps > 1:
        assert k[-2] == pytest.approx(1)


def test_a_discrete_grid_is_nearest_to_the_one_it_is_made_of():
    schedule, grid = DDPM(steps=40), quadratic(9, 0.01, 0.97)
    assert (discrete(schedule, grid) - grid).abs().max() <= 0.5 / 40 + 1e-12


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: karras(VP(), 5, rho=0.0), "positive and finite rho"),
        (lambda: karras(VP(), 0), "at least one step"),
        (lambda: karras(VP(), 0, 0, 0.5), "at least one step"),
        (lambda: quadratic(0), "at least one step"),
        (lambda: shifted(uniform(3), 0.0), "positive and finite shift"),
        (lambda: shifted(uniform(3), float("inf")), "positive and finite shift"),
        (lambda: trailing(DDPM(steps=20), 21), "too many"),
        (lambda: discrete(DDPM(steps=20), quadratic(15)), "too many"),
        (lambda: linspaced(DDPM(steps=20), 21), "too many"),
        (lambda: linspaced(DDPM(steps=20), 0), "at least one step"),
        (lambda: leading(DDPM(steps=20), 21), "between 1 and 20"),
        (lambda: leading(DDPM(steps=20), 0), "between 1 and 20"),
    ],
)
def test_grids_that_there_are_not_are_refused(make, match):
    with pytest.raises(InputError, match=match):
        make()
