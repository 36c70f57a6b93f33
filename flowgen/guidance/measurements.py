"""Linear measurements y = A x1, with their pseudo-inverses: A A^+ y = y."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from flowgen.core import InputError

__all__ = ["Downsampled", "Grey", "Mask", "Measurement", "framed", "project"]


class Measurement(Protocol):
    """A linear map of rows x `(B, *shape)` to y `(B, *measured)`, and its pseudo-inverse, both row by row."""

    def apply(self, x: Tensor) -> Tensor: ...

    def inverse(self, y: Tensor) -> Tensor: ...


def project(measurement: Measurement, x: Tensor, y: Tensor) -> Tensor:
    """Return the point of {x1 : A x1 = y} that is nearest to x `(B, *shape)`: (x - A^+ A x) + A^+ y.

    So written, the known entries of a `Mask` are those of y to the last bit, and the others those of x.
    """
    return (x - measurement.inverse(measurement.apply(x))) + measurement.inverse(y)


@final
@dataclass(frozen=True)
class Mask:
    """Some entries are known: A keeps them, and is 0 elsewhere. It is its own pseudo-inverse.

    Args:
        known: bool, of a shape that broadcasts with x `(B, *shape)`: one mask for all rows, or one each.

    Raises:
        InputError: unless it is bool.
    """

    known: Tensor

    def __post_init__(self) -> None:
        if self.known.dtype != torch.bool:
            raise InputError(f"a mask says of each entry whether it is known, as bool, not {self.known.dtype}")

    def apply(self, x: Tensor) -> Tensor:
        return torch.where(self.known, x, 0)

    def inverse(self, y: Tensor) -> Tensor:
        return self.apply(y)


@final
@dataclass(frozen=True)
class Downsampled:
    """The means of blocks of factor x factor pixels, `(B, C, H, W)` to `(B, C, H / factor, W / factor)`; A^+ repeats.

    Raises:
        InputError: unless the factor is positive and divides both sides.
    """

    factor: int

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise InputError(f"images are made smaller by a whole factor of at least 1, not {self.factor}")

    def apply(self, x: Tensor) -> Tensor:
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise InputError(f"{x.shape[-1]}x{x.shape[-2]} pixels have no whole blocks of {self.factor}x{self.factor}")
        return torch.nn.functional.avg_pool2d(x, self.factor)

    def inverse(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)


@final
@dataclass(frozen=True)
class Grey:
    """The mean of the channels, `(B, C, H, W)` to `(B, 1, H, W)`; A^+ gives it to each of them."""

    channels: int = 3

    def apply(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)

    def inverse(self, y: Tensor) -> Tensor:
        return y.expand(-1, self.channels, -1, -1)


def framed(x: Tensor, height: int, width: int) -> tuple[Tensor, Mask]:
    """Return images `(B, C, h, w)` in the middle of frames `(B, C, height, width)` of zeros, and the mask of their
    pixels.

    Raises:
        InputError: for an image that is larger than the frame.
    """
    h, w = x.shape[-2:]
    if h > height or w > width:
        raise InputError(f"an image of {w}x{h} pixels does not fit into one of {width}x{height}")
    top, left = (height - h) // 2, (width - w) // 2
    rows, columns = slice(top, top + h), slice(left, left + w)
    frame, known = x.new_zeros(*x.shape[:-2], height, width), torch.zeros(height, width, dtype=torch.bool)
    frame[..., rows, columns], known[rows, columns] = x, True
    return frame, Mask(known.to(x.device))
