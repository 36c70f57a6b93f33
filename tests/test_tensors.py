"""Tensors as they are in the wild are used as they are meant, or refused in one line."""

import threading

import pytest
import torch
from torch import nn

from flowgen import checkpoints, likelihood
from flowgen.core import InputError, Pair, generator
from flowgen.couplings import Semidiscrete, ascend
from flowgen.data import Flipped, Gaussian, Scaled, Scaling, TensorDataset, chunks, moons
from flowgen.data.streams import source_rows
from flowgen.guidance import ClassifierGuided
from flowgen.guidance.measurements import Mask
from flowgen.guidance.pigdm import PiGDM
from flowgen.model import Model
from flowgen.nn import MLP
from flowgen.objectives import FlowMatching
from flowgen.pairs import IndependentPairs, batches, loader_pairs
from flowgen.pairs.reflow import Inversion, Reflow
from flowgen.samplers.flow_map import ConsistencySampler
from flowgen.samplers.grids import uniform
from flowgen.samplers.ode import euler
from flowgen.sampling import pair_chunks, sample
from flowgen.schedules import Linear
from flowgen.training.loop import State, fit


def rows(n=12, dtype=torch.float32):
    return torch.randn(n, 2, generator=generator(0, "rows")).to(dtype)


def trained(net, pairs, steps=3):
    state = State(Model(net))
    return state, list(fit(state, pairs, FlowMatching(), steps, seed=0))


# types of numbers


@pytest.mark.parametrize(("data", "weights"), [("float64", "float32"), ("float32", "float64")])
def test_rows_are_of_the_type_of_the_weights(data, weights):
    net, x = (lambda: MLP(2, 8, 1).to(getattr(torch, weights))), rows(dtype=getattr(torch, data))
    state, losses = trained(net(), [Pair(x, x + 1)])
    same = x.to(getattr(torch, weights))
    assert losses == trained(net(), [Pair(same, (x + 1).to(same.dtype))])[1]
    made = sample(state.ema, x, 5, uniform(2), euler)
    assert torch.equal(made, sample(state.ema, same, 5, uniform(2), euler))
    for coupling in (Reflow, Inversion):
        pair = coupling(state.ema, uniform(2), euler)(Pair(x, x), generator(0, ""))
        assert pair.x0.isfinite().all()
        assert pair.x1.isfinite().all()


def test_float_conditions_are_of_the_type_of_the_weights():
    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 2)

        def forward(self, x, t, s, cond=None):
            return self.layer(torch.cat([x, cond], dim=1))

    cond = torch.rand(12, 3, generator=generator(0, "cond"), dtype=torch.float64)
    state, _ = trained(Told(), [Pair(rows(), rows(), cond)])
    assert sample(state.ema, Gaussian(), 12, uniform(2), euler, cond=cond).dtype == torch.float32


def test_a_net_that_is_handed_another_type_says_which():
    with pytest.raises(InputError, match=r"the net computes with torch.float32, and x is torch.float64: cast x"):
        Model(MLP(2)).velocity(rows(dtype=torch.float64), torch.rand(12))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.bool])
def test_whole_numbers_are_numbers(dtype):
    x = (3 * rows()).round().to(dtype)
    assert torch.equal(TensorDataset(x).x, x.float())
    assert trained(MLP(2, 8, 1), [Pair(x, x)])[1] == trained(MLP(2, 8, 1), [Pair(x.float(), x.float())])[1]


def test_large_whole_numbers_keep_their_digits():
    x = 1_700_000_000 + torch.arange(12).reshape(6, 2)
    assert torch.equal(TensorDataset(x).x.long(), x)


def test_whole_numbers_are_standardised_as_numbers():
    scaling = Scaling.standardising(torch.tensor([[0, 5], [1, 5]]))
    assert scaling.shift.tolist() == [0.5, 5]
    assert scaling.scale.tolist() == [0.5, 0]


def test_bytes_in_model_units_are_refused():
    with pytest.raises(InputError, match="pixels"):
        trained(MLP(2, 8, 1), [Pair(rows(), rows().to(torch.uint8))])


def test_labels_of_rows_are_whole_numbers():
    assert TensorDataset(rows(), torch.arange(12, dtype=torch.int32)).labels.dtype == torch.int64
    for labels, message in [(torch.rand(12), "whole numbers"), (torch.zeros(12, 1).long(), r"shape \(12, 1\)")]:
        with pytest.raises(InputError, match=message):
            TensorDataset(rows(), labels)


# a tensor is the law of its rows


def test_a_tensor_is_the_law_of_its_rows():
    x, law, model, scaling = rows(), TensorDataset(rows()), Model(MLP(2, 8, 1)), Scaling.standardising(rows())
    images = torch.rand(4, 1, 2, 2, generator=generator(0, "images"))
    for made in (
        lambda given: (
            next(
                batches(
                    IndependentPairs(given, given + 1 if isinstance(given, torch.Tensor) else TensorDataset(x + 1)),
                    8,
                    seed=0,
                )
            ).x1
        ),
        lambda given: next(batches(IndependentPairs(moons(), Scaled(given, scaling)), 8, seed=0)).x1,
        lambda given: next(chunks(given, 8, seed=0))[0],
        lambda given: source_rows(given, 0, 8, 0),
        lambda given: sample(model, given, 8, uniform(2), euler),
        lambda given: sample(model, given, 8, uniform(2), ConsistencySampler(Linear(), given)),
        lambda given: next(pair_chunks(model, given, 8, uniform(2), euler)).x0,
        lambda given: next(loader_pairs([x], given, seed=0)).x0,
        lambda given: next(ascend(given, x, seed=0)).values,
        lambda given: Semidiscrete(given, x, torch.zeros(12))(8, generator(0, "")).x0,
    ):
        assert torch.equal(made(x), made(law))
    assert torch.equal(*(next(chunks(Flipped(given), 4, seed=0))[0] for given in (images, TensorDataset(images))))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Gaussian, "the class Gaussian"),
        (rows().numpy(), "a tensor of rows, not ndarray"),
        ("moons", "not str"),
        (torch.zeros(5), r"x.unsqueeze\(1\)"),
        (torch.zeros(0, 2), "no rows"),
    ],
    ids=["class", "numpy", "name", "one number each", "empty"],
)
def test_what_is_no_law_is_refused(given, message):
    for use in (
        lambda: IndependentPairs(Gaussian(), given),
        lambda: sample(Model(MLP(2)), given, 3, uniform(1), euler),
    ):
        with pytest.raises(InputError, match=message):
            use()


def test_a_likelihood_needs_a_density():
    with pytest.raises(InputError, match="log_density"):
        likelihood.log_likelihood(Model(MLP(2)), TensorDataset(rows()), rows(), uniform(2), euler)


# nets as they come


class Contracting(nn.Module):
    """A field that is known: no parameters, and one buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("rate", torch.tensor(-0.5))

    def forward(self, x, t, s, cond=None):
        return self.rate * x


@pytest.mark.parametrize("net", [Contracting(), nn.Sequential()], ids=["buffer", "nothing"])
def test_a_net_without_parameters_is_sampled_and_not_trained(net):
    call = net if isinstance(net, Contracting) else _Still()
    model = Model(call)
    x = sample(model, Gaussian(), 100, uniform(50), euler)
    x0 = source_rows(Gaussian(), 0, 100, 0)
    factor = (1 - 0.5 / 50) ** 50 if isinstance(net, Contracting) else 1
    torch.testing.assert_close(x, factor * x0)
    assert likelihood.log_likelihood(model, Gaussian(), x, uniform(5), euler).isfinite().all()
    with pytest.raises(InputError, match="no parameter to train: it has none"):
        State(model)


class _Still(nn.Module):
    def forward(self, x, t, s, cond=None):
        return torch.zeros_like(x)


class Tied(nn.Module):
    """A net whose two inner layers have one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight

    def forward(self, x, t, s, cond=None):
        return self.second(torch.tanh(self.first(x)))


def test_tied_weights_are_saved_and_stay_tied(tmp_path):
    pairs = [Pair(rows(), rows() + 1)]
    whole, _ = trained(Tied(), pairs, 6)
    first, _ = trained(Tied(), pairs, 3)
    second = State(Model(Tied()))
    first.restore(whole.tensors())
    second.restore(checkpoints.load(checkpoints.save(tmp_path, 6, first.tensors(), keep=1)))
    for model in (second.model, second.ema):
        assert model.net.first.weight is model.net.second.weight
    assert all(torch.equal(x, second.tensors()[name]) for name, x in whole.tensors().items())
    checkpoints.write_tensors(tmp_path / "w.safetensors", whole.ema.state_dict(), {})
    tensors, _ = checkpoints.read_tensors(tmp_path / "w.safetensors")
    assert torch.equal(tensors["net.first.weight"], tensors["net.second.weight"])


def test_a_net_that_cannot_be_copied_is_named():
    class Locked(nn.Module):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.inner = nn.Linear(2, 2), nn.Sequential(Locked())

        def forward(self, x, t, s, cond=None):
            return self.layer(x)

    with pytest.raises(InputError, match=r"module net.inner.0 \(Locked\)"):
        State(Model(Outer()))


def test_a_net_that_holds_a_result_is_named():
    net = Tied()
    net.first.kept = net.first.bias * 2
    with pytest.raises(InputError, match=r"module net.first \(Linear\)"):
        State(Model(net))


def test_parameters_without_a_shape_are_named():
    class Lazy(Tied):
        def __init__(self):
            super().__init__()
            self.first = nn.LazyLinear(2)

    with pytest.raises(InputError, match=r"net.first.weight has no shape yet: call the net once"):
        State(Model(Lazy()))


def test_a_model_of_inference_mode_is_not_trained():
    with torch.inference_mode():
        model = Model(MLP(2, 8, 1))
    with pytest.raises(InputError, match="inference_mode"):
        State(model)


# inference mode


def test_gradients_of_x_are_computed_under_inference_mode():
    model, grid = Model(MLP(2, 8, 1)).for_inference(), uniform(3)
    y, mask = torch.ones(12, 2), Mask(torch.tensor([True, False]))

    def guided(x, t, cond):
        return -(x - cond.unsqueeze(1)).square().sum(1)

    cond = torch.arange(12) % 2
    for made in (
        lambda: likelihood.log_likelihood(model, Gaussian(), rows(), grid, euler),
        lambda: likelihood.log_likelihood(
            model, Gaussian(), rows(), grid, euler, probes=likelihood.probes(Gaussian(), 12, 2, seed=0)
        ),
        lambda: sample(model, Gaussian(), 12, grid, euler, field=PiGDM(model.velocity, Linear(), mask, y[:1])),
        lambda: sample(
            model, Gaussian(), 12, grid, euler, cond=cond, field=ClassifierGuided(model.velocity, guided, Linear(), 1.0)
        ),
    ):
        with torch.inference_mode():
            inside = made()
        assert torch.equal(inside, made())
