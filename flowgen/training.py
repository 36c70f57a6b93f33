"""Training: the state that a step changes, and the loop that steps it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import final

import torch
from torch import Tensor

from flowgen.core import Failure, InputError, Pair, generator
from flowgen.ema import average
from flowgen.model import Model
from flowgen.objectives import Objective

__all__ = ["Diverged", "State", "fit"]


class Diverged(Failure):
    """A loss or gradient was NaN or infinite; the weights are those of the last good step."""


@final
class State:
    """A model, the moving average of its weights, its optimizer, and the number of steps done.

    Args:
        model: where training starts; it is copied, so that a student can start from a teacher and leave it as it is.
        lr: learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        ema: width of the weight average, relative to the steps done; see `flowgen.ema.average`.

    Attributes:
        model: the model that is trained.
        ema: the same model with the averaged weights: the one to sample from.
    """

    def __init__(self, model: Model, lr: float = 1e-3, weight_decay: float = 0.0, ema: float = 0.05) -> None:
        self.model, self.ema = deepcopy(model).requires_grad_(True), deepcopy(model).requires_grad_(False)
        self.parameters, self.averages = list(self.model.parameters()), list(self.ema.parameters())
        self.width, self.step = ema, 0
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=weight_decay, fused=True)

    def tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors, for a checkpoint."""
        weights = {f"model.{name}": x for name, x in self.model.state_dict().items()}
        averages = {f"ema.{name}": x for name, x in self.ema.state_dict().items()}
        moments = {
            f"optimizer.{index}.{name}": x
            for index, entry in self.optimizer.state_dict()["state"].items()
            for name, x in entry.items()
        }
        return {**weights, **averages, **moments, "step": torch.tensor(self.step)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes the place of the state that gave `tensors`.

        Raises:
            InputError: if the tensors are of another model.
        """
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}, "step": {}}
        for key, x in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = x
        try:
            self.model.load_state_dict(parts["model"])
            self.ema.load_state_dict(parts["ema"])
        except RuntimeError as error:
            raise InputError(f"these weights are of another model: {error}") from error
        moments: dict[int, dict[str, Tensor]] = {}
        for key, x in parts["optimizer"].items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = x.clone()  # the optimizer would go on in x itself
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.step = int(tensors["step"])


def fit(
    state: State, pairs: Iterable[Pair], objective: Objective, steps: int, *, seed: int, clip: float = math.inf
) -> Iterator[float]:
    """Trains until `state.step` is `steps`, and yields the mean loss of each batch once the weights have moved.

    Logging, previews and stopping early are the caller's: the loop can be left at any time. The draws of the objective
    at step k are a function of (seed, k), so a loop on a restored state and on `batches(..., start=state.step)` goes on
    as if it had never stopped.

    Args:
        pairs: coupled pairs in model units; see `flowgen.couplings.batches`.
        clip: the norm to which longer gradients are cut.

    Raises:
        Diverged: before the weights move, if the loss or the gradient's norm is not finite.
    """
    device, stream = state.model.device, iter(pairs)
    while state.step < steps and (pair := next(stream, None)) is not None:
        loss = objective(state.model, pair.to(device), generator(seed, "objective", state.step)).mean()
        state.optimizer.zero_grad()
        loss.backward()
        norm = torch.stack(torch._foreach_norm([p.grad for p in state.parameters if p.grad is not None])).norm()
        value, length = loss.item(), norm.item()
        if not (math.isfinite(value) and math.isfinite(length)):
            raise Diverged(f"step {state.step + 1}: the loss is {value}, the gradient norm {length}")
        if length > clip:
            torch.nn.utils.clip_grads_with_norm_(state.parameters, clip, norm)
        state.optimizer.step()
        state.step += 1
        average(state.averages, state.parameters, state.step, state.width)
        yield value
