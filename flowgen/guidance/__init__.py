"""Guidance: velocity fields made of velocity fields, classifiers and measurements; edits of data with them."""

from flowgen.guidance.classifier import ClassifierGuided, LogProb
from flowgen.guidance.classifier_free import AutoGuided, Guided, Rescale
from flowgen.guidance.inversion import from_time, inverted, noised, slerp
from flowgen.guidance.measurements import Downsampled, Grey, Mask, Measurement, framed, project
from flowgen.guidance.pigdm import PiGDM, Spread, unit_variance
from flowgen.guidance.repaint import RePaint, resampled

__all__ = [
    "AutoGuided",
    "ClassifierGuided",
    "Downsampled",
    "Grey",
    "Guided",
    "LogProb",
    "Mask",
    "Measurement",
    "PiGDM",
    "RePaint",
    "Rescale",
    "Spread",
    "framed",
    "from_time",
    "inverted",
    "noised",
    "project",
    "resampled",
    "slerp",
    "unit_variance",
]
