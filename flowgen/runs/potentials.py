"""The potentials of a semidiscrete coupling on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch

from flowgen import checkpoints
from flowgen.config import LoadedData
from flowgen.config.semidiscrete import SemidiscreteConfig
from flowgen.core import InputError
from flowgen.couplings import Potentials, Semidiscrete, ascend
from flowgen.distributed import ALONE, Processes
from flowgen.runs.folder import Run

__all__ = ["find_potentials", "semidiscrete_pairs", "solved"]


def find_potentials(run: Run, processes: Processes = ALONE) -> Iterator[Potentials]:
    """Finds the potentials of a run whose coupling is semidiscrete, unless they are there; yields each state on the way.

    The first of several processes does it.

    Raises:
        InputError: if the data are not in memory.
        OSError: if the disk is full.
    """
    config, settings = run.config, run.config.coupling
    if config.reflow or not isinstance(settings, SemidiscreteConfig) or run.potentials.exists():
        return
    if processes.first:
        data, device = config.load_data(), config.device_of(processes)
        rows, labels = settings.rows(data, device, config.seed)
        bounds = {"tolerance": settings.tolerance, "draws_per_row": settings.draws_per_row}
        source = config.source_law(data.law.event, data.scaling)
        for state in ascend(source, rows, seed=config.seed, labels=labels, **bounds):
            yield state
        facts = {"chi_square": state.chi_square, "draws": state.draws, "data_hash": data.hash}
        checkpoints.write_tensors(run.potentials, {"potentials": state.values.cpu()}, {"flowgen": json.dumps(facts)})
    processes.barrier()


def solved(run: Run) -> Potentials:
    """The potentials of a run.

    Raises:
        InputError: if they are not there, or are damaged.
    """
    try:
        tensors, metadata = checkpoints.read_tensors(run.potentials)
        facts = json.loads(metadata["flowgen"])
        return Potentials(tensors["potentials"], float(facts["chi_square"]), int(facts["draws"]))
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{run.potentials}: not the potentials of a run ({error}): remove it to find them anew") from error


def semidiscrete_pairs(run: Run, data: LoadedData, device: torch.device, processes: Processes = ALONE) -> Semidiscrete:
    """The pairs of a run whose coupling is semidiscrete; its potentials are found first, if they are not there."""
    for _ in find_potentials(run, processes):
        pass
    config = run.config
    rows, labels = config.coupling.rows(data, device, config.seed)
    return Semidiscrete(config.source_law(data.law.event, data.scaling), rows, solved(run).values.to(device), labels)
