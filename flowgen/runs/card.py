"""The model card of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowgen import __version__
from flowgen.config import Config

__all__ = ["card"]


def card(config: Config, command: str) -> str:
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
| coupling | {"reflow" if config.reflow else _told(config.model_dump()["coupling"])} |
| noise on the path | {_told(config.model_dump()["bridge"]) if config.bridge.sigma else "none"} |
| training | {config.train.steps} steps of {config.train.batch_size}, seed {config.seed} |

Every setting is in `config.toml`; `model.safetensors` holds the averaged weights, `metrics.jsonl` the losses.

![samples](plots/samples.png) ![loss](plots/loss.png)

```python
from pathlib import Path
from flowgen import grids, runs, sampling, solvers

trained = runs.load(Path("."))
grid, labels = grids.uniform(50, *trained.model.span), trained.draw_labels(64, seed=0)
x = next(sampling.sample(trained.model, trained.source, 64, grid, solvers.heun, cond=labels))
```
"""


def _told(named: dict[str, Any]) -> str:
    """What has a name, with its parameters."""
    parameters = ", ".join(f"{key} {value}" for key, value in named.items() if key != "name")
    return f"{named['name']} ({parameters})" if parameters else named["name"]
