"""Networks by name, and their sizes by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from pydantic import Field
from torch import nn

from flowgen.config.fields import default
from flowgen.core import InputError, lookup
from flowgen.nn import DIT_SIZES, MLP, UNET_SIZES, DiT, ResMLP, UNet
from flowgen.registry import Objects

__all__ = ["NETS", "NetConfig", "sized"]

Width = Annotated[int, Field(ge=1, le=16384)]
Depth = Annotated[int, Field(ge=1, le=64)]
DropoutShare = Annotated[float, Field(ge=0, lt=1)]


class NetConfig(Protocol):
    """The settings of a network."""

    def build(self, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
        """Return the network for events of a shape, with so many labels; its first weights are a function of the seed.

        Raises:
            InputError: if the network cannot read such events.
        """
        ...


@dataclass(frozen=True)
class MLPConfig:
    """A perceptron for rows."""

    width: Width = default(MLP, "width")
    depth: Depth = default(MLP, "depth")
    frequencies: Annotated[int, Field(ge=0, le=256)] = default(MLP, "frequencies")
    two_times: bool = default(MLP, "two_times")

    def build(self, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
        if len(shape) != 1:
            raise InputError(f"net mlp reads rows of a table, not {shape}: choose resmlp, unet or dit for images")
        return MLP(
            shape[0], self.width, self.depth, self.frequencies, classes=classes, two_times=self.two_times, seed=seed
        )


@dataclass(frozen=True)
class ResMLPConfig:
    """A residual perceptron, for rows and for the smallest images."""

    width: Width = default(ResMLP, "width")
    depth: Depth = default(ResMLP, "depth")
    dropout: DropoutShare = default(ResMLP, "dropout")

    def build(self, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
        return ResMLP(shape, classes, self.width, self.depth, self.dropout, seed=seed)


@dataclass(frozen=True)
class UNetConfig:
    """The U-Net; where a size is named, the other fields are those of the size but for what is given."""

    size: str = "custom"
    channels: Width = default(UNet, "channels")
    blocks: Depth = default(UNet, "blocks")
    multipliers: tuple[Depth, ...] = default(UNet, "multipliers")
    attention: tuple[Depth, ...] = default(UNet, "attention")
    heads: Depth = default(UNet, "heads")
    dropout: DropoutShare = default(UNet, "dropout")
    scale: bool = default(UNet, "scale")

    def build(self, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
        return UNet(
            shape,
            classes,
            self.channels,
            self.blocks,
            self.multipliers,
            self.attention,
            self.heads,
            self.dropout,
            self.scale,
            seed=seed,
        )


@dataclass(frozen=True)
class DiTConfig:
    """The diffusion transformer; sizes as of the U-Net."""

    size: str = "custom"
    patch: Depth = default(DiT, "patch")
    width: Width = default(DiT, "width")
    depth: Depth = default(DiT, "depth")
    heads: Depth = default(DiT, "heads")
    dropout: DropoutShare = default(DiT, "dropout")

    def build(self, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
        return DiT(shape, classes, self.patch, self.width, self.depth, self.heads, self.dropout, seed=seed)


NETS: Objects[type[NetConfig]] = Objects("net")
SIZES: dict[str, Mapping[str, Mapping[str, Any]]] = {
    "unet": {**UNET_SIZES, "custom": {}},
    "dit": {**DIT_SIZES, "custom": {}},
}


def sized(net: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of a network with the fields of its size filled in, where it names one.

    Raises:
        InputError: if there is no such size of that network.
    """
    name, size = net.get("name"), net.get("size")
    if size is None or name not in NETS:
        return dict(net)
    if name not in SIZES:
        raise InputError(f"net {name} has no sizes: give its width and depth, or choose {' or '.join(SIZES)}")
    return {**lookup(f"size of {name}", str(size), SIZES[name]), **net}
