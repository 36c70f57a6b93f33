"""Text in pictures: names are drawn as the user gave them."""

import csv

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from flowgen import plots
from flowgen.core import Pair

NAMES = ["price $ (50%) of $", r"\$x$_{", "$$", "_hidden", "a_b^c", "caf\udce9", "100 %", r"$\frac$"]
QUICK = ["--steps", 20, "--batch-size", 32, "--set", "net.width=16", "--set", "pool.batches=3"]


@pytest.fixture
def figure():
    return FigureCanvasAgg(Figure()).figure


@pytest.mark.costly
def test_a_price_in_dollars_trains_to_the_end(flowgen, whole_pictures):
    names = ["price $ (50%) of $", "_hidden", "a"]
    with open("prices.csv", "w", newline="") as file:
        csv.writer(file).writerows([names, *np.random.default_rng(0).normal(size=(60, 3)).tolist()])
    code, out, err = flowgen("train", "prices.csv", *QUICK)
    assert code == 0, err
    assert "Next:" in out
    assert Image.open("runs/prices/plots/samples.png").size[0] > 100


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("_") and "\udce9" not in name])
def test_names_are_not_read_as_mathematics(figure, name):
    drawn, literal = figure.text(0, 0, plots.plain(name)), figure.text(0, 0, name, parse_math=False)
    assert drawn.get_window_extent().bounds == literal.get_window_extent().bounds


def test_legends_have_every_name(figure):
    axis = figure.subplots()
    for index, name in enumerate(NAMES):
        axis.plot([0, 1], [0, index], label=plots.plain(name))
    assert len(axis.legend().get_texts()) == len(NAMES)
    figure.canvas.draw()


@pytest.mark.costly
@pytest.mark.parametrize("name", NAMES)
def test_every_picture_takes_any_name(tmp_path, name):
    x, states = torch.randn(20, 2), torch.randn(3, 20, 2)
    curve = plots.Curve([1, 2], [0.5, 0.2], [0.1, 0.1], 0.1)
    pictures = {
        "samples": lambda path: plots.samples(path, torch.randn(20, 3), columns=[name, "a", "b"]),
        "ways": lambda path: plots.ways(path, {name: states}),
        "few": lambda path: plots.few_steps(path, {name: [plots.FewSteps(2, states, 0.1, 0.0)]}, x),
        "quality": lambda path: plots.quality(path, {name: {name: curve}}),
        "pairs": lambda path: plots.pairs(path, {name: Pair(x, x)}),
        "beside": lambda path: plots.beside(path, {name: x}),
    }
    for picture, draw in pictures.items():
        draw(tmp_path / f"{picture}.png")
        assert (tmp_path / f"{picture}.png").stat().st_size > 1000
