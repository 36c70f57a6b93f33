"""flowgen evaluate: the quality of runs."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import DataPlace, SourcePlace, Threads, bar, check_place, show, use_threads
from .helps import GRID_HELP, HEADER_HELP, NOISE_HELP, SAMPLER_HELP

if TYPE_CHECKING:
    from rich.text import Text

    from flowgen.evaluation import Estimate, EvaluatedModel, Evaluation, Settings
    from flowgen.samplers.ode import Solver


def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, all on one chart.")],
    steps: Annotated[
        str | None,
        typer.Option(
            help="Steps of the solver to measure at.", show_default="1,2,4,8,16,100; adaptive: 1; jumps: 1,2,4,8"
        ),
    ] = None,
    solver: Annotated[str | None, typer.Option(help=SAMPLER_HELP, show_default="euler; one-step models: jump")] = None,
    grid: Annotated[
        str | None, typer.Option(help=GRID_HELP, show_default="uniform; log-snr or karras, as the solver's paper")
    ] = None,
    noise: Annotated[float | None, typer.Option(help=NOISE_HELP, show_default="as the solver's paper")] = None,
    num: Annotated[int, typer.Option(help="Rows of each set that is compared.")] = 2000,
    repeats: Annotated[int, typer.Option(help="Sets to draw, for the confidence intervals.")] = 5,
    against: Annotated[str, typer.Option(help="held-out, or a FILE of true rows.")] = "held-out",
    header: Annotated[str | None, typer.Option(help=HEADER_HELP, show_default="as RUN")] = None,
    features: Annotated[
        str | None, typer.Option(help="rows, pca, classifier, inception.", show_default="rows; images: pca")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="File of Inception's weights.", show_default="fetched when asked for")
    ] = None,
    guidance: Annotated[float, typer.Option(help="The weight of guidance by labels; 1: none.")] = 1.0,
    neighbours: Annotated[int, typer.Option(help="The k of precision, recall, density and coverage.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.", show_default="the run's")] = None,
    threads: Threads = None,
    data: DataPlace = None,
    source: SourcePlace = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The chart, FILE.png.", show_default="RUN/plots/quality.png; of several, ./quality.png"),
    ] = None,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write all figures to FILE; - for the output.")] = None,
) -> None:
    """Measure runs beside data that they never saw: quality against network evaluations, with its floor."""
    from flowgen import evaluation, plots
    from flowgen.config import Places, sampling_by
    from flowgen.config.places import shown
    from flowgen.core import InputError
    from flowgen.data.suffixes import suffix

    counts, places = _counts(steps) if steps else None, Places(data, source)
    if out and suffix(out) != ".png":
        raise InputError(f"--out is a chart, FILE.png, not {out}")
    folders = _run_folders(runs)
    chosen: dict[Path, tuple[EvaluatedModel, Settings]] = {}
    refused: dict[Path, InputError] = {}
    on: dict[Path, int] = {}
    for run in folders:
        with bar(f"reading {run}", None):
            sound = evaluation.load_sound(run, device, places)  # what is broken is refused, and not left out
        on[run] = threads or sound.trained.threads
        use_threads(on[run])
        try:
            with bar(f"preparing {run}", None):  # a classifier for its features may have to be trained
                subject = evaluation.subject_of(sound, _file(against), features, weights, guidance, header)
            method, spacing = sampling_by(solver, subject.model.schedule, noise, grid, seed)
            walked, at = _suited(subject, method, counts, seed)
            settings = evaluation.Settings(at, walked, num, repeats, seed, neighbours, spacing, solver, grid, noise)
            settings.check(subject)
            chosen[run] = subject, settings
        except InputError as error:
            refused[run] = error
    if not chosen:
        raise next(iter(refused.values()))
    for run, why in refused.items():
        print(f"{run} is left out: {why}", file=sys.stderr)
    folders, subjects = list(chosen), [subject for subject, _ in chosen.values()]
    suited = [settings for _, settings in chosen.values()]
    if len({subject.view.features for subject in subjects}) > 1:
        raise InputError("some of these runs make rows, and some images: measure them apart, or choose --features")
    out = out or _default_chart(folders)
    for path in filter(None, (out, to_json)):
        check_place(path)  # before the work, not after
    if len({subject.name for subject in subjects}) < len(subjects):
        subjects = [subject._replace(name=shown(run)) for subject, run in zip(subjects, folders, strict=True)]
    done = []
    for run, subject, settings in zip(folders, subjects, suited, strict=True):
        use_threads(on[run])
        done.append(_measure(subject, settings))
    text = json.dumps([each.plain() for each in done], indent=1, allow_nan=False)
    if to_json and str(to_json) != "-":
        to_json.write_text(text + "\n", encoding="utf-8")
    plots.quality(out, evaluation.curves(done), evaluation.SHARES)
    with bar(f"drawing {out}", None):
        drawn = [_draw_nearest(out, each, alone=len(done) == 1) for each in done]
    if str(to_json) == "-":
        print(text)
    else:
        for each in done:
            _show(each)
        print(f"chart: {out}" + (f"    figures: {to_json}" if to_json else ""))
        for line in filter(None, drawn):
            print(line)


def _draw_nearest(chart: Path, done: Evaluation, alone: bool) -> str:
    """Draw the samples of a run on images that look most like copies, beside the chart; return a line about it."""
    from flowgen import evaluation, plots

    subject = done.subject
    if len(subject.source.distribution.shape) != 3:
        return ""
    picture = chart.with_name("nearest.png" if alone else f"nearest-{subject.name.replace('/', '-')}.png")
    found = evaluation.suspects(subject, done.settings)
    if found is None:
        return f"{picture} is not drawn: the training images are not in memory (images.memory)"
    plots.copies(picture, *found)
    return f"nearest to training images: {picture}"


def _file(against: str) -> Path | None:
    return None if against == "held-out" else Path(against)


def _default_chart(folders: list[Path]) -> Path:
    """Return where the chart goes by default: the chart of one run is kept with it."""
    from flowgen.core import InputError

    if len(folders) > 1:
        return Path("quality.png")
    plots = folders[0] / "plots"
    try:
        plots.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {plots}: {error.strerror}") from error
    return plots / "quality.png"


def _counts(text: str) -> tuple[int, ...]:
    """Read the numbers of a list such as 1,2,4."""
    from flowgen.core import InputError

    try:
        counts = tuple(sorted({int(count) for count in text.split(",")}))
    except ValueError as error:
        raise InputError(f"--steps is a list of whole numbers like 1,2,4, not {text}") from error
    if counts[0] < 1:
        raise InputError(f"--steps must be at least 1, not {counts[0]}")
    return counts


def _suited(
    subject: EvaluatedModel, solver: Solver | None, counts: tuple[int, ...] | None, seed: int
) -> tuple[Solver, tuple[int, ...]]:
    """Return the solver of a run and the numbers of steps that it can take; print the others on stderr.

    Raises:
        InputError: if it can take none of them.
    """
    from flowgen.core import InputError

    found: list[tuple[Solver, tuple[int, ...]]] = []
    refused: dict[int, InputError] = {}
    for count in counts or (None,):
        try:
            found.append(subject.suited(solver, None if count is None else (count,), seed))
        except InputError as error:
            if count is None:
                raise
            refused[count] = error
    if not found:
        raise next(iter(refused.values()))
    for left, why in refused.items():
        print(f"{subject.name} is left out at {left} step{'s' * (left > 1)}: {why}", file=sys.stderr)
    return found[-1][0], tuple(count for _, steps in found for count in steps)


def _run_folders(paths: list[Path]) -> list[Path]:
    """Return the runs among paths, each once. Where there are several (the shell expands runs/*), skip with a note what
    is no run or has no weights yet.
    """
    from flowgen.core import InputError
    from flowgen.runs import Run

    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: there is no such folder")
    once: dict[Path, Path] = {}
    for path in paths:
        once.setdefault(path.resolve(), path)
    paths = list(once.values())
    found = [path for path in paths if (path / "config.toml").is_file() and Run.open(path).weights.exists()]
    if len(paths) == 1 or not found:
        return paths[:1]  # where loading says what is wrong
    for path in paths:
        if path not in found:
            print(f"{path} is no trained run: passed over", file=sys.stderr)
    return found


def _measure(subject: EvaluatedModel, settings: Settings) -> Evaluation:
    from flowgen import evaluation

    with bar(f"measuring {subject.name}", 3 + len(settings.steps), "measurements") as move:
        floor = evaluation.real_vs_real(subject, settings)
        move(1, "true data")
        geometry = evaluation.geometry(subject, settings)
        move(2, "geometry")
        kl = evaluation.kl_divergence(subject, settings)
        move(3, "likelihood")
        measured = []
        for quality in evaluation.quality(subject, settings):
            measured.append(quality)
            move(3 + len(measured), f"{quality.steps} steps")
    return evaluation.Evaluation(subject, settings, floor, measured, geometry, kl)


def _show(done: Evaluation) -> None:
    """Print the figures of one run as a table, with the floor below them."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from flowgen.evaluation import EXACT, TITLES

    subject, settings = done.subject, done.settings
    title = f"{subject.name}, {settings.named}: at so many network evaluations"
    table = Table(box=SIMPLE_HEAD, title=title, padding=0)
    table.add_column("")
    for q in done.quality:
        table.add_column(f"{q.nfe:g}", justify="right", min_width=7)
    table.add_column("true data", justify="right")
    for name in done.quality[0].figures:
        cells = [q.figures[name] for q in done.quality]
        floor = _cell(done.floor[name]) if name in done.floor else ""
        table.add_row(TITLES[name], *map(_cell, cells), floor)
    table.add_row("s for 1000 samples", *(f"{q.seconds:.3f}" for q in done.quality), "")
    show(table)
    for name, value in done.geometry.items():
        print(f"  {name.replace('_', ' '):<24}{_number(value)}")
    if done.geometry and "normalised_path_energy" not in done.geometry:
        print("  normalised path energy  not given: more than a tenth of the transport cost is noise")
    if done.kl:
        print(f"  {'KL(data | model), nats':<24}{_number(done.kl)}")
    size = subject.size(settings.num)
    print(f"  Compared with {subject.reference.name}: {settings.repeats} times two sets of {size} rows.")
    if size > EXACT:
        print(f"  W2 and transport cost are of the first {EXACT:,} of them.")
    print(f"  Compared: {subject.view.name}. ± is the 95 % interval of the mean.\n")


def _cell(value: Estimate) -> Text:
    from rich.text import Text

    mean = Text(f"{value.mean:.3f}")
    return mean if math.isnan(value.ci95) else mean.append(f"\n±{value.ci95:.3f}", style="dim")


def _number(value: Estimate) -> str:
    return f"{value.mean:.4g}" + ("" if math.isnan(value.ci95) else f" ± {value.ci95:.2g}")
