"""The measurement of a run: quality against network evaluations, the floor, geometry, and likelihood."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import torch
from torch import Tensor

from flowgen import metrics, sampling
from flowgen.config import SOLVERS
from flowgen.core import InputError, generator
from flowgen.data import streams
from flowgen.evaluation.subject import EvaluatedModel
from flowgen.evaluation.views import in_model_units
from flowgen.likelihood import Density, log_likelihood
from flowgen.metrics.distances import EXACT
from flowgen.samplers import grids, ode
from flowgen.samplers.ode import Solver
from flowgen.sampling import Spacing, even

__all__ = [
    "Estimate",
    "Quality",
    "Settings",
    "Start",
    "draw_start",
    "draw_truth",
    "estimate",
    "fine_steps",
    "follow",
    "geometry",
    "kl_divergence",
    "quality",
    "real_vs_real",
    "trajectories",
]

FINE = 100
"""Steps of what stands for the exact flow: RK4's for ends, Euler's for the geometry of trajectories."""
FINE_IMAGES = 25
"""RK4's steps for images, whose networks are expensive."""
DENSITY_POINTS, DENSITY_STEPS = 1000, 50
NOISE = 0.1


class Settings(NamedTuple):
    """How to measure: at each number of steps of the solver, on a kind of grid, `num` samples, `repeats` times.

    called: the name of the solver, where it has parameters; grid, noise: what was asked for of it, by name.
    """

    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 100)
    solver: Solver = ode.euler
    num: int = 2000
    repeats: int = 5
    seed: int = 0
    neighbours: int = 5
    spacing: Spacing = even
    called: str | None = None
    grid: str | None = None
    noise: float | None = None

    @property
    def named(self) -> str:
        """Return the name of its solver on the command line."""
        known = (name for name, made in SOLVERS.items() if made == self.solver)
        return "jump" if self.solver.needs_flow_map else self.called or next(known, repr(self.solver))

    def check(self, subject: EvaluatedModel) -> None:
        """Refuse numbers that are not positive, or fewer rows than neighbours.

        Raises:
            InputError: for numbers that are not positive, or fewer rows than neighbours.
        """
        steps = min(self.steps, default=0)
        numbers = {"steps": steps, "num": self.num, "repeats": self.repeats, "neighbours": self.neighbours}
        for name, value in numbers.items():
            if value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        if (size := subject.size(self.num)) <= self.neighbours:
            raise InputError(
                f"{self.neighbours} neighbours need sets of more rows than that: of {subject.reference.name}, from "
                f"{subject.source.name}, there are two sets of {size}"
            )


class Estimate(NamedTuple):
    """The mean of repeated measurements, and the half width of its 95 % confidence interval (NaN for one repeat)."""

    mean: float
    ci95: float


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean with Student's interval: mean +- t(0.975, n - 1) std / sqrt(n). NaN where a value is not
    finite.
    """
    from scipy.stats import t

    if not all(map(math.isfinite, values)):
        return Estimate(math.nan, math.nan)
    if len(values) < 2:
        return Estimate(fmean(values), math.nan)
    return Estimate(fmean(values), float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5)


def _estimates(repeats: Sequence[dict[str, float]]) -> dict[str, Estimate]:
    """Return the estimate of each figure."""
    return {name: estimate([values[name] for values in repeats]) for name in repeats[0]}


class Quality(NamedTuple):
    """The quality of samples of one number of steps.

    nfe: evaluations of the network for a sample.
    seconds: of sampling, for 1000 samples.
    figures: by name, those of the floor, and `endpoint_error` against a fine solve of the same starts, in model units,
        where the model has a velocity to solve, and the solver draws no noise.
    """

    steps: int
    nfe: float
    seconds: float
    figures: dict[str, Estimate]


def real_vs_real(subject: EvaluatedModel, settings: Settings) -> dict[str, Estimate]:
    """Return the figures of true rows beside other true rows: a perfect model has these."""
    settings.check(subject)
    repeats = []
    for index in range(settings.repeats):
        truth, other = draw_truth(subject, settings, index)
        repeats.append(_compare(subject, other, truth, settings))
    return _estimates(repeats)


def quality(subject: EvaluatedModel, settings: Settings) -> Iterator[Quality]:
    """Yield the quality at each number of steps, all from the same starts."""
    settings.check(subject)
    model, repeats = subject.model, range(settings.repeats)
    starts = [draw_start(subject, settings, index) for index in repeats]
    fine = None
    if subject.fields:
        fine = [follow(subject, start, fine_steps(subject), ode.rk4).x for start in starts]
    thousand = starts[0].take(torch.arange(1000) % len(starts[0].x0))
    for steps in settings.steps:
        made = [follow(subject, start, steps, settings.solver, settings.spacing) for start in starts]
        figures = []
        for index, drawn in enumerate(made):
            x = model.scaling.undo(drawn.x.to(model.device)).cpu()
            compared = _compare(subject, x, draw_truth(subject, settings, index)[0], settings)
            asked, classify = starts[index].cond, subject.view.classify
            if asked is not None and classify is not None:
                compared["agreement"] = (classify(x) == asked).double().mean().item()
            if fine is not None and not settings.solver.stochastic:
                compared["endpoint_error"] = metrics.endpoint_error(drawn.x, fine[index])
            figures.append(compared)
        seconds = follow(subject, thousand, steps, settings.solver, settings.spacing).seconds
        yield Quality(steps, fmean(drawn.nfe for drawn in made), seconds, _estimates(figures))


def draw_truth(subject: EvaluatedModel, settings: Settings, index: int) -> tuple[Tensor, ...]:
    """Draw two sets of true rows, in data units."""
    return subject.reference.draw(subject.size(settings.num), settings.seed, index)


class Start(NamedTuple):
    """Source points in model units, and the labels that their samples are asked for.

    first: the number of the first of them, by which a solver that draws noise tells rows apart.
    """

    x0: Tensor
    cond: Tensor | None
    first: int = 0

    def take(self, index: Tensor) -> Start:
        return Start(self.x0[index], None if self.cond is None else self.cond[index], self.first)

    def chunks(self) -> Iterator[Start]:
        """Yield the chunks of starts that are followed together."""
        for index in torch.arange(len(self.x0)).split(sampling.chunk_rows(tuple(self.x0.shape[1:]))):
            yield self.take(index)


def draw_start(subject: EvaluatedModel, settings: Settings, index: int) -> Start:
    """Draw as many starts as there are true rows in a set, with the labels that are asked for."""
    (x0,), labels = subject.source.draw(subject.size(settings.num), settings.seed, index), subject.labels
    cond = None if labels is None else labels.sample(len(x0), generator(settings.seed, "evaluate labels", index))
    return Start(x0, cond, index * streams.whole_blocks(len(x0)))


def _compare(subject: EvaluatedModel, x: Tensor, truth: Tensor, settings: Settings) -> dict[str, float]:
    """Return all figures of samples beside true rows, both in the features of the view."""
    seen, real = subject.view.apply(x), subject.view.apply(truth)
    if subject.view.features:
        figures = {"frechet": metrics.frechet_distance(seen, real), "kernel": metrics.kernel_distance(seen, real)}
    else:
        # the same directions and, by the truth alone, the same width for all models, so that figures can be compared
        directions = generator(settings.seed, "directions")
        width = real.double().var(0).sum().sqrt().item()
        figures = {
            "w2": metrics.wasserstein2(seen[:EXACT], real[:EXACT]),
            "sliced_w2": metrics.sliced_wasserstein2(seen, real, directions),
            "energy": metrics.energy_distance(seen, real),
            "mmd": metrics.mmd(seen, real, width),
        }
    figures |= metrics.manifold(seen, real, settings.neighbours)._asdict()
    if subject.trained_on is not None:
        figures["copies"] = metrics.copies(seen, subject.trained_on)
    return figures


class _Followed(NamedTuple):
    """Ends in model units, the evaluations of each, and the time that they took."""

    x: Tensor
    nfe: float
    seconds: float


def fine_steps(subject: EvaluatedModel) -> int:
    """Return the steps of RK4 that stand for the exact flow."""
    return FINE_IMAGES if len(subject.source.distribution.shape) == 3 else FINE


def follow(subject: EvaluatedModel, start: Start, steps: int, solver: Solver, spacing: Spacing = even) -> _Followed:
    """Return where the model takes starts in so many steps."""
    model, done = subject.model, start.first
    grid, counted = sampling.grid_of(model, solver, steps, spacing), sampling.Counted(sampling.asked(model, solver))
    field = subject.guided(counted)
    began, ends = time.perf_counter(), []
    for x0, cond, _ in start.chunks():
        cond = None if cond is None else cond.to(model.device)
        ends.append(sampling.flow(model, x0, grid, solver.at(done), cond, field).cpu())  # a GPU's work is done by then
        done += len(x0)
    return _Followed(torch.cat(ends), counted.rows / len(start.x0), time.perf_counter() - began)


def geometry(subject: EvaluatedModel, settings: Settings) -> dict[str, Estimate]:
    """Return the geometry of 100 Euler steps, in model units: path energy, straightness, curvature; transport_cost,
    W2^2 from where trajectories start to data; transport_noise, W2^2 of two true sets, which is part of that cost too;
    normalised_path_energy, only where the noise is less than NOISE of the cost, since otherwise the cost says little of
    the distributions. Empty for a model without a velocity.
    """
    settings.check(subject)
    if not subject.fields:
        return {}
    model, repeats = subject.model, []
    for index in range(settings.repeats):
        begin = draw_start(subject, settings, index)
        start = begin._replace(x0=model.start(begin.x0))
        x1, other = (in_model_units(model.scaling, x)[:EXACT] for x in draw_truth(subject, settings, index))
        cost, noise = (metrics.wasserstein2(x, x1) ** 2 for x in (start.x0[:EXACT].cpu(), other))
        figures = trajectories(subject, start)
        relative = (figures["path_energy"] - cost) / cost
        repeats.append({**figures, "transport_cost": cost, "transport_noise": noise, "excess": relative})
    found = _estimates(repeats)
    excess = found.pop("excess")
    energy, cost = found["path_energy"].mean, found["transport_cost"].mean
    if found["transport_noise"].mean < NOISE * cost:
        found["normalised_path_energy"] = Estimate(metrics.normalised_path_energy(energy, cost), excess.ci95)
    return found


def trajectories(subject: EvaluatedModel, start: Start) -> dict[str, float]:
    """Return the mean geometry of trajectories, a chunk of them at a time, since each keeps its states."""
    model = subject.model
    grid, field = grids.uniform(FINE, *model.span), subject.guided(model.velocity)
    parts = []
    for x0, cond, _ in start.chunks():
        cond = None if cond is None else cond.to(model.device)
        parts.append((len(x0), metrics.geometry(field, x0, grid, cond)))
    names = ("path_energy", "straightness", "curvature")
    return {name: sum(size * getattr(part, name) for size, part in parts) / len(start.x0) for name in names}


def kl_divergence(subject: EvaluatedModel, settings: Settings) -> Estimate | None:
    """Return KL(data || model) = E log p_data(x) - log p_model(x) over data x, in nats; None unless the densities of
    both ends are known, and the model has a velocity.
    """
    model, source, distribution = subject.model, subject.source.distribution, subject.reference.distribution
    if not (subject.fields and isinstance(source, Density) and isinstance(distribution, Density)):
        return None
    grid, values = grids.uniform(DENSITY_STEPS, *model.span), []
    for index in range(settings.repeats):
        x = distribution.sample(density_points(settings), generator(settings.seed, "likelihood", index))
        found = log_likelihood(model, source, x, grid, ode.rk4)
        values.append((distribution.log_density(x.double()) - found).mean().item())
    return estimate(values)


def density_points(settings: Settings) -> int:
    """Return the rows of each repeat of a KL divergence, whose likelihoods are expensive."""
    return min(settings.num, DENSITY_POINTS)
