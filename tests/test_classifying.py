"""A classifier of points on a path says and learns Bayes' posterior, of rows and of images."""

import math

import pytest
import torch
from torch import nn

from flowgen.core import InputError, Pair, generator, like
from flowgen.model import Model
from flowgen.nn import NoisyClassifier
from flowgen.objectives.classifier import Labelling, Posterior, log_prior
from flowgen.repath import repath
from flowgen.schedules import VE, VP, Cosine, Linear
from flowgen.training.loop import State, fit

MEANS = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -3.0]])
STD, COUNTS = 0.7, (200.0, 100.0, 100.0)


def mixture(n, seed):
    """Rows of three Gaussians, of which the first is twice as frequent, and their labels."""
    rng = generator(seed, "mixture")
    y = torch.multinomial(torch.tensor(COUNTS), n, replacement=True, generator=rng)
    return MEANS[y] + STD * torch.randn(n, 2, generator=rng), y


def bayes(schedule, x, t):
    """log p(label | x_t) of the mixture, by its densities."""
    c = schedule.coeffs(like(t, x))
    variance = (c.alpha * STD) ** 2 + c.sigma**2
    square = (x.unsqueeze(1) - c.alpha.unsqueeze(1) * MEANS.to(x)).square().sum(2)
    return torch.log_softmax(torch.tensor(COUNTS).to(x).log() - square / (2 * variance), dim=1)


# the posterior


class Scores(nn.Module):
    """A net whose outputs are known functions of x and t."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, t, s, cond=None):
        return torch.stack([x.sum(1), x[:, 0] * t, torch.sin(x[:, 1])], dim=1)


def test_it_says_the_log_probability_of_each_rows_label(schedule, normal):
    x, t, cond = normal("x", 9, 2), torch.linspace(0.1, 0.9, 9, dtype=torch.float64), torch.arange(9) % 3
    posterior = Posterior(Model(Scores(), schedule), log_prior(COUNTS))
    whole = torch.stack([posterior(x, t, torch.full((9,), label)) for label in range(3)], dim=1)
    torch.testing.assert_close(whole.exp().sum(1), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(posterior(x, t, cond), whole.gather(1, cond.unsqueeze(1)).squeeze(1))
    torch.testing.assert_close(whole, torch.log_softmax(posterior.logits(x, t), dim=1))


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=str)
def test_in_noise_alone_there_is_the_prior_and_no_gradient(schedule, normal):
    """The gradient times g^2 / 2, which grows without bound, stays bounded."""
    posterior = Posterior(Model(Scores(), schedule), log_prior((3.0, 1.0, 0.0)))
    x, cond = normal("x", 6, 2).requires_grad_(True), torch.arange(6) % 3
    shares = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64) / 7
    torch.testing.assert_close(posterior(x, torch.zeros(6).double(), cond).exp(), shares[cond])
    forces = []
    for time in (1e-2, 1e-4, 1e-6):
        t = torch.full((6,), time, dtype=torch.float64)
        (gradient,) = torch.autograd.grad(posterior(x, t, cond).sum(), x)
        forces.append(schedule.diffusion(t).unsqueeze(1) ** 2 / 2 * gradient)
    torch.testing.assert_close(forces[2], forces[1], rtol=1e-3, atol=1e-3)


def test_on_another_path_it_says_the_same(normal):
    """Where both have as much noise, of the same point but for scale."""
    here, there = VP(), Linear()
    posterior = Posterior(Model(Scores(), here), log_prior(COUNTS))
    moved = Posterior(repath(posterior.model, there), posterior.log_prior)
    t, x = torch.linspace(0.1, 0.9, 9, dtype=torch.float64), normal("x", 9, 2)
    s = there.time(here.log_snr(t))
    c, d = here.coeffs(t), there.coeffs(s)
    scaled = x * like(torch.hypot(d.alpha, d.sigma) / torch.hypot(c.alpha, c.sigma), x)
    torch.testing.assert_close(moved.logits(scaled, s), posterior.logits(x, t), rtol=1e-6, atol=1e-6)


@pytest.mark.costly
@pytest.mark.parametrize("schedule", [Linear(), VP(), VE(0.1, 5.0)], ids=str)
def test_training_comes_to_bayes_rule(schedule):
    """At all times together it is a twentieth as far from the posterior as the prior is."""
    x, y = mixture(4000, 0)
    net = NoisyClassifier((2,), 3, width=64, depth=1, dropout=0.0)
    state = State(Model(net, schedule), 3e-3)

    def pairs():
        for step in range(300):
            rng = generator(0, "pairs", step)
            rows = torch.randint(len(x), (256,), generator=rng)
            yield Pair(torch.randn(256, 2, generator=rng), x[rows], y[rows])

    losses = list(fit(state, pairs(), Labelling(log_prior(COUNTS)), 300, seed=0))
    assert losses[0] == pytest.approx(-sum(p * math.log(p) for p in (0.5, 0.25, 0.25)), abs=0.05)  # the prior alone
    x1, _ = mixture(20_000, 1)
    t = torch.rand(20_000, generator=generator(1, "times")) * state.model.span[1]
    point = schedule.at(Pair(torch.randn(x1.shape, generator=generator(1, "noise")), x1), t)
    exact = bayes(schedule, point.x.double(), t.double())
    learned = torch.log_softmax(Posterior(state.ema, log_prior(COUNTS)).logits(point.x, t), dim=1)
    prior = log_prior(COUNTS).expand(20_000, 3)
    far, farther = ((exact.exp() * (exact - each)).sum(1).mean().item() for each in (learned, prior))
    assert 0 < far < farther / 20


@pytest.mark.parametrize("shape", [(3,), (1, 8, 8), (3, 5, 7), (1, 2, 2), (1, 28, 28)])
def test_every_event_is_classified_by_all_of_its_values(shape, normal):
    net = NoisyClassifier(shape, 4, width=32, seed=3).eval()
    with torch.no_grad():
        net.head.weight.normal_(generator=torch.Generator().manual_seed(0))
        for name, weight in net.named_parameters():
            if "modulation" in name:
                weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    x, t = normal("x", 5, *shape).float().requires_grad_(True), torch.linspace(0, 1, 5)
    out = net(x, t)
    assert out.shape == (5, 4)
    assert (torch.autograd.grad(out[:, 0].sum(), x)[0] != 0).all()
    assert not torch.allclose(out, net(x, t.flip(0)))
    again = NoisyClassifier(shape, 4, width=32, seed=3).state_dict()
    assert all(
        torch.equal(x, again[name]) for name, x in NoisyClassifier(shape, 4, width=32, seed=3).state_dict().items()
    )


def test_what_cannot_be_classified_is_refused():
    with pytest.raises(InputError, match="rows or images"):
        NoisyClassifier((2, 3), 2)
    with pytest.raises(InputError, match="two classes, not 1"):
        NoisyClassifier((2,), 1)
