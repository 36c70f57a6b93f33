"""What both benchmarks print: the machine, and Markdown tables."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """The machine and the versions, as a Markdown list."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    names = ("flowgen", "torch", "torchcfm", "torchdyn", "POT", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        f"- {date.today()}; {cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads\n"
        f"- load average {os.getloadavg()[0]:.1f} at the end of the run\n"
        f"- {platform.platform()}, Python {platform.python_version()}\n- {versions}\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def quartiles(values: Sequence[float], digits: int = 3) -> str:
    """median [first quartile, third quartile]."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def verdict(value: float, bound: float, digits: int = 3) -> str:
    """value, its target, and whether it is met."""
    return f"{value:.{digits}f} (target {bound:g}: {'met' if value <= bound else 'missed'})"


def publish(name: str, text: str, keep: bool) -> None:
    """Prints a report, and keeps it in results/."""
    print(text)
    if keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / name).write_text(text)
