"""Semidiscrete optimal transport: a source that can be sampled without end, and the rows of a whole data set.

For the squared distance the optimal pairing is a partition of space into cells (a power diagram). Row j gets

    cell_j = {x : argmin_i |x - y_i|^2 - g_i = j},

and the potentials g make the source mass p_j of each cell 1/N. They maximise the concave semi-dual
E_x[min_j |x - y_j|^2 - g_j] + mean(g), whose gradient is 1/N - p_j (arXiv 1605.08527, 2509.25519).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import final

import torch
from torch import Tensor

from flowgen.core import WHOLE, InputError, Pair, Part, generator
from flowgen.couplings.laguerre import Cells, cells_of, check_rows, rows_of, scored
from flowgen.couplings.potentials import Potentials, ascend, chi_square, potentials
from flowgen.data.streams import DistributionField

__all__ = ["Potentials", "Semidiscrete", "ascend", "assigned", "chi_square", "potentials"]


@final
@dataclass(frozen=True)
class Semidiscrete:
    """Pairs of source points, each with the data row whose cell it lies in; both a `Draw` and `PairStream`.

    x0 ~ source and x1 = y_j with j = argmin_i |x0 - y_i|^2 - g_i. The source points of a batch stay independent of one
    another, as no batch is solved for. With labels the label of a pair is drawn by its frequency in the data, and x0 is
    paired with rows of that class alone, so that each class has the whole source for its own (arXiv 2503.10636).

    Args:
        source: the distribution of x0.
        data: rows y `(N, *shape)` in model units; a flattened, centred float32 copy is kept beside them.
        potentials: g `(N,)`, as `potentials` or `ascend` found them for this source, data and labels.
        labels: `(N,)` whole numbers, which become the condition of the pairs.

    Raises:
        InputError: if shapes do not agree, or a value is NaN or infinite.
    """

    source: DistributionField = DistributionField()
    data: Tensor  # type: ignore[misc]  # the field before has no default, but a descriptor
    potentials: Tensor  # type: ignore[misc]
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        check_rows(self.source.shape, self.data, self.labels)
        _check_potentials(self.data, self.potentials)

    def __call__(self, n: int, generator: torch.Generator) -> Pair:
        return self._pairs(n, generator, WHOLE)

    def stream(self, size: int, *, seed: int, start: int = 0, part: Part = WHOLE) -> Iterator[Pair]:
        """Yield the part's rows of endless chunks of `size` pairs; chunk k is a function of (seed, k)."""
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
    def _cells(self) -> dict[int, tuple[Tensor, Cells]]:
        return _classes(self.data, self.potentials, self.labels)


def assigned(
    x0: Tensor, data: Tensor, potentials: Tensor, labels: Tensor | None = None, wanted: Tensor | None = None
) -> Tensor:
    """Return the data row of each source point: argmin_j |x0 - y_j|^2 - g_j, among the rows of the wanted label.

    Of rows that are equal, one of the copies. Memory grows with the blocks that are scored, and not with B times N.

    Shapes: x0 `(B, *shape)`, data `(N, *shape)`, potentials `(N,)`, labels `(N,)`, wanted `(B,)`; returns `(B,)` int64.

    Raises:
        InputError: if shapes do not agree, a value is NaN or infinite, or no row has a label that is wanted.
    """
    check_rows(tuple(x0.shape[1:]), data, labels)
    _check_potentials(data, potentials)
    if (labels is None) != (wanted is None):
        raise InputError("labels of the data and the labels wanted go together: give both or neither")
    if wanted is not None and wanted.shape != (len(x0),):
        raise InputError(f"{len(x0)} source points want as many labels, not {tuple(wanted.shape)}")
    if not x0.isfinite().all():
        raise InputError("cannot couple rows that hold NaN or infinite values")
    return _assign(x0.to(data.device), _classes(data, potentials, labels), wanted)


def _classes(data: Tensor, values: Tensor, labels: Tensor | None) -> dict[int, tuple[Tensor, Cells]]:
    """Return the rows of each class and their cells."""
    return {
        label: (rows, cells_of(data[rows], values[rows.to(values.device)]))
        for label, rows in rows_of(labels, len(data)).items()
    }


def _assign(x0: Tensor, classes: dict[int, tuple[Tensor, Cells]], wanted: Tensor | None) -> Tensor:
    index = torch.empty(len(x0), dtype=torch.int64)
    for label, points in rows_of(wanted, len(x0)).items():
        if label not in classes:
            raise InputError(f"no row of the data has the label {label}")
        rows, cells = classes[label]
        index[points] = rows[_nearest(cells, x0[points])]
    return index.to(x0.device)


def _nearest(cells: Cells, x0: Tensor) -> Tensor:
    """Return the cell of each point, `(B,)` on the CPU."""
    x, index = x0.flatten(1), torch.empty(len(x0), dtype=torch.int64, device=x0.device)
    for block, which, scores in scored(cells, x):
        index[block] = which[scores.argmax(1)]
    return index.cpu()


def _check_potentials(data: Tensor, values: Tensor) -> None:
    if values.shape != (len(data),):
        raise InputError(f"{len(data)} rows need as many potentials, not {tuple(values.shape)}")
    if not values.isfinite().all():
        raise InputError("the potentials hold NaN or infinite values")
