"""An affine change of units between data and model."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

__all__ = ["Scaling"]


@final
class Scaling(nn.Module):
    """z = (x - shift) / scale, one shift and scale for each coordinate; kept in the weights' file as buffers.

    A coordinate of scale 0 is a constant of the data: it is only shifted on the way in, and comes back as the constant.

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
        """Mean 0 and standard deviation 1 for each column of x `(N, D)`; scale 0 for a constant column."""
        wide = x.double()
        scale = wide.std(0, correction=0)
        # Relative to the column's size: the rounding of a constant float32 column is not a spread.
        constant = scale <= 1e-7 * wide.abs().amax(0)
        return cls(wide.mean(0).to(x.dtype), torch.where(constant, 0.0, scale).to(x.dtype))

    @classmethod
    def of_range(cls, lo: float, hi: float) -> Scaling:
        """[lo, hi] to [-1, 1]."""
        return cls(torch.tensor((lo + hi) / 2), torch.tensor((hi - lo) / 2))

    def apply_to(self, x: Tensor) -> Tensor:
        """Data units to model units."""
        return (x - self.shift) / torch.where(self.scale == 0, 1.0, self.scale)

    def pixels(self, x: Tensor) -> Tensor:
        """Images in data units to [0, 1], black to white; beyond is cut off."""
        return ((self.apply_to(x) + 1) / 2).clamp(0, 1)

    def undo(self, z: Tensor) -> Tensor:
        """Model units to data units."""
        return z * self.scale + self.shift
