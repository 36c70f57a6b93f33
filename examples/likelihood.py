"""How likely a trained flow finds points whose density is known.

    python examples/likelihood.py

A flow carries a density along with its points: log p falls by the divergence of the velocity (arXiv 1806.07366). So the
log-likelihood of any point is an integral along its trajectory, backward to the noise. The divergence is exact at the
price of a backward pass a dimension, or estimated without bias by a single one (arXiv 1810.01367), which is what images
can pay. A diffusion is no different: its velocity is read from the noise that it predicts.
"""

import torch

from flowgen import (
    FlowMatching,
    IndependentPairs,
    Model,
    State,
    batches,
    data,
    fit,
    grids,
    likelihood,
    nn,
    predictions,
    rk4,
    schedules,
)
from flowgen.core import generator


def main(steps: int = 15_000, points: int = 2000) -> dict[str, float]:
    """KL(data | model) of a flow and a diffusion, in nats; what an estimated divergence makes of it; the whole mass."""
    source, distribution = data.Gaussian(), data.eight_gaussians(radius=2.0, std=0.3)
    x = distribution.sample(points, generator(0, "points"))
    numbers = {}
    for name, schedule, prediction in (
        ("flow", schedules.Linear(), predictions.velocity),
        ("diffusion", schedules.VP(), predictions.noise),
    ):
        state = State(Model(nn.MLP(dim=2, width=128), schedule, prediction))
        for _ in fit(
            state, batches(IndependentPairs(source, distribution), 512, seed=0), FlowMatching(), steps, seed=0
        ):
            pass
        model = state.ema
        grid = grids.uniform(50, *model.span)
        found = likelihood.log_likelihood(model, source, x, grid, rk4)
        numbers[f"{name}: KL(data | model)"] = (distribution.log_density(x.double()) - found).mean().item()

        signs = likelihood.probes(likelihood.Rademacher((2,)), len(x), 1, seed=0)
        estimated = likelihood.log_likelihood(model, source, x, grid, rk4, probes=signs)
        numbers[f"{name}: the same, by one probe"] = (distribution.log_density(x.double()) - estimated).mean().item()

        # the density of a whole square around the data: 1, where nothing of it is lost
        side = torch.linspace(-4.5, 4.5, 61)
        square = torch.cartesian_prod(side, side)
        mass = likelihood.log_likelihood(model, source, square, grids.uniform(25, *model.span), rk4).exp().sum()
        numbers[f"{name}: mass"] = mass.item() * (side[1] - side[0]).item() ** 2

    for name, number in numbers.items():
        print(f"{name:32} {number:.4f}")
    return numbers


if __name__ == "__main__":
    main()
