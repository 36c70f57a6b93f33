"""Noise to eight Gaussians in one network evaluation: a flow, a flow map from nothing, and one that the flow teaches.

    python examples/one_step.py [PICTURE.png]

A flow map is the average velocity u(x, t, s) of a flow between two times, so that x_s = x_t + (s - t) u(x_t, t, s) is
one jump. Shortcut models (arXiv 2410.12557) learn it from their own two halves, MeanFlow (arXiv 2505.13447) from its
derivative along the flow; a velocity that is known already is a better teacher than single pairs.
"""

import sys
from pathlib import Path

from flowgen import (
    Independent,
    IndependentPairs,
    Model,
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
    sample,
)
from flowgen.core import generator
from flowgen.losses import Squared
from flowgen.objectives import FlowMatching, Objective
from flowgen.objectives.flow_maps import MeanFlow, OfTeacher, Shortcut
from flowgen.samplers.flow_map import FlowMapStep
from flowgen.times import Intervals, Uniform


def main(steps: int = 5000, points: int = 4000, picture: Path | None = None) -> dict[str, float]:
    """The energy distance to the data of samples of each."""
    source, distribution = data.Gaussian(), data.eight_gaussians(std=0.5)

    def trained(model: Model, objective: Objective, seed: int) -> Model:
        """The averaged model after training on independent pairs, whose trajectories bend."""
        state = State(model)
        pairs = batches(IndependentPairs(source, distribution), 512, seed=seed, coupling=Independent())
        for _ in fit(state, pairs, objective, steps, seed=seed):
            pass
        return state.ema

    # One network for all: it reads a second time, by weights that are zero at first.
    net = nn.MLP(dim=2, width=128, two_times=True)
    flow = trained(Model(net), FlowMatching(), seed=0)
    intervals = Intervals(Uniform())
    alone = trained(Model(net), Shortcut(intervals), seed=1)
    taught = trained(flow, MeanFlow(intervals, OfTeacher(flow.velocity), Squared()), seed=2)

    truth, other = distribution.sample(2 * points, generator(0, "truth")).split(points)
    numbers, panels = {"true points": metrics.energy_distance(other, truth)}, {}
    for name, model, solver, count in (
        ("flow, 100 evaluations", flow, heun, 50),
        ("flow, 1", flow, euler, 1),
        ("shortcut, 1", alone, FlowMapStep(), 1),
        ("taught meanflow, 1", taught, FlowMapStep(), 1),
    ):
        x = sample(model, source, points, grids.uniform(count), solver)
        numbers[name] = metrics.energy_distance(x, truth)
        panels[f"{name}: {numbers[name]:.2f}"] = x

    for name, number in numbers.items():
        print(f"{name:24} {number:.4f}")
    if picture:
        plots.beside(picture, panels)
    return numbers


if __name__ == "__main__":
    main(picture=Path(sys.argv[1]) if sys.argv[1:] else None)
