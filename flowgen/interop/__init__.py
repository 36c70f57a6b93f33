"""Trained runs as files that other programs load: ONNX, torch.export, diffusers.

What is written is compared with the model, on random input, before it takes its name: what differs by more than
rounding is not written.
"""

from flowgen.interop.comparing import Compared, compare
from flowgen.interop.graphs import Graph, SamplerGraph, VelocityGraph, sampler, velocity
from flowgen.interop.run import FORMATS, Exported, export_run

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
