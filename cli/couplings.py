"""flowgen couplings: the cost of each coupling for some data, and how near its pairs are."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import bar, check_place, show
from .helps import COUPLING_HELP, DATA_HELP, HEADER_HELP

if TYPE_CHECKING:
    from flowgen.evaluation.pairing import Comparison, Measured

PICTURE = Path("couplings.png")


def couplings(
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA_HELP)],
    source: Annotated[
        str | None, typer.Option(help="Where the flow starts: gaussian, or any DATA.", show_default="gaussian")
    ] = None,
    header: Annotated[str | None, typer.Option(help=HEADER_HELP, show_default="found out")] = None,
    coupling: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help=f"One to measure, many times: {COUPLING_HELP}.", show_default="all but semidiscrete"
        ),
    ] = None,
    ot_batch: Annotated[
        int | None,
        typer.Option(
            help="Rows that a coupling solves together; 0: all of a pool.",
            show_default="0; exact: 512; sinkhorn, unbalanced, partial, bridge: 128",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pairs in a batch.", show_default="512; images: 128; digits: 64")
    ] = None,
    batches: Annotated[int, typer.Option(help="Batches to make at least, in whole pools.")] = 20,
    seed: Annotated[int | None, typer.Option(help="Seed of every draw.", show_default="0")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as coupling.epsilon=0.1.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The picture, FILE.png.", show_default="couplings.png, of two columns")
    ] = None,
    no_picture: Annotated[bool, typer.Option("--no-picture", help="Draw none.")] = False,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write all figures to FILE; - for the output.")] = None,
) -> None:
    """Measure what each coupling costs for DATA, and how far apart its pairs are."""
    from flowgen.config import find_device
    from flowgen.core import InputError
    from flowgen.evaluation import pairing

    if batches < 1:
        raise InputError(f"--batches must be at least 1, not {batches}")
    flags = {
        "source": source,
        "table.header": header,
        "coupling.group": ot_batch,
        "train.batch_size": batch_size,
        "seed": seed,
    }
    tree = _tree(data, flags, settings or [])
    trials = pairing.trials(tree, coupling or ())
    config = trials[0].config
    loaded = config.load_data()
    ends = config.ends(loaded, find_device(config.device))
    picture = _picture(out, no_picture, ends.data.shape)
    for path in filter(None, (picture, to_json)):
        check_place(path)  # before the work, not after
    pools, done = -(-batches // config.pool.batches), list[pairing.Measured]()
    with bar(f"coupling {data}", len(trials), "couplings") as move:
        for trial in trials:
            move(len(done), trial.name)
            done.append(pairing.measure(trial, loaded, ends, pools, partial(move, len(done))))
        move(len(done))
    absent = () if coupling else pairing.left_out(trials)
    found = pairing.Comparison(Path(data).name, pairing.default_of(tree), pools, len(loaded.classes), done, absent)
    _write(found, picture, to_json)
    if not (picture or no_picture or str(to_json) == "-"):
        print("no picture: the data do not lie in the plane")


def _picture(out: Path | None, no_picture: bool, shape: tuple[int, ...]) -> Path | None:
    """Return the file to draw the pairs in; None for no picture."""
    from flowgen.core import InputError
    from flowgen.data.suffixes import suffix

    if out and no_picture:
        raise InputError("give --out or --no-picture, not both")
    if out and suffix(out) != ".png":
        raise InputError(f"--out is a picture, FILE.png, not {out}")
    if out and shape != (2,):
        raise InputError(f"--out draws data of two columns, and these are of shape {shape}")
    return None if no_picture or shape != (2,) else out or PICTURE


def _tree(data: str, flags: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """Return the tree of settings, where those of --set win."""
    from flowgen.settings import override, parse_setting

    given = {key: value for key, value in flags.items() if value is not None}
    tree: dict[str, Any] = {"data": data}
    for key, value in (given | dict(map(parse_setting, settings))).items():
        tree = override(tree, key, value)
    return tree


def _write(found: Comparison, picture: Path | None, to_json: Path | None) -> None:
    """Write the figures as a table or as JSON, and the picture."""
    from flowgen import plots

    text = json.dumps(found.plain(), indent=1, allow_nan=False)
    if to_json and str(to_json) != "-":
        to_json.write_text(text + "\n", encoding="utf-8")
    if picture:
        plots.pairs(picture, {_title(each): each.shown for each in found.measured})
    if str(to_json) == "-":
        print(text)
        return
    _show(found)
    if to_json:
        print(f"figures: {to_json}")
    if picture:
        print(f"picture: {picture}")


def _title(of: Measured) -> str:
    return f"{of.trial.name}\ncost {_number(of.cost)}, {1000 * of.seconds:.2g} ms a batch"


def _show(found: Comparison) -> None:
    """Print the figures as a table, and below it what they describe."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    table.add_column("coupling")
    for head in ("rows\ntogether", "ms a\nbatch", "ms a\nstep", "seconds\nbefore", "cost", "ratio", "data\nused"):
        table.add_column(head, justify="right")
    for each in found.measured:
        table.add_row(each.trial.name, *_cells(found, each))
    show(table)
    for each in found.measured:
        if each.diagnostics:
            told = ", ".join(f"{name.replace('_', ' ')} {value:.2g}" for name, value in each.diagnostics.items())
            print(f"  {each.trial.name:<14}{told}")
    print("\n".join(f"  {line}".rstrip() for line in _notes(found)))
    for each in found.measured:
        for warning in each.warnings:
            print(f"{each.trial.name}: {warning}", file=sys.stderr)


def _cells(found: Comparison, of: Measured) -> list[str]:
    milliseconds, used = 1000 * of.seconds, found.used(of)
    return [
        f"{of.trial.group:,}" if of.trial.group else "",
        f"{milliseconds:.2f}",
        f"{milliseconds / of.trial.config.pool.reuse:.2f}",
        f"{of.preparation:.1f}" if of.preparation >= 0.05 else "",
        _number(of.cost),
        f"{found.ratio(of):.3f}",
        "" if used is None else f"{used:.1%}",
    ]


def _number(x: float) -> str:
    """Return a number with four digits, trailing zeros included."""
    return f"{x:#.4g}".rstrip(".")


def _notes(found: Comparison) -> list[str]:
    """Return notes in words on what the figures describe."""
    config = found.config
    size, batches = config.train.batch_size, config.pool.batches
    pools = f"{found.pools} pools" if found.pools > 1 else "a pool"
    lines = [
        "",
        f"{Path(config.source).name} to {found.data}: {found.rows:,} pairs of the same draws for every coupling,",
        f"in {pools} of {batches} batch{'es' * (batches > 1)} of {size}.",
        f"ms a batch: to draw, couple and shuffle {size} pairs; ms a step: that over the",
        "uses of each pair in training; seconds before: to learn what is learned once.",
        "cost: the mean of |x0 - x1|^2, in model units; ratio: to that of independent.",
        "data used: how many of the data rows that were drawn are in the pairs.",
        *(_NOTES[name] for each in found.measured for name in each.diagnostics if name in _NOTES),
    ]
    if any(each.trial.draws for each in found.measured):
        lines.append("semidiscrete has draws of its own: in the long run all rows, each as often.")
    else:
        lines.append("--coupling semidiscrete is measured where it is named: it learns long, once.")
    if found.left_out:
        lines.append(f"Left out, since these settings do not allow them: {', '.join(found.left_out)}.")
    if found.classes:
        lines.append(f"Rows are paired within their class, of which there are {found.classes}.")
    return [*dict.fromkeys(lines), f"Training on {found.data} takes {found.default} where no coupling is named."]


_NOTES = {
    "plan_entropy": "plan entropy: 0 of a permutation, 1 of independent pairs.",
    "chi_square": "chi square: of how often each data row is used, 0 where all are used alike.",
}
"""What the facts of couplings mean."""
