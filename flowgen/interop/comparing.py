"""Comparison of what was exported with the model."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor

from flowgen.core import Failure
from flowgen.interop.graphs import Graph

__all__ = ["BATCHES", "Compared", "compare"]

BATCHES = (1, 7)
"""Batches that are compared: the least, and one of another size than what was traced."""

SHARE = 10
"""How many times the rounding of the model itself an export may differ by; those of the nets here are within 3."""


class Compared(NamedTuple):
    """The largest difference, what float32 costs the model itself, and the largest value."""

    difference: float
    rounding: float
    largest: float

    @property
    def tolerance(self) -> float:
        """Return SHARE times the rounding, but at least that of the last 4 places: of few values it may be small by
        luck.
        """
        return SHARE * max(self.rounding, 4 * torch.finfo(torch.float32).eps * self.largest)


@torch.no_grad()
def compare(graph: Graph, other: Callable[..., Tensor]) -> Compared:
    """Measure how far `other(*inputs)` is from the graph, on random inputs of two batch sizes.

    An export computes the same sums in another order. What that may change is measured: by how much the model in
    float32 differs from the same in float64.

    Raises:
        Failure: if the model's values are not finite, or the difference is not within tolerance.
    """
    wide = deepcopy(graph.module).double()
    found = [Compared(0.0, 0.0, 0.0)]
    for rows in BATCHES:
        inputs = graph.draw(rows)
        y, exact = graph.module(*inputs), wide(*map(_wide, inputs))
        found.append(Compared(_largest(other(*inputs) - y), _largest(y - exact), _largest(y)))
    result = Compared(*map(max, zip(*found, strict=True)))
    if not result.largest < torch.inf:
        raise Failure("the run cannot be exported: its model gives values that are not finite")
    if not result.difference <= result.tolerance:
        raise Failure(
            f"nothing was exported: the result differs from the model by {result.difference:.3g}, "
            f"more than rounding explains ({result.tolerance:.3g})"
        )
    return result


def _wide(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _largest(x: Tensor) -> float:
    """Return max |x|; infinite where a value is not a number."""
    return x.double().abs().nan_to_num(torch.inf, posinf=torch.inf).max().item()
