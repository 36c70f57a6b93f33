"""What is the same on a GPU: every law here runs on the CPU, and with the marker `gpu` on cuda where there is one.

It uses no fixture of conftest.py, and packages beyond torch and numpy only where a law needs them, so that

    python -m pytest --noconftest -o addopts= -m gpu tests/test_gpu.py

runs it on a machine on which flowgen is not installed.
"""

from copy import deepcopy
from itertools import islice

import pytest
import torch
from torch import nn

from flowgen import (
    checkpoints,
    couplings,
    guidance,
    likelihood,
    metrics,
    objectives,
    perceptual,
    predictions,
    repath,
    samplers,
    sampling,
    schedules,
    sde,
    times,
)
from flowgen.core import Pair, generator
from flowgen.couplings import ExactOT, Independent, MultiscaleOT, Semidiscrete, Sinkhorn
from flowgen.data import Gaussian, Scaled, Scaling, TensorDataset, eight_gaussians, moons
from flowgen.data.streams import source_rows
from flowgen.model import Model
from flowgen.nn import MLP, Classifier, DiT, NoisyClassifier, ResMLP, UNet, fit_classifier, seeded
from flowgen.objectives import classifier, flow_maps
from flowgen.pairs import IndependentPairs, Pool, batches, prefetch
from flowgen.pairs.reflow import Inversion, Reflow
from flowgen.paths import bridge
from flowgen.samplers import flow_map, ode
from flowgen.samplers.flow_map import ConsistencySampler
from flowgen.samplers.grids import uniform
from flowgen.sampling import grid_of, sample, solve
from flowgen.times import Intervals
from flowgen.training.loop import State, channels_last, compile_net, fit
from flowgen.training.optim import CosineRate

pytestmark = pytest.mark.journey

CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-3, "atol": 1e-4}
"""What float32 sums in another order may differ by after a few steps."""
IMAGE, CLASSES = (1, 8, 8), 3


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Each device in turn; a GPU convolves in whole float32, as the CPU that it is compared with."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield torch.device(request.param)


def normal(stream, *shape, **options):
    return torch.randn(*shape, generator=generator(0, stream), **options)


def moved_out(net):
    """The net with layers that begin at zero filled: what it predicts depends on all that it reads."""
    with torch.no_grad():
        for index, weight in enumerate(net.parameters()):
            if not weight.any():
                weight.copy_(0.1 * normal(f"weight {index}", *weight.shape))
    return net


def unet():
    pytest.importorskip("torchcfm")
    return UNet(IMAGE, CLASSES, channels=32, blocks=1, multipliers=(1, 2), attention=(2,), heads=2)


NETS = {
    "mlp": lambda: MLP(2, 16, 2),
    "mlp with labels": lambda: MLP(2, 16, 2, classes=CLASSES),
    "resmlp": lambda: ResMLP((2,), classes=CLASSES, width=16, depth=1),
    "unet": unet,
    "dit": lambda: DiT(IMAGE, CLASSES, width=16, depth=2, heads=2),
}


def made(name, schedule=None, prediction=predictions.velocity):
    net = moved_out(NETS[name]())
    return Model(net, schedule, prediction, Scaling.of_range(0, 1) if name in ("unet", "dit") else None)


def shape(name):
    return IMAGE if name in ("unet", "dit") else (2,)


def labels(rows):
    return torch.arange(rows) % CLASSES


def stored(name, rows=40):
    """Rows of data in model units, with labels."""
    return TensorDataset(0.5 * normal("data", rows, *shape(name)) + 0.5, labels(rows))


def pairs(name, device, start=0):
    """The pairs as a training reads them: sources from the CPU, data that lie on the device."""
    ends = IndependentPairs(Gaussian(shape(name)), Scaled(stored(name).to(device), Scaling().to(device)))
    return batches(ends, 16 if shape(name) == (2,) else 4, seed=0, start=start)


def trained(name, device, objective=None, steps=3, **options):
    """The losses of a few steps, and the state after them."""
    state = State(made(name).to(device), ema=(0.05, 0.1))
    losses = list(fit(state, pairs(name, device), objective or objectives.FlowMatching(), steps, seed=0, **options))
    return losses, state


def close(got, wanted, **tolerance):
    torch.testing.assert_close(got.cpu(), wanted.cpu(), **{**CLOSE, **tolerance})


def close_states(got, wanted):
    """Gradients that are nothing but rounding, as of a bias that attention ignores, still move weights by a rate."""
    got, wanted = got.tensors(), wanted.tensors()
    assert got.keys() == wanted.keys()
    for name, x in got.items():
        close(x, wanted[name], atol=1e-4 if name.startswith("optimizer.") else 5e-3)


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(x.cpu(), right[name].cpu()) for name, x in left.items())


# training


@pytest.mark.parametrize("name", NETS)
def test_a_device_trains_as_the_cpu_does(name, device):
    """Losses, weights, both averages and the optimizer's moments."""
    options = {"clip": 1.0, "rate": CosineRate(1e-3, 10, 2)}
    (losses, state), (expected, other) = trained(name, device, **options), trained(name, CPU, **options)
    assert losses == pytest.approx(expected, rel=1e-3)
    assert all(x.device.type == device.type for key, x in state.tensors().items() if key != "step")
    close_states(state, other)


OBJECTIVES = {
    "stratified times": objectives.FlowMatching(times.Stratified()),
    "times of the papers": objectives.FlowMatching(times.LogitNormal()),
    "bridge": objectives.FlowMatching(bridge=bridge.ConstantBridge(0.3)),
    "noise of a bridge": objectives.BridgeNoise(bridge.BrownianBridge(0.7)),
    "meanflow": flow_maps.MeanFlow(),
    "guided meanflow": flow_maps.MeanFlow(velocity=flow_maps.OfPairs(2.0, CLASSES)),
    "shortcut": flow_maps.Shortcut(),
    "alpha-flow": flow_maps.AlphaFlow(Intervals()),
    "annealed": flow_maps.Annealed(flow_maps.AlphaFlow(), 4),
    "end point": flow_maps.EndPoint(),
    "premetric": perceptual.PerceptualLoss(lambda x: x.flatten(1)[:, :2]),
}


@pytest.mark.parametrize("name", ["mlp with labels", "dit"])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_every_objective_is_the_same_there(objective, name, device):
    losses, expected = (trained(name, where, objective, 2)[0] for where in (device, CPU))
    assert losses == pytest.approx(expected, rel=2e-3)


@pytest.mark.costly
def test_a_flow_map_of_images_has_its_derivative_there(device):
    losses, expected = (trained("unet", where, flow_maps.MeanFlow(), 2)[0] for where in (device, CPU))
    assert losses == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("name", ["mlp", "dit"])
def test_gradients_add_up_there(name, device):
    (losses, state), (expected, other) = trained(name, device, accumulate=3), trained(name, CPU)
    assert losses == pytest.approx(expected, rel=1e-3)
    close_states(state, other)


class Spy(nn.Module):
    """A net that keeps the types and devices of its inputs, and the type of its last product."""

    def __init__(self):
        super().__init__()
        self.net, self.seen, self.products = MLP(2, 16, 2), set(), set()

    def forward(self, x, t, s, cond=None):
        self.seen |= {(z.dtype, z.device.type) for z in (x, t, s)}
        hook = self.net.layers[-1].register_forward_hook(lambda layer, inputs, y: self.products.add(y.dtype))
        y = self.net(x, t, s)
        hook.remove()
        return y


def test_half_precision_keeps_times_and_weights_in_float32(device):
    state = State(Model(Spy()).to(device))
    losses = list(fit(state, pairs("mlp", device), objectives.FlowMatching(), 4, seed=0, precision=torch.bfloat16))
    net = state.model.net
    assert (net.seen, net.products) == ({(torch.float32, device.type)}, {torch.bfloat16})
    assert losses == pytest.approx(trained_spy(device), rel=0.03)
    assert all(x.dtype == torch.float32 for key, x in state.tensors().items() if key != "step")


def trained_spy(device):
    return list(fit(State(Model(Spy()).to(device)), pairs("mlp", device), objectives.FlowMatching(), 4, seed=0))


@pytest.mark.costly
@pytest.mark.parametrize("name", ["unet", "dit"])
def test_half_precision_is_near_for_images(name, device):
    (half, _), (full, _) = trained(name, device, precision=torch.bfloat16), trained(name, device)
    assert half == pytest.approx(full, rel=0.05)


@pytest.mark.costly
@pytest.mark.parametrize(
    ("name", "precision"),
    [("mlp with labels", None), ("dit", torch.bfloat16)],
    ids=["mlp", "dit in half"],
)
def test_a_compiled_net_trains_as_it_is(name, precision, device):
    torch.compiler.reset()
    state = State(made(name).to(device))
    compile_net(state, "inductor" if device.type == "cuda" else "eager")
    losses = list(fit(state, pairs(name, device), objectives.FlowMatching(), 3, seed=0, precision=precision))
    plain, _ = trained(name, device, steps=3, precision=precision)
    assert losses == pytest.approx(plain, rel=1e-3 if precision is None else 0.03)


@pytest.mark.costly
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_channels_last_is_another_layout_there(precision, device):
    states, losses = [], []
    for layout in (lambda model: model, channels_last):
        states.append(State(layout(made("unet").to(device))))
        read = pairs("unet", device)
        losses.append(list(fit(states[-1], read, objectives.FlowMatching(), 3, seed=0, precision=precision)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3 if precision is None else 0.03)
    weights = [w for w in states[1].model.parameters() if w.ndim == 4 and w.shape[1] > 1 and w.shape[2] > 1]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_a_resumed_training_has_the_same_bits_there(device, tmp_path):
    whole, state = trained("mlp with labels", device, steps=6)
    first, begun = trained("mlp with labels", device, steps=3)
    saved = checkpoints.save(tmp_path, 3, begun.tensors(), keep=1)
    resumed = State(made("mlp with labels").to(device), ema=(0.05, 0.1))
    resumed.restore(checkpoints.load(saved))
    read = pairs("mlp with labels", device, start=3)
    assert first + list(fit(resumed, read, objectives.FlowMatching(), 6, seed=0)) == whole
    assert same(resumed.tensors(), state.tensors())


@pytest.mark.parametrize("forth", [True, False], ids=["from the device", "to the device"])
def test_a_checkpoint_goes_from_one_device_to_another(forth, device, tmp_path):
    source, prediction = (device, CPU) if forth else (CPU, device)
    _, state = trained("dit", source)
    other = State(made("dit").to(prediction), ema=(0.05, 0.1))
    other.restore(checkpoints.load(checkpoints.save(tmp_path, 3, state.tensors(), keep=1)))
    assert same(other.tensors(), state.tensors())
    read = pairs("dit", prediction, start=3)
    (loss,) = fit(other, read, objectives.FlowMatching(), 4, seed=0)
    assert loss == pytest.approx(trained("dit", CPU, steps=4)[0][-1], rel=1e-3)


def test_dropout_is_a_function_of_seed_and_step_there(device):
    def losses():
        state = State(Model(moved_out(ResMLP((2,), width=16, depth=1, dropout=0.5))).to(device))
        return list(fit(state, pairs("mlp", device), objectives.FlowMatching(), 3, seed=0))

    before = torch.cuda.get_rng_state() if device.type == "cuda" else torch.get_rng_state()
    assert losses() == losses()
    after = torch.cuda.get_rng_state() if device.type == "cuda" else torch.get_rng_state()
    assert torch.equal(before, after)


def test_first_weights_are_drawn_on_the_cpu(device):
    with seeded(3, device):
        first = nn.Linear(3, 3).weight
    with seeded(3):
        assert torch.equal(first, nn.Linear(3, 3).weight)


@pytest.mark.parametrize("shape", [(2,), IMAGE], ids=["rows", "images"])
def test_classifiers_learn_there(shape, device):
    x = normal("x", 60, *shape)
    x[labels(60) == 1] += 4
    nets = [Classifier(shape, CLASSES, 16).to(where) for where in (device, CPU)]
    for net in nets:
        fit_classifier(net, x, labels(60), 4, seed=0)
    close(nets[0](x.to(device)), nets[1](x), rtol=0.01, atol=0.01)


# pairs


COUPLINGS = {
    "independent": Independent(),
    "exact": ExactOT(),
    "exact groups": ExactOT(16),
    "multiscale": MultiscaleOT(),
    "sinkhorn": Sinkhorn(),
    "sinkhorn groups": Sinkhorn(group=16),
    "bridge": couplings.SchroedingerBridge(1.0),
    "unbalanced": couplings.Unbalanced(),
    "partial": couplings.Partial(0.8),
}


@pytest.mark.parametrize("labelled", [False, True], ids=["plain", "labelled"])
@pytest.mark.parametrize("coupling", COUPLINGS.values(), ids=COUPLINGS)
def test_couplings_pair_the_same_rows_there(coupling, labelled, device):
    pytest.importorskip("ot")
    x0 = Gaussian().sample(48, generator(0, "x0")).double()
    x1 = eight_gaussians().sample(48, generator(0, "x1")).double()
    pair = Pair(x0, x1, labels(48) if labelled else None)
    wanted = coupling(pair, generator(0, "rng"))
    for moved in (pair.to(device), pair._replace(x1=x1.to(device))):
        got = coupling(moved, generator(0, "rng"))
        for x, given, expected in zip(got, moved, wanted, strict=True):
            assert (x is None) == (expected is None)
            if x is not None:
                assert x.device == given.device
                assert torch.equal(x.cpu(), expected)


@pytest.mark.parametrize("coupling", ["sinkhorn", "bridge", "unbalanced"])
def test_plans_are_those_of_the_cpu(coupling, device):
    x0, x1 = normal("x0", 40, 5), normal("x1", 40, 5) + 1
    plan, wanted = (COUPLINGS[coupling].plan(x0.to(where), x1.to(where)) for where in (device, CPU))
    assert plan.log_plan.device.type == device.type
    close(plan.log_plan.exp(), wanted.log_plan.exp(), rtol=1e-6, atol=1e-9)
    facts, others = (COUPLINGS[coupling].diagnostics(x0.to(where), x1.to(where)) for where in (device, CPU))
    assert facts == pytest.approx(others, rel=1e-3, abs=1e-6)


def test_continuous_conditions_couple_there(device):
    pytest.importorskip("ot")
    pair = Pair(normal("x0", 32, 2), normal("x1", 32, 2), normal("cond", 32, 3))
    coupling = couplings.Conditioned(ExactOT(), 0.5)
    got, wanted = (coupling(pair.to(where), generator(0, "rng")) for where in (device, CPU))
    assert all(torch.equal(x.cpu(), y) for x, y in zip(got, wanted, strict=True))


@pytest.mark.parametrize("labelled", [False, True], ids=["plain", "labelled"])
def test_semidiscrete_transport_is_the_same_there(labelled, device):
    data, known = eight_gaussians().sample(60, generator(0, "data")), labels(60) if labelled else None
    found = [
        couplings.semidiscrete.potentials(Gaussian(), data.to(where), seed=0, labels=known, tolerance=0.1)
        for where in (device, CPU)
    ]
    assert found[0].values.device.type == device.type
    assert all(x.chi_square < 0.1 for x in found)
    both = [
        Semidiscrete(Gaussian(), data.to(where), x.values, known) for where, x in zip((device, CPU), found, strict=True)
    ]
    got, wanted = (next(each.stream(512, seed=0)) for each in both)
    assert got.x1.device.type == device.type
    assert torch.equal(got.x0.cpu(), wanted.x0)
    costs = [float((pair.x0 - pair.x1).square().sum(1).mean()) for pair in (got, wanted)]
    assert costs[0] == pytest.approx(costs[1], rel=0.02)


@pytest.mark.parametrize("coupling", [None, ExactOT(), Sinkhorn()], ids=["independent", "exact", "sinkhorn"])
def test_batches_of_data_on_a_device_are_the_same(coupling, device):
    pytest.importorskip("ot")
    streams = []
    for where in (device, CPU):
        scaling = Scaling.standardising(stored("mlp").x).to(where)
        ends = IndependentPairs(moons(), Scaled(stored("mlp").to(where), scaling))
        streams.append(batches(ends, 8, seed=1, coupling=coupling, pool=Pool(3, 2)))
    for got, wanted in islice(zip(*streams, strict=False), 12):
        for x, expected in zip(got, wanted, strict=True):
            close(x, expected, rtol=1e-6, atol=1e-6)


def test_bytes_on_a_device_are_the_floats_of_the_cpu(device):
    pixels = torch.randint(256, (30, *IMAGE), dtype=torch.uint8, generator=generator(0, "pixels"))
    read = []
    for where in (device, CPU):
        data = Scaled(TensorDataset(pixels, labels(30)).to(where), Scaling.of_range(0, 1).to(where))
        read.append(next(batches(IndependentPairs(Gaussian(IMAGE), data), 16, seed=0)))
    assert read[0].x1.device.type == device.type
    for x, y in zip(*read, strict=True):
        close(x, y, rtol=1e-6, atol=1e-6)


def test_pairs_made_ahead_lie_on_the_device(device):
    with prefetch(pairs("dit", CPU), device) as ready:
        for got, wanted in islice(zip(ready, pairs("dit", CPU), strict=False), 6):
            assert {x.device.type for x in got} == {device.type}
            assert all(torch.equal(x.cpu(), y) for x, y in zip(got, wanted, strict=True))


# sampling


SCHEDULES = {
    "linear": schedules.Linear(),
    "blurred": schedules.Linear(sigma_min=0.05),
    "cosine": schedules.Cosine(),
    "vp": schedules.VP(),
    "offset-cosine": schedules.OffsetCosine(),
    "ddpm": schedules.DDPM(steps=20, beta_min=0.01, beta_max=0.6),
    "ve": schedules.VE(sigma_min=0.05, sigma_max=20.0),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_paths_are_the_same_there(schedule, device):
    t = torch.rand(20, generator=generator(0, "t")) * 0.9 + 0.05
    for got, wanted in zip(schedule.coeffs(t.to(device)), schedule.coeffs(t), strict=True):
        assert got.device.type == device.type
        close(got, wanted)
    close(schedule.time(torch.linspace(-2, 2, 9).to(device)), schedule.time(torch.linspace(-2, 2, 9)))
    pair = Pair(normal("x0", 20, 2), normal("x1", 20, 2))
    for got, wanted in zip(schedule.at(pair.to(device), t.to(device)), schedule.at(pair, t), strict=True):
        close(got, wanted, rtol=0.01)


def test_starts_are_the_same_whatever_the_device(device):
    """Noise comes from the CPU's generators: a sample is the same picture on any device."""
    model = made("dit").to(device)
    x0 = source_rows(Gaussian(IMAGE), 0, 70, seed=3)
    assert torch.equal(model.start(x0).cpu(), made("dit").start(x0))
    assert model.start(x0).device.type == device.type


SOLVERS = {
    "euler": lambda schedule: ode.euler,
    "heun": lambda schedule: ode.heun,
    "rk4": lambda schedule: ode.rk4,
    "ab2": lambda schedule: ode.AdamsBashforth2(),
    "jump": lambda schedule: flow_map.FlowMapStep(),
    "renoise": lambda schedule: ConsistencySampler(schedule, Gaussian()),
    "ddim": lambda schedule: samplers.DDIM(schedule),
    "noisy ddim": lambda schedule: samplers.DDIM(schedule, 0.5),
    "ancestral": lambda schedule: samplers.Ancestral(schedule),
    "churned": lambda schedule: samplers.EDMSampler(schedule),
    "dpm-solver++": lambda schedule: samplers.DPMSolverPP(schedule),
    "dpm-solver++ 3": lambda schedule: samplers.DPMSolverPP(schedule, 3),
    "unipc": lambda schedule: samplers.UniPC(schedule),
    "langevin": lambda schedule: samplers.Langevin(schedule),
    "corrected": lambda schedule: samplers.PredictorCorrector(ode.euler, schedule),
    "stochastic": lambda schedule: sde.ReverseSDE(schedule, 0.5),
}


def sampled(model, solver, device, num=70, steps=4, **options):
    model = deepcopy(model).to(device)
    return sample(model, Gaussian(), num, grid_of(model, solver, steps), solver, seed=5, **options)


@pytest.mark.parametrize("name", SOLVERS)
def test_samples_are_those_of_the_cpu_by_every_sampler(name, device):
    schedule = schedules.Linear()
    model, solver = made("mlp with labels", schedule), SOLVERS[name](schedule)
    got, wanted = (sampled(model, solver, where, cond=labels(70)) for where in (device, CPU))
    assert got.device == CPU
    close(got, wanted, rtol=0.01, atol=0.01)


@pytest.mark.costly
@pytest.mark.parametrize("method", ["dopri5", "adaptive_heun"])
def test_adaptive_samplers_go_there(method, device):
    pytest.importorskip("torchdiffeq")
    solver = ode.AdaptiveSolver(method)
    got, wanted = (sampled(made("mlp"), solver, where, steps=1) for where in (device, CPU))
    close(got, wanted, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("schedule", ["vp", "ddpm", "ve"])
@pytest.mark.parametrize("prediction", ["noise", "data", "v", "edm"])
def test_every_prediction_is_sampled_alike(schedule, prediction, device):
    model = made(
        "mlp", SCHEDULES[schedule], predictions.EDM() if prediction == "edm" else getattr(predictions, prediction)
    )
    got, wanted = (sampled(model, samplers.DDIM(SCHEDULES[schedule]), where) for where in (device, CPU))
    close(got, wanted, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_images_come_back_in_the_units_of_the_data(name, device):
    model = made(name)
    options = {"seed": 1, "chunk": 64, "cond": labels(70)}
    got, wanted = (
        sample(deepcopy(model).to(where), Gaussian(IMAGE), 70, uniform(3), ode.euler, **options)
        for where in (device, CPU)
    )
    close(got, wanted)


def test_the_chunk_does_not_change_samples_there(device):
    model = made("mlp with labels").to(device)
    whole, parts = (
        sample(model, Gaussian(), 200, uniform(4), ode.euler, seed=2, chunk=chunk, cond=labels(200))
        for chunk in (256, 64)
    )
    close(parts, whole, rtol=1e-4, atol=1e-5)


def test_another_path_of_a_model_is_the_same_there(device):
    model = made("mlp")
    got, wanted = (sampled(repath.repath(model, schedules.Cosine()), ode.euler, where) for where in (device, CPU))
    close(got, wanted)


@pytest.mark.parametrize("estimated", [False, True], ids=["exact", "estimated"])
@pytest.mark.parametrize("name", ["mlp with labels", "dit"])
def test_log_likelihoods_are_the_same_there(name, estimated, device):
    if name == "dit" and not estimated:
        pytest.skip("a backward pass a pixel")
    source, found = Gaussian(shape(name)), []
    x, probes = stored(name).x[:9], likelihood.probes(Gaussian(shape(name)), 9, 2, 0) if estimated else None
    for where in (device, CPU):
        model = made(name).to(where)
        found.append(likelihood.log_likelihood(model, source, x, uniform(3), ode.euler, labels(9), probes))
    assert found[0].device == CPU
    close(*found, rtol=1e-3, atol=1e-2)


# guidance and editing


def trained_classifier(device):
    net = moved_out(NoisyClassifier((2,), CLASSES, width=16, dropout=0.0))
    return classifier.Posterior(Model(net).to(device), classifier.log_prior([3, 2, 1]))


def first_kept(device):
    return guidance.Mask(torch.tensor([True, False]).to(device))


def fields(device):
    model, weak, schedule = made("mlp with labels").to(device), made("resmlp").to(device), schedules.Linear()
    at = guidance.Rescale(schedule, 0.5)
    return {
        "labels": guidance.Guided(model.velocity, CLASSES, 2.0, (0.2, 0.8)),
        "rescaled": guidance.Guided(model.velocity, CLASSES, 2.0, rescale=at),
        "auto": guidance.AutoGuided(model.velocity, weak.velocity, 2.0),
        "classifier": guidance.ClassifierGuided(model.velocity, trained_classifier(device), schedule, 1.5),
        "score": sde.ScoreOf(model.velocity, schedule),
        "walked": lambda x, t, cond: sampling.SolverFlowMap(model.velocity, ode.heun, 2)(x, t, t + (1 - t) / 2, cond),
        "kept": guidance.PiGDM(
            model.velocity,
            schedule,
            guidance.Mask(torch.tensor([True, False]).to(device)),
            torch.zeros(2, device=device),
        ),
    }


@pytest.mark.parametrize("name", fields(CPU))
def test_fields_of_fields_are_the_same_there(name, device):
    x, t = normal("x", 20, 2), torch.linspace(0, 0.9, 20)
    got, wanted = (fields(where)[name](x.to(where), t.to(where), labels(20).to(where)) for where in (device, CPU))
    assert got.device.type == device.type
    close(got, wanted)


@pytest.mark.parametrize("name", ["labels", "classifier", "kept"])
def test_guided_samples_are_the_same_there(name, device):
    field = fields(device)[name]
    got = sampled(made("mlp with labels"), ode.euler, device, field=field, cond=labels(70))
    wanted = sampled(made("mlp with labels"), ode.euler, CPU, field=fields(CPU)[name], cond=labels(70))
    close(got, wanted)


def test_a_classifier_of_noisy_points_learns_there(device):
    losses = []
    for where in (device, CPU):
        state = State(Model(moved_out(NoisyClassifier((2,), CLASSES, width=16, dropout=0.0))).to(where))
        objective = classifier.Labelling(classifier.log_prior([3, 2, 1]))
        losses.append(list(fit(state, pairs("mlp", where), objective, 3, seed=0)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_what_is_measured_is_replaced_there(device):
    schedule, found = schedules.Linear(), []
    for where in (device, CPU):
        model = made("mlp").to(where)
        y = torch.tensor([1.0, 0.0]).to(where)
        solver = guidance.RePaint(ode.euler, schedule, first_kept(where), y, Gaussian())
        grid = guidance.resampled(uniform(4), 2)
        x = solve(model.velocity, source_rows(Gaussian(), 0, 64, 0).to(where), grid, solver).detach()
        assert torch.equal(x[:, 0].cpu(), torch.ones(64))
        found.append(x)
    close(*found)


@pytest.mark.parametrize("measurement", [guidance.Downsampled(2), guidance.Grey()], ids=["small", "grey"])
def test_images_are_measured_there(measurement, device):
    x = normal("x", 4, 3, 8, 8)
    y = measurement.apply(x.to(device))
    close(
        guidance.project(measurement, torch.zeros_like(x, device=device), y), measurement.inverse(measurement.apply(x))
    )


# what follows a training


@pytest.mark.parametrize("way", [Reflow, Inversion])
def test_pairs_of_a_flow_are_the_same_there(way, device):
    pair = Pair(normal("x0", 64, 2), normal("x1", 64, 2), labels(64))
    found = []
    for where in (device, CPU):
        coupling = way(made("mlp with labels").to(where), uniform(3), ode.euler)
        found.append(coupling(pair.to(where), generator(0, "rng")))
    for x, expected in zip(*found, strict=True):
        close(x, expected)


@pytest.mark.parametrize("measure", ["frechet_distance", "kernel_distance", "energy_distance", "mmd"])
def test_distances_of_rows_there_are_those_of_the_cpu(measure, device):
    x, y = normal("x", 50, 3), normal("y", 50, 3) + 1
    distance = getattr(metrics, measure)
    assert float(distance(x.to(device), y.to(device))) == pytest.approx(float(distance(x, y)), rel=1e-4)


def test_manifolds_of_rows_there_are_those_of_the_cpu(device):
    x, y = normal("x", 50, 3), normal("y", 50, 3) + 1
    assert metrics.manifold(x.to(device), y.to(device)) == pytest.approx(metrics.manifold(x, y))


# run folders


def run_of(folder, device, steps, stop=None, **tree):
    """A run on a toy, which is left after `stop` steps."""
    pytest.importorskip("pydantic")
    from flowgen import runs
    from flowgen.config import make_config

    small = {"net": {"width": 16, "depth": 2}, "train": {"steps": steps, "batch_size": 32}, "pool": {"batches": 2}}
    config = make_config({"data": "moons", "device": str(device), **small, **tree})
    run = runs.Run.create(folder, config, "flowgen train", overwrite=True)
    training = runs.train(run)
    for _ in islice(training, stop):
        pass
    training.close()
    return run


RUNS = {
    "independent": {"coupling": {"name": "independent"}},
    "multiscale": {},
    "sinkhorn": {"coupling": {"name": "sinkhorn"}},
    "semidiscrete": {"coupling": {"name": "semidiscrete", "points": 64, "tolerance": 0.5}},
}


@pytest.mark.parametrize("tree", RUNS.values(), ids=RUNS)
def test_a_run_folder_is_trained_and_sampled_there(tree, device, tmp_path):
    pytest.importorskip("ot")
    run = run_of(tmp_path / "run", device, 6, **tree)
    from flowgen import runs

    there, on_cpu = (runs.load(run.folder, where) for where in (str(device), "cpu"))
    assert there.model.device.type == device.type
    got, wanted = (sample(each.model, each.source, 70, uniform(4), ode.euler) for each in (there, on_cpu))
    close(got, wanted)


def test_a_run_that_was_left_goes_on_with_the_same_bits(device, tmp_path):
    pytest.importorskip("ot")
    whole = run_of(tmp_path / "whole", device, 8)
    left = run_of(tmp_path / "left", device, 8, stop=5)
    from flowgen import runs

    for _ in runs.train(left):
        pass
    assert same(*(runs.load(run.folder).model.state_dict() for run in (whole, left)))


# refusals


def test_a_device_that_is_not_there_is_refused():
    pytest.importorskip("pydantic")
    from flowgen.config import find_device
    from flowgen.core import InputError

    with pytest.raises(InputError, match="cuda:77"):
        find_device("cuda:77")
