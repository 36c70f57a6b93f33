"""Which cases are run: all with --full; else of a product of parameters so many that every two values meet.

Of tests marked `costly`, so many that every value is met.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from heapq import heapify, heappop, heapreplace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

FEW = 16
"""Products of no more cases are run whole."""

WHOLE = ("whole", "slow", "gpu")
"""Marks of tests some of whose cases are skipped, or left out by their mark: they would meet nothing."""

Values = dict[str, Hashable]
"""The value of each parameter of a case, by the parameter's name."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run all cases of products of parameters")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file of journeys alone where they are left out."""
    if "not journey" not in config.option.markexpr or collection_path.suffix != ".py":
        return None
    return bool(re.search(r"^pytestmark = .*pytest\.mark\.journey", collection_path.read_text(), re.M)) or None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full") or config.option.keyword:  # who names cases means them
        return
    functions = defaultdict(list)
    for item in items:
        if hasattr(item, "callspec"):
            functions[item.nodeid.partition("[")[0]].append(item)
    left = set[pytest.Item]()
    for cases in functions.values():
        costly = cases[0].get_closest_marker("costly")
        if not costly and (len(cases) <= FEW or any(case.get_closest_marker(mark) for case in cases for mark in WHOLE)):
            continue
        kept = covering([values_of(case) for case in cases], 1 if costly else 2)
        left |= {case for index, case in enumerate(cases) if index not in kept}
    config.hook.pytest_deselected(items=[item for item in items if item in left])
    items[:] = [item for item in items if item not in left]


def values_of(case: Any) -> Values:
    """The values of a case; of a parameter that is a tuple, such as a path and a prediction, each for itself."""
    found: Values = {}
    for name, value in case.callspec.params.items():
        if isinstance(value, tuple) and len(value) > 1:
            found |= {f"{name}.{place}": _same(part) for place, part in enumerate(value)}
        else:
            found[name] = _same(value)  # and not its index, which pytest counts through all cases
    return found


def covering(cases: Sequence[Values], size: int) -> set[int]:
    """The numbers of some of the cases, in which all sets of so many values meet that meet in any: the greedy cover.

    A case that is alone with a value of its single parameter is always among them.
    """
    sets = [
        set(combinations(sorted(values.items(), key=lambda item: item[0]), size)) or {tuple(values.items())}
        for values in cases
    ]
    open_sets, kept = set().union(*sets), set[int]()
    gains = [(-len(own), index) for index, own in enumerate(sets)]
    heapify(gains)
    while open_sets:
        counted, best = gains[0]
        gain = -len(sets[best] & open_sets)
        if gain != counted:  # it was counted before others covered some of its sets
            heapreplace(gains, (gain, best))
            continue
        heappop(gains)
        kept.add(best)
        open_sets -= sets[best]
    return kept


def _same(value: Any) -> Hashable:
    """What is equal for equal values: the value itself where it is plain, else its identity."""
    return (type(value), value) if isinstance(value, str | int | float | None) else id(value)
