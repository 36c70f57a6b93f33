"""The diffusion transformer on patches of an image."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowgen.core import InputError
from flowgen.nn.conditioning import Conditioning, check_event, modulate, zeroed
from flowgen.nn.seeded import seeded
from flowgen.nn.unet import check_size

__all__ = ["DIT_SIZES", "DiT", "patchify", "positions", "unpatchify"]

DIT_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"patch": 2, "width": 128, "depth": 4, "heads": 4},
    "small": {"patch": 2, "width": 384, "depth": 12, "heads": 6},
    "base": {"patch": 2, "width": 768, "depth": 12, "heads": 12},
}
"""Arguments of DiT by name; small and base are DiT-S/2 and DiT-B/2 of the paper."""


def patchify(x: Tensor, patch: int) -> Tensor:
    """Convert `(B, C, H, W)` to `(B, patches, C patch patch)`, the patches row by row."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)


def unpatchify(h: Tensor, patch: int, shape: tuple[int, ...]) -> Tensor:
    """Invert `patchify`, for images of shape (C, H, W)."""
    channels, height, width = shape
    h = h.reshape(h.shape[0], height // patch, width // patch, channels, patch, patch)
    return h.permute(0, 3, 1, 4, 2, 5).reshape(h.shape[0], *shape)


def positions(height: int, width: int, size: int) -> Tensor:
    """Return sines and cosines of the row and of the column of each patch, `(height width, size)`; 4 must divide the
    size.
    """
    w = 10000.0 ** -(torch.arange(size // 4) / (size // 4))
    rows, columns = (torch.arange(n).unsqueeze(1) * w for n in (height, width))
    row = torch.cat([rows.sin(), rows.cos()], dim=1).unsqueeze(1).expand(-1, width, -1)
    column = torch.cat([columns.sin(), columns.cos()], dim=1).unsqueeze(0).expand(height, -1, -1)
    return torch.cat([row, column], dim=2).reshape(height * width, size)


class _Block(nn.Module):
    """Attention and a perceptron, each shifted, scaled and gated by the conditioning: adaLN."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(c).unsqueeze(1).chunk(6, dim=2)
        h = h + gate * self.attention(modulate(self.norm(h), shift, scale))
        return h + gate_mlp * self.mlp(modulate(self.norm(h), shift_mlp, scale_mlp))

    def attention(self, h: Tensor) -> Tensor:
        """Return the attention of every patch to every patch, `(B, patches, width)`."""
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.merge(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@final
class DiT(nn.Module):
    """The diffusion transformer with adaLN-zero (arXiv 2212.09748): gates and output start at zero.

    `torch.func.jvp` needs the mathematical attention: call it under
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.

    Args:
        shape: (C, H, W) of an image.
        classes: number of labels; label `classes` is "no label". 0 for a net that ignores cond.
        patch: height and width of a patch.
        width: of a patch's vector, a multiple of 4 and of the heads.
        depth: number of blocks.
        heads: of each attention.
        dropout: in the perceptrons, while training.
        seed: of the first weights.

    Shapes: x `(B, C, H, W)`, t and s `(B,)`, cond int64 `(B,)` or None, to `(B, C, H, W)`.

    Raises:
        InputError: for a size that the patch does not divide, or a width that 4 and the heads do not.
    """

    position: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int = 0,
        patch: int = 2,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_size(shape, patch, f"a DiT of patch {patch}")
        if width % 4 or width % heads:
            raise InputError(f"a DiT needs a width that 4 and its {heads} heads divide, not {width}")
        self.shape, self.patch = shape, patch
        values = shape[0] * patch * patch
        self.register_buffer("position", positions(shape[1] // patch, shape[2] // patch, width), persistent=False)
        with seeded(seed):
            self.conditioning = Conditioning(256, width, classes)
            self.classes = classes
            self.embed = nn.Linear(values, width)
            self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(depth))
            self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
            self.modulation, self.out = zeroed(nn.Linear(width, 2 * width)), zeroed(nn.Linear(width, values))

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        check_event(self, self.shape, x)
        c = F.silu(self.conditioning(t, s, cond))
        h = self.embed(patchify(x, self.patch)) + self.position
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.modulation(c).unsqueeze(1).chunk(2, dim=2)
        h = self.out(modulate(self.norm(h), shift, scale))
        return unpatchify(h, self.patch, self.shape).to(x.dtype)
