"""Which cases are run: all with --full; else of a product of parameters so many that every two values meet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import combinations
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
        if len(cases) > FEW and not any(case.get_closest_marker(mark) for case in cases for mark in WHOLE):
            kept = pairwise([values_of(case) for case in cases])
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
            found[name] = case.callspec.indices[name]
    return found


def pairwise(cases: Sequence[Values]) -> set[int]:
    """The numbers of some of the cases, in which every two values meet that meet in any: the greedy cover.

    A case that is alone with a value of its single parameter is always among them.
    """
    pairs = [
        set(combinations(sorted(values.items(), key=lambda item: item[0]), 2)) or {tuple(values.items())}
        for values in cases
    ]
    open_pairs, kept = set().union(*pairs), set[int]()
    gains = {index: len(own) for index, own in enumerate(pairs)}
    while open_pairs:
        best = max(gains, key=lambda index: (gains[index], -index))
        gain = len(pairs[best] & open_pairs)
        if gain < gains[best]:  # it was counted before others covered some of its pairs
            gains[best] = gain
            continue
        kept.add(best)
        open_pairs -= pairs[best]
        del gains[best]
    return kept


def _same(value: Any) -> Hashable:
    """What is equal for equal values: the value itself where it is plain, else its identity."""
    return value if isinstance(value, str | int | float | None) else id(value)
