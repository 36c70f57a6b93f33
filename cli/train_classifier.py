"""flowgen train-classifier: a classifier of a run's noisy data, which guides its samples."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import DataPlace, SourcePlace, Threads, bar, check_place, use_threads

if TYPE_CHECKING:
    from flowgen.runs import Accuracy

STEPS, BATCH_SIZE = {False: 2000, True: 1500}, {False: 512, True: 128}
"""Of rows, and of images."""


def train_classifier(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    steps: Annotated[int | None, typer.Option(help="Training steps.", show_default="2000; images: 1500")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows in a step.", show_default="512; images: 128")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.", show_default="the run's")] = None,
    threads: Threads = None,
    data: DataPlace = None,
    source: SourcePlace = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the classifier that is there.")] = False,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write the figures to FILE; - for the output.")] = None,
) -> None:
    """Train a classifier of RUN's data on their way from noise, for flowgen sample --classifier-guidance."""
    from flowgen import runs
    from flowgen.config import Places, find_device
    from flowgen.core import InputError
    from flowgen.data import TensorDataset

    trained = runs.load(run, device, places=Places(data, source))
    use_threads(threads or trained.threads)
    found, images, place = runs.labelled_data(trained), len(trained.source.shape) == 3, runs.classifier_file(run)
    steps = STEPS[images] if steps is None else steps
    batch_size = BATCH_SIZE[images] if batch_size is None else batch_size
    for name, value in {"--steps": steps, "--batch-size": batch_size}.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    if place.exists() and not overwrite:
        raise InputError(f"{place} exists already; train it anew with --overwrite")
    if to_json and str(to_json) != "-":
        check_place(to_json)  # before the work, not after
    on = find_device(device or trained.config.device)
    with bar(f"training {place}", steps, "steps") as move:
        for done, loss in enumerate(runs.train_classifier(run, trained, found, steps, batch_size, seed, on), 1):
            if done % 10 == 0 or done == steps:
                move(done, f"loss {loss:.4g}")
    held_out = found.held_out if isinstance(found.held_out, TensorDataset) else None
    figures = [] if held_out is None else list(runs.accuracies(runs.load_classifier(run, trained), held_out, seed))
    _tell(figures, place, 0 if held_out is None else len(held_out), to_json)


def _tell(found: list[Accuracy], place: Path, rows: int, to_json: Path | None) -> None:
    """Print the figures of held-out rows, as a table or as JSON."""
    from flowgen.config.places import shown

    text = json.dumps({"file": shown(place), "rows": rows, "held_out": [each._asdict() for each in found]}, indent=1)
    if str(to_json) == "-":
        print(text)
        return
    if to_json:
        to_json.write_text(text + "\n", encoding="utf-8")
    if found:
        print(f"of {rows} held-out rows, with the noise of time t:\n\n       t  labelled right    nats")
        print("\n".join(f"  {each.t:6.3f}  {each.accuracy:13.1%}  {each.nats:6.3f}" for each in found), end="\n\n")
    else:
        print("no row was held out: how often it is right is not known", file=sys.stderr)
    print(f"{place}: guide with flowgen sample {place.parent} --label LABEL --classifier-guidance 2")
