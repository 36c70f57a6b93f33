"""What a user may give to the library: names as on the command line, one time for all rows; mistakes are one line."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import flowgen
from flowgen import (
    AutoGuided,
    ExactOT,
    FlowMatching,
    Guided,
    IndependentPairs,
    InputError,
    Model,
    Pair,
    Reflow,
    State,
    batches,
    couplings,
    data,
    fit,
    grids,
    heun,
    likelihood,
    nn,
    predictions,
    sample,
    sample_chunks,
    schedules,
    solve,
    times,
)
from flowgen.config import COUPLINGS, LOSSES, PREDICTIONS, SCHEDULES, TIMES, WEIGHTS
from flowgen.data import streams
from flowgen.repath import repath
from flowgen.samplers import ode

SOURCE = data.Gaussian()
ENDS = IndependentPairs(SOURCE, data.moons())


@pytest.fixture(scope="module")
def model():
    return Model(nn.MLP(dim=2, width=8, depth=1))


def refused(call, *words):
    """The message of an InputError of one line, which has these words."""
    with pytest.raises(InputError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    return text


# names


def test_a_solver_may_be_given_by_name(model):
    grid = grids.uniform(2)
    assert torch.equal(sample(model, SOURCE, 5, grid, "heun"), sample(model, SOURCE, 5, grid, heun))
    x0 = torch.ones(3, 2)
    with torch.no_grad():
        assert torch.equal(solve(model.velocity, x0, grid, "rk4"), solve(model.velocity, x0, grid, ode.rk4))
    pair = Pair(x0, x0)
    rng = torch.Generator()
    assert torch.equal(Reflow(model, grid, "heun")(pair, rng).x1, Reflow(model, grid, heun)(pair, rng).x1)
    gauss = likelihood.log_likelihood(model, SOURCE, x0, grid, "heun")
    assert torch.equal(gauss, likelihood.log_likelihood(model, SOURCE, x0, grid, heun))


def test_a_grid_may_be_a_number_of_even_steps():
    vp = Model(nn.MLP(dim=2, width=8, depth=1), "vp", "noise")
    even = grids.uniform(4, *vp.span)
    assert torch.equal(sample(vp, SOURCE, 5, 4, "euler"), sample(vp, SOURCE, 5, even, "euler"))
    assert torch.equal(sample(vp, SOURCE, 5, even.tolist(), "euler"), sample(vp, SOURCE, 5, even, "euler"))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_path_may_be_given_by_name(name):
    assert Model(nn.MLP(dim=2), name, "data").schedule == SCHEDULES[name]()
    assert repath(Model(nn.MLP(dim=2), schedules.Cosine()), name).schedule == SCHEDULES[name]()


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_target_may_be_given_by_name(name):
    made = PREDICTIONS[name]
    assert Model(nn.MLP(dim=2), "vp", name).prediction == (made() if isinstance(made, type) else made)


@pytest.mark.parametrize("name", [name for name in COUPLINGS if name != "semidiscrete"])
def test_a_coupling_may_be_given_by_name(name):
    named, made = (next(batches(ENDS, 32, seed=0, coupling=coupling)) for coupling in (name, COUPLINGS[name]()))
    assert all(torch.equal(a, b) for a, b in zip(named[:2], made[:2], strict=True))


def test_parts_of_an_objective_may_be_given_by_name():
    for name in TIMES:
        assert FlowMatching(times=name) == FlowMatching(times=TIMES[name]())
    for name in LOSSES:
        assert FlowMatching(distance=name) == FlowMatching(distance=LOSSES[name]())
    for name in WEIGHTS:
        assert FlowMatching(weight=name) == FlowMatching(weight=WEIGHTS[name]())
    assert isinstance(FlowMatching().times, times.Uniform)
    assert couplings.Conditioned("sinkhorn").coupling == couplings.Sinkhorn()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: sample(m, SOURCE, 5, 4, "huen"), ["solver 'huen'", "did you mean heun"]),
        (lambda m: Model(m.net, "vpp"), ["schedule 'vpp'", "did you mean vp"]),
        (lambda m: Model(m.net, prediction="nois"), ["prediction 'nois'", "did you mean noise"]),
        (lambda m: batches(ENDS, 8, seed=0, coupling="exakt"), ["coupling 'exakt'", "did you mean exact"]),
        (lambda m: FlowMatching("ushaped"), ["'ushaped'", "did you mean u-shaped"]),
        (lambda m: FlowMatching(distance="l2"), ["loss 'l2'", "squared"]),
        (lambda m: repath(m, "offsetcosine"), ["did you mean offset-cosine"]),
    ],
)
def test_an_unknown_name_is_told_the_nearest(model, call, words):
    refused(lambda: call(model), *words)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: Model(nn.MLP), ["the net", "class MLP"]),
        (lambda m: Model(m.net, schedules.VP), ["schedule", "class VP", "give VP()"]),
        (lambda m: Model(m.net, "ve", predictions.EDM), ["prediction", "give EDM()"]),
        (lambda m: sample(m, SOURCE, 5, 4, ode.AdamsBashforth2), ["solver", "give AdamsBashforth2()"]),
        (lambda m: batches(ENDS, 8, seed=0, coupling=ExactOT), ["coupling", "give ExactOT()"]),
        (lambda m: FlowMatching(times.UShaped), ["time distribution", "give UShaped()"]),
    ],
)
def test_a_class_in_place_of_its_object_is_refused(model, call, words):
    refused(lambda: call(model), *words)


# numbers


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: sample(m, SOURCE, 0, 4, heun), ["number of samples", "not 0"]),
        (lambda m: sample(m, SOURCE, 1.5, 4, heun), ["number of samples", "not 1.5"]),
        (lambda m: sample(m, SOURCE, "5", 4, heun), ["number of samples", "not '5'"]),
        (lambda m: sample_chunks(m, SOURCE, -3, 4, heun), ["number of samples", "not -3"]),
        (lambda m: sample(m, SOURCE, 5, 4, heun, chunk=0.5), ["chunk", "0.5"]),
        (lambda m: sample(m, SOURCE, 5, 4, heun, seed=None), ["seed", "None"]),
        (lambda m: sample(m, SOURCE, 5, 0, heun), ["at least one step", "not 0"]),
        (lambda m: sample(m, SOURCE, 5, -2, heun), ["at least one step", "not -2"]),
        (lambda m: sample(m, SOURCE, 5, 2.5, heun), ["grid", "grids.uniform(20)"]),
        (lambda m: sample(m, SOURCE, 5, "20", heun), ["grid", "grids.uniform(20)"]),
        (lambda m: sample(m, SOURCE, 5, torch.zeros(2, 2), heun), ["grid", "(2, 2)"]),
        (lambda m: sample(m, SOURCE, 5, [0.0, float("nan")], heun), ["grid", "NaN"]),
        (lambda m: sample(m, SOURCE, 5, grids.uniform(4).flip(0), heun), ["grid", "from the source to the data"]),
        (lambda m: sample(m, SOURCE, 5, 4, 7), ["solver", "an int"]),
        (lambda m: solve(m.velocity, torch.zeros(1, 2), 20, heun), ["grid", "grids.uniform(20)"]),
        (lambda m: grids.uniform(2.5), ["steps", "2.5"]),
        (lambda m: batches(ENDS, 0, seed=0), ["size of a batch", "not 0"]),
        (lambda m: batches(ENDS, 8, seed=None), ["seed", "None"]),
        (lambda m: batches(ENDS, 8, seed=0, start=-1), ["first batch", "-1"]),
        (lambda m: batches(torch.zeros(3, 2), 8, seed=0), ["IndependentPairs(source, data)"]),
        (lambda m: batches(ENDS, 8, seed=0, coupling=3), ["coupling", "an int"]),
        (lambda m: streams.source_rows(SOURCE, 0, 5, seed=0.5), ["seed", "0.5"]),
    ],
)
def test_a_number_of_another_kind_is_refused(model, call, words):
    refused(lambda: call(model), *words)


def test_numbers_of_numpy_are_numbers(model):
    given = sample(model, SOURCE, np.int64(5), grids.uniform(np.int64(4)), heun, seed=np.int64(3))
    assert torch.equal(given, sample(model, SOURCE, 5, grids.uniform(4), heun, seed=3))


# couplings and nets of one's own


def two(pair, generator):
    return pair.x0, pair.x1


def half(pair, generator):
    return pair.take(slice(4))


def bare(pair, generator):
    return Pair(pair.x0, pair.x1)


@pytest.mark.parametrize(
    ("coupling", "words"),
    [(two, ["coupling two", "a tuple"]), (half, ["coupling half", "(8, 2)", "(4, 2)"]), (bare, ["bare", "condition"])],
)
def test_what_a_coupling_returns_is_looked_at(coupling, words):
    def draw(n, generator):
        return Pair(SOURCE.sample(n, generator), SOURCE.sample(n, generator), torch.zeros(n, dtype=torch.int64))

    refused(lambda: next(batches(draw, 8, seed=0, coupling=coupling)), *words)


class Two(torch.nn.Module):
    def forward(self, x, t):
        return x


class Mistaken(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, t, s, cond=None):
        return x + None


def test_a_net_of_another_signature_is_refused():
    refused(lambda: Model(Two()), "net(x, t, s, cond)", "Two.forward is (x, t)")
    refused(lambda: Model(torch.nn.Linear(2, 2)), "net(x, t, s, cond)", "Linear")
    refused(lambda: Model(lambda x, t, s, cond: x), "the net", "torch.nn.Module")


def test_the_error_of_a_net_itself_is_shown():
    with pytest.raises(TypeError, match="NoneType"):
        sample(Model(Mistaken()), SOURCE, 5, 4, heun)


# times


@pytest.mark.parametrize("t", [0.5, np.float32(0.5), torch.tensor(0.5)], ids=["float", "numpy", "tensor"])
def test_one_time_stands_for_all_rows(t):
    model = Model(nn.MLP(dim=2, width=8, depth=1, classes=2), "vp", "noise")
    x, rows, cond = torch.ones(3, 2), torch.full((3,), 0.5), torch.tensor([0, 1, 0])
    fields = (
        model,
        model.velocity,
        model.score,
        Guided(model.velocity, null=2, weight=2.0),
        AutoGuided(model.velocity, model.velocity, 2.0),
    )
    for field in fields:
        assert torch.equal(field(x, t, cond=cond), field(x, rows, cond=cond))
    assert all(torch.equal(a, b) for a, b in zip(model.ends(x, t)[:2], model.ends(x, rows)[:2], strict=True))
    straight = Model(nn.MLP(dim=2, two_times=True))
    assert torch.equal(straight.average(x, t, 1.0), straight.average(x, rows, torch.ones(3)))


def test_times_of_another_shape_are_refused(model):
    x = torch.ones(3, 2)
    for t in (torch.ones(3, 1), torch.ones(2), torch.ones(1)):
        refused(lambda t=t: model.velocity(x, t), "times", "(3,)", str(tuple(t.shape)))
    for t in ("0.5", None, [0.5] * 3):
        refused(lambda t=t: model.velocity(x, t), "a time is a number")


# modules


@pytest.mark.costly
def test_modules_are_there_when_asked_for():
    script = (
        "import flowgen, sys; print('flowgen.runs' in sys.modules, callable(flowgen.runs.load), 'config' in "
        "dir(flowgen), flowgen.config.make_config({'data': 'moons'}).data, flowgen.evaluation.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True", "moons", "flowgen.evaluation"]
    with pytest.raises(AttributeError, match="rnus"):
        flowgen.rnus  # noqa: B018


# nets of another width


@pytest.mark.parametrize("two_times", [False, True])
def test_an_mlp_of_another_width_says_so(two_times):
    wide = Model(nn.MLP(dim=3, two_times=two_times))
    refused(lambda: sample(wide, SOURCE, 5, 4, heun), "MLP", "(3,)", "(2,)")
    refused(lambda: next(fit(State(wide), batches(ENDS, 8, seed=0), FlowMatching(), 1, seed=0)), "(3,)", "(2,)")


@pytest.mark.parametrize(
    "net",
    [
        nn.ResMLP((1, 8, 8), width=8, depth=1),
        nn.UNet((1, 8, 8), channels=32, blocks=1, multipliers=(1,), attention=(), heads=1),
        nn.DiT((1, 8, 8), patch=4, width=8, depth=1, heads=1),
    ],
    ids=lambda net: type(net).__name__,
)
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 16), (64,)])
def test_a_net_of_images_of_another_shape_says_so(net, shape):
    refused(lambda: sample(Model(net), data.Gaussian(shape), 5, 1, heun), type(net).__name__, "(1, 8, 8)", str(shape))


# arguments of another kind


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"objective": FlowMatching}, "the class FlowMatching"),
        ({"objective": "flow"}, "objective"),
        ({"state": nn.MLP(dim=2)}, "State"),
        ({"steps": 1.5}, "steps"),
        ({"clip": 0}, "clip"),
        ({"clip": None}, "clip"),
        ({"rate": 1e-3}, "rate"),
        ({"accumulate": 1.5}, "accumulate"),
    ],
)
def test_fit_names_an_argument_of_another_kind(model, given, words):
    usual = {"state": State(model), "pairs": batches(ENDS, 8, seed=0), "objective": FlowMatching(), "steps": 1}
    refused(lambda: next(fit(**{**usual, **given}, seed=0)), words)


@pytest.mark.parametrize("given", [{"lr": -1.0}, {"lr": "fast"}, {"lr": float("nan")}, {"weight_decay": -1.0}])
def test_a_state_refuses_a_rate_that_is_none(model, given):
    refused(lambda: State(model, **given), *given)


def test_a_net_where_a_model_is_meant_is_refused(model):
    refused(lambda: State(model.net), "Model", "MLP")
    refused(lambda: sample(model.net, SOURCE, 5, 1, heun), "Model", "MLP")
    refused(lambda: sample(State(model), SOURCE, 5, 1, heun), "state.ema")


@pytest.mark.parametrize("cond", [3, [1, 1], torch.tensor(1)])
def test_conditions_that_are_no_tensor_of_rows_are_refused(model, cond):
    refused(lambda: sample(model, SOURCE, 2, 1, heun, cond=cond), "cond")


def test_steps_may_be_numbers_of_numpy(model):
    assert torch.equal(sample(model, SOURCE, 5, np.int64(3), heun), sample(model, SOURCE, 5, 3, heun))


def test_the_shape_of_a_gaussian_is_a_tuple():
    refused(lambda: data.Gaussian(2), "(2,)", "not 2")


def test_a_path_and_a_divergence_take_one_time_for_all_rows(model):
    pair, half = Pair(torch.zeros(3, 2), torch.ones(3, 2)), torch.full((3,), 0.5)
    assert torch.equal(schedules.Linear().at(pair, 0.5).x, schedules.Linear().at(pair, half).x)
    refused(lambda: schedules.Linear().at(pair, torch.tensor([0.5])), "(3,)", "(1,)")
    at_once = likelihood.divergence(model.velocity, pair.x1, 0.5)[1]
    assert torch.equal(at_once, likelihood.divergence(model.velocity, pair.x1, half)[1])


@pytest.mark.parametrize("coupling", [None, "exact"])
def test_what_a_function_draws_is_looked_at(coupling):
    def first(draw):
        return lambda: next(batches(draw, 8, seed=0, coupling=coupling, threads=0))

    refused(first(lambda n, g: (torch.zeros(n, 2), torch.zeros(n, 2))), "Pair", "tuple")
    refused(first(lambda n, g: Pair(torch.zeros(5, 2), torch.zeros(5, 2))), "8", "5")
    refused(first(lambda n, g: Pair(torch.zeros(n, 2), torch.zeros(n, 1))), "(8, 2)", "(8, 1)")
