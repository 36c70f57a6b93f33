"""flowgen distill, and the other commands on what it makes: they jump by themselves, and only as was learned."""

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from flowgen import checkpoints, runs
from flowgen.config import make_config
from flowgen.data import read_table
from flowgen.runs import Run
from flowgen.runs.pairs import stored_pairs
from flowgen.runs.sampler import sampler
from flowgen.samplers.flow_map import ConsistencySampler, FlowMapStep
from flowgen.samplers.ode import heun

pytestmark = pytest.mark.journey

NET = ["--batch-size", 32, "--set", "net.width=16", "--set", "net.depth=2", "--set", "pool.batches=3"]
MAPS = ("meanflow", "shortcut", "alpha-flow", "consistency")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Trained runs, which tests copy: a flow and flow maps from scratch, two of them with independent pairs."""
    folder, small = tmp_path_factory.mktemp("store"), {"net": {"width": 16, "depth": 2}, "pool": {"batches": 2}}
    runs_of = {
        "moons": {},
        "vp": {"schedule": "vp"},
        "meanflow": {"objective": "meanflow"},
        "consistency": {"objective": "consistency"},
        "consistency-alone": {"objective": "consistency", "coupling": "independent"},
    }
    for name, tree in runs_of.items():
        config = make_config({"data": "moons", "train": {"steps": 12, "batch_size": 32}, **small, **tree})
        run = Run.create(folder / name, config, "flowgen train")
        for _ in runs.train(run):
            pass
    return folder


@pytest.fixture
def home(flowgen, store):
    """A folder of runs of its own to call `flowgen` in."""
    shutil.copytree(store, "runs")
    return flowgen


def config_of(folder):
    return tomllib.loads((Path(folder) / "config.toml").read_text())


def files():
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


# distill


def test_a_student_of_one_step_is_made_from_nothing_but_a_run(home):
    code, out, _ = home("distill", "runs/moons", "--pairs", 100, "--train-steps", 8)
    assert code == 0
    assert out.count("\n") == 1
    assert "runs/moons-1step: samples in 1 step" in out
    tree = config_of("runs/moons-1step")
    assert tree["objective"] == {"name": "endpoint"}
    assert (tree["reflow"]["pairs"], tree["train"]["steps"]) == (100, 8)
    code, out, _ = home("sample", "runs/moons-1step", "--num", 50, "--out", "x.npy")
    assert code == 0
    assert "1 step of jump, 1 evaluation of the network for each" in out
    assert np.load("x.npy").shape == (50, 2)


@pytest.mark.parametrize("method", MAPS)
def test_every_method_has_a_folder_of_its_own(home, method):
    assert home("distill", "runs/moons", "--method", method, "--train-steps", 5, "--seed", 3)[0] == 0
    tree = config_of(f"runs/moons-{method}")
    assert (tree["objective"]["name"], tree["train"]["steps"], tree["seed"]) == (method, 5, 3)
    assert tree["distill"]["parent"] == "../moons"
    code, out, _ = home("sample", f"runs/moons-{method}", "--num", 20)
    assert (code, "1 step of jump" in out) == (0, True)
    facts = json.loads(home("info", f"runs/moons-{method}", "--json")[1])
    assert facts["steps"] == 5


def test_a_flow_is_halved_to_one_step_by_way_of_four_and_two(home):
    assert home("distill", "runs/moons", "--method", "progressive", "--train-steps", 15)[0] == 0
    names = ["runs/moons-1step-from4", "runs/moons-1step-from2", "runs/moons-1step"]
    parents = ["runs/moons", *names[:2]]
    for name, parent, jumps in zip(names, parents, (4, 2, 1), strict=True):
        tree = config_of(name)
        assert tree["objective"] == {"name": "progressive", "jumps": jumps}
        assert tree["distill"]["parent"] == f"../{Path(parent).name}"
        assert tree["distill"]["parent_hash"] == checkpoints.file_hash(Path(parent, "model.safetensors"))
        assert tree["train"]["steps"] == 5
        out = home("sample", name, "--num", 20)[1]
        assert f"{jumps} step{'s' if jumps > 1 else ''} of jump, {jumps} evaluation" in out


def test_what_jumps_in_four_steps_is_halved_from_there(home):
    assert home("distill", "runs/moons", "--steps", 4, "--train-steps", 6)[0] == 0
    assert home("distill", "runs/moons-4step", "--out", "one", "--train-steps", 6)[0] == 0
    assert [config_of(name)["objective"]["jumps"] for name in ("one-from2", "one")] == [2, 1]
    code, _, err = home("distill", "runs/moons-4step", "--steps", 3)
    assert (code, "makes 4 jumps" in err) == (2, True)
    code, _, err = home("distill", "runs/moons-4step", "--method", "endpoint", "--out", "other")
    assert (code, "no velocity to learn from" in err) == (2, True)


def test_what_is_not_given_to_a_run_that_goes_on_stays(home):
    assert home("distill", "runs/moons", "--pairs", 128, "--train-steps", 6, "--out", "one")[0] == 0
    assert home("distill", "runs/moons", "--out", "one", "--resume")[0] == 0
    assert config_of("one")["train"]["steps"] == 6
    assert home("distill", "runs/moons", "--out", "one", "--resume", "--train-steps", 9)[0] == 0
    assert runs.load(Path("one")).step == 9
    for change, key in {
        ("--method", "meanflow"): "objective",
        ("--pairs", 64): "reflow.pairs",
        ("--guidance", 2): "reflow.guidance",
        ("--seed", 3): "seed",
    }.items():
        code, _, err = home("distill", "runs/moons", "--out", "one", "--resume", *map(str, change))
        assert (code, f"--resume cannot change {key}" in err) == (2, True), err


def test_the_run_that_is_learned_from_is_never_replaced(home):
    before = checkpoints.file_hash(Path("runs/moons/model.safetensors"))
    code, _, err = home("distill", "runs/moons", "--method", "progressive", "--out", "runs/moons", "--overwrite")
    assert (code, "is the run to learn from" in err) == (2, True)
    assert checkpoints.file_hash(Path("runs/moons/model.safetensors")) == before
    assert home("info", "runs/moons")[0] == 0


def test_students_with_students_do_not_train_longer(home):
    arguments = ["distill", "runs/moons", "--method", "progressive"]
    assert home(*arguments, "--train-steps", 9)[0] == 0
    before = files()
    code, _, err = home(*arguments, "--train-steps", 18, "--resume")
    assert (code, "the next learns from it" in err) == (2, True)
    assert files() == before
    assert home(*arguments, "--resume")[0] == 0


def test_what_learned_from_pairs_resumes_without_asking(home):
    arguments = ["distill", "runs/moons", "--method", "shortcut", "--out", "one", "--train-steps", 6]
    assert home(*arguments, "--pairs", 64)[0] == 0
    assert home(*arguments, "--resume")[0] == 0
    assert config_of("one")["reflow"]["pairs"] == 64


def test_a_share_that_falls_over_the_steps_keeps_their_number(flowgen):
    assert flowgen("train", "moons", "--objective", "alpha-flow", "--steps", 6, *NET, "--out", "r")[0] == 0
    code, _, err = flowgen("train", "--out", "r", "--resume", "--steps", 12)
    assert (code, "--resume cannot change train.steps" in err) == (2, True)


def test_a_student_of_a_reflow_sees_other_noise(home):
    assert home("reflow", "runs/moons", "--pairs", 128, "--steps", 5, "--set", "reflow.steps=4")[0] == 0
    assert home("distill", "runs/moons-reflow1", "--pairs", 128, "--train-steps", 6)[0] == 0
    teacher, student = (stored_pairs(Run.open(Path(f"runs/moons-reflow1{end}"))).pair.x0 for end in ("", "-1step"))
    assert not torch.isin(teacher, student).any()


def test_a_student_of_a_velocity_does_not_go_on_with_pairs(home):
    assert home("distill", "runs/moons", "--method", "shortcut", "--train-steps", 6, "--out", "one")[0] == 0
    code, _, err = home("distill", "runs/moons", "--method", "shortcut", "--out", "one", "--resume", "--pairs", 64)
    assert (code, "leave out --pairs" in err) == (2, True)


def test_all_students_of_a_reflow_learn_on_its_pairs(home):
    assert home("reflow", "runs/moons", "--pairs", 128, "--steps", 5, "--set", "reflow.steps=4")[0] == 0
    made = home("distill", "runs/moons-reflow1", "--method", "progressive", "--pairs", 128, "--train-steps", 6)
    assert made[0] == 0
    names = [f"runs/moons-reflow1-1step{end}" for end in ("-from4", "-from2", "")]
    assert {config_of(name)["reflow"]["parent"] for name in names} == {"../moons-reflow1"}
    first, *others = (stored_pairs(Run.open(Path(name))).pair for name in names)
    assert all(torch.equal(x, y) for other in others for x, y in zip(first[:2], other[:2], strict=True))


def test_guidance_is_folded_in_by_the_first_student_alone(flowgen, table):
    assert flowgen("train", table, "--set", "labels=true", "--steps", 5, *NET, "--out", "r")[0] == 0
    assert flowgen("distill", "r", "--method", "progressive", "--guidance", 2.5, "--train-steps", 6)[0] == 0
    weights = [config_of(name)["distill"]["guidance"] for name in ("r-1step-from4", "r-1step-from2", "r-1step")]
    assert weights == [2.5, 1.0, 1.0]
    assert flowgen("sample", "r-1step", "--label", 1, "--num", 20)[0] == 0


def test_distill_goes_on_where_it_was(home):
    arguments = ["distill", "runs/moons", "--method", "progressive", "--train-steps", 9]
    assert home(*arguments)[0] == 0
    names = ["runs/moons-1step-from4", "runs/moons-1step-from2", "runs/moons-1step"]
    hashes = [checkpoints.file_hash(Path(name, "model.safetensors")) for name in names]
    shutil.rmtree(names[2])
    before = files()
    code, _, err = home(*arguments)
    assert (code, err.count("\n"), "exists already" in err) == (2, 1, True)
    assert files() == before
    assert home(*arguments, "--resume")[0] == 0
    assert [checkpoints.file_hash(Path(name, "model.safetensors")) for name in names] == hashes
    assert home(*arguments, "--overwrite")[0] == 0
    assert [checkpoints.file_hash(Path(name, "model.safetensors")) for name in names] == hashes


def test_what_is_there_is_found_before_the_work(home):
    """The last folder is taken, and not the first."""
    Path("runs/moons-1step").mkdir()
    Path("runs/moons-1step/file").touch()
    before = files()
    code, _, err = home("distill", "runs/moons", "--method", "progressive", "--train-steps", 9)
    assert (code, err.count("\n"), "not a run folder" in err) == (2, 1, True)
    assert files() == before
    assert not Path("runs/moons-1step-from4").exists()


def test_a_reflow_and_a_diffusion_can_be_distilled(home):
    assert home("reflow", "runs/moons", "--pairs", 100, "--steps", 5)[0] == 0
    assert home("distill", "runs/moons-reflow1", "--pairs", 100, "--train-steps", 5)[0] == 0
    assert home("distill", "runs/vp", "--pairs", 100, "--train-steps", 5, "--set", "reflow.tolerance=0")[0] == 0
    for name in ("runs/moons-reflow1-1step", "runs/vp-1step"):
        assert config_of(name)["schedule"]["name"] == "linear"
        assert home("sample", name, "--num", 20)[0] == 0
        assert home("info", name)[0] == 0


# from scratch


@pytest.mark.parametrize("objective", MAPS)
def test_a_flow_map_is_trained_from_scratch(flowgen, objective):
    assert flowgen("train", "moons", "--objective", objective, "--steps", 8, *NET)[0] == 0
    tree = config_of("runs/moons")
    assert (tree["objective"]["name"], tree["net"]["two_times"], tree["net"]["width"]) == (objective, True, 16)
    assert flowgen("train", "--out", "runs/moons", "--resume", "--steps", 8)[0] == 0
    code, out, _ = flowgen("sample", "runs/moons", "--num", 20)
    assert (code, "1 step of jump" in out) == (0, True)


@pytest.mark.costly
@pytest.mark.parametrize("net", ["unet", "dit", "resmlp"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nets_of_images_are_differentiated_as_runs_store_them(flowgen, net, precision):
    size = ["--size", "tiny"] if net != "resmlp" else ["--set", "net.width=32"]
    small = ["--steps", 2, "--batch-size", 8, "--precision", precision]
    small += ["--set", "pool.batches=1", "--set", "train.log_every=1"]
    assert flowgen("train", "digits", "--objective", "meanflow", "--net", net, *size, *small, "--out", "r")[0] == 0
    assert [0 < line["loss"] < 3 for line in Run.open(Path("r")).history()] == [True, True]


def test_guidance_is_folded_in_from_scratch(flowgen, table):
    arguments = ["train", table, "--set", "labels=true", "--objective", "meanflow", "--guidance", 2, "--steps", 5]
    assert flowgen(*arguments, *NET, "--out", "r")[0] == 0
    assert config_of("r")["objective"]["guidance"] == 2
    assert flowgen("sample", "r", "--label", 1, "--num", 20)[0] == 0
    code, _, err = flowgen("sample", "r", "--label", 1, "--guidance", 2)
    assert (code, "part of its training" in err) == (2, True)


# sampling


def test_samples_of_jumps_do_not_depend_on_how_many_there_are(home):
    for name, steps in (("meanflow", 3), ("consistency-alone", 3), ("consistency", 1)):
        for num in (10, 300):
            arguments = ("--num", num, "--steps", steps, "--seed", 4, "--out", f"{num}.npy")
            assert home("sample", f"runs/{name}", *arguments)[0] == 0
        few, many = (read_table(f"{num}.npy").x for num in (10, 300))
        assert torch.equal(few, many[:10])


def test_a_run_is_sampled_by_what_it_has_learned(store):
    def chosen(name, *given, **named):
        trained = runs.load(store / name)
        made = sampler(trained.config, trained.model, trained.source, *given, **named)
        return made.solver, len(made.grid) - 1

    assert chosen("moons") == (heun, 50)
    assert chosen("meanflow") == (FlowMapStep(), 1)
    assert chosen("meanflow", None, 4) == (FlowMapStep(), 4)
    assert chosen("meanflow", heun) == (heun, 50)
    assert chosen("consistency")[1] == 1
    solver, steps = chosen("consistency-alone", None, 3, seed=9)
    assert (type(solver), solver.seed, steps) == (ConsistencySampler, 9, 3)


def test_consistency_sampling_draws_noise_by_the_seed(home):
    for seed in (1, 2):
        assert (
            home("sample", "runs/consistency-alone", "--steps", 2, "--num", 64, "--seed", seed, "--out", f"{seed}.npy")[
                0
            ]
            == 0
        )
    assert np.abs(np.load("1.npy") - np.load("2.npy")).min() > 0


def test_evaluate_measures_jumps_by_themselves(home):
    quick = ["--num", 60, "--repeats", 2, "--json", "q.json"]
    assert home("distill", "runs/moons", "--pairs", 100, "--train-steps", 5)[0] == 0
    paths = ["runs/moons", "runs/meanflow", "runs/consistency-alone", "runs/consistency", "runs/moons-1step"]
    assert home("evaluate", *paths, *quick)[0] == 0
    steps = {}
    for made in json.loads(Path("q.json").read_text()):
        steps[made["run"]] = [each["steps"] for each in made["quality"]]
        assert all(each["nfe"] == each["steps"] for each in made["quality"])
        known = "endpoint_error" in json.dumps(made)
        assert known == (made["run"] in ("moons", "meanflow"))
    assert steps == {
        "moons": [1, 2, 4, 8, 16, 100],
        "meanflow": [1, 2, 4, 8],
        "consistency-alone": [1, 2, 4, 8],
        "consistency": [1],
        "moons-1step": [1],
    }


# what is wrong

BAD = {
    "train moons --objective meanflw": "did you mean meanflow?",
    "train moons --objective meanflow --path vp": "needs the prediction velocity on the path linear or cosine",
    "train moons --objective shortcut --target data": "needs the prediction velocity",
    "train moons --objective meanflow --compile": "choose shortcut",
    "train moons --objective meanflow --set bridge.sigma=0.1": "set bridge.sigma to 0",
    "train moons --objective meanflow --coupling bridge": "set bridge.sigma to 0",
    "train moons --objective shortcut --set net.two_times=false": "two times",
    "train moons --objective shortcut --set objective.diagonal=2": "diagonal",
    "train moons --objective alpha-flow --set objective.last=0": "last",
    "train moons --objective endpoint": "use flowgen distill",
    "train moons --objective progressive": "use flowgen distill",
    "train moons --guidance 2": "guidance",
    "train moons --objective meanflow --guidance 2": "guidance needs labels",
    "distill none": "not a run folder",
    "distill runs/moons --steps 0": "--steps",
    "distill runs/moons --steps 2 --method meanflow": "--steps is of progressive",
    "distill runs/moons --method meanflw": "did you mean meanflow?",
    "distill runs/moons --method flow-matching": "unknown method",
    "distill runs/moons --pairs 0": "reflow.pairs",
    "distill runs/moons --train-steps 0": "training steps",
    "distill runs/moons --steps 2 --train-steps 2": "3 students",
    "distill runs/moons --guidance 2": "trained with labels",
    "distill runs/moons --method meanflow --guidance 2": "trained with labels",
    "distill runs/moons --method meanflow --set train.compile=true": "choose shortcut",
    "distill runs/moons --method meanflow --set objective.guidance=2": "give --guidance, not objective.guidance",
    "distill runs/moons --method meanflow --out runs/vp": "exists already",
    "distill runs/moons --method meanflow --out runs/moons --overwrite": "the run to learn from",
    "distill runs/vp --method progressive --pairs 100": "on the path linear or cosine",
    "distill runs/vp --method meanflow --pairs 100 --set schedule=vp": "on the path linear or cosine",
    "distill runs/consistency": "no velocity to learn from",
    "distill runs/consistency --method progressive": "makes 1 jumps",
    "distill runs/meanflow --method shortcut --guidance 2": "part of its training",
    "reflow runs/consistency --pairs 100": "no velocity",
    "sample runs/consistency --steps 3": "in 1 step, not in 3",
    "sample runs/consistency --solver heun": "no velocity to solve",
    "sample runs/moons --solver jump": "cannot jump",
    "sample runs/meanflow --guidance 2": "part of its training",
    "evaluate runs/consistency --steps 2": "in 1 step, not in 2",
    "evaluate runs/consistency --solver euler": "no velocity to solve",
    "evaluate runs/moons --solver jump": "cannot jump",
}


def test_bad_input_is_one_clear_line_and_changes_nothing(home):
    before, there = files(), sorted(Path().rglob("*"))
    for line, words in BAD.items():
        code, _, err = home(*line.replace("train moons", "train moons --out new").split())
        assert (code, words in err, err.count("\n"), err.startswith("flowgen: ")) == (2, True, 1, True), (line, err)
    assert files() == before
    assert sorted(Path().rglob("*")) == there
