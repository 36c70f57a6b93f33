"""A network with its path and prediction, read as a velocity."""

from __future__ import annotations

import inspect
from copy import deepcopy
from itertools import chain
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from flowgen import predictions
from flowgen.core import InputError, Pair, check_labels, expand_time, like, numbers, row_labels, shaped
from flowgen.data.scaling import Scaling
from flowgen.predictions import PREDICTIONS, Prediction
from flowgen.schedules import SCHEDULES, Schedule

__all__ = ["Model", "check_model"]

Times = Tensor | float
"""One time a row `(B,)`, or one for all."""


@final
class Model(nn.Module):
    """net + path + prediction -> velocity field.

    Args:
        net: a module `net(x, t, s, cond)`, x `(B, *shape)`, t and s `(B,)`, to a prediction `(B, *shape)`. A velocity
            network is called with s = t and may ignore s; a flow map reads both.
        schedule: joins source and data; an object of `flowgen.schedules` or its name, `Linear` by default.
        prediction: what the net predicts: a row of `flowgen.predictions` or its name.
        start: the first time; 0, but for a path whose first noise the net has not seen.
        scaling: takes data into the model's units; copied, kept with the weights, undone on samples.

    Attributes:
        span: the times (lo, hi) where the velocity is defined, see `flowgen.predictions.span`.
        size: by what x_t is divided before the net sees it, see `flowgen.predictions.size`.

    Where a time is asked for, one number stands for the time of all rows.

    Raises:
        InputError: where the prediction is singular at the start of the path; for a net that cannot be called so.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule | str | None = None,
        prediction: Prediction | str = predictions.velocity,
        scaling: Scaling | None = None,
        start: float = 0.0,
    ) -> None:
        super().__init__()
        _check_call(net)
        self.net, self.schedule, self.prediction = (
            net,
            SCHEDULES("linear" if schedule is None else schedule),
            PREDICTIONS(prediction),
        )
        self.scaling = deepcopy(scaling) if scaling else Scaling()  # the caller's stays with the data, off the device
        self.span = predictions.span(self.schedule, self.prediction, start)
        self.size = predictions.size(self.schedule, self.prediction)
        self._trainable: frozenset[str] = frozenset()  # before `for_inference`

    @property
    def trainable(self) -> frozenset[str]:
        """Return the names of the parameters that training moves: those that require gradients, or did so before
        `for_inference`.
        """
        now = frozenset(name for name, p in self.named_parameters() if p.requires_grad)
        models = (
            (prefix, part) for prefix, part in self.named_modules() if isinstance(part, Model)
        )  # a net may be one
        return now or frozenset(f"{prefix}.{name}".lstrip(".") for prefix, part in models for name in part._trainable)

    def for_inference(self) -> Model:
        """Return the model itself, in evaluation mode, with no gradients of its parameters.

        A `State` made from it trains those that required gradients before.
        """
        self._trainable = self.trainable
        return self.requires_grad_(False).eval()

    def to_train(self) -> Model:
        """Return a copy in training mode, whose `trainable` parameters alone require gradients.

        Modules of frozen parameters alone keep their mode.

        Raises:
            InputError: if there is nothing to train, or a module cannot be copied.
        """
        trainable = self.trainable
        if not trainable:
            frozen = "all are frozen: requires_grad_(True) unfreezes them" if list(self.parameters()) else "it has none"
            raise InputError(f"the model has no parameter to train: {frozen}")
        for name, parameter in self.named_parameters():
            if is_lazy(parameter):
                raise InputError(f"parameter {name} has no shape yet: call the net once before a State is made of it")
        copied = _copied(self)
        for name, parameter in copied.named_parameters():
            parameter.requires_grad_(name in trainable)
        modes = {part: part.training for frozen in copied.modules() if _frozen(frozen) for part in frozen.modules()}
        copied.train()
        for part, mode in modes.items():
            part.training = mode
        return copied

    def forward(self, x: Tensor, t: Times, s: Times | None = None, cond: Tensor | None = None) -> Tensor:
        """Return the raw prediction at x_t, `(B, *shape)`.

        Raises:
            InputError: if the net gives another shape, or the condition has other rows than x.
        """
        return shaped(self.raw(x, t, s, cond), x, "the net")

    def raw(self, x: Tensor, t: Times, s: Times | None = None, cond: Tensor | None = None) -> Tensor:
        """Return what the net gives for x_t, of any shape: that of a classifier is no end of a path."""
        if cond is not None and cond.shape[:1] != x.shape[:1]:
            raise InputError(f"{len(x)} rows need a condition for each, not one of shape {tuple(cond.shape)}")
        t = expand_time(t, x)
        if self.size is not None:
            x = x / like(self.size(self.schedule.coeffs(t)), x)
        try:
            return self.net(x, t, t if s is None else expand_time(s, x), cond)
        except RuntimeError as error:
            if self.dtype in (None, x.dtype) or "type" not in str(error):
                raise
            raise InputError(f"the net computes with {self.dtype}, and x is {x.dtype}: cast x ({error})") from error

    @property
    def device(self) -> torch.device:
        """Return where the weights are; of a net without any, its buffers, or the scaling."""
        return next(chain(self.net.parameters(), self.net.buffers(), self.scaling.buffers())).device

    @property
    def dtype(self) -> torch.dtype | None:
        """Return the type of the first floating-point parameter of the net; None where it has none."""
        return next((p.dtype for p in self.net.parameters() if p.is_floating_point()), None)

    def admit(self, x: Tensor) -> Tensor:
        """Return data in model units on the device of the model, as numbers that its net computes with."""
        return numbers(x, self.dtype).to(self.device)

    def admit_pair(self, pair: Pair, wait: bool = True) -> Pair:
        """Return a pair on the device of the model, as numbers that its net computes with.

        Args:
            wait: whether to look at labels that are on a GPU, which is then waited for.

        Raises:
            InputError: for ends or conditions whose shapes do not go together, or labels that the net does not know.
        """
        if not isinstance(pair, Pair):
            raise InputError(
                f"training reads batches that are a Pair(x0, x1, cond), not {type(pair).__name__}: "
                "loader_pairs makes them of a loader's"
            )
        x0, x1, cond = pair.checked()
        if cond is not None:
            self.check_labels(cond, wait)
        device, dtype = self.device, self.dtype
        x0, x1 = (numbers(x, dtype).to(device) for x in (x0, x1))
        return Pair(x0, x1, None if cond is None else self.admit_cond(cond))

    def admit_cond(self, cond: Tensor) -> Tensor:
        """Return conditions on the device of the model: labels as they are, and floats as `admit` has them."""
        return self.admit(cond) if cond.is_floating_point() else cond.to(self.device)

    def check_labels(self, cond: Tensor, wait: bool = True) -> None:
        """Refuse, with InputError, labels that a net with `classes` labels, and one for none, does not know.

        Args:
            wait: whether to look at labels that are on a GPU, which is then waited for.
        """
        classes = getattr(self.net, "classes", 0)
        if isinstance(classes, int) and classes and (wait or cond.device.type == "cpu"):
            check_labels(row_labels(cond, len(cond)), classes)

    def start(self, x0: Tensor) -> Tensor:
        """Return where sampling starts: sigma x0 at the first time, on the model's device."""
        return self.schedule.mark(self.span[0]).sigma * x0.to(self.device)

    def velocity(self, x: Tensor, t: Times, cond: Tensor | None = None) -> Tensor:
        """Return the velocity dx/dt at x_t: a Field."""
        return self._as(predictions.velocity, x, t, cond)

    def average(self, x: Tensor, t: Times, s: Times, cond: Tensor | None = None) -> Tensor:
        """Return the average velocity from t to s of a model that learned it, x_s = x_t + (s - t) u(x_t, t, s): a
        FlowMap.

        Raises:
            InputError: of another prediction than the velocity.
        """
        if self.prediction is not predictions.velocity:
            raise InputError(f"a flow map needs the prediction velocity, not {self.prediction.__name__}")
        return self(x, t, s, cond)

    def score(self, x: Tensor, t: Times, cond: Tensor | None = None) -> Tensor:
        """Return the score grad log p_t(x), for a Gaussian source and independent pairs."""
        return self._as(predictions.score, x, t, cond)

    def ends(self, x: Tensor, t: Times, cond: Tensor | None = None) -> Pair:
        """Return the expected source and data ends given x_t."""
        t = expand_time(t, x)
        return predictions.ends(self(x, t, t, cond), x, self.schedule.coeffs(like(t, x)), self.prediction)

    def _as(self, prediction: Prediction, x: Tensor, t: Times, cond: Tensor | None) -> Tensor:
        t = expand_time(t, x)
        y = self(x, t, t, cond)
        return (
            y
            if prediction is self.prediction
            else predictions.convert(y, x, self.schedule.coeffs(like(t, x)), self.prediction, prediction)
        )


def _frozen(module: nn.Module) -> bool:
    """Return whether a module has parameters, and all of them are frozen."""
    flags = [p.requires_grad for p in module.parameters()]
    return bool(flags) and not any(flags)


def _copied(model: Model) -> Model:
    """Return a copy of a module.

    Raises:
        InputError: for a module that cannot be copied; the message names it.
    """
    if any(x.is_inference() for x in chain(model.parameters(), model.buffers())):
        raise InputError("the model was made under torch.inference_mode, and cannot be trained: make it outside")
    try:
        return deepcopy(model)
    except Exception as error:  # whatever a module's attributes raise
        raise InputError(f"a State needs a copy of the net, and {_uncopied(model)} has none: {error}") from error


def _uncopied(model: Model) -> str:
    """Return the innermost module that cannot be copied."""
    for name, part in reversed(list(model.named_modules())):  # parts come after what they are part of
        try:
            deepcopy(part)
        except Exception:
            return f"module {name} ({type(part).__name__})" if name else "the model"
    return "the model"


def check_model(given: object) -> None:
    """Refuse, with InputError, what is not a model, such as its net or a State of it."""
    if not isinstance(given, Model):
        kind = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
        raise InputError(f"expected a flowgen.Model, not {kind}: Model(net) makes one of a net, state.ema is a State's")


def _check_call(net: nn.Module) -> None:
    """Refuse what is not a module, or does not take the four arguments that a net is called with.

    Raises:
        InputError: for what is no module, or does not take the four arguments that a net is called with.
    """
    if not isinstance(net, nn.Module):
        what = f"the class {net.__name__}" if isinstance(net, type) else f"of type {type(net).__name__}"
        raise InputError(f"the net is {what}: give an object of a torch.nn.Module")
    try:
        signature = inspect.signature(net.forward)
    except (TypeError, ValueError):  # of compiled code: it is seen when it is called
        return
    try:
        signature.bind("x", "t", "s", "cond")
    except TypeError as error:
        name = type(net).__name__
        raise InputError(
            f"a net is called with net(x, t, s, cond), but {name}.forward is {signature}: {error}"
        ) from None
