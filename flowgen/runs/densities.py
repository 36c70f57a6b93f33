"""The likelihood of rows under a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flowgen.config import ImagesConfig
from flowgen.config.places import shown
from flowgen.core import Failure, InputError, generator
from flowgen.data import Distribution, Images, TensorDataset, open_folder, read_images, read_table
from flowgen.data.images.arrays import is_folder
from flowgen.data.tables import column_order
from flowgen.likelihood import Density, Rademacher, dequantised, log_likelihood, probes
from flowgen.runs.folder import Trained
from flowgen.samplers import grids
from flowgen.samplers.ode import Solver
from flowgen.sampling import chunk_rows

__all__ = ["Asked", "asked_rows", "check_density", "log_likelihoods"]

MOST_SHADES = 256
"""Images of more shades than that are taken for continuous."""
DRAWS = 5000
"""New draws of a toy, where nothing else is asked for."""


class Asked(NamedTuple):
    """Rows whose likelihood is asked.

    x: in data units, `(N, *shape)`.
    name: says in words what they are.
    cond: the label of each, `(N,)`, or None.
    distribution: that they are draws of, where its density is known.
    step: how far apart the shades of images are, which are dequantised by it; None of rows, and of continuous images.
    """

    x: Tensor
    name: str
    cond: Tensor | None = None
    distribution: Density | None = None
    step: float | None = None


def check_density(trained: Trained) -> None:
    """Refuse a run without a velocity, a source without a known density, or data without one.

    Raises:
        InputError: if a run has no velocity, its source no density that is known, or its data none.
    """
    if not trained.config.objective.fields:
        raise InputError("this run jumps, and has no velocity whose divergence gives a likelihood: take a flow")
    if not isinstance(trained.source, Density):
        raise InputError(f"the source {trained.config.source} has no density that is known: take a run from gaussian")
    if trained.model.device.type == "mps":
        raise InputError("a likelihood is summed in float64, which mps has not: give --device cpu")
    if (trained.model.scaling.scale == 0).any():
        raise InputError("data with a constant column have no density: leave that column out")


def asked_rows(
    trained: Trained, file: Path | None, num: int | None, label: int | None, seed: int, header: str | None = None
) -> Asked:
    """Return the rows to measure: the first `num` rows of a file, or as many that the run never saw, by default all of
    them, or 5000 new draws. Their labels are their own, or `label`, or none.

    Args:
        header: whether the first line of a table holds names, `yes` or `no`; None for what the run's data have.

    Raises:
        InputError: for a bad file, rows of another shape than the run's, or labels that it does not know.
    """
    config, images, distribution = trained.config, len(trained.source.shape) == 3, None
    data = config.read_data() if images or file is None else None
    if data is not None:
        data = trained.check_data(data)
    if file is None:
        assert data is not None
        distribution = data.unseen(config.data)
        rows, name = _some(distribution, Path(config.data).name, num, seed)
    else:
        rows, name = _of_file(trained, file, num, header)
    if rows.shape != trained.source.shape:
        raise InputError(f"{name} have the shape {rows.shape}, and those of this run {trained.source.shape}")
    step = _step(data.distribution) if data is not None and images else None
    return Asked(
        rows.values,
        name,
        _labels(trained, rows, label),
        distribution if isinstance(distribution, Density) else None,
        step,
    )


def _some(distribution: Distribution, name: str, num: int | None, seed: int) -> tuple[TensorDataset, str]:
    """Return rows that a run never saw: held-out ones, all or some at random, or new draws."""
    rng = generator(seed, "likelihood")
    if not isinstance(distribution, TensorDataset):
        x = distribution.sample(num or DRAWS, rng)
        return TensorDataset(x), f"{len(x)} new draws of {name}"
    some = torch.randperm(len(distribution), generator=rng)[:num].sort().values
    return distribution.take(some), f"{len(some)} held-out rows of {name}"


def _of_file(trained: Trained, file: Path, num: int | None, header: str | None) -> tuple[TensorDataset, str]:
    """Read the rows of a file, with the labels that the run knows by the same names."""
    if len(trained.source.shape) == 3:
        found = _images(file, trained.config.images)
        x, names, labels = found.pixels, found.classes, found.labels
    else:
        tables, width = trained.config.table.asked(header), trained.source.shape[0]
        table = read_table(file, header=tables.named, label_column=tables.label_column, labels_needed=False)
        order = column_order(table.columns, table.x.shape[1], trained.columns, width, str(file))
        x, (labels, names) = table.x[:, order], table.numbered or (None, ())
    if labels is not None and trained.classes:
        labels = trained.numbers_of(labels, names, str(file))
    rows = TensorDataset(x, labels).take(slice(num))
    return rows, f"{len(rows)} rows of {shown(file)}"


def _images(file: Path, settings: ImagesConfig) -> Images:
    if not is_folder(str(file)):
        return read_images(file, settings.size, settings.channels, settings.bits)
    folder = open_folder(
        file,
        size=settings.size,
        channels=settings.channels,
        workers=settings.workers,
        strict=settings.strict,
        bits=settings.bits,
    )
    return folder.load()


def _labels(trained: Trained, rows: TensorDataset, label: int | None) -> Tensor | None:
    """Return the label of each row, for a run that knows labels."""
    if not trained.classes:
        return None
    if label is not None:
        return torch.full((len(rows),), label)
    if rows.labels is not None:
        trained.check_seen(rows.labels.unique().tolist())
        return rows.labels
    if not trained.config.train.label_dropout:
        raise InputError("these rows have no labels, and this run has always seen some: give --label")
    return torch.full((len(rows),), len(trained.classes))


def _step(distribution: Distribution) -> float | None:
    """Return the distance between the shades of the training images; None where these are more than 256, or uneven."""
    if not isinstance(distribution, TensorDataset) or distribution.x.dtype == torch.uint8:
        return 1 / 255
    shades = distribution.x.unique().double()
    if not 2 <= len(shades) <= MOST_SHADES:
        return None
    gaps = shades.diff() / shades.diff().min()
    # float32 holds shades to a ten-millionth, far less than a thousandth of a gap
    return shades.diff().min().item() if (gaps - gaps.round()).abs().max() < 1e-3 else None


def log_likelihoods(
    trained: Trained, asked: Asked, solver: Solver, steps: int, count: int, seed: int
) -> Iterator[Tensor]:
    """Yield the log-likelihoods in nats, float64, of chunks of rows in order: those of a row do not depend on the
    others, unless the solver is adaptive.

    Of images with shades it is the log-probability of the image: its lower bound, by one dequantisation of each.

    Args:
        steps: of the solver, evenly in time; on paths that end before t = 1 evenly in the log of signal over noise.
        count: probes of Hutchinson's estimate; 0 for the exact divergence.

    Raises:
        Failure: where a trajectory is not finite.
    """
    model, shape, size = trained.model, trained.source.shape, chunk_rows(trained.source.shape)
    lo, hi = model.span
    grid = grids.uniform(steps, lo, hi) if hi == 1 else grids.log_snr(model.schedule, steps, lo, hi)
    for first in range(0, len(asked.x), size):
        rows = slice(first, first + size)
        x = asked.x[rows] if asked.step is None else dequantised(asked.x[rows], asked.step, seed, first)
        cond = None if asked.cond is None else asked.cond[rows]
        drawn = probes(Rademacher(shape), len(x), count, seed, first) if count else None
        assert isinstance(trained.source, Density), "check_density has seen to it"
        found = log_likelihood(model, trained.source, x, grid, solver, cond, drawn)
        if bad := (~found.isfinite()).nonzero().flatten().tolist():
            raise Failure(f"row {first + bad[0]} has no finite log-likelihood: its trajectory leaves all numbers")
        yield found if asked.step is None else found + math.prod(shape) * math.log(asked.step)
