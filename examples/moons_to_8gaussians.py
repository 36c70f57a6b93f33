"""Two moons to eight Gaussians: a flow between two sets of data, and what optimal transport saves it.

    python examples/moons_to_8gaussians.py [PICTURE.png]

Nothing in flow matching asks for Gaussian noise at t = 0: any distribution that can be sampled will do as a source. The
example trains the same flow twice, on pairs drawn independently and on pairs of minibatch optimal transport (arXiv
2302.00482), and measures how much the two flows move the points: the path energy, the mean of int |v|^2 dt, which is at
least the squared W2 distance of the two distributions, and equal to it for the optimal transport flow.
"""

import sys
from pathlib import Path

from flowgen import (
    ExactOT,
    FlowMatching,
    Independent,
    IndependentPairs,
    Model,
    Pool,
    State,
    batches,
    data,
    fit,
    grids,
    metrics,
    nn,
    plots,
)
from flowgen.core import generator
from flowgen.data import streams


def main(steps: int = 5000, points: int = 2000, picture: Path | None = None) -> dict[str, float]:
    """The path energy of both flows and their W2 distance to the data, in two steps and in 100."""
    source, prediction = data.moons(), data.eight_gaussians()
    x0 = streams.source_rows(source, 0, points, seed=0)
    truth = prediction.sample(points, generator(0, "truth"))
    numbers = {"W2^2(source, data)": metrics.wasserstein2(x0, truth) ** 2}

    for coupling in (Independent(), ExactOT()):
        name = type(coupling).__name__
        state = State(Model(nn.MLP(dim=2)))
        pairs = batches(
            IndependentPairs(source, prediction), 512, seed=0, coupling=coupling, pool=Pool(batches=20, reuse=10)
        )
        for _ in fit(state, pairs, FlowMatching(), steps, seed=0):
            pass

        followed = metrics.geometry(state.ema.velocity, x0, grids.uniform(100))
        numbers[f"{name}, path energy"] = followed.path_energy
        numbers[f"{name}, W2 in 100 steps"] = metrics.wasserstein2(followed.end, truth)
        few = metrics.geometry(state.ema.velocity, x0, grids.uniform(2)).end
        numbers[f"{name}, W2 in 2 steps"] = metrics.wasserstein2(few, truth)

    for name, number in numbers.items():
        print(f"{name:28} {number:.3f}")
    if picture:
        plots.trajectories(picture, followed.states[:, :300])
    return numbers


if __name__ == "__main__":
    main(picture=Path(sys.argv[1]) if sys.argv[1:] else None)
