"""Training: the state that a step changes, and the loop that steps it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from flowgen.core import Failure, InputError, Pair, generator
from flowgen.ema import average
from flowgen.model import Model
from flowgen.objectives import Objective

__all__ = ["AdamW", "Diverged", "State", "fit"]


class Diverged(Failure):
    """A loss or gradient was NaN or infinite; the weights are those of the last good step."""


class _Moments(NamedTuple):
    """What AdamW remembers of a weight."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor


@final
class AdamW:
    """AdamW (arXiv 1711.05101) at a constant rate, by PyTorch's fused kernel.

    Bit for bit `torch.optim.AdamW(fused=True)`, whose bookkeeping takes a tenth of a small network's whole step.
    """

    def __init__(self, weights: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        self.weights, self.lr, self.weight_decay = weights, lr, weight_decay
        self.moments = [
            _Moments(torch.zeros_like(w), torch.zeros_like(w), torch.zeros((), device=w.device)) for w in weights
        ]

    def tensors(self) -> dict[str, Tensor]:
        """The moments by name; they change in place."""
        return {f"{index}.{name}": x for index, m in enumerate(self.moments) for name, x in m._asdict().items()}

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Moves the weights that have a gradient."""
        rows = [(w, w.grad, *m) for w, m in zip(self.weights, self.moments, strict=True) if w.grad is not None]
        weights, grads, averages, squares, steps = map(list, zip(*rows, strict=True))
        adamw(
            weights,
            grads,
            averages,
            squares,
            [],
            steps,
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            lr=self.lr,
            weight_decay=self.weight_decay,
        )


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
        self.optimizer = AdamW(self.parameters, lr, weight_decay)

    def tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors, for a checkpoint."""
        weights = {f"model.{name}": x for name, x in self.model.state_dict().items()}
        averages = {f"ema.{name}": x for name, x in self.ema.state_dict().items()}
        moments = {f"optimizer.{name}": x for name, x in self.optimizer.tensors().items()}
        return {**weights, **averages, **moments, "step": torch.tensor(self.step)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes the place of the state that gave `tensors`.

        Raises:
            InputError: if the tensors are of another model.
        """
        try:
            self.model.load_state_dict(_part(tensors, "model."))
            self.ema.load_state_dict(_part(tensors, "ema."))
            for name, x in self.optimizer.tensors().items():
                x.copy_(tensors[f"optimizer.{name}"])
            self.step = int(tensors["step"])
        except (RuntimeError, KeyError) as error:
            raise InputError(f"these tensors are of another model: {error}") from error


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, under the rest of their names."""
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


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
