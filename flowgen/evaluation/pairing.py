"""The cost of couplings, and how far apart their pairs are."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from statistics import median
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from flowgen import __version__
from flowgen.config import COUPLINGS, Config, LoadedData, find_device, lookup, resolve_config
from flowgen.config.semidiscrete import SemidiscreteConfig
from flowgen.core import InputError, Pair
from flowgen.couplings import Coupling, Reporting, Semidiscrete
from flowgen.pairs import IndependentPairs, Pool, Prepared, batches

__all__ = [
    "BASELINE",
    "Clock",
    "Comparison",
    "Measured",
    "Trial",
    "default_of",
    "left_out",
    "measure",
    "stream_of",
    "trials",
]

BASELINE = "independent"
"""What the costs of all couplings are divided by."""


class Trial(NamedTuple):
    """A coupling by name, and the experiment that would train with it."""

    name: str
    config: Config

    @property
    def group(self) -> int | None:
        """Return the most rows that are solved together; None where nothing is solved."""
        rows = self.config.train.batch_size * self.config.pool.batches
        group = getattr(self.config.coupling, "group", None)
        return None if group is None else min(group or rows, rows)

    @property
    def draws(self) -> bool:
        """Return whether the coupling draws the ends of its pairs itself."""
        return isinstance(self.config.coupling, SemidiscreteConfig)


def trials(tree: Mapping[str, Any], names: Sequence[str] = ()) -> list[Trial]:
    """Return the experiments of a tree with each of some couplings, first the independent one.

    Without names they are all that the tree allows, but the semidiscrete one, which learns from all rows for minutes or
    more, first.

    Parameters of couplings in the tree go to those that have them. All trials have the same pool, the largest of them,
    so that they see the same draws; each keeps its reuse.

    Raises:
        InputError: for unknown names and settings, a parameter that none of the couplings has, a coupling in the tree,
            or one that would solve too many rows together.
    """
    asked = bool(names)
    names = names or [name for name, made in COUPLINGS.items() if made is not SemidiscreteConfig]
    names = [BASELINE, *(name for name in dict.fromkeys(names) if name != BASELINE)]
    known = {name: _parameters(lookup("coupling", name, COUPLINGS)) for name in names}
    given = tree.get("coupling", {})
    if not isinstance(given, Mapping) or "name" in given:
        raise InputError("couplings are chosen by --coupling, and not by the setting coupling")
    for key in given:
        lookup("parameter of these couplings", key, dict.fromkeys(chain(*known.values())))
    found, refused, used = [], [], False
    for name, parameters in known.items():
        taken = {key: value for key, value in given.items() if key in parameters}
        try:
            found.append(Trial(name, resolve_config({**tree, "coupling": {"name": name, **taken}})))
        except InputError as error:
            if name == BASELINE:
                raise
            refused.append(InputError(f"{name}: {error}"))
        else:
            used = used or bool(taken)
    if refused and (asked or (given and not used)):
        raise refused[0]
    most = max(trial.config.pool.batches for trial in found)
    return [Trial(name, _pooled(config, most, config.pool.reuse)) for name, config in found]


def left_out(made: Sequence[Trial]) -> list[str]:
    """Return the couplings that `trials` without names has left out, since the tree does not allow them."""
    names = {trial.name for trial in made}
    return [name for name, kind in COUPLINGS.items() if kind is not SemidiscreteConfig and name not in names]


def default_of(tree: Mapping[str, Any]) -> str:
    """Return the name of the coupling that training takes where none is named."""
    coupling = resolve_config({key: value for key, value in tree.items() if key != "coupling"}).coupling
    return next(name for name, made in COUPLINGS.items() if made is type(coupling))


def _parameters(made: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(made)]


def _pooled(config: Config, count: int, reuse: int) -> Config:
    return config.model_copy(update={"pool": Pool(count, reuse)})


class Clock:
    """The seconds that have passed within its blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began


@final
@dataclass(frozen=True)
class _Watched:
    """A coupling whose preparation is timed."""

    coupling: Prepared
    clock: Clock

    def __call__(self, pair: Pair, generator: torch.Generator) -> Pair:
        return self.coupling(pair, generator)

    def prepared(self, rows: int, draw: Callable[[int], Pair]) -> Coupling:
        with self.clock.running():
            return self.coupling.prepared(rows, draw)


class Stream(NamedTuple):
    """Batches without end, and the facts known before the first."""

    pairs: Iterator[Pair]
    diagnostics: dict[str, float]


Say = Callable[[str], None]
"""A callback for the progress of a preparation."""


def stream_of(config: Config, data: LoadedData, ends: IndependentPairs, preparing: Clock, say: Say) -> Stream:
    """Return the batches that training reads, each pair once, solved pool by pool; `preparing` runs while the coupling
    learns what it needs before the first of them.
    """
    coupling, size = config.coupling, config.train.batch_size
    if isinstance(coupling, SemidiscreteConfig):
        with preparing.running():
            made, diagnostics = _semidiscrete(config, coupling, data, ends, say)
        return Stream(made.stream(size, seed=config.seed), diagnostics)
    watched = _Watched(coupling, preparing) if isinstance(coupling, Prepared) else coupling
    pool = Pool(config.pool.batches, 1)
    return Stream(batches(ends, size, seed=config.seed, coupling=watched, pool=pool, threads=0), {})


def _semidiscrete(
    config: Config, settings: SemidiscreteConfig, data: LoadedData, ends: IndependentPairs, say: Say
) -> tuple[Semidiscrete, dict[str, float]]:
    """Return the pairs of potentials that are found first, and the chi-square of these."""
    rows, labels = settings.rows(data, find_device(config.device), config.seed)
    for state in settings.ascend(ends.source, rows, labels, config.seed):
        say(f"chi-square {state.chi_square:.3g}")
    return Semidiscrete(ends.source, rows, state.values, labels), {"chi_square": state.chi_square}


class Measured(NamedTuple):
    """The cost of a coupling, and the pairs that it makes.

    preparation: seconds, once, before the first batch.
    seconds: of a batch, in the median over pools: to draw its ends, to couple and to shuffle them.
    cost: mean |x0 - x1|^2, in model units.
    data: how often the pairs hold each data row, by its hash.
    facts: what the coupling says of its plan for one batch, or for one group where that is larger; of its preparation.
    warnings: what it warned of, the first from each place in the code.
    shown: the first batch.
    """

    trial: Trial
    preparation: float
    seconds: float
    cost: float
    data: Counter[int]
    diagnostics: dict[str, float]
    warnings: list[str]
    shown: Pair


def measure(
    trial: Trial, data: LoadedData, ends: IndependentPairs, pools: int, say: Say = lambda text: None
) -> Measured:
    """Make so many pools, after a small one that loads what is needed, and measure them."""
    config, preparing = trial.config, Clock()
    with warnings.catch_warnings(record=True) as caught:
        for kind in (RuntimeWarning, UserWarning):
            warnings.simplefilter("always", kind)
        if not trial.draws:
            next(stream_of(_pooled(config, 1, 1), data, ends, Clock(), say).pairs)
        stream = stream_of(config, data, ends, preparing, say)
        made = [_pool(config, stream.pairs, preparing) for _ in range(pools)]
        diagnostics = {**stream.diagnostics, **_diagnostics(trial, ends)}
    return Measured(
        trial,
        preparing.seconds,
        median(pool.seconds for pool in made) / config.pool.batches,
        torch.cat([pool.squares for pool in made]).mean().item(),
        sum((pool.data for pool in made), Counter()),
        diagnostics,
        _told(caught),
        made[0].shown,
    )


def _told(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    """Return the first warning from each place, and how many came after it."""
    places = Counter((each.filename, each.lineno) for each in caught)
    first = {(each.filename, each.lineno): str(each.message) for each in reversed(caught)}
    return [text + (f" (and {places[at] - 1} times more)" if places[at] > 1 else "") for at, text in first.items()]


class _Pool(NamedTuple):
    """What is kept of a pool: the seconds it took, |x0 - x1|^2 of its pairs, its data rows, and its first batch."""

    seconds: float
    squares: Tensor
    data: Counter[int]
    shown: Pair


def _pool(config: Config, stream: Iterator[Pair], preparing: Clock) -> _Pool:
    making, before = Clock(), preparing.seconds
    with making.running():
        pairs = [pair.to("cpu") for pair in islice(stream, config.pool.batches)]  # a GPU's work is done by then
    seconds = making.seconds - (preparing.seconds - before)
    squares = torch.cat([(pair.x1 - pair.x0).flatten(1).double().square().sum(1) for pair in pairs])
    data = Counter(hash(row.tobytes()) for pair in pairs for row in pair.x1.numpy())
    return _Pool(seconds, squares, data, pairs[0])


def _diagnostics(trial: Trial, ends: IndependentPairs) -> dict[str, float]:
    """Return what a coupling says of its plan for ends that are not coupled yet."""
    config = trial.config
    if not isinstance(config.coupling, Reporting):
        return {}
    drawn = next(ends.stream(max(config.train.batch_size, trial.group or 0), seed=config.seed))
    return config.coupling.diagnostics(*drawn)


class Comparison(NamedTuple):
    """Couplings that were measured on the same draws, the independent one first.

    data: the name of the data.
    default: the coupling that training takes where none is named.
    pools: how many were made.
    classes: within how many classes rows are paired; 0 without labels.
    left_out: couplings that were meant, and that the settings do not allow.
    """

    data: str
    default: str
    pools: int
    classes: int
    measured: list[Measured]
    left_out: Sequence[str] = ()

    @property
    def config(self) -> Config:
        """Return the experiment of the independent coupling; the others differ in their coupling and the reuse of
        pairs.
        """
        return self.measured[0].trial.config

    @property
    def rows(self) -> int:
        """Return the number of pairs that each coupling made."""
        return self.pools * self.config.pool.batches * self.config.train.batch_size

    def ratio(self, of: Measured) -> float:
        """Return a transport cost over that of independent pairs; NaN where all points are one."""
        return of.cost / self.measured[0].cost if self.measured[0].cost else math.nan

    def used(self, of: Measured) -> float | None:
        """Return the share of the drawn data rows that the pairs hold, where a row that was drawn twice counts as two;
        None of a coupling with draws of its own.
        """
        drawn = self.measured[0].data
        return None if of.trial.draws else (drawn & of.data).total() / drawn.total()

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON values; None for what a coupling does not have."""
        config = self.config
        return {
            "data": config.data,
            "source": config.source,
            "default": self.default,
            "batch_size": config.train.batch_size,
            "pool_batches": config.pool.batches,
            "pairs": self.rows,
            "classes": self.classes,
            "seed": config.seed,
            "flowgen": __version__,
            "torch": torch.__version__,
            "device": str(find_device(config.device)),
            "couplings": [self._plain(each) for each in self.measured],
        }

    def _plain(self, of: Measured) -> dict[str, Any]:
        config, ratio = of.trial.config, self.ratio(of)
        return {
            **config.model_dump()["coupling"],
            "rows_together": of.trial.group,
            "reuse": config.pool.reuse,
            "ms_per_batch": 1000 * of.seconds,
            "ms_per_step": 1000 * of.seconds / config.pool.reuse,
            "preparation_seconds": of.preparation,
            "transport_cost": of.cost,
            "ratio": ratio if math.isfinite(ratio) else None,
            "data_used": self.used(of),
            "diagnostics": of.diagnostics,
            "warnings": of.warnings,
        }
