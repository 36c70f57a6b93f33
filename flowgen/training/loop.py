"""Training: the state that a step changes, and the training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from flowgen.core import Failure, InputError, Pair, Part, generator, note, whole
from flowgen.data.epochs import endless
from flowgen.model import Model, check_model
from flowgen.nn import seeded
from flowgen.objectives import Objective, Splittable, StepwiseObjective
from flowgen.training.distributed import ALONE, Processes
from flowgen.training.ema import Buffers, average, exponent
from flowgen.training.optim import AdamW, Rate

__all__ = ["Diverged", "State", "channels_last", "compile_net", "fit"]


class Diverged(Failure):
    """A loss or gradient was NaN or infinite; the weights are those of the last good step."""


@final
class State:
    """A model, moving averages of its weights, its optimizer, and the number of steps done.

    Args:
        model: where training starts; it is copied, so that a student can start from a teacher and leave it as it is.
            Parameters that are frozen (`requires_grad=False`) stay so: they are not trained, decayed or averaged, and
            modules of frozen parameters alone keep their training or evaluation mode.
        lr: learning rate of AdamW, where `fit` is given no other.
        weight_decay: weight decay of AdamW.
        ema: width of the weight average, relative to the steps done; see `flowgen.training.ema.average`. Several widths
            make several averages, whose first is `ema`.

    Attributes:
        model: the model that is trained.
        ema: the same model with the averaged weights: the one to sample from.
        averages: width to averaged model, for all widths.

    Raises:
        InputError: for widths that no average has, or the same one twice; for a model without parameters to train, or
            one that cannot be copied.
    """

    def __init__(
        self, model: Model, lr: float = 1e-3, weight_decay: float = 0.0, ema: float | Sequence[float] = 0.05
    ) -> None:
        check_model(model)
        widths = list(ema) if isinstance(ema, Sequence) else [ema]
        if not widths or len(set(widths)) < len(widths):
            raise InputError(f"the widths of the weight averages must be different, and at least one, not {ema}")
        for width in widths:
            exponent(width)
        self.model = model.to_train()
        self.averages = {width: deepcopy(self.model).for_inference() for width in widths}
        self.ema, self.step = self.averages[widths[0]], 0
        self._trained = [name for name, p in self.model.named_parameters() if p.requires_grad]
        self._frozen = [p for p in self.model.parameters() if not p.requires_grad]
        self.parameters = _named(self.model, self._trained)
        self.optimizer = AdamW(self.parameters, lr, weight_decay)
        self._averaged = {width: _named(copy, self._trained) for width, copy in self.averages.items()}
        self._buffers = Buffers(self.model.net, [copy.net for copy in self.averages.values()])

    def average(self) -> None:
        """Move the averages towards the weights, and copy the network's buffers, which are not averaged."""
        for width, averaged in self._averaged.items():
            average(averaged, self.parameters, self.step, width)
        self._buffers.copy()

    def check_frozen(self) -> None:
        """Refuse, with InputError, a gradient of a parameter that was frozen when the state was made."""
        if any(p.grad is not None for p in self._frozen):
            raise InputError(
                "a parameter was frozen when the State was made, and is not now: make a State of the model"
            )

    def tensors(self) -> dict[str, Tensor]:
        """Return everything as named tensors, for a checkpoint."""
        models = {f"{prefix}{name}": x for prefix, m in self._models().items() for name, x in m.state_dict().items()}
        return {**models, **self._moments(), "step": torch.tensor(self.step)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that gave `tensors`.

        Raises:
            InputError: if the tensors are of another model.
        """
        try:
            for prefix, model in self._models().items():
                model.load_state_dict(_part(tensors, prefix))
            moments = self._moments()
            if other := moments.keys() ^ {name for name in tensors if name.startswith("optimizer.")}:
                raise KeyError(f"{min(other)}: other parameters were trained")
            for name, x in moments.items():
                x.copy_(tensors[name])
            self.step = int(tensors["step"])
        except (RuntimeError, KeyError) as error:
            raise InputError(f"these tensors are of another model: {error}") from error

    def _moments(self) -> dict[str, Tensor]:
        """Return what the optimizer stores for each trained parameter, by its place among all parameters of the
        model.
        """
        places = [place for place, (name, _) in enumerate(self.model.named_parameters()) if name in self._trained]
        moments = zip(places, self.optimizer.moments, strict=True)
        return {f"optimizer.{place}.{name}": x for place, m in moments for name, x in m._asdict().items()}

    def _models(self) -> dict[str, Model]:
        """Map the prefix of the names of its tensors to each model: the trained one, the first average, and the
        others.
        """
        others = {f"ema-{width}.": copy for width, copy in self.averages.items() if copy is not self.ema}
        return {"model.": self.model, "ema.": self.ema, **others}


def _named(model: Model, names: Sequence[str]) -> list[Tensor]:
    """Return the parameters of these names."""
    parameters = dict(model.named_parameters())
    return [parameters[name] for name in names]


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, under the rest of their names."""
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def compile_net(state: State, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the network that is trained, in place, at its first step; the names of its tensors stay as they are.

    Args:
        backend: that of `torch.compile`.
    """
    state.model.net.compile(backend=backend)


def channels_last(model: Model) -> Model:
    """Store the weights of the model's two-dimensional convolutions channels last; return the model itself.

    A layout and not a change of numbers; convolutions in half precision are faster in it. A `State` made from the model
    keeps it.
    """
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def fit(
    state: State,
    pairs: Iterable[Pair],
    objective: Objective | StepwiseObjective,
    steps: int,
    *,
    seed: int,
    clip: float = math.inf,
    accumulate: int = 1,
    precision: torch.dtype | None = None,
    rate: Rate | None = None,
    processes: Processes = ALONE,
) -> Iterator[float]:
    """Train until `state.step` is `steps`, and yield the mean loss of each batch once the weights have moved.

    Logging, previews and stopping early are the caller's: the loop can be left at any time. The draws of the objective
    at step k are a function of (seed, k), so a loop on a restored state and on `batches(..., start=state.step)` goes on
    as if it had never stopped.

    A batch may be split, by `accumulate` into gradients that are computed one after another, and among `processes`. The
    objective's draws are then made for the whole batch and divided with its rows, so that losses and weights are, but
    for rounding, those of one process that takes the batch at once.

    Args:
        pairs: coupled pairs in model units, see `flowgen.pairs.batches`: this process's part of each batch, of as
            many rows as every other's. What can be read again, such as a list or a DataLoader, is read epoch after
            epoch. Their ends are cast to float32 or float64 as the weights are.
        objective: what is minimised; a `Splittable` one, if a batch is to be split.
        clip: the norm to which longer gradients are cut.
        accumulate: the number of gradients that make a step.
        precision: torch.bfloat16 for matrix products and convolutions in that type; weights, times and losses stay as
            they are.
        rate: the learning rate of each step, see `flowgen.training.optim`; else that of the state.
        processes: those that train together, each with a state of the same weights.

    Raises:
        InputError: for options that do not go together, parts of unlike size, pairs that end before the last step,
            shapes that do not go together, or labels that the net does not know.
        Diverged: before the weights move, if the loss or the gradient's norm is not finite.
        Failure: if another process has died or does not answer.
    """
    _check_arguments(state, objective, steps, clip, rate)
    gradient = _Gradient(state.model, objective, accumulate, precision, processes)
    _check_same(state, processes)
    stream, first = endless(pairs), True
    while state.step < steps:
        pair = state.model.admit_pair(next(stream), wait=first)
        if first:
            _tell_one_based(state.model, pair.cond)
            first = False
        state.optimizer.zero_grad()
        loss = gradient(state, pair, generator(seed, "objective", state.step))
        state.check_frozen()
        grads = [p.grad for p in state.parameters if p.grad is not None]
        if not grads:
            raise InputError("the loss does not depend on any parameter of the model that is trained")
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        value, length = torch.stack([loss.detach(), norm]).tolist()  # a GPU is waited for once
        if not (math.isfinite(value) and math.isfinite(length)):
            raise Diverged(f"step {state.step + 1}: the loss is {value}, the gradient norm {length}")
        if length > clip:
            torch.nn.utils.clip_grads_with_norm_(state.parameters, clip, norm)
        state.optimizer.step(None if rate is None else rate(state.step))
        state.step += 1
        state.average()
        yield value


def _check_arguments(state: object, objective: object, steps: object, clip: object, rate: object) -> None:
    """Refuse arguments of `fit` of the wrong type or value.

    Raises:
        InputError: for arguments of `fit` of another kind.
    """
    if not isinstance(state, State):
        raise InputError(f"fit trains a State(model), not a {type(state).__name__}")
    if isinstance(objective, type) or not (callable(objective) or isinstance(objective, StepwiseObjective)):
        given = f"the class {objective.__name__}" if isinstance(objective, type) else repr(objective)
        raise InputError(f"an objective is an object such as FlowMatching(), not {given}")
    whole("steps", steps, 0)
    if not (isinstance(clip, int | float) and clip > 0):
        raise InputError(f"clip must be a positive number, not {clip!r}")
    if rate is not None and (isinstance(rate, type) or not callable(rate)):
        raise InputError(f"rate must be a function of the step, such as optim.ConstantRate(1e-3), not {rate!r}")


def _tell_one_based(model: Model, cond: Tensor | None) -> None:
    """Report a first batch whose labels seem to count from 1: the net reads the last of them as no label."""
    classes = getattr(model.net, "classes", 0)
    if not isinstance(classes, int) or not classes or cond is None or not cond.numel():
        return
    # labels that a user drops look the same, but for the label 0: that is why this is no error
    if torch.stack(torch.aminmax(cond)).tolist() == [1, classes]:
        note(
            f"the labels of the first batch run from 1 to {classes}, and to a net of {classes} classes {classes} means "
            "no label: labels count from 0"
        )


class _Gradient:
    """Computes the mean loss of a whole batch, and leaves its gradient at the weights; the same at all processes."""

    def __init__(
        self,
        model: Model,
        objective: Objective | StepwiseObjective,
        accumulate: int,
        precision: torch.dtype | None,
        processes: Processes,
    ) -> None:
        whole("accumulate", accumulate)
        if precision not in (None, torch.bfloat16):
            raise InputError(f"precision must be torch.bfloat16 or None, not {precision}")
        self.objective_at = objective.at if isinstance(objective, StepwiseObjective) else lambda step: objective
        self.accumulate, self.precision, self.processes = accumulate, precision, processes
        self.drops = _drops(model)
        self.special = self.drops or precision is not None
        self.split = accumulate > 1 or processes.part.of > 1
        if self.split and not isinstance(self.objective_at(0), Splittable):
            raise InputError("to split a batch, its objective needs methods draw and loss: objectives.Splittable")

    def __call__(self, state: State, pair: Pair, draws: torch.Generator) -> Tensor:
        objective = self.objective_at(state.step)
        if self.split and isinstance(objective, Splittable):
            loss = self._share(objective, state.model, pair, draws)
            _add_up(state.parameters, loss, len(pair.x1), self.processes)
            return loss
        with self._forward(pair, draws, 0) if self.special else nullcontext():
            losses = objective(state.model, pair, draws)
            loss = (losses if losses.ndim == 0 else _each(losses, len(pair.x1))).mean()
        _differentiable(loss).backward()
        return loss

    def _share(self, objective: Splittable, model: Model, pair: Pair, draws: torch.Generator) -> Tensor:
        """Return what these rows add to the mean loss of the whole batch, and to its gradient."""
        rows, part = len(pair.x1), self.processes.part
        if rows < self.accumulate:
            raise InputError(f"{rows} rows cannot be split into accumulate = {self.accumulate}")
        whole = rows * part.of
        drawn = _rows(objective.draw((whole, *pair.x1.shape[1:]), draws), part.rows(whole))
        total = torch.zeros((), device=pair.x1.device)
        for index in range(self.accumulate):
            some = Part(index, self.accumulate).rows(rows)
            with self._forward(pair, draws, part.index * self.accumulate + index):
                losses = objective.loss(model, pair.take(some), _rows(drawn, some))
                loss = _each(losses, some.stop - some.start).sum() / whole
            _differentiable(loss).backward()
            total = total + loss.detach()
        return total

    @contextmanager
    def _forward(self, pair: Pair, draws: torch.Generator, index: int) -> Iterator[None]:
        """Set the context in which the losses of a part of a batch are computed."""
        device = pair.x1.device
        with ExitStack() as stack:
            if self.precision is not None:
                # some versions of PyTorch keep a weight's copy that was made without gradient, and use it where one is
                # needed
                stack.enter_context(torch.autocast(device.type, self.precision, cache_enabled=False))
            if self.drops:  # by PyTorch's global generator, which has a seed for each step and part here
                stack.enter_context(seeded(generator(draws.initial_seed(), "dropout", index).initial_seed(), device))
            yield


def _each(losses: Tensor, rows: int) -> Tensor:
    """Return the losses, after checking that there is one for each row.

    Raises:
        InputError: for another shape.
    """
    if losses.shape != (rows,):
        raise InputError(f"an objective must return one loss for each row, ({rows},), not {tuple(losses.shape)}")
    return losses


def _differentiable(loss: Tensor) -> Tensor:
    """Return the loss, after checking that it has a gradient.

    Raises:
        InputError: if it has no gradient.
    """
    if not loss.requires_grad:
        why = "it is computed under no_grad or inference_mode" if not torch.is_grad_enabled() else "or none is trained"
        raise InputError(f"the loss does not depend on the parameters of the model, {why}")
    return loss


def _drops(model: Model) -> bool:
    """Return whether layers of the model drop values at random."""
    return any(isinstance(layer, _DropoutNd) and layer.p > 0 for layer in model.modules())


def _rows(drawn: Any, rows: slice) -> Any:
    """Return some rows of what an objective has drawn, a NamedTuple of tensors or None."""
    return drawn._make(None if x is None else x[rows] for x in drawn)


@torch.no_grad()
def _add_up(weights: Sequence[Tensor], loss: Tensor, rows: int, processes: Processes) -> None:
    """Add up the losses and gradients of all processes, in place.

    A weight that has a gradient at any of them then has one at all.

    Raises:
        InputError: at all processes, if they have different numbers of rows.
    """
    if processes.part.of == 1:
        return
    counts, used = loss.new_zeros(processes.part.of), loss.new_tensor([float(w.grad is not None) for w in weights])
    counts[processes.part.index] = rows
    gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    processes.sum([loss, counts, used, *gradients])
    if (counts != rows).any():
        raise InputError(f"the parts of a batch must be equal: the processes have {counts.int().tolist()} rows")
    for weight, gradient, uses in zip(weights, gradients, used.tolist(), strict=True):
        weight.grad = gradient if uses else None


def _check_same(state: State, processes: Processes) -> None:
    """Refuse, with InputError at all processes, where one of them has other weights, or has done other steps."""
    if processes.part.of == 1:
        return
    mine = [torch.tensor(state.step), torch.cat([w.detach().reshape(-1) for w in state.model.parameters()])]
    first = [x.clone() for x in mine]
    for x in first:
        processes.broadcast([x])
    if processes.any(not all(map(torch.equal, mine, first))):
        raise InputError("processes that train together must start at the same step from the same weights")
