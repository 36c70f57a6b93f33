"""Networks with the one signature `net(x, t, s, cond)`."""

from flowgen.nn.mlp import MLP, TimeFeatures

__all__ = ["MLP", "TimeFeatures"]
