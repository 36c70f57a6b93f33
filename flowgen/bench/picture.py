"""The table of two-dimensional flows as a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from flowgen.bench.summary import Results, rows
from flowgen.bench.table2d import METHODS, PROBLEMS, PUBLISHED, Floor, Protocol, Result
from flowgen.plots import ACCENT, GREY, INK, figure, plain, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

COLOURS = {"torchcfm": ACCENT, "flowgen": INK}
METHOD_NAMES = METHODS["flowgen"]
"""The methods of both packages, from above."""


def draw(path: Path, results: Results, floors: Mapping[str, Floor], protocol: Protocol) -> None:
    """Draw a column of panels for each problem: W2 in many steps and in one, with its floor, and the path energy."""
    from matplotlib.ticker import LogLocator, NullLocator

    made, axes = figure(3, len(PROBLEMS), size=3.2)
    for column, problem in zip(axes.T, PROBLEMS, strict=True):
        found, (many, one, energy) = rows(results, problem), column
        _panel(many, found, lambda result: result.w2)
        _panel(one, found, lambda result: result.w2_one_step)
        _panel(energy, found, lambda result: result.npe)
        for axis in (many, one):
            _draw_floor(axis, floors[problem].truth)
        _draw_published(energy, PUBLISHED[problem])
        many.set(title=plain(problem), xlabel=f"W2, {protocol.euler_steps} Euler steps")
        one.set(xlabel="W2, 1 Euler step", xscale="log")
        energy.set(xlabel="normalised path energy", xscale="log")
        one.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        one.xaxis.set_major_formatter("{x:g}")
        for axis in (one, energy):
            axis.xaxis.set_minor_locator(NullLocator())
    for axis in axes[:, 1:].flat:
        axis.tick_params(labelleft=False)
    _legend(made, axes[::2, 0])
    write(path, made)


def _panel(axis: Axes, found: Mapping[tuple[str, str], Sequence[Result]], value: Callable[[Result], float]) -> None:
    """Draw a line for each method, torchcfm above flowgen: a point for each seed, and a ring around their mean."""
    for (method, package), of in found.items():
        if of:
            values, colour = [value(result) for result in of], COLOURS[package]
            # a method of one package stands in the middle of its line
            both = (method, "torchcfm") in found
            place = METHOD_NAMES.index(method) + both * (-0.17 if package == "torchcfm" else 0.17)
            axis.plot(values, [place] * len(values), ".", color=colour, markersize=4, alpha=0.7)
            axis.plot(fmean(values), place, "o", color=colour, markersize=7, fillstyle="none", label=plain(package))
    axis.set_yticks(range(len(METHOD_NAMES)), METHOD_NAMES)
    axis.set_ylim(len(METHOD_NAMES) - 0.5, -0.5)
    axis.grid(alpha=0.3)


def _draw_floor(axis: Axes, truth: Sequence[float]) -> None:
    """Draw the mean floor as a line, its deviation over draws as a band."""
    mean, deviation = fmean(truth), stdev(truth) if len(truth) > 1 else 0.0
    axis.axvspan(mean - deviation, mean + deviation, color=GREY, alpha=0.35, linewidth=0)
    axis.axvline(mean, color="grey", linestyle="--", linewidth=1, label="floor: two true sets, mean ± std")


def _draw_published(axis: Axes, published: Mapping[str, float]) -> None:
    """Draw the published values."""
    places = [METHOD_NAMES.index(method) for method in published]
    axis.plot(list(published.values()), places, "x", color="black", markersize=7, label="published")


def _legend(made: object, axes: Iterable[Axes]) -> None:
    """Draw one legend above all panels, for what is drawn in `axes`."""
    labelled = [axis.get_legend_handles_labels() for axis in axes]
    shown = {label: handle for both in labelled for handle, label in zip(*both, strict=True)}
    place = {"loc": "outside upper center", "ncols": len(shown), "frameon": False}
    made.legend(list(shown.values()), list(shown), **place)  # type: ignore[attr-defined]
