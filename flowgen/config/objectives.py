"""Objectives by name: how each is made for a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field as Bounds

from flowgen import objectives, times
from flowgen.config.fields import default
from flowgen.core import Field, FlowMap
from flowgen.losses import Loss
from flowgen.objectives import Objective, StepwiseObjective, flow_maps
from flowgen.paths.bridge import Bridge
from flowgen.registry import Objects
from flowgen.times import TimeDistribution
from flowgen.weightings import Weight

__all__ = ["OBJECTIVES", "ObjectiveConfig", "Parts", "Teaching"]

Share = Annotated[float, Bounds(ge=0, le=1)]
Positive = Annotated[float, Bounds(gt=0, le=1)]


class Teaching(NamedTuple):
    """What a run learns from another: its velocity, and its jumps from one time to another."""

    velocity: Field
    jump: FlowMap


class Parts(NamedTuple):
    """The parts that objectives are built from.

    steps: of the whole training.
    null: the label that says that there is none.
    teaching: of the run that is distilled, if one is.
    """

    times: TimeDistribution
    bridge: Bridge | None
    loss: Loss
    weight: Weight
    steps: int
    null: int
    teaching: Teaching | None = None

    def velocity(self, guidance: float = 1.0) -> flow_maps.Velocity:
        """Return the teacher's velocity, which is guided already, or that of the pairs."""
        return flow_maps.OfTeacher(self.teaching.velocity) if self.teaching else flow_maps.OfPairs(guidance, self.null)


class ObjectiveConfig(ABC):
    """The kind of model that an objective trains.

    maps: whether that is a flow map, sampled by jumps.
    fields: whether it is a velocity, too.
    differentiates: whether it needs the derivative of the net along a direction.
    pairs: whether it learns from the pairs of another run alone.
    taught: whether it learns from the jumps of another run alone.
    anneals: whether it changes as training goes on, so that its steps are fixed from the start.
    to_data: whether it jumps to the data alone, and from there by noise that is drawn anew.
    jumps: the number of them for a sample, where nothing else is asked for.
    fixed: whether it can make no other number of them.
    """

    maps: ClassVar[bool] = True
    fields: ClassVar[bool] = True
    differentiates: ClassVar[bool] = False
    pairs: ClassVar[bool] = False
    taught: ClassVar[bool] = False
    anneals: ClassVar[bool] = False
    to_data: ClassVar[bool] = False
    fixed: ClassVar[bool] = False
    jumps: int = 1
    guidance: float = 1.0

    @abstractmethod
    def build(self, parts: Parts) -> Objective | StepwiseObjective:
        """Return the objective of these parts."""


@dataclass(frozen=True)
class FlowMatchingConfig(ObjectiveConfig):
    """A velocity."""

    maps: ClassVar[bool] = False

    def build(self, parts: Parts) -> Objective:
        return objectives.FlowMatching(parts.times, parts.bridge, parts.loss, parts.weight)


@dataclass(frozen=True)
class _Between(ObjectiveConfig):
    """A flow map between any two times, a share of which are the same."""

    diagonal: Share = default(times.Intervals, "diagonal")
    guidance: float = default(flow_maps.OfPairs, "guidance")

    def intervals(self, parts: Parts) -> times.Intervals:
        return times.Intervals(parts.times, self.diagonal)


@dataclass(frozen=True)
class MeanFlowConfig(_Between):
    """A flow map by its derivative: `flowmaps.MeanFlow`."""

    differentiates: ClassVar[bool] = True

    def build(self, parts: Parts) -> Objective:
        return flow_maps.MeanFlow(self.intervals(parts), parts.velocity(self.guidance), parts.loss)


@dataclass(frozen=True)
class ShortcutConfig(_Between):
    """A flow map by its halves: `flowmaps.Shortcut`."""

    def build(self, parts: Parts) -> Objective:
        return flow_maps.Shortcut(self.intervals(parts), parts.velocity(self.guidance), parts.loss)


@dataclass(frozen=True)
class AlphaFlowConfig(_Between):
    """A flow map by a first share of the interval that falls during training: `flowmaps.AlphaFlow`."""

    anneals: ClassVar[bool] = True
    last: Positive = default(flow_maps.Annealed, "last")

    def build(self, parts: Parts) -> StepwiseObjective:
        made = flow_maps.AlphaFlow(self.intervals(parts), parts.velocity(self.guidance), parts.loss)
        return flow_maps.Annealed(made, parts.steps, self.last)


@dataclass(frozen=True)
class ConsistencyConfig(ObjectiveConfig):
    """A flow map to the data alone, by a first step that falls during training: `flowmaps.AlphaFlow`."""

    fields: ClassVar[bool] = False
    anneals: ClassVar[bool] = True
    to_data: ClassVar[bool] = True
    last: Positive = 2.0**-3

    def build(self, parts: Parts) -> StepwiseObjective:
        made = flow_maps.AlphaFlow(times.ToData(parts.times), parts.velocity(), parts.loss, absolute=True)
        return flow_maps.Annealed(made, parts.steps, self.last)


@dataclass(frozen=True)
class EndPointConfig(ObjectiveConfig):
    """The ends of the pairs of a reflow: `flowmaps.EndPoint`."""

    fields: ClassVar[bool] = False
    pairs: ClassVar[bool] = True
    fixed: ClassVar[bool] = True

    def build(self, parts: Parts) -> Objective:
        return flow_maps.EndPoint(parts.loss)


@dataclass(frozen=True)
class ProgressiveConfig(ObjectiveConfig):
    """Jumps along an even grid, each taught by two of a teacher: `flowmaps.Shortcut` with its halves."""

    fields: ClassVar[bool] = False
    taught: ClassVar[bool] = True
    fixed: ClassVar[bool] = True
    jumps: Annotated[int, Bounds(ge=1, le=1024)] = 1

    def build(self, parts: Parts) -> Objective:
        assert parts.teaching is not None, "make_config has seen to it"
        return flow_maps.Shortcut(times.Steps(self.jumps), distance=parts.loss, halves=parts.teaching.jump)


OBJECTIVES: Objects[type[ObjectiveConfig]] = Objects("objective")
