"""An affine change of units between data and model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from flowgen.core import InputError

__all__ = ["Scaling"]


@final
class Scaling(nn.Module):
    """z = (x - shift) / scale, one shift and scale for each coordinate; kept in the weights' file as buffers.

    A coordinate of scale 0 is a constant of the data: it is only shifted on the way in, and comes back as the constant.

    Shift and scale in float64 stay so whatever the model becomes, since the digits that tell rows apart may be beyond
    float32: what they give is float64 too, and `in_model_units` is what a net takes. On mps, which has no float64, they
    stay on the CPU.

    >>> scaling = Scaling.standardising(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
    >>> scaling.apply_to(torch.tensor([[2.0, 6.0]]))
    tensor([[1., 1.]])
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor | None = None, scale: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(()) if shift is None else shift)
        self.register_buffer("scale", torch.ones(()) if scale is None else scale)

    @classmethod
    def standardising(cls, x: Tensor) -> Scaling:
        """Return the scaling to mean 0 and standard deviation 1 of each column of x `(N, D)`; scale 0 for a column of
        equal values.

        They are computed in float64, and of the type of x, or float64 where that is of whole numbers.

        Raises:
            InputError: for a column whose standard deviation is beyond the numbers of that type.
        """
        wide, dtype = x.double(), x.dtype if x.is_floating_point() else torch.float64
        size = wide.abs().amax(0)
        unit = 2.0 ** (torch.frexp(size).exponent.double() - 1)  # so that no square is 0 or infinite
        away = wide / unit - wide[0] / unit  # small numbers, which have digits left for their mean
        shift, scale = wide[0] + away.mean(0) * unit, (away.std(0, correction=0) * unit).to(dtype)
        if (bad := (~scale.isfinite() | ((scale == 0) & away.any(0))).nonzero()).numel():
            raise InputError(f"column {int(bad[0]) + 1} has a spread that is too large or too small for a number")
        return cls(shift.to(dtype), scale)

    @classmethod
    def of_range(cls, lo: float, hi: float) -> Scaling:
        """Return the scaling of [lo, hi] to [-1, 1]."""
        return cls(torch.tensor((lo + hi) / 2), torch.tensor((hi - lo) / 2))

    @property
    def exact(self) -> bool:
        """Return whether the scaling is in float64, as that of a table."""
        return self.shift.dtype == torch.float64

    def in_model_units(self, x: Tensor) -> Tensor:
        """Convert x in data units to what a net takes: model units, float32, on the device of x."""
        return self.apply_to(x).to(x.device, torch.float32)

    def apply_to(self, x: Tensor) -> Tensor:
        """Convert data units to model units, in the wider type of x and the scaling."""
        x = self._beside(x)
        return (x - self.shift) / torch.where(self.scale == 0, 1.0, self.scale)

    def pixels(self, x: Tensor) -> Tensor:
        """Convert images in data units to [0, 1], black to white; values outside are clamped."""
        return ((self.apply_to(x) + 1) / 2).clamp(0, 1)

    def undo(self, z: Tensor) -> Tensor:
        """Convert model units to data units."""
        return self._beside(z) * self.scale + self.shift

    def digits(self) -> list[int] | None:
        """Return how many digits of each column what is drawn in float32 tells: nine, and more where a column is far
        from 0 beside its spread; of a constant, all that it has. None where float32 holds them all."""
        if not self.exact:
            return None
        found = []
        for shift, scale in zip(self.shift.tolist(), self.scale.tolist(), strict=True):
            if scale == 0:
                found.append(next((n for n in range(9, 17) if float(f"{shift:.{n}g}") == shift), 17))
            else:
                found.append(min(17, 9 + math.ceil(math.log10(max(1.0, abs(shift) / scale)))))
        return found

    def _beside(self, x: Tensor) -> Tensor:
        """Return x on the device of the scaling; a number on the CPU goes with any."""
        return x.to(self.shift.device) if self.shift.ndim or self.shift.device.type != "cpu" else x

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Scaling:
        if not self.exact:
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch does not annotate it
        device = fn(torch.empty(0)).device
        device = torch.device("cpu") if device.type == "mps" else device
        self.shift, self.scale = self.shift.to(device), self.scale.to(device)
        return self
