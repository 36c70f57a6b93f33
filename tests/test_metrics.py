"""Distances agree with closed forms; straightness and path energy with fields whose trajectories are known."""

import math

import numpy as np
import pytest
import torch

from flowgen.core import InputError
from flowgen.grids import uniform
from flowgen.metrics import geometry, normalised_path_energy, wasserstein2


def test_distance_in_one_dimension_is_that_of_sorted_points(normal):
    x, y = normal("x", 300, 1), 2 * normal("y", 300, 1) + 1
    sorted_squares = (x.sort(dim=0).values - y.sort(dim=0).values).square().mean()
    assert wasserstein2(x, y) == pytest.approx(sorted_squares.sqrt().item(), rel=1e-9)


def test_distance_to_a_monotone_image_is_the_length_of_the_map(normal):
    """y = A x + b with A symmetric and positive is a gradient of a convex function, and so an optimal map."""
    x = normal("x", 200, 3)
    root = normal("A", 3, 3)
    y = x @ (root @ root.T + 0.1 * torch.eye(3)) + torch.tensor([1.0, -2.0, 0.5])
    exact = (x - y).square().sum(1).mean().sqrt().item()
    order = torch.arange(199, -1, -1)
    assert wasserstein2(x, y[order]) == pytest.approx(exact, rel=1e-9)


def test_distance_between_gaussians_tends_to_its_closed_form(normal):
    """W2^2 = |m - n|^2 + sum (s - r)^2 for diagonal covariances s^2 and r^2."""
    mean, std = torch.tensor([3.0, -1.0]), torch.tensor([0.5, 2.0])
    exact = math.sqrt(mean.square().sum() + (std - 1).square().sum())
    assert wasserstein2(normal("x", 1000, 2), mean + std * normal("y", 1000, 2)) == pytest.approx(exact, rel=0.03)


def test_distance_between_equal_sets_is_zero(normal):
    x = normal("x", 100, 2)
    assert wasserstein2(x, x.flip(0)) == pytest.approx(0, abs=1e-6)


def test_distance_is_between_that_of_the_means_and_that_of_any_pairing(normal):
    x, y = normal("x", 100, 2), normal("y", 100, 2) + 0.3
    mean, paired = (x - y).mean(0).norm().item(), (x - y).square().sum(1).mean().sqrt().item()
    assert mean < wasserstein2(x, y) < paired


def test_distance_is_symmetric_and_keeps_the_triangle_inequality(normal):
    x, y, z = (normal(name, 100, 2) * scale for name, scale in (("x", 1), ("y", 2), ("z", 0.5)))
    assert wasserstein2(x, y) == pytest.approx(wasserstein2(y, x), rel=1e-9)
    assert wasserstein2(x, y) <= wasserstein2(x, z) + wasserstein2(z, y)


def test_distance_scales_turns_and_moves_with_space(normal):
    x, y, shift = normal("x", 100, 2), normal("y", 100, 2) + 1, torch.tensor([3.0, 4.0], dtype=torch.float64)
    turn, _ = torch.linalg.qr(normal("turn", 2, 2))
    far = wasserstein2(x, y)
    assert wasserstein2(5 * x, 5 * y) == pytest.approx(5 * far, rel=1e-9)
    assert wasserstein2(x @ turn, y @ turn) == pytest.approx(far, rel=1e-9)
    assert wasserstein2(x + 1e4, y + 1e4) == pytest.approx(far, rel=1e-6)
    moved = far**2 + 25 + 2 * ((x - y).mean(0) @ shift).item()
    assert wasserstein2(x + shift, y) ** 2 == pytest.approx(moved, rel=1e-9)


def test_distance_between_images_is_that_of_their_pixels(normal):
    x, y = normal("x", 20, 3, 4, 4), normal("y", 20, 3, 4, 4)
    assert wasserstein2(x, y) == pytest.approx(wasserstein2(x.flatten(1), y.flatten(1)), rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_distance_to_what_is_not_finite_is_refused(normal, bad):
    x, y = normal("x", 5, 2), normal("y", 5, 2)
    y[2, 1] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        wasserstein2(x, y)


def test_distance_between_unequal_sets_is_refused(normal):
    with pytest.raises(InputError, match="5 and 6"):
        wasserstein2(normal("x", 5, 2), normal("y", 6, 2))


# geometry


def translation(x, t, cond=None):
    return torch.tensor([3.0, -4.0], dtype=x.dtype).expand_as(x)


def dilation(x, t, cond=None):
    """Straight lines from x to 3 x."""
    return 2 * x / (1 + 2 * t.unsqueeze(1))


def rotation(speed):
    """Circles around the origin."""
    return lambda x, t, cond=None: speed * torch.stack([-x[:, 1], x[:, 0]], dim=1)


@pytest.mark.parametrize("field", [translation, dilation])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_straight_lines_have_no_curvature_and_the_energy_of_their_length(normal, field, steps):
    x = normal("x", 100, 2)
    found = geometry(field, x, uniform(steps))
    length = 25 if field is translation else 4 * x.square().sum(1).mean().item()
    assert found.straightness == pytest.approx(0, abs=1e-12)
    assert found.path_energy == pytest.approx(length, rel=1e-12)
    torch.testing.assert_close(found.end, x + translation(x, None) if field is translation else 3 * x)


def test_circles_have_the_energy_of_their_speed_and_the_straightness_of_their_chord(normal):
    """|v| = w r throughout, and the chord of the angle w is 2 r sin(w / 2)."""
    x, speed = normal("x", 100, 2), 2.0
    square = x.square().sum(1).mean().item()
    found = geometry(rotation(speed), x, uniform(4000))
    assert found.path_energy == pytest.approx(speed**2 * square, rel=2e-3)
    straightness = (speed**2 - (2 * math.sin(speed / 2)) ** 2) * square
    assert found.straightness == pytest.approx(straightness, rel=1e-2)


def test_euler_steps_on_circles_have_their_own_closed_form(normal):
    """An Euler step turns and lengthens: the square radius grows by 1 + (h w)^2 at each."""
    x, speed, steps = normal("x", 30, 2), 2.0, 8
    h, growth = 1 / steps, 1 + (2.0 / steps) ** 2
    square = x.square().sum(1).mean().item()
    turned = (1 + 1j * speed * h) ** steps
    found = geometry(rotation(speed), x, uniform(steps))
    energy = speed**2 * square * h * sum(growth**k for k in range(steps))
    assert found.path_energy == pytest.approx(energy, rel=1e-12)
    assert found.straightness == pytest.approx(energy - abs(turned - 1) ** 2 * square, rel=1e-9)


def test_straightness_is_the_mean_square_distance_of_velocity_from_the_chord(normal):
    x, grid = normal("x", 30, 2), torch.tensor([0.0, 0.1, 0.5, 0.6, 1.0], dtype=torch.float64)
    found = geometry(rotation(3.0), x, grid)
    lengths = grid.diff()
    velocities = found.states.diff(dim=0) / lengths.view(-1, 1, 1)
    deviation = (found.states[-1] - found.states[0] - velocities).square().sum(2).mean(1)
    assert found.straightness == pytest.approx((lengths @ deviation).item(), rel=1e-9)
    assert torch.equal(found.states[0], x)


def test_geometry_of_float32_points_is_that_of_float64(normal):
    x = normal("x", 100, 2)
    single, double = (geometry(rotation(2.0), z, uniform(50)) for z in (x.float(), x))
    assert single.path_energy == pytest.approx(double.path_energy, rel=1e-5)
    assert single.straightness == pytest.approx(double.straightness, rel=1e-4)


@pytest.mark.parametrize("field", [translation, dilation])
def test_the_flow_of_optimal_transport_has_no_excess_energy(normal, field):
    x = normal("x", 200, 2)
    data = (x + translation(x, None) if field is translation else 3 * x)[torch.arange(199, -1, -1)]
    assert normalised_path_energy(field, x, data, uniform(10)) == pytest.approx(0, abs=1e-9)


def test_a_detour_has_excess_energy(normal):
    """A turn by w costs w^2 r^2 where nothing moves as a whole: a ring keeps its place under any turn of it."""
    angle = torch.from_numpy(np.linspace(0, 2 * np.pi, 100, endpoint=False))
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    shifted = ring + torch.tensor([2.0, 0.0])

    def detour(x, t, cond=None):
        turned = x - torch.stack([2 * t, 0 * t], dim=1)
        return rotation(1.0)(turned, t) + torch.tensor([2.0, 0.0], dtype=x.dtype)

    assert normalised_path_energy(detour, ring, shifted, uniform(2000)) == pytest.approx(1 / 4, rel=5e-3)
