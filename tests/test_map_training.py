"""The training of flow maps: the laws of their times, a share that falls as it goes on, and what nets learn."""

import math
from copy import deepcopy
from itertools import count, pairwise

import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import nn

from flowgen import data, euler, metrics
from flowgen.core import WHOLE, InputError, Pair, generator
from flowgen.guidance import Guided
from flowgen.losses import Squared
from flowgen.model import Model
from flowgen.nn import MLP
from flowgen.objectives import FlowMatching, Splittable, StepwiseObjective
from flowgen.objectives.flow_maps import (
    AlphaFlow,
    Annealed,
    EndPoint,
    MeanFlow,
    OfPairs,
    OfTeacher,
    Shortcut,
)
from flowgen.samplers.flow_map import FlowMapStep
from flowgen.samplers.grids import uniform
from flowgen.sampling import sample
from flowgen.times import Intervals, LogNormal, Steps, ToData, Uniform
from flowgen.training.loop import State, fit

pytestmark = pytest.mark.journey

# times


@pytest.mark.parametrize("diagonal", [0.0, 0.25, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7, 512])
def test_so_many_of_every_batch_are_on_the_diagonal(n, diagonal):
    for seed in range(5):
        t, s = Intervals(Uniform(), diagonal)(n, generator(seed, "times"))
        assert (s >= t).all()
        assert (s == t).sum() == round(diagonal * n)


def test_the_diagonal_is_independent_of_the_place():
    still = torch.stack([torch.eq(*Intervals(diagonal=0.25)(8, generator(k, "times"))) for k in range(4000)])
    assert chisquare(still.sum(0).numpy()).pvalue > 1e-3
    together = still.double().T.corrcoef() - torch.eye(8)
    assert (together + (1 - torch.eye(8)) / 7).abs().max() < 5 / 4000**0.5  # two of eight: each makes others rarer


@pytest.fixture
def time_pairs(known_times):
    """A time law that flow maps take: any but those of noise."""
    if isinstance(known_times.distribution, LogNormal):
        pytest.skip("its times are those of a path")
    return known_times


def test_intervals_are_between_two_ordered_times(time_pairs):
    t, s = Intervals(time_pairs.distribution, 0.0)(100_000, generator(0, "times"))
    assert (t.dtype, s.dtype) == (torch.float32, torch.float32)
    assert kstest(t.double().numpy(), lambda x: 1 - (1 - time_pairs.cdf(x)) ** 2).pvalue > 1e-3
    assert kstest(s.double().numpy(), lambda x: time_pairs.cdf(x) ** 2).pvalue > 1e-3


def test_the_times_of_an_interval_are_apart():
    """Of two uniform times: the gap has the density 2 (1 - gap), and is no function of the batch."""
    t, s = Intervals(Uniform(), 0.0)(100_000, generator(0, "times"))
    assert kstest((s - t).double().numpy(), lambda gap: 1 - (1 - gap) ** 2).pvalue > 1e-3


def test_a_time_to_the_data_is_of_its_law(time_pairs):
    t, s = ToData(time_pairs.distribution)(100_000, generator(0, "times"))
    assert (s == 1).all()
    assert kstest(t.double().numpy(), time_pairs.cdf).pvalue > 1e-3


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 64])
def test_steps_are_those_of_the_grid_and_each_comes_as_often(steps):
    t, s = Steps(steps)(64_000, generator(0, "times"))
    grid = uniform(steps).float()
    step = torch.searchsorted(grid, t + 0.1 / steps) - 1
    torch.testing.assert_close(t, grid[step], rtol=1e-6, atol=0)
    torch.testing.assert_close(s, grid[step + 1], rtol=1e-6, atol=0)
    assert steps == 1 or chisquare(step.bincount(minlength=steps).numpy()).pvalue > 1e-3


LAWS = {"intervals": Intervals(), "to data": ToData(), "steps": Steps(5)}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_times_are_a_function_of_the_generator(law, global_state_untouched):
    first, second, other = (torch.stack(law(64, generator(seed, "times"))) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 1


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_beyond_0_and_1_is_refused(share):
    with pytest.raises(InputError, match="share"):
        Intervals(diagonal=share)
    for refused in (share, 0.0):
        with pytest.raises(InputError, match="share"):
            AlphaFlow(share=refused)
        with pytest.raises(InputError, match="share"):
            Annealed(AlphaFlow(), 10, refused)


def test_a_grid_without_steps_is_refused():
    with pytest.raises(InputError, match="at least one step"):
        Steps(0)


# a share that falls


@pytest.mark.parametrize("last", [1.0, 0.5, 0.3, 2.0**-7])
@pytest.mark.parametrize("steps", [1, 3, 100, 12345])
def test_the_share_falls_from_1_in_halves_to_the_last(last, steps):
    annealed = Annealed(AlphaFlow(), steps, last)
    shares = [annealed.share(step) for step in range(steps)]
    seen = list(dict.fromkeys(shares))
    assert shares[0] == 1
    assert min(shares) >= last
    assert all(half == max(last, one / 2) for one, half in pairwise(seen) if steps >= 100)
    if steps >= 100:
        assert shares[-1] == last
        lengths = [shares.count(share) for share in seen]
        assert max(lengths) - min(lengths) <= 1
    assert annealed.share(10 * steps) == last


def test_the_objective_of_a_step_is_that_of_its_share():
    inner = AlphaFlow(Intervals(Uniform(), 0.1), distance=Squared(), share=0.7)
    annealed = Annealed(inner, 100)
    assert isinstance(annealed, StepwiseObjective)
    assert annealed.at(60) == annealed.at(60) == AlphaFlow(inner.intervals, inner.velocity, inner.distance, 1 / 16)
    assert annealed.objective is inner
    assert inner.share == 0.7


SIZE = 12
OBJECTIVES = {
    "meanflow": MeanFlow(),
    "shortcut": Shortcut(),
    "alpha-flow": Annealed(AlphaFlow(), 9),
    "consistency": Annealed(AlphaFlow(ToData()), 9),
    "endpoint": EndPoint(),
}


@pytest.fixture(params=OBJECTIVES.values(), ids=OBJECTIVES)
def objective(request):
    return request.param


def stream(part=WHOLE, start=0):
    for step in count(start):
        x0, z = torch.randn(2, SIZE, 2, generator=generator(0, "pairs", step), dtype=torch.float64)
        yield Pair(x0, z / 2 + 2).take(part.rows(SIZE))


def fresh():
    return State(Model(MLP(2, 16, 2, two_times=True)).double(), lr=0.01)


def test_training_that_was_left_goes_on_bit_for_bit(objective):
    whole, parts, other = fresh(), fresh(), fresh()
    losses = list(fit(whole, stream(), objective, 9, seed=0))
    begun = list(fit(parts, stream(), objective, 4, seed=0))
    other.restore(deepcopy(parts.tensors()))
    assert losses == begun + list(fit(other, stream(start=4), objective, 9, seed=0))
    assert all(torch.equal(x, whole.tensors()[name]) for name, x in other.tensors().items())


@pytest.mark.parametrize("accumulate", [2, 5])
def test_parts_of_a_batch_have_the_losses_of_all(objective, accumulate):
    whole, parts = fresh(), fresh()
    at = objective.at(0) if isinstance(objective, StepwiseObjective) else objective
    assert isinstance(at, Splittable)
    losses = list(fit(whole, stream(), objective, 9, seed=0))
    again = list(fit(parts, stream(), objective, 9, seed=0, accumulate=accumulate))
    torch.testing.assert_close(torch.tensor(again), torch.tensor(losses))
    for name, x in parts.tensors().items():
        torch.testing.assert_close(x, whole.tensors()[name], rtol=1e-7, atol=1e-9)


def test_each_step_is_of_its_own_objective():
    """A step at a time, by the objective of that step, is the same as all of them by the one that changes."""
    whole, single = fresh(), fresh()
    annealed = OBJECTIVES["alpha-flow"]
    losses = list(fit(whole, stream(), annealed, 9, seed=0))
    for step, loss in enumerate(losses):
        assert list(fit(single, stream(start=step), annealed.at(step), step + 1, seed=0)) == [loss]


# nets of two times


def nets(classes=0):
    one = MLP(2, 16, 2, classes=classes, seed=3)
    two = MLP(2, 16, 2, classes=classes, two_times=True, seed=3)
    return one, two


def test_nets_of_two_times_touch_no_global_state(global_state_untouched):
    nets()


@pytest.mark.parametrize("classes", [0, 3])
def test_a_net_of_two_times_starts_as_that_of_one(classes, normal):
    one, two = nets(classes)
    x, (t, s), cond = normal("x", 20, 2).float(), normal("times", 2, 20).float().sigmoid(), torch.arange(20) % 4
    assert torch.equal(two(x, t, t, cond), one(x, t, t, cond))
    assert torch.equal(two(x, t, s, cond), one(x, t, t, cond))
    assert torch.equal(two(x, t, None, cond), one(x, t, t, cond))
    others = set(two.state_dict()) - set(one.state_dict())
    assert others == {"delta.weight"}
    assert all(torch.equal(x, two.state_dict()[name]) for name, x in one.state_dict().items())


def test_the_second_time_is_learned_off_the_diagonal(normal):
    one, two = nets()
    x, (t, s) = normal("x", 20, 2).float(), normal("times", 2, 20).float().sigmoid()
    two(x, t, t).square().sum().backward()
    assert not two.delta.weight.grad.any()
    two(x, t, s).square().sum().backward()
    assert two.delta.weight.grad.any()
    nn.init.normal_(two.delta.weight, generator=generator(0, "gap"))
    assert torch.equal(two(x, t, t), one(x, t, t))
    assert (two(x, t, s) - two(x, t, t)).abs().max() > 1e-3
    moved = two(x, t, s + 0.1) - two(x, t, s)
    assert (moved.abs().amax(1) > 1e-5).all()


def test_a_flow_map_predicts_the_velocity(usable, recorder):
    schedule, prediction = usable
    x, t = torch.zeros(3, 2), torch.full((3,), 0.5)
    if prediction.__name__ == "velocity":
        assert Model(recorder, schedule, prediction).average(x, t, t).shape == (3, 2)
        assert recorder.seen[2] is t
    else:
        with pytest.raises(InputError, match=f"velocity, not {prediction.__name__}"):
            Model(recorder, schedule, prediction).average(x, t, t)


# what is learned

CENTRES = torch.tensor([[2.0, 0.0], [-1.0, 1.8], [-1.0, -1.8]])
LEARNT = 500
FROM_SCRATCH = {
    "meanflow": MeanFlow(Intervals(Uniform())),
    "shortcut": Shortcut(Intervals(Uniform())),
    "alpha-flow": Annealed(AlphaFlow(Intervals(Uniform())), LEARNT, 1 / 16),
    "consistency": Annealed(AlphaFlow(ToData(Uniform())), LEARNT, 1 / 16),
}


def three_clouds(n, rng):
    return CENTRES[torch.randint(3, (n,), generator=rng)] + 0.3 * torch.randn(n, 2, generator=rng)


def learned(objective, solver):
    """How far samples of one step are from the data, by a small net."""
    rngs = (generator(0, "clouds", step) for step in count())
    pairs = (Pair(torch.randn(128, 2, generator=rng), three_clouds(128, rng)) for rng in rngs)
    state = State(Model(MLP(2, 64, 2, two_times=True)), lr=0.003, ema=0.1)
    for _ in fit(state, pairs, objective, LEARNT, seed=0, clip=1.0):
        pass
    made = sample(state.ema, data.Gaussian((2,)), 2000, uniform(1), solver)
    return metrics.energy_distance(made, three_clouds(2000, generator(0, "truth")))


@pytest.fixture(scope="module")
def of_a_flow():
    return learned(FlowMatching(), euler)


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_one_jump_is_nearer_to_the_data_than_one_step_of_a_flow(name, of_a_flow):
    """The flow's step is 1.16 from the data, two sets of which are 0.11 apart; a jump is 0.25 to 0.35."""
    assert learned(FROM_SCRATCH[name], FlowMapStep()) < 0.5 * of_a_flow


BY_VELOCITY = {
    "meanflow": MeanFlow,
    "shortcut": Shortcut,
    "alpha-flow": AlphaFlow,
    "consistency": lambda velocity: AlphaFlow(ToData(), velocity),
}


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("made", BY_VELOCITY.values(), ids=BY_VELOCITY)
def test_an_mlp_learns_in_bfloat16_as_in_float32(made, guidance, normal):
    model = Model(MLP(2, 16, 2, classes=3, two_times=True))
    pair = Pair(*(normal(end, 32, 2).float() for end in "01"), torch.arange(32) % 4)
    for velocity in (OfPairs(guidance, 3), OfTeacher(Guided(model.velocity, 3, guidance))):
        wide, half = (
            list(fit(State(model), iter([pair] * 3), made(velocity=velocity), 3, seed=0, precision=precision))
            for precision in (None, torch.bfloat16)
        )
        assert half == pytest.approx(wide, rel=0.1)


def test_where_no_diagonal_is_learned_it_is_not_asked(normal):
    """MeanFlow to the data alone goes along the pair, which is the velocity in the mean."""
    asked = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = MLP(2, 16, 2, two_times=True)

        def forward(self, x, t, s, cond):
            asked.append(bool((s == t).any()))
            return self.net(x, t, s, cond)

    pair, model = Pair(*(normal(end, 32, 2).float() for end in "01")), Model(Net())
    for intervals, diagonal in ((ToData(Uniform()), False), (Intervals(Uniform()), True)):
        asked.clear()
        MeanFlow(intervals)(model, pair, generator(0, "draws"))
        assert any(asked) == diagonal


def test_guidance_by_pairs_needs_the_null_label():
    with pytest.raises(InputError, match="the label that says that there is none"):
        OfPairs(2.0)
