"""flowgen reflow: straighten a trained flow."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from statistics import fmean as mean
from typing import TYPE_CHECKING, Annotated

import typer

from .console import (
    DataPlace,
    SourcePlace,
    Threads,
    bar,
    check_parts,
    create_run,
    draw_run,
    pair_run,
    show,
    together,
    train_run,
)

if TYPE_CHECKING:
    from flowgen.evaluation import Figures, Round
    from flowgen.runs import Run


def reflow(
    parent: Annotated[Path, typer.Argument(metavar="RUN", help="The run to straighten.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder; more rounds add -1, -2, ...", show_default="RUN-reflow1"),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Reflow so many times, each round from the one before.")] = 1,
    pairs: Annotated[
        int | None, typer.Option(help="Trajectories to learn from.", show_default="100000; images: 20000; digits: 6000")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps in a round.", show_default="the parent's")] = None,
    inverted: Annotated[
        float | None, typer.Option(help="Share of the pairs that are found from data back.", show_default="0")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Learn from guided trajectories of this weight.", show_default="none")
    ] = None,
    stall: Annotated[
        float, typer.Option(help="Stop after a round that straightens less than this share of the first flow's bends.")
    ] = 0.01,
    seed: Annotated[int | None, typer.Option(help="Seed of every draw.", show_default="the parent's")] = None,
    threads: Threads = None,
    data: DataPlace = None,
    source: SourcePlace = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as reflow.steps=100.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the rounds that are there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the runs that are there.")] = False,
) -> None:
    """Train on the pairs that a run's flow makes, so that its trajectories become straight.

    Each round is measured beside its parent, and what came of it kept in round.json.
    """
    from flowgen.config import Places
    from flowgen.core import InputError
    from flowgen.runs import Run, reflow_config
    from flowgen.settings import parse_setting

    if rounds < 1:
        raise InputError(f"--rounds must be at least 1, not {rounds}")
    if not 0 <= stall < 1:
        raise InputError(f"--stall is a share, at least 0 and below 1, not {stall:g}")
    chosen = {"reflow.pairs": pairs, "reflow.inverted": inverted, "reflow.guidance": guidance}
    flags = {**chosen, "train.steps": steps, "seed": seed, "threads": threads}
    given = {key: value for key, value in flags.items() if value is not None}
    given |= dict(parse_setting(setting) for setting in settings or [])
    places = Places(data, source)
    with together(str(given.get("device", Run.open(parent).config.device))) as group:
        for number in range(1, rounds + 1):
            config = reflow_config(parent, given, places)
            assert config.reflow is not None
            check_parts(config, group)
            named = parent if parent.name not in ("", "..") else parent.resolve()
            folder = out or named.with_name(f"{named.name.split('-reflow')[0]}-reflow{config.reflow.round}")
            if out and rounds > 1:
                folder = out.with_name(f"{out.name}-{number}")
            known = resume and (folder / "config.toml").exists()
            group.barrier()  # all have looked before one of them writes
            if group.first and known:
                same = {"reflow.parent": config.reflow.parent, "reflow.parent_hash": config.reflow.parent_hash}
                run = Run.open(folder, places).extended(same | given)
            elif group.first:
                run = create_run(folder, config, overwrite)
            group.barrier()
            if not group.first:
                run = Run.open(folder, places if known else config.places)
            pair_run(run, f"{folder}: pairs", group)
            train_run(run, f"{folder}: training", group)
            if group.first:
                draw_run(run)
            found = _measured(run) if group.first else None
            if group.first:
                print(f"{folder}: reflow of {parent}")
            if number < rounds and group.any(found is not None and not found.gain >= stall):
                if found is not None:
                    gain = f"{found.gain:.2%} of the first flow's bends, which is less than --stall {stall:g}"
                    print(f"{folder}: no more rounds: this one straightened {gain}")
                break
            parent, places = folder, run.config.places
        if group.first:
            print(f"Next: flowgen sample {folder} --steps 1 --solver euler")


def _measured(run: Run) -> Round | None:
    """Measure a round and show the result; return None where it cannot be measured."""
    from flowgen import evaluation
    from flowgen.core import InputError

    try:
        with bar(f"{run.folder}: measuring", None) as move:
            found = evaluation.measure_round(run, partial(move, 0))
    except InputError as error:
        print(f"{run.folder} is not measured: {error}", file=sys.stderr)
        return None
    _show(found)
    if found.drifted:
        first, made = found.first, found.made
        print(
            f"{run.folder}: WARNING: its flow is {mean(made.marginal):.4g} from the data, and that of {first.run} was "
            f"{mean(first.marginal):.4g}: rounds add up the errors of their pairs; give more --pairs, --steps or "
            "--inverted, or use an earlier round",
            file=sys.stderr,
        )
    return found


def _show(found: Round) -> None:
    """Print the figures of a round as a table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, title=f"{found.how['distance']} to the data", padding=(0, 1))
    table.add_column("")
    for name in ("straightness", "in one step", "of the flow"):
        table.add_column(name, justify="right")
    for figures in dict.fromkeys((found.first, found.parent, found.made)):
        table.add_row(_name(figures), *(f"{mean(values):.4g}" for values in figures[3:]))
    table.add_row("true data", "", "", f"{mean(found.floor):.4g}")
    show(table)


def _name(figures: Figures) -> str:
    """Return the name of a run and of its guidance."""
    guided = "" if figures.guidance == 1 else f", guided by {figures.guidance:g}"
    return Path(figures.run).name + guided
