"""The folder of a run, its configuration, and its trained model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

from flowgen import checkpoints
from flowgen.config import Config, LoadedData, find_device, make_config
from flowgen.core import InputError
from flowgen.data import Law, Scaling
from flowgen.model import Model
from flowgen.runs.card import card
from flowgen.settings import dump_toml, flat, override, read_toml

__all__ = ["Run", "Trained", "load"]

EXTENSIBLE = {"device", "train.steps", "train.checkpoint_every", "train.keep_checkpoints"}
"""What may change when a run goes on; anything else would make it another experiment."""


@final
@dataclass(frozen=True)
class Run:
    """A run folder and its configuration."""

    folder: Path
    config: Config

    @classmethod
    def create(cls, folder: Path, config: Config, command: str, overwrite: bool = False) -> Run:
        """Makes the folder, with the configuration and the model card, once the configuration is known to work.

        Raises:
            InputError: for data, a source or a device that training could not use; if there is something at `folder`
                already, unless that is a run and `overwrite` is set. Nothing has changed on the disk then.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            if not (folder / "config.toml").is_file():
                raise InputError(f"{folder} exists and is not a run folder; choose another with --out")
            if not overwrite:
                raise InputError(f"{folder} exists already; go on with --resume, start anew with --overwrite")
        config.check()
        try:
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error
        run = cls(folder, config)
        run.write_config()
        (folder / "README.md").write_text(card(config, command), encoding="utf-8")
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """The run in a folder.

        Raises:
            InputError: if it is not a run folder.
        """
        if not (folder / "config.toml").is_file():
            raise InputError(f"{folder} is not a run folder: it has no config.toml")
        return cls(folder, make_config(_recorded(read_toml(folder / "config.toml"))))

    def extended(self, tree: Mapping[str, Any]) -> Run:
        """The same run, to go on with under the settings of `tree`: how long, on what device, how often it is saved.

        Raises:
            InputError: if the tree changes anything else, or the run could not go on.
        """
        before = self.config.model_dump()
        after: dict[str, Any] = before
        for key, value in flat(tree).items():
            after = override(after, key, value)
        run = Run(self.folder, make_config(after))
        old, new = flat(before), flat(run.config.model_dump())
        changed = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and key not in EXTENSIBLE]
        if changed:
            key = min(changed)
            raise InputError(f"--resume cannot change {key} from {old.get(key)} to {new.get(key)}: start another run")
        done = run.newest()
        if done > run.config.train.steps:
            raise InputError(f"{self.folder} is at step {done} already, beyond train.steps = {run.config.train.steps}")
        run.config.check()
        run.write_config()
        return run

    def write_config(self) -> None:
        """Writes config.toml."""
        (self.folder / "config.toml").write_text(dump_toml(self.config.model_dump()), encoding="utf-8")

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

    def newest(self) -> int:
        """The step of the newest checkpoint, 0 where there is none."""
        return max(map(checkpoints.step, checkpoints.find(self.checkpoints)), default=0)

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a line that was cut short is left out."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]


class Trained(NamedTuple):
    """What a run gives: the model with averaged weights, its source in model units, its columns, and the SHA-256 of the
    file of its data (None of a toy)."""

    model: Model
    source: Law
    columns: tuple[str, ...]
    config: Config
    step: int
    data_hash: str | None

    def check_data(self, data: LoadedData) -> None:
        """
        Raises:
            InputError: unless these are the data that the run was trained on: of others, other rows are held out.
        """
        if data.hash != self.data_hash:
            raise InputError(f"{self.config.data} has changed since the run began: what was held out cannot be told")


def load(folder: Path, device: str | None = None) -> Trained:
    """The model of a run folder, on `device`, or on that of its configuration.

    Raises:
        InputError: if it is not a run folder, or has no readable weights yet.
    """
    run = Run.open(folder)
    if not run.weights.exists():
        raise InputError(f"{folder} has no weights yet: train it to its first checkpoint, with --resume")
    tensors, metadata = checkpoints.read_tensors(run.weights)
    try:
        facts = json.loads(metadata["flowgen"])
        config, event = make_config(_recorded(facts["config"])), tuple(facts["event"])
        scaling = Scaling(tensors["scaling.shift"], tensors["scaling.scale"])
        model = config.model(event, scaling)
        model.load_state_dict(tensors)
        columns, step, data_hash = tuple(facts["columns"]), int(facts["step"]), facts.get("data_hash")
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{run.weights}: not the weights of a flowgen run ({error})") from error
    model = model.to(find_device(device or run.config.device)).requires_grad_(False)
    return Trained(model, config.source_law(event, scaling), columns, config, step, data_hash)


def _recorded(tree: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run: one from before there was a split held nothing out."""
    return {"split": {"held_out": 0.0}, **tree}
