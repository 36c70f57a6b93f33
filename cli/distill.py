"""flowgen distill: a model of one or a few steps from a trained flow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import DataPlace, SourcePlace, Threads, check_parts, create_run, draw_run, pair_run, together, train_run
from .helps import METHOD_HELP

if TYPE_CHECKING:
    from flowgen.config import Config
    from flowgen.runs import Run


def distill(
    teacher: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="The run to learn from: a flow, a reflow, or what jumps in several steps."),
    ],
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="RUN-METHOD")] = None,
    steps: Annotated[int, typer.Option(help="Network evaluations of a sample: 1, 2, 4, ...")] = 1,
    method: Annotated[
        str | None,
        typer.Option(
            help=METHOD_HELP,
            show_default="endpoint; of several steps, or from such a run: progressive",
        ),
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(help="Learn from so many pairs that the run makes.", show_default="by method")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Fold in guidance of this weight.", show_default="none")
    ] = None,
    train_steps: Annotated[int | None, typer.Option(help="Training steps in all.", show_default="the run's")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every draw.", show_default="the run's")] = None,
    threads: Threads = None,
    data: DataPlace = None,
    source: SourcePlace = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as train.lr=5e-4.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the runs that are there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the runs that are there.")] = False,
) -> None:
    """Train a model that samples in one network evaluation, or a few, from a run that needs many.

    By pairs that the run makes (endpoint), by halving its steps again and again (progressive), or as a flow map that
    jumps from any time to any other.
    """
    from flowgen.config import Places
    from flowgen.core import InputError
    from flowgen.runs import Run, check_vacant, distill_config, remove, stages
    from flowgen.settings import parse_setting

    if steps < 1:
        raise InputError(f"--steps must be at least 1, not {steps}")
    learned = Run.open(teacher).config.objective
    halved = steps > 1 or (learned.jumps > 1 and not learned.fields)
    method = method or ("progressive" if halved else "endpoint")
    if steps > 1 and method != "progressive":
        raise InputError(f"--method {method} learns to jump in one step: --steps is of progressive")
    jumps = stages(teacher, steps) if method == "progressive" else [steps]
    flags = {"seed": seed, "train.steps": train_steps, "threads": threads}
    given = {key: value for key, value in flags.items() if value is not None}
    given |= dict(parse_setting(setting) for setting in settings or [])
    total = given.get("train.steps", Run.open(teacher).config.train.steps)
    if not isinstance(total, int) or total < len(jumps):
        raise InputError(f"{len(jumps)} students need as many training steps, or more, not {total}")
    each = {"train.steps": total // len(jumps)}
    given |= each if "train.steps" in given else {}
    named = teacher if teacher.name not in ("", "..") else teacher.resolve()
    out = out or named.with_name(f"{named.name}-{_suffix(method, steps)}")
    places = Places(data, source)
    with together(str(given.get("device", Run.open(teacher).config.device))) as group:
        folders = [*(out.with_name(f"{out.name}-from{count}") for count in jumps[:-1]), out]
        if teacher.resolve() in {folder.resolve() for folder in folders}:
            raise InputError(f"{teacher} is the run to learn from, and cannot be replaced by what does")
        if group.first:
            for folder in folders:  # before the work, not after
                if not resume:
                    check_vacant(folder, overwrite)
                elif len(folders) > 1 and "train.steps" in given:
                    _check_same(folder, each["train.steps"])
        for stage, (count, folder) in enumerate(zip(jumps, folders, strict=True)):
            weight = guidance if stage == 0 else None
            known = resume and (folder / "config.toml").exists()
            recorded = Run.open(folder).config.reflow if known and stage == 0 else None
            asked = recorded.pairs if recorded and pairs is None else pairs
            config = distill_config(teacher, method, count, each | given, asked, weight, places)
            check_parts(config, group)
            group.barrier()  # all have looked before one of them writes
            if group.first and known:
                before = Run.open(folder, places)
                run = before.extended(given | _asked_again(before, config, pairs, weight))
            elif group.first:
                run = create_run(folder, config, overwrite)
                for later in folders[stage + 1 :] if overwrite else ():  # they have learned from what is gone
                    if later.exists():
                        remove(later)
            group.barrier()
            if not group.first:
                run = Run.open(folder, places if known else config.places)
            if run.config.reflow:
                pair_run(run, f"{folder}: pairs", group)
            train_run(run, f"{folder}: training", group)
            if group.first:
                draw_run(run)
            teacher, pairs, places = folder, None, run.config.places
    if group.first:
        print(f"{out}: samples in {steps} step{'s' if steps > 1 else ''}. Next: flowgen sample {out}")


def _check_same(folder: Path, steps: int) -> None:
    """Refuse a student among several that is asked for other steps than it was started with.

    Raises:
        InputError: if one of several students is asked for other steps than it was to make.
    """
    from flowgen.core import InputError
    from flowgen.runs import Run

    planned = Run.open(folder).config.train.steps if (folder / "config.toml").exists() else steps
    if steps != planned:
        raise InputError(f"--resume cannot change that {folder} trains for {planned} steps: the next learns from it")


def _asked_again(run: Run, config: Config, pairs: int | None, guidance: float | None) -> dict[str, Any]:
    """Return what a new configuration and the run to resume must agree on: the teacher, and the settings given for
    pairs and guidance.

    Raises:
        InputError: if it learned by another method, or not from pairs.
    """
    from flowgen.core import InputError

    before, tree = run.config.model_dump(), config.model_dump()
    one, other = (made["objective"]["name"] for made in (before, tree))
    section = "distill" if before["distill"] else "reflow"
    if one != other:
        raise InputError(f"--resume cannot change objective from {one} to {other}: start another run")
    if not tree[section]:
        raise InputError(f"--resume cannot change that {run.folder} learns from a velocity: leave out --pairs")
    same = {f"{section}.{key}": tree[section][key] for key in ("parent", "parent_hash")}
    same |= {} if pairs is None else {"reflow.pairs": pairs}
    return same if guidance is None else same | {f"{section}.guidance": guidance}


def _suffix(method: str, steps: int) -> str:
    return f"{steps}step" if method in ("endpoint", "progressive") else method
