"""Exact fields take the source to the data, and sample i of seed S is the same whatever else is asked for."""

import pytest
import torch

from flowgen import predictions
from flowgen.core import InputError
from flowgen.data import Gaussian, Scaling, moons
from flowgen.data.streams import BLOCK, source_rows
from flowgen.metrics import wasserstein2
from flowgen.model import Model
from flowgen.nn import MLP
from flowgen.samplers.grids import log_snr, uniform
from flowgen.samplers.ode import AdaptiveSolver, euler, heun, rk4
from flowgen.sampling import Counted, flow, pair_chunks, sample, sample_chunks, solve
from flowgen.schedules import VE, VP, Linear

# exact fields


@pytest.mark.costly
def test_the_exact_field_of_a_gaussian_walks_the_exact_flow_map(schedule, gaussian_flow, normal):
    exact = gaussian_flow(schedule)
    grid = log_snr(schedule, 60, *predictions.span(schedule, predictions.v))
    mean, std = exact.moments(0.0)
    x = mean + std * normal("points", 30, 2)
    end = solve(exact.velocity, x, grid, rk4)
    torch.testing.assert_close(end, exact.map(x, 0.0, grid[-1].item()), rtol=1e-4, atol=1e-4)
    back = solve(exact.velocity, end, grid.flip(0), rk4)
    torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-3)


@pytest.mark.costly
def test_every_exact_model_takes_the_source_to_the_data(usable, gaussian_flow, exact_model):
    """The flow is affine: three points give the mean and the spread of all its samples."""
    schedule, prediction = usable
    exact = gaussian_flow(schedule)
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    model = exact_model(exact, prediction)
    centre, right, up = flow(model, corners, log_snr(schedule, 40, *model.span), rk4)
    spread = torch.stack([right - centre, up - centre])
    start = schedule.coeffs(torch.zeros(1, dtype=torch.float64))
    left_out = float(start.alpha / start.sigma) + 0.003  # of the data at the start, and of time at the end
    torch.testing.assert_close(centre, exact.mean, rtol=0, atol=3 * left_out)
    torch.testing.assert_close(spread, torch.diag(exact.std), rtol=0, atol=3 * left_out)


@pytest.mark.parametrize("schedule", [Linear(), VP(), VE()], ids=str)
def test_the_exact_field_of_a_few_points_ends_on_them_evenly(schedule, empirical_flow, exact_model, normal):
    exact = empirical_flow(schedule)
    model = exact_model(exact, predictions.v)
    lo, hi = model.span
    end = flow(model, normal("source", 1500, 2), log_snr(schedule, 60, lo, min(hi, 0.9999)), heun)
    nearest = torch.cdist(end, exact.data).min(1)
    assert nearest.values.quantile(0.99) < 0.05
    share = nearest.indices.bincount(minlength=5) / 1500
    assert (share - 0.2).abs().max() < 0.05


# identity


class Direct(torch.nn.Module):
    """A net without matrices: its rows cannot see each other."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x, t, s, cond=None):
        return torch.sin(self.weight * x.flip(1) + t.unsqueeze(1))


NETS = {
    "small": lambda: MLP(2, 64, 3),
    "narrow": lambda: MLP(2, 5, 1, seed=1),
    "wide": lambda: MLP(2, 256, 2, seed=2),
    "direct": Direct,
}


@pytest.fixture(params=NETS.values(), ids=NETS)
def net_model(request):
    return Model(request.param(), Linear(), scaling=Scaling(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5])))


def drawn(model, num, chunk, seed=7, solver=heun):
    return sample(model, Gaussian(), num, uniform(4), solver, seed=seed, chunk=chunk)


@pytest.mark.parametrize("chunk", [1, 64, 100, 8192])
def test_a_sample_does_not_depend_on_how_many_are_drawn_or_how(net_model, chunk):
    whole = drawn(net_model, 1000, 1000)
    for num in (1, 10, 63, 64, 65, 100, 1000):
        assert torch.equal(drawn(net_model, num, chunk), whole[:num])


def test_a_sample_does_not_depend_on_the_number_of_threads(net_model):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = drawn(net_model, 300, 128)
        torch.set_num_threads(2)
        two = drawn(net_model, 300, 256)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)


def test_samples_keep_their_identity_with_every_solver(fixed_step):
    model, (solver, _) = Model(MLP(2, 16, 1)), fixed_step
    assert torch.equal(drawn(model, 10, 64, solver=solver), drawn(model, 200, 8192, solver=solver)[:10])


@pytest.mark.costly
def test_adaptive_samples_keep_their_identity_too(adaptive):
    method, _ = adaptive
    model, solver = Model(MLP(2, 16, 1)), AdaptiveSolver(method)
    whole = drawn(model, 200, 8192, solver=solver)
    assert torch.equal(drawn(model, 10, 64, solver=solver), whole[:10])
    assert torch.equal(drawn(model, 130, 128, solver=solver), whole[:130])


def test_chunks_are_no_larger_than_asked_for_in_whole_blocks():
    sizes = [len(part) for part in sample_chunks(Model(MLP(2)), Gaussian(), 500, uniform(1), euler, chunk=100)]
    assert sum(sizes) == 500
    assert max(sizes) <= -(-100 // BLOCK) * BLOCK


def test_seeds_and_streams_are_apart():
    def first(seed, stream):
        return next(pair_chunks(Model(MLP(2)), Gaussian(), 200, uniform(1), euler, seed=seed, stream=stream)).x0

    made = [first(0, "sample"), first(1, "sample"), first(0, "other")]
    rows = torch.cat(made)
    assert len(rows.unique(dim=0)) == 600
    flat = torch.stack([x.flatten() for x in made])
    assert (torch.corrcoef(flat) - torch.eye(3)).abs().max() < 5 / 400**0.5


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 64), (63, 65), (64, 128), (100, 300), (5, 6)])
def test_starts_are_slices_of_one_sequence(start, stop):
    whole = source_rows(moons(), 0, 320, seed=3)
    assert torch.equal(source_rows(moons(), start, stop, seed=3), whole[start:stop])


def test_no_two_samples_share_their_start():
    assert len(source_rows(Gaussian((1,)), 0, 2000, seed=0).unique()) > 1990


def test_pairs_are_source_points_and_their_ends(net_model):
    pair = next(pair_chunks(net_model, Gaussian(), 100, uniform(4), heun, seed=7))
    ends = flow(net_model, source_rows(Gaussian(), 0, 128, seed=7), uniform(4), heun)[:100]
    assert torch.equal(pair.x0, source_rows(Gaussian(), 0, 100, seed=7))
    assert torch.equal(pair.x1, ends)
    assert torch.equal(net_model.scaling.undo(pair.x1), drawn(net_model, 100, 8192))


def test_sampling_leaves_global_state_alone(net_model, global_state_untouched):
    before = [p.clone() for p in net_model.parameters()]
    x = drawn(net_model, 10, 64)
    assert not x.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, net_model.parameters(), strict=True))
    assert all(p.grad is None for p in net_model.parameters())


def test_sampling_starts_at_the_width_of_the_path(schedule):
    """A field that stands still leaves sigma(0) x0."""
    model = Model(Direct(), schedule, predictions.v)
    pair = next(
        pair_chunks(model, Gaussian(), 50, uniform(3), euler, field=lambda x, t, cond=None: torch.zeros_like(x))
    )
    torch.testing.assert_close(pair.x1, schedule.coeffs(torch.zeros(1)).sigma * pair.x0)


def test_a_field_given_in_place_of_the_model_is_walked():
    counted = Counted(lambda x, t, cond=None: torch.ones_like(x))
    model = Model(MLP(2))
    x = sample(model, Gaussian(), 100, uniform(5), rk4, chunk=64, field=counted)
    torch.testing.assert_close(x, source_rows(Gaussian(), 0, 100, seed=0) + 1)
    assert counted.evaluations == 2 * 5 * 4


def test_condition_reaches_the_net_in_a_flow():
    class Conditional(Direct):
        def forward(self, x, t, s, cond=None):
            return cond.unsqueeze(1).expand_as(x)

    cond = torch.tensor([1.0, -2.0, 3.0])
    end = flow(Model(Conditional()), torch.zeros(3, 2), uniform(4), heun, cond)
    torch.testing.assert_close(end, cond.unsqueeze(1).expand(3, 2))


@pytest.mark.parametrize(("num", "chunk"), [(0, 64), (-1, 64), (10, 0)])
def test_no_samples_and_no_chunks_are_refused(num, chunk):
    with pytest.raises(InputError, match="positive"):
        sample(Model(MLP(2)), Gaussian(), num, uniform(1), euler, chunk=chunk)


def test_exact_samples_are_as_near_to_data_as_data_is(gaussian_flow, exact_model, normal):
    exact = gaussian_flow(Linear())

    ends = flow(exact_model(exact, predictions.velocity), normal("source", 800, 2), uniform(40), rk4)
    truth, again = (exact.mean + exact.std * normal(name, 800, 2) for name in ("truth", "again"))
    assert wasserstein2(ends, truth) < 1.5 * wasserstein2(again, truth)
