"""The parts of every report: the machine, and Markdown tables."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch

from flowgen.extras import DISTRIBUTION

__all__ = ["machine", "quartiles", "spread", "table", "verdict"]

PACKAGES = (DISTRIBUTION, "torch", "torchcfm", "torchdyn", "flow_matching", "POT", "numpy")
CPUINFO = Path("/proc/cpuinfo")


def machine() -> str:
    """Return the date, the machine and the versions, as a Markdown list."""
    load = f"- load average {os.getloadavg()[0]:.1f} at the end of the run\n" if hasattr(os, "getloadavg") else ""
    versions = ", ".join(filter(None, map(_named, PACKAGES)))
    return (
        f"- {date.today()}; {_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads\n{load}"
        f"- {platform.platform()}, Python {platform.python_version()}\n- {versions}\n"
    )


def _processor() -> str:
    """Return the name of the processor, if the system reports it."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _named(package: str) -> str:
    """Return a package with its version, or nothing where it is not installed."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Format mean ± standard deviation; of a single value, the mean alone."""
    mean = f"{fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {stdev(values):.{digits}f}"


def quartiles(values: Sequence[float], digits: int = 3) -> str:
    """Format median [first quartile, third quartile]."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def verdict(value: float, bound: float, digits: int = 3) -> str:
    """Format a value, its target, and whether it is met."""
    return f"{value:.{digits}f} (target {bound:g}: {'met' if value <= bound else 'missed'})"
