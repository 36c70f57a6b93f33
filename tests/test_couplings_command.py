"""`flowgen couplings`, as a person and a script meet it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowgen.config import COUPLINGS
from flowgen.evaluation import pairing

pytestmark = pytest.mark.journey

SMALL = ["--set", "pool.batches=4", "--batches", "4", "--batch-size", "64"]
QUICK = [name for name in COUPLINGS if name != "semidiscrete"]
"""What is measured where no coupling is named."""


def figures(flowgen, *arguments) -> dict:
    code, out, _ = flowgen("couplings", *arguments, "--no-picture", "--json", "-")
    assert code == 0
    return json.loads(out)


def untimed(found: dict) -> list[dict]:
    times = ("ms_per_batch", "ms_per_step", "preparation_seconds")
    return [{key: x for key, x in each.items() if key not in times} for each in found["couplings"]]


def test_a_person_reads_a_table_and_sees_a_picture(flowgen, whole_pictures):
    code, out, err = flowgen("couplings", "moons", *SMALL, "--json", "f.json")
    assert code == 0
    for name in QUICK:
        assert re.search(rf"^ +{name} ", out, re.M)
    for words in (
        "gaussian to moons: 256 pairs",
        "a pool of 4 batches of 64",
        "takes multiscale",
        "ratio",
        "plan entropy 0.",
    ):
        assert words in out
    assert max(map(len, out.splitlines())) <= 80
    assert "Warning" not in err
    picture = Image.open("couplings.png")
    assert (picture.format, picture.size[0] > picture.size[1] > 500) == ("PNG", True)
    assert sorted(Path().iterdir()) == [Path("couplings.png"), Path("f.json")]
    assert len(json.loads(Path("f.json").read_text())["couplings"]) == len(QUICK)


def test_a_script_reads_the_figures(flowgen):
    found = figures(flowgen, "moons", *SMALL, "--coupling", "sinkhorn", "--set", "pool.reuse=5", "--ot-batch", 32)
    facts = ("data", "source", "default", "batch_size", "pool_batches", "pairs", "classes", "seed")
    assert [found[key] for key in facts] == ["moons", "gaussian", "multiscale", 64, 4, 256, 0, 0]
    plain, sinkhorn = found["couplings"]
    assert (plain["name"], plain["ratio"], plain["rows_together"], plain["diagnostics"]) == ("independent", 1, None, {})
    assert (sinkhorn["name"], sinkhorn["group"], sinkhorn["rows_together"]) == ("sinkhorn", 32, 32)
    assert sinkhorn["ratio"] == pytest.approx(sinkhorn["transport_cost"] / plain["transport_cost"])
    assert sinkhorn["ms_per_step"] == pytest.approx(sinkhorn["ms_per_batch"] / 5)
    assert set(sinkhorn["diagnostics"]) == {"marginal_error", "plan_entropy"}
    assert (sinkhorn["data_used"], sinkhorn["warnings"]) == (1, [])
    assert not list(Path().iterdir())


def test_semidiscrete_pairs_are_those_of_transport_to_all_rows(flowgen, normal):
    """Their mean cost is that of exact transport of many source points, and is known before; its draws are its own."""
    np.save("t.npy", normal("few", 20, 2).numpy())
    names = ["--coupling", "semidiscrete", "--coupling", "exact", "--set", "coupling.draws_per_row=4000"]
    pool = ["--set", "pool.batches=8", "--batch-size", "256", "--set", "coupling.group=2048"]
    plain, cells, exact = figures(flowgen, "t.npy", *names, *pool)["couplings"]
    assert cells["transport_cost"] == pytest.approx(exact["transport_cost"], rel=0.1)
    assert cells["transport_cost"] < 0.5 * plain["transport_cost"]
    assert abs(cells["diagnostics"]["chi_square"]) < 0.01
    assert (cells["data_used"], cells["rows_together"], cells["reuse"]) == (None, None, 1)
    assert cells["preparation_seconds"] > 0
    out = flowgen("couplings", "t.npy", *names[:2], "--set", "pool.batches=2")[1]
    assert "draws of its own" in out
    assert "chi square" in out


def test_a_setting_wins_over_an_option(flowgen):
    assert figures(flowgen, "moons", *SMALL, "--coupling", "exact", "--set", "train.batch_size=8")["batch_size"] == 8


def test_the_same_seed_gives_the_same_figures(flowgen):
    def untimed_of(*seed):
        return untimed(figures(flowgen, "spirals", *SMALL, *seed))

    assert untimed_of() == untimed_of("--seed", 0)
    assert untimed_of() != untimed_of("--seed", 1)


@pytest.mark.parametrize("name", ["digits", "t.npz"])
def test_rows_with_labels_are_paired_within_their_class(flowgen, table, name):
    settings = ["--set", "labels=true", "--set", "pool.batches=2", "--batches", "3", "--coupling", "exact"]
    labelled = figures(flowgen, name, *settings)
    assert (labelled["classes"], labelled["pairs"]) == ({"digits": 10, "t.npz": 2}[name], 4 * labelled["batch_size"])
    free = figures(flowgen, name, *settings, "--set", "labels=false")
    assert free["classes"] == 0
    assert free["couplings"][1]["transport_cost"] < labelled["couplings"][1]["transport_cost"]
    code, out, _ = flowgen("couplings", name, *settings)
    assert code == 0
    assert "paired within their class" in out
    assert "no picture: the data do not lie in the plane" in out


def test_images_are_measured_as_they_are_trained_on(flowgen):
    np.save("i.npy", np.arange(90 * 36).reshape(90, 6, 6) % 256)
    found = figures(flowgen, "i.npy", "--batches", 5, "--coupling", "exact")
    assert (found["default"], found["batch_size"], found["pool_batches"], found["pairs"]) == (
        "independent",
        128,
        1,
        640,
    )
    assert found["couplings"][1]["reuse"] == 1
    assert figures(flowgen, "i.npy", "--batches", 1, "--coupling", "exact", "--set", "images.size=3")


def test_a_warning_is_a_line(flowgen):
    hurried = ["--coupling", "sinkhorn", "--set", "coupling.iterations=1", "--set", "coupling.epsilon=0.001"]
    code, out, err = flowgen("couplings", "moons", *SMALL, *hurried)
    assert code == 0
    assert "sinkhorn: Sinkhorn stopped after 1 iterations" in err
    assert "sinkhorn.py" not in err
    assert "stopped" not in out


BAD = {
    "mons": "did you mean moons?",
    "none.csv": "none.csv: no such file",
    "nan.npy": "hold NaN",
    "moons --source three.npy": "three.npy has 3 columns, and needs 2",
    "moons --coupling exat": "did you mean exact?",
    "moons --coupling exact --coupling sinkhron": "did you mean sinkhorn?",
    "moons --batch-size 0": "train.batch_size",
    "moons --batches 0": "--batches must be at least 1",
    "moons --ot-batch -1": "group",
    "moons --coupling independent --ot-batch 3": "choose from none",
    "moons --seed -1": "seed",
    "moons --set coupling=exact": "--coupling",
    "moons --set coupling.epsilom=3": "did you mean epsilon?",
    "moons --set pool.batches=0": "at least one batch",
    "moons --set pool": "expected key=value",
    "moons --set device=gpu": "choose auto, cpu",
    "moons --out p.pdf": "--out is a picture",
    "moons --out none/p.png": "no folder none",
    "moons --out folder.png": "folder.png is a folder",
    "moons --out p.png --no-picture": "not both",
    "moons --json none/f.json": "no folder none",
    "moons --json folder.png": "folder.png is a folder",
    "three.npy --out p.png": "--out draws data of two columns",
    "digits --out p.png": "--out draws data of two columns",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_line_before_any_work(flowgen, monkeypatch, line):
    np.save("nan.npy", np.array([[1, 2], [np.nan, 1], [np.inf, 2]]))
    np.save("three.npy", np.ones((9, 3)))
    Path("folder.png").mkdir()
    monkeypatch.setattr(pairing, "measure", lambda *_: pytest.fail("it began"))
    before = sorted(Path().rglob("*"))
    code, out, err = flowgen("couplings", *line.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("flowgen: ")
    assert BAD[line] in err
    assert sorted(Path().rglob("*")) == before
