"""What torchcfm computes and flowgen computes are the same numbers, and where they differ on purpose they do."""

import numpy as np
import pytest
import torch
from torch import nn
from torchcfm import conditional_flow_matching as cfm
from torchcfm.optimal_transport import OTPlanSampler, wasserstein

from flowgen.bench.torchcfm import globally_seeded
from flowgen.core import Pair, generator
from flowgen.couplings import ExactOT, Sinkhorn
from flowgen.couplings.bridge import SchroedingerBridge
from flowgen.metrics import wasserstein2
from flowgen.model import Model
from flowgen.objectives import FlowMatching
from flowgen.objectives.flow_matching import Draws
from flowgen.paths.bridge import BrownianBridge, ConstantBridge
from flowgen.samplers.sde import BridgeScore, Drift
from flowgen.schedules import Cosine, Linear

SIGMA = 0.3
MATCHERS = {
    "I-CFM": (cfm.ConditionalFlowMatcher, Linear(), ConstantBridge(SIGMA)),
    "OT-CFM": (cfm.ExactOptimalTransportConditionalFlowMatcher, Linear(), ConstantBridge(SIGMA)),
    "SB-CFM": (cfm.SchrodingerBridgeConditionalFlowMatcher, Linear(), BrownianBridge(SIGMA)),
    "VP-CFM": (cfm.VariancePreservingConditionalFlowMatcher, Cosine(), ConstantBridge(SIGMA)),
    "FM": (cfm.TargetConditionalFlowMatcher, Linear(sigma_min=SIGMA), None),
}


class Told(nn.Module):
    """A net that predicts what it was told to, and keeps where it was asked."""

    def __init__(self, y):
        super().__init__()
        self.y = y

    def forward(self, x, t, s, cond=None):
        self.seen = x, t
        return self.y


@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)])
@pytest.mark.parametrize("name", MATCHERS)
def test_flow_matching_is_that_of_a_matcher(name, shape, normal):
    """The same ends, times and noise: the same points, and no loss at torchcfm's velocities."""
    matcher, schedule, bridge = (MATCHERS[name][0](SIGMA), *MATCHERS[name][1:])
    x0, x1 = normal("x0", 64, *shape), normal("x1", 64, *shape)
    low, high = bridge.span if bridge else (0.0, 1.0)
    times = torch.linspace(0.02, 0.98, 64, dtype=torch.float64)  # at the ends torchcfm's guard against 0 is felt
    with globally_seeded(0):  # as the base class does: the pairs as they are
        t, x, u, eps = cfm.ConditionalFlowMatcher.sample_location_and_conditional_flow(
            matcher, x0, x1, low + (high - low) * times, return_noise=True
        )
    model = Model(Told(u), schedule)
    # arXiv 2210.02747 takes the noise for the source
    pair, drawn = (Pair(eps, x1), Draws(times, None)) if bridge is None else (Pair(x0, x1), Draws(times, eps))
    loss = FlowMatching(bridge=bridge).loss(model, pair, drawn)
    torch.testing.assert_close(model.net.seen[0], x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.net.seen[1], t, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-10)


def test_the_score_of_torchcfm_is_what_the_drift_adds(normal):
    """A net s with lambda s = -eps (arXiv 2307.03672) is sigma^2 / 2 times the score."""
    matcher, bridge = cfm.SchrodingerBridgeConditionalFlowMatcher(SIGMA), BrownianBridge(SIGMA)
    eps, t = normal("eps", 64, 1), torch.linspace(0.02, 0.98, 64, dtype=torch.float64)
    theirs = -eps / matcher.compute_lambda(t).unsqueeze(1)
    drift = Drift(lambda x, t, cond: 0 * x, BridgeScore(lambda x, t, cond: eps, bridge), lambda t: SIGMA)
    torch.testing.assert_close(drift(eps, t), theirs, rtol=1e-6, atol=0)  # torchcfm adds 1e-8 to sigma^2


# plans


@pytest.fixture
def clouds(normal):
    return normal("x0", 50, 3), 2 * normal("x1", 50, 3) + 1


def test_exact_pairs_are_the_plan_of_torchcfm(clouds):
    index = ExactOT()(Pair(*clouds, torch.arange(50).double()), generator(0, "pairs")).cond.long()
    plan = OTPlanSampler("exact").get_map(*clouds)
    np.testing.assert_allclose(plan[np.arange(50), index], 1 / 50)
    assert np.count_nonzero(plan) == 50


@pytest.mark.parametrize("reg", [1.0, 5.0])
def test_the_sinkhorn_plan_is_that_of_torchcfm(clouds, reg):
    mean = float((clouds[0].unsqueeze(1) - clouds[1]).square().sum(2).mean())
    plan = Sinkhorn(reg / mean, tolerance=1e-10, iterations=100_000).plan(*clouds).log_plan.exp()
    np.testing.assert_allclose(plan, OTPlanSampler("sinkhorn", reg=reg).get_map(*clouds), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.8, 2.0])
def test_schroedinger_bridges_are_those_of_torchcfm(clouds, sigma):
    matcher = cfm.SchrodingerBridgeConditionalFlowMatcher(sigma, ot_method="sinkhorn")
    plan = SchroedingerBridge(sigma, tolerance=1e-10, iterations=100_000).plan(*clouds).log_plan.exp()
    np.testing.assert_allclose(plan, matcher.ot_sampler.get_map(*clouds), rtol=1e-5, atol=1e-9)


def test_the_wasserstein_distance_is_that_of_torchcfm(clouds):
    assert wasserstein2(*clouds) == pytest.approx(wasserstein(*clouds, power=2), rel=1e-9)


# differences that docs/matchers.md names


def test_flowgen_uses_every_row_and_torchcfm_does_not(clouds):
    with globally_seeded(0):
        x0, _ = OTPlanSampler("exact").sample_plan(*clouds)
    coupled = ExactOT()(Pair(*clouds), generator(0, "pairs"))
    assert len(x0.unique(dim=0)) < 40
    assert torch.equal(coupled.x0, clouds[0])
    assert torch.equal(coupled.x1.sort(0).values, clouds[1].sort(0).values)


def test_the_partial_plan_of_torchcfm_leaves_nothing_out(clouds):
    """It takes POT's default mass, the whole: the plan is the entropic one."""
    partial, whole = (OTPlanSampler(method, reg=5.0).get_map(*clouds) for method in ("partial", "sinkhorn"))
    np.testing.assert_allclose(partial.sum(0), 1 / 50, rtol=1e-3)
    np.testing.assert_allclose(partial, whole, rtol=1e-3, atol=1e-8)


def test_torchcfm_alone_ties_the_source_to_labels(normal):
    x0, labels = normal("x0", 400, 1), torch.arange(400) % 2
    x1 = 0.5 * normal("x1", 400, 1) + torch.where(labels == 0, -4.0, 4.0).unsqueeze(1)
    with globally_seeded(0):
        theirs, _, _, of = OTPlanSampler("exact").sample_plan_with_labels(x0, x1, y1=labels)
    coupled = ExactOT()(Pair(x0, x1, labels), generator(0, "pairs"))
    assert theirs[of == 1].mean() - theirs[of == 0].mean() > 1.3
    assert abs(coupled.x0[coupled.cond == 1].mean() - coupled.x0[coupled.cond == 0].mean()) < 4 * 2 / 400**0.5
