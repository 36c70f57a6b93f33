"""Couplings that keep the source independent of every condition."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flowgen.core import InputError, Named, Pair
from flowgen.couplings.exact import COUPLINGS, Coupling, transport_cost, widest

__all__ = ["Conditioned", "found_weight"]


@final
@dataclass(frozen=True)
class Conditioned:
    """Conditional optimal transport, for conditions `(B, ...)` that are floats (arXiv 2503.10636).

    A coupling that does not see the condition gives each condition a source of its own, while sampling draws from the
    whole. Here row i of the source keeps the condition c_i that it came with, and rows are coupled at the cost

        |x0_i - x1_j|^2 + w |c_i - c_j|^2,

    the squared distance of (x0_i, sqrt(w) c_i) and (x1_j, sqrt(w) c_j), which any coupling of rows solves. With w = 0
    it is that coupling; as w grows, rows move to like conditions only, and a condition that no other row has keeps its
    pair. Units that a coupling takes from the mean cost, such as Sinkhorn's epsilon, are those of this cost.

    The paper's cosine distance is half the squared distance of unit vectors: divide the conditions by their norms.

    Args:
        coupling: what couples the rows.
        weight: w; None finds one for each batch, see `found_weight`.
        ratio: the share of pairs that a weight which is found leaves to choose from.

    Raises:
        InputError: for a weight that is negative or not finite, or a ratio that is no share; on rows without condition,
            with labels (which couplings keep apart by themselves), or with conditions that are not finite.
    """

    coupling: Named[Coupling] = Named(COUPLINGS, "exact")
    weight: float | None = None
    ratio: float = 0.01

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 <= self.weight < math.inf:
            raise InputError(f"the weight of a condition must be finite and not negative, not {self.weight}")
        if not 0 <= self.ratio <= 1:
            raise InputError(f"the ratio of a conditioned coupling must be from 0 to 1, not {self.ratio}")

    @property
    def group(self) -> int:
        """Return the group of the coupling, where it has one."""
        return self.coupling.group  # type: ignore[attr-defined]

    def __call__(self, pair: Pair, generator: torch.Generator) -> Pair:
        cond, x0 = _numbers(pair), pair.x0.to(pair.x1.device)
        weight = found_weight(x0, pair.x1, cond, self.ratio) if self.weight is None else self.weight
        scaled = math.sqrt(weight) * _flat(cond.to(x0.device))
        # the numbers of the rows as floats: whole numbers would be labels, a class for each row
        numbers = torch.arange(len(cond), device=x0.device).to(scaled.dtype)
        wide = Pair(torch.cat([_flat(x0), scaled], dim=1), torch.cat([_flat(pair.x1), scaled], dim=1), numbers)
        index = self.coupling(wide, generator).cond.long()  # type: ignore[union-attr]  # the numbers, as paired
        return Pair(pair.x0, pair.x1[index], cond[index.to(cond.device)])


def found_weight(x0: Tensor, x1: Tensor, cond: Tensor, ratio: float) -> float:
    """Return the least w at which, of all (i, j) with j != i, at most a share `ratio` costs less than the pair of i:

    |x0_i - x1_j|^2 + w |c_i - c_j|^2 < |x0_i - x1_i|^2.

    (i, j) stops to cost less at w_ij = (|x0_i - x1_i|^2 - |x0_i - x1_j|^2) / |c_i - c_j|^2: w is a quantile of these,
    and needs no search. No weight parts equal conditions: where they alone exceed the ratio, w is the least that parts
    all others.

    Shapes: x0, x1 `(B, *shape)`, cond `(B, ...)`; uses memory for `(B, B)`.
    """
    cost, gap = transport_cost(x0, x1), _squares(cond)
    gain = cost.diagonal().unsqueeze(1) - cost
    never = torch.where(gain > 0, math.inf, -math.inf)
    limits = torch.where(gap > 0, gain / gap, never)[~torch.eye(len(cost), dtype=torch.bool)]
    parted = limits[limits < math.inf]
    above = max(0, int(ratio * len(limits)) - (len(limits) - len(parted)))
    if above >= len(parted):
        return 0.0
    return max(0.0, float(parted.kthvalue(len(parted) - above).values))


def _squares(cond: Tensor) -> Tensor:
    """Return |c_i - c_j|^2 `(B, B)` by differences, which are exactly 0 for equal conditions."""
    flat = _flat(cond).cpu()
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()


def _flat(x: Tensor) -> Tensor:
    """Return rows `(B, dim)`, float64 where the device has it."""
    return x.detach().to(widest(x.device)).reshape(len(x), -1)


def _numbers(pair: Pair) -> Tensor:
    """Return the condition after checking that it consists of finite numbers, one for each row."""
    if pair.cond is None or not pair.cond.is_floating_point():
        raise InputError("Conditioned is for conditions that are floats: labels are kept apart by every coupling")
    if not len(pair.x0) == len(pair.x1) == len(pair.cond):
        rows = f"{len(pair.x0)}, {len(pair.x1)} and {len(pair.cond)}"
        raise InputError(f"Conditioned needs as many source rows, data rows and conditions, not {rows}")
    if not pair.cond.isfinite().all():
        raise InputError("cannot couple rows whose conditions are NaN or infinite")
    return pair.cond
