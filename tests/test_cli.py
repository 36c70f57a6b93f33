"""The command line, as a person and a script meet it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flowgen import checkpoints
from flowgen.data import read_table

pytestmark = pytest.mark.journey

QUICK = ["--batch-size", "32", "--set", "net.width=16", "--set", "pool.batches=3", "--set", "train.log_every=10"]


@pytest.fixture
def run(called, flowgen):
    shutil.copytree(called("train", "moons", "--steps", 30, *QUICK), ".", dirs_exist_ok=True)
    return Path("runs/moons")


def test_train_reflow_sample_info_from_nothing(flowgen, whole_pictures):
    assert flowgen("train", "8gaussians", "--steps", 20, *QUICK)[0] == 0
    code, out, _ = flowgen("reflow", "runs/8gaussians", "--rounds", 2, "--pairs", 100, "--steps", 10)
    assert code == 0
    assert "runs/8gaussians-reflow2" in out
    code, out, _ = flowgen("sample", "runs/8gaussians-reflow2", "--steps", 1, "--solver", "euler", "--num", 50)
    assert code == 0
    assert "1 evaluation of the network for each" in out
    assert Image.open("runs/8gaussians-reflow2/samples.png").size[0] > 100
    facts = json.loads(flowgen("info", "runs/8gaussians-reflow2", "--json")[1])
    assert [Path(parent["run"]).name for parent in facts["parents"]] == ["8gaussians-reflow1", "8gaussians"]
    assert (facts["steps"], facts["data"], facts["kind"]) == (10, "8gaussians", "reflow")


def test_a_run_folder_explains_itself(flowgen, run):
    names = {path.name for path in run.iterdir()}
    assert names == {"README.md", "checkpoints", "config.toml", "metrics.jsonl", "model.safetensors", "plots"}
    assert {path.name for path in (run / "plots").iterdir()} == {"loss.png", "samples.png"}
    assert "flowgen train moons --steps 30" in (run / "README.md").read_text()
    code, out, _ = flowgen("info", run)
    assert code == 0
    for word in ("moons", "gaussian", "linear", "multiscale", "velocity"):
        assert word in out


def test_flags_win_over_the_file_and_silence_does_not(flowgen):
    settings = """
        data = "moons"
        seed = 5
        schedule = {name = "vp", beta_max = 15.0}
        train = {steps = 7, lr = 0.01, batch_size = 16}
    """
    Path("c.toml").write_text(settings)
    assert flowgen("train", "--config", "c.toml", "--steps", 3, "--set", "net.width=8", "--out", "r")[0] == 0
    config = tomllib.loads(Path("r/config.toml").read_text())
    assert config["train"]["steps"] == 3
    assert (config["train"]["lr"], config["train"]["batch_size"], config["seed"]) == (0.01, 16, 5)
    assert config["schedule"] == {"name": "vp", "beta_min": 0.1, "beta_max": 15.0}
    assert config["net"]["width"] == 8


@pytest.mark.parametrize(("suffix", "solver"), [("npz", "heun"), ("npy", "ab2"), ("csv", "dopri5")])
def test_sample_i_does_not_depend_on_how_many_there_are(flowgen, run, suffix, solver):
    files = [f"{num}.{suffix}" for num in (10, 300)]
    for num, file in zip((10, 300), files, strict=True):
        arguments = ("--steps", 3, "--seed", 4, "--solver", solver, "--out", file)
        assert flowgen("sample", run, "--num", num, *arguments)[0] == 0
    few, many = (read_table(file).x for file in files)
    assert few.shape == (10, 2)
    assert many.shape == (300, 2)
    assert torch.equal(few, many[:10])
    if suffix == "npz":
        assert list(np.load(files[0])) == ["x"]


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4", "ab2", "dopri5", "bosh3"])
def test_every_solver_draws_the_same_samples(flowgen, run, solver):
    steps = ["--steps", 200] if solver in ("euler", "midpoint", "heun", "rk4", "ab2") else []
    assert flowgen("sample", run, "--num", 20, "--solver", solver, *steps, "--out", "x.npy")[0] == 0
    assert flowgen("sample", run, "--num", 20, "--solver", "rk4", "--steps", 50, "--out", "y.npy")[0] == 0
    assert np.abs(np.load("x.npy") - np.load("y.npy")).max() < 0.02


def test_a_table_comes_back_with_its_columns_and_units(flowgen):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)) * [1, 100, 0.01] + [5, 0, -3]
    np.savetxt("t.csv", x, delimiter=",", header="height,mass,loss", comments="")
    assert flowgen("train", "t.csv", "--steps", 300, *QUICK)[0] == 0
    assert flowgen("sample", "runs/t", "--num", 1000)[0] == 0
    table = read_table("runs/t/samples.csv")
    assert table.columns == ("height", "mass", "loss")
    z = (table.x.numpy() - x.mean(0)) / x.std(0)
    assert np.abs(z.mean(0)).max() < 0.3
    assert np.abs(z.std(0) - 1).max() < 0.4
    assert flowgen("sample", "runs/t", "--num", 100, "--out", "hist.png")[0] == 0


def test_what_is_awkward_in_a_table_comes_back_as_it_was(flowgen):
    rng = np.random.default_rng(0)
    rows = [f"{a:.3f},7.0,{b:.3f}" for a, b in rng.normal(size=(100, 2))]
    Path("t.csv").write_text("\n".join(['温度,always,"a,b"', *rows]))
    code, _, err = flowgen("train", "t.csv", "--steps", 10, *QUICK)
    assert code == 0
    assert "Warning" not in err
    assert flowgen("sample", "runs/t", "--num", 20, "--steps", 2)[0] == 0
    table = read_table("runs/t/samples.csv")
    assert table.columns == ("温度", "always", "a,b")
    assert (table.x[:, 1] == 7).all()


def test_the_same_run_has_the_same_hash(flowgen, run):
    assert flowgen("train", "moons", "--steps", 30, *QUICK, "--out", "again")[0] == 0
    assert checkpoints.file_hash(run / "model.safetensors") == checkpoints.file_hash(Path("again/model.safetensors"))


def test_a_picture_says_nothing_but_where_it_is(flowgen, run, recwarn):
    code, out, _ = flowgen("sample", run, "--num", 50)
    assert (code, out.count("\n"), len(recwarn)) == (0, 1, 0)


def test_no_command_prints_the_help(flowgen):
    code, out, err = flowgen()
    assert (code, err) == (2, "")
    assert "train" in out


def test_trajectories_are_drawn(flowgen, run, whole_pictures):
    code, out, _ = flowgen("sample", run, "--trajectories", "--num", 30, "--out", "t.png")
    assert code == 0
    assert "30 trajectories" in out
    assert Image.open("t.png").size == (750, 750)


def bad_files():
    np.save("nan.npy", np.array([[1, 2], [np.nan, 1], [np.inf, 2]]))
    np.save("empty.npy", np.ones((0, 3)))
    np.save("one.npy", np.ones((1, 3)))
    np.save("three.npy", np.ones((9, 3)))
    Path("zero.csv").touch()
    Path("text.csv").write_text("a,b\n1,x\n2,y\n")
    Path("typo.toml").write_text('data = "moons"\n[train]\nstep = 3\n')
    Path("broken.toml").write_text("data = ")
    Path("folder").mkdir()
    Path("folder/file").touch()


BAD = {
    "train mons": "did you mean moons?",
    "train none.csv": "none.csv: no such file",
    "train nan.npy": "2 of 3 rows hold NaN",
    "train empty.npy": "no rows",
    "train one.npy": "at least 2 rows, found 1",
    "train zero.csv": "the file is empty",
    "train text.csv": "not numbers: b",
    "train folder": "no images",
    "train moons --source circle": "did you mean circles?",
    "train moons --source three.npy": "three.npy has 3 columns, and needs 2",
    "train moons --path liner": "did you mean linear?",
    "train moons --coupling exat": "did you mean exact?",
    "train moons --target noise": "singular at t = 0",
    "train moons --steps 0": "train.steps",
    "train moons --steps many": "--steps",
    "train moons --lr -1": "train.lr",
    "train moons --lr nan": "train.lr",
    "train moons --batch-size 0": "train.batch_size",
    "train moons --seed -1": "seed",
    "train moons --device gpu": "choose auto, cpu",
    "train moons --set train.step=3": "did you mean steps?",
    "train moons --set foo": "expected key=value",
    "train moons --out folder": "not a run folder",
    "train moons --resume": "not a run folder",
    "train --config typo.toml": "did you mean steps?",
    "train --config broken.toml": "not a readable TOML",
    "train --config none.toml": "no such file",
    "train": "name the DATA",
    "train moons --seed 99999999999999999999": "seed",
    "train moons --out zero.csv/run": "cannot make the folder",
    "train moons --stesp 3": "--stesp",
    "trian moons": "trian",
    "reflow folder": "not a run folder",
    "sample nothere": "not a run folder",
    "info folder": "not a run folder",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_clear_line_and_exit_code_2(flowgen, line):
    bad_files()
    before = sorted(Path().rglob("*"))
    code, out, err = flowgen(*line.split())
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("flowgen: ")
    assert BAD[line] in err
    assert sorted(Path().rglob("*")) == before


BAD_FOR_A_RUN = {
    "train moons": "exists already",
    "train moons --resume --lr 0.5": "--resume cannot change train.lr",
    "train moons --resume --steps 20": "at step 30 already",
    "sample runs/moons --num 0": "--num",
    "sample runs/moons --steps 0": "at least one step",
    "sample runs/moons --solver eulr": "did you mean euler?",
    "sample runs/moons --out x.txt": "unknown suffix",
    "sample runs/moons --out none/x.csv": "no folder none",
    "sample runs/moons --out none/x.png": "no folder none",
    "sample runs/moons --out x.csv --trajectories": "--trajectories",
    "reflow runs/moons --rounds 0": "--rounds",
    "reflow runs/moons --pairs 0": "reflow.pairs",
    "reflow runs/moons --steps 0": "train.steps",
}


def test_bad_input_leaves_a_run_as_it_is(flowgen, run):
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for line, words in BAD_FOR_A_RUN.items():
        code, _, err = flowgen(*line.split())
        assert (code, words in err, err.splitlines()[-1].startswith("flowgen: ")) == (2, True, True), (line, err)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_too_large_a_job_is_one_line(flowgen):
    code, _, err = flowgen("train", "moons", "--steps", 5, "--batch-size", 10**14)
    assert code == 1
    assert err.splitlines()[-1].startswith("flowgen: not enough memory")


def test_a_diverging_run_ends_with_one_line_and_code_1(flowgen):
    code, _, err = flowgen("train", "moons", "--lr", "1e30", "--steps", 50, *QUICK)
    assert code == 1
    assert "the loss is" in err.splitlines()[-1]


def test_reflow_goes_on_where_it_was(flowgen, run):
    arguments = ["reflow", run, "--pairs", 100, "--steps", 12]
    assert flowgen(*arguments)[0] == 0
    assert flowgen(*arguments)[0] == 2
    assert flowgen(*arguments, "--resume")[0] == 0
    assert flowgen(*arguments, "--overwrite")[0] == 0
    # what is not asked for stays as it was
    assert flowgen("reflow", run, "--resume")[0] == 0
    assert flowgen("reflow", run, "--resume", "--pairs", 200)[0] == 2
    facts = json.loads(flowgen("info", "runs/moons-reflow1", "--json")[1])
    assert (facts["steps"], facts["coupling"]["pairs"]) == (12, 100)
    # a run is also the folder one stands in
    os.chdir(run)
    assert flowgen("reflow", ".", "--resume")[0] == 0
    os.chdir("../..")
    # without its pairs, only reflow can go on
    shutil.rmtree("runs/moons-reflow1/pairs")
    code, _, err = flowgen("train", "--out", "runs/moons-reflow1", "--resume")
    assert (code, err.count("\n")) == (2, 1)
    assert "README.md, and --resume" in err
    assert flowgen("reflow", run, "--resume")[0] == 0


def process(tmp_path, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "flowgen", *map(str, arguments)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


TRAIN = ("train", "moons", *QUICK, "--set", "train.checkpoint_every=50")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_goes_on_bit_for_bit(tmp_path, number, code):
    log = tmp_path / "runs" / "moons" / "metrics.jsonl"
    first = process(tmp_path, *TRAIN, "--steps", 10**6)
    wait_for(lambda: log.exists() and log.read_text().count("\n") > 20)
    first.send_signal(number)
    assert first.wait(60) == code
    newest = checkpoints.find(tmp_path / "runs/moons/checkpoints")[-1]
    done = int(newest.name.removeprefix("step-"))
    assert done % 50 == 0 or number != signal.SIGKILL
    resumed = process(tmp_path, *TRAIN, "--steps", done + 60, "--resume")
    whole = process(tmp_path, *TRAIN, "--steps", done + 60, "--out", "whole")
    assert resumed.wait(60) == 0
    assert whole.wait(60) == 0
    assert (tmp_path / "whole/metrics.jsonl").read_text() == log.read_text()
    for name in ("model.safetensors", f"checkpoints/step-{done + 60:09d}/state.safetensors"):
        one, other = load_file(tmp_path / "whole" / name), load_file(log.parent / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(x, other[key]) for key, x in one.items())


def test_the_commands_are_there_without_torch():
    code = (
        "import sys, flowgen_cli\n"
        "try: flowgen_cli.app(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--coupling" in done.stdout


def test_the_demo_runs_end_to_end(flowgen, whole_pictures, monkeypatch):
    from flowgen_cli import demo

    monkeypatch.setattr(demo, "TRAINING", 200)
    monkeypatch.setattr(demo, "PAIRS", 512)
    monkeypatch.setattr(demo, "POINTS", 200)
    code, out, _ = flowgen("demo")
    assert code == 0
    for words in ("noise floor", "straightness", "100", "runs/demo/demo.png"):
        assert words in out
    width, height = Image.open("runs/demo/demo.png").size
    assert width > 2 * height
