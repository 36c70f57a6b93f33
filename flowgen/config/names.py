"""What has a name on the command line and in a configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowgen import losses, objectives, optim, paths, solvers, targets, weights
from flowgen.config.semidiscrete import SemidiscreteConfig
from flowgen.couplings import (
    ExactOT,
    Independent,
    MultiscaleOT,
    Partial,
    SchroedingerBridge,
    Sinkhorn,
    Unbalanced,
)

__all__ = ["BRIDGES", "COUPLINGS", "LOSSES", "PATHS", "SCHEDULES", "SOLVERS", "TARGETS", "TIMES", "WEIGHTS"]

PATHS: dict[str, type] = {
    "linear": paths.Linear,
    "cosine": paths.Cosine,
    "vp": paths.VP,
    "ddpm": paths.DDPM,
    "offset-cosine": paths.OffsetCosine,
    "ve": paths.VE,
}
TARGETS: dict[str, Any] = {
    "velocity": targets.velocity,
    "data": targets.data,
    "noise": targets.noise,
    "v": targets.v,
    "score": targets.score,
    "edm": targets.EDM,
}
COUPLINGS: dict[str, type] = {
    "independent": Independent,
    "multiscale": MultiscaleOT,
    "exact": ExactOT,
    "sinkhorn": Sinkhorn,
    "semidiscrete": SemidiscreteConfig,
    "unbalanced": Unbalanced,
    "partial": Partial,
    "bridge": SchroedingerBridge,
}
LOSSES: dict[str, type] = {
    "squared": losses.Squared,
    "pseudo-huber": losses.PseudoHuber,
    "adaptive": losses.Adaptive,
}
WEIGHTS: dict[str, type] = {
    "own": weights.Own,
    "simple": weights.Simple,
    "snr": weights.TruncatedSNR,
    "min-snr": weights.MinSNR,
    "sigmoid": weights.Sigmoid,
    "edm": weights.EDM,
    "likelihood": weights.Likelihood,
}
BRIDGES: dict[str, type] = {"constant": paths.Constant, "brownian": paths.Brownian}
TIMES: dict[str, type] = {
    "uniform": objectives.Uniform,
    "stratified": objectives.Stratified,
    "discrete": objectives.Discrete,
    "logit-normal": objectives.LogitNormal,
    "log-normal": objectives.LogNormal,
    "u-shaped": objectives.UShaped,
}
SOLVERS: dict[str, solvers.Solver] = {
    "euler": solvers.euler,
    "midpoint": solvers.midpoint,
    "heun": solvers.heun,
    "rk4": solvers.rk4,
    "ab2": solvers.AdamsBashforth2(),
    **{name: solvers.Adaptive(name) for name in ("dopri5", "dopri8", "bosh3")},
    "adaptive-heun": solvers.Adaptive("adaptive_heun"),
    "jump": solvers.Jump(),
}
SCHEDULES: dict[str, Callable[[float, int, int], optim.Rate]] = {
    "constant": lambda lr, steps, warmup: optim.Constant(lr, warmup),
    "cosine": lambda lr, steps, warmup: optim.Cosine(lr, steps, warmup),
}
