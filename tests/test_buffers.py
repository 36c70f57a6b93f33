"""Averages have the buffers of the network as they are now, also those that forward assigns anew."""

import pytest
import torch
from torch import nn

from flowgen.core import InputError
from flowgen.data import Gaussian, moons
from flowgen.model import Model
from flowgen.objectives import FlowMatching
from flowgen.pairs import IndependentPairs, batches
from flowgen.training.loop import State, fit


class Running(nn.Module):
    """A net with a running mean that each forward assigns anew."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Module()
        self.inner.register_buffer("running", torch.zeros(2))
        self.layer = nn.Linear(2, 2)

    def forward(self, x, t, s, cond=None):
        if self.training:
            self.inner.running = 0.9 * self.inner.running + 0.1 * self.layer(x).detach().mean(0)
        return self.layer(x) - self.inner.running


class Cached(Running):
    """The same with a cache that grows, one that is first made in forward, and one that is None at first."""

    def __init__(self, persistent=False):
        super().__init__()
        self.register_buffer("grows", torch.zeros(1), persistent=persistent)
        self.register_buffer("empty", None, persistent=persistent)

    def forward(self, x, t, s, cond=None):
        if self.training:
            self.grows = torch.cat([self.grows, t.mean()[None]])
            self.empty = t[:3].clone()
            self.register_buffer("late", t[:2].clone(), persistent=False)
        return super().forward(x, t, s, cond)


def trained(net, steps=4):
    state = State(Model(net), ema=(0.05, 0.2))
    list(fit(state, batches(IndependentPairs(Gaussian(), moons()), 16, seed=0), FlowMatching(), steps, seed=0))
    return state


def test_buffers_that_are_assigned_anew_reach_the_averages():
    state = trained(Running())
    mean = state.model.net.inner.running
    assert mean.abs().sum() > 0
    for averaged in state.averages.values():
        assert torch.equal(averaged.net.inner.running, mean)
        assert averaged.net.inner.running is not mean
    assert torch.equal(state.tensors()["ema.net.inner.running"], mean)


def test_buffers_of_a_restored_state_reach_the_averages():
    first, second = trained(Running()), State(Model(Running()), ema=(0.05, 0.2))
    second.restore(first.tensors())
    assert torch.equal(second.ema.net.inner.running, first.model.net.inner.running)
    list(fit(second, batches(IndependentPairs(Gaussian(), moons()), 16, seed=0, start=4), FlowMatching(), 8, seed=0))
    assert torch.equal(second.ema.net.inner.running, second.model.net.inner.running)


def test_caches_that_change_their_shape_reach_the_averages():
    state = trained(Cached())
    for averaged in state.averages.values():
        for name, buffer in state.model.net.named_buffers():
            assert torch.equal(averaged.net.get_buffer(name), buffer), name
        assert len(averaged.net.grows) == 5
    assert trained(Cached()).tensors().keys() == trained(Running()).tensors().keys()


def test_a_buffer_of_checkpoints_keeps_its_shape():
    with pytest.raises(InputError, match=r"buffer grows was torch.float32 \(1,\) .* and is torch.float32 \(2,\)"):
        trained(Cached(persistent=True))
