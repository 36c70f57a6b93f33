"""flowgen bench: reproduced tables of papers, and speed beside other packages."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .arguments import Command
from .console import Interrupt, bar

if TYPE_CHECKING:
    from flowgen.bench.table2d import Cell, Protocol

app = typer.Typer(help="Run a benchmark and write its report.", no_args_is_help=True)

SEEDS = "42,43,44,45,46"


@app.command(cls=Command)
def table2d(
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report and its cells.", show_default="bench/table2d")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the training, and the first seed alone.")] = False,
    seeds: Annotated[str, typer.Option(help="Seeds of the trainings.")] = SEEDS,
    slow_seeds: Annotated[int, typer.Option(help="How many of the seeds for torchcfm's OT-CFM and SB-CFM.")] = 1,
    jobs: Annotated[int, typer.Option(help="Cells at a time, each on a thread of its own.")] = 1,
) -> None:
    """Make the table of flows in the plane of arXiv 2302.00482 anew: torchcfm's matchers beside flowgen."""
    from flowgen.bench import cells, picture, summary
    from flowgen.bench import table2d as bench
    from flowgen.core import InputError

    for name, value in {"jobs": jobs, "slow-seeds": slow_seeds}.items():
        if value < 1:
            raise InputError(f"--{name} must be at least 1, not {value}")
    chosen = _seeds(seeds)[: 1 if quick else None]
    out = out or _folder("table2d", quick)
    protocol = bench.QUICK if quick else bench.Protocol()
    _run_cells(out / "cells", bench.cells(chosen, slow_seeds), protocol, jobs)
    every = bench.cells(chosen, len(chosen))  # slow ones that an earlier run has left are shown too
    results = {cell: result for cell in every if (result := cells.found(out / "cells", cell, protocol))}
    floors = {problem: bench.floor(problem, protocol) for problem in bench.PROBLEMS}
    text = summary.markdown(results, floors, protocol, chosen, QUICK_NOTE if quick else NOTE)
    (out / "table2d.md").write_text(text, encoding="utf-8")
    summary.write_csv(out / "table2d.csv", results)
    picture.draw(out / "table2d.png", results, floors, protocol)
    print(text)
    print(f"{out}: table2d.md, table2d.csv, table2d.png")


def _run_cells(folder: Path, every: list[Cell], protocol: Protocol, jobs: int) -> None:
    """Run the missing cells with a bar. An interrupt exits with 128 + signal."""
    from flowgen.bench import cells

    missing = cells.missing(folder, every, protocol)
    _make(folder)
    before = len(every) - len(missing)
    # closing comes last, so that an interrupt is still held while the processes end
    with (
        Interrupt().held() as interrupt,
        bar("table2d", len(every), "cells") as move,
        closing(cells.run_all(folder, missing, protocol, jobs)) as progress,
    ):
        move(before)
        for done in progress:
            move(before + done)
            if interrupt.signal is not None:
                break
    if interrupt.signal is not None:
        left = len(cells.missing(folder, every, protocol))
        print(f"{len(every) - left} of {len(every)} cells are kept; run the same again to go on", file=sys.stderr)
        raise typer.Exit(128 + interrupt.signal)


NOTE = "The table of two-dimensional flows of arXiv 2302.00482, made anew by `flowgen bench table2d`."
QUICK_NOTE = """`flowgen bench table2d --quick`: a tenth of the training, and the first seed alone. These are not the
figures of the protocol: leave `--quick` out for those."""


def _seeds(text: str) -> tuple[int, ...]:
    """Read seeds separated by commas."""
    from flowgen.core import InputError

    parts = [part.strip() for part in text.split(",")]
    chosen = tuple(int(part) for part in parts if part.isascii() and part.isdigit() and int(part) < 2**32)
    if len(set(chosen)) < len(parts):
        raise InputError(f"--seeds are different whole numbers under 2^32 between commas, not {text!r}")
    return chosen


def _make(folder: Path) -> None:
    from flowgen.core import InputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error


def _folder(name: str, quick: bool) -> Path:
    """Return the folder of a report. Quick figures never replace others."""
    return Path("bench", f"{name}-quick" if quick else name)


@app.command(cls=Command)
def speed(
    out: Annotated[Path | None, typer.Option(help="Folder of the report.", show_default="bench/speed")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the rounds.")] = False,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch, for every contestant.")] = 2,
) -> None:
    """Time training, coupling and sampling beside a bare loop, torchcfm, flow_matching and torchdyn."""
    from flowgen.bench import speed as bench
    from flowgen.core import InputError

    if threads < 1:
        raise InputError(f"--threads must be at least 1, not {threads}")
    out = out or _folder("speed", quick)
    _make(out)
    with bench.conditions(threads), bar("speed", len(bench.SECTIONS), "sections") as move:
        sections = []
        for section in bench.sections(0.1 if quick else 1.0):
            sections.append(section)
            move(len(sections))
        text = bench.markdown(sections, quick)
    (out / "speed.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"{out}: speed.md")
