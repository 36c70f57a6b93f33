"""flowgen sample: draw from a trained flow."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import SourcePlace, Threads, bar, evaluations, printed, rows_to, say, together, use_threads
from .helps import GRID_HELP, NOISE_HELP, PATH_HELP, SAMPLER_HELP
from .labels import conditions, kept_labels

if TYPE_CHECKING:
    from torch import Tensor

    from flowgen.core import Field
    from flowgen.runs import Trained, TrainedClassifier
    from flowgen.samplers.ode import Solver

PLOTTED, TRACED = 20_000, 300  # more points than that make a picture blacker, not clearer
IMAGES, STRIPS, MOST_STRIPS = 64, 8, 128


def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    num: Annotated[int | None, typer.Option(help="Samples to draw.", show_default="2000; images: 64")] = None,
    solver: Annotated[str | None, typer.Option(help=SAMPLER_HELP, show_default="heun; one-step models: jump")] = None,
    grid: Annotated[
        str | None, typer.Option(help=GRID_HELP, show_default="uniform; log-snr or karras, as the solver's paper")
    ] = None,
    noise: Annotated[float | None, typer.Option(help=NOISE_HELP, show_default="as the solver's paper")] = None,
    path: Annotated[
        str | None, typer.Option(help=f"Another to sample on: {PATH_HELP}", show_default="the run's")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the grid.", show_default="50; adaptive: 1; jumps: as learned")
    ] = None,
    label: Annotated[str | None, typer.Option(help="The label of all samples, a number or a name.")] = None,
    labels: Annotated[str | None, typer.Option(help="Labels like 0-9 or cat,dog, --per-label samples of each.")] = None,
    per_label: Annotated[int, typer.Option(help="With --labels.")] = 8,
    guidance: Annotated[float, typer.Option(help="Above 1: more typical of the label, less diverse.")] = 1.0,
    guidance_interval: Annotated[str, typer.Option(help="The times LO,HI at which to guide.")] = "0,1",
    guidance_rescale: Annotated[
        float, typer.Option(help="Of images: give back this share, 0 to 1, of the spread that guidance widens.")
    ] = 0.0,
    weak: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A weaker run of the same data, to lead away from by --guidance.")
    ] = None,
    classifier_guidance: Annotated[
        float, typer.Option(help="Weight of guidance by the classifier of flowgen train-classifier.")
    ] = 0.0,
    ema: Annotated[float | None, typer.Option(help="Width of the average, of train.ema.", show_default="first")] = None,
    seed: Annotated[int, typer.Option(help="Sample i of a seed is the same whatever --num is.")] = 0,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.", show_default="the run's")] = None,
    threads: Threads = None,
    source: SourcePlace = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Points: FILE.npz (array x), .npy, .csv or .png. Images: a grid .png, .npz (arr_0, uint8), .npy, or a "
            "folder of .png. -: points as CSV on standard output.",
            show_default="in RUN: samples.png, .csv",
        ),
    ] = None,
    trajectories: Annotated[bool, typer.Option("--trajectories", help="Draw how samples come to be (.png).")] = False,
) -> None:
    """Draw samples from a run, into a file or a picture."""
    from flowgen import sampling
    from flowgen.config import Places, sampling_by
    from flowgen.core import InputError
    from flowgen.data import streams
    from flowgen.data.suffixes import suffix
    from flowgen.runs import Guidance, Run, guided, load, load_classifier, load_weak, sampler

    with together(device or Run.open(run).config.device) as group:
        trained = load(run, str(group.device) if group.part.of > 1 else device, ema, Places(None, source))
        use_threads(threads or trained.threads)
        shape, images = trained.source.shape, len(trained.source.shape) == 3
        if num is not None and labels is not None:
            raise InputError("give --num or --labels, whose samples are --per-label of each")
        if num is None:
            num = (STRIPS if trajectories else IMAGES) if images else 2000
        if num < 1:
            raise InputError(f"--num must be at least 1, not {num}")
        known = load_classifier(run, trained) if classifier_guidance else None
        labelled = _labelled(trained, known)
        cond = conditions(labelled, num, label, labels, per_label, seed)
        other = None if weak is None else load_weak(weak, trained, str(trained.model.device), Places(None, source))
        guide = Guidance(guidance, _interval(guidance_interval), guidance_rescale, other, known, classifier_guidance)
        num = num if cond is None else len(cond)
        drawn = images or shape == (2,)
        out = out or run / ("trajectories.png" if trajectories else "samples.png" if drawn else "samples.csv")
        if trajectories and (not drawn or suffix(out) != ".png"):
            raise InputError("--trajectories draws a .png of a run with two columns, or of images")
        if images and printed(out):
            raise InputError("--out - prints rows, and this run makes images: choose FILE.png, .npz, .npy or a folder")
        if out.suffix and not out.parent.is_dir():  # before the work, not after
            raise InputError(f"{out}: there is no folder {out.parent}")
        trained = trained if path is None else _repathed(trained, path)
        chosen, spacing = sampling_by(solver, trained.model.schedule, noise, grid, seed)
        method, times = sampler(trained.config, trained.model, trained.source, chosen, steps, seed, spacing)
        count, named = len(times) - 1, solver or ("jump" if method.needs_flow_map else "heun")
        way = f"{count} step{'s' if count > 1 else ''} of {named}"
        counted = sampling.Counted(sampling.asked(trained.model, method))
        field = guided(trained, counted, guide)
        if trajectories:
            if group.first:
                num = _draw_trajectories(out, trained, field, times, method, num, cond, seed)
                print(f"{out}: {num} trajectories in {way}")
            return
        if suffix(out) == ".png" and num > PLOTTED:
            num, cond = PLOTTED, None if cond is None else cond[:PLOTTED]
        chunks = sampling.sample_chunks(
            trained.model, trained.source, num, times, method, seed=seed, field=field, cond=cond, processes=group
        )
        if not group.first:
            for _ in chunks:
                pass
            return
        write = _write_images if images else _write_rows
        write(out, labelled, _followed(chunks, num, f"sampling {run}"), num, cond, per_label if labels else None)
        rows = streams.whole_blocks(num)
        each = f", {evaluations(counted.rows / rows)}" if group.part.of == 1 else ""
        say(out, f"{out}: {num} samples in {way}{each}")


def _labelled(trained: Trained, known: TrainedClassifier | None) -> Trained:
    """Return what was trained; for a run without labels, with those of its classifier."""
    return trained if known is None or trained.classes else trained._replace(classes=known.classes, labels=known.labels)


def _repathed(trained: Trained, path: str) -> Trained:
    """Return what was trained, on another path."""
    from flowgen.config import SCHEDULES, lookup
    from flowgen.core import InputError
    from flowgen.repath import repath

    made = lookup("path", path, SCHEDULES)()
    if trained.config.objective.maps:
        raise InputError("a model that jumps does so on its own path: leave out --path")
    return trained._replace(model=repath(trained.model, made))


def _followed(chunks: Iterator[Tensor], num: int, title: str) -> Iterator[Tensor]:
    """Yield the chunks, with a bar."""
    done = 0
    with bar(title, num, "samples") as move:
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            move(done)


def _write_rows(
    out: Path, trained: Trained, chunks: Iterator[Tensor], num: int, cond: Tensor | None, columns: int | None
) -> None:
    """Write samples of rows as a picture or a table."""
    import torch

    from flowgen import plots
    from flowgen.data.labels import Labels
    from flowgen.data.suffixes import suffix
    from flowgen.data.writing import write_rows

    if suffix(out) == ".png":
        plots.samples(out, torch.cat(list(chunks)), columns=trained.columns)
    else:
        kept = kept_labels(out, None if cond is None else Labels(cond, trained.classes))
        shape, name = (num, *trained.source.shape), trained.label_column
        scaling = trained.model.scaling
        exact, digits = scaling.exact, scaling.digits()
        write_rows(rows_to(out), chunks, shape, trained.columns, exact, labels=kept, label_column=name, digits=digits)


def _write_images(
    out: Path, trained: Trained, chunks: Iterator[Tensor], num: int, cond: Tensor | None, columns: int | None
) -> None:
    """Write samples of images as a grid with a row for each label that was asked for, an archive, or a folder of
    pictures.
    """
    import torch

    from flowgen.core import InputError
    from flowgen.data.images.pictures import write_folder, write_grid, write_npz
    from flowgen.data.labels import Labels, own_labels
    from flowgen.data.suffixes import suffix
    from flowgen.data.writing import write_rows

    scaling = deepcopy(trained.model.scaling).cpu()
    pixels = (scaling.pixels(chunk) for chunk in chunks)
    if suffix(out) == ".png":
        write_grid(out, torch.cat(list(pixels)), columns)
    elif suffix(out) == ".npz":
        write_npz(out, pixels, num, trained.source.shape, None if cond is None else own_labels(cond, trained.classes))
    elif suffix(out) == ".npy":
        kept_labels(out, None if cond is None else Labels(cond, trained.classes))
        write_rows(out, chunks, (num, *trained.source.shape))
    elif out.suffix:
        raise InputError(f"{out}: unknown suffix; images are written to .png, .npz, .npy or a folder")
    else:
        write_folder(out, pixels, labels=None if cond is None else own_labels(cond, trained.classes))


def _draw_trajectories(
    out: Path,
    trained: Trained,
    field: Field,
    grid: Tensor,
    method: Solver,
    num: int,
    cond: Tensor | None,
    seed: int,
) -> int:
    """Draw the trajectories of the first samples, as lines in the plane or a strip of pictures for each; return how
    many they are.
    """
    import torch

    from flowgen import plots, sampling
    from flowgen.data import streams
    from flowgen.data.images.pictures import write_strip

    model, images = trained.model, len(trained.source.shape) == 3
    num = min(num, MOST_STRIPS if images else TRACED)
    x0 = model.start(streams.source_rows(trained.source, 0, num, seed))
    cond = None if cond is None else cond[:num].to(model.device)
    states = [x0]
    with torch.no_grad(), bar("following trajectories", len(grid) - 1, "steps") as move:
        for x in sampling.trajectory(field, x0, grid, method, cond):
            states.append(x)
            move(len(states) - 1)
    if images:
        write_strip(out, ((torch.stack(states).cpu() + 1) / 2).clamp(0, 1))
    else:
        plots.trajectories(out, model.scaling.undo(torch.stack(states)).cpu())
    return num


def _interval(text: str) -> tuple[float, float]:
    from flowgen.core import InputError

    try:
        lo, hi = map(float, text.split(","))
    except ValueError as error:
        raise InputError(f"--guidance-interval is two times like 0.2,0.8, not {text}") from error
    return lo, hi
