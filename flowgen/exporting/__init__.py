"""Trained runs as files that other programs load: ONNX, torch.export, diffusers.

What is written is compared with the model, on random input, before it takes its name: what differs by more than
rounding is not written.
"""

from flowgen.exporting.comparing import Compared, compare
from flowgen.exporting.graphs import Graph, SamplerGraph, VelocityGraph, sampler, velocity
from flowgen.exporting.run import FORMATS, Exported, export_run

__all__ = [
    "FORMATS",
    "Compared",
    "Exported",
    "Graph",
    "SamplerGraph",
    "VelocityGraph",
    "compare",
    "export_run",
    "sampler",
    "velocity",
]
