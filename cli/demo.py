"""flowgen demo: train, straighten and sample a flow, from nothing to a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import bar, draw_run, pair_run, show, train_run

if TYPE_CHECKING:
    from flowgen.plots import FewSteps

STEPS, POINTS, TRAINING, PAIRS = (1, 2, 4, 8, 100), 2000, 10_000, 50_000


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the two runs and the picture.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
) -> None:
    """Train a flow from noise to two moons, straighten it, and compare both at few steps."""
    from flowgen import data, metrics, plots, runs
    from flowgen.config import make_config
    from flowgen.core import generator
    from flowgen.data import streams
    from flowgen.samplers import grids

    config = make_config({"data": "moons", "seed": seed, "train": {"steps": TRAINING}})
    flow = runs.Run.create(out / "flow", config, "flowgen demo", overwrite=True)
    train_run(flow, "1/4 training an optimal transport flow")
    again = runs.reflow_config(flow.folder, {"reflow.pairs": PAIRS})
    straight = runs.Run.create(out / "reflow", again, "flowgen demo", overwrite=True)
    pair_run(straight, "2/4 following its trajectories")
    train_run(straight, "3/4 training on their ends (reflow)")
    for run in (flow, straight):
        draw_run(run)

    truth, other = data.moons().sample(2 * POINTS, generator(seed, "demo")).split(POINTS)
    measured: dict[str, list[plots.FewSteps]] = {}
    with bar("4/4 measuring", 2 * len(STEPS), "walks") as move:
        for title, run in {"OT flow": flow, "reflowed": straight}.items():
            trained = runs.load(run.folder)
            x0 = trained.model.start(streams.source_rows(trained.source, 0, POINTS, seed))
            measured[title] = []
            for steps in STEPS:
                followed = metrics.geometry(trained.model.velocity, x0, grids.uniform(steps))
                distance = metrics.wasserstein2(followed.end, truth)
                measured[title].append(plots.FewSteps(steps, followed.states.cpu(), distance, followed.straightness))
                move(sum(map(len, measured.values())))
    floor = metrics.wasserstein2(other, truth)
    plots.few_steps(out / "demo.png", measured, truth)
    _table(measured, floor)
    print(f"picture: {out}/demo.png    runs: {flow.folder}, {straight.folder}")


def _table(measured: dict[str, list[FewSteps]], floor: float) -> None:
    from rich.table import Table

    table = Table(title=f"2-Wasserstein distance to the data ({POINTS} points, noise floor {floor:.3f})")
    for heading in ("network evaluations", *measured):
        table.add_column(heading, justify="right")
    for row in zip(*measured.values(), strict=True):
        table.add_row(str(row[0].steps), *(f"{cell.distance:.3f}" for cell in row))
    table.add_section()
    table.add_row("straightness (0: straight)", *(f"{cells[-1].straightness:.4f}" for cells in measured.values()))
    show(table)
