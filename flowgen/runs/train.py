"""Training a run: the loop of `flowgen.training`, with its log and checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Generator
from typing import NamedTuple

import torch

from flowgen import __version__, checkpoints
from flowgen.config import LoadedData, find_device, load_data
from flowgen.couplings import Ends, Independent, batches
from flowgen.data import Scaled
from flowgen.objectives import FlowMatching
from flowgen.runs.folder import Run, load
from flowgen.runs.rounds import stored_pairs, warm_start
from flowgen.training import State, fit

__all__ = ["Progress", "train"]


class Progress(NamedTuple):
    """One training step, just done."""

    step: int
    loss: float


def train(run: Run) -> Generator[Progress, None, None]:
    """Trains a run up to its `train.steps`, from its newest checkpoint if it has one.

    Logs, checkpoints and weights are written on the way and at the end. Closing the iterator saves the run as it stands
    after the last step that was yielded, so that leaving the loop at any time loses nothing.

    Raises:
        InputError: for bad data, data that have changed since the run began, a damaged checkpoint, or pairs of another
            parent.
        Diverged: if the loss is not finite; the last checkpoint stays.
        OSError: if the disk is full; the last checkpoint stays.
    """
    config, settings = run.config, run.config.train
    data = load_data(config.data, config.split)
    if run.weights.exists():
        load(run.folder, "cpu").check_data(data)
    state, window = _resume(run, data)
    source = config.source_law(data.law.event, data.scaling)
    stream = batches(
        stored_pairs(run) if config.reflow else Ends(source, Scaled(data.law, data.scaling)),
        settings.batch_size,
        seed=config.seed,
        coupling=Independent() if config.reflow else config.coupling,
        pool=config.pool,
        start=state.step,
    )
    saved = state.step
    with run.metrics.open("a") as log:
        try:
            for loss in fit(
                state, stream, FlowMatching(config.times), settings.steps, seed=config.seed, clip=settings.clip
            ):
                window.append(loss)
                if state.step % settings.log_every == 0:
                    log.write(json.dumps({"step": state.step, "loss": math.fsum(window) / len(window)}) + "\n")
                    log.flush()
                    window.clear()
                if state.step % settings.checkpoint_every == 0 or state.step == settings.steps:
                    _save(run, state, window, data)
                    saved = state.step
                yield Progress(state.step, loss)
        except GeneratorExit:
            if state.step > saved:
                _save(run, state, window, data)
            raise


def _resume(run: Run, data: LoadedData) -> tuple[State, list[float]]:
    """The state and the losses since the last line of the log, of the newest checkpoint or of the start.

    The log is cut back to that step.
    """
    settings, found = run.config.train, checkpoints.find(run.checkpoints)
    model = run.config.model(data.law.event, data.scaling).to(find_device(run.config.device))
    if run.config.reflow and not found:
        warm_start(model, run.config)
    state, window = State(model, settings.lr, settings.weight_decay, settings.ema), []
    if found:
        tensors = checkpoints.load(found[-1])
        window = tensors.pop("window").tolist()
        state.restore(tensors)
    kept = [json.dumps(line) + "\n" for line in run.history() if line["step"] <= state.step]
    replacement = run.metrics.with_suffix(".new")
    replacement.write_text("".join(kept))
    replacement.replace(run.metrics)
    return state, window


def _save(run: Run, state: State, window: list[float], data: LoadedData) -> None:
    """Writes a checkpoint and the averaged weights."""
    tensors = {**state.tensors(), "window": torch.tensor(window, dtype=torch.float64)}
    checkpoints.save(run.checkpoints, state.step, tensors, run.config.train.keep_checkpoints)
    facts = {
        "version": __version__,
        "config": run.config.model_dump(),
        "event": data.law.event,
        "columns": data.columns,
        "data_hash": data.hash,
        "step": state.step,
    }
    # one key: safetensors writes several in no order, and the same weights would have another hash
    checkpoints.write_tensors(run.weights, state.ema.state_dict(), {"flowgen": json.dumps(facts)})
