"""Training a run: the loop of `flowgen.training`, with its log, previews and checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch

from flowgen import __version__
from flowgen.config import Config, LoadedData
from flowgen.config.semidiscrete import SemidiscreteConfig
from flowgen.core import Pair
from flowgen.couplings import Reporting
from flowgen.data import Distribution
from flowgen.data.writing import new_file
from flowgen.nn import UNet
from flowgen.pairs import batches, prefetch, with_null_labels
from flowgen.runs.distillation import teaching, warm_start
from flowgen.runs.folder import Run, load, parent
from flowgen.runs.lock import held
from flowgen.runs.log import opened
from flowgen.runs.pairs import stored_pairs
from flowgen.runs.places import named_in
from flowgen.runs.potentials import semidiscrete_pairs
from flowgen.runs.report import preview
from flowgen.threads import computing
from flowgen.training import checkpoints
from flowgen.training.distributed import ALONE, Processes
from flowgen.training.loop import State, channels_last, compile_net, fit

__all__ = ["Progress", "train"]


class Progress(NamedTuple):
    """One training step that is done."""

    step: int
    loss: float


def train(run: Run, processes: Processes = ALONE) -> Generator[Progress, None, None]:
    """Train a run up to its `train.steps`, from its newest checkpoint if it has one.

    Logs, previews, checkpoints and weights are written on the way and at the end, by the first of the processes that
    train together. Closing the iterator saves the run as it stands after the last step that was yielded, so that
    leaving the loop at any time loses nothing.

    Raises:
        InputError: if another process is writing to the run; for bad data, data that have changed since the run began,
            a damaged checkpoint, or pairs of another parent.
        Diverged: if the loss is not finite; the last checkpoint stays.
        OSError: if the disk is full; the last checkpoint stays.
        Failure: if a process has died, or too many images are broken.
    """
    with held(run.folder) if processes.first else nullcontext():
        yield from _train(run, processes)


def _train(run: Run, processes: Processes) -> Generator[Progress, None, None]:
    config = run.config
    device = config.device_of(processes)
    data = config.load_data()
    if run.weights.exists():
        data = load(run.folder, "cpu", places=config.places).check_data(data)
    elif config.teacher:
        data = parent(config.teacher, config.places).check_data(data)
    state, window = _resume(run, data, device)
    with computing(config.threads_of(state.model, data.distribution.shape)):
        yield from _stepped(run, processes, data, device, state, window)


def _stepped(
    run: Run, processes: Processes, data: LoadedData, device: torch.device, state: State, window: list[float]
) -> Generator[Progress, None, None]:
    """Yield the steps of a training from a state on."""
    config, settings = run.config, run.config.train
    if settings.compile:
        compile_net(state)
    source = config.source_distribution(data.distribution.shape, data.scaling, data.columns)
    pairs = _pairs(run, data, device, state.step, processes)
    with prefetch(pairs, device) if device.type == "cuda" else nullcontext(pairs) as ready:
        seen = _Seen(ready)
        losses = fit(
            state,
            seen,
            config.make_objective(len(data.classes), teaching(config, device)),
            settings.steps,
            seed=config.seed,
            clip=settings.clip,
            accumulate=settings.accumulate,
            precision=config.precision(device),
            rate=settings.rate,
            processes=processes,
        )
        if processes.first:
            yield from _recorded(run, state, losses, window, data, source, seen)
        else:
            for loss in losses:
                yield Progress(state.step, loss)


def _recorded(
    run: Run,
    state: State,
    losses: Iterator[float],
    window: list[float],
    data: LoadedData,
    source: Distribution,
    seen: _Seen,
) -> Generator[Progress, None, None]:
    """Yield the steps of a training, each once it is logged, shown and saved as the settings say.

    Args:
        window: the losses since the last line of the log.
        seen: the pairs of the steps.
    """
    config, settings, saved = run.config, run.config.train, state.step
    _cut_log(run, state.step)
    with opened(run.metrics, settings.log, state.step) as log:
        try:
            for loss in losses:
                window.append(loss)
                if state.step % settings.log_every == 0:
                    log.write(state.step, {"loss": math.fsum(window) / len(window), **_facts(config, data, seen.pair)})
                    window.clear()
                if state.step % settings.checkpoint_every == 0 or state.step == settings.steps:
                    _save(run, state, window, data)
                    saved = state.step
                if settings.preview_every and state.step % settings.preview_every == 0:
                    log.show(state.step, preview(run, state.ema, source, data.seen, state.step))
                yield Progress(state.step, loss)
        except GeneratorExit:
            if state.step > saved:
                _save(run, state, window, data)
            raise


class _Seen:
    """Pairs, of which the last one read is stored."""

    def __init__(self, pairs: Iterator[Pair]) -> None:
        self._pairs = pairs

    def __iter__(self) -> Iterator[Pair]:
        for pair in self._pairs:
            self.pair = pair
            yield pair


def _facts(config: Config, data: LoadedData, pair: Pair) -> dict[str, float]:
    """Return the mean squared distance of a batch of pairs, and what the coupling says of its plan for them."""
    facts = {"transport_cost": (pair.x1 - pair.x0.to(pair.x1)).square().flatten(1).sum(1).mean().item()}
    if config.reflow or not isinstance(config.coupling, Reporting):
        return facts
    if pair.cond is not None:  # pairs whose label was dropped were coupled with their class
        pair = pair.take(pair.cond < len(data.classes))
    return {**facts, **config.coupling.diagnostics(*pair)} if len(pair.x0) else facts


def _pairs(run: Run, data: LoadedData, device: torch.device, start: int, processes: Processes) -> Iterator[Pair]:
    """Yield this process's part of the pairs of each step from `start` on."""
    config, size, part = run.config, run.config.train.batch_size, processes.part
    if config.reflow:
        return batches(stored_pairs(run), size, seed=config.seed, pool=config.pool, start=start, part=part)
    if isinstance(config.coupling, SemidiscreteConfig):
        pairs = semidiscrete_pairs(run, data, device, processes).stream(size, seed=config.seed, start=start, part=part)
    else:
        ends, coupling = config.ends(data, device), config.coupling
        pairs = batches(ends, size, seed=config.seed, coupling=coupling, pool=config.pool, start=start, part=part)
    dropout = config.train.label_dropout
    if not (data.classes and dropout):
        return pairs
    return with_null_labels(pairs, dropout, len(data.classes), size, seed=config.seed, start=start, part=part)


def _resume(run: Run, data: LoadedData, device: torch.device) -> tuple[State, list[float]]:
    """Return the state of the newest checkpoint or of the start, and the losses since the last line of the log."""
    config, settings, found = run.config, run.config.train, checkpoints.find(run.checkpoints)
    model = config.model(data.distribution.shape, data.scaling, len(data.classes)).to(device)
    if isinstance(model.net, UNet) and not config.objective.differentiates:  # group norms have no derivative so stored
        channels_last(model)
    if not found:
        warm_start(model, config)
    state, window = State(model, settings.lr, settings.weight_decay, settings.ema), []
    if found:
        tensors = checkpoints.load(found[-1])
        window = tensors.pop("window").tolist()
        state.restore(tensors)
    return state, window


def _cut_log(run: Run, step: int) -> None:
    """Cut the log back to a step."""
    kept = [json.dumps(line) + "\n" for line in run.history() if line["step"] <= step]
    with new_file(run.metrics) as file:
        file.write("".join(kept).encode())


def _save(run: Run, state: State, window: list[float], data: LoadedData) -> None:
    """Write a checkpoint and the averaged weights."""
    tensors = {**state.tensors(), "window": torch.tensor(window, dtype=torch.float64)}
    checkpoints.save(run.checkpoints, state.step, tensors, run.config.train.keep_checkpoints)
    facts = {
        "version": __version__,
        "config": named_in(run.config.model_dump()),
        "shape": data.distribution.shape,
        "columns": data.columns,
        "classes": data.classes,
        "counts": data.counts,
        "data_hash": data.hash,
        "step": state.step,
    }
    for width, averaged in state.averages.items():
        # one key: safetensors writes several in no order, and the same weights would have another hash
        checkpoints.write_tensors(run.averaged(width), averaged.state_dict(), {"flowgen": json.dumps(facts)})
