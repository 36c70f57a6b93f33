"""A network with its path and target: what it predicts, read as a velocity."""

from __future__ import annotations

from copy import deepcopy
from typing import final

import torch
from torch import Tensor, nn

from flowgen import targets
from flowgen.core import InputError, Pair, like
from flowgen.data.scaling import Scaling
from flowgen.paths import Linear, Path
from flowgen.targets import Target

__all__ = ["Model"]


@final
class Model(nn.Module):
    """net + path + target -> velocity field.

    Args:
        net: a module `net(x, t, s, cond)`, x `(B, *event)`, t and s `(B,)`, to a prediction `(B, *event)`. A velocity
            network is called with s = t and may ignore s; a flow map reads both.
        path: joins source and data.
        target: what the net predicts, a row of `flowgen.targets`.
        start: the first time; 0, but for a path whose first noise the net has not seen.
        scaling: takes data into the model's units; copied, kept with the weights, undone on samples.

    Attributes:
        span: the times (lo, hi) where the velocity is defined, see `flowgen.targets.span`.
        size: by what x_t is divided before the net sees it, see `flowgen.targets.size`.

    Raises:
        InputError: where the target is singular at the start of the path.
    """

    def __init__(
        self,
        net: nn.Module,
        path: Path | None = None,
        target: Target = targets.velocity,
        scaling: Scaling | None = None,
        start: float = 0.0,
    ) -> None:
        super().__init__()
        self.net, self.path, self.target = net, path or Linear(), target
        self.scaling = deepcopy(scaling) if scaling else Scaling()  # the caller's stays with the data, off the device
        self.span = targets.span(self.path, target, start)
        self.size = targets.size(self.path, target)
        self._trainable: frozenset[str] = frozenset()  # before `for_inference`

    @property
    def trainable(self) -> frozenset[str]:
        """The names of the parameters that training moves: those that require gradients, or did so before
        `for_inference`."""
        now = frozenset(name for name, p in self.named_parameters() if p.requires_grad)
        models = (
            (prefix, part) for prefix, part in self.named_modules() if isinstance(part, Model)
        )  # a net may be one
        return now or frozenset(f"{prefix}.{name}".lstrip(".") for prefix, part in models for name in part._trainable)

    def for_inference(self) -> Model:
        """The model itself, in evaluation mode, with no gradients of its parameters.

        A `State` made from it trains those that required gradients before.
        """
        self._trainable = self.trainable
        return self.requires_grad_(False).eval()

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        """The raw prediction of the target at x_t, `(B, *event)`."""
        if self.size is not None:
            x = x / like(self.size(self.path.coeffs(t)), x)
        return self.net(x, t, t if s is None else s, cond)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    def start(self, x0: Tensor) -> Tensor:
        """Where sampling starts: sigma x0 at the first time, on the model's device."""
        return self.path.mark(self.span[0]).sigma * x0.to(self.device)

    def velocity(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The velocity dx/dt at x_t: a Field."""
        return self._as(targets.velocity, x, t, cond)

    def average(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        """The average velocity from t to s of a model that learned it, x_s = x_t + (s - t) u(x_t, t, s): a FlowMap.

        Raises:
            InputError: of another target than the velocity.
        """
        if self.target is not targets.velocity:
            raise InputError(f"a flow map needs the target velocity, not {self.target.__name__}")
        return self(x, t, s, cond)

    def score(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The score grad log p_t(x), for a Gaussian source and independent pairs."""
        return self._as(targets.score, x, t, cond)

    def ends(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Pair:
        """The expected source and data ends given x_t."""
        return targets.ends(self(x, t, t, cond), x, self.path.coeffs(like(t, x)), self.target)

    def _as(self, target: Target, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        y = self(x, t, t, cond)
        return y if target is self.target else targets.convert(y, x, self.path.coeffs(like(t, x)), self.target, target)
