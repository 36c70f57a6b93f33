"""Grids increase from their first time to their last, exactly."""

import pytest
import torch

from flowgen.core import InputError
from flowgen.grids import log_snr, uniform

STEPS = [1, 2, 3, 10, 100, 1000]


@pytest.fixture(params=["uniform", "log_snr"])
def grid_of(request, path):
    """grid_of(steps, lo, hi), each grid on each path."""
    return uniform if request.param == "uniform" else lambda steps, lo, hi: log_snr(path, steps, lo, hi)


@pytest.mark.parametrize("steps", STEPS)
def test_a_grid_increases_between_exact_ends(grid_of, steps, path):
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
def test_log_snr_steps_are_even_in_the_log_snr_between_the_ends(path, hi):
    levels = path.log_snr(log_snr(path, 40, 0.0, hi)[1:-1]).diff()
    torch.testing.assert_close(levels, levels.mean().expand(38), rtol=1e-6, atol=0)
    margins = path.log_snr(torch.tensor([1e-3, hi - 1e-3], dtype=torch.float64)).diff().item()
    assert levels.sum().item() == pytest.approx(margins * 38 / 40, rel=1e-6)


@pytest.mark.parametrize("steps", [0, -1])
def test_a_grid_without_steps_is_refused(path, steps):
    for make in (uniform, lambda steps: log_snr(path, steps)):
        with pytest.raises(InputError, match="at least one step"):
            make(steps)
