"""The U-Net of the image papers, built of torchcfm's blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowgen.core import InputError
from flowgen.nn.conditioning import Conditioning, check_event
from flowgen.nn.seeded import seeded

__all__ = ["UNET_SIZES", "UNet"]

UNET_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"channels": 32, "blocks": 1, "multipliers": (1, 2), "attention": (), "heads": 2},
    "small": {"channels": 64, "blocks": 2, "multipliers": (1, 2, 2), "attention": (4,), "heads": 2},
    "base": {"channels": 128, "blocks": 2, "multipliers": (1, 2, 2), "attention": (4,), "heads": 4},
    # of torchcfm's CIFAR-10 example, arXiv 2302.00482
    "cifar10": {
        "channels": 128,
        "blocks": 2,
        "multipliers": (1, 2, 2, 2),
        "attention": (2,),
        "heads": 4,
        "dropout": 0.1,
        "scale": False,
    },
}
"""Arguments of UNet by name: 0.7, 7, 28 and 36 million weights."""

GROUP = 4
"""The least number of channels that are normalised together, where torchcfm makes 32 groups of any width."""


@final
class UNet(nn.Module):
    """The U-Net of arXiv 2105.05233, by torchcfm's blocks: residual blocks at each resolution, attention at some.

    Args:
        shape: (C, H, W) of an image.
        classes: number of labels; label `classes` is "no label". 0 for a net that ignores cond.
        channels: at full resolution, a multiple of 32.
        blocks: residual blocks at each resolution on the way down, and one more on the way up.
        multipliers: of the channels, one for each resolution; each is half of the one before.
        attention: the factors by which an image is smaller where blocks are followed by attention, besides the middle.
        heads: of each attention.
        dropout: in the residual blocks, while training.
        scale: whether times and label scale the features as well as shift them: the adaptive group norm of that paper.
        seed: of the first weights; the output starts at zero.

    Shapes: x `(B, C, H, W)`, t and s `(B,)`, cond int64 `(B,)` or None, to `(B, C, H, W)`.

    Raises:
        InputError: for a size that the levels do not divide, channels that groups or heads do not, or attention at no
            resolution of the net.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int = 0,
        channels: int = 64,
        blocks: int = 2,
        multipliers: Sequence[int] = (1, 2, 2),
        attention: Sequence[int] = (4,),
        heads: int = 2,
        dropout: float = 0.0,
        scale: bool = True,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.shape = shape
        check_size(shape, 2 ** (len(multipliers) - 1), "the U-Net")
        if channels % 32 or any(channels * m % heads for m in multipliers):
            raise InputError(f"the U-Net needs channels in multiples of 32 and of its {heads} heads, not {channels}")
        factors = [2**level for level in range(len(multipliers))]
        if not set(attention) <= set(factors):
            raise InputError(f"the U-Net can attend at the factors {factors} of its multipliers, not {list(attention)}")
        from torchcfm.models.unet.unet import UNetModel

        with seeded(seed):
            parts = UNetModel(
                image_size=shape[1],
                in_channels=shape[0],
                model_channels=channels,
                out_channels=shape[0],
                num_res_blocks=blocks,
                attention_resolutions=tuple(attention),
                dropout=dropout,
                channel_mult=tuple(multipliers),
                num_heads=heads,
                use_scale_shift_norm=scale,
            )
            self.conditioning = Conditioning(channels, 4 * channels, classes)
            self.classes = classes
        self.down, self.middle, self.up, self.out = (
            _normalised(part) for part in (parts.input_blocks, parts.middle_block, parts.output_blocks, parts.out)
        )

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        check_event(self, self.shape, x)
        c = self.conditioning(t, s, cond)
        h, skipped = x, []
        for block in self.down:
            h = block(h, c)
            skipped.append(h)
        h = self.middle(h, c)
        for block in self.up:
            h = block(torch.cat([h, skipped.pop()], dim=1), c)
        return self.out(h).to(x.dtype)


def check_size(shape: tuple[int, ...], factor: int, who: str) -> None:
    """Refuse, with InputError, a shape that is not an image whose height and width `factor` divides."""
    if len(shape) != 3:
        raise InputError(f"{who} reads images (channels, height, width), not events of shape {shape}")
    height, width = shape[1:]
    if height % factor or width % factor:
        near = " or ".join(f"{size}x{size}" for size in _around(max(height, width), factor))
        raise InputError(f"{who} needs height and width divisible by {factor} (such as {near}), not {height}x{width}")


def _around(size: int, factor: int) -> list[int]:
    """Return the multiples of a factor just below and above a size, except 0."""
    below = size // factor * factor
    return [multiple for multiple in (below, below + factor) if multiple]


class _GroupNorm(nn.GroupNorm):
    """Sums in float32 where x is of a half type, and gives the type of x."""

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.group_norm(x.to(wide), self.num_groups, self.weight, self.bias, self.eps).to(x.dtype)


def _normalised(part: nn.Module) -> Any:
    """Return the module with our group norms in place of torchcfm's, which support no float64 and no groups of few
    channels.
    """
    for name, child in part.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(part, name, _GroupNorm(min(32, child.num_channels // GROUP), child.num_channels))
        else:
            _normalised(child)
    return part
