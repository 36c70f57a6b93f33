"""A premetric of features beside flow matching: what it adds for known embeddings, and that it asks for the same."""

import pytest
import torch
from torch import nn

from flowgen import predictions
from flowgen.core import InputError, Pair, generator, like
from flowgen.losses import PseudoHuber, Squared
from flowgen.model import Model
from flowgen.nn import MLP
from flowgen.objectives import FlowMatching, Splittable
from flowgen.objectives.flow_matching import Draws
from flowgen.objectives.perceptual import LATEST, PerceptualLoss
from flowgen.schedules import Linear
from flowgen.times import UShaped

ABSOLUTE = PseudoHuber(1e-9)


def ends(normal, rows=200):
    return Pair(normal("x0", rows, 3).float(), normal("x1", rows, 3).float())


class Knows(nn.Module):
    """The net that knows the pairs of its batch, and misses their target by so much."""

    def __init__(self, pair, schedule, prediction, miss=0.0):
        super().__init__()
        self.pair, self.schedule, self.prediction, self.miss = pair, schedule, prediction, miss
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, t, s, cond=None):
        return (
            predictions.encode(self.pair, self.schedule.coeffs(like(t, x)), self.prediction) + self.miss + self.weight
        )


def test_pairs_that_are_known_have_no_loss(usable, normal):
    schedule, prediction = usable
    pair = ends(normal)
    model = Model(Knows(pair, schedule, prediction), schedule, prediction)
    found = PerceptualLoss(nn.Sequential(nn.Linear(3, 5), nn.Tanh()))(model, pair, generator(0, "t"))
    assert found.shape == (200,)
    assert found.max() < 0.05  # of rounding at the far end, where a prediction says little of the data


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_features_weigh_errors_alike_at_all_times(normal, weight):
    """For features A x: |e| + weight |A e|, e the error of the velocity, whatever the time."""
    pair, miss = ends(normal), torch.tensor([0.3, -1.0, 0.2])
    model = Model(Knows(pair, Linear(), predictions.velocity, miss))
    matrix = normal("A", 3, 7).float()
    times = torch.linspace(0, 1 - 2 * LATEST, 200)
    found = PerceptualLoss(lambda x: x @ matrix, weight, distance=ABSOLUTE).loss(model, pair, Draws(times, None))
    exact = miss.norm() + weight * (miss @ matrix).norm()
    torch.testing.assert_close(found, exact.expand(200), rtol=2e-3, atol=0)


def test_the_weight_of_times_is_bounded(normal):
    pair = ends(normal)
    model = Model(MLP(3, width=8, depth=1))
    found = PerceptualLoss(torch.sin).loss(model, pair, Draws(torch.ones(200), None))
    assert found.isfinite().all()
    found.mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_without_features_it_is_flow_matching(normal):
    pair, model = ends(normal), Model(MLP(3, width=8, depth=1))
    for distance in (Squared(), PseudoHuber(0.3)):
        one = PerceptualLoss(torch.zeros_like, distance=distance)
        other = FlowMatching(UShaped(), distance=distance)
        assert isinstance(one, Splittable)
        torch.testing.assert_close(one(model, pair, generator(0, "t")), other(model, pair, generator(0, "t")))


def test_features_teach_the_net_and_are_not_taught(normal):
    embed = nn.Linear(3, 3, bias=False)
    embed.requires_grad_(False)
    pair, model = ends(normal), Model(MLP(3, width=8, depth=1))
    PerceptualLoss(embed)(model, pair, generator(0, "t")).mean().backward()
    assert embed.weight.grad is None
    with_features = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    FlowMatching(UShaped(), distance=PseudoHuber())(model, pair, generator(0, "t")).mean().backward()
    alone = [p.grad for p in model.parameters() if p.grad is not None]
    assert max((a - b).abs().max() for a, b in zip(with_features, alone, strict=True)) > 1e-3


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(InputError, match="positive weight"):
        PerceptualLoss(torch.sin, weight)
