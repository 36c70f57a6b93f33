"""flowgen export: a run as a file that other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import SourcePlace
from .helps import SOLVER_HELP


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    to: Annotated[str, typer.Option("--format", help="onnx, torch-export or diffusers.")] = "onnx",
    steps: Annotated[
        int | None,
        typer.Option(help="Export noise to samples in so many steps.", show_default="none: the velocity"),
    ] = None,
    solver: Annotated[str | None, typer.Option(help=f"With --steps: {SOLVER_HELP}", show_default="heun")] = None,
    ema: Annotated[float | None, typer.Option(help="Width of the average, of train.ema.", show_default="first")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="FILE.onnx, FILE.pt2, or a folder.", show_default="in RUN: samples, velocity, diffusers"),
    ] = None,
    source: SourcePlace = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the export that is there.")] = False,
) -> None:
    """Write a run for ONNX, torch.export or diffusers, compared with the model before it is there."""
    from flowgen import interop
    from flowgen.config import Places

    made = interop.export_run(run, to, out, steps, solver, ema, overwrite, Places(None, source))
    print(f"{made.path}: {made.words}, {made.bytes / 2**20:.3g} MiB")
    print(f"largest difference from the model: {made.compared.difference:.2g}, of {made.compared.largest:.3g}")
