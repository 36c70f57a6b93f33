"""The quality of a trained run, compared with data that it never saw.

A subject is a run with what it is compared with and in what view: rows, or features of them. It is measured beside the
floor, true data beside other true data, and every figure has a confidence interval over repeats. `rounds` measures a
reflow beside its parent. `pairing` measures the cost and the distances of couplings, before there is a run.
"""

from flowgen.evaluation.copying import NearestTraining, suspects
from flowgen.evaluation.measure import Estimate, Quality, Settings, geometry, kl_divergence, quality, real_vs_real
from flowgen.evaluation.report import SHARES, TITLES, Evaluation, curves
from flowgen.evaluation.rounds import Figures, Round, measure_round
from flowgen.evaluation.subject import FEATURES, EvaluatedModel, Reference, Sound, load_sound, load_subject, subject_of
from flowgen.evaluation.views import FeatureExtractor
from flowgen.metrics.distances import EXACT

__all__ = [
    "EXACT",
    "FEATURES",
    "SHARES",
    "TITLES",
    "Estimate",
    "EvaluatedModel",
    "Evaluation",
    "FeatureExtractor",
    "Figures",
    "NearestTraining",
    "Quality",
    "Reference",
    "Round",
    "Settings",
    "Sound",
    "curves",
    "geometry",
    "kl_divergence",
    "load_sound",
    "load_subject",
    "measure_round",
    "quality",
    "real_vs_real",
    "subject_of",
    "suspects",
]
