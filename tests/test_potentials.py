"""Runs whose coupling is semidiscrete: potentials on disk, found once, of the rows that training sees."""

import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from flowgen import checkpoints, runs
from flowgen.config import resolve_config
from flowgen.core import InputError, Part
from flowgen.couplings.semidiscrete import assigned
from flowgen.runs import Run
from flowgen.runs.potentials import semidiscrete_pairs, solved

CPU, LOGGED = torch.device("cpu"), {"log_every": 1}


@pytest.fixture
def table(tmp_path, normal):
    """A table of 60 rows in two classes, far from standardised."""
    labels = np.arange(60) % 2
    np.savez(tmp_path / "table.npz", x=normal("rows", 60, 2).numpy() * 3 + 8 * labels[:, None], y=labels)
    return str(tmp_path / "table.npz")


@pytest.fixture
def created(tmp_path, table):
    def create(name="run", **tree):
        settings = {"coupling": {"name": "semidiscrete", "tolerance": 0.05}, "train": {"steps": 4, "batch_size": 16}}
        return Run.create(tmp_path / name, resolve_config({"data": table, **settings, **tree}), "")

    return create


def test_potentials_are_found_once_and_told_on_the_way(created):
    run = created()
    states = list(runs.find_potentials(run))
    assert all(before.draws < after.draws for before, after in pairwise(states))
    assert abs(states[-1].chi_square) < 0.05
    kept = solved(run, run.config.load_data())
    assert torch.equal(kept.values, states[-1].values)
    assert (kept.chi_square, kept.draws) == (states[-1].chi_square, states[-1].draws)
    assert list(runs.find_potentials(run)) == []


def test_they_are_left_out_where_another_coupling_is_asked_for(created):
    run = created(coupling="exact")
    assert list(runs.find_potentials(run)) == []
    assert not run.potentials.exists()


@pytest.mark.parametrize("labels", [False, True])
def test_pairs_are_training_rows_in_model_units_in_their_cells(created, labels):
    run = created(labels=labels)
    data = run.config.load_data()
    pair = next(semidiscrete_pairs(run, data, CPU).stream(64, seed=0))
    rows = data.scaling.in_model_units(data.distribution.values)
    found = assigned(pair.x0, rows, solved(run, data).values, data.distribution.labels, pair.cond)
    assert torch.equal(pair.x1, rows[found])
    assert (pair.cond is not None) == labels
    if labels:
        assert torch.equal(pair.cond, data.distribution.labels[found])


def test_training_finds_what_is_missing_and_ends_where_it_would(created):
    whole, apart = created("whole"), created("apart")
    for _ in runs.find_potentials(apart):
        pass
    for run in (whole, apart):
        for _ in runs.train(run):
            pass
    assert whole.metrics.read_text() == apart.metrics.read_text()
    assert checkpoints.file_hash(whole.potentials) == checkpoints.file_hash(apart.potentials)


def test_damaged_potentials_are_named(created):
    run = created()
    run.potentials.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"potentials\.safetensors"):
        next(runs.train(run))


def test_potentials_of_other_data_are_refused(created, table):
    run = created()
    for _ in runs.find_potentials(run):
        pass
    with np.load(table) as arrays:
        np.savez(table, x=arrays["x"] + 1, y=arrays["y"])
    with pytest.raises(InputError, match="has changed since the run began"):
        run.config.load_data()
    others = run.config.model_copy(update={"data_hash": None}).load_data()
    with pytest.raises(InputError, match="the data have changed"):
        semidiscrete_pairs(run, others, CPU)


class Team:
    """Two processes, as threads: each hears what both say."""

    def __init__(self, first, meeting, said):
        self.first, self.part, self.device, self.meeting, self.said = first, Part(int(not first), 2), CPU, meeting, said

    def any(self, flag):
        self.said[self.part.index] = flag
        self.meeting.wait(30)
        heard = any(self.said)
        self.meeting.wait(30)
        return heard


@pytest.mark.parametrize("late", [0, 1])
def test_of_two_processes_the_first_finds_them_and_both_wait(created, late):
    run, meeting, said, found = created(), threading.Barrier(2), [False, False], {}

    def process(index):
        if index == late:
            time.sleep(0.3)
        states = list(runs.find_potentials(run, Team(index == 0, meeting, said)))
        found[index] = (len(states) > 0, run.potentials.exists())

    threads = [threading.Thread(target=process, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {0: (True, True), 1: (False, True)}


def test_a_step_whose_labels_are_all_hidden_is_logged(created):
    """Of one pair a step: the label of some is dropped, and then there is no plan to tell of."""
    run = created(
        coupling="sinkhorn", labels=True, train={"steps": 30, "batch_size": 1, "label_dropout": 0.5, **LOGGED}
    )
    for _ in runs.train(run):
        pass
    told = ["marginal_error" in line for line in run.history()]
    assert set(told) == {True, False}


def test_a_search_that_is_left_leaves_nothing(created):
    run = created(coupling={"name": "semidiscrete", "tolerance": 1e-4})
    states = runs.find_potentials(run)
    next(states)
    states.close()
    assert not run.potentials.exists()


def test_mirrored_images_have_no_given_rows():
    with pytest.raises(InputError, match=r"images\.flip"):
        resolve_config({"data": "digits", "coupling": "semidiscrete", "images": {"flip": True}})


@pytest.mark.parametrize("settings", [{"points": 0}, {"tolerance": 0.0}, {"draws_per_row": 0.0}])
def test_settings_are_positive(settings):
    with pytest.raises(InputError, match="semidiscrete"):
        resolve_config({"data": "moons", "coupling": {"name": "semidiscrete", **settings}})
