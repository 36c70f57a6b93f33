"""What is exported makes the samples of the model, in other programs, and what would not is not written."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from flowgen import checkpoints, interop, runs, sampling
from flowgen.config import SOLVERS, resolve_config
from flowgen.config.nets import UNetConfig
from flowgen.core import Failure, InputError, generator
from flowgen.data.streams import source_rows
from flowgen.interop import comparing, to_diffusers, unet2d, writers
from flowgen.nn import UNET_SIZES, UNet
from flowgen.runs import Run
from flowgen.samplers import flow_map
from flowgen.samplers.grids import uniform

pytestmark = pytest.mark.journey

FORMATS = {"onnx": ".onnx", "torch-export": ".pt2"}
WIDE = {"name": "unet", "channels": 128, "blocks": 1}
TREES = {
    "mlp": {"data": "t.npz", "labels": True, "net": {"name": "mlp", "width": 16, "depth": 2}},
    "resmlp": {"data": "digits", "net": {"name": "resmlp", "width": 16, "depth": 1}},
    "unet": {
        "data": "digits",
        "net": {"name": "unet", "size": "tiny", "channels": 32, "blocks": 1, "multipliers": [1, 1], "attention": [2]},
    },
    "dit": {"data": "digits", "net": {"name": "dit", "size": "tiny", "depth": 1}},
    "unlabelled": {"data": "moons", "net": {"width": 16, "depth": 1}},
    "between": {"data": "moons", "source": "8gaussians", "net": {"width": 16, "depth": 1}},
    "vp": {"data": "moons", "schedule": "vp", "net": {"width": 16, "depth": 1}},
    "ve": {"data": "moons", "schedule": "ve", "prediction": "data", "net": {"width": 16, "depth": 1}},
    "ve-noise": {"data": "moons", "schedule": "ve", "net": {"width": 16, "depth": 1}},
    "map": {"data": "moons", "objective": "shortcut", "net": {"name": "mlp", "width": 16, "depth": 1}},
    "consistency": {"data": "moons", "objective": "consistency", "net": {"name": "mlp", "width": 16, "depth": 1}},
    "wide": {"data": "digits", "net": {**WIDE, "multipliers": [1, 1], "attention": [2], "heads": 4}},
    "wide-unlabelled": {
        "data": "digits",
        "labels": False,
        "net": {**WIDE, "blocks": 2, "multipliers": [1], "attention": [1], "heads": 2, "scale": False},
    },
}


def shaken(tensors: dict, size: float) -> dict:
    """Weights with noise, so that no gate or output is zero."""
    return {
        name: x if name.startswith("scaling") else x + size * torch.randn(x.shape, generator=generator(1, name))
        for name, x in tensors.items()
    }


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """run_of(name): the folder of a run of TREES, hardly trained."""
    home, made = tmp_path_factory.mktemp("runs"), {}
    x = torch.randn(90, 3, generator=generator(0, "rows")) * torch.tensor([3.0, 0.1, 20.0]) + 5
    np.savez(home / "t.npz", x=x.numpy(), y=np.arange(90) % 3)

    def run(name):
        if name not in made:
            tree = TREES[name] | ({"data": str(home / "t.npz")} if name == "mlp" else {})
            train = {"steps": 1, "batch_size": 8, "preview_every": 0}
            config = resolve_config({**tree, "train": train, "pool": {"batches": 1}})
            made[name] = Run.create(home / name, config, "flowgen train")
            for _ in runs.train(made[name]):
                pass
            tensors, facts = checkpoints.read_tensors(made[name].weights)
            checkpoints.write_tensors(made[name].weights, shaken(tensors, 0.03 if "wide" in name else 0.1), facts)
        return made[name].folder

    return run


@pytest.fixture(scope="module")
def made_of(run_of, tmp_path_factory):
    """made_of(name, format, steps, solver): an export, and the file."""
    home, made = tmp_path_factory.mktemp("exports"), {}

    def export(name, form, steps, solver):
        key = name, form, steps, solver
        if key not in made:
            path = home / f"{'-'.join(map(str, key))}{FORMATS[form]}"
            made[key] = interop.export_run(run_of(name), form, path, steps, solver)
        return made[key], made[key].path

    return export


def session(path):
    """The function in an ONNX file, of tensors by name."""
    made = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda **inputs: torch.from_numpy(made.run(None, {name: x.numpy() for name, x in inputs.items()})[0])


def loaded(path):
    """The function in a file of either format, of tensors by name."""
    if path.suffix == ".onnx":
        return session(path)
    module = torch.export.load(path).module()
    return lambda **inputs: module(*inputs.values())


def labels_of(trained, num):
    """Labels, of which every one is there, the one for none too; nothing without."""
    return {"labels": torch.arange(num) % (len(trained.classes) + 1)} if trained.classes else {}


def noise_of(trained, num, seed=5):
    return source_rows(trained.source, 0, num, seed)


def sampled(trained, num, steps, solver, seed=5):
    """What flowgen samples with those labels."""
    grid, cond = uniform(steps, *trained.model.span), labels_of(trained, num).get("labels")
    return sampling.sample(trained.model, trained.source, num, grid, SOLVERS[solver], seed=seed, cond=cond)


def close(x, y):
    """Equal but for rounding, relative to the largest value, of rows to that of each column."""
    size = y.abs().max() if y.ndim > 2 else y.abs().amax(0) + 1e-3 * y.abs().max()
    torch.testing.assert_close(x / size, y / size, rtol=0, atol=2e-5)


# the same samples


@pytest.mark.parametrize(
    ("name", "form", "solver", "steps"),
    [
        ("mlp", "onnx", "heun", 2),
        ("mlp", "torch-export", "ab2", 4),
        ("unet", "onnx", "euler", 1),
        ("dit", "torch-export", "euler", 2),
        ("map", "torch-export", "jump", 3),
        ("vp", "onnx", "euler", 3),
        ("ve", "torch-export", "heun", 3),
        *(
            pytest.param(*way, marks=pytest.mark.slow)
            for way in (
                ("resmlp", "onnx", "euler", 1),
                ("dit", "onnx", "euler", 1),
                ("map", "onnx", "jump", 1),
                ("map", "torch-export", "euler", 2),
                ("consistency", "torch-export", "jump", 1),
                ("unlabelled", "onnx", "rk4", 2),
                ("vp", "onnx", "heun", 4),
                ("ve-noise", "onnx", "euler", 2),
            )
        ),
    ],
)
def test_an_export_makes_the_samples_of_flowgen(name, form, solver, steps, run_of, made_of):
    trained, (made, path) = runs.load(run_of(name), "cpu"), made_of(name, form, steps, solver)
    exported = loaded(path)
    for num in (1, 3, 64):
        x = exported(noise=noise_of(trained, num), **labels_of(trained, num))
        close(x, sampled(trained, num, steps, solver))
    assert made.compared.difference <= made.compared.tolerance < 1e-3 * made.compared.largest
    assert made.bytes == path.stat().st_size


@pytest.mark.parametrize("way", [("mlp", "onnx", 2, "heun"), ("mlp", "torch-export", 4, "ab2")])
def test_a_label_changes_its_own_sample_alone(way, run_of, made_of):
    _, path = made_of(*way)
    exported, x0 = loaded(path), noise_of(runs.load(run_of("mlp"), "cpu"), 9)
    for label in range(4):
        labels = torch.zeros(9, dtype=torch.int64)
        labels[4] = label
        moved = (exported(noise=x0, labels=labels) - exported(noise=x0, labels=torch.zeros_like(labels))).abs() > 1e-3
        assert moved.any(1).nonzero().flatten().tolist() == ([4] if label else [])


def test_a_source_of_data_is_given_in_data_units(run_of, tmp_path):
    trained, path = runs.load(run_of("between"), "cpu"), tmp_path / "x.pt2"
    trained.model.scaling.shift.fill_(3.0)
    trained.model.scaling.scale.fill_(2.0)
    graph = interop.sampler(trained, uniform(2), SOLVERS["euler"])
    writers.write_torch(graph, path)
    close(loaded(path)(noise=2 * noise_of(trained, 5) + 3), sampled(trained, 5, 2, "euler"))


@pytest.mark.parametrize(("name", "form"), [("mlp", "onnx"), ("mlp", "torch-export"), ("vp", "onnx")])
def test_the_velocity_and_its_facts_are_enough_to_sample(name, form, run_of, tmp_path):
    """Euler's loop, as a reader of the file would write it."""
    trained, path = runs.load(run_of(name), "cpu"), tmp_path / f"v{FORMATS[form]}"
    assert interop.export_run(run_of(name), form, path).words == "the velocity"
    if form == "onnx":
        facts = json.loads({entry.key: entry.value for entry in onnx.load(path).metadata_props}["flowgen"])
    else:
        texts = {"flowgen.json": ""}
        torch.export.load(path, extra_files=texts)
        facts = json.loads(texts["flowgen.json"])
    field, x, (lo, hi) = loaded(path), noise_of(trained, 20), facts["span"]
    if name == "vp":
        x = x * (1 - np.exp(-10.05)) ** 0.5
    for step in range(4):
        t = torch.full((20,), lo + (hi - lo) * step / 4)
        x = x + (hi - lo) / 4 * field(x=x, t=t, **labels_of(trained, 20))
    close(x * torch.tensor(facts["scale"]) + torch.tensor(facts["shift"]), sampled(trained, 20, 4, "euler"))
    assert (tuple(facts["classes"]), tuple(facts["shape"])) == (trained.classes, trained.source.shape)


@pytest.mark.parametrize(("name", "facts"), [("map", (1, "jump")), ("consistency", (1, "jump"))])
def test_a_flow_map_is_exported_as_it_is_sampled(name, facts, run_of, tmp_path):
    made = interop.export_run(run_of(name), "torch-export", tmp_path / "x.pt2")
    texts = {"flowgen.json": ""}
    torch.export.load(made.path, extra_files=texts)
    found = json.loads(texts["flowgen.json"])
    assert (made.words, (found["steps"], found["solver"])) == ("samples in 1 step of jump", facts)
    trained = runs.load(run_of(name), "cpu")
    solver, grid = runs.sampler(trained.config, trained.model, trained.source)
    own = sampling.sample(trained.model, trained.source, 5, grid, solver, seed=5)
    close(loaded(made.path)(noise=noise_of(trained, 5)), own)


def test_noise_between_jumps_cannot_be_exported(run_of, tmp_path):
    trained = runs.load(run_of("consistency"), "cpu")
    solver = flow_map.ConsistencySampler(trained.model.schedule, trained.source)
    with pytest.raises(InputError, match="export it with --steps 1"):
        interop.sampler(trained, uniform(2), solver)
    writers.write_torch(interop.sampler(trained, uniform(1), solver), tmp_path / "x.pt2")
    own = sampling.sample(trained.model, trained.source, 5, uniform(1), solver, seed=5)
    close(loaded(tmp_path / "x.pt2")(noise=noise_of(trained, 5)), own)


def test_an_onnx_file_names_its_inputs_and_the_batch(made_of):
    _, path = made_of("mlp", "onnx", 2, "heun")
    made = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(x.name, x.type, x.shape) for x in made.get_inputs()] == [
        ("noise", "tensor(float)", ["batch", 3]),
        ("labels", "tensor(int64)", ["batch"]),
    ]
    assert [(x.name, x.shape) for x in made.get_outputs()] == [("samples", ["batch", 3])]


# diffusers


@pytest.mark.parametrize("name", ["wide", "wide-unlabelled"])
def test_diffusers_own_euler_steps_make_the_samples_of_flowgen(name, run_of, tmp_path, monkeypatch):
    """By the words of the folder's README: a time or a sign that were turned would lead elsewhere."""
    trained, folder = runs.load(run_of(name), "cpu"), tmp_path / "d"
    made = interop.export_run(run_of(name), "diffusers", folder, steps=3)
    x0 = noise_of(trained, 16)
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"^```python\n(.*?)^```$", Path("README.md").read_text(), re.M | re.S)
    namespace = {}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *shape: x0 if shape == tuple(x0.shape) else pytest.fail(str(shape)))
        exec(code, namespace)
    grid, classes = uniform(3), len(trained.classes)
    cond = torch.arange(16) % classes if classes else None
    own = sampling.sample(trained.model, trained.source, 16, grid, SOLVERS["euler"], seed=5, cond=cond)
    close(trained.model.scaling.undo(namespace["x"]), own)
    assert torch.equal(namespace["images"], ((namespace["x"] + 1) / 2).clamp(0, 1))
    assert made.compared.difference <= made.compared.tolerance < 1e-3 * made.compared.largest
    assert made.bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "README.md",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }


def fits(size: dict) -> bool:
    try:
        unet2d.arguments(UNetConfig(**size), (3, 16, 16), 0)
    except InputError:
        return False
    return True


def test_which_sizes_diffusers_has():
    assert {name for name, size in UNET_SIZES.items() if fits(size)} == {"base", "cifar10"}
    assert not fits(UNET_SIZES["base"] | {"attention": (1, 4)})  # heads of two widths
    assert not fits(UNET_SIZES["base"] | {"multipliers": (2, 2, 4)})
    assert fits(UNET_SIZES["base"] | {"attention": (), "multipliers": (1, 3)})


@pytest.mark.parametrize("name", ["base", "cifar10"])
def test_the_named_sizes_are_the_nets_of_diffusers(name):
    net_of, _ = to_diffusers.diffusers_parts()
    net = UNet((3, 8, 16), 2, **UNET_SIZES[name]).eval()
    net.load_state_dict(shaken(net.state_dict(), 0.02))
    theirs = net_of(**unet2d.arguments(UNetConfig(**UNET_SIZES[name]), (3, 8, 16), 2)).eval()
    unet2d.fill(theirs, net)
    x, t = torch.randn(3, 3, 8, 16, generator=generator(0, "x")), torch.tensor([0.0, 0.3, 1.0])
    with torch.no_grad():
        y, null = net(x, t, t, torch.tensor([0, 1, 2])), net(x, t, t, None)
        close(-theirs(x, 128 * (1 - t), torch.tensor([0, 1, 2])).sample, y)
        close(-theirs(x, 128 * (1 - t), torch.tensor([2, 2, 2])).sample, null)
    assert (y - null)[:2].abs().amax() > 0.01 * y.abs().amax()


@pytest.mark.slow
def test_diffusers_is_imported_without_torchvision():
    script = (
        "import sys; from flowgen.interop.to_diffusers import diffusers_parts; diffusers_parts(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "diffusers" in done.stdout.split()
    assert not [name for name in done.stdout.split() if name.split(".")[0] == "torchvision"]


def test_diffusers_that_cannot_be_imported_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(Failure, match="diffusers cannot be imported"):
        to_diffusers.diffusers_parts()


# what is not the model is not written


@pytest.fixture
def graph(run_of):
    return interop.velocity(runs.load(run_of("mlp"), "cpu"))


def wrong_by(share):
    return lambda y: y * (1 + share)


@pytest.mark.parametrize(
    "other",
    [
        lambda f, x, t, labels: f(x, 1 - t, labels),
        lambda f, x, t, labels: -f(x, t, labels),
        lambda f, x, t, labels: f(x, t, (labels + 1) % 4),
        lambda f, x, t, labels: f(x, t, labels.new_full(labels.shape, 3)),
        lambda f, x, t, labels: f(x, t, torch.zeros_like(labels)),
        lambda f, x, t, labels: f(x, t[:1].expand_as(t), labels),
        lambda f, x, t, labels: f(x.bfloat16().float(), t, labels),
        lambda f, x, t, labels: f(x, t, labels) * (1 + 1e-4),
        lambda f, x, t, labels: f(x, t, labels) * torch.nan,
    ],
    ids=["time", "sign", "labels", "baked label", "first label", "baked time", "half", "a little", "nan"],
)
def test_what_differs_by_more_than_rounding_is_refused(graph, other):
    with pytest.raises(Failure, match="differs from the model by"):
        comparing.compare(graph, lambda *inputs: other(graph.module, *inputs))


def test_what_is_rounded_otherwise_is_the_model(graph, run_of):
    exact = interop.velocity(runs.load(run_of("mlp"), "cpu")).module.double()
    found = comparing.compare(graph, lambda x, t, labels: exact(x.double(), t.double(), labels))
    assert 0 < found.difference == found.rounding < 1e-5 * found.largest


def test_a_model_of_no_finite_values_is_refused(graph):
    for parameter in graph.module.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(Failure, match="not finite"):
        comparing.compare(graph, graph.module)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.parametrize("form", ["torch-export", "diffusers"])
def test_a_refused_export_leaves_what_was_there(form, run_of, flowgen, monkeypatch):
    def refuse(*_):
        raise Failure("nothing was exported")

    name, out = ("wide-unlabelled", "d") if form == "diffusers" else ("unlabelled", "v.pt2")
    with monkeypatch.context() as patch:
        patch.setattr(writers, "compare", refuse)
        patch.setattr(to_diffusers, "compare", refuse)
        code, _, err = flowgen("export", run_of(name), "--format", form, "--out", out)
        assert (code, err, names(".")) == (1, "flowgen: nothing was exported\n", [])
    assert flowgen("export", run_of(name), "--format", form, "--out", out)[0] == 0
    before = [path.stat().st_mtime_ns for path in sorted(Path().rglob("*"))]
    monkeypatch.setattr(writers, "compare", refuse)
    monkeypatch.setattr(to_diffusers, "compare", refuse)
    assert flowgen("export", run_of(name), "--format", form, "--out", out, "--overwrite")[0] == 1
    assert [path.stat().st_mtime_ns for path in sorted(Path().rglob("*"))] == before


# the command


def test_the_command_says_what_it_made(run_of, flowgen):
    code, out, err = flowgen("export", run_of("unlabelled"), "--format", "torch-export", "--steps", 2)
    folder = run_of("unlabelled")
    assert (code, err) == (0, "")
    assert re.fullmatch(
        rf"{folder}/samples.pt2: samples in 2 steps of heun, 0\.\d+ MiB\n"
        r"largest difference from the model: \S+, of \S+\n",
        out,
    )
    close(loaded(folder / "samples.pt2")(noise=noise_of(t := runs.load(folder, "cpu"), 3)), sampled(t, 3, 2, "heun"))


def test_an_export_is_replaced_where_that_is_asked_for(run_of, flowgen):
    first = flowgen("export", run_of("unlabelled"), "--format", "torch-export", "--out", "x.pt2")
    assert first[0] == 0
    before = Path("x.pt2").read_bytes()
    code, _, err = flowgen("export", run_of("vp"), "--format", "torch-export", "--out", "x.pt2")
    assert (code, Path("x.pt2").read_bytes()) == (2, before)
    assert "x.pt2 exists already: replace it with --overwrite" in err
    assert flowgen("export", run_of("vp"), "--format", "torch-export", "--out", "x.pt2", "--overwrite")[0] == 0
    assert Path("x.pt2").read_bytes() != before
    assert names(".") == ["x.pt2"]


def test_a_folder_of_diffusers_is_replaced_and_no_other(run_of, flowgen):
    arguments = ("export", run_of("wide-unlabelled"), "--format", "diffusers", "--out", "d")
    Path("d").mkdir()
    Path("d/mine").touch()
    code, _, err = flowgen(*arguments, "--overwrite")
    assert (code, names("d")) == (2, ["mine"])
    assert "d exists and is no such export" in err
    Path("d/unet").mkdir()
    Path("d/unet/config.json").touch()
    assert flowgen(*arguments)[0] == 2
    assert flowgen(*arguments, "--overwrite")[0] == 0
    assert (names("d"), names(".")) == (["README.md", "scheduler", "unet"], ["d"])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mlp", ["--format", "tflite"], "unknown format 'tflite'"),
        ("mlp", ["--steps", 0], "--steps must be at least 1"),
        ("mlp", ["--solver", "euler"], "give its --steps too"),
        ("mlp", ["--steps", 2, "--solver", "dopri5"], "an adaptive solver has no fixed steps"),
        ("mlp", ["--steps", 2, "--solver", "eulr"], "did you mean euler"),
        ("mlp", ["--out", "x.pt2"], "format onnx is a file .onnx, not x.pt2"),
        ("mlp", ["--out", "no/x.onnx"], "there is no folder no"),
        ("mlp", ["--ema", 0.2], "has no average of width 0.2"),
        ("consistency", ["--steps", 2, "--solver", "euler"], "has no velocity to solve"),
        ("mlp", ["--steps", 2, "--solver", "jump"], "cannot jump"),
        ("mlp", ["--format", "diffusers"], "is for runs of the net unet"),
        ("unet", ["--format", "diffusers"], "needs 128 channels or more (size base or cifar10)"),
        ("wide", ["--format", "diffusers", "--solver", "heun"], "diffusers takes Euler steps, and no heun"),
        (None, [], "is not a run folder"),
    ],
)
def test_mistakes_are_told_in_one_line(name, arguments, message, run_of, flowgen, tmp_path):
    code, _, err = flowgen("export", run_of(name) if name else tmp_path, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert names(".") == []


def test_weights_beyond_one_file_are_refused(run_of, flowgen, monkeypatch):
    monkeypatch.setattr(writers, "LARGEST", 1000)
    code, _, err = flowgen("export", run_of("mlp"), "--out", "x.onnx")
    assert (code, names(".")) == (2, [])
    assert "at most 2 GB" in err


def test_a_run_without_weights_cannot_be_exported(flowgen, tmp_path):
    Run.create(tmp_path / "r", resolve_config({"data": "moons"}), "flowgen train")
    code, _, err = flowgen("export", "r")
    assert (code, err.count("\n"), "has no weights yet" in err) == (2, 1, True)


@pytest.mark.parametrize(
    ("form", "package"),
    [("onnx", "onnxruntime"), ("onnx", "onnxscript"), ("onnx", "onnx"), ("diffusers", "diffusers")],
)
def test_a_missing_package_is_named(form, package, run_of, flowgen, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: find(name, *more) if name != package else None)
    name = "wide" if form == "diffusers" else "mlp"
    code, _, err = flowgen("export", run_of(name), "--format", form, "--out", "d" if form == "diffusers" else "x.onnx")
    assert (code, err) == (2, f"flowgen: this format needs {package}: pip install 'flowgen-torch[export]'\n")
    assert names(".") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": {"name": "linear", "sigma_min": 0.1}}, "velocity on the straight path"),
        ({"schedule": "cosine"}, "velocity on the straight path"),
        ({"prediction": "data"}, "velocity on the straight path"),
        ({"source": "digits"}, "start from noise"),
        ({"objective": "consistency"}, "no velocity for diffusers"),
    ],
)
def test_diffusers_is_for_straight_flows_from_noise(change, message, run_of):
    trained = runs.load(run_of("wide"), "cpu")
    config = resolve_config({**TREES["wide"], **change})
    model = config.model(trained.source.shape, trained.model.scaling, len(trained.classes))
    source = config.source_distribution(trained.source.shape, trained.model.scaling)
    with pytest.raises(InputError, match=message):
        to_diffusers.check(trained._replace(model=model, source=source, config=config))
