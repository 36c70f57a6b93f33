"""flowgen sample: draw from a trained flow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import SOLVER_HELP, bar

if TYPE_CHECKING:
    from torch import Tensor

PLOTTED, TRACED = 20_000, 300  # more points than that make a picture blacker, not clearer


def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    num: Annotated[int, typer.Option(help="Samples to draw.")] = 2000,
    solver: Annotated[str, typer.Option(help=SOLVER_HELP)] = "heun",
    steps: Annotated[int | None, typer.Option(help="Steps of the grid.", show_default="50; adaptive: 1")] = None,
    seed: Annotated[int, typer.Option(help="Sample i of a seed is the same whatever --num is.")] = 0,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.", show_default="the run's")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="FILE.npz (array x), .npy, .csv or .png.", show_default="RUN/samples.png, .csv"),
    ] = None,
    trajectories: Annotated[bool, typer.Option("--trajectories", help="Draw the paths of the samples (.png).")] = False,
) -> None:
    """Draw samples from a run, into a file or a picture."""
    import torch

    from flowgen import grids, plots, sampling
    from flowgen.config import SOLVERS, lookup
    from flowgen.core import InputError
    from flowgen.data.tables import write_rows
    from flowgen.runs import load
    from flowgen.solvers import Adaptive

    if num < 1:
        raise InputError(f"--num must be at least 1, not {num}")
    method = lookup("solver", solver, SOLVERS)
    trained = load(run, device)
    model, event = trained.model, trained.source.event
    name = "trajectories.png" if trajectories else "samples.png" if event == (2,) else "samples.csv"
    out = out or run / name
    if trajectories and (event != (2,) or out.suffix != ".png"):
        raise InputError("--trajectories draws a .png of a run with two columns")
    if steps is None:
        steps = 1 if isinstance(method, Adaptive) else 50
    grid = grids.uniform(steps, *model.span)
    if trajectories:
        x0 = model.start(sampling.starts(trained.source, 0, min(num, TRACED), seed))
        with torch.no_grad():
            states = torch.stack([x0, *sampling.walk(model.velocity, x0, grid, method)])
        plots.trajectories(out, model.scaling.undo(states).cpu())
        print(f"{out}: {states.shape[1]} trajectories in {steps} steps of {solver}")
        return
    if out.suffix == ".png":
        num = min(num, PLOTTED)
    field = sampling.Counted(model.velocity)
    chunks = sampling.sample(model, trained.source, num, grid, method, seed=seed, field=field)

    def followed() -> Iterator[Tensor]:
        done = 0
        with bar(f"sampling {run}", num) as move:
            for chunk in chunks:
                yield chunk
                done += len(chunk)
                move(done)

    if out.suffix == ".png":
        plots.samples(out, torch.cat(list(followed())), columns=trained.columns)
    else:
        write_rows(out, followed(), (num, *event), trained.columns)
    evaluations = field.rows / sampling.whole_blocks(num)
    print(f"{out}: {num} samples in {steps} steps of {solver}, {evaluations:.3g} evaluations of the network for each")
