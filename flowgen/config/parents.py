"""Runs that another run learns from: by the pairs that its flow makes, or by its velocity."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flowgen.config.fields import Choice, Section
from flowgen.samplers import ode

__all__ = ["DistillConfig", "ReflowConfig", "Teacher"]


class Teacher(Section):
    """A run, the SHA-256 of its weights, and the weight at which its flow is guided."""

    parent: str
    parent_hash: str
    guidance: float = 1.0


class ReflowConfig(Teacher):
    """The pairs of a reflow: `pairs` trajectories of the parent's flow, guided or not, of which the share `inverted` is
    followed from data back to the source. They take `steps` steps of `solver`, doubled until the error of the ends is
    within `tolerance`."""

    round: int = Field(1, ge=1)
    pairs: int = Field(100_000, ge=1, le=10**8)
    inverted: float = Field(0.0, ge=0, le=1)
    steps: int = Field(50, ge=1)
    tolerance: float = Field(0.01, ge=0)
    solver: Annotated[ode.Solver, Choice("solver", ode.SOLVERS)] = ode.heun


class DistillConfig(Teacher):
    """A distillation: the parent's velocity, guided or not, teaches a flow map along the paths of its own training."""
