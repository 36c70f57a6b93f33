"""The potentials of semidiscrete optimal transport: stochastic ascent on the semi-dual."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from flowgen.core import InputError, generator
from flowgen.couplings.laguerre import BLOCK, Cells, cells_of, check_rows, rows_of, scored
from flowgen.data.distributions import Distribution
from flowgen.data.streams import as_distribution

__all__ = ["Potentials", "ascend", "chi_square", "potentials"]

CHUNK = 2**24
"""Numbers of source points that are held at once: 64 MiB."""
FEWEST = 2**10
"""Draws of the first round."""
LARGEST = 32
"""Draws for each row in the largest rounds."""
GROWS = 1.0
"""Rounds grow once noise is more than so much of what is left to gain."""
RELAXED = 1.6
"""Over-relaxation: below 2, where steps cease to be stable."""
EVEN, FLAT = 0.03, 0.01
"""The temperature falls once the chi-square of the smoothed masses is below so much of that of the cells, or this."""
SHARP = 1.3
"""The temperature falls until so many rows share a draw."""
REACH = 16.0
"""Rows so many temperatures below the best have a share under e^-16 = 1e-7 of it, and are left out."""


class Potentials(NamedTuple):
    """The potentials of all rows, and how evenly they divide the source.

    values: g `(N,)` float64, on the device of the data.
    chi_square: sum_j (p_j - 1/N)^2 / (1/N), an unbiased estimate from draws that g has not seen. It may fall below 0.
    draws: source points drawn so far.
    """

    values: Tensor
    chi_square: float
    draws: int


def potentials(
    source: Distribution | Tensor,
    data: Tensor,
    *,
    seed: int,
    labels: Tensor | None = None,
    tolerance: float = 0.02,
    draws_per_row: float = 1000.0,
) -> Potentials:
    """Return the last state of `ascend`, whose arguments these are."""
    *_, last = ascend(source, data, seed=seed, labels=labels, tolerance=tolerance, draws_per_row=draws_per_row)
    return last


def ascend(
    source: Distribution | Tensor,
    data: Tensor,
    *,
    seed: int,
    labels: Tensor | None = None,
    tolerance: float = 0.02,
    draws_per_row: float = 1000.0,
) -> Iterator[Potentials]:
    """Yield the states of stochastic ascent on the semi-dual, round by round; each is measured on draws that it has not
    seen.

    The minimum is smoothed into a softmax of the scores g_j - |x - y_j|^2 at a temperature, so that one draw informs
    many rows; with p_j the mass of row j in shares of 1/N, each round draws anew and takes the step

        g_j <- g_j - omega gain temperature log p_j,      gain = excess / (excess + noise).

    The gain is Kalman's: what of the chi-square of p is no sampling noise, so that rounds average out as 1/t. omega
    is over-relaxation. Once the smoothed masses are even, the temperature halves; rounds grow where noise rules them.
    All classes advance together, each with potentials of its own. A function of the arguments alone.

    Args:
        source: the distribution of x0.
        data: rows y `(N, *shape)`, in model units; half types are computed with as float32.
        labels: `(N,)` whole numbers: the source is shared out anew within each class.
        tolerance: stop once the chi-square, and two standard errors more, is below it (in each class).
        draws_per_row: the most source points to draw, over N + 1024; below about 3 / tolerance they are too few.

    Yields:
        the potentials and their chi-square before each step. That of classes is the mean by their rows, and so the
        chi-square of all rows. Equal rows count as one of their joint mass. Its standard error for M draws in the last
        round is sqrt(2 N + 4 M chi_square) / M.

    Warns:
        RuntimeWarning: with the chi-square that was reached, if the draws end first.

    Raises:
        InputError: if shapes do not agree, a value is NaN or infinite, or a bound is not positive.
    """
    source = as_distribution(source)
    check_rows(source.shape, data, labels)
    if not (0 < tolerance < math.inf and 0 < draws_per_row < math.inf):
        raise InputError(f"tolerance and draws_per_row must be positive, not {tolerance} and {draws_per_row}")
    classes = list(rows_of(labels, len(data)).values())
    ascents = [
        _ascent(source, data[rows], generator(seed, "ascent", k).initial_seed(), tolerance, draws_per_row)
        for k, rows in enumerate(classes)
    ]
    states = [next(ascent) for ascent in ascents]
    yield _joined(states, classes, data)
    while any(not state.ended for state in states):
        states = [next(ascent, state) for ascent, state in zip(ascents, states, strict=True)]
        yield _joined(states, classes, data)
    if not all(state.met for state in states):
        worst = max(state.chi_square for state in states)
        warnings.warn(
            f"the ascent ended after {sum(state.draws for state in states)} draws with chi-square {worst:.3g}, and not "
            f"below {tolerance:g}: give more draws per row, or a larger tolerance",
            RuntimeWarning,
            stacklevel=2,
        )


def chi_square(hits: Tensor, weights: Tensor) -> float:
    """Return an unbiased estimate of sum_j (p_j - w_j)^2 / w_j = sum_j p_j^2 / w_j - 1, from how often each cell was
    hit.

    It counts pairs of draws in one cell, sum_j h_j (h_j - 1) / (w_j M (M - 1)) - 1, as the plain statistic of M draws
    is (N - 1) / M too large.

    Shapes: hits h and weights w, which sum to 1, `(N,)`.
    """
    h, total = hits.double(), float(hits.sum())
    return float((h * (h - 1) / weights.double()).sum()) / (total * (total - 1)) - 1


class _State(NamedTuple):
    """The state of the ascent of one class: whether it is within the tolerance, and whether it is over."""

    values: Tensor
    chi_square: float
    draws: int
    met: bool
    ended: bool


def _joined(states: list[_State], classes: list[Tensor], data: Tensor) -> Potentials:
    """Return the potentials of all rows; with shares N_c / N of the classes, chi^2 = sum_c N_c / N chi_c^2."""
    values = torch.empty(len(data), dtype=torch.float64, device=data.device)
    for state, rows in zip(states, classes, strict=True):
        values[rows] = state.values
    reached = sum(len(rows) * state.chi_square for state, rows in zip(states, classes, strict=True)) / len(data)
    return Potentials(values, reached, sum(state.draws for state in states))


def _ascent(source: Distribution, data: Tensor, seed: int, tolerance: float, draws_per_row: float) -> Iterator[_State]:
    """Yield the rounds of one class, until it is within the tolerance or the draws are spent."""
    # equal rows cannot be told apart by any potentials: they are one row of their joint mass
    rows, copies, counts = torch.unique(data.flatten(1), dim=0, return_inverse=True, return_counts=True)
    weights, most = counts.double() / len(data), max(FEWEST, int(draws_per_row * (len(data) + FEWEST)))
    cells, temperature = _start(source, rows, seed)
    size, draws = FEWEST, 0
    for k in count():
        seen = _observe(cells, weights, _points(source, size, seed, k, rows), temperature)
        draws += size
        met = seen.chi_square + 2 * seen.error < tolerance
        ended = met or draws + FEWEST > most
        yield _State(cells.potentials[copies], seen.chi_square, draws, met, ended)
        if ended:
            return
        cells = cells.raised(temperature * seen.step)
        if seen.excess < max(FLAT, EVEN * seen.chi_square) and seen.effective > SHARP:
            temperature /= 2
        elif seen.noise > GROWS * seen.excess or seen.error > tolerance / 4:
            size = min(2 * size, LARGEST * max(len(rows), FEWEST))
        size = min(size, most - draws)


def _points(source: Distribution, size: int, seed: int, k: int, like: Tensor) -> Iterator[Tensor]:
    """Yield the source points `(m, d)` of round k, in chunks that fit in memory."""
    chunk = max(BLOCK, CHUNK // max(1, like.shape[1]))
    for index, start in enumerate(range(0, size, chunk)):
        rng = generator(seed, f"round {k}", index)
        yield source.sample(min(chunk, size - start), rng).flatten(1).to(like.device)


def _start(source: Distribution, rows: Tensor, seed: int) -> tuple[Cells, float]:
    """Return potentials at which all rows score alike on average, and the rms of their scores, the first temperature.

    2 x.y_j - |y_j|^2 + g_j is 2 (x - E x).y_j for g_j = |y_j|^2 - 2 E x.y_j.
    """
    x = next(_points(source, FEWEST, seed, -1, rows)).float()
    cells = cells_of(rows, torch.zeros(len(rows), dtype=torch.float64, device=rows.device))
    mean = (x - cells.centre).mean(0)
    cells = cells.raised(-cells.offset - 2 * (cells.rows @ mean).double())
    scores = 2 * (x - cells.centre - mean) @ cells.rows[:: 1 + len(rows) // FEWEST].T
    return cells, float(scores.square().mean().sqrt()) or 1.0  # one row, whose temperature does not matter


class _Seen(NamedTuple):
    """The observations of a round.

    chi_square, error: of the cells, and its standard error.
    excess: the chi-square of the smoothed masses, without the noise of sampling; noise: that noise.
    effective: 1 / E[sum_j q_j^2], the number of rows that share a draw.
    step: the step of each potential, in temperatures.
    """

    chi_square: float
    error: float
    excess: float
    noise: float
    effective: float
    step: Tensor


def _observe(cells: Cells, weights: Tensor, points: Iterator[Tensor], temperature: float) -> _Seen:
    """Run a round: count draws in their cells, and share them by the softmax q of their scores over the temperature."""
    hits, mass = torch.zeros_like(weights), torch.zeros_like(weights)
    total, squares = 0, torch.zeros_like(weights)
    for x in points:
        total += len(x)
        for _, which, scores in scored(cells, x, REACH * temperature):
            best, column = scores.max(1, keepdim=True)
            hits += torch.bincount(which[column.squeeze(1)], minlength=len(hits))
            # e^-60 is nothing, but a normal number: subnormal ones take a hundred times as long
            q = scores.sub_(best).div_(temperature).clamp_(min=-60).exp_()
            scale = 1 / q.sum(1)
            mass[which] += (scale @ q).double()
            squares[which] += (scale.square() @ q.square_()).double()
    return _judged(weights, hits, mass / total, squares / total, total)


def _judged(weights: Tensor, hits: Tensor, mass: Tensor, squares: Tensor, total: int) -> _Seen:
    """Return the step of a round, from its mean shares p_j = E[q_j] and mean squares E[q_j^2]."""
    reached = chi_square(hits, weights)
    error = math.sqrt(2 * (len(weights) - 1) + 4 * total * max(reached, 0)) / total
    even = mass / weights
    raw = float((weights * (even - 1).square()).sum())
    noise = max(float((squares / weights).sum()) - 1 - raw, 0) / total
    excess = max(raw - noise, 0)
    gain = excess / (excess + noise) if excess else 0.0
    # a row without any mass is raised by a few temperatures a round, and not by infinity
    step = -even.clamp(min=1e-3).log() * gain * _relaxation(mass, squares)
    return _Seen(reached, error, excess, noise, 1 / float(squares.sum()), step)


def _relaxation(mass: Tensor, squares: Tensor) -> Tensor:
    """Return omega_j: the step over that of Sinkhorn, which is stable below 2 over the largest curvature.

    The curvature is p - E[q q^T], over p for Sinkhorn: at most 1, and, as each row of it sums to 0, at most twice its
    diagonal p_j - E[q_j^2]. That is small where the softmax is sharp, so that steps are long there.
    """
    softness = 1 - squares / mass.clamp(min=torch.finfo(mass.dtype).tiny)
    return RELAXED / (2 * softness).clamp(0.2, 1)
