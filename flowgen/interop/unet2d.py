"""Our U-Net as the UNet2DModel of diffusers, weight by weight.

Both are the U-Net of arXiv 2105.05233, in other words. What differs are conventions, all of which go into the weights:

- time. diffusers counts sigma = 1 - t, as timesteps 128 sigma: its waves of frequency f_k see f_k 128 sigma, and with
  freq_shift so chosen that f_k 128 = w_k they are cos(w sigma) and sin(w sigma), of the same w as ours in falling
  order. Ours are sums of these,

      cos(w t) = cos(w) cos(w sigma) + sin(w) sin(w sigma),  sin(w t) = sin(w) cos(w sigma) - cos(w) sin(w sigma),

  and so the first layer on them is another matrix;
- direction. diffusers predicts noise - data, which is minus the velocity: the last layer has its sign changed;
- attention. Query, key and value of each head follow one another in our rows; diffusers keeps three matrices;
- labels. The last embedding is that of the null label, here and there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flowgen.config.nets import UNetConfig
from flowgen.core import InputError
from flowgen.nn import Conditioning, UNet

__all__ = ["TIMESTEPS", "arguments", "fill"]

TIMESTEPS = 128
"""The timestep of pure noise: the highest of our frequencies, since the highest of diffusers is 1."""
GROUPS = 32


def arguments(net: UNetConfig, shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """Return the arguments of the UNet2DModel that has the shape of a U-Net.

    Raises:
        InputError: for a U-Net of which diffusers has none.
    """
    widths = [net.channels * multiplier for multiplier in net.multipliers]
    attended = [2**level in net.attention for level in range(len(widths))]
    heads = {width // net.heads for width, attends in zip(widths, attended, strict=True) if attends}
    heads.add(widths[-1] // net.heads)  # there is attention in the middle
    if min(widths) < 4 * GROUPS:
        raise InputError(
            f"diffusers normalises in {GROUPS} groups, our U-Net of {net.channels} channels in fewer: "
            "format diffusers needs 128 channels or more (size base or cifar10); onnx and torch-export take any"
        )
    if net.multipliers[0] != 1 or len(heads) > 1:
        raise InputError(
            "format diffusers needs a U-Net whose multipliers begin with 1, with attention at one width alone "
            "(as sizes base and cifar10 have); onnx and torch-export take any"
        )
    half = net.channels // 2
    kinds = ["Attn" if attends else "" for attends in attended]
    return {
        "sample_size": shape[1:],
        "in_channels": shape[0],
        "out_channels": shape[0],
        "freq_shift": half - (half - 1) * math.log2(10_000) / 7,  # 10000^(-k / (half - it)) is 2^(-7 k / (half - 1))
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        "block_out_channels": tuple(widths),
        "layers_per_block": net.blocks,
        "dropout": net.dropout,
        "attention_head_dim": heads.pop(),
        "norm_num_groups": GROUPS,
        "attn_norm_num_groups": GROUPS,
        "resnet_time_scale_shift": "scale_shift" if net.scale else "default",
        "num_class_embeds": classes + 1 if classes else None,
    }


def fill(theirs: Any, net: UNet) -> None:
    """Fill a UNet2DModel of the same shape with the weights of a U-Net."""
    _fill_conditioning(theirs, net.conditioning)
    ours = [part for block in (*net.down, net.middle, *net.up) for part in block]
    for part, other in zip(ours, _in_order(theirs), strict=True):
        _copy(part, other)
    norm, _, last = net.out
    _copy(norm, theirs.conv_norm_out)
    _copy(last, theirs.conv_out)
    for parameter in theirs.conv_out.parameters():
        parameter.data.neg_()


def _fill_conditioning(theirs: Any, ours: Conditioning) -> None:
    time = theirs.time_embedding
    time.linear_1.weight.data = _turned(ours.time.weight, ours.waves.w)
    time.linear_1.bias.data = ours.time.bias.clone()
    _copy(ours.out, time.linear_2)
    if ours.label is not None:
        _copy(ours.label, theirs.class_embedding)


def _turned(weight: Tensor, w: Tensor) -> Tensor:
    """Return the layer on cos(w t) and sin(w t) as one on cos(w sigma) and sin(w sigma), w falling."""
    c, s = weight.double().chunk(2, dim=1)
    cosines, sines = c * w.double().cos() + s * w.double().sin(), c * w.double().sin() - s * w.double().cos()
    return torch.cat([cosines.flip(1), sines.flip(1)], dim=1).to(weight)


def _in_order(theirs: Any) -> Iterator[nn.Module]:
    """Yield the parts of a UNet2DModel in the order in which they run, which is that of ours."""
    yield theirs.conv_in
    for block in theirs.down_blocks:
        yield from _within(block)
        yield from block.downsamplers or ()
    first, *rest = theirs.mid_block.resnets
    yield first
    for attention, resnet in zip(theirs.mid_block.attentions, rest, strict=True):
        yield attention
        yield resnet
    for block in theirs.up_blocks:
        yield from _within(block)
        yield from block.upsamplers or ()


def _within(block: Any) -> Iterator[nn.Module]:
    attentions = iter(getattr(block, "attentions", ()))
    for resnet in block.resnets:
        yield resnet
        yield from [attention for attention in [next(attentions, None)] if attention is not None]


def _copy(ours: Any, theirs: Any) -> None:
    """Copy the weights of one part."""
    kind = type(ours).__name__
    if kind == "ResBlock":
        _copy_resnet(ours, theirs)
    elif kind == "AttentionBlock":
        _copy_attention(ours, theirs)
    elif kind in ("Downsample", "Upsample"):
        _copy(ours.op if kind == "Downsample" else ours.conv, theirs.conv)
    else:
        theirs.load_state_dict(ours.state_dict())


def _copy_resnet(ours: Any, theirs: Any) -> None:
    (norm1, _, conv1), (norm2, _, _, conv2) = ours.in_layers, ours.out_layers
    _copy(norm1, theirs.norm1)
    _copy(conv1, theirs.conv1)
    _copy(ours.emb_layers[1], theirs.time_emb_proj)
    _copy(norm2, theirs.norm2)
    _copy(conv2, theirs.conv2)
    if theirs.conv_shortcut is not None:
        _copy(ours.skip_connection, theirs.conv_shortcut)


def _copy_attention(ours: Any, theirs: Any) -> None:
    _copy(ours.norm, theirs.group_norm)
    for name, made in (("weight", ours.qkv.weight.squeeze(2)), ("bias", ours.qkv.bias)):
        by_head = made.unflatten(0, (ours.num_heads, 3, -1))
        for index, part in enumerate((theirs.to_q, theirs.to_k, theirs.to_v)):
            getattr(part, name).data = by_head[:, index].flatten(0, 1).clone()
    theirs.to_out[0].weight.data = ours.proj_out.weight.squeeze(2).clone()
    theirs.to_out[0].bias.data = ours.proj_out.bias.clone()
