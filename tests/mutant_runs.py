"""Tests run on a library that is changed as it is imported: with probes that note what each test runs, or with a fault.

    python tests/mutant_runs.py map MARKS TESTS=RESULT...       which lines each test runs, and how long it takes
    python tests/mutant_runs.py plant FILE TEXT RESULT TESTS... the tests until one fails, with another text for a file

No file of the library is written. Results are JSON.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType

import pytest
from mutant_faults import functions, statements

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "flowgen"
PROBE = "__seen__"
"""The name under which the changed code finds what notes a statement."""

ENOUGH = 30.0
"""Seconds for the cases of one test function: the rest of them are not mapped, and would be the last to be run."""

Changed = Callable[[Path], ast.Module | bytes]


class Importer(MetaPathFinder):
    """Imports the modules of the library from changed code, and leaves all others alone."""

    def __init__(self, changed: Changed) -> None:
        self.changed = changed

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name.partition(".")[0] != LIBRARY.name:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec and spec.origin and Path(spec.origin).is_relative_to(LIBRARY):
            spec.loader = _Loader(name, spec.origin, self.changed)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, changed: Changed) -> None:
        super().__init__(name, path)
        self.changed = changed

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.changed(Path(self.path)), self.path, "exec")  # no cached bytecode is read or written


class Probes:
    """Notes the statements of functions that are run, as numbers into `places`."""

    def __init__(self) -> None:
        self.places: list[tuple[str, int]] = []
        self.seen: set[int] = set()

    def probed(self, path: Path) -> ast.Module:
        """Return the code of a file with a probe before each statement of a function."""
        file, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_bytes())
        for _, function in functions(tree):
            known = set(statements(function))
            for node in list(ast.walk(function)):
                for block in ("body", "orelse", "finalbody"):
                    if isinstance(body := getattr(node, block, None), list):
                        setattr(node, block, [new for old in body for new in self._with_probe(old, file, old in known)])
        return ast.fix_missing_locations(tree)

    def _with_probe(self, statement: ast.stmt, file: str, wanted: bool) -> Iterator[ast.stmt]:
        if wanted:
            self.places.append((file, statement.lineno))
            call = ast.Call(ast.Name(PROBE, ast.Load()), [ast.Constant(len(self.places) - 1)], [])
            yield ast.copy_location(ast.Expr(call), statement)
        yield statement


class Mapper:
    """Plugin of pytest: the statements that each test runs, with those of the fixtures that it shares."""

    def __init__(self, probes: Probes, results: dict[Path, Path]) -> None:
        """Write what is found of the tests of a file or folder to its result, once all of them have been run."""
        self.probes, self.results = probes, results
        self.tests: dict[str, float | None] = {}
        self.ran: dict[Path, dict[str, set[int]]] = {target: {} for target in results}
        self.left = Counter[Path]()
        self.shared: dict[str, set[int]] = {}
        self.spent: dict[str, float] = defaultdict(float)

    def pytest_collection_finish(self, session):
        self.left.update(self.target(item) for item in session.items)
        for target in self.results:
            if not self.left[target]:
                self.write(target)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        if fixturedef.scope == "function":
            return (yield)
        outside = set(self.probes.seen)
        self.probes.seen.clear()
        try:
            return (yield)
        finally:
            self.shared[fixturedef.argname] = set(self.probes.seen)
            self.probes.seen |= outside

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item, nextitem):
        self.probes.seen.clear()
        began = cpu_time()
        result = yield
        seconds, seen = cpu_time() - began, set(self.probes.seen)
        self.tests.setdefault(item.nodeid, seconds)
        self.spent[function_of(item.nodeid)] += seconds
        shared = [self.shared.get(name, set()) for name in getattr(item, "fixturenames", ())]
        target = self.target(item)
        self.ran[target][item.nodeid] = seen.union(*shared)
        self.left[target] -= 1
        if not self.left[target]:
            self.write(target)
        return result

    def pytest_runtest_setup(self, item):
        if self.spent[function_of(item.nodeid)] > ENOUGH:
            pytest.skip("other cases of this test have been seen")

    def pytest_runtest_logreport(self, report):
        if report.outcome != "passed":  # skipped, or failing without any fault
            self.tests[report.nodeid] = None

    def target(self, item) -> Path:
        return next(target for target in (item.path, *item.path.parents) if target in self.results)

    def write(self, target: Path) -> None:
        """Write the seconds of each test that passes, and by file and line the numbers of the tests that run it."""
        ran = {test: seen for test, seen in self.ran.pop(target).items() if self.tests[test] is not None}
        lines = defaultdict(lambda: defaultdict(list))
        for number, seen in enumerate(ran.values()):
            for file, line in map(self.probes.places.__getitem__, seen):
                lines[file][line].append(number)
        new = self.results[target].with_suffix(".new")
        new.write_text(json.dumps({"tests": {test: round(self.tests[test], 3) for test in ran}, "lines": lines}))
        new.rename(self.results[target])


class FirstFailure:
    """Plugin of pytest: how many tests were run, and which one failed."""

    def __init__(self) -> None:
        self.ran, self.failed = 0, None

    def pytest_runtest_logreport(self, report):
        self.ran += report.when == "call"
        if report.failed:
            self.failed = self.failed or report.nodeid


def function_of(test: str) -> str:
    """Return the name of a test without its case."""
    return test.partition("[")[0]


def cpu_time() -> float:
    """Return the seconds of this process and its children, which other programs on the machine do not stretch."""
    return sum(os.times()[:4])


def run(arguments: list[str], changed: Changed, plugin: object) -> int:
    """Run pytest in this process on the changed library."""
    spec = PathFinder.find_spec(LIBRARY.name)
    if LIBRARY.name in sys.modules or not spec or Path(spec.origin).parent != LIBRARY:
        raise SystemExit(f"Python would not import {LIBRARY}, but {spec and spec.origin}: install this checkout")
    sys.meta_path.insert(0, Importer(changed))
    return pytest.main(["-n", "0", "-p", "no:cacheprovider", *arguments], plugins=[plugin])


def make_map(marks: str, *tests: str) -> None:
    probes, results = Probes(), {Path(test): Path(result) for test, result in (both.split("=") for both in tests)}
    setattr(builtins, PROBE, probes.seen.add)
    run(["-m", marks, *map(str, results)], probes.probed, Mapper(probes, results))


def plant(file: str, text: str, result: str, *tests: str) -> None:
    changed, place, plugin = Path(text).read_bytes(), ROOT / file, FirstFailure()
    base = f"--basetemp={Path(result).with_suffix('.tmp')}"
    code = run(["-x", "--full", base, *tests], lambda path: changed if path == place else path.read_bytes(), plugin)
    Path(result).write_text(json.dumps({"code": code, "ran": plugin.ran, "failed": plugin.failed}))


if __name__ == "__main__":
    {"map": make_map, "plant": plant}[sys.argv[1]](*sys.argv[2:])
