"""What the laws hold for: all that the registry names, and some with other parameters.

A test that takes `schedule` holds for every schedule, and one that takes `usable` for every schedule with every
prediction that determines a velocity on it. What is new in the registry is held to the laws of its kind without a line
here; a time distribution needs its distribution function too.
"""

from __future__ import annotations

import os
import sys

# before torch: small networks on several threads wait for each other, and workers of xdist for one another
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import flowgen_cli
import numpy as np
import pytest
import torch
from PIL import Image
from tiers import pytest_addoption, pytest_collection_modifyitems, pytest_ignore_collect  # noqa: F401  # hooks
from torch import Tensor, nn

from flowgen import plots, predictions, runs, times
from flowgen.config import resolve_config
from flowgen.core import FlowMap, InputError, Pair, generator, like
from flowgen.couplings import ExactOT, Sinkhorn
from flowgen.evaluation import Settings, measure, rounds, subject
from flowgen.metrics import pairwise
from flowgen.model import Model
from flowgen.nn import fit_classifier
from flowgen.paths.bridge import Bridge, BrownianBridge, ConstantBridge
from flowgen.predictions import Prediction
from flowgen.registry import Objects
from flowgen.runs import Run
from flowgen.samplers import ode
from flowgen.schedules import DDPM, VE, VP, Linear, Schedule


def named(kind: str, *groups: str) -> dict[str, Any]:
    """The parts of a kind, by name; of classes, an object with the defaults."""
    return {name: made() if isinstance(made, type) else made for name, made in Objects(kind, *groups).items()}


SCHEDULES: dict[str, Schedule] = {
    **named("schedule"),
    "linear-blurred": Linear(sigma_min=0.05),
    "vp-constant": VP(beta_min=12.0, beta_max=12.0),
    "ddpm-few": DDPM(steps=20, beta_min=0.01, beta_max=0.6),
    "ve-narrow": VE(sigma_min=0.05, sigma_max=20.0),
}
BRIDGES: dict[str, Bridge] = {**named("bridge"), "constant": ConstantBridge(0.3), "brownian": BrownianBridge(0.7)}
PREDICTIONS: dict[str, Prediction] = {**named("prediction"), "edm-wide": predictions.EDM(sigma_data=2.0)}
SINGULAR = {
    (name, prediction)
    for name, schedule in SCHEDULES.items()
    for prediction in ("noise", "score")
    if schedule.mark(0.0).alpha == 0
}
USABLE = {
    f"{schedule}-{prediction}": (SCHEDULES[schedule], PREDICTIONS[prediction])
    for schedule, prediction in product(SCHEDULES, PREDICTIONS)
    if (schedule, prediction) not in SINGULAR
}
ELSEWHERE = {
    f"{kind}-{new}": (*both, SCHEDULES[new])
    for (kind, both), new in product(USABLE.items(), ("linear", "cosine", "vp", "offset-cosine", "ve"))
    if both[0] != SCHEDULES[new]
}
"""What is usable, and another path to read it on."""
COUPLINGS = {
    **named("coupling", ""),
    "exact-groups": ExactOT(group=5),
    "exact-whole": ExactOT(group=0),
    "sinkhorn-groups": Sinkhorn(epsilon=0.2, group=7),
}
TOYS = {name: make() for name, make in Objects("toy").items()}
FIXED_STEP = {name: (solver, 1 if name == "ab2" else solver.order) for name, solver in named("solver", "").items()}
"""Solvers and the evaluations of one step."""
ADAPTIVE = {solver.method: 20 for solver in named("solver", "adaptive").values()}
"""Adaptive methods, and the multiple of the tolerance that their error stays under."""


@dataclass(frozen=True)
class KnownTimes:
    """A time law and its distribution function."""

    distribution: times.TimeDistribution
    cdf: Callable[[np.ndarray], np.ndarray]


def uniform_cdf(t: np.ndarray) -> np.ndarray:
    return t


def logit_normal_cdf(mean: float, std: float) -> Callable[[np.ndarray], np.ndarray]:
    from scipy.stats import norm

    return lambda t: norm.cdf((np.log(t) - np.log1p(-t) - mean) / std)


def u_shaped_cdf(a: float) -> Callable[[np.ndarray], np.ndarray]:
    """The density exp(a t) + exp(a (1 - t)), summed by the trapezoidal rule and normalised."""
    t = np.linspace(0, 1, 20_001)
    density = np.exp(a * (t - 1)) + np.exp(-a * t)
    total = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return lambda x: np.interp(x, t, total / total[-1])


CDFS = {
    "uniform": uniform_cdf,
    "stratified": uniform_cdf,
    "discrete": uniform_cdf,
    "logit-normal": logit_normal_cdf(0, 1),
    "log-normal": uniform_cdf,  # of its quantiles
    "u-shaped": u_shaped_cdf(4),
}
TIMES = {
    **{name: KnownTimes(made, CDFS[name]) for name, made in named("time distribution").items()},
    "logit-normal-low": KnownTimes(times.LogitNormal(-0.8, 1.6), logit_normal_cdf(-0.8, 1.6)),
    "u-shaped-flat": KnownTimes(times.UShaped(0.1), u_shaped_cdf(0.1)),
    "u-shaped-steep": KnownTimes(times.UShaped(60), u_shaped_cdf(60)),
}


def pytest_configure(config):
    """A note to the user is no error; named here and not in pyproject, since torch is to begin on one thread."""
    config.addinivalue_line("filterwarnings", "default::flowgen.core.Note")


def each(table: dict) -> dict:
    """The arguments of a fixture that takes every value of a table."""
    return {"params": list(table.values()), "ids": list(table)}


@pytest.fixture(**each(SCHEDULES))
def schedule(request) -> Schedule:
    return request.param


@pytest.fixture(**each(BRIDGES))
def bridge(request) -> Bridge:
    return request.param


@pytest.fixture
def all_paths() -> list[Schedule]:
    return list(SCHEDULES.values())


@pytest.fixture(**each(PREDICTIONS))
def prediction(request) -> Prediction:
    return request.param


@pytest.fixture(params=sorted(SINGULAR), ids="-".join)
def singular(request) -> tuple[Schedule, Prediction]:
    """A path and a prediction that says nothing about the data at t = 0."""
    name, prediction = request.param
    return SCHEDULES[name], PREDICTIONS[prediction]


@pytest.fixture(**each(USABLE))
def usable(request) -> tuple[Schedule, Prediction]:
    return request.param


@pytest.fixture(**each(ELSEWHERE))
def elsewhere(request) -> tuple[Schedule, Prediction, Schedule]:
    return request.param


@pytest.fixture(**each(COUPLINGS))
def coupling(request):
    return request.param


@pytest.fixture(**each(FIXED_STEP))
def fixed_step(request) -> tuple[ode.Solver, int]:
    return request.param


class Recorder(nn.Module):
    """A net that keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        self.seen = (x, t, s, cond)
        return torch.zeros_like(x)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(params=ADAPTIVE.items(), ids=list(ADAPTIVE))
def adaptive(request) -> tuple[str, int]:
    return request.param


@pytest.fixture
def all_times() -> list[KnownTimes]:
    return list(TIMES.values())


@pytest.fixture(**each(TIMES))
def known_times(request) -> KnownTimes:
    return request.param


@pytest.fixture(**each(TOYS))
def toy(request):
    return request.param


@pytest.fixture(**each({name: toy for name, toy in TOYS.items() if hasattr(toy, "log_density")}))
def toy_with_density(request):
    return request.param


@pytest.fixture
def normal() -> Callable[..., Tensor]:
    """normal(stream, *shape): standard normal float64 numbers that are a function of the stream's name."""
    return lambda stream, *shape: torch.randn(*shape, generator=generator(0, stream), dtype=torch.float64)


@pytest.fixture
def global_state_untouched() -> Iterator[None]:
    """Fails the test if it moves PyTorch's or numpy's global generator."""
    before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    yield
    after = np.random.get_state()  # noqa: NPY002
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before[1], after[1])
    assert numpy_before[2:] == after[2:]


@dataclass(frozen=True)
class GaussianFlow:
    """The exact flow of a path from N(0, I) to data N(mean, diag(std)^2) with independent pairs.

    x_t ~ N(alpha mean, V) with V = alpha^2 std^2 + sigma^2.
    """

    schedule: Schedule
    mean: Tensor
    std: Tensor

    def moments(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_t; of several times, `(B, 1)`."""
        c = self.schedule.coeffs(torch.as_tensor(t, dtype=torch.float64))
        return c.alpha * self.mean, torch.sqrt((c.alpha * self.std) ** 2 + c.sigma**2)

    def map(self, x: Tensor, t: float | Tensor, s: float | Tensor) -> Tensor:
        """Where the flow takes x from time t to s: the affine map between the two marginals."""
        (mean, std), (mean_s, std_s) = self.moments(t), self.moments(s)
        return mean_s + std_s / std * (x - mean)

    def average(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        """The slope of `map`, for times of each row; the velocity where they are equal."""
        t, s = t.double(), s.double()
        gap = like(s - t, x)
        slope = (self.map(x, like(t, x), like(s, x)) - x) / torch.where(gap == 0, 1, gap)
        return torch.where(gap == 0, self.velocity(x, t), slope)

    def ends(self, x: Tensor, t: Tensor) -> Pair:
        """E[x0 | x_t = x] and E[x1 | x_t = x], by Gaussian conditioning."""
        c = self.schedule.coeffs(like(t, x))
        rest = (x - c.alpha * self.mean) / ((c.alpha * self.std) ** 2 + c.sigma**2)
        return Pair(c.sigma * rest, self.mean + c.alpha * self.std**2 * rest)

    def velocity(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """E[dx_t / dt | x_t = x]."""
        c, ends = self.schedule.coeffs(like(t, x)), self.ends(x, t)
        return c.d_alpha * ends.x1 + c.d_sigma * ends.x0

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x)."""
        c = self.schedule.coeffs(like(t, x))
        return -(x - c.alpha * self.mean) / ((c.alpha * self.std) ** 2 + c.sigma**2)


@dataclass(frozen=True)
class EmpiricalFlow:
    """The exact flow of a path from N(0, I) to the rows of `data` with independent pairs: a softmax over the rows."""

    schedule: Schedule
    data: Tensor

    def ends(self, x: Tensor, t: Tensor) -> Pair:
        """E[x0 | x_t = x] and E[x1 | x_t = x]; x `(B, D)`."""
        c = self.schedule.coeffs(like(t, x))
        square = (x.unsqueeze(1) - c.alpha.unsqueeze(1) * self.data).square().sum(2)
        x1 = torch.softmax(-square / (2 * c.sigma**2), dim=1) @ self.data
        return Pair((x - c.alpha * x1) / c.sigma, x1)


class ExactNet(nn.Module):
    """The network that predicts a prediction exactly, from a flow whose conditional expectations are known."""

    def __init__(self, flow: GaussianFlow | EmpiricalFlow, prediction: Prediction) -> None:
        super().__init__()
        self.flow, self.prediction = flow, prediction
        self.weight = nn.Parameter(torch.zeros(()))  # unused: a model is where its weights are

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        c = self.flow.schedule.coeffs(like(t, x))
        if size := predictions.size(self.flow.schedule, self.prediction):
            x = x * size(c)
        return predictions.encode(self.flow.ends(x, t), c, self.prediction)


class MapNet(nn.Module):
    """The network of a flow map that is known."""

    def __init__(self, average: FlowMap) -> None:
        super().__init__()
        self.average, self.weight = average, nn.Parameter(torch.zeros(()))  # unused, as in ExactNet

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.average(x, t, s, cond)


@pytest.fixture
def gaussian_flow() -> Callable[[Schedule], GaussianFlow]:
    """The exact flow of a path to a Gaussian of the plane."""
    mean, std = torch.tensor([1.5, -0.7], dtype=torch.float64), torch.tensor([0.4, 1.3], dtype=torch.float64)
    return lambda schedule: GaussianFlow(schedule, mean, std)


@pytest.fixture(params=["linear", "cosine"])
def whole_flow(request, gaussian_flow) -> GaussianFlow:
    """The same on each path whose velocity is known from t = 0 to 1, as flow maps need it."""
    return gaussian_flow(SCHEDULES[request.param])


@pytest.fixture
def map_model() -> Callable[[Schedule, FlowMap], Model]:
    """The model of a flow map that is known."""
    return lambda schedule, average: Model(MapNet(average), schedule)


@pytest.fixture
def empirical_flow(normal) -> Callable[[Schedule], EmpiricalFlow]:
    """The exact flow of a path to five points of the plane."""
    data = normal("five points", 5, 2)
    return lambda schedule: EmpiricalFlow(schedule, data)


@pytest.fixture
def exact_model() -> Callable[[GaussianFlow | EmpiricalFlow, Prediction], Model]:
    """The model that has learned a flow exactly."""
    return lambda flow, prediction: Model(ExactNet(flow, prediction), flow.schedule, prediction)


WRITE = plots.write


@pytest.fixture(scope="session")
def called(tmp_path_factory) -> Callable[..., Path]:
    """called(arguments, files): the folder in which `flowgen ARGUMENTS` was called, once for all tests: they copy it.

    Before, files() writes there what the command reads.
    """
    folders: dict[tuple, Path] = {}

    def folder(*arguments, files=lambda: None):
        words = tuple(map(str, arguments))
        if (key := (files.__qualname__, *words)) not in folders:
            made = tmp_path_factory.mktemp("called")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(made)
                files()
                patch.setattr(sys, "argv", ["flowgen", *words])
                with redirect_stdout(StringIO()), redirect_stderr(StringIO()), pytest.raises(SystemExit) as end:
                    flowgen_cli.main()
            assert not end.value.code
            folders[key] = made
        return folders[key]

    return folder


@pytest.fixture
def few_measured(monkeypatch) -> None:
    """Measures runs by few rows, in few steps."""
    monkeypatch.setattr(rounds, "ROWS", Settings(num=100, repeats=2))
    monkeypatch.setattr(rounds, "IMAGES", Settings(num=40, repeats=2))
    for name, value in {"FINE": 25, "FINE_IMAGES": 8, "DENSITY_POINTS": 200, "DENSITY_STEPS": 20}.items():
        monkeypatch.setattr(measure, name, value)
    monkeypatch.setattr(subject, "fit_classifier", partial(fit_classifier, steps=100))


@pytest.fixture
def empty_pictures(monkeypatch) -> None:
    """Writes one pixel in place of a figure that is drawn in full, which takes half a second."""

    def write(path, made) -> None:
        if not Path(path).parent.is_dir():
            raise InputError(f"{path}: there is no folder {Path(path).parent}")
        Image.new("L", (1, 1)).save(path, "PNG")

    monkeypatch.setattr(plots, "write", write)


@pytest.fixture
def whole_pictures(empty_pictures, monkeypatch) -> None:
    """Draws figures in full, also by `flowgen`."""
    monkeypatch.setattr(plots, "write", WRITE)


@pytest.fixture
def flowgen(monkeypatch, tmp_path, capsys, few_measured, empty_pictures):
    """Runs `flowgen ARGUMENTS` in an empty folder; gives the exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["flowgen", *map(str, arguments)])
        with pytest.raises(SystemExit) as raised:
            flowgen_cli.main()
        out, err = capsys.readouterr()
        return raised.value.code or 0, out, err

    return call


@pytest.fixture
def table(tmp_path, normal):
    """The file of a table of three columns with labels of two classes."""
    x, y = normal("table", 300, 3).float().numpy(), np.arange(300) % 2
    x[y == 1] += 4
    np.savez(tmp_path / "t.npz", x=x, y=y)
    return tmp_path / "t.npz"


def quick_run(data: str | Path, folder: Path, steps: int = 30, **tree: object) -> Run:
    """Train a small run in few steps."""
    small = {"net": {"width": 16, "depth": 2}, "train": {"steps": steps, "batch_size": 32}, "pool": {"batches": 2}}
    run = Run.create(folder, resolve_config({"data": str(data), **small, **tree}), "flowgen train", overwrite=True)
    for _ in runs.train(run):
        pass
    return run


@pytest.fixture
def trained() -> Callable[..., Run]:
    """trained(data, folder, **settings): a quick run on a table."""
    return quick_run


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[..., Path]:
    """once(data, **settings): the folder of a quick run that is trained once for all tests, which copy it."""
    kept: dict[str, Path] = {}

    def folder(data, **settings):
        if (key := repr((data, settings))) not in kept:
            kept[key] = quick_run(data, tmp_path_factory.mktemp("once") / data, **settings).folder
        return kept[key]

    return folder


@pytest.fixture
def pairs_held(monkeypatch) -> list[int]:
    """How many pairs of rows each call of cdist holds, in blocks of 1000."""
    held, cdist = [], torch.cdist

    def spy(*both, **mode):
        held.append(len(both[0]) * len(both[1]))
        return cdist(*both, **mode)

    monkeypatch.setattr(torch, "cdist", spy)
    monkeypatch.setattr(pairwise, "BLOCK", 1000)
    return held
