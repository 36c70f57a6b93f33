"""Semidiscrete optimal transport: a source that can be drawn from without end, and the rows of a whole data set.

For the squared distance the optimal pairing is a partition of space into cells (a power diagram). Row j gets

    cell_j = {x : argmin_i |x - y_i|^2 - g_i = j},

and the potentials g make the source mass p_j of each cell 1/N. They maximise the concave semi-dual
E_x[min_j |x - y_j|^2 - g_j] + mean(g), whose gradient is 1/N - p_j (arXiv 1605.08527, 2509.25519).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import NamedTuple, final

import torch
from torch import Tensor

from flowgen.core import WHOLE, InputError, Pair, Part, generator
from flowgen.data.laws import Law

__all__ = ["Potentials", "Semidiscrete", "ascend", "assigned", "chi_square", "potentials"]

BLOCK = 512
"""Source rows that are scored at once, all of them near one another where that helps."""
SCORES = 2**25
"""Scores that are held at once: 128 MiB."""
CHUNK = 2**24
"""Numbers of source points that are held at once: 64 MiB."""
PRUNED = 32
"""In more dimensions than these a block of source points meets so many cells that none can be left out."""
FEWEST = 2**10
"""Draws of the first round."""
LARGEST = 32
"""Draws for each row in the largest rounds."""
GROWS = 0.5
"""Rounds grow once noise is more than so much of what is left to gain."""
EVEN = 0.1
"""The temperature falls once the chi-square of the smoothed masses is below so much of that of the cells."""
SHARP = 1.3
"""The temperature falls until so many rows share a draw."""
ROUNDING = 1e-5
"""What float32 may have lost of a lead: a hundred times its last digit."""
REACH = 16.0
"""Rows so many temperatures below the best have a share under e^-16 = 1e-7 of it, and are left out."""


class Potentials(NamedTuple):
    """The potentials of all rows, and how well they share the source out.

    values: g `(N,)` float64, on the device of the data.
    chi_square: sum_j (p_j - 1/N)^2 / (1/N), an unbiased estimate from draws that g has not seen. It may fall below 0.
    draws: source points drawn so far.
    """

    values: Tensor
    chi_square: float
    draws: int


@final
@dataclass(frozen=True)
class Semidiscrete:
    """Pairs of source points, each with the data row whose cell it lies in; both a `Draw` and `Streamed`.

    x0 ~ source and x1 = y_j with j = argmin_i |x0 - y_i|^2 - g_i. The source points of a batch stay independent of one
    another, as no batch is solved for. With labels the label of a pair is drawn by its frequency in the data, and x0 is
    paired with rows of that class alone, so that each class has the whole source for its own (arXiv 2503.10636).

    Args:
        source: the law of x0.
        data: rows y `(N, *event)` in model units; a flattened, centred float32 copy is kept beside them.
        potentials: g `(N,)`, as `potentials` or `ascend` found them for this source, data and labels.
        labels: `(N,)` whole numbers, which become the condition of the pairs.

    Raises:
        InputError: if shapes do not agree, or a value is NaN or infinite.
    """

    source: Law
    data: Tensor
    potentials: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        _check(self.source.event, self.data, self.labels)
        _check_potentials(self.data, self.potentials)

    def __call__(self, n: int, generator: torch.Generator) -> Pair:
        return self._pairs(n, generator, WHOLE)

    def stream(self, size: int, *, seed: int, start: int = 0, part: Part = WHOLE) -> Iterator[Pair]:
        """The part's rows of endless chunks of `size` pairs; chunk k is a function of (seed, k)."""
        for k in count(start):
            yield self._pairs(size, generator(seed, "semidiscrete pairs", k), part)

    def _pairs(self, n: int, rng: torch.Generator, part: Part) -> Pair:
        x0 = self.source.sample(n, rng).to(self.data.device)[part.rows(n)]
        wanted = None if self.labels is None else self._labels(n, rng)[part.rows(n)]
        index = _assign(x0, self._cells, wanted)
        return Pair(x0, self.data[index], wanted)

    def _labels(self, n: int, rng: torch.Generator) -> Tensor:
        assert self.labels is not None
        return self.labels[torch.randint(len(self.labels), (n,), generator=rng).to(self.labels.device)]

    @cached_property
    def _cells(self) -> dict[int, tuple[Tensor, _Cells]]:
        return _classes(self.data, self.potentials, self.labels)


def assigned(
    x0: Tensor, data: Tensor, potentials: Tensor, labels: Tensor | None = None, wanted: Tensor | None = None
) -> Tensor:
    """The data row of each source point: argmin_j |x0 - y_j|^2 - g_j, among the rows of the label that is wanted.

    Of rows that are equal, one of the copies. Memory grows with the blocks that are scored, and not with B times N.

    Shapes: x0 `(B, *event)`, data `(N, *event)`, potentials `(N,)`, labels `(N,)`, wanted `(B,)`; returns `(B,)` int64.

    Raises:
        InputError: if shapes do not agree, a value is NaN or infinite, or no row has a label that is wanted.
    """
    _check(tuple(x0.shape[1:]), data, labels)
    _check_potentials(data, potentials)
    if (labels is None) != (wanted is None):
        raise InputError("labels of the data and the labels wanted go together: give both or neither")
    if wanted is not None and wanted.shape != (len(x0),):
        raise InputError(f"{len(x0)} source points want as many labels, not {tuple(wanted.shape)}")
    if not x0.isfinite().all():
        raise InputError("cannot couple rows that hold NaN or infinite values")
    return _assign(x0.to(data.device), _classes(data, potentials, labels), wanted)


def potentials(
    source: Law,
    data: Tensor,
    *,
    seed: int,
    labels: Tensor | None = None,
    tolerance: float = 0.01,
    draws_per_row: float = 1000.0,
) -> Potentials:
    """The last state of `ascend`, whose arguments these are."""
    *_, last = ascend(source, data, seed=seed, labels=labels, tolerance=tolerance, draws_per_row=draws_per_row)
    return last


def ascend(
    source: Law,
    data: Tensor,
    *,
    seed: int,
    labels: Tensor | None = None,
    tolerance: float = 0.01,
    draws_per_row: float = 1000.0,
) -> Iterator[Potentials]:
    """Stochastic ascent on the semi-dual, round by round; each state is measured on draws that it has not seen.

    The minimum is smoothed into a softmax of the scores g_j - |x - y_j|^2 at a temperature, so that one draw tells of
    many rows; with p_j the mass of row j in shares of 1/N, each round draws anew and takes the step

        g_j <- g_j - omega gain temperature log p_j,      gain = excess / (excess + noise).

    The gain is Kalman's: what of the chi-square of p is no sampling noise, so that rounds average out as 1/t. omega
    is over-relaxation. Once the smoothed masses are even, the temperature halves; rounds grow where noise rules them.
    All classes advance together, each with potentials of its own. A function of the arguments alone.

    Args:
        source: the law of x0.
        data: rows y `(N, *event)`, in model units; half types are computed with as float32.
        labels: `(N,)` whole numbers: the source is shared out anew within each class.
        tolerance: stop once the chi-square, and one standard error more, is below it (in each class).
        draws_per_row: the most source points to draw, in multiples of N; below about 2 / tolerance too few.

    Yields:
        the potentials and their chi-square before each step. That of classes is the mean by their rows, and so the
        chi-square of all rows. Equal rows count as one of their joint mass. Its standard error for M draws in the last
        round is sqrt(2 N + 4 M chi_square) / M.

    Warns:
        RuntimeWarning: with the chi-square that was reached, if the draws end first.

    Raises:
        InputError: if shapes do not agree, a value is NaN or infinite, or a bound is not positive.
    """
    _check(source.event, data, labels)
    if not (0 < tolerance < math.inf and 0 < draws_per_row < math.inf):
        raise InputError(f"tolerance and draws_per_row must be positive, not {tolerance} and {draws_per_row}")
    classes = list(_rows(labels, len(data)).values())
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
    """An unbiased estimate of sum_j (p_j - w_j)^2 / w_j = sum_j p_j^2 / w_j - 1, from how often each cell was hit.

    It counts pairs of draws in one cell, sum_j h_j (h_j - 1) / (w_j M (M - 1)) - 1, as the plain statistic of M draws
    is (N - 1) / M too large.

    Shapes: hits h and weights w, which sum to 1, `(N,)`.
    """
    h, total = hits.double(), float(hits.sum())
    return float((h * (h - 1) / weights.double()).sum()) / (total * (total - 1)) - 1


class _State(NamedTuple):
    """Where the ascent of one class stands: whether it is within the tolerance, and whether it is over."""

    values: Tensor
    chi_square: float
    draws: int
    met: bool
    ended: bool


def _joined(states: list[_State], classes: list[Tensor], data: Tensor) -> Potentials:
    """The potentials of all rows; with shares N_c / N of the classes, chi^2 = sum_c N_c / N chi_c^2."""
    values = torch.empty(len(data), dtype=torch.float64, device=data.device)
    for state, rows in zip(states, classes, strict=True):
        values[rows] = state.values
    reached = sum(len(rows) * state.chi_square for state, rows in zip(states, classes, strict=True)) / len(data)
    return Potentials(values, reached, sum(state.draws for state in states))


def _ascent(source: Law, data: Tensor, seed: int, tolerance: float, draws_per_row: float) -> Iterator[_State]:
    """The rounds of one class, until it is within the tolerance or the draws are spent."""
    # equal rows cannot be told apart by any potentials: they are one row of their joint mass
    rows, copies, counts = torch.unique(data.flatten(1), dim=0, return_inverse=True, return_counts=True)
    weights, most = counts.double() / len(data), max(FEWEST, int(draws_per_row * len(data)))
    cells, temperature = _start(source, rows, seed)
    size, draws = FEWEST, 0
    for k in count():
        seen = _observe(cells, weights, _points(source, size, seed, k, rows), temperature)
        draws += size
        met = seen.chi_square + seen.error < tolerance
        ended = met or draws + FEWEST > most
        yield _State(cells.potentials[copies], seen.chi_square, draws, met, ended)
        if ended:
            return
        cells = cells.raised(temperature * seen.step)
        if seen.excess < max(tolerance / 2, EVEN * seen.chi_square) and seen.effective > SHARP:
            temperature /= 2
        elif seen.noise > GROWS * seen.excess:
            size = min(2 * size, max(FEWEST, LARGEST * len(rows)))
        size = min(size, most - draws)


def _points(source: Law, size: int, seed: int, k: int, like: Tensor) -> Iterator[Tensor]:
    """The source points `(m, d)` of round k, in chunks that memory holds."""
    chunk = max(BLOCK, CHUNK // max(1, like.shape[1]))
    for index, start in enumerate(range(0, size, chunk)):
        rng = generator(seed, f"round {k}", index)
        yield source.sample(min(chunk, size - start), rng).flatten(1).to(like.device)


def _start(source: Law, rows: Tensor, seed: int) -> tuple[_Cells, float]:
    """Potentials at which all rows score alike on average, and the rms of their scores, the first temperature.

    2 x.y_j - |y_j|^2 + g_j is 2 (x - E x).y_j for g_j = |y_j|^2 - 2 E x.y_j.
    """
    x = next(_points(source, FEWEST, seed, -1, rows)).float()
    cells = _cells(rows, torch.zeros(len(rows), dtype=torch.float64, device=rows.device))
    mean = (x - cells.centre).mean(0)
    cells = cells.raised(-cells.offset - 2 * (cells.rows @ mean).double())
    scores = 2 * (x - cells.centre - mean) @ cells.rows[:: 1 + len(rows) // FEWEST].T
    return cells, float(scores.square().mean().sqrt()) or 1.0  # one row, whose temperature does not matter


class _Seen(NamedTuple):
    """What a round saw.

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


def _observe(cells: _Cells, weights: Tensor, points: Iterator[Tensor], temperature: float) -> _Seen:
    """A round: draws counted in their cells, and shared by the softmax q of their scores over the temperature."""
    hits, mass = torch.zeros_like(weights), torch.zeros_like(weights)
    total, squares, weighted = 0, 0.0, 0.0
    inverse = (1 / weights).float()
    for x in points:
        total += len(x)
        for _, which, scores in _scored(cells, x, REACH * temperature):
            best, column = scores.max(1, keepdim=True)
            hits += torch.bincount(which[column.squeeze(1)], minlength=len(hits))
            # e^-60 is nothing, but a normal number: subnormal ones take a hundred times as long
            q = scores.sub_(best).div_(temperature).clamp_(min=-60).exp_()
            scale = 1 / q.sum(1)
            mass[which] += (scale @ q).double()
            square = q.square_().mul_(scale.square().unsqueeze(1))
            squares += float(square.sum())
            weighted += float((square @ inverse[which]).sum())
    return _judged(weights, hits, mass / total, squares / total, weighted / total, total)


def _judged(weights: Tensor, hits: Tensor, mass: Tensor, squares: float, weighted: float, total: int) -> _Seen:
    """From the mean shares p_j, E[sum_j q_j^2] and E[sum_j q_j^2 / w_j] of a round to its step."""
    reached = chi_square(hits, weights)
    error = math.sqrt(2 * (len(weights) - 1) + 4 * total * max(reached, 0)) / total
    even = mass / weights
    raw = float((weights * (even - 1).square()).sum())
    noise = max(weighted - 1 - raw, 0) / total
    excess = max(raw - noise, 0)
    gain = excess / (excess + noise) if excess else 0.0
    # a row without any mass is raised by a few temperatures a round, and not by infinity
    step = -even.clamp(min=1e-3).log() * gain * _relaxation(squares)
    return _Seen(reached, error, excess, noise, 1 / squares, step)


def _relaxation(squares: float) -> float:
    """omega: the step over that of Sinkhorn, whose curvature 1 - K, with K_ij = E[q_i q_j] / p_i, is in [0, 1].

    Steps below 2 over the largest curvature are stable. As the softmax sharpens, K nears the identity, and the
    curvature is at most about twice its mean 1 - E[sum_j q_j^2].
    """
    return 1.8 / min(1.0, 2 * max(1 - squares, 0.1))


@final
@dataclass(frozen=True)
class _Cells:
    """The power diagram of rows `(n, d)`, centred, in float32: in cell j, 2 (x - centre).y_j + offset_j is largest.

    offset_j = g_j - |y_j|^2 is kept in float64: neighbours differ in its last digits.
    """

    rows: Tensor
    offset: Tensor
    centre: Tensor

    @property
    def potentials(self) -> Tensor:
        return self.offset + self.rows.double().square().sum(1)

    def raised(self, step: Tensor) -> _Cells:
        """The cells after g_j <- g_j + step_j, less a constant, which changes nothing."""
        offset = self.offset + step
        return _Cells(self.rows, offset - offset.mean(), self.centre)


def _cells(rows: Tensor, values: Tensor) -> _Cells:
    flat = rows.flatten(1)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    centre = flat.mean(0)
    flat = (flat - centre).float()
    return _Cells(flat, values.to(flat.device, torch.float64) - flat.double().square().sum(1), centre.float())


def _scored(cells: _Cells, x: Tensor, reach: float = 0.0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Block by block: the numbers of its points, of the rows that matter there, and their scores, up to a constant.

    Rows matter which are the best of some point of the block, or within `reach` of the best.
    """
    x = x.float() - cells.centre
    for near in _runs(x):
        which, rows, offset, middle = _candidates(cells, x[near], reach)
        for block in near.split(max(1, SCORES // len(which))):
            yield block, which, torch.addmm(offset, x[block] - middle, rows.T, alpha=2)


def _runs(x: Tensor) -> list[Tensor]:
    """The numbers of all points, in runs of at most a block; in few dimensions halved until those of a run are near."""
    runs = [torch.arange(len(x), device=x.device)]
    if x.shape[1] > PRUNED:
        return list(runs[0].split(BLOCK))
    for level in range(max(0, math.ceil(math.log2(max(1, len(x)) / BLOCK)))):
        axis = x[:, level % x.shape[1]]
        runs = [half for run in runs for half in run[axis[run].argsort()].tensor_split(2)]
    return runs


def _candidates(cells: _Cells, x: Tensor, reach: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows that matter in the box of x, less one of them; their offsets at its middle, and the middle.

    With half sides h, the lead of row j over row r changes by at most 2 |y_j - y_r|.h over the box: exact, where r is
    the best at the middle or any other.
    """
    if x.shape[1] > PRUNED:
        return torch.arange(len(cells.rows), device=x.device), cells.rows, cells.offset.float(), torch.zeros_like(x[0])
    low, high = x.amin(0), x.amax(0)
    middle, half = (low + high) / 2, (high - low) / 2
    best = int((2 * (cells.rows @ middle) + cells.offset).argmax())
    beside = cells.rows - cells.rows[best]
    lead = 2 * (beside @ middle) + (cells.offset - cells.offset[best])
    which = (lead + 2 * (beside.abs() @ half) >= -reach - ROUNDING * lead.abs()).nonzero().squeeze(1)
    return which, beside[which], lead[which].float(), middle


def _classes(data: Tensor, values: Tensor, labels: Tensor | None) -> dict[int, tuple[Tensor, _Cells]]:
    """The rows of each class and their cells."""
    return {
        label: (rows, _cells(data[rows], values[rows.to(values.device)]))
        for label, rows in _rows(labels, len(data)).items()
    }


def _rows(labels: Tensor | None, n: int) -> dict[int, Tensor]:
    """The numbers of the rows of each label; of all rows under 0, where there are no labels."""
    if labels is None:
        return {0: torch.arange(n)}
    return {int(label): (labels == label).nonzero().squeeze(1).cpu() for label in labels.unique()}


def _assign(x0: Tensor, classes: dict[int, tuple[Tensor, _Cells]], wanted: Tensor | None) -> Tensor:
    index = torch.empty(len(x0), dtype=torch.int64)
    for label, points in _rows(wanted, len(x0)).items():
        if label not in classes:
            raise InputError(f"no row of the data has the label {label}")
        rows, cells = classes[label]
        index[points] = rows[_nearest(cells, x0[points])]
    return index.to(x0.device)


def _nearest(cells: _Cells, x0: Tensor) -> Tensor:
    """The cell of each point, `(B,)` on the CPU."""
    x, index = x0.flatten(1), torch.empty(len(x0), dtype=torch.int64, device=x0.device)
    for block, which, scores in _scored(cells, x):
        index[block] = which[scores.argmax(1)]
    return index.cpu()


def _check(event: tuple[int, ...], data: Tensor, labels: Tensor | None) -> None:
    if not len(data):
        raise InputError("the data has no rows")
    if not data.is_floating_point():
        raise InputError(f"the data must be floats in model units, not {data.dtype}")
    if tuple(data.shape[1:]) != tuple(event):
        raise InputError(f"the source has shape {event}, the data {tuple(data.shape[1:])}: they must agree")
    if not data.isfinite().all():
        raise InputError("the data holds NaN or infinite values")
    if labels is not None and (labels.shape != (len(data),) or labels.is_floating_point()):
        raise InputError(f"{len(data)} rows need as many whole labels, not {labels.dtype} {tuple(labels.shape)}")


def _check_potentials(data: Tensor, values: Tensor) -> None:
    if values.shape != (len(data),):
        raise InputError(f"{len(data)} rows need as many potentials, not {tuple(values.shape)}")
    if not values.isfinite().all():
        raise InputError("the potentials hold NaN or infinite values")
