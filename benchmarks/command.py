"""What a training step costs through `flowgen train` itself, and when training begins.

Whole commands are timed, of few and of many steps: their difference is the cost of the steps between, without the start
of Python and the pictures at the end. All cases take turns, on an idle machine and on one where a process spins on each
core.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from flowgen.bench.report import machine, table

RESULTS = Path(__file__).parent / "results"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CASES = {
    "independent": ("--coupling", "independent"),
    "default coupling": (),
    f"independent, {CORES} threads": ("--coupling", "independent", "--threads", str(CORES)),
    f"default coupling, {CORES} threads": ("--threads", str(CORES)),
}
"""Arguments of `flowgen train moons`; without --threads on as many as the rule says."""


class Timed(NamedTuple):
    """Seconds of the two commands of a round."""

    short: float
    long: float


def train(arguments: tuple[str, ...], steps: int) -> float:
    """The seconds that a training takes, from nothing to its pictures."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["flowgen", "train", "moons", "--out", f"{folder}/run", "--steps", str(steps), *arguments]
        command[0] = str(Path(sys.executable).with_name("flowgen"))
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
        return time.perf_counter() - start


@contextmanager
def spinning(processes: int) -> Iterator[None]:
    """So many processes that compute without end while the context lasts."""
    spun = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in spun:
            process.kill()
            process.wait()


def measured(rounds: int, few: int, many: int, cases: list[str]) -> dict[str, list[Timed]]:
    """Timings of each case, which take turns; the first of them is another one in each round."""
    found: dict[str, list[Timed]] = {case: [] for case in cases}
    for number in range(rounds):
        shift = number % len(cases)
        for case in cases[shift:] + cases[:shift]:
            found[case].append(Timed(train(CASES[case], few), train(CASES[case], many)))
            print(f"{case}: {found[case][-1].short:.1f} and {found[case][-1].long:.1f} s", file=sys.stderr)
    return found


def report(idle: dict[str, list[Timed]], busy: dict[str, list[Timed]], few: int, many: int) -> str:
    """The table of medians, and what they say of the claims."""

    def step(found: list[Timed]) -> float:
        return median((each.long - each.short) / (many - few) for each in found)

    def rest(found: list[Timed]) -> float:
        return median(each.short for each in found) - few * step(found)

    base = idle["independent"]
    rows = [
        (
            case,
            f"{1000 * step(found):.2f}",
            f"{step(found) / step(base):.2f}",
            f"{rest(found):.1f}",
            f"{1000 * step(busy[case]):.2f}" if case in busy else "",
            f"{step(busy[case]) / step(found):.1f}" if case in busy else "",
        )
        for case, found in idle.items()
    ]
    head = ("pairs", "ms a step", "over independent", "start and end, s", "busy: ms a step", "over idle")
    return f"# A step of `flowgen train moons`\n\n{machine()}\n{table(head, rows)}\n{NOTE.format(few=few, many=many)}"


NOTE = """Wall time of whole commands of {many:,} and {few:,} steps, the difference over the steps between; medians of
rounds in which the cases take turns. Start and end is what a command takes beside its steps: Python, the first pool of
transport, pictures. Busy: a process spins on each core. Without a number of threads the rule of flowgen chooses one.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--few", type=int, default=500, help="steps of the short command")
    parser.add_argument("--many", type=int, default=4500, help="steps of the long one")
    parser.add_argument("--busy-rounds", type=int, default=2)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--write", action="store_true", help="write results/command.md")
    given = parser.parse_args()
    if "independent" not in given.cases or given.many <= given.few:
        parser.error("the case independent is what the others are compared with, and --many is more than --few")
    idle = measured(given.rounds, given.few, given.many, given.cases)
    with spinning(CORES):
        busy = measured(given.busy_rounds, given.few, given.many, given.cases) if given.busy_rounds else {}
    text = report(idle, busy, given.few, given.many)
    print(text)
    if given.write:
        (RESULTS / "command.md").write_text(text)


if __name__ == "__main__":
    main()
