"""Run folders: an experiment on disk that explains itself, can be left, and taken up again.

config.toml          every setting, resolved
model.safetensors    the averaged weights; config, data columns and parent in the metadata
checkpoints/         the whole training state, the newest few
pairs.safetensors    of a reflow: the pairs that its parent's flow made
metrics.jsonl        one line for every `log_every` steps
plots/  README.md    pictures, and the model card with the command that made it
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch

from flowgen import __version__, checkpoints, grids, plots, sampling, solvers
from flowgen.config import Config, LoadedData, ReflowConfig, dump_toml, load_data, make_config, override, read_toml
from flowgen.core import InputError, Pair, generator
from flowgen.couplings import Draw, Ends, Independent, StoredPairs, batches
from flowgen.data import Law, Scaled, Scaling
from flowgen.model import Model
from flowgen.objectives import FlowMatching
from flowgen.training import State, fit

__all__ = ["Progress", "Run", "Trained", "describe", "illustrate", "load", "make_pairs", "reflow_config", "train"]


class Progress(NamedTuple):
    """One training step, just done."""

    step: int
    loss: float


@final
@dataclass(frozen=True)
class Run:
    """A run folder and its configuration."""

    folder: Path
    config: Config

    @classmethod
    def create(cls, folder: Path, config: Config, command: str, overwrite: bool = False) -> Run:
        """Makes the folder, and writes the configuration and the model card.

        Raises:
            InputError: if there is something at `folder` already; with `overwrite`, only if that is no run folder.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            if not (folder / "config.toml").is_file():
                raise InputError(f"{folder} exists and is not a run folder; choose another with --out")
            if not overwrite:
                raise InputError(f"{folder} exists already; go on with --resume, start anew with --overwrite")
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        run = cls(folder, config)
        run.write_config()
        (folder / "README.md").write_text(_card(config, command))
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """The run in a folder.

        Raises:
            InputError: if it is not a run folder.
        """
        if not (folder / "config.toml").is_file():
            raise InputError(f"{folder} is not a run folder: it has no config.toml")
        return cls(folder, make_config(read_toml(folder / "config.toml")))

    def extended(self, tree: Mapping[str, Any]) -> Run:
        """The same run, to go on with under the settings of `tree`: how long, on what device, how often it is saved.

        Raises:
            InputError: if the tree changes anything else.
        """
        before = self.config.model_dump()
        after: dict[str, Any] = before
        for key, value in _flat(tree).items():
            after = override(after, key, value)
        run = Run(self.folder, make_config(after))
        old, new = _flat(before), _flat(run.config.model_dump())
        changed = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and key not in EXTENSIBLE]
        if changed:
            key = min(changed)
            raise InputError(f"--resume cannot change {key} from {old.get(key)} to {new.get(key)}: start another run")
        run.write_config()
        return run

    def write_config(self) -> None:
        """Writes config.toml."""
        (self.folder / "config.toml").write_text(dump_toml(self.config.model_dump()))

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs.safetensors"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a line that was cut short is left out."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


EXTENSIBLE = {"device", "train.steps", "train.checkpoint_every", "train.keep_checkpoints"}
"""What may change when a run goes on; anything else would make it another experiment."""


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


class Trained(NamedTuple):
    """What a run gives: the model with averaged weights, its source in model units, and its columns."""

    model: Model
    source: Law
    columns: tuple[str, ...]
    config: Config
    step: int


def load(folder: Path) -> Trained:
    """The model of a run folder, on the device of its configuration.

    Raises:
        InputError: if it is not a run folder, or has no readable weights yet.
    """
    run = Run.open(folder)
    if not run.weights.exists():
        raise InputError(f"{folder} has no weights yet: train it to its first checkpoint, with --resume")
    tensors, metadata = checkpoints.read_tensors(run.weights)
    try:
        config = make_config(json.loads(metadata["config"]))
        event = tuple(json.loads(metadata["event"]))
        scaling = Scaling(tensors["scaling.shift"], tensors["scaling.scale"])
        model = config.model(event, scaling)
        model.load_state_dict(tensors)
        columns, step = tuple(json.loads(metadata["columns"])), int(metadata["step"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{run.weights}: not the weights of a flowgen run ({error})") from error
    model = model.to(run.config.torch_device()).requires_grad_(False)
    return Trained(model, config.source_law(event, scaling), columns, config, step)


def train(run: Run) -> Generator[Progress, None, None]:
    """Trains a run up to its `train.steps`, from its newest checkpoint if it has one.

    Logs, checkpoints and weights are written on the way and at the end. Closing the iterator saves the run as it stands
    after the last step that was yielded, so that leaving the loop at any time loses nothing.

    Raises:
        InputError: for bad data, a damaged checkpoint, or pairs of another parent.
        Diverged: if the loss is not finite; the last checkpoint stays.
        OSError: if the disk is full; the last checkpoint stays.
    """
    config, settings = run.config, run.config.train
    data = load_data(config.data)
    state, window = _resume(run, data)
    stream = batches(
        _draw(run, data),
        settings.batch_size,
        seed=config.seed,
        coupling=Independent() if config.reflow else config.coupling,
        pool=config.pool,
        start=state.step,
    )
    steps = fit(state, stream, FlowMatching(config.times), settings.steps, seed=config.seed, clip=settings.clip)
    saved = state.step
    with run.metrics.open("a") as log:
        try:
            for loss in steps:
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
    model = run.config.model(data.law.event, data.scaling).to(run.config.torch_device())
    if run.config.reflow and not found:
        _warm_start(model, run.config)
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
    metadata = {
        "flowgen": __version__,
        "config": json.dumps(run.config.model_dump()),
        "event": json.dumps(data.law.event),
        "columns": json.dumps(data.columns),
        "step": str(state.step),
    }
    checkpoints.write_tensors(run.weights, state.ema.state_dict(), metadata)


def _draw(run: Run, data: LoadedData) -> Draw:
    """What training draws its pairs from: the ends, or the stored pairs of a reflow."""
    if run.config.reflow is None:
        source = run.config.source_law(data.law.event, data.scaling)
        return Ends(source, Scaled(data.law, data.scaling))
    tensors, metadata = checkpoints.read_tensors(run.pairs)
    if metadata.get("parent_hash") != run.config.reflow.parent_hash:
        raise InputError(f"{run.pairs}: these pairs were made by another parent than {run.config.reflow.parent}")
    return StoredPairs(Pair(tensors["x0"], tensors["x1"]))


def reflow_config(parent: Path, settings: Mapping[str, Any], steps: int | None, seed: int | None) -> Config:
    """The configuration of a reflow of the run in `parent`: the parent's own, but for where the pairs come from.

    The student predicts the velocity on the straight path, at times towards both ends (arXiv 2405.20320).

    Args:
        settings: `pairs`, `steps` and `solver` of ReflowConfig, where they are not the defaults.
        steps: training steps; None for as many as the parent's.
        seed: None for the parent's seed.
    """
    trained = load(parent)
    before = trained.config.reflow
    reflow = {
        "parent": str(parent.resolve()),
        "parent_hash": checkpoints.file_hash(Run.open(parent).weights),
        "round": before.round + 1 if before else 1,
        **settings,
    }
    tree = {
        **trained.config.model_dump(),
        "path": "linear",
        "target": "velocity",
        "times": "u-shaped",
        "reflow": reflow,
    }
    tree.pop("pool")
    if steps is not None:
        tree = override(tree, "train.steps", steps)
    return make_config(tree if seed is None else {**tree, "seed": seed})


def make_pairs(run: Run) -> Iterator[int]:
    """Makes the pairs of a reflow run with its parent's flow, and yields how many there are so far.

    Raises:
        InputError: if the parent's weights are not those that the run names by their hash.
    """
    reflow = _reflow(run.config)
    teacher = load(_parent(reflow))
    grid = grids.uniform(reflow.steps, *teacher.model.span)
    made: list[Pair] = []
    stream = f"reflow {reflow.round}"
    for pair in sampling.pairs(
        teacher.model, teacher.source, reflow.pairs, grid, reflow.solver, seed=run.config.seed, stream=stream
    ):
        made.append(pair)
        yield sum(len(pair.x0) for pair in made)
    pairs = Pair.cat(made)
    checkpoints.write_tensors(run.pairs, {"x0": pairs.x0, "x1": pairs.x1}, {"parent_hash": reflow.parent_hash})


def _reflow(config: Config) -> ReflowConfig:
    if config.reflow is None:
        raise InputError("this run is no reflow: it has no parent")
    return config.reflow


def _parent(reflow: ReflowConfig) -> Path:
    """The folder of the parent, whose weights are still those of the hash."""
    run = Run.open(Path(reflow.parent))
    if checkpoints.file_hash(run.weights) != reflow.parent_hash:
        raise InputError(f"{run.folder} has changed since this reflow began: its weights have another hash")
    return run.folder


def _warm_start(model: Model, config: Config) -> None:
    """Gives the model its parent's weights, where the parent is such a model too."""
    teacher = load(_parent(_reflow(config)))
    same = (teacher.config.path, teacher.config.target, teacher.config.net) == (config.path, config.target, config.net)
    if same:
        model.load_state_dict(teacher.model.state_dict())


def illustrate(run: Run) -> None:
    """Draws the losses and samples of a run into its plots/."""
    trained, data = load(run.folder), load_data(run.config.data)
    folder = run.folder / "plots"
    folder.mkdir(exist_ok=True)
    history = run.history()
    if history:
        plots.losses(folder / "loss.png", [line["step"] for line in history], [line["loss"] for line in history])
    grid = grids.uniform(50, *trained.model.span)
    x = next(sampling.sample(trained.model, trained.source, 4000, grid, solvers.heun))
    truth = data.law.sample(4000, generator(run.config.seed, "plot"))
    plots.samples(folder / "samples.png", x, truth, trained.columns)


def _card(config: Config, command: str) -> str:
    """The model card."""
    origin = (
        f"The reflow (round {config.reflow.round}) of `{config.reflow.parent}`, whose weights have the SHA-256 "
        f"`{config.reflow.parent_hash}`."
        if config.reflow
        else f"A flow from {config.source} to {config.data}, trained by flow matching."
    )
    return f"""# {Path(config.data).stem}

{origin}

Made by flowgen {__version__} with

    {command}

| | |
|---|---|
| data | {config.data} |
| source | {config.source} |
| path | {config.path} |
| target | {config.target.__name__} |
| coupling | {"reflow" if config.reflow else config.coupling} |
| training | {config.train.steps} steps of {config.train.batch_size}, seed {config.seed} |

Every setting is in `config.toml`; `model.safetensors` holds the averaged weights, `metrics.jsonl` the losses.

![samples](plots/samples.png) ![loss](plots/loss.png)

```python
from pathlib import Path
from flowgen import grids, runs, sampling, solvers

trained = runs.load(Path("."))
grid = grids.uniform(50, *trained.model.span)
x = next(sampling.sample(trained.model, trained.source, 1000, grid, solvers.heun))
```
"""


def describe(folder: Path) -> dict[str, Any]:
    """What a run is, as plain values: the facts of `flowgen info`."""
    run = Run.open(folder)
    config, settings = run.config, run.config.model_dump()
    found = checkpoints.find(run.checkpoints)
    trained = load(folder) if run.weights.exists() else None
    return {
        "run": str(folder),
        "kind": "reflow" if config.reflow else "flow",
        "data": config.data,
        "source": config.source,
        "path": settings["path"],
        "target": settings["target"],
        "coupling": {"name": "reflow", "pairs": config.reflow.pairs} if config.reflow else settings["coupling"],
        "parents": _parents(config),
        "steps": trained.step if trained else 0,
        "steps_planned": config.train.steps,
        "parameters": sum(x.numel() for x in trained.model.parameters()) if trained else None,
        "seed": config.seed,
        "hash": checkpoints.file_hash(run.weights) if trained else None,
        "checkpoints": [checkpoint.name for checkpoint in found],
        "last_losses": run.history()[-5:],
    }


def _parents(config: Config) -> list[dict[str, Any]]:
    """The runs that a reflow comes from, nearest first, as far as their folders are still there."""
    if config.reflow is None:
        return []
    folder = Path(config.reflow.parent)
    known = (folder / "config.toml").is_file()
    rest = _parents(Run.open(folder).config) if known else []
    return [{"run": str(folder), "hash": config.reflow.parent_hash}, *rest]
