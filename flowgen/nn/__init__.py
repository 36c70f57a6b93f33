"""Networks with the one signature `net(x, t, s, cond)`."""

from flowgen.nn.classifier import Classifier, fit_classifier
from flowgen.nn.mlp import MLP, TimeFeatures
from flowgen.nn.seeded import seeded

__all__ = ["MLP", "Classifier", "TimeFeatures", "fit_classifier", "seeded"]
