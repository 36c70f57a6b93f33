"""Distillation of runs: what a student learns from, with which weights it begins, and how it is sampled."""

import shutil
import tomllib

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowgen import checkpoints, grids, runs, sampling
from flowgen.config import make_config
from flowgen.core import InputError
from flowgen.guidance import Guided
from flowgen.objectives import flow_maps
from flowgen.runs import Run, distill_config
from flowgen.runs.distillation import METHODS, teaching, warm_start
from flowgen.runs.places import found_in
from flowgen.samplers.flow_map import FlowMapStep
from flowgen.samplers.ode import heun, rk4
from flowgen.sampling import SolverFlowMap

pytestmark = pytest.mark.journey

SMALL = {"net": {"width": 16, "depth": 2}, "pool": {"batches": 3}}
TRAIN = {"batch_size": 32, "log_every": 4, "checkpoint_every": 5}
QUICK = ["--train-steps", 6, "--set", "train.log_every=2"]
LEARN = tuple(name for name in METHODS if name != "endpoint")
"""Methods that need no pairs of a flow on a straight path."""


def finish(run):
    if run.config.reflow:
        for _ in runs.make_pairs(run):
            pass
    for _ in runs.train(run):
        pass
    return run


def made(folder, steps=30, **tree):
    """A small trained run."""
    config = make_config({"data": "moons", "train": {"steps": steps, **TRAIN}, **SMALL, **tree})
    return finish(Run.create(folder, config, "flowgen train"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Runs that no test changes: a flow, one with diffusion's path, one with noise on its path, and a reflow."""
    folder = tmp_path_factory.mktemp("runs")
    flow = made(folder / "flow")
    made(folder / "vp", schedule="vp")
    made(folder / "bridge", coupling={"name": "bridge", "sigma": 0.3})
    reflow = runs.reflow_config(flow.folder, {"reflow.pairs": 128, "train.steps": 5})
    finish(Run.create(folder / "reflow", reflow, "flowgen reflow"))
    return folder


@pytest.fixture
def student(store, tmp_path):
    """student(method, teacher, jumps, guidance, pairs, settings): a run that is not trained yet."""

    def create(method, teacher="flow", jumps=1, guidance=1.0, pairs=None, **settings):
        settings = {"train.steps": 12, **{key.replace("__", "."): value for key, value in settings.items()}}
        if pairs is None and (method == "endpoint" or teacher != "flow"):
            pairs = 128
        config = distill_config(store / teacher, method, jumps, settings, pairs, guidance)
        return Run.create(tmp_path / f"{method} of {teacher}", config, "flowgen distill", overwrite=True)

    return create


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


def everything(run):
    state = load_file(checkpoints.find(run.checkpoints)[-1] / "state.safetensors")
    return {**state, **{f"weights {k}": x for k, x in load_file(run.weights).items()}}, run.metrics.read_text()


# configuration

SECTIONS = {
    ("flow", "endpoint"): {"reflow"},
    ("flow", "progressive"): {"distill"},
    ("flow", "meanflow"): {"distill"},
    ("flow", "consistency"): {"distill"},
    ("reflow", "endpoint"): {"reflow"},
    ("reflow", "shortcut"): {"reflow"},
    ("reflow", "progressive"): {"reflow", "distill"},
    ("vp", "endpoint"): {"reflow"},
    ("vp", "meanflow"): {"reflow"},
    ("bridge", "alpha-flow"): {"reflow"},
}


@pytest.mark.parametrize(("teacher", "method"), SECTIONS, ids=["-".join(key) for key in SECTIONS])
def test_a_student_learns_from_pairs_or_from_a_velocity(teacher, method, student, store):
    run = student(method, teacher)
    tree = tomllib.loads((run.folder / "config.toml").read_text())
    assert {"reflow", "distill"} & tree.keys() == SECTIONS[teacher, method]
    for section in SECTIONS[teacher, method]:
        assert (run.folder / tree[section]["parent"]).resolve() == (store / teacher).resolve()
        assert tree[section]["parent_hash"] == checkpoints.file_hash(store / teacher / "model.safetensors")
    assert tree["objective"]["name"] == method
    assert tree["net"]["two_times"] is True
    assert run.config.whole
    assert not run.config.bridge.sigma
    assert run.config == make_config(found_in(tree, run.folder))


def test_a_student_has_the_settings_of_its_teacher(student, tmp_path):
    teacher = made(tmp_path / "teacher", 5, schedule="cosine", seed=7, times="u-shaped", loss="pseudo-huber")
    config = distill_config(teacher.folder, "meanflow", 1, {"net.width": 24})
    before, after = teacher.config.model_dump(), config.model_dump()
    assert after["net"] == {**before["net"], "two_times": True, "width": 24}
    for key in ("schedule", "coupling", "seed", "pool", "train", "data", "split"):
        assert before[key] == after[key]
    assert after["times"] != before["times"]
    assert after["loss"] != before["loss"]


def test_asked_for_pairs_a_velocity_is_not_needed(student):
    run = student("meanflow", pairs=128)
    assert run.config.distill is None
    assert run.config.reflow.pairs == 128
    with pytest.raises(InputError, match="pairs"):
        student("meanflow", pairs=0)


def test_what_teaches_is_the_velocity_of_the_run(student, store):
    config, teacher = student("shortcut").config, runs.load(store / "flow")
    taught, x = teaching(config, torch.device("cpu")), torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    t, s = torch.full((9,), 0.2), torch.full((9,), 0.6)
    assert torch.equal(taught.velocity(x, t), teacher.model.velocity(x, t))
    near = SolverFlowMap(teacher.model.velocity, rk4, 20)(x, t, s)
    torch.testing.assert_close(taught.jump(x, t, s), near, rtol=0.05, atol=0.05)
    objective = config.make_objective(0, taught)
    assert objective.velocity == flow_maps.OfTeacher(taught.velocity)
    assert teaching(student("endpoint").config, torch.device("cpu")) is None


def test_a_teacher_that_jumps_teaches_its_jumps(student, tmp_path):
    first = finish(student("progressive", jumps=4))
    config = distill_config(first.folder, "progressive", 2, {})
    taught, model = teaching(config, torch.device("cpu")), runs.load(first.folder).model
    x, t, s = torch.ones(3, 2), torch.full((3,), 0.25), torch.full((3,), 0.5)
    assert torch.equal(taught.jump(x, t, s), model.average(x, t, s))
    assert (config.objective.jumps, config.distill.parent) == (2, str(first.folder))


# weights


def test_a_student_begins_as_the_velocity_of_its_teacher(method, student, store):
    """With a rate of nothing it stays so."""
    run, teacher = finish(student(method, train__lr=1e-30, train__steps=1)), runs.load(store / "flow").model
    model = runs.load(run.folder).model
    x, (t, s) = torch.linspace(-2, 2, 12).reshape(6, 2), torch.linspace(0, 1, 12).reshape(2, 6)
    assert torch.equal(model.average(x, t, t), teacher.velocity(x, t))
    assert torch.equal(model.average(x, t, s), teacher.velocity(x, t))
    assert all(torch.equal(w, model.state_dict()[name]) for name, w in teacher.state_dict().items())


def test_a_student_of_a_flow_map_keeps_its_second_time(student):
    first = finish(student("progressive", jumps=2))
    model = runs.load(first.folder).model
    assert model.net.delta.weight.any()
    config = distill_config(first.folder, "progressive", 1, {})
    fresh = config.model((2,), model.scaling)
    warm_start(fresh, config)
    assert all(torch.equal(w, fresh.state_dict()[name]) for name, w in model.state_dict().items())


@pytest.mark.parametrize("change", [{"teacher": "vp"}, {"net__width": 24}, {"net__depth": 3}], ids=str)
def test_weights_that_would_mean_something_else_are_not_taken(change, student):
    run = student("endpoint", **change)
    model = run.config.model((2,), runs.load(finish(run).folder).model.scaling)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    warm_start(model, run.config)
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())


# training


@pytest.mark.costly
@pytest.mark.parametrize("teacher", ["flow", "reflow"])
def test_a_student_that_was_left_goes_on_bit_for_bit(method, teacher, student):
    whole = everything(finish(student(method, teacher)))
    run = student(method, teacher)
    if run.config.reflow:
        list(runs.make_pairs(run))
    steps = runs.train(run)
    while next(steps).step < 7:
        pass
    steps.close()
    tensors, log = everything(finish(Run.open(run.folder)))
    assert log == whole[1]
    assert [name for name, x in whole[0].items() if not torch.equal(x, tensors[name])] == []


@pytest.mark.parametrize("teacher", ["vp", "bridge"])
@pytest.mark.parametrize("name", ["endpoint", "meanflow"])
def test_a_flow_that_maps_cannot_follow_is_learned_by_its_pairs(teacher, name, student):
    run = finish(student(name, teacher))
    model, x0 = runs.load(run.folder).model, torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    assert sampling.flow(model, x0, grids.uniform(1), FlowMapStep()).isfinite().all()


@pytest.mark.parametrize("name", ["endpoint", "shortcut"])
def test_a_teacher_that_has_changed_is_not_learned_from(name, store, tmp_path):
    teacher = shutil.copytree(store / "flow", tmp_path / "teacher")
    run = Run.create(tmp_path / "student", distill_config(teacher, name, 1, {"train.steps": 6}, 128), "flowgen distill")
    weights = load_file(teacher / "model.safetensors")
    save_file({key: x + 1e-6 for key, x in weights.items()}, teacher / "model.safetensors")
    with pytest.raises(InputError, match="has changed since it was learned from"):
        finish(run)
    assert not run.weights.exists()


def test_a_student_follows_its_teacher(student, tmp_path):
    """Its one jump is nearer to where the teacher's flow ends than where the teacher's one step is."""
    teacher = made(tmp_path / "teacher", 300, train={"steps": 300, "batch_size": 128}, coupling="independent")
    model = runs.load(teacher.folder).model
    x0 = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    ends = sampling.flow(model, x0, grids.uniform(50), heun)
    euler = (x0 + model.velocity(x0, torch.zeros(500)) - ends).square().mean()
    for name in METHODS:
        settings = {"train.steps": 300, "train.lr": 2e-3}
        config = distill_config(teacher.folder, name, 1, settings, 2000 if name == "endpoint" else None)
        run = finish(Run.create(tmp_path / name, config, "flowgen distill"))
        jump = sampling.flow(runs.load(run.folder).model, x0, grids.uniform(1), FlowMapStep())
        assert (jump - ends).square().mean() < 0.5 * euler, name


# labels


@pytest.fixture
def labelled(table, tmp_path):
    return made(tmp_path / "labelled", data=str(table), labels=True)


def test_a_guided_teacher_is_learned_from_as_it_is_guided(labelled, tmp_path):
    config = distill_config(labelled.folder, "meanflow", 1, {"train.steps": 8}, guidance=2.5)
    assert (config.distill.guidance, config.labels) == (2.5, True)
    taught, teacher = teaching(config, torch.device("cpu")), runs.load(labelled.folder)
    guided = Guided(teacher.model.velocity, 2, 2.5)
    x, t, cond = torch.ones(3, 3), torch.full((3,), 0.4), torch.arange(3)
    assert torch.equal(taught.velocity(x, t, cond), guided(x, t, cond))
    torch.testing.assert_close(taught.velocity(x, t, cond)[2], teacher.model.velocity(x, t)[2])
    assert not torch.equal(taught.velocity(x, t, cond)[:2], teacher.model.velocity(x, t, cond)[:2])
    student = runs.load(finish(Run.create(tmp_path / "student", config, "flowgen distill")).folder)
    assert student.classes == teacher.classes
    with pytest.raises(InputError, match="part of its training"):
        student.guided(student.model.average, 2.0)


def test_guidance_from_scratch_is_of_the_pairs(table, tmp_path):
    objective = {"name": "shortcut", "guidance": 1.5}
    config = made(tmp_path / "run", 8, data=str(table), labels=True, objective=objective).config
    assert config.make_objective(2).velocity == flow_maps.OfPairs(1.5, null=2)
    for settings in ({"labels": False}, {"labels": True, "train": {"label_dropout": 0.0}}):
        with pytest.raises(InputError, match="guidance needs labels"):
            made(tmp_path / "none", data=str(table), objective=objective, **settings)
    assert not (tmp_path / "none").exists()
