"""A network with its path and prediction, read as a velocity, a score and two ends; and the network's first weights."""

import math

import pytest
import torch
from torch import nn

from flowgen import predictions
from flowgen.core import InputError
from flowgen.data import Scaling
from flowgen.model import Model
from flowgen.nn import MLP, TimeFeatures, seeded
from flowgen.schedules import Linear

TIMES = torch.linspace(0.02, 0.98, 60, dtype=torch.float64)


@pytest.fixture
def points(gaussian_flow, normal):
    """points(path): one point of the Gaussian marginal at each of TIMES."""

    def make(schedule):
        mean, std = zip(*(gaussian_flow(schedule).moments(t) for t in TIMES.tolist()), strict=True)
        return torch.stack(mean) + torch.stack(std) * normal("points", 60, 2)

    return make


def test_an_exact_model_has_the_exact_velocity(usable, gaussian_flow, exact_model, points):
    schedule, prediction = usable
    flow, x = gaussian_flow(schedule), points(schedule)
    torch.testing.assert_close(
        exact_model(flow, prediction).velocity(x, TIMES), flow.velocity(x, TIMES), rtol=1e-7, atol=1e-7
    )


def test_an_exact_model_has_the_exact_score(usable, gaussian_flow, exact_model, points):
    schedule, prediction = usable
    flow, x = gaussian_flow(schedule), points(schedule)
    torch.testing.assert_close(
        exact_model(flow, prediction).score(x, TIMES), flow.score(x, TIMES), rtol=1e-7, atol=1e-7
    )


def test_whatever_it_predicts_an_exact_model_has_the_exact_ends(usable, gaussian_flow, exact_model, points):
    schedule, prediction = usable
    flow, x = gaussian_flow(schedule), points(schedule)
    for end, exact in zip(exact_model(flow, prediction).ends(x, TIMES)[:2], flow.ends(x, TIMES)[:2], strict=True):
        torch.testing.assert_close(end, exact, rtol=1e-7, atol=1e-7)


def test_a_net_sees_inputs_of_the_size_of_its_data_at_all_times(schedule, gaussian_flow, points, recorder):
    """With source and data of unit size, alpha x1 + sigma x0 has size sqrt(alpha^2 + sigma^2)."""
    net = recorder
    model = Model(net, schedule, predictions.v)
    with torch.no_grad():
        model(points(schedule), TIMES)
    seen = net.seen[0].square().mean(1).sqrt()
    assert seen.max() < 5
    assert seen.mean() > 0.5


def test_condition_and_both_times_reach_the_net(normal, recorder):
    net, x, cond = recorder, normal("x", 60, 2), torch.arange(60)
    model = Model(net)
    model(x, TIMES, TIMES + 0.01, cond)
    assert torch.equal(net.seen[1], TIMES)
    assert torch.equal(net.seen[2], TIMES + 0.01)
    assert torch.equal(net.seen[3], cond)
    for read in (model.velocity, model.score, model.ends):
        read(x, TIMES, cond)
        assert torch.equal(net.seen[2], TIMES)
        assert torch.equal(net.seen[3], cond)


def test_a_model_refuses_a_singular_prediction(singular, recorder):
    schedule, prediction = singular
    with pytest.raises(InputError, match="singular"):
        Model(recorder, schedule, prediction)


def test_sampling_starts_at_the_width_of_the_path(schedule, normal, recorder):
    x0 = normal("x0", 5, 2)
    width = schedule.coeffs(torch.zeros(1, dtype=torch.float64)).sigma
    assert torch.equal(Model(recorder, schedule, predictions.v).start(x0), width * x0)


def test_scaling_is_kept_with_the_weights():
    trained = Model(MLP(2, 8, 1), scaling=Scaling(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])))
    loaded = Model(MLP(2, 8, 1, seed=9), scaling=Scaling(torch.zeros(2), torch.ones(2)))
    loaded.load_state_dict(trained.state_dict())
    x, t = torch.ones(1, 2), torch.zeros(1)
    assert torch.equal(loaded.scaling.undo(x), torch.tensor([[4.0, 6.0]]))
    assert torch.equal(loaded.velocity(x, t), trained.velocity(x, t))


def test_a_linear_model_of_velocity_adds_nothing_to_its_net(normal):
    net, x, t = MLP(2, 16, 2), normal("x", 10, 2).float(), torch.rand(10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Model(net, Linear()).velocity(x, t), net(x, t))


# the network


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_first_weights_are_a_function_of_the_seed(global_state_untouched):
    assert torch.equal(weights(MLP(3, seed=4)), weights(MLP(3, seed=4)))
    assert not torch.equal(weights(MLP(3, seed=4)), weights(MLP(3, seed=5)))


def test_seeding_is_undone_by_an_error(global_state_untouched):
    def fails():
        with seeded(3):
            raise KeyError

    with pytest.raises(KeyError):
        fails()


def test_all_times_have_their_own_features():
    t = torch.linspace(0, 1, 101)
    features = TimeFeatures(4)(t)
    distance = torch.cdist(features, features) + 10 * torch.eye(101)
    assert distance.min() > 1e-2
    assert features.shape == (101, TimeFeatures(4).size)


@pytest.mark.costly
def test_time_features_are_time_and_fourier_features():
    """Each frequency k adds a point of a unit circle, with speed pi k; a half turn keeps the ends of time apart."""
    t, one = torch.linspace(0, 1, 50), torch.ones(50)
    features, speed = torch.func.jvp(TimeFeatures(3), (t,), (one,))
    torch.testing.assert_close(features.square().sum(1), t**2 + 3)
    torch.testing.assert_close(speed.square().sum(1), one + math.pi**2 * (1 + 4 + 9))
    assert (features[0] - features[-1]).norm() > 2


@pytest.mark.parametrize("activation", [nn.SELU, nn.Tanh, nn.SiLU])
def test_without_frequencies_a_net_is_that_of_torchcfm(normal, activation):
    """A plain perceptron on (x, t): the weights of one, in order, make the other."""
    from torchcfm.models import MLP as Peer

    peer, net = Peer(dim=3, w=64, time_varying=True), MLP(3, 64, 3, frequencies=0, activation=activation).double()
    modules = [activation() if isinstance(module, nn.SELU) else module for module in peer.net]
    peer = nn.Sequential(*modules).double()
    net.load_state_dict(dict(zip(net.state_dict(), peer.state_dict().values(), strict=True)))
    x = normal("x", 60, 3)
    torch.testing.assert_close(net(x, TIMES), peer(torch.cat([x, TIMES.unsqueeze(1)], dim=1)), rtol=1e-12, atol=1e-12)


def test_rows_of_a_batch_do_not_see_each_other(normal):
    net, x, t = MLP(3).double(), normal("x", 20, 3), TIMES[:20]
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(20)])
    torch.testing.assert_close(net(x, t), alone, rtol=1e-12, atol=1e-12)


def test_a_net_depends_on_every_column_and_on_time(normal):
    net, x = MLP(3).double(), normal("x", 20, 3)

    def outputs(row, time):
        return net(row.unsqueeze(0), time.unsqueeze(0)).squeeze(0)

    by_row, by_time = torch.func.jacrev(outputs, argnums=(0, 1))(x[0], TIMES[0])
    assert (by_row != 0).all()
    assert (by_time != 0).all()
