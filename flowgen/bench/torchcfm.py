"""torchcfm's matchers, and a training loop around them as its examples write it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from flowgen.core import Pair
from flowgen.nn import seeded

__all__ = ["Matcher", "matchers", "torchcfm_loop"]


class Matcher(Protocol):
    """A matcher of torchcfm: ends to times, points on the path, and their velocity."""

    def sample_location_and_conditional_flow(
        self, x0: Tensor, x1: Tensor, t: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]: ...


def matchers(sigma: float) -> dict[str, Matcher]:
    """Return torchcfm's matchers with their defaults, at a noise of sigma, by the names of arXiv 2302.00482."""
    from torchcfm.conditional_flow_matching import (
        ConditionalFlowMatcher,
        ExactOptimalTransportConditionalFlowMatcher,
        SchrodingerBridgeConditionalFlowMatcher,
        TargetConditionalFlowMatcher,
    )

    return {
        "FM": TargetConditionalFlowMatcher(sigma=sigma),
        "I-CFM": ConditionalFlowMatcher(sigma=sigma),
        "OT-CFM": ExactOptimalTransportConditionalFlowMatcher(sigma=sigma),
        "SB-CFM": SchrodingerBridgeConditionalFlowMatcher(sigma=sigma),  # it solves exact transport unless asked not to
    }


def torchcfm_loop(
    net: nn.Module, matcher: Matcher, pairs: Iterator[Pair], steps: int, lr: float, weight_decay: float, seed: int
) -> None:
    """Train a network with a matcher of torchcfm, by a plain loop with AdamW."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    with globally_seeded(seed):
        for pair in islice(pairs, steps):
            optimizer.zero_grad()
            t, x, u = matcher.sample_location_and_conditional_flow(pair.x0, pair.x1)
            loss = torch.mean((net(x, t) - u) ** 2)
            loss.backward()
            optimizer.step()


@contextmanager
def globally_seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch and numpy, which torchcfm draws from, inside; restore their states after."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(seed)  # noqa: NPY002
        with seeded(seed):
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
