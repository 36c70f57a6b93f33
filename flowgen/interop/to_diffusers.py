"""Runs as folders of diffusers: a UNet2DModel and the scheduler of its Euler steps.

This is the one place that knows diffusers' conventions: sigma = 1 - t, x = (1 - sigma) data + sigma noise, and the
velocity noise - data.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from flowgen import predictions
from flowgen.config.nets import UNetConfig
from flowgen.core import Failure, InputError
from flowgen.data import Gaussian
from flowgen.interop.comparing import Compared, compare
from flowgen.interop.files import need
from flowgen.interop.graphs import Graph
from flowgen.interop.unet2d import TIMESTEPS, arguments, fill
from flowgen.nn import UNet
from flowgen.runs import Trained
from flowgen.schedules import Linear

__all__ = ["check", "diffusers_parts", "write_diffusers"]


def check(trained: Trained) -> dict[str, Any]:
    """Return the arguments of the UNet2DModel of a run.

    Raises:
        InputError: if there is none.
    """
    model, net = trained.model, trained.config.net
    if not isinstance(model.net, UNet) or not isinstance(net, UNetConfig):
        raise InputError("format diffusers is for runs of the net unet; onnx and torch-export take any")
    if model.schedule != Linear() or model.prediction is not predictions.velocity:
        raise InputError("format diffusers is for the velocity on the straight path; onnx and torch-export take any")
    if not trained.config.objective.fields:
        raise InputError("this run has learned to jump, and has no velocity for diffusers; choose onnx or torch-export")
    if not isinstance(trained.source, Gaussian):
        raise InputError("format diffusers is for flows that start from noise; onnx and torch-export take any source")
    return arguments(net, trained.source.shape, len(trained.classes))


def write_diffusers(graph: Graph, folder: Path, steps: int) -> Compared:
    """Write the velocity of a run as a folder of diffusers, and compare what diffusers loads from it.

    Raises:
        InputError: if diffusers is missing, or has no such net.
        Failure: if diffusers cannot be imported, or it is not the velocity.
    """
    shape = check(graph.trained)
    need("diffusers")
    net_of, scheduler_of = diffusers_parts()
    theirs = net_of(**shape)
    net = graph.trained.model.net
    assert isinstance(net, UNet)
    fill(theirs, net)
    theirs.save_pretrained(folder / "unet")
    scheduler_of(num_train_timesteps=TIMESTEPS, shift=1.0).save_pretrained(folder / "scheduler")
    (folder / "README.md").write_text(_card(graph.trained, steps), encoding="utf-8")
    loaded = net_of.from_pretrained(folder / "unet").eval()
    return compare(graph, lambda x, t, labels=None: _velocity(loaded, x, t, labels))


def _velocity(theirs: Any, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """Return our velocity data - noise at time t, by a net that predicts noise - data at the timestep of sigma
    = 1 - t.
    """
    return -theirs(x, TIMESTEPS * (1 - t), labels).sample


def diffusers_parts() -> tuple[Any, Any]:
    """Import UNet2DModel and FlowMatchEulerDiscreteScheduler without torchvision: nothing here needs it, and one that
    was made for another torch breaks the import.

    Raises:
        Failure: if they cannot be imported.
    """
    hidden = "torchvision" not in sys.modules
    if hidden:
        sys.modules["torchvision"] = None  # type: ignore[assignment]  # what importlib takes for: not installed
    try:
        from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel

        return UNet2DModel, FlowMatchEulerDiscreteScheduler
    except (ImportError, RuntimeError) as error:
        raise Failure(f"diffusers cannot be imported: {error}") from error
    finally:
        if hidden:
            del sys.modules["torchvision"]


def _card(trained: Trained, steps: int) -> str:
    """Return the card of an export, which says how to sample with diffusers."""
    shape, classes = ", ".join(map(str, trained.source.shape)), len(trained.classes)
    names = ", ".join(map(repr, trained.classes[:10])) + ", ..." * (classes > 10)
    labels = f"labels = torch.arange(16) % {classes}  # in order {names}; {classes} says that there is none\n"
    return f"""# A flow for diffusers

The velocity of a flow, noise - data in diffusers' convention, at timesteps {TIMESTEPS} sigma.

```python
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel

unet = UNet2DModel.from_pretrained("unet")
scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained("scheduler")
steps = {steps}
scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))  # its own grid ends with a step of almost nothing
x = torch.randn(16, {shape})
{labels if classes else ""}with torch.no_grad():
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t{", labels" if classes else ""}).sample, t, x).prev_sample
images = ((x + 1) / 2).clamp(0, 1)
```

Give `unet` the timesteps as the scheduler has them: of a Python number it takes the whole part.
"""
