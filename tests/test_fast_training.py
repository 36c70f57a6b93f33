"""Training at full speed: batches in parts, half precision, rates, layouts and compilation change nothing else."""

import math
from copy import deepcopy
from itertools import count, islice

import numpy as np
import pytest
import torch
from torch import nn

from flowgen import checkpoints
from flowgen.core import InputError, Pair, generator
from flowgen.model import Model
from flowgen.nn import MLP, ResMLP
from flowgen.objectives import FlowMatching
from flowgen.times import Stratified
from flowgen.training.loop import Diverged, State, channels_last, compile_net, fit
from flowgen.training.optim import ConstantRate, CosineRate


def model(seed=0):
    return Model(MLP(2, 16, 2, seed=seed))


def pairs(start=0):
    for step in count(start):
        x0, x1 = torch.randn(2, 32, 2, generator=generator(0, "pairs", step))
        yield Pair(x0, x1 + 1)


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def copied(state):
    return {name: x.clone() for name, x in state.tensors().items()}


def gradient(state):
    return nn.utils.parameters_to_vector([p.grad for p in state.parameters])


# a batch that is split


def doubles(size=24, bad=None):
    """Pairs in double precision; that of step `bad` has an infinite last row."""
    for step in count():
        x0, x1 = torch.randn(2, size, 2, generator=generator(0, "doubles", step), dtype=torch.float64)
        x1[-1] *= math.inf if step == bad else 1
        yield Pair(x0, x1 + 1)


def split(accumulate, objective, **options):
    state = State(model().double(), weight_decay=0.1)
    losses = list(fit(state, doubles(), objective, 5, seed=0, clip=2.0, accumulate=accumulate, **options))
    return {"losses": torch.tensor(losses), **state.tensors()}


def assert_close(left, right, **tolerance):
    assert left.keys() == right.keys()
    for name, x in left.items():
        torch.testing.assert_close(x, right[name], **tolerance)


@pytest.mark.costly
@pytest.mark.parametrize("accumulate", [2, 5, 24])
def test_accumulated_gradients_are_those_of_the_batch(known_times, accumulate):
    objective = FlowMatching(known_times.distribution)
    assert_close(split(accumulate, objective), split(1, objective), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("accumulate", [3, 7])
def test_accumulated_gradients_with_a_bridge_are_the_batchs(bridge, accumulate):
    objective = FlowMatching(Stratified(), bridge)
    assert_close(split(accumulate, objective), split(1, objective), rtol=1e-9, atol=1e-9)


def test_a_part_that_diverges_stops_before_the_weights_move():
    state = State(model().double())
    loop = fit(state, doubles(bad=2), FlowMatching(), 9, seed=0, accumulate=3)
    assert len(list(islice(loop, 2))) == 2
    before = copied(state)
    with pytest.raises(Diverged, match="step 3"):
        next(loop)
    assert same(before, copied(state))


class Watched(nn.Module):
    """A net that keeps the rows of each call."""

    def __init__(self):
        super().__init__()
        self.weight, self.rows = nn.Parameter(torch.ones(())), []

    def forward(self, x, t, s, cond=None):
        self.rows.append(len(x))
        return self.weight * x


def test_no_part_of_a_batch_is_larger_than_it_must_be():
    state = State(Model(Watched()))
    next(fit(state, pairs(), FlowMatching(), 1, seed=0, accumulate=5))
    assert sorted(state.model.net.rows) == [6, 6, 6, 7, 7]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"accumulate": 0}, "accumulate"),
        ({"accumulate": 33}, "32 rows"),
        ({"precision": torch.float16}, "bfloat16"),
        ({"precision": torch.float32}, "bfloat16"),
    ],
)
def test_options_that_make_no_step_are_refused(options, match):
    state = State(model())
    before = copied(state)
    with pytest.raises(InputError, match=match):
        next(fit(state, pairs(), FlowMatching(), 1, seed=0, **options))
    assert same(before, copied(state))


def test_a_function_that_draws_for_itself_cannot_be_accumulated():
    def objective(model, pair, generator):
        return FlowMatching()(model, pair, generator)

    with pytest.raises(InputError, match="draw and loss"):
        next(fit(State(model()), pairs(), objective, 1, seed=0, accumulate=2))


# half precision


class Spy(nn.Module):
    """A net that keeps its inputs and the type of its last matrix product."""

    def __init__(self):
        super().__init__()
        self.net, self.seen, self.types = MLP(2, 32, 2), [], set()

    def forward(self, x, t, s, cond=None):
        hook = self.net.layers[-1].register_forward_hook(lambda layer, inputs, y: self.types.add(y.dtype))
        y = self.net(x, t, s)
        hook.remove()
        self.seen.append((x, t, s))
        return y


@pytest.mark.parametrize("accumulate", [1, 2])
def test_half_precision_is_near_and_leaves_times_and_ends_alone(accumulate):
    states, losses = [], []
    for precision in (None, torch.bfloat16):
        states.append(State(Model(Spy())))
        losses += [
            list(fit(states[-1], pairs(), FlowMatching(), 8, seed=0, accumulate=accumulate, precision=precision))
        ]
    full, half = (state.model.net for state in states)
    assert (full.types, half.types) == ({torch.float32}, {torch.bfloat16})
    for inputs, others in zip(full.seen, half.seen, strict=True):
        assert all(x.dtype == torch.float32 and torch.equal(x, y) for x, y in zip(inputs, others, strict=True))
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert all(x.dtype == torch.float32 for name, x in states[1].tensors().items() if name != "step")


def test_no_grad_leaves_gradients_of_half_precision():
    def objective(model, pair, generator):
        with torch.no_grad():
            FlowMatching()(model, pair, generator)
        return FlowMatching()(model, pair, generator)

    made = []
    for precision in (None, torch.bfloat16):
        state = State(model())
        next(fit(state, pairs(), objective, 1, seed=0, precision=precision))
        made.append(gradient(state))
    assert (made[0] - made[1]).norm() < 0.05 * made[0].norm()


# the learning rate


def test_a_constant_rate_rises_on_a_line_and_stays():
    rate = ConstantRate(0.2, warmup=4)
    assert [rate(step) for step in (0, 1, 2, 3, 4, 1000)] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2, 0.2])
    assert {ConstantRate(0.2)(step) for step in range(9)} == {0.2}


def test_a_cosine_rate_has_its_known_values():
    rate = CosineRate(0.3, steps=110, warmup=10, floor=0.1)
    known = {0: 0.03, 9: 0.3, 10: 0.3, 35: 0.2 + 0.1 * 0.5**0.5, 60: 0.2, 85: 0.2 - 0.1 * 0.5**0.5, 110: 0.1, 500: 0.1}
    assert [rate(step) for step in known] == pytest.approx(list(known.values()))


@pytest.mark.parametrize(
    "rate", [CosineRate(1.0, 50), CosineRate(1.0, 50, 20), CosineRate(1.0, 50, 49), CosineRate(1.0, 50, 5, 0.5)]
)
def test_a_cosine_rate_rises_and_then_falls(rate):
    rates = np.array([rate(step) for step in range(rate.steps)])
    assert (rates[rate.warmup :] > rate.floor).all()
    assert rates.min() > 0
    assert rates.max() == 1
    assert np.diff(rates[: rate.warmup]) == pytest.approx(1 / max(1, rate.warmup))
    assert (np.diff(rates[rate.warmup :]) < 0).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConstantRate(-1.0),
        lambda: ConstantRate(math.nan),
        lambda: ConstantRate(math.inf),
        lambda: ConstantRate(1.0, warmup=-1),
        lambda: CosineRate(1.0, 10, 10),
        lambda: CosineRate(1.0, 10, -1),
        lambda: CosineRate(1.0, 0),
        lambda: CosineRate(1.0, 10, floor=1.1),
        lambda: CosineRate(1.0, 10, floor=-0.1),
        lambda: CosineRate(math.nan, 10),
    ],
)
def test_rates_that_make_no_schedule_are_refused(make):
    with pytest.raises(InputError, match="rate needs"):
        make()


def test_a_step_is_as_long_as_its_rate():
    """Adam moves every weight of large gradient by the rate at its first step; without a rate, by the state's."""
    for rate, length in ((lambda step: 0.25, 0.25), (ConstantRate(0.4, warmup=8), 0.05), (None, 0.01)):
        state = State(model(), lr=0.01)
        before = nn.utils.parameters_to_vector(state.parameters).detach()
        next(fit(state, pairs(), FlowMatching(), 1, seed=0, rate=rate))
        moved = (nn.utils.parameters_to_vector(state.parameters).detach() - before).abs()
        torch.testing.assert_close(moved.median(), torch.tensor(length), rtol=1e-3, atol=0)


def test_a_rate_is_asked_for_each_step_by_its_number():
    asked, rate = [], CosineRate(0.02, 9, warmup=3)

    def listening(step):
        asked.append(step)
        return rate(step)

    whole, first = State(model()), State(model())
    losses = list(fit(whole, pairs(), FlowMatching(), 9, seed=0, rate=listening))
    assert asked == list(range(9))
    before = list(fit(first, pairs(), FlowMatching(), 4, seed=0, rate=rate))
    second = State(model(seed=3))
    second.restore(copied(first))
    assert before + list(fit(second, pairs(start=4), FlowMatching(), 9, seed=0, rate=rate)) == losses
    assert same(second.tensors(), whole.tensors())


# layouts and compilation


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, x, t, s, cond=None):
        return self.layers(x)


def images(start=0):
    for step in count(start):
        x0, x1 = torch.randn(2, 6, 3, 5, 4, generator=generator(0, "images", step), dtype=torch.float64)
        yield Pair(x0, x1)


def test_channels_last_is_another_layout_of_the_same_training(tmp_path):
    plain, last = State(Model(Convolutions()).double()), State(channels_last(Model(Convolutions()).double()))
    for state in (plain, last):
        list(fit(state, images(), FlowMatching(), 4, seed=0, accumulate=2))
    assert_close(last.tensors(), plain.tensors(), rtol=1e-9, atol=1e-9)
    saved = checkpoints.save(tmp_path, 4, last.tensors(), keep=1)
    assert same(checkpoints.load(saved), last.tensors())
    restored = State(channels_last(Model(Convolutions()).double()))
    restored.restore(checkpoints.load(saved))
    for state in (last, restored):
        list(fit(state, images(4), FlowMatching(), 7, seed=0))
        weights = [state.model.net.layers[2].weight, state.ema.net.layers[2].weight, state.optimizer.moments[2].exp_avg]
        assert all(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous() for x in weights)
    assert same(restored.tensors(), last.tensors())


def test_a_compiled_network_trains_and_keeps_its_names(tmp_path):
    calls = []

    def backend(graph, inputs):
        return lambda *arguments: calls.append(1) or graph(*arguments)

    plain, compiled = State(model()), State(model())
    compile_net(compiled, backend)
    losses = list(fit(compiled, pairs(), FlowMatching(), 3, seed=0))
    assert len(calls) == 3
    assert losses == list(fit(plain, pairs(), FlowMatching(), 3, seed=0))
    assert same(compiled.tensors(), plain.tensors())
    plain.restore(checkpoints.load(checkpoints.save(tmp_path, 3, compiled.tensors(), keep=1)))
    State(compiled.ema), deepcopy(compiled.model)


def test_dropout_is_a_function_of_seed_and_step(global_state_untouched):
    """What is dropped at a step is what was dropped there in a loop that was never stopped."""

    def losses(state, steps):
        return list(fit(state, pairs(state.step), FlowMatching(), steps, seed=0))

    def dropping(share):
        return State(Model(ResMLP((2,), width=16, depth=1, dropout=share, seed=0)), lr=1e-2)

    whole = losses(dropping(0.5), 6)
    first, second = dropping(0.5), dropping(0.5)
    begun = losses(first, 4)
    second.restore(first.tensors())
    assert begun + losses(second, 6) == whole
    assert losses(dropping(0.0), 6)[2:] != whole[2:]  # gates open at the first step: then what is dropped is seen
