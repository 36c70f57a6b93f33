"""The potentials of a semidiscrete coupling on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext

import torch

from flowgen.config import LoadedData
from flowgen.config.semidiscrete import SemidiscreteConfig
from flowgen.core import InputError
from flowgen.couplings import Potentials, Semidiscrete
from flowgen.runs.folder import Run
from flowgen.runs.lock import held
from flowgen.training import checkpoints
from flowgen.training.distributed import ALONE, Processes

__all__ = ["find_potentials", "semidiscrete_pairs", "solved"]


def find_potentials(run: Run, processes: Processes = ALONE) -> Iterator[Potentials]:
    """Find the potentials of a run whose coupling is semidiscrete, unless they exist; yield all states on the way.

    The first of several processes does it.

    Raises:
        InputError: if others are writing to the run, or the data are not in memory.
        OSError: if the disk is full.
    """
    with held(run.folder) if processes.first else nullcontext():
        yield from _found(run, processes)


def _found(run: Run, processes: Processes) -> Iterator[Potentials]:
    config, settings = run.config, run.config.coupling
    if config.reflow or not isinstance(settings, SemidiscreteConfig):
        return
    if processes.any(processes.first and run.potentials.exists()):
        return
    if not processes.first:
        while not processes.any(False):  # until the first has them; it says so far no after each state
            pass
        return
    data, device = config.load_data(), config.device_of(processes)
    rows, labels = settings.rows(data, device, config.seed)
    for state in settings.ascend(
        config.source_distribution(data.distribution.shape, data.scaling, data.columns), rows, labels, config.seed
    ):
        yield state
        processes.any(False)
    facts = {"chi_square": state.chi_square, "draws": state.draws, "data_hash": data.hash}
    checkpoints.write_tensors(run.potentials, {"potentials": state.values.cpu()}, {"flowgen": json.dumps(facts)})
    processes.any(True)


def solved(run: Run, data: LoadedData) -> Potentials:
    """Return the potentials of a run with these data.

    Raises:
        InputError: if they are not there, are damaged, or were found for other data.
    """
    try:
        tensors, metadata = checkpoints.read_tensors(run.potentials)
        facts = json.loads(metadata["flowgen"])
        found = Potentials(tensors["potentials"], float(facts["chi_square"]), int(facts["draws"]))
        same = facts["data_hash"] == data.hash
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{run.potentials}: not the potentials of a run ({error}): remove it to find them anew"
        ) from error
    if not same:
        raise InputError(f"{run.potentials}: the data have changed since it was made: remove it to find them anew")
    return found


def semidiscrete_pairs(run: Run, data: LoadedData, device: torch.device, processes: Processes = ALONE) -> Semidiscrete:
    """Return the pairs of a run whose coupling is semidiscrete; its potentials are found first where they are
    missing.
    """
    for _ in _found(run, processes):
        pass
    config, settings = run.config, run.config.coupling
    assert isinstance(settings, SemidiscreteConfig)
    rows, labels = settings.rows(data, device, config.seed)
    return Semidiscrete(
        config.source_distribution(data.distribution.shape, data.scaling, data.columns),
        rows,
        solved(run, data).values.to(device),
        labels,
    )
