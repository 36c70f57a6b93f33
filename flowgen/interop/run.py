"""Exports of run folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, final

from flowgen.config import SAMPLERS, SOLVERS, Places, lookup
from flowgen.core import InputError, StrPath, is_utf8
from flowgen.interop import graphs
from flowgen.interop.comparing import Compared
from flowgen.interop.files import check_new, new_place, size
from flowgen.interop.graphs import Graph
from flowgen.interop.to_diffusers import check, write_diffusers
from flowgen.interop.writers import write_onnx, write_torch
from flowgen.runs import Trained, load, sampler
from flowgen.runs.sampler import STEPS

__all__ = ["FORMATS", "Exported", "Format", "export_run"]


class Exported(NamedTuple):
    """An export: where, how many bytes, what it is, and how far it is from the model."""

    path: Path
    bytes: int
    words: str
    compared: Compared


@final
@dataclass(frozen=True)
class Format:
    """A format.

    Args:
        suffix: of its file; empty for a folder.
        graph: what of a run is exported, with steps and solver, either None where it was not given.
        write: writes a graph, in so many steps where it has none of its own, and compares.
        mark: a file that such a folder has.
    """

    suffix: str
    graph: Callable[[Trained, int | None, str | None], Graph]
    write: Callable[[Graph, Path, int], Compared]
    mark: str | None = None


def export_run(
    folder: StrPath,
    name: str,
    out: StrPath | None = None,
    steps: int | None = None,
    solver: str | None = None,
    ema: float | None = None,
    overwrite: bool = False,
    places: Places = Places(),  # noqa: B008
) -> Exported:
    """Export the model of a run folder, and compare what was written with it.

    Args:
        name: of FORMATS.
        out: where; None for a place in the run folder.
        steps: of the sampler; None for the velocity of a flow, and for the jumps that a flow map has learned.
        solver: of the sampler; None for Heun's method, or jumps.
        ema: the width of the weight average, one of `train.ema`; None for the first.
        places: where the source of the run is now; None for where it says.

    Raises:
        InputError: for a folder that is no trained run, a format, solver or place that does not fit, or a package that
            is missing.
        Failure: if what was written is not the model; nothing is left then.
    """
    folder = Path(folder)
    chosen = lookup("format", name, FORMATS)
    if out is not None and not is_utf8(str(out)):
        raise InputError(f"--out {str(out)!r} is not UTF-8, and exports need a name that is")
    if steps is not None and steps < 1:
        raise InputError(f"--steps must be at least 1, not {steps}")
    graph = chosen.graph(load(folder, "cpu", ema, places), steps, solver)
    out = Path(out) if out else folder / (graph.output + chosen.suffix if chosen.suffix else name)
    if chosen.suffix and out.suffix != chosen.suffix:
        raise InputError(f"format {name} is a file {chosen.suffix}, not {out}")
    check_new(out, overwrite, chosen.mark)
    with new_place(out) as made:
        compared = chosen.write(graph, made, steps or STEPS)
    return Exported(out, size(out), graph.words, compared)


def _graph(trained: Trained, steps: int | None, solver: str | None) -> Graph:
    """Return the sampler; of a flow for which no steps are given, the velocity."""
    if steps is None and not trained.config.objective.maps:
        if solver is not None:
            raise InputError("--solver is for a sampler: give its --steps too, or neither for the velocity")
        return graphs.velocity(trained)
    if solver in SAMPLERS:
        raise InputError(f"{solver} is a sampler of diffusions, which are not exported: choose another, such as heun")
    given = lookup("solver", solver, SOLVERS) if solver else None
    chosen, grid = sampler(trained.config, trained.model, trained.source, given, steps)
    name = solver or ("jump" if chosen.needs_flow_map else "heun")
    graph = graphs.sampler(trained, grid, chosen)
    return replace(graph, words=f"{graph.words} of {name}", facts={**graph.facts, "solver": name})


def _velocity(trained: Trained, steps: int | None, solver: str | None) -> Graph:
    """Return the velocity, for diffusers, whose scheduler takes Euler's steps."""
    if solver not in (None, "euler"):
        raise InputError(f"diffusers takes Euler steps, and no {solver}: leave --solver out")
    check(trained)
    return graphs.velocity(trained)


FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", _graph, lambda graph, path, steps: write_onnx(graph, path)),
    "torch-export": Format(".pt2", _graph, lambda graph, path, steps: write_torch(graph, path)),
    "diffusers": Format("", _velocity, write_diffusers, mark="unet/config.json"),
}
"""Formats by name."""
