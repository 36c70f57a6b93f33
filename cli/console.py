"""Shared parts of the commands: progress bars, and orderly interrupts of long work."""

from __future__ import annotations

import itertools
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from .progress import Lines

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from flowgen.config import Config
    from flowgen.core import Field
    from flowgen.runs import EndpointError, Run
    from flowgen.training.distributed import Processes

Move = Callable[..., None]
"""Moves a bar: (done, note)."""
DataPlace = Annotated[
    str | None, typer.Option("--data", metavar="PLACE", help="Where RUN's data are now, if they have moved.")
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="Threads of the CPU to compute on.", show_default="the run's"),
]
SourcePlace = Annotated[
    str | None,
    typer.Option("--source", metavar="PLACE", help="Where RUN's source is now, if that has moved."),
]


@contextmanager
def bar(title: str, total: int | None, unit: str = "", shown: bool = True) -> Iterator[Move]:
    """Show progress on standard error, unless it is not to be shown: a bar, or plain lines where that is no terminal.

    Args:
        total: None where it is not known; such a bar goes when the work is done.
        unit: what is counted.

    Yields:
        a function (done, note) that moves it.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not (sys.stderr.isatty() and console.is_interactive):  # FORCE_COLOR makes a file a terminal to rich
        lines = Lines(title, total, unit, lambda line: print(line, file=sys.stderr, flush=True))
        with lines.beating() if shown else nullcontext():
            yield lines.move if shown else lambda done, note="": None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not shown, transient=total is None) as progress:
        task = progress.add_task(title, total=total, note="")

        def move(done: int, note: str = "") -> None:
            progress.update(task, completed=done, note=note)

        yield move


def moving(field: Field, move: Move) -> Field:
    """Return the field; its evaluations move a bar."""
    numbers = itertools.count(1)

    def moved(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        move(next(numbers))
        return field(x, t, cond)

    return moved


def show(table: Table) -> None:
    """Print a table whose cells are text: names are no markup, nor do they hold signs for pictures."""
    from rich.console import Console

    Console(markup=False, emoji=False, highlight=False).print(table)


def create_run(folder: Path, config: Config, overwrite: bool) -> Run:
    """Make a run folder, and say which files it will not find again without help."""
    from flowgen.config.places import recorded
    from flowgen.runs import Run

    run = Run.create(folder, config, _command_line(), overwrite)
    for option, name in config.places._asdict().items():
        if name and "/" not in recorded(name, folder) and Path(name).parent.resolve() != folder.resolve():
            print(
                f"{folder}: {name} is recorded by its name alone, because its path holds your user name: "
                f"later commands need --{option} PLACE",
                file=sys.stderr,
            )
    return run


def _command_line() -> str:
    """Return the command as it was typed, with full paths made relative to the current folder."""
    from flowgen.config.places import shown

    words = [argument.rpartition("=") for argument in sys.argv[1:]]
    return shlex.join(["flowgen", *(key + equals + shown(text) for key, equals, text in words)])


def evaluations(count: float) -> str:
    """Return the cost of a sample in words."""
    return f"{count:.4g} evaluation{'s' * (count != 1)} of the network for each"


class Interrupt:
    """A context that holds the first SIGINT or SIGTERM until the work can be stopped."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def _hold(self, number: int, frame: Any) -> None:
        if self.signal is not None:  # asked twice: leave at once
            sys.exit(128 + number)
        self.signal = number

    @contextmanager
    def held(self) -> Iterator[Interrupt]:
        before = {number: signal.signal(number, self._hold) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train_run(run: Run, title: str, group: Processes | None = None) -> None:
    """Train a run with a bar. An interrupt saves it after the current step and exits with 128 + signal.

    Args:
        group: the processes that train together; an interrupt of one is one of all.
    """
    from flowgen import runs
    from flowgen.training.distributed import ALONE

    group, total, step = group or ALONE, run.config.train.steps, 0
    use_threads(run.config.threads)  # also for what is drawn and measured afterwards
    # closing comes last, so that an interrupt is still held while the run is saved
    with (
        Interrupt().held() as interrupt,
        bar(title, total, "steps", shown=group.first) as move,
        closing(runs.train(run, group)) as steps,
    ):
        for step, loss in steps:
            if step % 10 == 0 or step == total:  # a bar that moves at each step would take 2 % of it
                move(step, f"loss {loss:.4g}")
            if group.any(interrupt.signal is not None):
                break
        else:
            if not step:  # the run was complete already
                move(total)
            return
    if group.first:
        print(f"saved {run.folder} at step {run.newest()}; go on with --resume", file=sys.stderr)
    raise typer.Exit(128 + (interrupt.signal or signal.SIGINT))


def pair_run(run: Run, title: str, group: Processes | None = None) -> None:
    """Make the missing pairs of a reflow run with a bar, and print how accurate they are."""
    from flowgen import runs
    from flowgen.training.distributed import ALONE

    group = group or ALONE
    assert run.config.reflow is not None
    with bar(title, run.config.reflow.pairs, "pairs", shown=group.first) as move:
        for done in runs.make_pairs(run, group):
            move(done)
    if group.first:
        for found in runs.endpoint_errors(run):
            print(f"{run.folder}: {_told(found, run.config.reflow.tolerance)}", file=sys.stderr)


def _told(found: EndpointError, tolerance: float) -> str:
    """Describe how accurate the pairs of one kind are, and whether that meets the tolerance."""
    text = (
        f"the ends of its {found.pairs:,} {found.kind} pairs, in {found.steps} steps, are {found.mean:.2g} from those "
        f"of {found.other} in the mean, {found.worst:.2g} at worst (root mean square, in model units)"
    )
    if not 0 < tolerance < found.mean:
        return text
    return f"{text}; WARNING: that is more than reflow.tolerance = {tolerance:g}: see reflow.steps and reflow.solver"


def draw_run(run: Run) -> None:
    """Draw the losses and samples of a run that is trained, with a bar."""
    from flowgen import runs

    with bar(f"{run.folder}: drawing samples", None):
        runs.illustrate(run)


def potential_run(run: Run, group: Processes) -> None:
    """Find the potentials of a run whose coupling is semidiscrete, with a bar, and print how good they are."""
    from flowgen import runs

    states = runs.find_potentials(run, group)
    state = next(states, None)
    if state is None:  # there is nothing to find, or it is for another process
        return
    with bar(f"{run.folder}: potentials", None, "draws", shown=group.first) as move:
        for state in states:
            move(state.draws, f"chi-square {state.chi_square:.3g}")
    print(f"{run.folder}: potentials of chi-square {state.chi_square:.2g}, by {state.draws:,} draws", file=sys.stderr)


def check_parts(config: Config, group: Processes) -> None:
    """Refuse a number of processes that cannot share each batch of a training.

    Raises:
        InputError: unless the processes can share each batch of a training.
    """
    from flowgen.core import InputError

    size, accumulate, of = config.train.batch_size, config.train.accumulate, group.part.of
    if size % of:
        raise InputError(f"a batch of {size} is not divided by {of} processes")
    if size // of < accumulate:
        raise InputError(f"a batch of {size} has no {accumulate} parts at each of {of} processes: see train.accumulate")


def use_threads(threads: int | None) -> None:
    """Compute on so many threads until the command ends; None for as many as before."""
    import torch

    if threads:
        torch.set_num_threads(threads)


@contextmanager
def together(device: str) -> Iterator[Processes]:
    """Yield the processes that a launcher started for this command, or this one alone."""
    from flowgen.config import find_device
    from flowgen.training.distributed import processes

    with processes(find_device(device)) as group:
        yield group


def printed(out: Path) -> bool:
    """Return whether rows go to standard output, and print what is said of them to standard error."""
    return str(out) == "-"


def rows_to(out: Path) -> Path | IO[bytes]:
    """Return what `write_rows` is to write to."""
    return sys.stdout.buffer if printed(out) else out


def say(out: Path, text: str) -> None:
    """Print what has come of the rows that were written."""
    print(text, file=sys.stderr if printed(out) else sys.stdout)


def check_other(out: Path, *read: Path | None) -> None:
    """Refuse an output that would replace an input.

    Raises:
        InputError: if what is to be written would take the place of what is read.
    """
    from flowgen.core import InputError

    if any(path is not None and path.resolve() == out.resolve() for path in read):
        raise InputError(f"--out {out} is what is read: choose another place")


def check_place(path: Path) -> None:
    """Refuse a path where no file can be written.

    Raises:
        InputError: unless a file can be written at a path.
    """
    from flowgen.core import InputError

    if path.is_dir():
        raise InputError(f"{path} is a folder, and not a file to write")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
