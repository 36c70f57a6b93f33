"""Rows on standard output: `--out -` prints a table and nothing else, and is refused where no table is made."""

import gzip
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowgen import runs
from flowgen.config import resolve_config
from flowgen.data.labels import Labels
from flowgen.data.writing import write_rows

pytestmark = pytest.mark.journey

SMALL = {"train": {"steps": 2, "batch_size": 16, "preview_every": 0}, "pool": {"batches": 1, "reuse": 1}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quick runs of a table with labels, of one in a packed file, and of images."""
    folder, rng = tmp_path_factory.mktemp("store"), np.random.default_rng(0)
    x = rng.standard_normal((60, 3))
    rows = "".join(f"{a},{b},{c},{'cat' if a > 0 else 'dog'}\n" for a, b, c in x.tolist())
    (folder / "t.csv").write_text(f"a,b,c,kind\n{rows}")
    (folder / "p.csv.gz").write_bytes(gzip.compress(f"a,b,c\n{rows}".replace(",cat", "").replace(",dog", "").encode()))
    np.save(folder / "i.npy", rng.integers(0, 256, (20, 4, 4), dtype=np.uint8))
    trees: dict[str, dict[str, Any]] = {
        "labelled": {"data": str(folder / "t.csv"), "table": {"label_column": "kind"}, "net": {"width": 8, "depth": 1}},
        "packed": {"data": str(folder / "p.csv.gz"), "net": {"width": 8, "depth": 1}, "coupling": "independent"},
        "images": {"data": str(folder / "i.npy"), "net": {"name": "resmlp", "width": 8, "depth": 1}},
    }
    for name, tree in trees.items():
        for _ in runs.train(runs.Run.create(folder / name, resolve_config({**SMALL, **tree}), "flowgen train")):
            pass
    return folder


@pytest.fixture
def home(flowgen: Any, store: Path) -> Any:
    """A folder of runs of its own to call `flowgen` in."""
    shutil.copytree(store, ".", dirs_exist_ok=True)
    return flowgen


def told(err: str) -> str:
    """The last line on standard error."""
    return err.splitlines()[-1]


def test_samples_are_printed_as_they_are_written(home: Any) -> None:
    for name in ("labelled", "packed"):
        call = ("sample", name, "--num", "300", "--steps", "2")
        code, out, err = home(*call, "--out", "-")
        assert (code, home(*call, "--out", "s.csv")[0], home(*call, "--out", "s.csv.gz")[0]) == (0, 0, 0)
        assert out == Path("s.csv").read_text()
        assert gzip.decompress(Path("s.csv.gz").read_bytes()).decode() == out
        assert out.splitlines()[0] == "a,b,c" + ",kind" * (name == "labelled")
        assert len(out.splitlines()) == 301
        assert "300 samples" in told(err)
    assert not Path("-").exists()


def test_likelihoods_are_printed_as_they_are_written(home: Any) -> None:
    call = ("likelihood", "packed", "p.csv.gz", "--steps", "2")
    code, out, err = home(*call, "--out", "-", "--json", "figures.json")
    assert (code, home(*call, "--out", "l.csv")[0]) == (0, 0)
    assert out == Path("l.csv").read_text()
    assert len(out.splitlines()) == 61
    assert "log-likelihood, nats" in err
    assert Path("figures.json").is_file()


def test_a_table_filled_in_is_printed(home: Any) -> None:
    Path("h.csv.gz").write_bytes(gzip.compress(b"a,b,c\n1,2,\n,0.5,1\n"))
    code, out, err = home("edit", "packed", "h.csv.gz", "--steps", "2", "--out", "-")
    assert (code, home("edit", "packed", "h.csv.gz", "--steps", "2", "--out", "f.csv.gz")[0]) == (0, 0), err
    assert gzip.decompress(Path("f.csv.gz").read_bytes()).decode() == out
    header, first, second = (line.split(",") for line in out.splitlines())
    assert (header, first[:2], second[1:]) == (["a", "b", "c"], ["1", "2"], ["0.5", "1"])
    assert "2 rows" in told(err)


REFUSED = {
    "sample images --out -": "images",
    "sample labelled --out - --trajectories": "--trajectories",
    "likelihood packed --out - --json -": "--json -",
    "edit packed h.csv --out - --json": "--json",
    "edit images a.png --strength 0.5 --out -": "--strength",
    "edit images a.png --invert --out -": "--invert",
    "train moons --out -": "'--out'",
    "train moons --out=-": "'--out'",
    "reflow packed --out -": "'--out'",
    "distill packed --out -": "'--out'",
    "evaluate packed --out -": "'--out'",
    "couplings moons --out -": "'--out'",
    "export packed --out -": "'--out'",
    "demo --out -": "'--out'",
    "bench speed --out -": "'--out'",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_makes_no_table_is_not_printed(home: Any, line: str) -> None:
    Path("h.csv").write_text("a,b,c\n1,2,\n")
    before = sorted(Path().rglob("*"))
    code, out, err = home(*line.split())
    assert (code, out) == (2, "")
    assert REFUSED[line] in told(err)
    assert sorted(Path().rglob("*")) == before


def test_an_open_file_gets_the_csv() -> None:
    file = io.BytesIO()
    write_rows(file, [torch.tensor([[0.5, 1.0]])], (1, 2), ("a", "b"), labels=Labels(torch.tensor([0]), ("cat",)))
    assert file.getvalue() == b"a,b,label\n0.5,1,cat\n"


def test_a_reader_may_leave_early(store: Path) -> None:
    script = "import sys; sys.argv = ['flowgen', *sys.argv[1:]]; import flowgen_cli; flowgen_cli.main()"
    call = [
        sys.executable,
        "-c",
        script,
        "sample",
        str(store / "packed"),
        "--steps",
        "1",
        "--num",
        "40000",
        "--out",
        "-",
    ]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"a,b,c\n"
        process.stdout.close()
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


@pytest.mark.parametrize("line", ["train moons --out ./-", "sample r --out ./-"])
def test_a_file_that_would_be_read_as_output_is_refused(flowgen, tmp_path, line):
    code, out, err = flowgen(*line.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "./-" in err
    assert not list(tmp_path.iterdir())
