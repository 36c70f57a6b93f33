"""Files and folders may be given as text wherever a path may."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flowgen import InputError, checkpoints, data, plots, runs
from flowgen.config import resolve_config
from flowgen.data.images.pictures import write_folder, write_npz, write_strip
from flowgen.data.writing import write_rows
from flowgen.evaluation import load_subject
from flowgen.settings import read_toml


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, made and trained by a folder that is a str."""
    place = tmp_path_factory.mktemp("runs")
    x = np.random.default_rng(0).normal(size=(300, 2))
    np.save(place / "x.npy", x)
    tree = {"data": str(place / "x.npy"), "net": {"width": 8, "depth": 1}, "coupling": "independent"}
    run = runs.Run.create(str(place / "run"), resolve_config({**tree, "train": {"steps": 3, "batch_size": 8}}), "test")
    for _ in runs.train(run):
        pass
    return str(place / "run")


def test_a_run_is_opened_by_the_text_of_its_folder(folder):
    assert runs.Run.open(folder).folder == Path(folder)
    trained, same = runs.load(folder), runs.load(Path(folder))
    assert all(torch.equal(a, b) for a, b in zip(trained.model.parameters(), same.model.parameters(), strict=True))
    assert runs.describe(folder) == runs.describe(Path(folder))
    assert load_subject(folder).model is not None
    assert runs.reflow_config(folder, {}).reflow.parent == str(Path(folder).resolve())
    assert runs.distill_config(folder, "meanflow", 1, {}).distill.parent == str(Path(folder).resolve())
    assert runs.round_file(folder) == Path(folder) / "round.json"
    assert read_toml(f"{folder}/config.toml")["seed"] == 0
    (newest,) = checkpoints.find(f"{folder}/checkpoints")
    assert checkpoints.load(str(newest)).keys() == checkpoints.load(newest).keys()


def test_a_missing_run_is_named(folder):
    for call in (runs.load, runs.Run.open, runs.describe):
        with pytest.raises(InputError, match="there is no such folder"):
            call(f"{folder}-none")


def test_pictures_and_tables_are_written_to_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, images = torch.zeros(4, 2), torch.zeros(4, 1, 8, 8)
    plots.losses("loss.png", [1, 2], [0.5, 0.4])
    data.write_grid("grid.png", images)
    write_strip("strip.png", images.unsqueeze(0))
    write_npz("images.npz", [images], 4, (1, 8, 8))
    write_folder("images", [images])
    write_rows("rows.csv", [x], (4, 2))
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"loss.png", "grid.png", "strip.png", "images.npz", "images", "rows.csv"}
    assert data.read_table("rows.csv").x.shape == (4, 2)
    assert len(data.open_folder("images").files) == 4
