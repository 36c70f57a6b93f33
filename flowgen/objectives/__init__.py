"""Objectives: what training minimises."""

from flowgen.objectives.flow_matching import BridgeNoise, FlowMatching, Objective, Splittable, StepwiseObjective

__all__ = ["BridgeNoise", "FlowMatching", "Objective", "Splittable", "StepwiseObjective"]
