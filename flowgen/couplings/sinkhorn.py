"""Entropic optimal transport: plans of many groups of rows at once, and permutations drawn from them."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, final

import torch
from torch import Tensor

from flowgen.core import InputError, Pair
from flowgen.couplings.exact import check_group, classes, squared_distances

__all__ = [
    "Entropic",
    "Plan",
    "Planner",
    "Sinkhorn",
    "check_stop",
    "coupled",
    "mean_cost",
    "permutation",
    "sinkhorn",
]

SWEEPS = 10
"""Updates of both potentials between two looks at the error: each look waits for the device."""
START, MOST = 1.5, 1.95
"""The first and the largest factor of over-relaxation; at 2 the iteration would no longer converge."""


class Plan(NamedTuple):
    """Transport plans between two uniform marginals, one a group.

    log_plan: `(..., n, n)`, log of the plan, whose entries sum to 1.
    error: `(...)`, sum_i |sum_j plan_ij - 1/n| + sum_j |sum_i plan_ij - 1/n|, the marginal error.
    iterations: updates of both potentials.
    converged: whether the error of every group is under the tolerance.
    """

    log_plan: Tensor
    error: Tensor
    iterations: int
    converged: bool

    @property
    def entropy(self) -> Tensor:
        """Return (H(P) - log n) / log n, `(...)`: 0 for a permutation, 1 for the independent plan; of one row, 0."""
        n = self.log_plan.shape[-1]
        entropy = -(self.log_plan.exp() * self.log_plan).sum((-2, -1))
        return (entropy - math.log(n)) / (math.log(n) or 1.0)


Planner = Callable[[Tensor], Plan]
"""Costs `(G, n, n)` to the plans of the groups."""
Drawer = Callable[[Tensor, torch.Generator], Tensor]
"""Logs of plans `(G, n, n)` to the column of each row, `(G, n)`."""


def sinkhorn(
    cost: Tensor, epsilon: Tensor | float, tolerance: float = 1e-3, iterations: int = 2000, slack: float = 0.0
) -> Plan:
    """Return the entropic plans argmin <P, cost> - epsilon H(P) with uniform marginals (arXiv 1306.0895), in the log
    domain.

    P_ij = exp(f_i + g_j - cost_ij / epsilon). Sweeps over-relax the update of each potential, with a factor that
    follows the rate of each group (arXiv 1711.01851); they multiply the plan of the last look, as in arXiv 1610.06519,
    until the marginal error of every group is under `tolerance`. With a slack only the rows are held, and columns c
    cost (epsilon / slack) KL(c | uniform) (arXiv 1607.05816).

    Shapes: cost `(..., n, n)`, any device; epsilon in the units of the cost, `(..., 1, 1)` or one for all groups.
    """
    scaled = -cost / epsilon
    state = _plain(scaled, torch.zeros_like(scaled[..., :1, :]), slack)._replace(omega=START)
    plan = (scaled + state.f + state.g).exp_()
    for done in range(0, iterations, SWEEPS):
        sweeps = min(SWEEPS, iterations - done)
        state = _whole(scaled, state, _swept(plan, state, slack, sweeps), slack)
        log_plan = scaled + state.f + state.g
        plan = log_plan.exp()
        error = _error(plan, state.g, slack)
        converged = bool((error < tolerance).all())
        if converged:
            break
    return Plan(log_plan, error, done + sweeps, converged)


class _State(NamedTuple):
    """Potentials in units of epsilon, f `(..., n, 1)` and g `(..., 1, n)`, and the factor of over-relaxation."""

    f: Tensor
    g: Tensor
    omega: Tensor | float


def _plain(scaled: Tensor, g: Tensor, slack: float) -> _State:
    """Update both potentials once in the log domain; the next sweeps are plain too."""
    n = scaled.shape[-1]
    f = -torch.logsumexp(scaled + g, -1, keepdim=True) - math.log(n)
    columns = -torch.logsumexp(scaled + f, -2, keepdim=True) / (1 + slack) - math.log(n)
    return _State(f, columns, 1.0)


def _swept(plan: Tensor, state: _State, slack: float, sweeps: int) -> _State:
    """Return the state after some sweeps from that of a plan; at its end the row sums are exact."""
    f, g, omega = state
    n, u, v = plan.shape[-1], torch.ones_like(g), torch.ones_like(g)
    columns = []
    for _ in range(sweeps):
        u = u * (n * u * (v @ plan.mT)) ** -omega
        columns.append(_excess(n * v * (u @ plan), g, v, slack))
        v = v * columns[-1] ** -omega
    u = 1 / (n * (v @ plan.mT))
    f, g = f + u.log().mT, g + v.log()
    shift = _shift(g, slack)
    return _State(f - shift, g + shift, _factor(columns, omega) if sweeps == SWEEPS else omega)


def _excess(sums: Tensor, g: Tensor, v: Tensor, slack: float) -> Tensor:
    """Return the factor by which columns whose sums are sums / n are too large, for potentials g + log v.

    With a slack they ought to have g = -log(sum_i exp(f_i - cost_ij / epsilon)) / (1 + slack) - log n. A column that is
    too small for a float stays until it is not.
    """
    if not slack:
        return sums
    held = ((g + v.log() + math.log(g.shape[-1])) * slack).exp()
    return torch.where(sums > 0, sums * held, 1.0) ** (1 / (1 + slack))


def _shift(g: Tensor, slack: float) -> Tensor | float:
    """Return what to add to g, and take from f, for the wanted columns to sum to 1 (arXiv 2201.00730).

    The plan stays as it is; without the shift a large penalty would let g go there by small steps only.
    """
    if not slack:
        return 0.0
    n = g.shape[-1]
    return (torch.logsumexp(-slack * (g + math.log(n)), -1, keepdim=True) - math.log(n)) / slack


def _whole(scaled: Tensor, before: _State, after: _State, slack: float) -> _State:
    """Return the state after sweeps; for groups that left the range of floats, that after one plain update instead."""
    held = (after.f.mT + after.g).isfinite().all(-1, keepdim=True)
    if held.all():
        return after
    plain = _plain(scaled, before.g, slack)
    return _State(*(torch.where(held, new, old) for new, old in zip(after, plain, strict=True)))


def _error(plan: Tensor, g: Tensor, slack: float) -> Tensor:
    """Return the marginal error, `(...)`; with a slack, columns are compared with those of their potential."""
    n = plan.shape[-1]
    wanted = (-slack * (g.squeeze(-2) + math.log(n))).exp() / n
    return (plan.sum(-2) - wanted).abs().sum(-1) + (plan.sum(-1) - 1 / n).abs().sum(-1)


def _factor(columns: list[Tensor], omega: Tensor | float) -> Tensor:
    """Return the best factor of over-relaxation, by the rate at which the corrections of columns went to 1.

    With rate mu under omega, plain sweeps have the rate r = (mu + omega - 1)^2 / (mu omega^2), and the best factor is
    2 / (1 + sqrt(1 - r)) (Young's theory of over-relaxation). Where errors grow, the next sweeps are plain.
    """
    middle = len(columns) // 2
    before, after = ((columns[k] - 1).abs().sum(-1, keepdim=True) for k in (middle, -1))
    mu = (after / before) ** (1 / (len(columns) - 1 - middle))
    plain = (mu + omega - 1) ** 2 / (mu * omega**2)
    best = (2 / (1 + (1 - plain.clamp(max=1)).sqrt())).clamp(max=MOST)
    # at a rate of omega - 1 or less omega is too large already, and says nothing of the plain rate
    return torch.where(mu < 1, torch.where(mu > omega - 1, best, omega), 1.0)


def costs(x0: Tensor, x1: Tensor) -> Tensor:
    """Return the squared distances |x0_i - x1_j|^2 within each group, `(G, n, n)`, on the device of x1.

    Shapes: x0 and x1 `(G, n, *shape)`.

    Raises:
        InputError: if the ends hold NaN or infinite values.
    """
    cost = squared_distances(x0.flatten(2), x1.flatten(2))
    if not cost.isfinite().all():
        raise InputError("cannot couple rows that hold NaN or infinite values")
    return cost


def mean_cost(cost: Tensor) -> Tensor:
    """Return the mean cost of each group, the unit of its epsilon, `(G, 1, 1)`."""
    mean = cost.mean((-2, -1), keepdim=True)
    return mean.where(mean > 0, 1.0)  # equal points everywhere make any plan optimal: the unit is then free


def only(plan: Plan) -> Plan:
    """Return the plan of one group, without the axis of groups."""
    return plan._replace(log_plan=plan.log_plan.squeeze(0), error=plan.error.squeeze(0))


def coupled(pair: Pair, group: int, plans: Planner, draw: Drawer, generator: torch.Generator) -> Pair:
    """Return the pair with its data rows, and their conditions, drawn anew from the plan of each group of rows.

    Rows with labels stay within their class. Groups of equal length are solved together.

    Raises:
        InputError: if the ends differ in their number of rows, or hold NaN or infinite values.
    """
    index = torch.empty(len(pair.x1), dtype=torch.int64)
    for rows in _stacked(pair, group):
        plan = plans(costs(pair.x0[rows], pair.x1[rows]))
        if not plan.converged:
            _warn(plan)
        index[rows] = rows.gather(1, draw(plan.log_plan, generator))
    return pair.take(index)._replace(x0=pair.x0)


def _stacked(pair: Pair, group: int) -> list[Tensor]:
    """Return the numbers of the rows of each group, `(G, n)` for the groups of each length."""
    if len(pair.x0) != len(pair.x1):
        raise InputError(f"a coupling needs as many source as data rows, not {len(pair.x0)} and {len(pair.x1)}")
    blocks = [block for rows in classes(pair) for block in rows.split(group or len(rows))]
    return [torch.stack(list(same)) for _, same in groupby(sorted(blocks, key=len), key=len)]


def _warn(plan: Plan) -> None:
    warnings.warn(
        f"Sinkhorn stopped after {plan.iterations} iterations with a marginal error of {float(plan.error.max()):.2g}, "
        "over the tolerance: raise iterations, the tolerance or the regularisation",
        RuntimeWarning,
        stacklevel=4,
    )


def permutation(log_plan: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a permutation of each group from its plan, `(G, n)`: with Gumbel noise E, the largest sum_i of log plan[i,
    pi(i)] + E[i, pi(i)].

    Where no two rows want the same column this draws each row from its conditional distribution; where they do, the one
    that loses takes its next best, and no point is dropped.
    """
    from scipy.optimize import linear_sum_assignment

    uniform = torch.rand(log_plan.shape, generator=generator, dtype=torch.float64)
    cost = uniform.clamp_(min=1e-300).log_().neg_().log_() - log_plan.cpu()  # rand may be 0, whose log is -inf
    cost -= cost.amin(2, keepdim=True)
    cost -= cost.amin(1, keepdim=True)  # reduced costs have the same solution, and it is found sooner
    return torch.stack([torch.from_numpy(linear_sum_assignment(one)[1]) for one in cost.numpy()])


def check_stop(tolerance: float, iterations: int) -> None:
    """Refuse a tolerance that is not positive, or no iterations, with InputError."""
    if not tolerance > 0 or iterations < 1:
        raise InputError("Sinkhorn needs a positive tolerance, and at least one iteration")


class Entropic(ABC):
    """A coupling by an entropic plan of each group."""

    group: int

    @abstractmethod
    def plans(self, cost: Tensor) -> Plan:
        """Return the plans of the groups with costs `(G, n, n)`."""

    def plan(self, x0: Tensor, x1: Tensor) -> Plan:
        """Return the plan of all rows as one group, with its marginal error; x0 and x1 `(B, *shape)`."""
        return only(self.plans(costs(x0.unsqueeze(0), x1.unsqueeze(0))))

    def diagnostics(self, x0: Tensor, x1: Tensor, cond: Tensor | None = None) -> dict[str, float]:
        """Return the largest `marginal_error` and the mean `plan_entropy` (see `Plan`) of the groups of a batch."""
        pair = Pair(x0, x1, cond)
        found = [self.plans(costs(x0[rows], x1[rows])) for rows in _stacked(pair, self.group)]
        error, entropy = (torch.cat([*x]) for x in zip(*((plan.error, plan.entropy) for plan in found), strict=True))
        return {"marginal_error": float(error.max()), "plan_entropy": float(entropy.mean())}


@final
@dataclass(frozen=True)
class Sinkhorn(Entropic):
    """Entropic optimal transport coupling (arXiv 1306.0895, 2302.00482).

    A permutation drawn from the plan argmin <P, cost> - epsilon H(P) of each group. As epsilon -> 0 it is ExactOT, as
    epsilon -> infinity a random permutation.

    Args:
        epsilon: regularisation, relative to the mean cost of the group.
        tolerance: the marginal error at which a plan has converged.
        iterations: after so many updates an unconverged plan is used, with a RuntimeWarning that states its error.
        group: solve for each run of `group` rows apart, as ExactOT does.

    Raises:
        InputError: if epsilon or the tolerance is not positive, or there is no iteration; if the ends differ in their
            number of rows, or hold NaN or infinite values.
    """

    epsilon: float = 0.05
    tolerance: float = 1e-3
    iterations: int = 2000
    group: int = 128

    def __post_init__(self) -> None:
        check_group(self.group)
        check_stop(self.tolerance, self.iterations)
        if not 0 < self.epsilon < math.inf:
            raise InputError(f"Sinkhorn needs a positive epsilon, not {self.epsilon}")

    def __call__(self, pair: Pair, generator: torch.Generator) -> Pair:
        return coupled(pair, self.group, self.plans, permutation, generator)

    def plans(self, cost: Tensor) -> Plan:
        return sinkhorn(cost, self.epsilon * mean_cost(cost), self.tolerance, self.iterations)
