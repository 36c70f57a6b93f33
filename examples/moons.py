"""Noise to two moons: train a flow, straighten it by reflow, and sample it in one step.

    python examples/moons.py [PICTURE.png]

Rectified flow (arXiv 2209.03003) in three moves. A flow is trained between noise and data; its own trajectories are
then followed, which pairs every noise point with the sample it becomes; a second flow is trained on those pairs. Since
trajectories of a flow never cross, the second flow can be straight, and one Euler step follows it to the end.
"""

import sys
from pathlib import Path

from flowgen import (
    FlowMatching,
    IndependentPairs,
    Model,
    MultiscaleOT,
    Pool,
    Reflow,
    State,
    batches,
    data,
    euler,
    fit,
    grids,
    heun,
    metrics,
    nn,
    plots,
    sampling,
    times,
)
from flowgen.core import generator
from flowgen.data import streams


def main(steps: int = 5000, points: int = 2000, picture: Path | None = None) -> dict[str, float]:
    """The W2 distance to the data after one Euler step, before and after reflow, and how straight both flows are."""
    source, moons = data.Gaussian(), data.moons()
    ends = IndependentPairs(source, moons)

    # Optimal transport pairs near noise with near data. It is solved for 20 batches at a time, and each pair is used
    # ten times, at another time of its path in each use.
    teacher = State(Model(nn.MLP(dim=2)))
    pairs = batches(ends, 512, seed=0, coupling=MultiscaleOT(), pool=Pool(batches=20, reuse=10))
    for _ in fit(teacher, pairs, FlowMatching(), steps, seed=0):
        pass

    # Reflow is another coupling and nothing else: each x0 with the end of its trajectory. The student starts from the
    # teacher's weights, and looks more often at both ends of the path (arXiv 2405.20320).
    student = State(teacher.ema)
    coupling = Reflow(teacher.ema, grids.uniform(50), heun)
    pairs = batches(ends, 512, seed=1, coupling=coupling, pool=Pool(batches=20, reuse=50))
    for _ in fit(student, pairs, FlowMatching(times.UShaped()), steps, seed=1):
        pass

    # Two sets of true points are not at distance 0 either: that distance is the noise floor of the measure.
    truth, other = moons.sample(2 * points, generator(0, "truth")).split(points)
    x0 = streams.source_rows(source, 0, points, seed=0)
    numbers = {"noise floor": metrics.wasserstein2(other, truth), "source": metrics.wasserstein2(x0, truth)}
    walked = {}
    for name, model in {"OT flow": teacher.ema, "reflowed": student.ema}.items():
        end = sampling.flow(model, x0, grids.uniform(1), euler)
        followed = metrics.geometry(model.velocity, x0, grids.uniform(100))
        numbers[f"{name}, 1 step"] = metrics.wasserstein2(end, truth)
        numbers[f"{name}, 100 steps"] = metrics.wasserstein2(followed.end, truth)
        numbers[f"{name}, straightness"] = followed.straightness
        walked[name] = followed.states[:, :300]

    for name, number in numbers.items():
        print(f"{name:24} {number:.4f}")
    if picture:
        plots.trajectories(picture, walked["reflowed"])
    return numbers


if __name__ == "__main__":
    main(picture=Path(sys.argv[1]) if sys.argv[1:] else None)
