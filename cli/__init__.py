"""The command line: `flowgen COMMAND`. One small file a command, and nothing here imports torch before it is needed."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from flowgen import __version__

from . import (
    bench,
    couplings,
    demo,
    distill,
    edit,
    evaluate,
    export,
    info,
    likelihood,
    reflow,
    sample,
    train,
    train_classifier,
)
from .arguments import Command, RowsCommand

__all__ = ["app", "main"]

app = typer.Typer(
    name="flowgen",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    """Print the version of the code that would run."""
    if asked:
        print("flowgen", __version__)
        raise typer.Exit()


@app.callback()
def _flowgen(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train a generator by flow matching or rectified flow, straighten it, sample it."""


app.command(cls=Command)(demo.demo)
app.command(cls=Command)(train.train)
app.command(cls=Command)(reflow.reflow)
app.command(cls=Command)(distill.distill)
app.command(cls=Command)(train_classifier.train_classifier)
app.command(cls=RowsCommand)(sample.sample)
app.command(cls=RowsCommand)(edit.edit)
app.command(cls=Command)(evaluate.evaluate)
app.command(cls=RowsCommand)(likelihood.likelihood)
app.command(cls=Command)(couplings.couplings)
app.command(cls=Command)(export.export)
app.command(cls=Command)(info.info)
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Run the command line. Bad input ends with one line and exit code 2, failed work with one line and code 1."""
    _print_any_text()
    try:
        with _notes_printed():
            code = app(standalone_mode=False, prog_name="flowgen")
    except TyperException as error:
        code = _fail(error.format_message() if hasattr(error, "format_message") else str(error), 2)
    except typer.Abort:
        code = 130
    except BrokenPipeError:  # the reader of our output has gone: nothing is left to say, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        code = _fail(str(error), 1)
    except ValueError as error:
        from flowgen.core import InputError

        if not isinstance(error, InputError):
            raise
        code = _fail(str(error), 2)
    except RuntimeError as error:
        from flowgen.core import Failure

        memory = "allocate memory" in str(error) or "out of memory" in str(error)  # PyTorch has no type for it on CPUs
        if not (memory or isinstance(error, Failure)):
            raise
        code = _fail("not enough memory: make the batch, the pool or the network smaller" if memory else str(error), 1)
    sys.exit(code)


@contextmanager
def _notes_printed() -> Iterator[None]:
    """Print each note once, as a line on standard error; of processes that work together, those of the first."""
    told = set[str]()  # what warnings remember is lost where their filters change
    with warnings.catch_warnings():
        show_other = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **other: Any) -> None:
            from flowgen.core import Note

            if not issubclass(category, Note):
                show_other(message, category, *place, **other)
            elif os.environ.get("RANK", "0") == "0" and str(message) not in told:
                told.add(str(message))
                print("note:", " ".join(str(message).split()), file=sys.stderr)

        warnings.showwarning = show
        yield


def _print_any_text() -> None:
    """Print what the output's encoding lacks, and names that are not UTF-8, as `\\xb1`: results outlive terminals."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(message: str, code: int) -> int:
    if message:  # none, where the help has been printed
        print("flowgen:", " ".join(message.split()), file=sys.stderr)
    return code
