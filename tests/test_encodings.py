"""Names and terminals that are not UTF-8: used as they are, or refused in one line, and results are kept."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowgen.core import InputError
from flowgen.data.images.folder import open_folder
from flowgen.settings import read_toml

pytestmark = pytest.mark.journey

QUICK = ["--steps", 20, "--batch-size", 32, "--set", "net.width=16", "--set", "pool.batches=3"]
LATIN = "caf\udce9s"  # what Python makes of b"caf\xe9s"


def write_images(folder):
    Path(folder).mkdir(parents=True)
    for index in range(4):
        Image.fromarray(np.full((8, 8), index, np.uint8)).save(Path(folder, f"{LATIN}{index}.png"))


@pytest.fixture
def ascii_output(monkeypatch):
    """Standard output that holds ASCII alone; gives what was written there."""
    raw = io.BytesIO()

    def redirected():
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
        return lambda: (sys.stdout.flush(), raw.getvalue())[1]

    return redirected


def test_results_are_kept_and_shown_in_ascii(flowgen, ascii_output):
    assert flowgen("train", "moons", *QUICK, "--out", "runs/größe[/red]:smile:")[0] == 0
    run = "runs/größe[/red]:smile:"
    written = ascii_output()
    code, _, err = flowgen("evaluate", run, "--steps", 1, "--num", 50, "--repeats", 2, "--json", "found.json")
    assert code == 0, err
    assert json.loads(Path("found.json").read_text())[0]["run"]
    assert Path(run, "plots", "quality.png").exists()
    assert rb"gr\xf6\xdfe[/red]:smile:" in written()
    for command in (["info"], ["likelihood", "--num", 20], ["sample", "--steps", 1, "--num", 20]):
        code, _, err = flowgen(command[0], run, *command[1:])
        assert code == 0, err


def test_couplings_are_kept_before_they_are_shown(flowgen, ascii_output):
    ascii_output()
    code, _, err = flowgen("couplings", "moons", "--coupling", "independent", "--batches", 1, "--json", "c.json")
    assert code == 0, err
    assert json.loads(Path("c.json").read_text())
    assert Path("couplings.png").exists()


def test_a_closed_pipe_does_not_cost_the_results(flowgen, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            return os.open(os.devnull, os.O_WRONLY)

    assert flowgen("train", "moons", *QUICK)[0] == 0
    monkeypatch.setattr(sys, "stdout", Closed())
    code, _, _ = flowgen("evaluate", "runs/moons", "--steps", 1, "--num", 50, "--repeats", 2, "--json", "found.json")
    assert code == 1
    assert Path("found.json").exists()
    assert Path("runs/moons/plots/quality.png").exists()


def test_toml_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "c.toml").write_text('data = "größe"\n', encoding="utf-8-sig")
    assert read_toml(tmp_path / "c.toml") == {"data": "größe"}
    (tmp_path / "c.toml").write_text('data = "größe"\n', encoding="latin-1")
    with pytest.raises(InputError, match=r"c\.toml"):
        read_toml(tmp_path / "c.toml")


def test_image_files_may_have_any_names(flowgen):
    write_images("images")
    assert len(open_folder(Path("images"))) == 4
    code, _, err = flowgen("train", "images", "--size", "tiny", "--steps", 1, "--batch-size", 2)
    assert code == 0, err


def test_folders_that_cannot_be_recorded_are_refused(flowgen):
    write_images(LATIN)
    write_images(f"classes/{LATIN}")
    run = f"runs/{LATIN}"
    calls = [("train", LATIN), ("train", "classes"), ("train", "moons", "--out", run), ("train", "moons", "-x", LATIN)]
    calls += [("train", "moons", "--source", LATIN), ("couplings", LATIN), ("demo", "--out", run), ("sample", run)]
    calls += [("export", "runs/moons", "--out", f"{LATIN}.onnx")]
    for call in calls:
        code, out, err = flowgen(*call)
        assert (code, out) == (2, ""), call
        assert r"caf\udce9s" in err or "-x" in err, call
        assert err.count("\n") == 1, call
    assert not Path("runs").exists()
