"""Networks with the one signature `net(x, t, s, cond)`."""

from flowgen.nn.classifier import Classifier, fit_classifier
from flowgen.nn.conditioning import Conditioning
from flowgen.nn.dit import DIT_SIZES, DiT
from flowgen.nn.mlp import MLP, TimeFeatures
from flowgen.nn.noisy import NoisyClassifier
from flowgen.nn.resmlp import ResMLP
from flowgen.nn.seeded import seeded
from flowgen.nn.unet import UNET_SIZES, UNet

__all__ = [
    "DIT_SIZES",
    "MLP",
    "UNET_SIZES",
    "Classifier",
    "Conditioning",
    "DiT",
    "NoisyClassifier",
    "ResMLP",
    "TimeFeatures",
    "UNet",
    "fit_classifier",
    "seeded",
]
