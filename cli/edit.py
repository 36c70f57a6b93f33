"""flowgen edit: images changed by a trained flow."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from .console import (
    SourcePlace,
    Threads,
    bar,
    check_other,
    check_place,
    evaluations,
    moving,
    printed,
    rows_to,
    say,
    use_threads,
)
from .helps import HEADER_HELP, SAMPLER_HELP

if TYPE_CHECKING:
    from torch import Tensor

    from flowgen.data.labels import Labels
    from flowgen.guidance import Measurement
    from flowgen.runs import Editor, Trained
    from flowgen.sampling import Counted

FRAMES = 8


def edit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="The image file to edit; or a table with empty cells.")
    ],
    header: Annotated[str | None, typer.Option(help=HEADER_HELP, show_default="as RUN")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Fill in what is white in this image, of the size of IMAGE; keep the black.")
    ] = None,
    outpaint: Annotated[
        bool, typer.Option("--outpaint", help="Put IMAGE in the middle, as it is, and paint around it.")
    ] = False,
    upscale: Annotated[
        int | None, typer.Option(metavar="FACTOR", help="Make IMAGE so many times as wide and as high.")
    ] = None,
    strength: Annotated[float | None, typer.Option(help="Redraw IMAGE: 0 leaves all of it, 1 leaves nothing.")] = None,
    toward: Annotated[Path | None, typer.Option(metavar="IMAGE", help="Go on to another image, in --frames.")] = None,
    invert: Annotated[bool, typer.Option("--invert", help="Find the noise that leads to IMAGE.")] = False,
    num: Annotated[int, typer.Option(help="How many to make, each from other noise.")] = 1,
    frames: Annotated[int | None, typer.Option(help="With --toward.", show_default=str(FRAMES))] = None,
    resample: Annotated[
        int, typer.Option(help="Go over the steps so often where something is filled in: slower, and fits better.")
    ] = 1,
    label: Annotated[str | None, typer.Option(help="What to make of it, a label's number or name.")] = None,
    guidance: Annotated[float, typer.Option(help="Above 1: more typical of the label.")] = 1.0,
    solver: Annotated[str, typer.Option(help=SAMPLER_HELP)] = "heun",
    steps: Annotated[int, typer.Option(help="Steps of the grid.")] = 50,
    ema: Annotated[float | None, typer.Option(help="Width of the average, of train.ema.", show_default="first")] = None,
    seed: Annotated[int, typer.Option(help="Image i of a seed is the same whatever --num is.")] = 0,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.", show_default="the run's")] = None,
    threads: Threads = None,
    source: SourcePlace = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="FILE.png: the image; of several a grid, after what they were made of. Without a suffix a folder of "
            ".png. Of --invert: FILE.npy. Of a table: FILE.csv, .npy, .npz; - for the output.",
            show_default="in RUN: edited.png, noise.npy, filled.csv",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Edit an image with a run: fill in, paint around, enlarge, redraw, go on to another; or fill in a table."""
    from flowgen.core import InputError

    asked = _Asked(
        image,
        mask,
        outpaint or None,
        upscale,
        strength,
        toward,
        invert or None,
        num,
        frames,
        resample,
        header,
        label,
        guidance,
    )
    job = asked.job()
    asked.check(job)
    editor, counted = _editor(run, source, job, asked, device, threads, ema, solver, steps, seed)
    out = out or run / {"invert": "noise.npy", "table": "filled.csv"}.get(job, "edited.png")
    if printed(out) and as_json:
        raise InputError("--json and --out - both write to standard output: name a file for the table")
    _check_out(out, job)
    check_other(out, image, mask, toward)
    facts: dict[str, Any] = {"run": str(run), "file": str(image), "job": job, "out": str(out), "num": num}
    facts |= {"steps": steps, "solver": solver, "guidance": guidance, "seed": seed}
    with bar(f"{job} {image}", None, "evaluations") as move:
        facts |= JOBS[job](editor._replace(field=moving(editor.field, move)), asked, out)
    facts["evaluations"] = counted.rows / facts["num"]
    say(out, json.dumps(facts) if as_json else _told(facts))


class _Asked(NamedTuple):
    """The edit that is asked for, and its image; of the fields from `mask` to `invert` one is given."""

    image: Path
    mask: Path | None
    outpaint: bool | None
    upscale: int | None
    strength: float | None
    toward: Path | None
    invert: bool | None
    num: int
    frames: int | None
    resample: int
    header: str | None
    label: str | None
    guidance: float

    def job(self) -> str:
        """Return the name of the job that is given; `table` for a table."""
        from flowgen.core import InputError
        from flowgen.data.suffixes import suffix
        from flowgen.data.tables import READERS

        given, table = [name for name in JOBS if getattr(self, name, None) is not None], suffix(self.image) in READERS
        if table and given:
            raise InputError(f"{self.image} is a table, whose empty cells are filled in: --{given[0]} is of images")
        if table:
            return "table"
        if len(given) != 1:
            *others, last = (f"--{name}" for name in JOBS if name != "table")
            raise InputError(f"an edit is one of {', '.join(others)} and {last}: give one of them, not {len(given)}")
        return given[0]

    def check(self, job: str) -> None:
        from flowgen.core import InputError

        if self.strength is not None and not 0 <= self.strength <= 1:
            raise InputError(f"--strength is from 0 to 1, not {self.strength:g}")
        least = {"num": (self.num, 1), "resample": (self.resample, 1), "frames": (self.frames or 2, 2)}
        for name, (value, lowest) in least.items():
            if value < lowest:
                raise InputError(f"--{name} must be at least {lowest}, not {value}")
        if self.num > 1 and job in ("toward", "invert"):
            raise InputError(f"--num is of what is drawn from noise, and --{job} draws none")
        if self.num > 1 and job == "table":
            raise InputError("--num is of images: fill in a table again with another --seed")
        if self.frames is not None and job != "toward":
            raise InputError("--frames is of --toward")
        if self.resample > 1 and job not in ("mask", "outpaint", "upscale", "table"):
            raise InputError("--resample is of --mask, --outpaint and --upscale")


def _check_out(out: Path, job: str) -> None:
    from flowgen.core import InputError
    from flowgen.data.images.pictures import check_empty
    from flowgen.data.suffixes import suffix
    from flowgen.data.writing import WRITERS

    if job == "table" and printed(out):
        return
    suffixes = {"invert": (".npy",), "toward": (".png",), "table": tuple(WRITERS)}.get(job, (".png", ""))
    if suffix(out) not in suffixes and job == "table":
        raise InputError(f"a table is written to {', '.join(suffixes)}, and not to {out}")
    if suffix(out) not in suffixes or printed(out):
        wanted = "FILE.npy" if job == "invert" else "FILE.png" + " or a folder" * ("" in suffixes)
        raise InputError(f"--out of --{job} is {wanted}, not {out}")
    if out.suffix:
        check_place(out)
    else:
        check_empty(out)


def _editor(
    run: Path,
    source: str | None,
    job: str,
    asked: _Asked,
    device: str | None,
    threads: int | None,
    ema: float | None,
    solver: str,
    steps: int,
    seed: int,
) -> tuple[Editor, Counted]:
    """Return the editor of a run's folder, and the count of its evaluations."""
    from flowgen import runs, sampling
    from flowgen.config import Places, sampling_by
    from flowgen.core import InputError

    trained = runs.load(run, device, ema, Places(None, source))
    use_threads(threads or trained.threads)
    if job == "table" and len(trained.source.shape) != 1:
        raise InputError(f"{run} makes images, and no rows of a table")
    if job != "table" and len(trained.source.shape) != 3:
        raise InputError(f"{run} makes rows of {trained.source.shape[0]} numbers, and --{job} is of images")
    if not trained.config.objective.fields:
        raise InputError(f"{run} has learned to jump, and has no velocity to follow: take the run that it learned from")
    chosen, spacing = sampling_by(solver, trained.model.schedule, seed=seed)
    walked = runs.sampler(trained.config, trained.model, trained.source, chosen, steps, seed, spacing)
    if walked.solver.needs_flow_map:
        raise InputError("an edit follows a velocity, and cannot jump: choose another --solver")
    counted = sampling.Counted(trained.model.velocity)
    label = None if job == "table" and asked.label is None else _label_of(trained, asked)  # rows may have their own
    return runs.Editor(trained, trained.guided(counted, asked.guidance), walked, label, seed), counted


def _label_of(trained: Trained, asked: _Asked) -> int | None:
    """Return the number of the label that is asked for."""
    from flowgen.core import InputError

    from .labels import label_number

    if asked.label is None and asked.guidance != 1:
        raise InputError("--guidance is to a --label: choose one")
    if asked.label is None and trained.classes and not trained.config.train.label_dropout:
        raise InputError("this run was never trained without a label: choose one with --label")
    return None if asked.label is None else label_number(asked.label, trained)


def _label_of_rows(trained: Trained, asked: _Asked, labels: Labels | None) -> Tensor | int | None:
    """Return the number of each row's own label, where the run has learned labels and the table has them, or of the
    label that is asked for.
    """
    from flowgen.core import InputError

    if labels is None or not trained.classes:
        return _label_of(trained, asked)
    if asked.label is not None:
        raise InputError(f"{asked.image} has labels of its own: leave out --label, or these")
    return trained.numbers_of(*labels, str(asked.image))


def _read(file: Path, editor: Editor, *size: int, channels: int | None = None) -> Tensor:
    """Read an image file as `(1, C, H, W)` in model units, black at -1 and white at 1, in the run's size or `size`."""
    import torch

    from flowgen.data.images.decoding import read_image

    own, height, width = editor.trained.source.shape
    height, width = size or (height, width)
    pixels = torch.from_numpy(read_image(file, (channels or own, height, width)).copy())
    return (pixels.unsqueeze(0).float() / 255 * 2 - 1).to(editor.model.device)


def _size(file: Path) -> tuple[int, int]:
    """Return the height and the width of an image file."""
    from flowgen.data.images.decoding import read_image

    _, height, width = read_image(file).shape
    return height, width


# the jobs


class _Known(NamedTuple):
    """What is known of the images to make, y = A x1, and `(n, C, H, W)` that show it."""

    measurement: Measurement
    y: Tensor
    shown: Tensor


def _masked(editor: Editor, asked: _Asked) -> _Known:
    import torch

    from flowgen.core import InputError
    from flowgen.guidance import Mask

    assert asked.mask is not None
    (height, width), other = _size(asked.image), _size(asked.mask)
    if (height, width) != other:
        sizes = f"{asked.image} is {width}x{height}, and {asked.mask} {other[1]}x{other[0]}"
        raise InputError(f"{sizes}: the mask must have the size of the image")
    x, drawn = _read(asked.image, editor), _read(asked.mask, editor, channels=1)
    known = drawn < 0
    if known.all():
        raise InputError(f"{asked.mask} has nothing white: nothing would be filled in")
    measurement = Mask(known)
    return _Known(measurement, measurement.apply(x), torch.cat([x, _drawn(known, x)]))


def _framed(editor: Editor, asked: _Asked) -> _Known:
    import torch

    from flowgen.core import InputError
    from flowgen.guidance import framed

    own, (_, height, width) = _size(asked.image), editor.trained.source.shape
    if own == (height, width):
        raise InputError(f"{asked.image} fills the {width}x{height} pixels of this run: nothing is left to paint")
    y, measurement = framed(_read(asked.image, editor, *own), height, width)
    return _Known(measurement, y, torch.cat([torch.where(measurement.known, y, 1.0), _drawn(measurement.known, y)]))


def _enlarged(editor: Editor, asked: _Asked) -> _Known:
    from flowgen.core import InputError
    from flowgen.guidance import Downsampled

    assert asked.upscale is not None
    (_, height, width), factor, own = editor.trained.source.shape, asked.upscale, _size(asked.image)
    if factor < 2:
        raise InputError(f"--upscale is by a whole factor from 2 on, not {factor}")
    if (factor * own[0], factor * own[1]) != (height, width):
        raise InputError(
            f"{asked.image} is {own[1]}x{own[0]}, and {factor} times that is not the {width}x{height} of this run"
        )
    measurement, y = Downsampled(factor), _read(asked.image, editor, *own)
    return _Known(measurement, y, measurement.inverse(y))


def _drawn(known: Tensor, x: Tensor) -> Tensor:
    """Return a mask as an image like x: black where it is known, white elsewhere."""
    import torch

    return torch.where(known, -1.0, 1.0).expand_as(x)


def _fill(find: Callable[[Editor, _Asked], _Known], editor: Editor, asked: _Asked, out: Path) -> dict[str, Any]:
    known = find(editor, asked)
    _write(out, editor.fill(known.measurement, known.y, asked.num, asked.resample), known.shown)
    return {}


def _redraw(editor: Editor, asked: _Asked, out: Path) -> dict[str, Any]:
    assert asked.strength is not None
    x = _read(asked.image, editor)
    _write(out, editor.redraw(x, asked.strength, asked.num), x)
    return {}


def _invert(editor: Editor, asked: _Asked, out: Path) -> dict[str, Any]:
    """Find the noise x0 that leads to an image, and measure how well it does."""
    import torch

    from flowgen.data.writing import write_rows

    x = _read(asked.image, editor)
    latent = editor.invert(x)
    noise = latent / editor.model.start(torch.ones(1))  # sigma(0)
    error = (editor.back(latent) - x).square().mean().sqrt().item()
    write_rows(out, [noise.cpu()], noise.shape)
    return {"error": error * 255 / 2, "mean": noise.mean().item(), "deviation": noise.std().item()}


def _go_on(editor: Editor, asked: _Asked, out: Path) -> dict[str, Any]:
    import torch

    from flowgen.data.images.pictures import write_grid

    assert asked.toward is not None
    frames = asked.frames or FRAMES
    ends = torch.cat([_read(file, editor) for file in (asked.image, asked.toward)])
    write_grid(out, _pixels(editor.between(ends, frames)), columns=frames)
    return {"num": frames}


def _fill_cells(editor: Editor, asked: _Asked, out: Path) -> dict[str, Any]:
    """Fill the empty cells of a table, where each row has its own."""
    import torch

    from flowgen.core import InputError
    from flowgen.data.tables import column_order, read_table
    from flowgen.data.writing import write_rows
    from flowgen.guidance import Mask

    from .labels import kept_labels

    trained, (width,) = editor.trained, editor.trained.source.shape
    tables = trained.config.table.asked(asked.header)
    table = read_table(asked.image, True, tables.named, tables.label_column, labels_needed=False)
    order = column_order(table.columns, table.x.shape[1], trained.columns, width, str(asked.image))
    x = table.x[:, order]
    if (known := ~x.isnan()).all():
        raise InputError(f"{asked.image} has no empty cell: nothing would be filled in")
    parts, scaling, size = [], editor.model.scaling, editor.together(trained.source.shape)
    label = _label_of_rows(trained, asked, table.numbered)
    for first in range(0, len(x), size):
        here, there = x[first : first + size], known[first : first + size]
        own = editor._replace(label=label[first : first + size] if isinstance(label, torch.Tensor) else label)
        measurement = Mask(there.to(editor.model.device))
        y = measurement.apply(scaling.in_model_units(here).to(editor.model.device))
        made = scaling.undo(own.fill(measurement, y, len(here), asked.resample, first)).cpu()
        parts.append(torch.where(there, here, made.double()))
    back = [order.index(column) for column in range(width)]  # as the file has them
    parts, columns = [part[:, back] for part in parts], table.columns or trained.columns
    write_rows(
        rows_to(out), parts, x.shape, columns, True, kept_labels(out, table.numbered), table.label_column or "label"
    )
    return {"num": len(x), "cells": int((~known).sum())}


JOBS: dict[str, Callable[[Editor, _Asked, Path], dict[str, Any]]] = {
    "mask": partial(_fill, _masked),
    "outpaint": partial(_fill, _framed),
    "upscale": partial(_fill, _enlarged),
    "strength": _redraw,
    "toward": _go_on,
    "invert": _invert,
    "table": _fill_cells,
}


# what is written


def _pixels(x: Tensor) -> Tensor:
    return ((x + 1) / 2).cpu()


def _write(out: Path, x: Tensor, shown: Tensor) -> None:
    """Write edited images: one as it is, several after what they were made of, or a folder of them."""
    import torch

    from flowgen.data.images.pictures import write_folder, write_grid

    if not out.suffix:
        write_folder(out, [_pixels(x)])
    elif len(x) == 1:
        write_grid(out, _pixels(x), scale=1)
    else:
        write_grid(out, _pixels(torch.cat([shown, x])))


def _told(facts: dict[str, Any]) -> str:
    way = f"in {facts['steps']} step{'s' * (facts['steps'] > 1)} of {facts['solver']}"
    if facts["job"] == "invert":
        return (
            f"{facts['out']}: the noise of {facts['file']}, {way}, of mean {facts['mean']:.2g} and deviation "
            f"{facts['deviation']:.3g}. It leads back to it within {facts['error']:.2g} of 255 levels"
        )
    what = {"toward": "frame", "table": "row"}.get(facts["job"], "image")
    made = f"{facts['num']} {what}{'s' * (facts['num'] > 1)}"
    return f"{facts['out']}: {made} {way}, {evaluations(facts['evaluations'])}"
