"""Benchmarks: their laws, their cells on disk, and their reports."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from flowgen.bench import cells, peers, report, speed, summary, table2d
from flowgen.bench.table2d import METHODS, PROBLEMS, Cell, Protocol, Result
from flowgen.bench.torchcfm import matchers, torchcfm_loop
from flowgen.core import InputError, Pair, generator
from flowgen.model import Model
from flowgen.nn import MLP
from flowgen.pairs import IndependentPairs, batches

pytestmark = pytest.mark.journey

TINY = Protocol(steps=30, batch=32, width=8, euler_steps=5, points=40, draws=2, energy_points=50, reflow_pairs=100)
FAKE = Result(w2=0.625, w2_one_step=2.5, npe=0.25, npe_single=0.75, straightness=0.5, cpu_seconds=1.5)
FLOW = Cell("N to moons", "flowgen", "1-RF", 7)
REFLOW = FLOW._replace(method="2-RF")


# --- the problems and the methods


def test_wide_moons_are_sklearns_at_mean_0_and_deviation_7():
    from sklearn.datasets import make_moons

    ours = PROBLEMS["moons to 8gaussians"].source.sample(100_000, generator(0, "moons")).numpy()
    theirs, _ = make_moons(100_000, noise=0.05, random_state=0)
    theirs = 7 * (theirs - theirs.mean()) / theirs.std()
    assert ours.mean() == pytest.approx(0, abs=0.05)
    assert ours.std() == pytest.approx(7, abs=0.05)
    shadows = [x @ np.array([[1, 0, 1], [0, 1, 1]]) for x in (ours, theirs)]
    quantiles = [np.quantile(x, np.linspace(0.01, 0.99, 50), axis=0) for x in shadows]
    np.testing.assert_allclose(*quantiles, atol=0.25)


class Asked(nn.Module):
    """A network that remembers where it was asked."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, t, s=None, cond=None):
        self.x, self.t, self.y = x, t, torch.zeros_like(x, requires_grad=True)
        return self.y


def asked(method, pair, seed):
    """Points, times and targets of a method of flowgen: the loss is mean (net - y)^2 over two columns, so y = -grad."""
    net = Asked()
    method.objective(Model(net, method.schedule), pair, generator(seed, "objective")).sum().backward()
    return net.x, net.t, -net.y.grad


@pytest.mark.parametrize("name", ["FM", "I-CFM", "OT-CFM", "SB-CFM"])
def test_flowgen_asks_what_torchcfm_asks(name, monkeypatch, normal):
    """Fed the same ends, times and noise, both give the same points and the same velocities."""
    pair = Pair(normal("source", 500, 2), normal("data", 500, 2) + 3)
    x, t, y = asked(table2d.methods(0.3)[name], pair, seed=1)
    rng = generator(1, "objective")  # the same draws again: times first, then noise
    torch.rand(500, generator=rng)
    noise = pair.x0 if name == "FM" else torch.randn(500, 2, generator=rng).double()
    matcher = matchers(0.3)[name]
    monkeypatch.setattr(matcher, "sample_noise_like", lambda x: noise)
    if name.startswith(("OT", "SB")):
        monkeypatch.setattr(matcher.ot_sampler, "sample_plan", lambda x0, x1: (x0, x1))
    _, their_x, their_y = matcher.sample_location_and_conditional_flow(pair.x0, pair.x1, t.double())
    torch.testing.assert_close(x, their_x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y, their_y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["OT-CFM", "SB-CFM"])
def test_flowgen_pairs_what_torchcfm_pairs(name, normal):
    """At t = 1/2 no noise is in the velocity x1 - x0: each of torchcfm's is one of the optimal pairs of flowgen."""
    x0, x1 = normal("source", 60, 2), normal("data", 60, 2)
    ours = table2d.methods(0.1)[name].coupling(Pair(x0, x1), generator(0, "coupling"))
    _, _, velocity = matchers(0.1)[name].sample_location_and_conditional_flow(x0, x1, torch.full((60,), 0.5).double())
    assert torch.cdist(velocity, ours.x1 - ours.x0).amin(1).max() < 1e-6


def test_the_table_has_each_cell_once_and_each_teacher_before():
    every = table2d.cells((1, 2))
    assert len(set(every)) == len(every)
    for index, cell in enumerate(every):
        assert cell.teacher is None or cell.teacher in every[:index]
    assert {cell.seed for cell in every if cell.slow} == {1}
    assert {cell.seed for cell in table2d.cells((1, 2, 3), 2) if cell.slow} == {1, 2}
    assert {(cell.package, cell.method) for cell in every if cell.slow} == {
        ("torchcfm", "OT-CFM"),
        ("torchcfm", "SB-CFM"),
    }
    without = {(cell.package, cell.method) for cell in every if cell.problem == "moons to 8gaussians"}
    rows = {(package, method) for package, names in METHODS.items() for method in names}
    assert rows - without == {("torchcfm", "FM"), ("flowgen", "FM")}
    assert rows == {(cell.package, cell.method) for cell in every if cell.problem == "N to moons"}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_two_true_sets_are_nearer_than_source_and_data(problem):
    floor = table2d.floor(problem, TINY._replace(points=300))
    assert max(floor.truth) < min(floor.source)
    assert floor == table2d.floor(problem, TINY._replace(points=300))


# --- training


@pytest.mark.parametrize("cell", [FLOW, Cell("N to moons", "torchcfm", "SB-CFM", 7)], ids=lambda cell: cell.package)
def test_a_cell_run_twice_gives_the_same_bits(cell):
    (one, net), (other, again) = table2d.run(cell, TINY), table2d.run(cell, TINY)
    assert one._replace(cpu_seconds=0.0) == other._replace(cpu_seconds=0.0)
    assert all(torch.equal(x, y) for x, y in zip(net.parameters(), again.parameters(), strict=True))


def test_a_reflow_needs_its_teacher():
    with pytest.raises(InputError, match="teacher"):
        table2d.run(REFLOW, TINY)


class Thrower:
    def sample_location_and_conditional_flow(self, x0, x1, t=None):
        torch.rand(3), np.random.rand(3)  # noqa: NPY002
        raise ZeroDivisionError


@pytest.mark.parametrize("interrupted", [False, True])
def test_torchcfms_loop_leaves_the_global_generators_alone(interrupted):
    matcher = Thrower() if interrupted else matchers(0.1)["OT-CFM"]
    torch_state, (*_, numpy_state, _, _, _) = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    with suppress(ZeroDivisionError):
        torchcfm_loop(
            MLP(2, 8, 1), matcher, batches(IndependentPairs(*PROBLEMS["N to moons"]), 16, seed=0), 3, 1e-3, 0.0, seed=5
        )
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


# --- cells on disk


def place(folder, cell, suffix="json"):
    return folder / f"{cell.problem.replace(' ', '-')}_{cell.package}_{cell.method}_{cell.seed}.{suffix}"


def keep(folder, cell, protocol=TINY, result=FAKE):
    """Writes a cell that was never run."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {"cell": cell._asdict(), "protocol": protocol._asdict(), "result": result._asdict()}
    place(folder, cell).write_text(json.dumps(kept))


def untimed(folder, cell):
    return cells.found(folder, cell, TINY)._replace(cpu_seconds=0.0)


@pytest.mark.slow
def test_only_missing_cells_run(tmp_path):
    other = Cell("N to moons", "torchcfm", "I-CFM", 7)
    *_, done = cells.run_all(tmp_path, [REFLOW, FLOW, other], TINY)
    assert done == 3
    assert cells.missing(tmp_path, [FLOW, REFLOW, other], TINY) == []
    before = untimed(tmp_path, REFLOW), load_file(place(tmp_path, REFLOW, "safetensors"))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if "2-RF" not in path.name}
    place(tmp_path, REFLOW).unlink()
    assert cells.missing(tmp_path, [FLOW, REFLOW, other], TINY) == [REFLOW]
    assert list(cells.run_all(tmp_path, [REFLOW], TINY))[-1] == 1
    result, net = table2d.run(REFLOW, TINY, table2d.run(FLOW, TINY)[1])
    for measured, weights in (before, (untimed(tmp_path, REFLOW), load_file(place(tmp_path, REFLOW, "safetensors")))):
        assert measured == result._replace(cpu_seconds=0.0)
        assert all(torch.equal(x, weights[name]) for name, x in net.state_dict().items())
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if "2-RF" not in path.name}


def test_a_cell_of_another_protocol_is_refused(tmp_path):
    keep(tmp_path, FLOW, TINY._replace(steps=31))
    with pytest.raises(InputError, match=r"another protocol \(steps 31, not 30\)"):
        cells.found(tmp_path, FLOW, TINY)


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: "{",
        lambda kept: "[1]",
        lambda kept: json.dumps({**kept, "result": None}),
        lambda kept: json.dumps({**kept, "result": {**kept["result"], "w2": "low"}}),
        lambda kept: json.dumps({**kept, "protocol": {"steps": 30, "stesp": 1}}),
        lambda kept: json.dumps({**kept, "cell": {**kept["cell"], "seed": 8}}),
    ],
)
def test_a_damaged_cell_is_one_line_with_its_file(tmp_path, change):
    keep(tmp_path, FLOW)
    assert cells.found(tmp_path, FLOW, TINY) == FAKE
    path = place(tmp_path, FLOW)
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(InputError, match="damaged") as raised:
        cells.missing(tmp_path, [FLOW], TINY)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


# --- the commands


@pytest.fixture
def bench(flowgen, monkeypatch):
    """Runs `flowgen bench ARGUMENTS`, as conftest's `flowgen`, under a tiny protocol."""
    monkeypatch.setattr(table2d, "QUICK", TINY)
    return lambda *arguments: flowgen("bench", *arguments)


def fill(folder, but=()):
    """All cells of the quick table, but some."""
    for cell in table2d.cells((42,)):
        if cell not in but:
            keep(folder, cell, result=FAKE._replace(npe=1.0) if cell.package == "torchcfm" else FAKE)


@pytest.mark.slow
def test_the_table_from_nothing_to_a_picture(bench, whole_pictures):
    ran = FLOW._replace(seed=42)
    fill(Path("bench/table2d-quick/cells"), but=[ran])
    code, out, _ = bench("table2d", "--quick")
    assert code == 0
    folder = Path("bench/table2d-quick")
    rows = (folder / "table2d.csv").read_text().splitlines()
    result = cells.found(folder / "cells", ran, TINY)
    assert rows[0] == "problem,package,method,seed,w2,w2_one_step,npe,npe_single,straightness,cpu_seconds"
    assert ",".join(map(str, [*ran, *result])) in rows
    assert len(rows) == 1 + len(table2d.cells((42,)))
    text = (folder / "table2d.md").read_text()
    assert text in out
    assert "not the\nfigures of the protocol" in text
    assert f"| 1-RF | flowgen | {result.w2:.3f} | {result.w2_one_step:.3f} |" in text
    assert "| OT-CFM | torchcfm | 0.625 | 2.500 | 1.000 | 0.750 | 0.018 | 0.500 | 1.5 | 1 |" in text
    assert text.count("| FM | flowgen | - |") == 1
    assert "30 steps of 32 pairs" in text
    for problem in PROBLEMS:
        assert f"## {problem}\n" in text
        assert f"| floor: data to data |  | {report.spread(table2d.floor(problem, TINY).truth)} |" in text
    width, height = Image.open(folder / "table2d.png").size
    assert min(width, height) > 1000
    # a second time, all is found
    assert bench("table2d", "--quick")[0] == 0
    assert (folder / "table2d.csv").read_text().splitlines() == rows


def test_figures_are_means_and_deviations_over_seeds():
    found = [FAKE._replace(w2=value) for value in (1.0, 2.0, 3.0)]
    results = {FLOW._replace(seed=seed): result for seed, result in enumerate(found)}
    assert summary.rows(results, "N to moons")["1-RF", "flowgen"] == found
    assert report.spread([result.w2 for result in found]) == "2.000 ± 1.000"
    assert report.spread([2.0]) == "2.000"


BAD = {
    "table2d --quick --seeds one": "--seeds",
    "table2d --quick --seeds 1,1": "--seeds",
    "table2d --quick --seeds 1,,2": "--seeds",
    "table2d --quick --seeds -1": "--seeds",
    "table2d --quick --seeds 4294967296": "--seeds",
    "table2d --quick --jobs 0": "--jobs",
    "table2d --quick --slow-seeds 0": "--slow-seeds",
    "table2d --quick --out file": "cannot make the folder",
    "table2d --quick --out foreign": "another protocol",
    "table2d --quick --stesp 3": "--stesp",
    "table3d": "table3d",
    "speed --quick --threads 0": "--threads",
    "speed --quick --out file": "cannot make the folder",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_clear_line_and_exit_code_2(bench, line):
    Path("file").touch()
    keep(Path("foreign/cells"), FLOW._replace(seed=42), TINY._replace(lr=0.5))
    code, out, err = bench(*line.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("flowgen: ")
    assert BAD[line] in err


SCRIPT = f"""
import sys, flowgen_cli
from flowgen.bench import table2d
table2d.QUICK = table2d.Protocol(**{TINY._asdict()})
flowgen_cli.main()
"""


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("early", [True, False], ids=["before any cell", "between cells"])
def test_ctrl_c_keeps_the_cells_that_are_done(tmp_path, early):
    """As a terminal does it: every process of the group is sent SIGINT."""
    folder = tmp_path / "bench/table2d-quick/cells"
    command = [sys.executable, "-c", SCRIPT, "bench", "table2d", "--quick"]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: folder.exists() and (early or len(list(folder.glob("*.json"))) >= 2))
    time.sleep(0.5 if early else 0)  # while the first processes are born
    os.killpg(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in err
    every = table2d.cells((42,))
    kept = len(every) - len(cells.missing(folder, every, TINY))
    assert (0 if early else 2) <= kept < len(every)
    assert f"{kept} of {len(every)} cells are kept; run the same again to go on" in err
    wait_for(lambda: not alive(run.pid))


# --- speed


def test_speed_couples_the_same_batches_and_says_who_is_missing(bench, monkeypatch):
    monkeypatch.setattr(speed, "SECTIONS", ((speed.coupling, 20), (speed.sampling, 10)))
    monkeypatch.setattr(speed, "POINTS", 20)
    monkeypatch.setattr(peers, "available", lambda module: False)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    code, out, _ = bench("speed", "--quick", "--threads", "3", "--out", "there")
    assert code == 0
    assert (torch.get_num_threads(), torch.equal(torch.get_rng_state(), state)) == (threads, True)
    text = Path("there/speed.md").read_text()
    assert text in out
    assert "3 torch threads" in text
    assert "Left out, since it cannot be imported here: torchdyn, flow_matching." in text
    cost = {
        row.split(" | ")[0][2:]: float(row.split(" | ")[-1][:-2])
        for row in text.splitlines()
        if " | " in row and "group" in row
    }
    groups = [cost[f"flowgen ExactOT(group={group})"] for group in (64, 128, 256, 512)]
    assert groups == sorted(groups, reverse=True)


def test_every_solver_ends_where_flowgen_does():
    """Peers that are installed walk the same steps; `sampling` refuses to time others."""
    net, x = MLP(2, 8, 1), torch.randn(20, 2, generator=generator(0, "starts"))
    ends = peers.bare_euler(net, 10)(x)
    made = {"flow_matching.solver": peers.flow_matching_ode, "torchdyn.core": peers.torchdyn_ode}
    for ode in (make(net, 10) for module, make in made.items() if peers.available(module)):
        torch.testing.assert_close(ode(x), ends, rtol=1e-5, atol=1e-5)


def test_ratios_are_taken_within_each_round():
    assert speed.ratios({"a": [1.0, 10.0], "b": [2.0, 5.0]}, "a", "b") == [0.5, 2.0]


def test_the_machine_is_named_without_a_proc_filesystem(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(report, "PACKAGES", ("torch", "no-such-package"))
    text = report.machine()
    assert f"- torch {torch.__version__}" in text
    assert "no-such-package" not in text
    assert f"{os.cpu_count()} cores" in text
