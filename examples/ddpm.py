"""DDPM as in its paper, and three ways to sample it.

    python examples/ddpm.py [PICTURE.png]

Denoising diffusion probabilistic models (arXiv 2006.11239): a thousand steps of noise, a network that is asked at one
of them for the noise that is in a point, and a sampler that goes back through all of them. In the words of flow
matching it is a path, a time distribution and a prediction. So the samplers that came after are other solvers of the
same model: DDIM (arXiv 2010.02502) draws no noise on the way, DPM-Solver++ (arXiv 2211.01095) needs few evaluations,
and Euler's method on the straight path, at the times of as much noise, is DDIM again.
"""

import sys
from pathlib import Path

import torch

from flowgen import (
    FlowMatching,
    IndependentPairs,
    Model,
    State,
    batches,
    data,
    euler,
    fit,
    grids,
    metrics,
    nn,
    plots,
    predictions,
    sampling,
)
from flowgen.core import generator
from flowgen.data import streams
from flowgen.repath import repath
from flowgen.samplers import DDIM, Ancestral, DPMSolverPP
from flowgen.schedules import DDPM, Linear
from flowgen.times import Discrete


def main(steps: int = 10_000, points: int = 2000, picture: Path | None = None) -> dict[str, float]:
    """The W2 distance of samples to the data, by sampler."""
    source, distribution, schedule = data.Gaussian(), data.eight_gaussians(radius=2.0, std=0.2), DDPM()

    # The simplified loss is flow matching with the noise as prediction, at the steps of the path.
    state = State(Model(nn.MLP(dim=2, width=128), schedule, predictions.noise))
    for _ in fit(
        state,
        batches(IndependentPairs(source, distribution), 512, seed=0),
        FlowMatching(Discrete(schedule.steps)),
        steps,
        seed=0,
    ):
        pass
    model, straight = state.ema, repath(state.ema, Linear())

    truth, other = distribution.sample(2 * points, generator(0, "truth")).split(points)
    numbers = {"noise floor": metrics.wasserstein2(other, truth)}
    ways = {
        "DDPM, 1000 steps": (model, Ancestral(schedule), grids.trailing(schedule, schedule.steps)),
        "DDIM, 20": (model, DDIM(schedule), grids.trailing(schedule, 20)),
        "DPM-Solver++, 10": (model, DPMSolverPP(schedule), grids.log_snr(schedule, 10)),
        "Euler, 20, straight path": (straight, euler, Linear().time(schedule.log_snr(grids.trailing(schedule, 20)))),
    }
    walked = {}
    for name, (read, solver, grid) in ways.items():
        x0 = read.start(streams.source_rows(source, 0, points, seed=0))
        with torch.no_grad():
            states = [x0, *sampling.trajectory(read.velocity, x0, grid, solver)]
        numbers[name] = metrics.wasserstein2(states[-1], truth)
        walked[name] = torch.stack([x[:60] for x in states])

    for name, number in numbers.items():
        print(f"{name:26} {number:.4f}")
    if picture:
        plots.ways(picture, walked)
    return numbers


if __name__ == "__main__":
    main(picture=Path(sys.argv[1]) if sys.argv[1:] else None)
