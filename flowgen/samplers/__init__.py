"""Samplers of diffusion models, as solvers: they read the ends that a velocity field expects, and step between them.

Each holds the path of its field, and takes any: a level of noise is sigma / alpha, whatever the path. All of them land:
they step along a grid that ends at t = 1 and never evaluate the velocity there: a step to sigma = 0 is to the expected
data.
"""

from flowgen.samplers.ddim import DDIM, Ancestral
from flowgen.samplers.edm import EDMSampler
from flowgen.samplers.langevin import Langevin, PredictorCorrector
from flowgen.samplers.multistep import DPMSolverPP, UniPC
from flowgen.samplers.noise import Random

__all__ = ["DDIM", "Ancestral", "DPMSolverPP", "EDMSampler", "Langevin", "PredictorCorrector", "Random", "UniPC"]
