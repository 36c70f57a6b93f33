"""flowgen info: what a run is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import show


def info(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a run is: data, path, net, coupling, parents, training and last losses."""
    from flowgen.runs import describe

    facts = describe(run)
    if as_json:
        print(json.dumps(facts))
        return
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        if value is None:
            continue
        table.add_row(key.replace("_", " "), ", ".join(value) if key == "classes" else _text(value))
    show(table)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(_text, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}" if isinstance(value, float) else str(value)
