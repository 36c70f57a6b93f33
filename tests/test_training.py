"""Training moves the weights once for each batch, averages them as said, and goes on as if it had never stopped."""

import math
from copy import deepcopy
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from flowgen import checkpoints, ema
from flowgen.core import InputError, Pair, generator
from flowgen.couplings import ExactOT
from flowgen.data import Gaussian, Scaling, moons
from flowgen.model import Model
from flowgen.nn import MLP
from flowgen.objectives import FlowMatching
from flowgen.pairs import IndependentPairs, Pool, batches
from flowgen.training.loop import Diverged, State, fit

# the average of the weights


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.1, 6.94)])
def test_exponents_are_those_of_the_paper(width, gamma):
    assert ema.exponent(width) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.25, 0.279])
def test_the_profile_of_an_exponent_has_its_width(width):
    """The standard deviation of training time under weights t^gamma on [0, 1]."""
    t = np.linspace(0, 1, 200_001)
    weight = t ** ema.exponent(width)
    weight /= weight.sum()
    mean = weight @ t
    assert math.sqrt(weight @ (t - mean) ** 2) == pytest.approx(width, rel=2e-3)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.28, 1.0, math.nan])
def test_widths_that_no_profile_has_are_refused(width):
    with pytest.raises(InputError, match="width"):
        ema.exponent(width)


@pytest.mark.parametrize("width", [0.02, 0.1, 0.25])
@pytest.mark.parametrize("steps", [1, 2, 10, 300])
def test_the_average_is_the_mean_with_power_weights(normal, width, steps):
    """Step k of n weighs (k^p - (k - 1)^p) / n^p with p = gamma + 1: the power profile, integrated over the step."""
    weights, average = normal("weights", steps, 5), torch.full((5,), 1e3, dtype=torch.float64)
    for step in range(1, steps + 1):
        ema.average([average], [weights[step - 1]], step, width)
    edges = (torch.arange(steps + 1, dtype=torch.float64) / steps) ** (ema.exponent(width) + 1)
    torch.testing.assert_close(average, edges.diff() @ weights, rtol=1e-10, atol=1e-10)


def test_a_constant_is_its_own_average(normal):
    x = normal("x", 7)
    average = torch.zeros(7, dtype=torch.float64)
    for step in range(1, 20):
        ema.average([average], [x], step, 0.1)
    torch.testing.assert_close(average, x)


# the state and the loop


def model(seed=0, width=16):
    return Model(MLP(2, width, 2, seed=seed), scaling=Scaling(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])))


def pairs(seed=0, start=0):
    ends = IndependentPairs(Gaussian(), moons())
    return batches(ends, 32, seed=seed, coupling=ExactOT(16), pool=Pool(batches=3, reuse=2), start=start)


def trained(steps, seed=0, **options):
    state = State(model(), **options)
    return state, list(fit(state, pairs(seed), FlowMatching(), steps, seed=seed))


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def copied(state):
    return {name: x.clone() for name, x in state.tensors().items()}


def test_training_is_a_function_of_its_seed(global_state_untouched):
    (first, losses), (second, again), (_, other) = trained(6), trained(6), trained(6, seed=1)
    assert losses == again
    assert same(first.tensors(), second.tensors())
    assert not set(losses) & set(other)


def test_draws_are_a_function_of_seed_and_step():
    drawn = []

    def objective(model, pair, generator):
        drawn.append(torch.rand(1, generator=generator).item())
        return FlowMatching()(model, pair, generator)

    for seed in (0, 1):
        list(fit(State(model()), pairs(), objective, 4, seed=seed))
    assert len(set(drawn)) == 8
    state = State(model())
    state.step = 2
    list(fit(state, pairs(start=2), objective, 4, seed=0))
    assert drawn[8:] == drawn[2:4]


def test_a_loop_goes_on_to_its_last_step_and_no_further():
    state, losses = trained(5)
    assert len(losses) == state.step == 5
    assert not list(fit(state, pairs(), FlowMatching(), 5, seed=0))
    assert len(list(fit(state, pairs(start=5), FlowMatching(), 8, seed=0))) == 3
    with pytest.raises(InputError, match="there were only 2 batches"):
        list(fit(state, islice(pairs(), 2), FlowMatching(), 100, seed=0))
    assert state.step == 10


@pytest.mark.parametrize("stop", [1, 4, 6, 9])
def test_a_restored_state_goes_on_bit_for_bit(tmp_path, stop):
    whole, losses = trained(12)
    first, before = trained(stop)
    saved = checkpoints.save(tmp_path, stop, first.tensors(), keep=1)
    second = State(model(seed=5))
    second.restore(checkpoints.load(saved))
    after = list(fit(second, pairs(start=stop), FlowMatching(), 12, seed=0))
    assert before + after == losses
    assert same(second.tensors(), whole.tensors())


def test_a_loop_can_be_left_and_taken_up(tmp_path):
    whole, losses = trained(8)
    state = State(model())
    first = list(islice(fit(state, pairs(), FlowMatching(), 8, seed=0), 3))
    second = list(fit(state, pairs(start=3), FlowMatching(), 8, seed=0))
    assert first + second == losses
    assert same(state.tensors(), whole.tensors())


def test_a_restored_state_is_its_own():
    state, _ = trained(3)
    kept = copied(state)
    other = State(model())
    other.restore(kept)
    list(fit(other, pairs(start=3), FlowMatching(), 6, seed=0))
    assert same(kept, copied(state))


def test_tensors_of_another_model_are_refused():
    state, _ = trained(2)
    for other in (State(model(width=8)), State(Model(MLP(3), scaling=Scaling(torch.zeros(3), torch.ones(3))))):
        with pytest.raises(InputError, match="another model"):
            other.restore(state.tensors())


def test_a_state_copies_its_model():
    teacher = model().for_inference()
    before = deepcopy(teacher.state_dict())
    state = State(teacher)
    list(fit(state, pairs(), FlowMatching(), 5, seed=0))
    assert same(before, teacher.state_dict())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not same(before, state.model.state_dict())
    assert not same(before, state.ema.state_dict())


def test_the_average_of_a_state_is_that_of_its_weights():
    state = State(model(), ema=0.2)
    seen = []
    for _ in fit(state, pairs(), FlowMatching(), 20, seed=0):
        seen.append(nn.utils.parameters_to_vector(state.model.parameters()).detach().double())
    edges = (torch.arange(21, dtype=torch.float64) / 20) ** (ema.exponent(0.2) + 1)
    average = nn.utils.parameters_to_vector(state.ema.parameters()).double()
    torch.testing.assert_close(average, edges.diff() @ torch.stack(seen), rtol=1e-4, atol=1e-5)
    assert torch.equal(state.ema.scaling.scale, state.model.scaling.scale)


def nan_loss_at(step):
    """Flow matching that gives one NaN at a step, and the number of steps so far."""
    calls = iter(range(1000))

    def objective(model, pair, generator):
        loss = FlowMatching()(model, pair, generator)
        return loss * torch.where(torch.arange(len(loss)) == 3, math.nan, 1.0) if next(calls) == step else loss

    return objective


def nan_gradient_at(step):
    """Flow matching with a finite loss whose gradient is NaN: the root of zero."""
    calls = iter(range(1000))

    def objective(model, pair, generator):
        loss = FlowMatching()(model, pair, generator)
        return loss + (loss * 0).sqrt() if next(calls) == step else loss

    return objective


@pytest.mark.parametrize("objective", [nan_loss_at, nan_gradient_at])
@pytest.mark.parametrize("step", [0, 3])
def test_a_loop_that_diverges_stops_before_the_weights_move(objective, step):
    state = State(model())
    loop = fit(state, pairs(), objective(step), 10, seed=0)
    assert len(list(islice(loop, step))) == step
    before = copied(state)
    with pytest.raises(Diverged, match=f"step {step + 1}"):
        next(loop)
    assert same(before, copied(state))
    assert all(x.isfinite().all() for x in before.values())


def gradient(state):
    return nn.utils.parameters_to_vector([p.grad for p in state.parameters])


def one_step(clip):
    state = State(model())
    next(fit(state, pairs(), FlowMatching(), 1, seed=0, clip=clip))
    return gradient(state)


def test_long_gradients_are_cut_and_keep_their_direction():
    free = one_step(math.inf)
    for clip in (1e-3, 0.5 * free.norm().item()):
        cut = one_step(clip)
        assert cut.norm().item() == pytest.approx(clip, rel=1e-3)
        assert torch.cosine_similarity(cut, free, dim=0).item() == pytest.approx(1, abs=1e-6)
    assert torch.equal(one_step(1.01 * free.norm().item()), free)


def test_the_gradient_is_that_of_the_mean_loss():
    state, first = State(model()), model()
    next(fit(state, pairs(), FlowMatching(), 1, seed=0))
    FlowMatching()(first, next(pairs()), generator(0, "objective", 0)).mean().backward()
    assert torch.equal(gradient(state), nn.utils.parameters_to_vector([p.grad for p in first.parameters()]))


def test_the_first_step_is_that_of_adamw():
    """Adam's first step is the rate, in the direction of each gradient's sign; decay is apart from it."""
    before = nn.utils.parameters_to_vector(model().parameters()).detach()
    state, _ = trained(1, lr=0.01, weight_decay=0.1)
    step = nn.utils.parameters_to_vector(state.model.parameters()).detach() - before * (1 - 0.01 * 0.1)
    large = gradient(state).abs() > 1e-4
    assert large.float().mean() > 0.5
    torch.testing.assert_close(step[large], -0.01 * gradient(state)[large].sign(), rtol=1e-3, atol=1e-6)


def test_training_learns_a_translation():
    """x1 = x0 + shift: the velocity is the shift everywhere."""
    shift = torch.tensor([2.0, -1.0])

    def draw(n, generator):
        x0 = torch.randn(n, 2, generator=generator)
        return Pair(x0, x0 + shift)

    state = State(Model(MLP(2, 16, 1)), lr=0.02, ema=0.1)
    losses = list(fit(state, batches(draw, 64, seed=0), FlowMatching(), 300, seed=0))
    x = torch.randn(200, 2, generator=generator(0, "test"))
    v = state.ema.velocity(x, torch.linspace(0, 1, 200))
    assert losses[-1] < 0.01 < losses[0]
    torch.testing.assert_close(v, shift.expand(200, 2), rtol=0, atol=0.3)
    assert (v - shift).square().mean() < 0.003


# several averages


def test_every_average_is_what_it_would_be_alone():
    widths = (0.1, 0.02, 0.25)
    state, losses = trained(6, ema=widths)
    assert list(state.averages) == list(widths)
    assert state.ema is state.averages[0.1]
    for width in widths:
        alone, again = trained(6, ema=width)
        assert losses == again
        assert same(state.averages[width].state_dict(), alone.ema.state_dict())
        assert same(state.model.state_dict(), alone.model.state_dict())


def test_each_average_keeps_its_names():
    several, one = State(model(), ema=(0.05, 0.1, 0.12)).tensors(), State(model()).tensors()
    first = [name for name in one if name.startswith("ema.")]
    others = {name.replace("ema.", f"ema-{width}.") for name in first for width in (0.1, 0.12)}
    assert several.keys() - one.keys() == others
    assert not one.keys() - several.keys()


def test_several_averages_are_restored(tmp_path):
    widths = (0.05, 0.1, 0.12)
    whole, _ = trained(9, ema=widths)
    first, _ = trained(4, ema=widths)
    second = State(model(seed=5), ema=widths)
    second.restore(checkpoints.load(checkpoints.save(tmp_path, 4, first.tensors(), keep=1)))
    list(fit(second, pairs(start=4), FlowMatching(), 9, seed=0))
    assert same(second.tensors(), whole.tensors())


def test_an_average_that_was_not_saved_is_not_restored():
    with pytest.raises(InputError, match="another model"):
        State(model(), ema=(0.05, 0.2)).restore(State(model(), ema=(0.05, 0.1)).tensors())


@pytest.mark.parametrize("widths", [(), (0.1, 0.1), 0.3, (0.1, 0.3)])
def test_widths_that_make_no_averages_are_refused(widths):
    with pytest.raises(InputError, match="width"):
        State(model(), ema=widths)


class Counting(nn.Module):
    """A net with a normalisation over the batch, and a buffer that counts its calls in training."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x, t, s, cond=None):
        self.calls += self.training
        return self.layers(x)


@pytest.mark.parametrize("training", [True, False])
def test_averages_have_the_buffers_of_the_model(training):
    state = State(Model(Counting()).train(training), ema=(0.05, 0.2))
    list(fit(state, pairs(), FlowMatching(), 7, seed=0))
    for averaged in state.averages.values():
        averaged(torch.randn(5, 2), torch.rand(5))
        assert averaged.net.calls == 7
        assert all(map(torch.equal, averaged.buffers(), state.model.buffers()))
