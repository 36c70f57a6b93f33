"""The geometry of trajectories agrees with fields whose trajectories are known."""

import math

import numpy as np
import pytest
import torch

from flowgen.core import InputError
from flowgen.metrics import endpoint_error, geometry, normalised_path_energy, wasserstein2
from flowgen.samplers.grids import uniform


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
def test_straight_lines_have_no_curvature(normal, field, steps):
    x = normal("x", 100, 2)
    found = geometry(field, x, uniform(steps))
    length = 25 if field is translation else 4 * x.square().sum(1).mean().item()
    assert found.straightness == pytest.approx(0, abs=1e-12)
    assert found.curvature == pytest.approx(0, abs=1e-12)
    assert found.path_energy == pytest.approx(length, rel=1e-12)
    torch.testing.assert_close(found.end, x + translation(x, None) if field is translation else 3 * x)


@pytest.mark.costly
def test_circles_have_the_energy_of_their_speed(normal):
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


def test_straightness_is_the_distance_from_the_chord(normal):
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
    for scale in (1e-25, 1.0, 1e25):
        assert geometry(rotation(2.0), scale * x.float(), uniform(50)).curvature == pytest.approx(double.curvature)


# curvature


@pytest.mark.parametrize("steps", [1, 2, 9, 1000])
@pytest.mark.parametrize("speed", [0.3, -2.0, 5.0])
def test_a_circle_has_the_curvature_of_its_turn_less_a_step(normal, steps, speed):
    """An Euler step of h turns the velocity by atan(h w); n steps have n - 1 corners."""
    found = geometry(rotation(speed), normal("x", 30, 2), uniform(steps)).curvature
    assert found == pytest.approx((steps - 1) * math.atan(abs(speed) / steps), rel=1e-9)
    if steps == 1000:
        assert found == pytest.approx(abs(speed) * (1 - 1 / steps), rel=1e-4)


def test_an_uneven_grid_turns_by_the_step_before(normal):
    grid = torch.tensor([0.0, 0.1, 0.5, 0.6, 1.0], dtype=torch.float64)
    found = geometry(rotation(3.0), normal("x", 30, 2), grid).curvature
    assert found == pytest.approx(sum(math.atan(3 * h) for h in (0.1, 0.4, 0.1)), rel=1e-12)


def bent(x, t, cond=None):
    """A field in space that bends and twists."""
    a, b, c = x.unbind(1)
    return torch.stack([torch.sin(b) + c, a * c - 1, torch.cos(a) + 0.3 * b], dim=1)


def test_curvature_does_not_see_a_rigid_motion_or_a_scale(normal):
    x, shift = normal("x", 30, 3), normal("shift", 3)
    turn, _ = torch.linalg.qr(normal("turn", 3, 3))
    found = geometry(bent, x, uniform(20)).curvature
    assert found > 0.5
    for scale in (1e-6, 1.0, 1e6):
        moved = geometry(
            lambda z, t, cond=None, scale=scale: scale * bent((z - shift) @ turn.T / scale, t) @ turn,
            scale * x @ turn + shift,
            uniform(20),
        )
        assert moved.curvature == pytest.approx(found, rel=1e-6 if scale == 1e-6 else 1e-9)


def test_curvature_does_not_see_a_change_of_speed(normal):
    """The times (k/10)^2 in place of k/10, at a speed that makes each step as long as before."""
    x, even = normal("x", 30, 3), uniform(10)
    plain = geometry(bent, x, even)
    hastened = geometry(lambda z, t, cond=None: bent(z, t) * (10 / (20 * t.sqrt() + 1)).unsqueeze(1), x, even.square())
    torch.testing.assert_close(hastened.states, plain.states)
    assert hastened.curvature == pytest.approx(plain.curvature, rel=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.1, math.pi / 2, 3.0, math.pi])
def test_a_corner_has_the_curvature_of_its_angle(normal, angle):
    """Also a very small one, and one that turns back; a change of length at the corner is not seen."""

    def corner(x, t, cond=None):
        direction = torch.tensor([math.cos(angle), math.sin(angle)], dtype=x.dtype)
        return torch.where(t.unsqueeze(1) < 0.5, torch.eye(2, dtype=x.dtype)[0], 7 * direction).expand_as(x)

    assert geometry(corner, normal("x", 5, 2), uniform(6)).curvature == pytest.approx(angle, rel=1e-7)


def test_what_stands_still_has_no_curvature(normal):
    x = normal("x", 40, 2)
    assert geometry(lambda x, t, cond=None: torch.zeros_like(x), x, uniform(5))[1:] == (0, 0, 0)
    half = (torch.arange(40) < 20).unsqueeze(1)
    found = geometry(lambda x, t, cond=None: torch.where(half, rotation(1.0)(x, t), 0.0), x, uniform(50))
    assert found.curvature == pytest.approx(geometry(rotation(1.0), x, uniform(50)).curvature / 2, rel=1e-12)


def test_the_geometry_of_images_is_that_of_their_pixels(normal):
    x = normal("x", 10, 2, 1)
    wide = geometry(lambda x, t, cond=None: rotation(2.0)(x.flatten(1), t).unsqueeze(2), x, uniform(9))
    assert wide[1:] == pytest.approx(geometry(rotation(2.0), x.flatten(1), uniform(9))[1:], rel=1e-12)
    assert wide.end.shape == x.shape


# the error of a solver


def test_the_endpoint_error_is_a_root_mean_square(normal):
    ends = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert endpoint_error(ends, ends + torch.tensor([[3.0, 4.0], [0.0, 0.0]])) == pytest.approx(math.sqrt(25 / 2))
    assert endpoint_error(ends, ends) == 0
    x, y = normal("x", 20, 3, 2), normal("y", 20, 3, 2)
    assert endpoint_error(x, y) == pytest.approx(np.sqrt(((x - y).numpy() ** 2).sum((1, 2)).mean()), rel=1e-12)
    assert endpoint_error(x.float(), y) == pytest.approx(endpoint_error(y, x), rel=1e-6)


@pytest.mark.parametrize("shape", [(4, 2), (5, 3), (5, 1), (5, 2, 1), (2,)])
def test_ends_of_another_shape_than_the_reference_are_refused(shape):
    with pytest.raises(InputError, match="ends of shape"):
        endpoint_error(torch.zeros(5, 2), torch.zeros(shape))


# energy


def excess(field, x0, x1, steps):
    return normalised_path_energy(geometry(field, x0, uniform(steps)).path_energy, wasserstein2(x0, x1) ** 2)


@pytest.mark.parametrize("field", [translation, dilation])
def test_the_flow_of_optimal_transport_has_no_excess_energy(normal, field):
    x = normal("x", 200, 2)
    data = (x + translation(x, None) if field is translation else 3 * x)[torch.arange(199, -1, -1)]
    assert excess(field, x, data, 10) == pytest.approx(0, abs=1e-9)


def test_a_detour_has_excess_energy(normal):
    """A turn by w costs w^2 r^2 where nothing moves as a whole: a ring keeps its place under any turn of it."""
    angle = torch.from_numpy(np.linspace(0, 2 * np.pi, 100, endpoint=False))
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    shifted = ring + torch.tensor([2.0, 0.0])

    def detour(x, t, cond=None):
        turned = x - torch.stack([2 * t, 0 * t], dim=1)
        return rotation(1.0)(turned, t) + torch.tensor([2.0, 0.0], dtype=x.dtype)

    assert excess(detour, ring, shifted, 2000) == pytest.approx(1 / 4, rel=5e-3)
