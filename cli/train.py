"""flowgen train: learn a flow from a source to data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import DataPlace, bar, check_parts, create_run, draw_run, potential_run, together, train_run
from .helps import (
    COUPLING_HELP,
    DATA_HELP,
    HEADER_HELP,
    NET_HELP,
    OBJECTIVE_HELP,
    PATH_HELP,
    PREDICTION_HELP,
    TIMES_HELP,
    WEIGHT_HELP,
)

if TYPE_CHECKING:
    from flowgen.config import Config


def train(
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help=DATA_HELP),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/DATA")] = None,
    source: Annotated[
        str | None, typer.Option(help="Where the flow starts: gaussian, or any DATA.", show_default="gaussian")
    ] = None,
    header: Annotated[str | None, typer.Option(help=HEADER_HELP, show_default="found out")] = None,
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Learn the labels in this column of a table too.")
    ] = None,
    coupling: Annotated[
        str | None,
        typer.Option(
            help=f"{COUPLING_HELP}; see flowgen couplings DATA.",
            show_default="multiscale; images, vp, ddpm, offset-cosine, ve: independent",
        ),
    ] = None,
    ot_batch: Annotated[
        int | None,
        typer.Option(
            help="Rows that the coupling solves together; 0: all of a pool.",
            show_default="0; exact: 512; sinkhorn, unbalanced, partial, bridge: 128",
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help=OBJECTIVE_HELP, show_default="flow-matching"),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Folded into a one-step model, of this weight.", show_default="1.0")
    ] = None,
    path: Annotated[str | None, typer.Option(help=PATH_HELP, show_default="linear")] = None,
    prediction: Annotated[
        str | None,
        typer.Option(
            "--prediction",
            "--target",
            help=PREDICTION_HELP,
            show_default="velocity; vp, ddpm, ve: noise; offset-cosine: v",
        ),
    ] = None,
    weight: Annotated[
        str | None,
        typer.Option(
            help=WEIGHT_HELP,
            show_default="unweighted",
        ),
    ] = None,
    times: Annotated[
        str | None,
        typer.Option(
            help=TIMES_HELP,
            show_default="uniform; digits: stratified; ddpm: discrete",
        ),
    ] = None,
    net: Annotated[str | None, typer.Option(help=NET_HELP, show_default="mlp; images: unet")] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Of the net: tiny, small, base; cifar10 of the unet.",
            show_default="images: small; digits: tiny; dit: custom",
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Crop and resize images to so many pixels a side.", show_default="as they are")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror images at random.")] = False,
    steps: Annotated[int | None, typer.Option(help="Training steps.", show_default="20000; digits: 2500")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pairs in a step.", show_default="512; images: 128; digits: 64")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Compute the gradient of a step in so many parts.", show_default="1")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate.", show_default="0.001; images: 0.0002; digits: 0.002")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, float32 or bfloat16.", show_default="float32; images: auto")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the net: faster, after some minutes.")] = False,
    preview_every: Annotated[
        int | None,
        typer.Option(help="Steps between pictures of samples; 0: none.", show_default="0; images: 1000; digits: 500"),
    ] = None,
    log: Annotated[str | None, typer.Option(help="jsonl, or tensorboard beside it.", show_default="jsonl")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first broken image.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of every draw.", show_default="0")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", show_default="auto")] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, help="Threads of the CPU, of all that is done with the run.", show_default="as fit the net"
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; flags win over it.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as net.width=128.")
    ] = None,
    moved: DataPlace = None,
    parent: Annotated[
        Path | None, typer.Option(metavar="RUN", help="With --resume: where the run to learn from is now.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
) -> None:
    """Train a flow from a source to DATA; the result is a run folder.

    By several processes: torchrun --nproc-per-node 2 -m -- flowgen train DATA.
    """
    from flowgen.config import resolve_config
    from flowgen.config.places import places_of
    from flowgen.core import InputError
    from flowgen.runs import Run
    from flowgen.settings import override, parse_setting

    if data is not None and moved is not None:
        raise InputError("give DATA or --data, not both")
    flags = {
        "data": moved if data is None else data,
        "source": source,
        "table.header": header,
        "table.label_column": label_column,
        "coupling": coupling,
        "coupling.group": ot_batch,
        "objective": objective,
        "objective.guidance": guidance,
        "schedule": path,
        "prediction": prediction,
        "weight": weight,
        "times": times,
        "net": net,
        "net.size": size,
        "images.size": image_size,
        "images.flip": flip or None,
        "images.strict": strict or None,
        "train.steps": steps,
        "train.batch_size": batch_size,
        "train.accumulate": accumulate,
        "train.lr": lr,
        "train.precision": precision,
        "train.compile": compiled or None,
        "train.preview_every": preview_every,
        "train.log": log,
        "seed": seed,
        "device": device,
        "threads": threads,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    given |= dict(parse_setting(setting) for setting in settings or [])
    tree = _settings_of(config) if config else {}
    for key, value in given.items():
        tree = override(tree, key, value)
    for section in {"reflow", "distill"} & tree.keys():
        raise InputError(f"these are the settings of a {section}: use flowgen {section} RUN, or --out RUN --resume")
    if out is None:
        if "data" not in tree:
            raise InputError("name the DATA to train on, or the run to go on with: --out RUN --resume")
        out = Path("runs", Path(str(tree["data"]).rpartition(":")[2]).resolve().stem)
    if parent and not resume:
        raise InputError("--parent is of a run that goes on: give --resume too")
    run = Run.open(out) if resume else Run(out, resolve_config(tree))
    with together(str(tree.get("device", run.config.device))) as group:
        check_parts(run.config, group)
        if group.first and resume:
            run = run.extended(tree, parent)
        elif group.first:
            with bar(f"reading {run.config.data}", None):
                run = create_run(out, run.config, overwrite)
            _say_coupled(out, run.config)
        group.barrier()
        if not group.first:
            places = places_of(str(tree.get("data", run.config.data)), str(tree.get("source", run.config.source)))
            run = Run.open(out, places)
        if run.config.reflow and not run.pairs.exists():
            raise InputError(f"{out} has no pairs yet: go on with the command in its README.md, and --resume")
        potential_run(run, group)
        train_run(run, f"training {out}", group)
        if group.first:
            draw_run(run)
            then = "" if run.config.objective.maps else f", flowgen reflow {out}"
            print(f"{out}: {run.config.source} to {run.config.data}. Next: flowgen sample {out}{then}")


def _settings_of(file: Path) -> dict[str, Any]:
    """Return the settings of a file. For that of a run, find the data from its folder and leave out what belongs to
    that run alone: its hashes, and the threads that fit its net.
    """
    from flowgen.runs.places import found_in
    from flowgen.settings import read_toml

    tree, hashes = read_toml(file), {"data_hash", "source_hash"}
    found = found_in(tree, file.parent) if hashes & tree.keys() else tree
    of_run = file.name == "config.toml" and (file.parent / "README.md").is_file()
    alone = hashes | ({"threads"} if of_run else set())
    return {key: value for key, value in found.items() if key not in alone}


def _say_coupled(out: Path, config: Config) -> None:
    """Report before the work what a run on the user's data will not be able to do, since its pairs are coupled."""
    from flowgen.config import kind

    name = config.model_dump()["coupling"]["name"]
    if config.coupled and kind(config.data) != "toy":
        print(
            f"{out}: its pairs are coupled ({name}), for straighter trajectories; to fill in with flowgen edit, or to "
            "sample with noise, train it --coupling independent",
            file=sys.stderr,
        )
