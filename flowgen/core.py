"""The vocabulary: pairs of ends, points on a path, fields, and seeded generators."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, final

import torch
from torch import Tensor

__all__ = [
    "WHOLE",
    "Evaluated",
    "Failure",
    "Field",
    "FlowMap",
    "InputError",
    "Note",
    "Pair",
    "Part",
    "Point",
    "expand_time",
    "generator",
    "like",
    "note",
]


class InputError(ValueError):
    """A mistake in what the user gave; its message is one line that says what to change."""


class Failure(RuntimeError):
    """Work that was begun and could not be done; its message is one line that says why."""


class Note(UserWarning):
    """What was guessed about what the user gave, or left out of it: a warning in Python, a line of a command."""


def note(text: str) -> None:
    """Tell the user of a guess, in one line; commands print it on standard error, each text once."""
    warnings.warn(text, Note, stacklevel=3)


class Pair(NamedTuple):
    """A batch of coupled ends.

    Shapes:
        x0: source (noise), `(B, *event)`.
        x1: data, `(B, *event)`.
        cond: condition of each row, `(B, ...)`, or None.
    """

    x0: Tensor
    x1: Tensor
    cond: Tensor | None = None

    def take(self, index: Tensor | slice) -> Pair:
        """The rows at `index`, ends and condition together."""
        return Pair(self.x0[index], self.x1[index], None if self.cond is None else self.cond[index])

    @staticmethod
    def cat(pairs: Sequence[Pair]) -> Pair:
        """The rows of all pairs, in order."""
        x0, x1, cond = zip(*pairs, strict=True)
        return Pair(torch.cat(x0), torch.cat(x1), None if cond[0] is None else torch.cat(cond))

    def to(self, device: torch.device | str) -> Pair:
        """The same pair on `device`."""
        return Pair(*(None if x is None else x.to(device) for x in self))  # type: ignore[arg-type]


@final
@dataclass(frozen=True)
class Part:
    """One of several equal parts of a batch: the share of one process, or one step of an accumulation of gradients."""

    index: int = 0
    of: int = 1

    def rows(self, n: int) -> slice:
        """Its rows among n; the parts of n rows follow one another, and are together all of them."""
        return slice(n * self.index // self.of, n * (self.index + 1) // self.of)


WHOLE = Part()
"""All rows of a batch."""


class Point(NamedTuple):
    """A batch on the path: x `(B, *event)` at times t `(B,)`, with dx = d x_t / dt `(B, *event)`."""

    x: Tensor
    t: Tensor
    dx: Tensor


class Field(Protocol):
    """A velocity field: x `(B, *event)` and t `(B,)` to dx/dt `(B, *event)`."""

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor: ...


class FlowMap(Protocol):
    """A two-time map: the average velocity u(x_t, t, s) with x_s = x_t + (s - t) u."""

    def __call__(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor: ...


Evaluated = Callable[..., Tensor]
"""A Field or a FlowMap: whichever a solver asks for."""


def is_utf8(text: str) -> bool:
    """Return whether text can be written as UTF-8; the name of a file or folder need not be."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def like(t: Tensor, x: Tensor) -> Tensor:
    """Times `(B,)` shaped `(B, 1, ..., 1)`, so that they multiply x `(B, *event)`."""
    return t.reshape(-1, *[1] * (x.ndim - 1))


def expand_time(t: float, x: Tensor) -> Tensor:
    """The time t for each row of x, `(B,)`; float32, or float64 where x is (half types never hold a time)."""
    return torch.full(x.shape[:1], t, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def generator(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """A CPU generator that is a function of (seed, stream, index) alone.

    Every random draw of flowgen comes from one of these, so that draw `index` of a stream never depends on what was
    drawn before it: a resumed run, a sample in the middle of a million, or another worker sees the same numbers.

    >>> bool((torch.rand(3, generator=generator(0, "a", 7)) == torch.rand(3, generator=generator(0, "a", 7))).all())
    True
    """
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    # PyTorch's CPU generator keeps 32 bits of its seed: adding the index keeps all draws of a stream distinct.
    return torch.Generator().manual_seed((int.from_bytes(digest, "little") + index) % 2**32)
