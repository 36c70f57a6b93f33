"""Edits are exact where they can be: for Gaussian data, whose conditional laws are known in closed form."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch

from flowgen import guidance
from flowgen.core import InputError, Pair
from flowgen.data import Gaussian
from flowgen.guidance import Guided
from flowgen.samplers.grids import uniform
from flowgen.samplers.ode import AdamsBashforth2, AdaptiveSolver, Solver, euler
from flowgen.samplers.sde import EulerMaruyama
from flowgen.sampling import solve
from flowgen.schedules import VP, Cosine, Linear, OffsetCosine

HALF = torch.tensor([True, False, True, True, False, False])
MEASUREMENTS = {
    "mask": (guidance.Mask(HALF), (6,)),
    "mask-image": (guidance.Mask(HALF.reshape(1, 2, 3)), (1, 2, 3)),
    "means": (guidance.Downsampled(2), (1, 4, 2)),
    "means-of-three": (guidance.Downsampled(3), (2, 3, 6)),
    "grey": (guidance.Grey(3), (3, 2, 2)),
}


@pytest.fixture(params=MEASUREMENTS.values(), ids=list(MEASUREMENTS))
def measured(request):
    return request.param


def matrix(measurement, shape):
    """The matrix of a measurement of rows that are laid flat, by what it makes of a basis."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64)
    return measurement.apply(basis.reshape(-1, *shape)).flatten(1).T


@dataclass(frozen=True)
class Normal:
    """The flow from N(0, I) to N(mean, cov) by Gaussian conditioning, with matrices; rows of an event, laid flat."""

    schedule: object
    mean: torch.Tensor
    cov: torch.Tensor

    def __call__(self, x, t, cond=None):
        flat, c = x.flatten(1), self.schedule.coeffs(t.reshape(-1, 1, 1))
        whole = c.alpha**2 * self.cov + c.sigma**2 * torch.eye(len(self.mean), dtype=x.dtype)
        rest = torch.linalg.solve(whole, (flat - c.alpha[..., 0] * self.mean).unsqueeze(2))
        x1 = self.mean + (c.alpha * self.cov @ rest)[..., 0]
        return (c.d_alpha[..., 0] * x1 + (c.d_sigma * c.sigma * rest)[..., 0]).reshape(x.shape)

    def given(self, a, y):
        """The law of x1 where A x1 = y, y `(m,)`."""
        gain = self.cov @ a.T @ torch.linalg.pinv(a @ self.cov @ a.T)
        return Normal(self.schedule, self.mean + gain @ (y - a @ self.mean), self.cov - gain @ a @ self.cov)


# measurements


def test_the_pseudo_inverse_is_that_of_the_matrix(measured, normal):
    measurement, shape = measured
    a, x = matrix(measurement, shape), normal("x", 5, *shape)
    y = measurement.apply(x)
    torch.testing.assert_close(measurement.inverse(y).flatten(1), y.flatten(1) @ torch.linalg.pinv(a).T)
    torch.testing.assert_close(measurement.apply(measurement.inverse(y)), y)


def test_a_projection_is_the_nearest_point_that_is_measured_so(measured, normal):
    measurement, shape = measured
    a, x, y = matrix(measurement, shape), normal("x", 5, *shape), measurement.apply(normal("other", 5, *shape))
    made = guidance.project(measurement, x, y)
    torch.testing.assert_close(measurement.apply(made), y)
    null = torch.eye(a.shape[1], dtype=a.dtype) - torch.linalg.pinv(a) @ a
    assert (((made - x).flatten(1) @ null).abs() < 1e-12).all()  # what is not measured does not move


def test_what_a_mask_knows_is_kept_to_the_last_bit(normal):
    x, y = (normal(name, 50, 6).float() * 1e3 for name in "xy")
    made = guidance.project(guidance.Mask(HALF), x, y)
    assert torch.equal(made, torch.where(HALF, y, x))


def test_every_byte_comes_back_from_model_units():
    level = torch.arange(256, dtype=torch.uint8)
    x = level.float() / 255 * 2 - 1
    assert torch.equal((((x + 1) / 2) * 255).round().to(torch.uint8), level)


@pytest.mark.parametrize(("height", "width"), [(6, 9), (5, 8), (3, 4)])
def test_a_frame_holds_the_image_in_its_middle(normal, height, width):
    x = normal("image", 2, 3, 3, 4)
    y, mask = guidance.framed(x, height, width)
    rows, columns = mask.known.nonzero().T
    assert torch.equal(y[..., mask.known].reshape(x.shape), x)
    assert not y[..., ~mask.known].any()
    for place, side, whole in ((rows, 3, height), (columns, 4, width)):
        before, after = place.min().item(), whole - 1 - place.max().item()
        assert place.max() - place.min() == side - 1
        assert after - before in (0, 1)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: guidance.Mask(torch.ones(3)),
        lambda: guidance.Downsampled(0),
        lambda: guidance.Downsampled(2).apply(torch.zeros(1, 1, 4, 3)),
        lambda: guidance.framed(torch.zeros(1, 1, 4, 4), 8, 3),
        lambda: guidance.resampled(uniform(3), 0),
        lambda: guidance.resampled(uniform(3), 2, 0),
        lambda: guidance.from_time(uniform(3), 1.2),
    ],
)
def test_mistakes_are_told(mistake):
    with pytest.raises(InputError):
        mistake()


# guidance


TIMES = torch.tensor([0.0, 0.03, 0.2, 0.5, 0.8, 0.97], dtype=torch.float64)


def of_variance(variance):
    return lambda c: variance * c.sigma**2 / (c.alpha**2 * variance + c.sigma**2)


@pytest.mark.parametrize("std", [1.0, 0.3, 2.5])
def test_the_guided_field_is_that_of_the_conditional_law(schedule, measured, normal, std):
    """For Gaussian data of one variance, whatever is measured, and at t = 0 too, where alpha may be 0."""
    measurement, shape = measured
    size, a = math.prod(shape), matrix(measurement, shape)
    prior = Normal(schedule, normal("mean", size), std**2 * torch.eye(size, dtype=torch.float64))
    y = measurement.apply(normal("truth", 1, *shape))
    x = (schedule.coeffs(TIMES[:1]).sigma + 1) * normal("points", len(TIMES), *shape)
    spread = guidance.unit_variance if std == 1 else of_variance(std**2)
    found = guidance.PiGDM(prior, schedule, measurement, y, spread)(x, TIMES)
    torch.testing.assert_close(found, prior.given(a, y.flatten())(x, TIMES), rtol=1e-7, atol=1e-7)


def test_behind_a_mask_entries_have_variances_of_their_own(schedule, normal):
    variance = normal("variances", 6).exp()
    prior, measurement = Normal(schedule, normal("mean", 6), variance.diag()), guidance.Mask(HALF)
    y, x = measurement.apply(normal("truth", 1, 6)), normal("points", len(TIMES), 6)
    found = guidance.PiGDM(prior, schedule, measurement, y, of_variance(variance))(x, TIMES)
    exact = prior.given(matrix(measurement, (6,)), y[0])(x, TIMES)
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=["linear", "cosine"])
def test_the_guided_flow_ends_where_the_conditional_one_does(schedule, normal):
    """What is measured comes out, and the rest is the map of the prior: at the first order of Euler's method."""
    mean, measurement = normal("mean", 6), guidance.Mask(HALF)
    prior = Normal(schedule, mean, torch.eye(6, dtype=torch.float64))
    y, x0 = measurement.apply(normal("truth", 1, 6)), normal("noise", 20, 6)
    exact = torch.where(HALF, y, mean + x0)
    guided = guidance.PiGDM(prior, schedule, measurement, y)
    errors = [(solve(guided, x0, uniform(n), euler) - exact).abs().max().item() for n in (20, 40, 80)]
    assert errors[0] < 0.3
    for coarse, fine in pairwise(errors):
        assert 1.7 < coarse / fine < 2.3


def test_where_there_is_no_noise_the_field_stands(normal):
    schedule, x = Linear(), normal("points", 3, 6)
    prior = Normal(schedule, normal("mean", 6), torch.eye(6, dtype=torch.float64))
    guided = guidance.PiGDM(prior, schedule, guidance.Mask(HALF), normal("y", 1, 6))
    t = torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64)
    found, bare = guided(x, t), prior(x, t)
    assert torch.equal(found[[0, 2]], bare[[0, 2]])
    assert found.isfinite().all()
    assert not torch.equal(found[1], bare[1])


def test_before_its_time_the_field_stands(normal):
    schedule, x = VP(), normal("points", len(TIMES), 6)
    prior = Normal(schedule, normal("mean", 6), torch.eye(6, dtype=torch.float64))
    whole = guidance.PiGDM(prior, schedule, guidance.Mask(HALF), normal("y", 1, 6))
    late = replace(whole, since=0.2)(x, TIMES)
    assert torch.equal(late[:2], prior(x, TIMES)[:2])
    assert torch.equal(late[2:], whole(x, TIMES)[2:])
    assert torch.equal(replace(whole, since=0.99)(x, TIMES), prior(x, TIMES))


def test_rows_are_guided_alone_and_each_by_its_own_y(normal):
    schedule, x, y = Cosine(), normal("points", len(TIMES), 6), normal("y", len(TIMES), 6)
    prior = Normal(schedule, normal("mean", 6), torch.eye(6, dtype=torch.float64))
    whole = guidance.PiGDM(prior, schedule, guidance.Mask(HALF), y)(x, TIMES)
    for row in range(len(TIMES)):
        alone = guidance.PiGDM(prior, schedule, guidance.Mask(HALF), y[row : row + 1])
        torch.testing.assert_close(alone(x[row : row + 1], TIMES[row : row + 1])[0], whole[row])


def test_guidance_by_labels_and_by_a_measurement_go_together(normal):
    """Guided by labels the field is that of another Gaussian, which the measurement conditions."""
    schedule, means, x = Linear(), normal("means", 2, 6), normal("points", 4, 6)
    eye, t = torch.eye(6, dtype=torch.float64), torch.full((4,), 0.4, dtype=torch.float64)

    def field(x, t, cond):
        return torch.stack(
            [Normal(schedule, means[k], eye)(x[i : i + 1], t[:1])[0] for i, k in enumerate(cond.tolist())]
        )

    y, mask = normal("y", 1, 6), guidance.Mask(HALF)
    with torch.no_grad():
        made = guidance.PiGDM(Guided(field, 1, 3.0), schedule, mask, y)(x, t, torch.zeros(4, dtype=torch.int64))
    mean = means[1] + 3 * (means[0] - means[1])
    exact = Normal(schedule, mean, eye).given(matrix(mask, (6,)), mask.apply(y)[0])
    torch.testing.assert_close(made, exact(x, t))
    assert not made.requires_grad


# replacement


def still(x, t, cond=None):
    return torch.zeros_like(x)


def replaced(schedule, y, solver=euler, shape=(6,), **given):
    return guidance.RePaint(solver, schedule, guidance.Mask(HALF), y, Gaussian(shape), **given)


def test_after_a_step_the_known_part_is_that_of_the_path(schedule, normal):
    """N(alpha y, sigma^2) where it is known, and the solver's own step elsewhere."""
    y, x, s = normal("y", 1, 6), normal("points", 4000, 6), 0.6
    made, _ = replaced(schedule, y).step(still, x, 0.5, s)
    assert torch.equal(made[:, ~HALF], x[:, ~HALF])
    c, known = schedule.coeffs(torch.tensor(s, dtype=torch.float64)), made[:, HALF]
    rest = (known - c.alpha * y[:, HALF]) / c.sigma
    assert (rest.mean(0).abs() < 4 / 4000**0.5).all()
    assert (rest.var(0) - 1).abs().max() < 0.1
    assert rest.T.corrcoef().triu(1).abs().max() < 0.06


def test_at_the_data_the_known_part_is_exact(normal):
    y, x = normal("y", 1, 6).float(), normal("points", 70, 6).float()
    for schedule in (Linear(), Cosine(), VP(), OffsetCosine()):
        ends = solve(still, x, uniform(4), replaced(schedule, y))
        assert torch.equal(ends[:, HALF], y[:, HALF].expand(70, -1))


@pytest.mark.parametrize("solver", [euler, EulerMaruyama(lambda t: 0.3)], ids=["still", "noise"])
def test_noise_belongs_to_the_seed_the_row_and_the_step(normal, solver):
    y, x, grid = normal("y", 1, 6), normal("points", 200, 6), guidance.resampled(uniform(3, 0, 0.9), 2)
    whole = solve(still, x, grid, replaced(Linear(), y, solver, seed=3))
    part = solve(still, x[70:150], grid, replaced(Linear(), y, solver, seed=3).at(70))
    assert torch.equal(whole[70:150], part)
    assert not torch.equal(whole, solve(still, x, grid, replaced(Linear(), y, seed=4)))
    solver, carry, seen = replaced(Linear(), y), None, []
    for _ in range(3):  # the same step, again and again
        made, carry = solver.step(still, x, 0.3, 0.6, None, carry)
        seen.append(made[:, HALF])
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_step_back_keeps_the_law_of_the_path(schedule, normal):
    """Of x_s = alpha x1 + sigma x0 with a given x1 it makes N(alpha(t) x1, sigma(t)^2), uncorrelated among entries."""
    x1, s, t = normal("data", 1, 6), 0.7, 0.3
    x = schedule.at(Pair(normal("noise", 20_000, 6), x1.expand(20_000, 6)), torch.full((20_000,), s).double()).x
    made, _ = replaced(schedule, x1).step(still, x, s, t)
    c = schedule.coeffs(torch.tensor(t, dtype=torch.float64))
    rest = (made - c.alpha * x1) / c.sigma
    assert (rest.mean(0).abs() < 4 / 20_000**0.5).all()
    assert (rest.var(0) - 1).abs().max() < 0.05


def test_from_the_data_back_to_the_source_nothing_is_left(normal):
    made, _ = replaced(Linear(), normal("y", 1, 6)).step(still, normal("points", 50, 6), 1.0, 0.0)
    other, _ = replaced(Linear(), normal("y", 1, 6)).step(still, 7 + normal("points", 50, 6), 1.0, 0.0)
    assert torch.equal(made, other)


@pytest.mark.parametrize(
    ("steps", "times", "jump", "walked"),
    [
        (3, 1, 1, "0123"),
        (2, 3, 1, "01010121212"),
        (4, 2, 2, "01201234234"),
        (5, 2, 2, "01201234234545"),
        (3, 2, 9, "01230123"),
    ],
)
def test_steps_are_gone_over(steps, times, jump, walked):
    grid = guidance.resampled(torch.arange(steps + 1, dtype=torch.float64), times, jump)
    assert grid.tolist() == [float(step) for step in walked]


class Spy(Solver):
    """A solver that keeps the row it was told to be at, and what was carried to it."""

    order = 1

    def __init__(self, seen, row=0):
        self.seen, self.row = seen, row

    def at(self, row):
        return Spy(self.seen, self.row + row)

    def step(self, field, x, t, s, cond=None, carry=None):
        self.seen.append((self.row, carry))
        return x, s


def test_an_inner_solver_has_other_noise_on_every_visit(normal):
    seen = []
    solve(
        still, normal("x", 2, 6), guidance.resampled(uniform(4), 2, 2), replaced(Linear(), normal("y", 1, 6), Spy(seen))
    )
    rows, carried = zip(*seen, strict=True)
    assert len(set(rows)) == len(rows) == 8
    assert carried == (None, 0.5 / 2, None, 0.25, 0.5, 0.75, None, 0.75)


@pytest.mark.parametrize("solver", [AdamsBashforth2(), EulerMaruyama(lambda t: 0.3)], ids=["ab2", "noise"])
def test_solvers_that_carry_or_draw_can_be_gone_over(solver, normal):
    y, x0 = normal("y", 1, 6), normal("noise", 10, 6)
    field = Normal(Linear(), normal("mean", 6), torch.eye(6, dtype=torch.float64))
    made = solve(field, x0, guidance.resampled(uniform(8, 0, 0.99), 3, 2), replaced(Linear(), y, solver))
    assert made.isfinite().all()
    assert replaced(Linear(), y, solver).order == solver.order
    assert replaced(Linear(), y, AdaptiveSolver()).couples_batch
    assert replaced(Linear(), y, solver).stochastic


def correlated(normal, times=1, guided=False, schedule=None):
    """Mean and deviation of the unknown of two correlated numbers, from 2000 fillings."""
    schedule = schedule or Linear()
    cov = torch.tensor([[1.0, 0.95], [0.95, 1.0]], dtype=torch.float64)
    prior, mask = Normal(schedule, torch.zeros(2, dtype=torch.float64), cov), guidance.Mask(torch.tensor([True, False]))
    y = torch.tensor([[1.5, 0.0]], dtype=torch.float64)
    field = guidance.PiGDM(prior, schedule, mask, y) if guided else prior
    solver = guidance.RePaint(euler, schedule, mask, y, Gaussian((2,)))
    with torch.no_grad():
        x = solve(field, normal("noise", 2000, 2), guidance.resampled(uniform(30, 0, 0.999), times, 5), solver)
    return x[:, 1].mean().item(), x[:, 1].std().item()


@pytest.mark.costly
def test_what_is_gone_over_comes_to_fit_what_is_known(normal):
    """The conditional law is N(0.95 1.5, 1 - 0.95^2)."""
    once, often, guided, both = (correlated(normal, *how) for how in ((1,), (10,), (1, True), (5, True)))
    exact = torch.tensor([0.95 * 1.5, (1 - 0.95**2) ** 0.5])
    first, *others = ((torch.tensor(found) - exact).abs() for found in (once, often, guided, both))
    assert first[0] > 0.5  # replacement alone tells the unknown too late
    assert first[1] > 0.2
    for other in others:
        assert (other < 0.1).all()
    assert (others[2] < 0.04).all()
