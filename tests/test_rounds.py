"""Rounds of reflow look after themselves: what each came to is measured, kept, and acted on."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import flowgen_cli
import numpy as np
import pytest
import torch

from flowgen import evaluation, metrics, runs
from flowgen.config import resolve_config
from flowgen.core import InputError
from flowgen.data import TOYS
from flowgen.evaluation import Figures, Round, Settings, measure_round, rounds
from flowgen.runs import Run
from flowgen.samplers import ode
from flowgen.training.checkpoints import file_hash

pytestmark = pytest.mark.journey


@pytest.fixture(autouse=True)
def few(few_measured, monkeypatch):
    monkeypatch.setattr(rounds, "ROWS", Settings(num=200, repeats=3))
    monkeypatch.setattr(rounds, "IMAGES", Settings(num=40, repeats=2))


@pytest.fixture
def teacher(once, tmp_path):
    return Run.open(shutil.copytree(once("moons", steps=300, coupling="independent"), tmp_path / "moons"))


def reflowed(parent, folder, **settings):
    settings = {"reflow.pairs": 500, "reflow.steps": 20, "train.steps": 60, **settings}
    run = Run.create(folder, runs.reflow_config(parent.folder, settings), "", overwrite=True)
    for _ in runs.make_pairs(run):
        pass
    for _ in runs.train(run):
        pass
    return run


def of(straightness, marginal, repeats=3):
    """The figures of a run that are the same in all sets, but for a part that runs share."""
    shared = torch.linspace(-0.5, 0.5, repeats).tolist()
    marginals = tuple(marginal + x for x in shared)
    return Figures("run", "hash", 1.0, (straightness,) * repeats, marginals, marginals)


def a_round(first, parent, made, floor=0.0):
    return Round({}, (floor,) * 3, of(*first), of(*parent), of(*made))


# what is measured


def test_figures_are_those_of_the_metrics_beside_true_rows(teacher, tmp_path):
    run = reflowed(teacher, tmp_path / "one")
    found = measure_round(run)
    model, distribution = runs.load(run.folder).model, TOYS["moons"]()
    rng = torch.Generator().manual_seed(7)
    x0, truth, other = (
        torch.randn(4000, 2, generator=rng),
        distribution.sample(4000, rng),
        distribution.sample(4000, rng),
    )
    with torch.no_grad():
        one = x0 + model.velocity(x0, torch.zeros(4000))
        walked = metrics.geometry(model.velocity, x0, torch.linspace(0, 1, 101, dtype=torch.float64))
    mean = {name: evaluation.measure.estimate(getattr(found.made, name)) for name in Figures._fields[3:]}
    assert mean["straightness"].mean == pytest.approx(walked.straightness, rel=0.3)
    # of 200 rows the distance of equal laws is sqrt(2 E|x - x'| / 200), which adds to the square of any other
    noise = 2 * (truth - other).norm(dim=1).mean().item() / 200
    for name, ends in (("one_step", one), ("marginal", walked.end)):
        exact = math.sqrt(metrics.energy_distance(ends, truth) ** 2 + noise)
        assert mean[name].mean == pytest.approx(exact, rel=0.25)
    assert np.mean(found.floor) == pytest.approx(math.sqrt(noise), rel=0.3)
    assert (found.made.hash, found.parent.hash) == tuple(file_hash(each.weights) for each in (run, teacher))
    assert found.first == found.parent
    assert found.made.straightness < found.parent.straightness


def test_a_guided_parent_is_measured_as_its_pairs_were_made(trained, table, tmp_path):
    parent = trained(table, tmp_path / "parent", labels=True, steps=60)
    plain, guided = (measure_round(reflowed(parent, tmp_path / f"{w}", **{"reflow.guidance": w})) for w in (1.0, 4.0))
    assert guided.parent.hash == plain.parent.hash
    assert guided.parent.guidance == 4
    assert guided.parent.marginal != plain.parent.marginal
    assert guided.made.guidance == 1


@pytest.mark.parametrize("path", ["cosine", "ve"])
def test_a_parent_on_another_schedule_starts_as_its_samples(tmp_path, path, monkeypatch):
    monkeypatch.setattr(evaluation.measure, "FINE", 100)
    monkeypatch.setattr(rounds, "ROWS", Settings(num=100, repeats=2))
    tree = {
        "data": "moons",
        "schedule": path,
        "net": {"width": 16, "depth": 2},
        "train": {"steps": 400, "batch_size": 64},
    }
    parent = Run.create(tmp_path / "parent", resolve_config(tree), "")
    for _ in runs.train(parent):
        pass
    found = measure_round(reflowed(parent, tmp_path / "child", **{"reflow.tolerance": 1.0})).parent
    subject = evaluation.load_subject(parent.folder)
    exact = evaluation.geometry(subject, rounds.ROWS)["straightness"].mean
    assert np.mean(found.straightness) == pytest.approx(exact, rel=1e-6)
    for figure, steps, solver in ((found.one_step, 1, ode.euler), (found.marginal, 400, ode.heun)):
        (quality,) = evaluation.quality(subject, rounds.ROWS._replace(steps=(steps,), solver=solver))
        assert np.mean(figure) == pytest.approx(quality.figures["energy"].mean, rel=5e-3)


def test_images_are_compared_by_frechet_distance(trained, tmp_path, normal):
    np.save(tmp_path / "images.npy", normal("images", 400, 4, 4).float().sigmoid().numpy())
    small = {"net": {"name": "resmlp", "width": 16, "depth": 1}}
    parent = trained(tmp_path / "images.npy", tmp_path / "parent", **small)
    found = measure_round(reflowed(parent, tmp_path / "child"))
    assert found.how["distance"] == "Fréchet distance"
    assert found.how["rows_per_set"] == 20
    assert all(map(math.isfinite, found.made.marginal))


def test_what_cannot_be_measured_is_said(trained, table, teacher, tmp_path):
    with pytest.raises(InputError, match="no reflow"):
        measure_round(teacher)
    parent = trained(table, tmp_path / "parent", split={"held_out": 0.0})
    with pytest.raises(InputError, match="held out"):
        measure_round(reflowed(parent, tmp_path / "child"))
    parent = trained(table, tmp_path / "few", split={"held_out": 0.01})
    with pytest.raises(InputError, match="too few"):
        measure_round(reflowed(parent, tmp_path / "few child"))


# what is kept


def test_figures_of_the_same_weights_are_kept(teacher, tmp_path, monkeypatch):
    one = reflowed(teacher, tmp_path / "one")
    first = measure_round(one)
    two = reflowed(one, tmp_path / "two", **{"train.steps": 20})
    measured, follow = [], rounds.follow

    def noted(subject, *rest):
        measured.append(subject.name)
        return follow(subject, *rest)

    monkeypatch.setattr(rounds, "follow", noted)
    second = measure_round(two)
    assert set(measured) == {"two"}
    assert (second.first, second.parent) == (first.first, first.made)
    measured.clear()
    assert measure_round(two) == second
    assert not measured
    kept = json.loads((two.folder / "round.json").read_text())
    assert kept["made"]["hash"] == file_hash(two.weights)
    assert kept == second.plain()
    told = runs.describe(two.folder)["round"]
    assert told["gain"] == second.gain
    assert told["made"]["one_step"] == pytest.approx(np.mean(second.made.one_step))
    assert told["parent"]["marginal"] == pytest.approx(np.mean(first.made.marginal))
    assert runs.describe(teacher.folder)["round"] is None


def test_figures_that_were_measured_otherwise_are_measured_anew(teacher, tmp_path, monkeypatch):
    run = reflowed(teacher, tmp_path / "one")
    first = measure_round(run)
    monkeypatch.setattr(rounds, "ROWS", Settings(num=150, repeats=3))
    again = measure_round(run)
    assert again.how == {**first.how, "rows_per_set": 150}
    assert again.made.hash == first.made.hash
    assert min(again.made.marginal) != min(first.made.marginal)
    assert json.loads((run.folder / "round.json").read_text()) == again.plain()


def test_figures_of_other_weights_are_measured_anew(teacher, tmp_path):
    run, other = reflowed(teacher, tmp_path / "one"), reflowed(teacher, tmp_path / "two", seed=5)
    first = measure_round(run)
    shutil.copy(run.folder / "round.json", other.folder)
    again = measure_round(other)
    assert (again.made.hash, again.parent) == (file_hash(other.weights), first.parent)
    assert again.made.marginal != first.made.marginal
    for damage in ("", "{", "[1]", '{"how": 3}'):
        (run.folder / "round.json").write_text(damage)
        assert measure_round(run) == first


def test_the_first_flow_is_the_last_ancestor_there(teacher, tmp_path):
    one = reflowed(teacher, tmp_path / "one")
    two = reflowed(one, tmp_path / "two")
    three = reflowed(two, tmp_path / "three")
    assert measure_round(three).first.run == str(teacher.folder)
    (three.folder / "round.json").unlink()
    shutil.rmtree(teacher.folder)
    assert measure_round(three).first.run == str(one.folder)
    (three.folder / "round.json").unlink()
    one.weights.write_bytes(two.weights.read_bytes())
    assert measure_round(three).first.run == str(two.folder)


# what is made of it


@pytest.mark.parametrize(
    ("straightness", "gain"),
    [((2.0, 2.0, 0.5), 0.75), ((2.0, 0.5, 0.1), 0.2), ((2.0, 0.5, 0.5), 0.0), ((2.0, 0.5, 0.7), -0.1)],
)
def test_the_gain_is_the_share_of_bends_removed(straightness, gain):
    assert a_round(*((x, 1.0) for x in straightness)).gain == pytest.approx(gain)


@pytest.mark.parametrize(
    ("first", "made", "floor", "drifted"),
    [
        (2.0, 2.0, 0.0, False),
        (2.0, 2.4, 0.0, False),  # less than a quarter worse
        (2.0, 2.6, 0.0, True),
        (2.0, 1.0, 0.0, False),  # better
        (2.0, 2.6, 3.0, False),  # nearer than true data are
        (2.0, 3.6, 3.0, False),
        (2.0, 3.8, 3.0, True),
        (2.0, math.nan, 0.0, True),
    ],
)
def test_a_flow_worse_than_the_first_has_drifted(first, made, floor, drifted):
    assert a_round((1.0, first), (1.0, 1.0), (1.0, made), floor).drifted == drifted


def test_a_drift_that_may_be_chance_is_none():
    found = a_round((1.0, 2.0), (1.0, 2.0), (1.0, 3.0))
    assert found.drift.ci95 == pytest.approx(0, abs=1e-9)
    noisy = found._replace(made=found.made._replace(marginal=(1.0, 2.0, 7.0)))
    assert noisy.drift.mean > 1.25
    assert found.drifted
    assert not noisy.drifted


# the command


QUICK = ("--pairs", 200, "--steps", 30, "--set", "reflow.steps=4", "--set", "reflow.tolerance=0")


def test_rounds_stop_where_there_is_nothing_more_to_straighten(teacher, flowgen, monkeypatch):
    code, out, _ = flowgen("reflow", teacher.folder, "--out", "r", "--rounds", 3, "--stall", 0.9, *QUICK)
    assert (code, Path("r-1/round.json").exists(), Path("r-2").exists()) == (0, True, False)
    assert "no more rounds: this one straightened" in out
    assert "less than --stall 0.9" in out
    gain = json.loads(Path("r-1/round.json").read_text())["gain"]
    assert f"{gain:.2%}" in out
    code, again, _ = flowgen("reflow", teacher.folder, "--out", "r", "--rounds", 3, "--stall", 0.9, "--resume")
    assert (code, Path("r-2").exists()) == (0, False)
    assert again.splitlines()[1:] == out.splitlines()[1:]
    monkeypatch.setattr(Round, "gain", 0.0)
    code, out, _ = flowgen("reflow", teacher.folder, "--out", "r", "--rounds", 2, "--stall", 0, "--resume", *QUICK)
    assert (code, Path("r-2/round.json").exists(), "no more rounds" in out) == (0, True, False)


def test_a_last_round_and_one_that_is_not_measured_stop_nothing(trained, table, flowgen):
    parent = trained(table, Path("whole"), split={"held_out": 0.0})
    code, out, err = flowgen("reflow", parent.folder, "--rounds", 2, "--stall", 0.99, *QUICK)
    assert code == 0, err
    assert Path("whole-reflow2/model.safetensors").exists()
    assert "whole-reflow1 is not measured: no row" in err
    assert "no more rounds" not in out


def test_a_round_that_drifts_is_warned_of_with_both_figures(teacher, flowgen, monkeypatch):
    """The ends of one Euler step are not the data."""
    monkeypatch.setattr(rounds, "ROWS", Settings(num=1000, repeats=5))
    ruin = ("--pairs", 400, "--steps", 150, "--set", "reflow.solver=euler", "--set", "reflow.steps=1", *QUICK[-2:])
    code, out, err = flowgen("reflow", teacher.folder, "--out", "bad", *ruin)
    assert code == 0
    kept = json.loads(Path("bad/round.json").read_text())
    assert kept["drifted"]
    worse, first = (f"{np.mean(kept[name]['marginal']):.4g}" for name in ("made", "first"))
    assert f"WARNING: its flow is {worse} from the data, and that of {teacher.folder} was {first}" in err
    assert worse in out
    assert first in out


@pytest.mark.parametrize("stall", ["-0.1", "1", "nan"])
def test_a_stall_that_is_no_share_is_refused(teacher, flowgen, stall):
    code, _, err = flowgen("reflow", teacher.folder, "--stall", stall)
    assert (code, "--stall is a share" in err) == (2, True)


STOPPED = """
import os, signal, sys
from flowgen import checkpoints, evaluation, runs
from flowgen.evaluation import rounds
import flowgen_cli
rounds.ROWS = evaluation.Settings(num=200, repeats=3)
seen = []
def stop(module, name, count):
    call = getattr(module, name)
    def counted(*rest, **named):
        seen.append(name)
        if len(seen) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*rest, **named)
    setattr(module, name, counted)
place, count, *arguments = sys.argv[1:]
places = {"write_tensors": checkpoints, "save": checkpoints, "measure_round": evaluation, "new_file": rounds}
if place in places:
    stop(places[place], place, int(count))
sys.argv = ["flowgen", *arguments]
flowgen_cli.main()
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two rounds that nothing has stopped: their folder, and the command."""
    folder = tmp_path_factory.mktemp("whole")
    tree = {"data": "moons", "net": {"width": 16, "depth": 2}, "train": {"steps": 300, "batch_size": 32}}
    run = Run.create(folder / "moons", resolve_config({**tree, "coupling": "independent"}), "")
    for _ in runs.train(run):
        pass
    arguments = ("reflow", run.folder, "--rounds", 2, "--stall", 0, *QUICK, "--set", "reflow.inverted=0.5", "--resume")
    command = [sys.executable, "-c", STOPPED, "none", "0", *map(str, arguments), "--out", str(folder / "r")]
    subprocess.run(command, check=True, env=os.environ, capture_output=True)
    return folder, command


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "count", "left"),
    [
        ("write_tensors", 2, {"pairs"}),
        ("save", 1, {"pairs", "checkpoints"}),
        ("measure_round", 2, {"pairs", "checkpoints", "model.safetensors", "plots"}),
        ("new_file", 2, {"pairs", "checkpoints", "model.safetensors", "plots"}),
    ],
    ids=["in its pairs", "in its training", "before it is measured", "as its figures are kept"],
)
def test_rounds_go_on_wherever_the_second_was_killed(whole, tmp_path, monkeypatch, place, count, left):
    folder, command = whole
    shutil.copytree(folder / "r-1", tmp_path / "r-1")
    out = [*command[:-1], str(tmp_path / "r")]
    killed = subprocess.run([*out[:3], place, str(count), *out[5:]], check=False, env=os.environ, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    there = {path.name for path in (tmp_path / "r-2").iterdir()}
    assert {"pairs", "checkpoints", "model.safetensors", "plots", "round.json"} & there <= left
    monkeypatch.setattr(sys, "argv", ["flowgen", *out[5:]])
    with pytest.raises(SystemExit) as end:
        flowgen_cli.main()
    assert not end.value.code
    one, other = (json.loads((place / "r-2/round.json").read_text()) for place in (folder, tmp_path))
    for name in Figures._fields[3:]:
        assert one["made"][name] == other["made"][name]
    for name in ("shard-00000", "shard-00001"):
        one, other = (place / f"r-2/pairs/{name}.safetensors" for place in (folder, tmp_path))
        assert one.stat().st_size == other.stat().st_size
