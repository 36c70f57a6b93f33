"""Pictures, drawn without a display and without matplotlib's global state."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowgen.core import InputError, Pair, StrPath

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Curve",
    "FewSteps",
    "beside",
    "copies",
    "few_steps",
    "losses",
    "pairs",
    "plain",
    "quality",
    "samples",
    "trajectories",
    "ways",
]

Limits = tuple[tuple[float, float], tuple[float, float]]
"""The lower left and the upper right corner of a frame."""

INK, ACCENT, GREY = "#1f3a5f", "#d1495b", "#b8bec6"


def plain(text: str) -> str:
    """Return text that matplotlib draws as it is given: names are neither mathematics nor left out of legends.

    What is not valid Unicode is drawn as question marks.
    """
    shown = text.encode("utf-8", "replace").decode().replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown  # a legend leaves out labels that begin with "_"


def figure(rows: int = 1, columns: int = 1, size: float = 3.6) -> tuple[object, np.ndarray]:
    """Return a figure and its axes, `(rows, columns)`, each `size` inches wide and high."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(figsize=(size * columns, size * rows), layout="constrained"))
    return canvas.figure, canvas.figure.subplots(rows, columns, squeeze=False)


def write(path: StrPath, made: object) -> None:
    """Write a figure as PNG."""
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a column's name may be in any script
        made.savefig(path, dpi=150)  # type: ignore[attr-defined]


def losses(path: StrPath, steps: Sequence[int], values: Sequence[float]) -> None:
    """Plot the loss against the step."""
    made, axes = figure(size=4.5)
    axes[0, 0].plot(steps, values, color=INK, linewidth=1)
    axes[0, 0].set(xlabel="step", ylabel="loss")
    axes[0, 0].grid(alpha=0.3)
    write(path, made)


def samples(path: StrPath, x: Tensor, truth: Tensor | None = None, columns: Sequence[str] = ()) -> None:
    """Draw samples beside true data: points in the plane, or histograms of the first twelve columns of a table.

    Shapes: x and truth `(N, D)`.
    """
    if x.shape[1] == 2:
        _planes(path, x, truth)
    else:
        _histograms(path, x, truth, columns)


def _planes(path: StrPath, x: Tensor, truth: Tensor | None) -> None:
    sets = [("samples", x, INK)] if truth is None else [("data", truth, GREY), ("samples", x, INK)]
    made, axes = figure(1, len(sets))
    limits = _limits(sets[0][1])
    for axis, (title, points, colour) in zip(axes[0], sets, strict=True):
        draw_points(axis, points, limits, colour)
        axis.set_title(plain(title))
    write(path, made)


def _histograms(path: StrPath, x: Tensor, truth: Tensor | None, columns: Sequence[str]) -> None:
    shown = min(x.shape[1], 12)
    names = columns or [f"x{index}" for index in range(shown)]
    across = min(shown, 4)
    made, axes = figure(-(-shown // across), across, size=2.6)
    for axis in axes.flat[shown:]:
        axis.axis("off")
    for index, axis in zip(range(shown), axes.flat, strict=False):
        reference = (x if truth is None else truth)[:, index].numpy()
        bins = np.linspace(np.percentile(reference, 0.5), np.percentile(reference, 99.5), 41)
        if bins[0] == bins[-1]:
            axis.text(0.5, 0.5, f"always {bins[0]:g}", ha="center", transform=axis.transAxes)
        else:
            if truth is not None:
                axis.hist(reference, bins, density=True, color=GREY, label="data")
            drawn = np.clip(x[:, index].numpy(), bins[0], bins[-1])  # what lies beyond is counted at the edge
            axis.hist(drawn, bins, density=True, histtype="step", color=INK, label="samples")
        axis.set_title(plain(names[index]))
        axis.set_yticks([])
    axes[0, 0].legend(fontsize="small")
    write(path, made)


def trajectories(path: StrPath, states: Tensor) -> None:
    """Draw trajectories in the plane: states `(steps + 1, N, 2)`, from source to sample."""
    made, axes = figure(size=5)
    draw_trajectories(axes[0, 0], states, _limits(states.flatten(0, 1)))
    write(path, made)


def ways(path: StrPath, panels: Mapping[str, Tensor]) -> None:
    """Draw trajectories in the plane of several samplers, a panel for each: states `(steps + 1, N, 2)` of any steps."""
    made, axes = figure(1, len(panels))
    limits = _limits(torch.cat([states[[0, -1]].flatten(0, 1) for states in panels.values()]))
    for axis, (name, states) in zip(axes[0], panels.items(), strict=True):
        draw_trajectories(axis, states, limits)
        axis.set_title(plain(name))
    write(path, made)


class FewSteps(NamedTuple):
    """A flow in few steps: states `(steps + 1, N, 2)`, W2 distance to the data, straightness."""

    steps: int
    states: Tensor
    distance: float
    straightness: float


def few_steps(path: StrPath, flows: Mapping[str, Sequence[FewSteps]], truth: Tensor) -> None:
    """Draw a row for each flow: the trajectories with the most steps, then where each number of steps ends.

    Shapes: truth `(N, 2)`, whose extent frames the samples.
    """
    made, axes = figure(len(flows), 1 + len(next(iter(flows.values()))), size=2.7)
    limits = _limits(torch.cat([truth, *(walked[-1].states[0] for walked in flows.values())]))
    for row, (name, walked) in zip(axes, flows.items(), strict=True):
        draw_trajectories(row[0], walked[-1].states[:, :300], limits)
        row[0].set_title(plain(f"{name}: trajectories"))
        for axis, cell in zip(row[1:], walked, strict=True):
            draw_points(axis, cell.states[-1], _limits(truth))
            axis.set_title(f"{cell.steps} step{'s' * (cell.steps > 1)}: W2 = {cell.distance:.3f}")
    write(path, made)


class Curve(NamedTuple):
    """A figure against network evaluations: its means, the half widths of their intervals, and its value for true data
    beside true data."""

    nfe: Sequence[float]
    mean: Sequence[float]
    ci95: Sequence[float]
    floor: float


def quality(path: StrPath, panels: Mapping[str, Mapping[str, Curve]], shares: Sequence[str] = ()) -> None:
    """Draw a panel for each figure, with a curve for each run; the dashed lines are what true data reach.

    Args:
        panels: the title of each figure, to the curve of each run.
        shares: the titles of figures from 0 to 1; others have a logarithmic axis, where they are positive.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    made, axes = figure(1, len(panels), size=4)
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        floors = {curve.floor for curve in curves.values()}
        for index, (name, curve) in enumerate(curves.items()):
            colour = f"C{index % 10}"
            axis.plot(curve.nfe, curve.mean, "o-", color=colour, markersize=4, linewidth=1.2, label=plain(name))
            lo, hi = np.array(curve.mean) - curve.ci95, np.array(curve.mean) + curve.ci95
            axis.fill_between(curve.nfe, lo, hi, color=colour, alpha=0.15, linewidth=0)
            if len(floors) > 1 or index == 0:
                floor_label = "true data" if index == 0 else None
                line = "black" if len(floors) == 1 else colour
                axis.axhline(curve.floor, color=line, linestyle="--", linewidth=0.8, label=floor_label)
        axis.set(xscale="log", xlabel="network evaluations", title=plain(title))
        counts = sorted({round(nfe) for curve in curves.values() for nfe in curve.nfe})
        axis.set_xticks(counts, [f"{count}" for count in counts])
        axis.minorticks_off()
        if title in shares:
            axis.set_ylim(-0.03, 1.03)
        elif min(min(curve.floor, *curve.mean) for curve in curves.values()) > 0:
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize="small")
    write(path, made)


def copies(path: StrPath, samples: Tensor, images: Tensor, ratios: Tensor) -> None:
    """Draw each sample on the left of the training image nearest to it, with the ratio of `metrics.nearest` above.

    Shapes: samples and images `(N, C, H, W)` in [0, 1], ratios `(N,)`.
    """
    across = min(len(samples), 4)
    made, axes = figure(-(-len(samples) // across), across, size=2.2)
    for axis in axes.flat:
        axis.axis("off")
    made.set_size_inches(2.2 * across, 0.3 + 1.4 * len(axes))  # type: ignore[attr-defined]
    gap = samples.new_ones(*samples.shape[:3], max(1, samples.shape[3] // 8))
    both = torch.cat([gap, samples, gap, images, gap], dim=3).permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    for axis, picture, ratio in zip(axes.flat, both.numpy(), ratios.tolist(), strict=False):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(f"{ratio:.2f}", fontsize="medium")
    made.suptitle("samples, and the training images nearest to them", fontsize="medium")  # type: ignore[attr-defined]
    write(path, made)


JOINED = 200
"""Pairs of a picture that are joined by lines: more are a web."""


def pairs(path: StrPath, panels: Mapping[str, Pair]) -> None:
    """Draw a panel for each coupling, with its title: all points of its pairs `(N, 2)`, and lines from x0 (grey) to x1
    (red) for the first of them.
    """
    across = min(len(panels), 4)
    made, axes = figure(-(-len(panels) // across), across, size=3)
    limits = _limits(torch.cat([x for pair in panels.values() for x in pair[:2]]))
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, pair) in zip(axes.flat, panels.items(), strict=False):
        joined = torch.stack([pair.x0[:JOINED], pair.x1[:JOINED]])
        axis.plot(*joined.unbind(2), color=INK, linewidth=0.6, alpha=0.4, zorder=1)
        for x, colour in ((pair.x0, GREY), (pair.x1, ACCENT)):
            axis.plot(*x.T, ".", color=colour, markersize=3.5, alpha=0.7, markeredgewidth=0, zorder=2)
        _frame(axis, limits)
        axis.spines[:].set_color(GREY)
        axis.set_title(plain(title), fontsize="medium")
    write(path, made)


def beside(path: StrPath, panels: Mapping[str, Tensor]) -> None:
    """Draw a panel for each set of points `(N, 2)`, with its title, all in one frame."""
    made, axes = figure(1, len(panels), size=3)
    limits = _limits(torch.cat(list(panels.values())))
    for axis, (title, x) in zip(axes[0], panels.items(), strict=True):
        draw_points(axis, x, limits)
        axis.set_title(plain(title), fontsize="medium")
    write(path, made)


def draw_points(axis: Axes, x: Tensor, limits: Limits, colour: str = INK) -> None:
    """Draw points of the plane in a frame."""
    axis.plot(*x.T.numpy(), ".", color=colour, markersize=2, alpha=0.5, markeredgewidth=0)
    _frame(axis, limits)


def draw_trajectories(axis: Axes, states: Tensor, limits: Limits) -> None:
    """Draw the trajectory of each point from the source (grey) to the sample (red); states `(steps + 1, N, 2)`."""
    axis.plot(*states.unbind(2), color=INK, linewidth=0.5, alpha=0.35)
    axis.plot(*states[0].T, ".", color=GREY, markersize=3)
    axis.plot(*states[-1].T, ".", color=ACCENT, markersize=3)
    _frame(axis, limits)


def _limits(x: Tensor) -> Limits:
    """Return a frame that holds all but a few far points of x `(N, 2)`: square, if its columns are of one scale."""
    lo, hi = np.percentile(x.numpy(), [0.1, 99.9], axis=0)
    half = np.maximum(0.6 * (hi - lo), 1e-6 * np.abs(hi) + 1e-12)  # some room around a constant column
    if 0.25 < half[0] / half[1] < 4:
        half = half.max().repeat(2)
    middle = (lo + hi) / 2
    return tuple((middle - half).tolist()), tuple((middle + half).tolist())


def _frame(axis: Axes, limits: Limits) -> None:
    (left, bottom), (right, top) = limits
    axis.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], box_aspect=1)
