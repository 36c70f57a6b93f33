"""Steps with a flow map: of its own, and to the data and back along the path with a new source."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from flowgen.core import FlowMap, expand_time
from flowgen.data.streams import DistributionField, source_rows
from flowgen.samplers.ode import Solver
from flowgen.schedules import Schedule

__all__ = ["ConsistencySampler", "FlowMapStep"]


@final
@dataclass(frozen=True)
class FlowMapStep(Solver):
    """A flow map's own step: x_s = x_t + (s - t) u(x_t, t, s), with u in place of the field."""

    order = 1
    needs_flow_map: ClassVar[bool] = True

    def step(  # type: ignore[override]  # its field is of two times
        self, field: FlowMap, x: Tensor, t: float, s: float, cond: Tensor | None = None, carry: Any = None
    ) -> tuple[Tensor, None]:
        return torch.add(x, field(x, expand_time(t, x), expand_time(s, x), cond), alpha=s - t), None


jump = FlowMapStep()


@final
@dataclass(frozen=True)
class ConsistencySampler(Solver):
    """The steps of a consistency model (arXiv 2303.01469): to the data, and back along the path with a new source,

    x1 = x_t + (1 - t) u(x_t, t, 1),  x_s = alpha(s) x1 + sigma(s) x0,

    with what the path leaves of x0 in x1 (sigma(1), 0 but for a Gaussian source) taken off the new one, in quadrature.

    The source of a row is a function of the seed, the number of the row and the time s, and of nothing else.

    Args:
        schedule: of the model.
        source: the distribution of x0, in model units.
        seed: of x0.
        first: the number of the first row of a batch.
    """

    order = 1
    needs_flow_map: ClassVar[bool] = True
    schedule: Schedule
    source: DistributionField = DistributionField()
    seed: int = 0
    first: int = 0

    @property
    def stochastic(self) -> bool:
        return True

    def at(self, row: int) -> ConsistencySampler:
        return replace(self, first=self.first + row)

    def step(  # type: ignore[override]  # its field is of two times
        self, field: FlowMap, x: Tensor, t: float, s: float, cond: Tensor | None = None, carry: Any = None
    ) -> tuple[Tensor, None]:
        x1 = torch.add(x, field(x, expand_time(t, x), expand_time(1.0, x), cond), alpha=1 - t)
        there, end = self.schedule.mark(s), self.schedule.mark(1.0)
        sigma = math.sqrt(max(0.0, there.sigma**2 - (there.alpha * end.sigma / end.alpha) ** 2))
        if s == 1:
            return x1, None
        x0 = source_rows(self.source, self.first, self.first + len(x), self.seed, f"source at {s!r}")
        return there.alpha / end.alpha * x1 + sigma * x0.to(x), None
