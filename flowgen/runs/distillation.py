"""Distillation of runs: what a student learns from its teacher, and its first weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flowgen.config import Config, Places, Teaching, kind, lookup, resolve_config
from flowgen.config.defaults import reflow_defaults
from flowgen.config.nets import MLPConfig
from flowgen.config.objectives import ObjectiveConfig
from flowgen.config.places import absolute
from flowgen.core import InputError, StrPath
from flowgen.model import Model
from flowgen.registry import Objects
from flowgen.runs.folder import Run, parent
from flowgen.runs.rounds import refitted
from flowgen.samplers import ode
from flowgen.sampling import SolverFlowMap
from flowgen.settings import override
from flowgen.training import checkpoints

__all__ = ["distill_config", "stages", "teaching", "warm_start"]

HALF_STEPS = 2
"""Heun's steps of a velocity in each of the two jumps that teach one."""
STAGES = 3
"""The students of a flow in a progressive distillation."""
METHODS: Objects[type[ObjectiveConfig]] = Objects("objective", "map", "taught")
"""Objectives of flow maps by name."""


def distill_config(
    folder: StrPath,
    method: str,
    jumps: int,
    settings: Mapping[str, Any],
    pairs: int | None = None,
    guidance: float | None = None,
    places: Places = Places(),  # noqa: B008
) -> Config:
    """Return the configuration of a distillation of a run: the run's own, except for its objective and where it learns
    from.

    Ends of whole trajectories come as pairs that the run makes; so does all that is learned from a reflow, or from a
    flow on a path that flow maps cannot follow. Else the run's velocity teaches along the paths of its own training.

    Args:
        method: a name of METHODS.
        jumps: of the student, for `progressive`.
        settings: dotted keys and their values, where they are to differ.
        pairs: to make; None for the usual number where any are needed.
        guidance: the weight with which the run's flow is guided; None for none.
        places: where the data and the source of the run are now; None for where it says.

    Raises:
        InputError: for a method that is none, or a run that cannot be distilled by it.
    """
    folder = Path(folder)
    chosen, run = lookup("method", method, METHODS), Run.open(folder, places)
    before = run.config
    if not (before.objective.fields or chosen.taught):
        raise InputError(f"{folder} jumps already, and has no velocity to learn from: distill the run before it")
    if chosen.taught and not before.whole:
        raise InputError(f"{method} needs a velocity on the path linear or cosine: use flowgen reflow {folder} first")
    if not run.weights.exists():
        raise InputError(f"{folder} has no weights yet: train it to its first checkpoint, with --resume")
    learned: dict[str, Any] = {"parent": absolute(folder), "parent_hash": checkpoints.file_hash(run.weights)}
    learned |= {} if guidance is None else {"guidance": guidance}
    tree = before.model_dump(exclude={"reflow", "distill", "objective", "times", "loss", "weight"})
    tree["objective"] = {"name": method, **({"jumps": jumps} if chosen.taught else {})}
    by_pairs = chosen.pairs or pairs is not None or before.reflow or before.bridge.sigma or not before.whole
    if before.objective.fields and by_pairs:
        tree |= {"schedule": "linear", "prediction": "velocity", "bridge": "constant"}
        # a round of its own, so that the noise is not that which the run has learned from
        round_ = before.reflow.round + 1 if before.reflow else 1
        given = {} if pairs is None else {"pairs": pairs}
        tree["reflow"] = {**reflow_defaults(before.data, kind(before.data)), **learned, "round": round_, **given}
        tree.pop("pool")
    elif pairs is not None:
        raise InputError(f"{folder} jumps, and makes no pairs: leave out --pairs")
    elif before.reflow:  # a student that jumps makes no pairs: those that it has learned on teach the next one too
        tree["reflow"] = before.model_dump()["reflow"]
    if chosen.taught or "reflow" not in tree:
        tree["distill"] = learned
    tree["net"].pop("two_times", None)  # as the objective needs it
    tree |= refitted(settings)
    for key, value in settings.items():
        tree = override(tree, key, value)
    return resolve_config(tree)


def stages(folder: StrPath, jumps: int) -> list[int]:
    """Return the jumps of each student of a progressive distillation, the last as many as are asked for (arXiv
    2202.00512).

    The first students of a flow learn from a solver; a flow map that jumps is halved from where it is.

    Raises:
        InputError: for jumps that are not those of the run, halved some times.
    """
    before = Run.open(folder).config.objective
    if before.fields:
        return [jumps * 2**k for k in reversed(range(STAGES))]
    found, now = list[int](), before.jumps
    while now > jumps and now % 2 == 0:
        now //= 2
        found.append(now)
    if now != jumps or not found:
        raise InputError(f"{folder} makes {before.jumps} jumps, which halved again and again are not {jumps}")
    return found


def teaching(config: Config, device: torch.device) -> Teaching | None:
    """Return what the run that is distilled teaches; None where none is.

    Raises:
        InputError: if its weights are not those of the hash.
    """
    if config.distill is None:
        return None
    teacher = parent(config.distill, config.places, str(device))
    velocity = teacher.guided(teacher.model.velocity, config.distill.guidance)
    fields = teacher.config.objective.fields
    jump = SolverFlowMap(velocity, ode.heun, HALF_STEPS) if fields else teacher.model.average
    return Teaching(velocity, jump)


def warm_start(model: Model, config: Config) -> None:
    """Copy the teacher's weights to the model, where the teacher is such a model too.

    What reads the second time of a flow map stays at zero, if the teacher has no such weights, and is left out, if the
    student has none.

    Raises:
        InputError: if the teacher's weights are not those that the configuration names by their hash.
    """
    if config.teacher is None:
        return
    teacher = parent(config.teacher, config.places)
    if _shape(teacher.config) == _shape(config):
        own, learned = model.state_dict(), teacher.model.state_dict()
        model.load_state_dict({name: learned.get(name, x) for name, x in own.items()})


def _shape(config: Config) -> tuple[Any, ...]:
    """Return what must agree for weights to mean the same, except whether a net reads two times."""
    net = config.net
    return (
        config.schedule,
        config.prediction,
        bool(config.labels),
        replace(net, two_times=False) if isinstance(net, MLPConfig) else net,
    )
