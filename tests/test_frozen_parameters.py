"""Parameters with requires_grad=False stay as they are: in training, averages and checkpoints."""

import math
from copy import deepcopy
from itertools import islice

import pytest
import torch
from torch import nn

from flowgen.core import InputError, generator
from flowgen.data import Gaussian, moons
from flowgen.model import Model
from flowgen.nn import MLP
from flowgen.objectives import FlowMatching
from flowgen.pairs import IndependentPairs, batches
from flowgen.repath import repath
from flowgen.schedules import Cosine
from flowgen.training.loop import State, fit

FROZEN = ["net.encoder.0.weight", "net.encoder.0.bias", "net.encoder.1.weight", "net.encoder.1.bias", "net.waves"]


class Still(nn.Module):
    """A net without parameters."""

    def forward(self, x, t, s, cond=None):
        return x


class Encoded(nn.Module):
    """A frozen encoder between trained layers, and frozen Fourier frequencies, one of them infinite."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 4)
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).requires_grad_(False).eval()
        self.last = nn.Linear(7, 2)
        self.waves = nn.Parameter(torch.tensor([1.0, 2.0, -math.inf]), requires_grad=False)

    def forward(self, x, t, s, cond=None):
        waves = torch.sin(t[:, None] * self.waves.clamp(min=-1))
        return self.last(torch.cat([self.encoder(self.first(x)), waves], dim=1))


def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(Encoded())


def trained(start, steps=5, **options):
    state = State(start, lr=0.1, weight_decay=0.5, ema=(0.05, 0.2))
    pairs = batches(IndependentPairs(Gaussian(), moons()), 16, seed=0)
    assert len(list(fit(state, pairs, FlowMatching(), state.step + steps, seed=0, **options))) == steps
    return state


def parameters(of):
    return {name: p.detach().clone() for name, p in of.named_parameters()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_training_moves_all_but_what_is_frozen():
    start = model()
    before = parameters(start)
    state = trained(start, clip=1e-3)
    for after in (state.model, *state.averages.values()):
        assert changed(before, parameters(after)) == before.keys() - set(FROZEN)
        assert all(p.isfinite().all() for name, p in after.named_parameters() if name not in FROZEN)
    assert [name for name, p in state.model.named_parameters() if not p.requires_grad] == ["net.waves", *FROZEN[:-1]]
    assert not changed(before, parameters(start))


def test_a_frozen_module_keeps_its_mode():
    state = trained(model())
    assert state.model.net.first.training
    assert not state.model.net.encoder[1].training
    assert torch.equal(state.model.net.encoder[1].running_mean, torch.zeros(4))


def test_gradients_flow_through_a_frozen_module():
    state = trained(model(), steps=1)
    assert state.model.net.first.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in state.model.net.encoder.parameters())


def test_copies_of_a_state_train_what_it_trained():
    start = trained(model())
    for other in (start.ema, deepcopy(start.model), deepcopy(start.averages[0.2]), repath(start.ema, Cosine())):
        before = parameters(other)
        moved = changed(before, parameters(trained(other).model))
        assert before.keys() - moved == {name for name in before if name.endswith(tuple(FROZEN))}


def test_a_restored_state_keeps_what_is_frozen():
    whole, first = trained(model(), steps=8), trained(model(), steps=4)
    kept = {name: x.clone() for name, x in first.tensors().items()}
    second = State(Model(Encoded()), lr=0.1, weight_decay=0.5, ema=(0.05, 0.2))
    second.restore(kept)
    pairs = batches(IndependentPairs(Gaussian(), moons()), 16, seed=0, start=4)
    list(fit(second, pairs, FlowMatching(), 8, seed=0))
    assert not changed(whole.tensors(), second.tensors())
    assert second.model.trainable == whole.model.trainable


def test_a_state_that_trained_other_parameters_is_refused():
    tensors, other = trained(model()).tensors(), model()
    other.net.first.requires_grad_(False)
    other.net.encoder[0].requires_grad_(True)
    with pytest.raises(InputError, match="other parameters were trained"):
        State(other, ema=(0.05, 0.2)).restore(tensors)


def test_a_model_that_is_frozen_as_a_whole_is_refused():
    with pytest.raises(InputError, match="all are frozen"):
        State(Model(MLP(2)).requires_grad_(False))


def test_a_model_without_parameters_is_refused():
    with pytest.raises(InputError, match="it has none"):
        State(Model(Still()))


def test_what_is_unfrozen_later_is_refused():
    state = State(model())
    loop = fit(state, batches(IndependentPairs(Gaussian(), moons()), 16, seed=0), FlowMatching(), 10, seed=0)
    list(islice(loop, 2))
    state.model.net.encoder.requires_grad_(True)
    with pytest.raises(InputError, match="frozen when the State was made"):
        next(loop)


def test_a_loss_without_gradient_is_refused():
    pairs = batches(IndependentPairs(Gaussian(), moons()), 16, seed=0)
    with torch.no_grad(), pytest.raises(InputError, match="no_grad"):
        next(fit(State(model()), pairs, FlowMatching(), 1, seed=0))
    detached = lambda model, pair, generator: FlowMatching()(model, pair, generator).detach()  # noqa: E731
    with pytest.raises(InputError, match="does not depend"):
        next(fit(State(model()), pairs, detached, 1, seed=0))


def test_models_for_inference_have_no_gradients():
    state = trained(model())
    x, t = torch.randn(5, 2, generator=generator(0, "x")), torch.rand(5, generator=generator(0, "t"))
    assert not state.ema.velocity(x, t).requires_grad
    assert not any(part.training for part in state.ema.modules())
