"""Devices by name."""

from __future__ import annotations

import torch

from flowgen.core import InputError

__all__ = ["find_device"]

DEVICES = ("cpu", "cuda", "mps")


def find_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is CUDA where there is one.

    Raises:
        InputError: if this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in DEVICES:
        raise InputError(f"unknown device {name!r}: choose auto, cpu, cuda, cuda:1 or mps")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} is not available here: {str(error).split('. ')[0]}") from error
