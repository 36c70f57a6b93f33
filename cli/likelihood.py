"""flowgen likelihood: the likelihood of rows under a run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import DataPlace, SourcePlace, Threads, bar, check_other, check_place, printed, rows_to, say, use_threads
from .helps import HEADER_HELP, ODE_HELP

if TYPE_CHECKING:
    from torch import Tensor

    from flowgen.runs import Asked

STEPS, PROBES = {False: 50, True: 25}, {False: 0, True: 1}
"""Of rows, and of images."""


def likelihood(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Rows, or images.", show_default="what RUN never saw")
    ] = None,
    header: Annotated[str | None, typer.Option(help=HEADER_HELP, show_default="as RUN")] = None,
    num: Annotated[
        int | None, typer.Option(help="Rows to measure.", show_default="all; new draws of a toy: 5000")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Given this label, a number or a name.", show_default="their own")
    ] = None,
    hutchinson: Annotated[
        int | None,
        typer.Option(help="Probes that estimate the divergence; 0: exact.", show_default="0; images: 1"),
    ] = None,
    solver: Annotated[str, typer.Option(help=ODE_HELP)] = "rk4",
    steps: Annotated[
        int | None, typer.Option(help="Steps of the solver.", show_default="50; images: 25; adaptive: 1")
    ] = None,
    ema: Annotated[float | None, typer.Option(help="Width of the average, of train.ema.", show_default="first")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.", show_default="the run's")] = None,
    threads: Threads = None,
    data: DataPlace = None,
    source: SourcePlace = None,
    out: Annotated[
        Path | None,
        typer.Option(help="One number a row, FILE.csv; - for the output.", show_default="RUN/likelihood.csv"),
    ] = None,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write the figures to FILE; - for the output.")] = None,
) -> None:
    """Measure the log-likelihood of rows, by the change of variables along the flow of RUN."""
    import torch

    from flowgen import runs
    from flowgen.config import SAMPLERS, SOLVERS, Places, lookup
    from flowgen.core import InputError
    from flowgen.data.suffixes import suffix
    from flowgen.data.writing import write_rows
    from flowgen.samplers.ode import AdaptiveSolver

    from .labels import label_number

    out = out or run / "likelihood.csv"
    if printed(out) and str(to_json) == "-":
        raise InputError("--out - and --json - both write to standard output: name a file for one of them")
    if suffix(out) not in (".csv", ".csv.gz") and not printed(out):
        raise InputError(f"--out is a table, FILE.csv or .csv.gz, not {out}")
    for path in filter(None, (out, to_json)):
        if str(path) != "-":
            check_place(path)  # before the work, not after
    check_other(out, file)
    if solver in SAMPLERS:
        raise InputError(f"{solver} is a sampler, and a likelihood needs a solver of the velocity, such as rk4")
    method = lookup("solver", solver, {name: made for name, made in SOLVERS.items() if not made.needs_flow_map})
    trained = runs.load(run, device, ema, Places(data, source))
    use_threads(threads or trained.threads)
    runs.check_density(trained)
    given = None if label is None else label_number(label, trained)
    images = len(trained.source.shape) == 3
    steps = (1 if isinstance(method, AdaptiveSolver) else STEPS[images]) if steps is None else steps
    count = PROBES[images] if hutchinson is None else hutchinson
    for name, value, least in (("--num", num, 1), ("--steps", steps, 1), ("--hutchinson", count, 0)):
        if value is not None and value < least:
            raise InputError(f"{name} must be at least {least}, not {value}")
    asked = runs.asked_rows(trained, file, num, given, seed, header)
    made = list(_followed(runs.log_likelihoods(trained, asked, method, steps, count, seed), len(asked.x), run))
    write_rows(rows_to(out), (part.unsqueeze(1) for part in made), (len(asked.x), 1), ("log_likelihood",))
    how = {"solver": solver, "steps": steps, "hutchinson": count, "label": label, "ema": ema, "seed": seed}
    _tell(run, asked, _figures(asked, torch.cat(made)), how, out, to_json)


def _followed(chunks: Iterable[Tensor], num: int, run: Path) -> Iterator[Tensor]:
    """Yield the chunks, with a bar."""
    done = 0
    with bar(f"likelihood of {run}", num, "rows") as move:
        for chunk in chunks:
            done += len(chunk)
            move(done)
            yield chunk


def _figures(asked: Asked, found: Tensor) -> dict[str, tuple[float, float | None]]:
    """Return the mean and standard error of each figure of the log-likelihoods, by name; no error for one row."""
    from flowgen.likelihood import bits_per_dim

    values = {"log_likelihood": found}
    if asked.step is not None:
        values["bits_per_dim"] = bits_per_dim(found, asked.x[0].numel())
    if asked.distribution is not None:
        values["kl"] = asked.distribution.log_density(asked.x.double()) - found
    error = {name: (x.std() / math.sqrt(len(x))).item() if len(x) > 1 else None for name, x in values.items()}
    return {name: (x.mean().item(), error[name]) for name, x in values.items()}


TITLES = {
    "log_likelihood": "log-likelihood, nats",
    "bits_per_dim": "bits per dimension, at most",
    "kl": "KL(data | model), nats",
}


def _tell(
    run: Path,
    asked: Asked,
    figures: dict[str, tuple[float, float | None]],
    how: dict[str, Any],
    out: Path,
    to_json: Path | None,
) -> None:
    """Print the figures as lines or as JSON."""
    from flowgen.config.places import shown

    plain = {name: {"mean": mean, "standard_error": error} for name, (mean, error) in figures.items()}
    tree = {"run": shown(run), "of": asked.name, "rows": len(asked.x), "shade": asked.step, **how, **plain}
    text = json.dumps(tree, indent=1, allow_nan=False)
    if str(to_json) == "-":
        print(text)
        return
    if to_json:
        to_json.write_text(text + "\n", encoding="utf-8")
    say(out, f"{run}: {asked.name}")
    for name, (mean, error) in figures.items():
        say(out, f"  {TITLES[name]:<28}{mean:.4f}" + ("" if error is None else f" ± {error:.4f}"))
    say(out, f"  ± is the standard error of the mean. One row each: {out}")
