"""The model card of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowgen import __version__
from flowgen.config import Config
from flowgen.config.places import named

__all__ = ["card"]


def card(config: Config, command: str) -> str:
    """Return the model card, which names files and runs without their places."""
    data, source = named(config.data), named(config.source)
    return f"""# {Path(data).stem}

{_origin(config)}

Made by flowgen {__version__} with

    {command}

| | |
|---|---|
| data | {data} |
| source | {source} |
| path | {config.schedule} |
| prediction | {config.prediction.__name__} |
| objective | {_told(config.model_dump()["objective"])} |
| coupling | {"reflow" if config.reflow else _told(config.model_dump()["coupling"])} |
| noise on the path | {_told(config.model_dump()["bridge"]) if config.bridge.sigma else "none"} |
| training | {config.train.steps} steps of {config.train.batch_size}, seed {config.seed} |

Every setting is in `config.toml`; `model.safetensors` holds the averaged weights, `metrics.jsonl` the losses.

![samples](plots/samples.png) ![loss](plots/loss.png)

```python
from flowgen import runs, sampling

trained = runs.load(".")
solver, grid = runs.sampler(trained.config, trained.model, trained.source)
x = sampling.sample(trained.model, trained.source, 64, grid, solver, cond=trained.draw_labels(64, seed=0))
```
"""


def _origin(config: Config) -> str:
    """Return what the run is, and where it comes from."""
    name, teacher = config.model_dump()["objective"]["name"], config.teacher
    if teacher is None:
        what = "flow map" if config.objective.maps else "flow"
        return f"A {what} from {named(config.source)} to {named(config.data)}, trained by {name}."
    what = (
        f"reflow (round {config.reflow.round})"
        if config.reflow and name == "flow-matching"
        else f"distillation ({name})"
    )
    return f"The {what} of `{named(teacher.parent)}`, whose weights have the SHA-256 `{teacher.parent_hash}`."


def _told(named: dict[str, Any]) -> str:
    """Return the name of an object, with its parameters."""
    parameters = ", ".join(f"{key} {value}" for key, value in named.items() if key != "name")
    return f"{named['name']} ({parameters})" if parameters else named["name"]
