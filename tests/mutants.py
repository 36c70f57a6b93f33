"""Plant faults in the library, one at a time, and say which of them no test notices.

    python tests/mutants.py                                   60 faults of seed 0
    python tests/mutants.py --again results.jsonl             the same faults as then, where they still are

First every test file is run once with probes, to know which lines each test runs. Then each fault is planted in the
library as it is imported (no file is written) and the tests that run its line are run, cheapest first, until one fails.
Whatever is done is kept in build/mutants, and done again only if the code has changed: a run that is stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from mutant_faults import Fault, again, draw, faults_of, from_json, to_json
from mutant_runs import LIBRARY, ROOT, function_of

Item, Result = TypeVar("Item"), TypeVar("Result")

BUILD = ROOT / "build" / "mutants"
RUNNER = ROOT / "tests" / "mutant_runs.py"
CODE = [*LIBRARY.rglob("*.py"), *ROOT.glob("cli/*.py")]
TESTS = [*ROOT.glob("tests/test_*.py")]
HELPERS = [file for file in ROOT.glob("tests/*.py") if not file.name.startswith(("test_", "mutant"))]

TIERS = ("not slow and not journey", "journey and not slow")
"""The marks of the tests that are run first, and of those that are run for what the first do not notice."""

MOST = 200
"""Tests that are run for one fault, at most."""

SECONDS = 30.0
"""Their time together when the library is whole, at most."""

PATIENCE = 100
"""A fault that takes the tests this many seconds of the CPU longer than that hangs, and is noticed."""

NEW = {"outcome": None, "tiers": 0, "covering": 0, "ran": 0, "by": None}
"""What is known of a fault that no test was run for."""


RUNNING: set[subprocess.Popen] = set()


class Map:
    """Which tests run each line of the library, and their seconds."""

    def __init__(self, parts: Iterable[dict]) -> None:
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for part in parts:
            names = list(part["tests"])
            self.seconds |= part["tests"]
            for file, lines in part["lines"].items():
                for line, numbers in lines.items():
                    self.lines[file][int(line)] |= {names[number] for number in numbers}

    def covering(self, fault: Fault) -> set[str]:
        return self.lines[fault.file][fault.line]

    def chosen(self, fault: Fault) -> list[str]:
        """Return the tests to run: the cheapest case of each test, then the second ones, until they are enough.

        Where a block hangs on the line, the first half are tests that run it: of many that come by, few may enter.
        Where no test runs the line, the tests that run other lines of its file may still see it.
        """
        lines = self.lines[fault.file]
        tests = self.covering(fault) or set().union(*lines.values())
        inside = tests & lines[fault.block] if fault.block else set()
        first = self.cheapest(inside, MOST // 2, SECONDS / 2)
        return first + self.cheapest(tests.difference(first), MOST - len(first), SECONDS - self.cost(first))

    def cheapest(self, tests: Iterable[str], most: int, seconds: float) -> list[str]:
        cases, ranked = Counter[str](), []
        for test in sorted(tests, key=lambda test: (self.seconds[test], test)):
            ranked.append((cases[function_of(test)], self.seconds[test], test))
            cases[function_of(test)] += 1
        taken = []
        for _, own, test in sorted(ranked):
            if len(taken) < most and (not taken or self.cost(taken) + own <= seconds):
                taken.append(test)
        return taken

    def cost(self, tests: Iterable[str]) -> float:
        return sum(self.seconds[test] for test in tests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=int, default=60, help="how many are planted")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--again", type=Path, help="plant the faults of these results instead")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--out", type=Path, default=BUILD / "faults.jsonl", help="results, with a table beside them")
    asked = parser.parse_args()
    records = resumed(asked_for(asked), asked.out)
    for tier, marks in enumerate(TIERS):
        waiting = [record for record in records if record["outcome"] is None and record["tiers"] == tier]
        if waiting:
            known = made_map(marks, asked.jobs)
            for record in side_by_side(partial(judge, known=known), waiting, asked.jobs):
                save(records, asked.out)
                place = f"{record['file']}:{record['line']} {record['function']}: {record['kind']}"
                print(f"{record['outcome'] or 'open':8} {place}", flush=True)
    save(records, asked.out)
    print(asked.out.with_suffix(".md").read_text())


def asked_for(asked: argparse.Namespace) -> list[dict]:
    """Return the records of the faults that are asked for, as far as they are still there."""
    today, tree = faults_of(LIBRARY, ROOT), {"tree": digest([*CODE, *TESTS, *HELPERS])[:12]}
    if not asked.again:
        return [to_json(fault) | NEW | tree for fault in draw(today, asked.faults, asked.seed)]
    records = []
    for line in asked.again.read_text().splitlines():
        then = json.loads(line)
        fault = again(from_json(then), today)
        now = to_json(fault) if fault else {"outcome": "gone"}
        records.append(then | NEW | tree | {"was": then["outcome"]} | now)
    return records


def resumed(records: list[dict], out: Path) -> list[dict]:
    """Return the records with the outcomes that the file has of the very same faults and tests."""
    done = map(json.loads, out.read_text().splitlines()) if out.exists() else []
    known = {(from_json(record), record["tree"]): record for record in done}
    return [known.get((from_json(record), record["tree"]), record) for record in records]


def made_map(marks: str, jobs: int) -> Map:
    """Return the map of the tests with these marks; what is kept of test files that have not changed is read."""
    common, kept = digest([*CODE, *HELPERS])[:12], {}
    for target in [*sorted(TESTS, key=lambda file: -file.stat().st_size), LIBRARY]:  # the largest first
        own = digest([target] if target.is_file() else [])[:12]
        kept[target] = BUILD / "map" / f"{target.stem}-{TIERS.index(marks)}-{common}{own}.json"
    missing = [f"{target}={path}" for target, path in kept.items() if not path.exists()]
    (BUILD / "map").mkdir(parents=True, exist_ok=True)
    print(f"{marks}: {len(missing)} of {len(kept)} files are run to see what they test", flush=True)
    shares = [share for job in range(jobs) if (share := missing[job::jobs])]
    told = list(side_by_side(lambda share: call(["map", marks, *share]), shares, jobs))
    if lacking := [target.name for target, path in kept.items() if not path.exists()]:
        raise SystemExit(f"{', '.join(lacking)} cannot be mapped:\n{''.join(told)}")
    return Map(json.loads(path.read_text()) for path in kept.values())


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item], jobs: int) -> Iterator[Result]:
    """Give the results as they come; when stopped, end what runs and begin nothing more."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in tuple(RUNNING):
                end(process)
            raise


def judge(record: dict, known: Map) -> dict:
    """Plant a fault for the tests of a tier; after the last tier, what no test has noticed survives."""
    fault = from_json(record)
    outcome, ran, by = planted(fault, known)
    last = record["tiers"] + 1 == len(TIERS)
    record |= {"outcome": outcome or ("survives" if last else None), "by": by, "tiers": record["tiers"] + 1}
    record |= {"ran": record["ran"] + ran, "covering": record["covering"] + len(known.covering(fault))}
    return record


def planted(fault: Fault, known: Map) -> tuple[str | None, int, str | None]:
    """Run the tests with a fault; return whether they notice it, how many were run, and which one failed."""
    tests = known.chosen(fault)
    if not tests:
        return None, 0, None
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        text, result = Path(folder, "text.py"), Path(folder, "result.json")
        text.write_bytes(fault.planted((ROOT / fault.file).read_bytes()))
        told = call(["plant", fault.file, str(text), str(result), *tests], PATIENCE + 2 * round(known.cost(tests)))
        if told is None:
            return "hangs", len(tests), None
        if not result.exists():
            return "killed", len(tests), f"the process: {told.strip().splitlines()[-1:]}"
        found = json.loads(result.read_text())
    if not found["code"]:
        return None, found["ran"], None
    return "killed", found["ran"], found["failed"] or "the collection of the tests"


def call(arguments: Sequence[str], seconds: int | None = None) -> str | None:
    """Run the runner and return what it prints; None if its time is over. Nothing that it started is left.

    Its time is that of the CPU, since others may need the machine; by the clock it is ten times as long.
    """
    limited = ["sh", "-c", f'ulimit -t {seconds}; exec "$@"', "sh"] if seconds else []
    process = subprocess.Popen(
        [*limited, sys.executable, str(RUNNER), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    RUNNING.add(process)
    try:
        told = process.communicate(timeout=seconds and 10 * seconds)[0]
        return told if process.returncode not in (-signal.SIGKILL, -signal.SIGXCPU) else None
    except subprocess.TimeoutExpired:
        return None
    finally:
        end(process)
        RUNNING.remove(process)


def end(process: subprocess.Popen) -> None:
    """Kill a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def digest(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


def save(records: list[dict], out: Path) -> None:
    """Write the results, and the table of survivors beside them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    texts = {out: "".join(f"{json.dumps(record)}\n" for record in records), out.with_suffix(".md"): table(records)}
    for path, text in texts.items():
        new = path.with_suffix(".new")
        new.write_text(text)
        new.rename(path)


def table(records: list[dict]) -> str:
    """Return the survivors of now and of then as a table of Markdown."""
    counted = Counter(record["outcome"] or "open" for record in records)
    lines = [f"{len(records)} faults: " + ", ".join(f"{number} {name}" for name, number in counted.most_common()) + "."]
    if any("was" in record for record in records):
        lines.append(f"Before: {sum(record['was'] == 'survives' for record in records)} survive.")
    lines += ["", "| where | line | fault | tests | outcome | note |", "|---|---|---|---|---|---|"]
    for record in records:
        if "survives" in (record["outcome"], record.get("was")):
            outcome = " → ".join(filter(None, (record.get("was"), record["outcome"] or "open")))
            change = f"`{_cell(record['before'])}` → `{_cell(record['after'])}`"
            cells = [f"`{record['file']}` {record['function']}", f"`{_cell(record['statement'])}`", change]
            cells += [f"{record.get('ran')} of {record.get('covering')}", outcome, record.get("note", "")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    short = " ".join(text.split()).replace("|", "\\|")
    return short if len(short) <= 70 else f"{short[:67]}..."


if __name__ == "__main__":
    main()
