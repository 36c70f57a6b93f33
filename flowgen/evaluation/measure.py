"""The measurement of a run: quality against network evaluations, the floor, geometry, and likelihood."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import torch
from torch import Tensor

from flowgen import grids, metrics, sampling, solvers
from flowgen.core import InputError, generator
from flowgen.evaluation.subject import Reference, Subject
from flowgen.evaluation.views import in_model_units
from flowgen.likelihood import Density, log_likelihood
from flowgen.metrics.distances import EXACT
from flowgen.solvers import Solver

__all__ = ["Estimate", "Quality", "Settings", "estimate", "floor", "geometry", "kl_divergence", "quality"]

FINE, DENSITY_POINTS, DENSITY_STEPS = 100, 1000, 50
NOISE = 0.1


class Settings(NamedTuple):
    """How to measure: at each number of steps of the solver, `num` samples, `repeats` times, by a seed."""

    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 100)
    solver: Solver = solvers.euler
    num: int = 2000
    repeats: int = 5
    seed: int = 0
    neighbours: int = 5

    def check(self, reference: Reference) -> None:
        """
        Raises:
            InputError: for numbers that are not positive, or fewer rows than neighbours.
        """
        for name, value in {"steps": min(self.steps, default=0), "num": self.num, "repeats": self.repeats}.items():
            if value < 1:
                raise InputError(f"--{name} must be at least 1, not {value}")
        if self.neighbours < 1:
            raise InputError(f"--neighbours must be at least 1, not {self.neighbours}")
        if (size := reference.size(self.num)) <= self.neighbours:
            raise InputError(
                f"{self.neighbours} neighbours need sets of more rows than that: of {reference.name}, with --num "
                f"{self.num}, there are two sets of {size}"
            )


class Estimate(NamedTuple):
    """The mean of repeated measurements, and the half width of its 95 % confidence interval (NaN for one repeat)."""

    mean: float
    ci95: float


def estimate(values: Sequence[float]) -> Estimate:
    """The mean with Student's interval: mean +- t(0.975, n - 1) std / sqrt(n)."""
    from scipy.stats import t

    if len(values) < 2:
        return Estimate(fmean(values), math.nan)
    return Estimate(fmean(values), float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5)


def _estimates(repeats: Sequence[dict[str, float]]) -> dict[str, Estimate]:
    """The estimate of each figure."""
    return {name: estimate([values[name] for values in repeats]) for name in repeats[0]}


class Quality(NamedTuple):
    """What samples of one number of steps are worth.

    nfe: evaluations of the network for a sample.
    seconds: of sampling, for 1000 samples.
    figures: by name, those of the floor, and `endpoint_error` against a fine solve of the same starts, in model units.
    """

    steps: int
    nfe: float
    seconds: float
    figures: dict[str, Estimate]


def floor(subject: Subject, settings: Settings) -> dict[str, Estimate]:
    """The figures of true rows beside other true rows: a model that is the truth has these."""
    repeats = []
    for index in range(settings.repeats):
        truth, other = subject.reference.draw(settings.num, settings.seed, index)
        repeats.append(_compare(subject, other, truth, settings))
    return _estimates(repeats)


def quality(subject: Subject, settings: Settings) -> Iterator[Quality]:
    """The quality at each number of steps. The samples are of the same starts at all of them."""
    model, size = subject.model, subject.reference.size(settings.num)
    ends = [_sample(subject, size, FINE, solvers.rk4, settings.seed, r).x for r in range(settings.repeats)]
    for steps in settings.steps:
        repeats, drawn = [], []
        for index, fine in enumerate(ends):
            made = _sample(subject, size, steps, settings.solver, settings.seed, index)
            truth = subject.reference.draw(settings.num, settings.seed, index).first
            x = model.scaling.undo(made.x.to(model.device)).cpu()
            error = metrics.endpoint_error(made.x, fine)
            repeats.append({**_compare(subject, x, truth, settings), "endpoint_error": error})
            drawn.append(made)
        seconds = fmean(made.seconds for made in drawn) / size * 1000
        yield Quality(steps, fmean(made.nfe for made in drawn), seconds, _estimates(repeats))


def _compare(subject: Subject, x: Tensor, truth: Tensor, settings: Settings) -> dict[str, float]:
    """All figures of samples beside true rows, in what the view makes of both."""
    view = subject.view
    seen, real = view.apply(x), view.apply(truth)
    if view.features:
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
        figures["copies"] = metrics.copies(seen, view.apply(subject.trained_on))
    return figures


class _Made(NamedTuple):
    """Samples in model units, the evaluations of each, and the time that they took."""

    x: Tensor
    nfe: float
    seconds: float


def _stream(index: int) -> str:
    return f"evaluate {index}"


def _sample(subject: Subject, num: int, steps: int, solver: Solver, seed: int, index: int) -> _Made:
    model = subject.model
    grid, field = grids.uniform(steps, *model.span), sampling.Counted(model.velocity)
    start = time.perf_counter()
    pairs = sampling.pairs(model, subject.source, num, grid, solver, seed=seed, stream=_stream(index), field=field)
    x = torch.cat([pair.x1 for pair in pairs])  # each chunk comes to the CPU, so that a GPU's work is done by then
    return _Made(x, field.rows / sampling.whole_blocks(num), time.perf_counter() - start)


def geometry(subject: Subject, settings: Settings) -> dict[str, Estimate]:
    """The geometry of 100 Euler steps, in model units: path energy, straightness, curvature; transport_cost, W2^2 from
    source to data; transport_noise, W2^2 of two true sets, which is in that cost too; normalised_path_energy, only
    where the noise is less than NOISE of the cost, since else the cost says little of the laws."""
    model, size, repeats = subject.model, subject.reference.size(settings.num), []
    grid = grids.uniform(FINE, *model.span)
    for index in range(settings.repeats):
        x0 = sampling.starts(subject.source, 0, size, settings.seed, _stream(index))
        followed = metrics.geometry(model.velocity, model.start(x0), grid)
        sets = subject.reference.draw(settings.num, settings.seed, index)
        x1, other = (in_model_units(model.scaling, x)[:EXACT] for x in sets)
        cost, noise = (metrics.wasserstein2(x, x1) ** 2 for x in (x0[:EXACT], other))
        figures = {key: getattr(followed, key) for key in ("path_energy", "straightness", "curvature")}
        relative = (followed.path_energy - cost) / cost
        repeats.append({**figures, "transport_cost": cost, "transport_noise": noise, "excess": relative})
    found = _estimates(repeats)
    excess = found.pop("excess")
    if found["transport_noise"].mean < NOISE * found["transport_cost"].mean:
        found["normalised_path_energy"] = Estimate(abs(excess.mean), excess.ci95)
    return found


def kl_divergence(subject: Subject, settings: Settings) -> Estimate | None:
    """KL(data || model) = E log p_data(x) - log p_model(x) over data x, in nats; None where a density is not known."""
    model, source, law = subject.model, subject.source, subject.reference.law
    if not (isinstance(source, Density) and isinstance(law, Density)):
        return None
    grid, values = grids.uniform(DENSITY_STEPS, *model.span), []
    for index in range(settings.repeats):
        x = law.sample(min(settings.num, DENSITY_POINTS), generator(settings.seed, "likelihood", index))
        found = log_likelihood(model, source, x, grid, solvers.rk4)
        values.append((law.log_density(x.double()) - found).mean().item())
    return estimate(values)
