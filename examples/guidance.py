"""Samples of one class, led there in three ways.

    python examples/guidance.py [PICTURE.png]

Classifier-free guidance (arXiv 2207.12598) goes on from what a model says without a label beyond what it says with one.
Classifier guidance (arXiv 2105.05233) adds the gradient of any log-probability of what is wanted: here of the exact
one, which a mixture of Gaussians has at every time of a path. Autoguidance (arXiv 2406.02507) leads away from the
errors of a weaker model. Each is a field made of fields, so that they go together, and with every solver.
"""

import math
import sys
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowgen import (
    FlowMatching,
    IndependentPairs,
    Model,
    State,
    batches,
    data,
    fit,
    grids,
    heun,
    nn,
    plots,
    sampling,
    schedules,
    with_null_labels,
)
from flowgen.core import Field, generator, like
from flowgen.data import streams
from flowgen.guidance import AutoGuided, ClassifierGuided, Guided

CLASSES, RADIUS, STD, WANTED = 8, 2.0, 0.5, 2


@dataclass(frozen=True)
class Mixture:
    """log p(class | x_t) of the mixture on a path. Its components stay Gaussian, N(alpha m, alpha^2 s^2 + sigma^2)."""

    schedule: schedules.Schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        c, centres = self.schedule.coeffs(like(t, x)), means().to(x)
        square = (x.unsqueeze(1) - c.alpha.unsqueeze(2) * centres).square().sum(2)
        logits = -square / (2 * ((c.alpha * STD) ** 2 + c.sigma**2))
        return logits.log_softmax(1).gather(1, cond.unsqueeze(1)).squeeze(1)

    def right(self, x: Tensor) -> float:
        """The share of points of the class that is wanted, at the end of the path."""
        cond = torch.full((len(x),), WANTED)
        return (self(x, torch.ones(len(x)), cond) > math.log(0.5)).double().mean().item()


def means() -> Tensor:
    angle = torch.arange(CLASSES) * 2 * torch.pi / CLASSES
    return RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)


def main(steps: int = 10_000, points: int = 1000, picture: Path | None = None) -> dict[str, float]:
    """The share of samples that the exact classifier says to be of the class that they were asked for."""
    source, labels = data.Gaussian(), torch.arange(50_000) % CLASSES
    x = means()[labels] + STD * torch.randn(len(labels), 2, generator=generator(0, "data"))

    pairs = batches(IndependentPairs(source, data.TensorDataset(x, labels)), 512, seed=0)
    pairs = with_null_labels(pairs, 0.2, null=CLASSES, size=512, seed=0)
    state = State(Model(nn.MLP(dim=2, width=128, classes=CLASSES), schedules.Linear()))
    weak = state.ema
    for done, _ in enumerate(fit(state, pairs, FlowMatching(), steps, seed=0), start=1):
        if done == max(1, steps // 20):
            weak = deepcopy(state.ema)
    model = state.ema

    def without(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return model.velocity(x, t, torch.full_like(t, CLASSES, dtype=torch.long))

    classifier = Mixture(model.schedule)
    ways: dict[str, Field] = {
        "no label": without,
        "label": model.velocity,
        "classifier-free, 3": Guided(model.velocity, null=CLASSES, weight=3.0),
        "classifier, 1": ClassifierGuided(without, classifier, model.schedule, weight=1.0),
        "classifier, 3": ClassifierGuided(without, classifier, model.schedule, weight=3.0),
        "autoguidance, 2": AutoGuided(model.velocity, weak.velocity, weight=2.0),
    }
    x0, label = streams.source_rows(source, 0, points, seed=0), torch.full((points,), WANTED)
    ends = {name: sampling.flow(model, x0, grids.uniform(50), heun, label, field) for name, field in ways.items()}
    sets = {"the data": x[labels == WANTED][:points], **ends}
    numbers = {name: classifier.right(points) for name, points in sets.items()}
    for name, number in numbers.items():
        print(f"{name:20} {number:.3f}")
    if picture:
        plots.beside(picture, sets)
    return numbers


if __name__ == "__main__":
    main(picture=Path(sys.argv[1]) if sys.argv[1:] else None)
