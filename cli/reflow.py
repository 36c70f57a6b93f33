"""flowgen reflow: straighten a trained flow."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .console import check_parts, pair_run, together, train_run


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
    guidance: Annotated[float | None, typer.Option(help="Learn from guided trajectories of this weight.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every draw.", show_default="the parent's")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as reflow.steps=100.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the rounds that are there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the runs that are there.")] = False,
) -> None:
    """Train on the pairs that a run's flow makes, so that its trajectories become straight."""
    from flowgen.core import InputError
    from flowgen.runs import Run, illustrate, reflow_config
    from flowgen.settings import parse_setting

    if rounds < 1:
        raise InputError(f"--rounds must be at least 1, not {rounds}")
    flags = {"reflow.pairs": pairs, "reflow.guidance": guidance, "train.steps": steps, "seed": seed}
    given = {key: value for key, value in flags.items() if value is not None}
    given |= dict(parse_setting(setting) for setting in settings or [])
    with together(str(given.get("device", Run.open(parent).config.device))) as group:
        for number in range(1, rounds + 1):
            config = reflow_config(parent, given)
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
                Run.open(folder).extended(same | given)
            elif group.first:
                Run.create(folder, config, shlex.join(["flowgen", *sys.argv[1:]]), overwrite)
            group.barrier()
            run = Run.open(folder)
            pair_run(run, f"{folder}: pairs", group)
            train_run(run, f"{folder}: training", group)
            if group.first:
                illustrate(run)
                print(f"{folder}: reflow of {parent}. Next: flowgen sample {folder} --steps 1 --solver euler")
            parent = folder
