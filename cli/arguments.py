"""Arguments of all commands, before any command reads them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption

from .groups import group_of, groups

__all__ = ["Command", "RowsCommand"]


class Command(TyperCommand):
    """A command that refuses empty values, groups its options, and shows notes whatever the filters of warnings are.

    An unset variable in a shell is an empty value, and `Path("")` the current folder.

    prints_rows: whether `--out -` is standard output. It is refused where not: nobody means a file or folder `-`.
    """

    prints_rows = False

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)
        command, order = self.name or "", groups(self.name or "")
        if not order:
            return params
        options = [param for param in params if isinstance(param, TyperOption)]
        for option in options:
            option.rich_help_panel = group_of(command, option.opts[-1])
        options.sort(key=lambda option: order.index(str(option.rich_help_panel)))
        return [*(param for param in params if not isinstance(param, TyperOption)), *options]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # a shell that completes it
            return super().parse_args(ctx, args)
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        param: Any
        for param in self.get_params(ctx):
            if any(not text.strip() for text in _texts(given.get(param.name))):
                raise typer.BadParameter("it is empty: is a variable unset?", ctx=ctx, param=param)
            out = given.get("out") if param.name == "out" else None
            if out and out != "-" and str(Path(out)) == "-":
                raise typer.BadParameter(f"{out} would be read as -, standard output", ctx=ctx, param=param)
            if out == "-" and not self.prints_rows:
                raise typer.BadParameter("this command does not write to standard output", ctx=ctx, param=param)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        from flowgen.core import Note

        warnings.simplefilter("always", Note)  # PYTHONWARNINGS=ignore is meant for the noise of libraries
        torch = sys.modules.get("torch")
        threads = torch.get_num_threads() if torch else 0
        try:
            return super().invoke(ctx)
        finally:
            if torch:  # what the command has chosen (`console.use_threads`) is not the next one's in this process
                torch.set_num_threads(threads)


class RowsCommand(Command):
    """A command whose rows `--out -` writes to standard output."""

    prints_rows = True


def _texts(value: Any) -> Iterator[str]:
    """Yield each text of a parsed value: one, several, or none of a flag."""
    for part in value if isinstance(value, list | tuple) else [value]:
        if isinstance(part, str):
            yield part
