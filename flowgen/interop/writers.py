"""Graphs as files of ONNX and of torch.export."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from flowgen.core import InputError
from flowgen.interop.comparing import Compared, compare
from flowgen.interop.files import need
from flowgen.interop.graphs import Graph

__all__ = ["write_onnx", "write_torch"]

BATCH = torch.export.Dim("batch")
TRACED = 3
"""Rows of the batch that is traced: of 1, PyTorch takes the size for a constant."""
LARGEST = 1.5e9
"""Bytes of the weights in an ONNX file; PyTorch puts those of more than 1.6e9 into another beside it."""


def write_onnx(graph: Graph, path: Path) -> Compared:
    """Write an ONNX file, and compare what onnxruntime makes of it.

    Raises:
        InputError: if onnx, onnxscript or onnxruntime is missing, or one file cannot hold the weights.
        Failure: if it is not the graph.
    """
    need("onnx", "onnxscript", "onnxruntime")
    import onnx

    if sum(x.nbytes for x in graph.module.state_dict().values()) > LARGEST:
        raise InputError("an ONNX file holds at most 2 GB, and this model is larger: choose --format torch-export")
    with _quiet():
        program = torch.onnx.export(
            _traced(graph),
            graph.draw(TRACED),
            dynamo=True,
            verbose=False,
            input_names=graph.inputs,
            output_names=[graph.output],
            dynamic_shapes=_shapes(graph),
        )
    assert program is not None
    program.model.metadata_props["flowgen"] = json.dumps(graph.facts)
    program.save(path)
    onnx.checker.check_model(path, full_check=True)
    return compare(graph, _running(path))


def write_torch(graph: Graph, path: Path) -> Compared:
    """Write a `.pt2` file of torch.export, and compare what is loaded from it.

    Raises:
        Failure: if it is not the graph.
    """
    with _quiet():
        torch.export.save(_traced(graph), path, extra_files={"flowgen.json": json.dumps(graph.facts)})
        return compare(graph, torch.export.load(path).module())


def _traced(graph: Graph) -> ExportedProgram:
    with torch.no_grad():
        program = torch.export.export(graph.module, graph.draw(TRACED), dynamic_shapes=_shapes(graph), strict=False)
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # names the files of this installation, and with them its user
    return program


def _shapes(graph: Graph) -> dict[str, Any]:
    return {name: {0: BATCH} for name in graph.inputs}


def _running(path: Path) -> Callable[..., Tensor]:
    """Return the function in an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        arrays = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, arrays)[0])

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what PyTorch reports of its own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
