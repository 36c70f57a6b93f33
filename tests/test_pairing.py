"""What couplings cost, as it is measured: the same pairs as training reads, the same draws for all, the right clock."""

import sys
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flowgen import data, plots, runs
from flowgen.config import COUPLINGS, Config, resolve_config, semidiscrete
from flowgen.core import InputError, Pair, generator
from flowgen.couplings import ExactOT, Independent, Sinkhorn
from flowgen.evaluation import pairing
from flowgen.evaluation.pairing import Comparison, Measured, Trial
from flowgen.pairs import IndependentPairs, Pool

pytestmark = pytest.mark.journey

QUICK = [name for name in COUPLINGS if name != "semidiscrete"]
"""What is measured where no coupling is named."""
PERMUTATIONS = ("independent", "multiscale", "exact", "sinkhorn", "bridge")


def compared(tree: dict, names: tuple[str, ...] = (), pools: int = 1) -> Comparison:
    """The comparison of couplings on some data."""
    trials = pairing.trials(tree, names)
    loaded = trials[0].config.load_data()
    ends = ends_of(trials[0].config)
    measured = [pairing.measure(trial, loaded, ends, pools) for trial in trials]
    return Comparison("data", pairing.default_of(tree), pools, len(loaded.classes), measured)


def ends_of(config: Config) -> IndependentPairs:
    return config.ends(config.load_data(), torch.device("cpu"))


def stream(config: Config) -> Iterator[Pair]:
    """The pairs of a configuration as they are measured."""
    return pairing.stream_of(config, config.load_data(), ends_of(config), pairing.Clock(), print).pairs


def costs(found: Comparison) -> dict[str, float]:
    return {each.trial.name: each.cost for each in found.measured}


def small(name: str, **settings) -> dict:
    return {"data": name, "train": {"batch_size": 64}, "pool": {"batches": 4}, **settings}


@pytest.fixture(scope="module")
def moons() -> Comparison:
    return compared({"data": "moons", "train": {"batch_size": 128}, "pool": {"batches": 16, "reuse": 5}})


# what is measured


def test_the_cost_of_independent_pairs_follows_from_the_moments(moons):
    x0, x1 = data.Gaussian().sample(100_000, generator(1, "x0")), data.moons().sample(100_000, generator(1, "x1"))
    expected = x0.square().sum(1).mean() + x1.square().sum(1).mean() - 2 * x0.mean(0) @ x1.mean(0)
    deviation = (x0 - x1).square().sum(1).std() / moons.rows**0.5
    assert moons.rows == 16 * 128
    assert abs(moons.measured[0].cost - expected) < 4 * deviation


def test_the_less_a_coupling_is_free_the_more_its_pairs_cost():
    tree = {"data": "8gaussians", "source": "moons", "train": {"batch_size": 128}, "pool": {"batches": 4}}
    groups = [costs(compared({**tree, "coupling": {"group": group}}, ("exact", "sinkhorn"))) for group in (0, 128, 16)]
    for found in groups:
        assert found["exact"] < found["sinkhorn"] < found["independent"]
    assert groups[0]["exact"] < groups[1]["exact"] < groups[2]["exact"]
    assert groups[0]["independent"] == groups[1]["independent"]
    partial = costs(compared(tree, ("partial", "exact")))
    assert partial["partial"] < partial["exact"]


def test_all_couplings_see_the_same_draws(moons):
    first, *others = moons.measured
    assert [each.trial.name for each in moons.measured] == QUICK
    for each in others:
        assert torch.equal(each.shown.x0, first.shown.x0)
        assert (each.data == first.data) == (each.trial.name in PERMUTATIONS), each.trial.name


def test_every_pair_counts_once():
    """The mean squared distance of all pairs of two pools of the stream itself."""
    tree = small("moons", coupling={"group": 64})
    found = compared(tree, ("exact",), pools=2).measured[1]
    config = found.trial.config
    pairs = Pair.cat(list(islice(stream(config), 8)))
    assert found.cost == pytest.approx(float(np.mean(np.sum((pairs.x0 - pairs.x1).double().numpy() ** 2, axis=1))))
    assert torch.equal(found.shown.x1, pairs.x1[:64])
    assert (len(found.data), set(found.data.values())) == (8 * 64, {1})


def images_with_labels(folder: Path) -> str:
    rng = np.random.default_rng(0)
    np.savez(folder / "i.npz", x=rng.integers(0, 255, (90, 6, 6), np.uint8), y=np.arange(90) % 3)
    return str(folder / "i.npz")


SETTINGS = {
    "toys": {"data": "moons", "source": "8gaussians", "coupling": "multiscale", "pool": {"batches": 40, "reuse": 1}},
    "labels": {"coupling": "sinkhorn", "pool": {"batches": 3, "reuse": 1}},
    "cells": {"coupling": "semidiscrete"},
    "flips": {"coupling": "exact", "images": {"flip": True}},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_what_is_measured_is_what_training_reads(tmp_path, monkeypatch, kind):
    net = {"name": "resmlp", "width": 8, "depth": 1}
    tree = {"data": images_with_labels(tmp_path), "net": net, "seed": 3, **SETTINGS[kind]}
    tree["train"] = {"batch_size": 32, "label_dropout": 0.0}
    read: list[Pair] = []

    def fit(state, pairs, *rest, **named) -> Iterator[float]:
        read.extend(islice(pairs, resolve_config(tree).pool.batches))
        return iter(())

    monkeypatch.setattr(sys.modules["flowgen.runs.train"], "fit", fit)
    assert not list(runs.train(runs.Run.create(tmp_path / "run", resolve_config(tree), "flowgen train")))
    name = tree.pop("coupling")
    config = pairing.trials(tree, [name])[1].config
    made = list(islice(stream(config), len(read)))
    for one, other in zip(read, made, strict=True):
        assert torch.equal(one.x0, other.x0)
        assert torch.equal(one.x1, other.x1)
        assert (one.cond is None) == (other.cond is None)
        assert one.cond is None or torch.equal(one.cond, other.cond)


class Scripted:
    """A coupling that takes so many seconds of a clock of its own: to be prepared, and for each call after another."""

    group = 64

    def __init__(self, preparation: float, calls: list[float]) -> None:
        self.now, self.preparation, self.calls = 0.0, preparation, iter(calls)

    def __call__(self, pair: Pair, generator: torch.Generator) -> Pair:
        warnings.warn(f"call at {self.now}", RuntimeWarning, stacklevel=1)
        self.now += next(self.calls)
        return pair._replace(x1=pair.x1[torch.arange(64) // 4 * 4])

    def prepared(self, rows, draw):
        assert len(draw(10).x0) == 10
        self.now += self.preparation
        return self

    def diagnostics(self, x0, x1, cond=None):
        return {"rows": len(x0), "distance": (x0 - x1).square().sum(1).mean().item()}


@pytest.fixture
def scripted(monkeypatch) -> Measured:
    """Three pools of four batches, one call each; what comes before them is the warm-up."""
    coupling = Scripted(100.0, [50.0, *[1.0] * 4, *[9.0] * 4, *[2.0] * 4])
    monkeypatch.setattr(pairing, "time", SimpleNamespace(perf_counter=lambda: coupling.now))
    (trial,) = pairing.trials(small("moons"), ["independent"])
    data, ends = trial.config.load_data(), ends_of(trial.config)
    fake = Trial("fake", trial.config.model_copy(update={"coupling": coupling}))
    plain, found = pairing.measure(trial, data, ends, 3), pairing.measure(fake, data, ends, 3)
    return Comparison("moons", "fake", 3, 0, [plain, found])


def test_preparation_and_warm_up_are_no_part_of_a_batch(scripted):
    found = scripted.measured[1]
    assert found.preparation == 100
    assert found.seconds == 2  # the median over pools


def test_the_share_of_the_data_that_is_used_counts_rows(scripted):
    plain, found = scripted.measured
    assert scripted.used(plain) == 1
    assert scripted.used(found) == 0.25


def test_a_warning_is_told_once_and_counted(scripted):
    assert scripted.measured[0].warnings == []
    (told,) = scripted.measured[1].warnings
    assert told == "call at 100.0 (and 12 times more)"


def test_facts_are_of_ends_that_are_not_coupled_yet(scripted):
    facts = scripted.measured[1].diagnostics
    assert facts["rows"] == 64
    assert facts["distance"] > 5  # independent pairs: 6.2 in the mean
    wide = compared({**small("moons"), "coupling": {"group": 256}}, ("sinkhorn",)).measured[1]
    config = wide.trial.config
    drawn = next(ends_of(config).stream(256, seed=config.seed))
    assert wide.diagnostics == Sinkhorn(group=256).diagnostics(*drawn)


def test_rows_that_are_drawn_often_are_not_counted_once(tmp_path, normal):
    """Of 20 rows, each drawn many times in a pool, partial transport leaves out a share each time."""
    np.save(tmp_path / "t.npy", normal("few", 20, 2).numpy())
    found = compared(small(str(tmp_path / "t.npy")), ("partial", "exact"))
    _, partial, exact = found.measured
    assert found.used(exact) == 1
    assert 0.85 < found.used(partial) < 0.97


def test_potentials_are_found_once(tmp_path, monkeypatch, normal):
    np.save(tmp_path / "t.npy", normal("few", 20, 2).numpy())
    sought, ascend = [], semidiscrete.ascend
    monkeypatch.setattr(semidiscrete, "ascend", lambda *rest, **named: sought.append(named) or ascend(*rest, **named))
    compared(small(str(tmp_path / "t.npy"), coupling={"draws_per_row": 300.0}, seed=2), ("semidiscrete",), pools=3)
    assert sought == [{"seed": 2, "labels": None, "tolerance": 0.02, "draws_per_row": 300.0}]


# trials


@pytest.mark.parametrize(
    ("name", "coupling", "group"),
    [
        ("independent", {}, None),
        ("exact", {}, 256),  # of the 512 that it would solve, a pool of 4 batches of 64 has 256
        ("exact", {"group": 32}, 32),
        ("exact", {"group": 300}, 256),
        ("sinkhorn", {}, 128),
        ("multiscale", {}, 256),
        ("exact", {"group": 0}, 256),
    ],
)
def test_the_rows_that_are_solved_together(name, coupling, group):
    assert pairing.trials(small("moons", coupling=coupling), [name])[-1].group == group


def test_trials_are_what_training_does_with_each_coupling():
    trials = pairing.trials({"data": "moons", "coupling": {"group": 4000, "epsilon": 0.5}, "train": {"batch_size": 32}})
    assert [trial.name for trial in trials] == QUICK
    made = {trial.name: trial.config for trial in trials}
    assert made["independent"].coupling == Independent()
    assert made["exact"].coupling == ExactOT(4000)
    assert made["sinkhorn"].coupling == Sinkhorn(0.5, group=4000)
    assert {config.pool.batches for config in made.values()} == {125}  # the least that holds the group
    assert (made["independent"].pool.reuse, made["exact"].pool) == (1, Pool(125, 10))
    assert [trial.name for trial in pairing.trials({"data": "moons"}, ["exact", "exact"])] == ["independent", "exact"]


@pytest.mark.parametrize(
    ("tree", "names", "words"),
    [
        ({"coupling": "exact"}, [], "by --coupling"),
        ({"coupling": 3}, [], "by --coupling"),
        ({"coupling": {"name": "exact", "group": 3}}, [], "by --coupling"),
        ({"coupling": {"epsilom": 3}}, [], "did you mean epsilon"),
        ({"coupling": {"epsilon": 0.1}}, ["exact"], "parameter of these couplings"),
        ({"coupling": {"group": 3}}, ["independent"], "choose from none"),
        ({"coupling": {"group": -1}}, [], "group"),
        ({"coupling": {"group": 0}}, ["multiscale", "sinkhorn"], "at most 8192 rows together, not 51200"),
        ({}, ["exat"], "did you mean exact"),
        ({"trian": {}}, [], "did you mean train"),
    ],
)
def test_bad_trials(tree, names, words):
    with pytest.raises(InputError, match=words):
        pairing.trials({"data": "moons", **tree}, names)


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        ({"data": "moons", "coupling": {"group": 3}}, "multiscale"),
        ({"data": "digits"}, "independent"),
        ({"data": "moons", "schedule": "vp"}, "independent"),
    ],
)
def test_the_default_is_that_of_the_data(tree, name):
    assert pairing.default_of(tree) == name


# the picture


def test_the_picture_joins_the_pairs(moons, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "write", lambda path, made: drawn.append(made))
    panels = {each.trial.name: each.shown for each in moons.measured}
    plots.pairs(Path("p.png"), panels)
    axes = [axis for axis in drawn[0].axes if axis.axison]
    assert [axis.get_title() for axis in axes] == list(panels)
    assert len({(axis.get_xlim(), axis.get_ylim()) for axis in axes}) == 1
    for axis, pair in zip(axes, panels.values(), strict=True):
        left, right = axis.get_xlim()
        low, high = axis.get_ylim()
        assert axis.get_box_aspect() == pytest.approx((high - low) / (right - left))  # a unit is a unit either way
        *lines, sources, ends = (line.get_xydata() for line in axis.lines)
        assert len(lines) == min(len(pair.x0), 200)
        assert np.array_equal(np.stack(lines), torch.stack(pair[:2], 1)[:200].double().numpy())
        assert np.array_equal(sources, pair.x0.double().numpy())
        assert np.array_equal(ends, pair.x1.double().numpy())
