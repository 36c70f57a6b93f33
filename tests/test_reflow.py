"""Reflow couples the ends of the trajectories of a flow."""

import pytest
import torch

from flowgen import predictions
from flowgen.core import Pair, generator
from flowgen.metrics import geometry
from flowgen.pairs.reflow import Reflow
from flowgen.samplers.grids import log_snr, uniform
from flowgen.samplers.ode import rk4
from flowgen.schedules import Linear


@pytest.mark.costly
def test_reflow_pairs_points_with_where_the_flow_ends(schedule, gaussian_flow, exact_model, normal):
    exact = gaussian_flow(schedule)
    model = exact_model(exact, predictions.v)
    grid = log_snr(schedule, 150, *model.span)
    drawn = Pair(normal("x0", 40, 2), normal("x1", 40, 2), torch.arange(40))
    pair = Reflow(model, grid, rk4)(drawn, generator(0, "reflow"))
    assert torch.equal(pair.x0, drawn.x0)
    assert torch.equal(pair.cond, drawn.cond)
    torch.testing.assert_close(pair.x1, exact.map(model.start(drawn.x0), 0.0, grid[-1].item()), rtol=1e-4, atol=1e-4)


def test_the_exact_flow_of_reflowed_pairs_is_straight(gaussian_flow, exact_model, normal):
    """Between Gaussians the ends are an affine map, x1 = m + A x0, and so is the rectified flow: its lines are straight
    where those of its teacher are not."""
    exact = gaussian_flow(Linear())
    model = exact_model(exact, predictions.velocity)
    x0 = normal("x0", 200, 2)
    pair = Reflow(model, uniform(50), rk4)(Pair(x0, x0), generator(0, "reflow"))
    scale = (pair.x1 - exact.mean) / x0

    def straight(x, t, cond=None):
        """E[x1 - x0 | x_t = x] where x1 = mean + std x0."""
        t, std = t.unsqueeze(1), exact.std
        return exact.mean + (std - 1) * (x - t * exact.mean) / (1 - t + t * std)

    torch.testing.assert_close(scale, exact.std.expand(200, 2), rtol=1e-4, atol=1e-4)
    assert geometry(straight, x0, uniform(50)).straightness < 1e-10
    assert geometry(model.velocity, x0, uniform(50)).straightness > 0.05
    torch.testing.assert_close(geometry(straight, x0, uniform(1)).end, pair.x1, rtol=1e-4, atol=1e-4)
