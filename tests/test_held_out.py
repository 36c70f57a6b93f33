"""Rows are trained on or held out, never both; and neither training nor evaluation sees those of the other."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from flowgen import InputError, evaluation, runs
from flowgen.config import SplitConfig, load_data
from flowgen.core import generator
from flowgen.data import TensorDataset, split
from flowgen.evaluation import Reference, Settings


def weights(run):
    return runs.load(run.folder).model.state_dict()


def changed(path, which):
    """Adds 100 to the rows `which` of a table."""
    kept = dict(np.load(path))
    kept["x"][which.numpy()] += 100
    np.savez(path, **kept)


@pytest.mark.parametrize("rows", [1, 2, 9, 10, 1000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_every_row_is_either_trained_on_or_held_out(rows, share):
    x = torch.arange(float(rows)).unsqueeze(1)
    seen, unseen = split(x, share, seed=3)
    assert sorted([*seen.tolist(), *unseen.tolist()]) == list(range(rows))
    assert len(unseen) == math.floor(share * rows)
    again = split(x, share, seed=3)
    assert torch.equal(seen, again[0])
    assert torch.equal(unseen, again[1])


def test_held_out_rows_are_a_fair_draw():
    counts = torch.zeros(20)
    for seed in range(2000):
        counts[split(torch.arange(20.0).unsqueeze(1), 0.25, seed)[1]] += 1
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(InputError, match="share"):
        split(torch.zeros(10, 2), share, 0)


def test_equal_rows_are_never_both_trained_on_and_held_out(normal):
    x = normal("rows", 50, 3).repeat(4, 1)[torch.randperm(200, generator=generator(0, "order"))]
    seen, unseen = split(x, 0.3, seed=1)
    assert len(unseen) == 4 * 15
    assert torch.cdist(x[seen], x[unseen], compute_mode="donot_use_mm_for_euclid_dist").min() > 0


def test_the_split_is_of_places_and_not_of_values(normal):
    """Rows that are changed stay where they were, as long as the same rows are equal."""
    x = normal("rows", 60, 2)
    assert torch.equal(split(x, 0.2, 0)[1], split(x.square() - 3 * x, 0.2, 0)[1])


def test_training_does_not_see_held_out_rows(table, tmp_path, trained):
    """Their values are nothing to the weights, nor to the scaling."""
    before = weights(trained(table, tmp_path / "run"))
    seen, unseen = split(torch.from_numpy(np.load(table)["x"]), 0.1, 0)
    changed(table, unseen)
    after = weights(trained(table, tmp_path / "run"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    changed(table, seen[:1])
    other = weights(trained(table, tmp_path / "run"))
    assert not all(torch.equal(before[name], other[name]) for name in before)


@pytest.mark.costly
def test_evaluation_does_not_see_training_rows(table, tmp_path, trained, monkeypatch):
    """Their values are nothing to any figure but the share of copies, which is there to compare with them."""
    run = trained(table, tmp_path / "run")
    seen, unseen = split(torch.from_numpy(np.load(table)["x"]), 0.1, 0)
    settings = Settings(steps=(2,), num=15, repeats=2, neighbours=3)
    monkeypatch.setattr("flowgen.runs.Trained.check_data", lambda self, data: data)  # which would refuse at once
    monkeypatch.setattr(
        "flowgen.config.Config.read_data", lambda self: load_data(self.data, self.split)
    )  # as would that

    def figures():
        measured = evaluation.load_subject(run.folder)
        (quality,) = evaluation.quality(measured, settings)
        floor, geometry = evaluation.real_vs_real(measured, settings), evaluation.geometry(measured, settings)
        return [{key: x for key, x in part.items() if key != "copies"} for part in (quality.figures, floor, geometry)]

    before = figures()
    changed(table, seen)
    assert figures() == before
    changed(table, unseen)
    assert figures() != before


def test_data_that_have_changed_are_refused(table, tmp_path, trained):
    """Other rows would be held out, and what training saw could be called unseen."""
    run = trained(table, tmp_path / "run")
    changed(table, torch.tensor([0]))
    with pytest.raises(InputError, match="has changed since the run began"):
        evaluation.load_subject(run.folder)
    with pytest.raises(InputError, match="has changed since the run began"):
        run.extended({"train.steps": 40})
    with pytest.raises(InputError, match="has changed since the run began"):
        next(runs.train(run))


def test_a_source_table_is_held_out_too(table, tmp_path, trained):
    run = trained(table, tmp_path / "run", source=str(table))
    measured = evaluation.load_subject(run.folder)
    unseen = {tuple(row) for row in load_data(str(table), SplitConfig()).held_out.x.tolist()}
    (drawn,) = measured.source.draw(30, 0, 0)
    starts = measured.model.scaling.undo(drawn)
    near = torch.cdist(starts.double(), torch.tensor(sorted(unseen), dtype=torch.float64)).amin(1)
    assert near.max() < 1e-5
    assert len(starts.unique(dim=0)) == 30  # and none of them twice, as the truth has none twice
    assert measured.size(10_000) == 15


def test_the_split_has_a_seed_of_its_own_which_a_reflow_keeps(table, tmp_path, trained):
    run = trained(table, tmp_path / "run", seed=5, split={"seed": 9, "held_out": 0.3})
    again = runs.reflow_config(run.folder, {"reflow.pairs": 10, "seed": 6})
    assert again.split == run.config.split == SplitConfig(held_out=0.3, seed=9)
    assert len(load_data(str(table), again.split).held_out.x) == 90


def test_a_table_without_held_out_rows_says_so(table, tmp_path, trained):
    run = trained(table, tmp_path / "run", split={"held_out": 0})
    with pytest.raises(InputError, match="was held out"):
        evaluation.load_subject(run.folder)
    assert evaluation.load_subject(run.folder, against=table).size(10_000) == 150


def test_two_sets_have_no_row_in_common():
    rows = torch.arange(101.0).unsqueeze(1)
    reference = Reference("rows", TensorDataset(rows))
    assert reference.size(1000) == 50
    draws = [reference.draw(50, 0, index) for index in range(20)]
    for first, second in draws:
        assert len(first) == len(second) == 50
        assert not set(first.flatten().tolist()) & set(second.flatten().tolist())
    assert len({tuple(first.flatten().tolist()) for first, _ in draws}) == 20
    for again, before in zip(reference.draw(50, 0, 7), draws[7], strict=True):
        assert torch.equal(again, before)
