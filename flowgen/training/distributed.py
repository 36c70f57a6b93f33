"""Several processes that work as one: their ranks, and their communication."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import final

import torch
from torch import Tensor
from torch import distributed as dist

from flowgen.core import WHOLE, Failure, InputError, Part

__all__ = ["ALONE", "Processes", "processes"]


@final
@dataclass(frozen=True)
class Processes:
    """This process among all that train or sample together; every one of them calls the same methods in the same order.

    Where there is but one, nothing is said and nothing changes.

    Attributes:
        part: the number of this process, and how many there are.
        device: where this process computes.

    Raises:
        Failure: all methods, if another process has died or does not answer.
    """

    part: Part = field(default_factory=Part)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Return whether this is the process that writes files and prints."""
        return self.part.index == 0

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, by one reduction of all of them."""
        if self.part.of > 1:
            flat = self._flat(tensors)
            with _answered():
                dist.all_reduce(flat)
            _unflatten(flat, tensors)

    def mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, by one reduction of all of them."""
        self.sum(tensors)
        if self.part.of > 1:
            torch._foreach_div_(list(tensors), self.part.of)

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by that of the first process."""
        if self.part.of > 1:
            flat = self._flat(tensors)
            with _answered():
                dist.broadcast(flat, src=0)
            _unflatten(flat, tensors)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set at any process: the same answer at all."""
        if self.part.of == 1:
            return flag
        raised = torch.tensor(float(flag), device=self.device)
        with _answered():
            dist.all_reduce(raised)
            return raised.item() > 0

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.any(False)

    def gathered(self, x: Tensor) -> Tensor | None:
        """Return the rows of all processes, `(B_0, ...)`, `(B_1, ...)` and so on, in order on the CPU, at the first
        process.

        Processes may have different numbers of rows, none too, but rows of one shape and type. None at the others.
        """
        if self.part.of == 1:
            return x.cpu()
        counts = torch.zeros(self.part.of, dtype=torch.int64, device=self.device)
        counts[self.part.index] = len(x)
        with _answered():
            dist.all_reduce(counts)
            padded = x.new_zeros(int(counts.max()), *x.shape[1:], device=self.device)
            padded[: len(x)] = x
            into = [torch.empty_like(padded) for _ in range(self.part.of)] if self.first else None
            dist.gather(padded, into)
        if into is None:
            return None
        return torch.cat([rows[:count].cpu() for rows, count in zip(into, counts.tolist(), strict=True)])

    def _flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return all numbers in a row, in the widest of their types."""
        return torch.cat([x.detach().reshape(-1).to(self.device) for x in tensors])


ALONE = Processes()
"""One process, which is all there are."""


@contextmanager
def processes(device: torch.device | str = "cpu", timeout: float = 600) -> Iterator[Processes]:
    """Yield the processes that `torchrun` or `accelerate launch` have started, connected while the context lasts.

    They are known by the environment: WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Without WORLD_SIZE, or
    where it is 1, there is this process alone, and nothing is started or imported. On "cuda", process i of a machine
    computes on its device i and they talk by NCCL; on "cpu" they talk by gloo.

    Args:
        device: of what kind; its number is that of the process.
        timeout: seconds to wait for an answer of the others.

    Raises:
        InputError: for an environment that makes no sense, or a device that several processes cannot use.
        Failure: if the others do not come.
    """
    device = torch.device(device)
    of = _number("WORLD_SIZE", 1, 10**6) if "WORLD_SIZE" in os.environ else 1
    if of == 1:
        yield Processes(WHOLE, device)
        return
    part, local = Part(_number("RANK", 0, of), of), _number("LOCAL_RANK", 0, of)
    _check(device, local)
    from accelerate.state import PartialState  # type: ignore[import-untyped]

    opened = not dist.is_initialized()
    with _answered("the processes cannot find each other"):
        state = PartialState(cpu=device.type == "cpu", timeout=timedelta(seconds=timeout))
    try:
        yield Processes(part, state.device)
    finally:
        if opened:
            dist.destroy_process_group()
            PartialState._reset_state()


def _number(name: str, least: int, end: int) -> int:
    """Read a number of the environment, in [least, end)."""
    text = os.environ.get(name, "")
    if not text.isdecimal() or not least <= int(text) < end:
        raise InputError(
            f"{name} must be a number from {least} to {end - 1}, not {text!r}: start several processes with torchrun "
            "or accelerate launch, which set it"
        )
    return int(text)


def _check(device: torch.device, local: int) -> None:
    """Refuse, with InputError, a process that cannot meet the others, or has no device."""
    if not os.environ.get("MASTER_ADDR"):
        raise InputError("MASTER_ADDR is not set: start several processes with torchrun or accelerate launch")
    _number("MASTER_PORT", 0, 65536)
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"several processes compute on cpu or cuda, not on {device.type}")
    if device.type == "cuda" and local >= torch.cuda.device_count():
        raise InputError(f"LOCAL_RANK is {local}, but this machine has {torch.cuda.device_count()} CUDA devices")


@contextmanager
def _answered(message: str = "another process has died or does not answer") -> Iterator[None]:
    """Turn the errors of communication into a Failure of one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        raise Failure(f"{message}: {str(error).strip().partition(chr(10))[0]}") from error


@torch.no_grad()
def _unflatten(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy the numbers of a row back into the tensors that it was made of."""
    parts = flat.split([x.numel() for x in tensors])
    for x, part in zip(tensors, parts, strict=True):
        x.copy_(part.view(x.shape))
