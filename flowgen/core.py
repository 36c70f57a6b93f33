"""The vocabulary: pairs of ends, points on a path, fields, and seeded generators."""

from __future__ import annotations

import difflib
import hashlib
import operator
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, final

import torch
from torch import Tensor

__all__ = [
    "WHOLE",
    "Choices",
    "Evaluated",
    "Failure",
    "Field",
    "FlowMap",
    "InputError",
    "Named",
    "Note",
    "Pair",
    "Part",
    "Point",
    "StrPath",
    "check_labels",
    "expand_time",
    "fixed",
    "generator",
    "gradients",
    "like",
    "lookup",
    "note",
    "numbers",
    "row_labels",
    "shaped",
    "whole",
]

T = TypeVar("T")

StrPath = str | os.PathLike[str]
"""A file or a folder, as a str or a Path."""


class InputError(ValueError):
    """A mistake in what the user gave; its message is one line that says what to change."""


class Failure(RuntimeError):
    """Work that was started and failed; its message is one line that says why."""


class Note(Warning):
    """A guess about the user's input, or a part of it that was left out: a warning in Python, a line of a command."""


def note(text: str) -> None:
    """Report a guess to the user, in one line; commands print it on standard error, each text once."""
    warnings.warn(text, Note, stacklevel=3)


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Return table[name].

    Raises:
        InputError: if there is no such name; the message has the nearest one, and all of them.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1, cutoff=0.4)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise InputError(f"unknown {kind} {name!r}{hint}: choose from {', '.join(table) or 'none'}")


def whole(what: str, value: Any, least: int | None = 1) -> int:
    """Return a whole number as an int.

    Raises:
        InputError: for anything else, or a number below `least`.
    """
    kind = "a positive whole number" if least == 1 else "a whole number"
    try:
        number = operator.index(value)
    except TypeError:
        given = value if isinstance(value, Real | str | None) else _kind_of(value)
        raise InputError(f"{what} must be {kind}, not {given!r}") from None
    if least is not None and number < least:
        raise InputError(f"{what} must be {kind}{'' if least == 1 else f', {least} or more'}, not {number}")
    return number


@final
class Choices(Mapping[str, Any], Generic[T]):
    """The parts of one kind that have a name: an object, or a class that is made with its defaults, for each.

    Called with what a user gave, a part or its name, it returns the part.

    Args:
        kind: what the parts are called in messages.
        of: the class of all parts, also of those without a name.
        table: the parts that have one, such as `registry.Objects`.
    """

    def __init__(self, kind: str, of: Any, table: Mapping[str, Any]) -> None:
        self.kind, self.of, self.table = kind, of, table

    def __getitem__(self, name: str) -> Any:
        return self.table[name]

    def __contains__(self, name: object) -> bool:
        return name in self.table

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def __call__(self, given: T | str) -> T:
        """Return the part that was given, or the one of that name.

        Raises:
            InputError: for an unknown name, a class in place of its object, or anything else.
        """
        if isinstance(given, str):
            found = lookup(self.kind, given, self)
            return found() if isinstance(found, type) else found
        if isinstance(given, type):
            raise InputError(f"the {self.kind} is the class {given.__name__}, not an object: give {given.__name__}()")
        if not isinstance(given, self.of):
            raise InputError(f"expected a {self.kind} or the name of one ({', '.join(self)}), not {_kind_of(given)}")
        return given


@final
class Named(Generic[T]):
    """A field of a dataclass that takes a part or its name, and holds the part.

    >>> SIZES = Choices("size", int, {"one": 1, "two": 2})
    >>> @dataclass(frozen=True)
    ... class Box:
    ...     size: Named[int] = Named(SIZES, "one")
    >>> Box().size, Box("two").size, Box(3).size
    (1, 2, 3)
    """

    def __init__(self, choices: Choices[T], default: str) -> None:
        self.choices, self.default = choices, default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> T:
        if instance is None:
            return self.default  # type: ignore[return-value]  # what the dataclass hands to __set__
        return instance.__dict__[self.name]

    def __set__(self, instance: Any, value: T | str) -> None:
        instance.__dict__[self.name] = self.choices(value)


def _kind_of(value: Any) -> str:
    """Return what an object is, in a few words."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


class Pair(NamedTuple):
    """A batch of coupled ends.

    Shapes:
        x0: source (noise), `(B, *shape)`.
        x1: data, `(B, *shape)`.
        cond: condition of each row, `(B, ...)`, or None.
    """

    x0: Tensor
    x1: Tensor
    cond: Tensor | None = None

    def checked(self) -> Pair:
        """Return the pair itself, if its shapes go together.

        Raises:
            InputError: if the ends are not tensors of one shape `(B, *shape)`, or the condition has other rows.
        """
        for name, x in zip(self._fields, self, strict=True):
            if not isinstance(x, Tensor) and (x is not None or name != "cond"):
                raise InputError(f"{name} of a pair must be a tensor, not {type(x).__name__}")
        if self.x0.shape != self.x1.shape:
            raise InputError(
                f"the ends of a pair must have one shape: x0 has {tuple(self.x0.shape)}, x1 {tuple(self.x1.shape)}"
            )
        if self.x1.ndim < 2:
            raise InputError(
                f"the ends of a pair are rows (B, *shape), not of shape {tuple(self.x1.shape)}: "
                "of single numbers make a column, x.unsqueeze(1)"
            )
        if self.cond is not None and self.cond.shape[:1] != self.x1.shape[:1]:
            raise InputError(
                f"a pair of {len(self.x1)} rows needs a condition for each, not one of shape {tuple(self.cond.shape)}"
            )
        return self

    def take(self, index: Tensor | slice) -> Pair:
        """Return the rows at `index`, ends and condition together."""
        return Pair(self.x0[index], self.x1[index], None if self.cond is None else self.cond[index])

    @staticmethod
    def cat(pairs: Sequence[Pair]) -> Pair:
        """Return the rows of all pairs, in order."""
        x0, x1, cond = zip(*pairs, strict=True)
        return Pair(torch.cat(x0), torch.cat(x1), None if cond[0] is None else torch.cat(cond))

    @staticmethod
    def stack(rows: Sequence[Pair]) -> Pair:
        """Return the batch of pairs of one row each, ends `(*shape)`: a `collate_fn` for a DataLoader of pairs."""
        x0, x1, cond = zip(*rows, strict=True)
        stacked = None if cond[0] is None else torch.stack([torch.as_tensor(c) for c in cond])
        return Pair(torch.stack(x0), torch.stack(x1), stacked)

    def to(self, device: torch.device | str) -> Pair:
        """Return the same pair on `device`."""
        return Pair(*(None if x is None else x.to(device) for x in self))  # type: ignore[arg-type]


@final
@dataclass(frozen=True)
class Part:
    """One of several equal parts of a batch: the share of one process, or one step of an accumulation of gradients."""

    index: int = 0
    of: int = 1

    def rows(self, n: int) -> slice:
        """Return its rows among n; the parts of n rows follow one another, and are together all of them."""
        return slice(n * self.index // self.of, n * (self.index + 1) // self.of)


WHOLE = Part()
"""All rows of a batch."""


class Point(NamedTuple):
    """A batch on the path: x `(B, *shape)` at times t `(B,)`, with dx = d x_t / dt `(B, *shape)`."""

    x: Tensor
    t: Tensor
    dx: Tensor


class Field(Protocol):
    """A velocity field: x `(B, *shape)` and t `(B,)` to dx/dt `(B, *shape)`."""

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
    """Return times `(B,)` shaped `(B, 1, ..., 1)`, so that they multiply x `(B, *shape)`."""
    return t.reshape(-1, *[1] * (x.ndim - 1))


def expand_time(t: float | Tensor, x: Tensor) -> Tensor:
    """Return the time of each row of x, `(B,)`: one time for all, or times `(B,)` as they are.

    One time becomes float32, or float64 where x is (half types never hold a time).

    Raises:
        InputError: for anything else than a number or one time a row.
    """
    if isinstance(t, Tensor) and t.ndim:
        if t.shape != x.shape[:1]:
            raise InputError(f"times are one number, or of shape ({len(x)},) for so many rows, not {tuple(t.shape)}")
        return t
    if not isinstance(t, Tensor | Real):
        raise InputError(f"a time is a number or a tensor, not {_kind_of(t)}")
    return torch.full(x.shape[:1], float(t), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def shaped(made: Tensor, x: Tensor, maker: str) -> Tensor:
    """Return what was made of x, if it has the shape of x: other shapes would be broadcast without a word.

    Raises:
        InputError: if it is not a tensor of that shape; the message names the maker.
    """
    if not isinstance(made, Tensor):
        raise InputError(f"{maker} must return a tensor, not {type(made).__name__}")
    if made.shape != x.shape:
        raise InputError(f"{maker} must return the shape of x, {tuple(x.shape)}, not {tuple(made.shape)}")
    return made


def numbers(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return x as a network of this type computes with it: float64 and float32 as each other, whole numbers as floats.

    Half types stay, since layers differ in where they take them.

    Args:
        dtype: of the network's parameters; None where there are none, and x keeps its own.

    Raises:
        InputError: for bytes, which are pixels, and in units of no model.
    """
    wide = {torch.float32, torch.float64}
    if x.dtype == torch.uint8:
        raise InputError(
            "bytes (torch.uint8) are pixels, and not in model units: data.TensorDataset reads them as floats"
        )
    if not (x.is_floating_point() or x.is_complex()):
        return x.to(dtype if dtype in wide else torch.float32)
    return x.to(dtype) if {x.dtype, dtype} == wide else x


def row_labels(cond: Tensor, rows: int) -> Tensor:
    """Return the labels `(rows,)` as int64.

    Raises:
        InputError: for another shape, or numbers that are not whole.
    """
    if cond.shape != (rows,):
        raise InputError(f"{rows} rows need as many labels, not labels of shape {tuple(cond.shape)}")
    if cond.is_floating_point() or cond.is_complex():
        raise InputError(f"labels are whole numbers (torch.int64), not {cond.dtype}")
    return cond if cond.dtype == torch.int64 else cond.long()


def check_labels(labels: Tensor, last: int) -> None:
    """Refuse, with InputError, a label that is not 0, ..., last. It waits for a GPU."""
    if not labels.numel():
        return
    least, most = torch.stack(torch.aminmax(labels)).tolist()
    if least < 0 or most > last:
        raise InputError(f"labels must be 0 to {last}, and there is a label {least if least < 0 else most}")


@contextmanager
def gradients() -> Iterator[None]:
    """Compute gradients inside, also where the caller is under `torch.no_grad` or `torch.inference_mode`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def fixed(x: Tensor) -> Tensor:
    """Return x as gradients can be computed with it: detached, and a copy if it was made under inference mode."""
    return x.clone() if x.is_inference() else x.detach()


def generator(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """Return a CPU generator that is a function of (seed, stream, index) alone.

    Every random draw of flowgen comes from one of these, so that draw `index` of a stream never depends on what was
    drawn before it: a resumed run, a sample in the middle of a million, or another worker sees the same numbers.

    >>> bool((torch.rand(3, generator=generator(0, "a", 7)) == torch.rand(3, generator=generator(0, "a", 7))).all())
    True

    Raises:
        InputError: unless the seed is a whole number.
    """
    seed = whole("the seed", seed, least=None)
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    # PyTorch's CPU generator keeps 32 bits of its seed: adding the index keeps all draws of a stream distinct.
    return torch.Generator().manual_seed((int.from_bytes(digest, "little") + index) % 2**32)
