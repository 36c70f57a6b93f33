"""Empty arguments: an unset variable in a shell is none, and never the current folder."""

import numpy as np
import pytest
from PIL import Image

from flowgen.config import load_data, make_config
from flowgen.core import InputError
from flowgen.data.images.folder import open_folder

CALLS = [
    ("DATA", ["train", ""]),
    ("--out", ["train", "moons", "--out", ""]),
    ("--config", ["train", "--config="]),
    ("--source", ["train", "moons", "--source", ""]),
    ("RUN", ["sample", ""]),
    ("RUN...", ["evaluate", ".", ""]),
    ("--json", ["evaluate", ".", "--json", ""]),
    ("--against", ["evaluate", ".", "--against", " "]),
    ("FILE", ["likelihood", ".", ""]),
    ("IMAGE", ["edit", ".", ""]),
    ("--mask", ["edit", ".", "a.png", "--mask", ""]),
    ("DATA", ["couplings", ""]),
    ("--weak", ["sample", ".", "--weak", " \t"]),
    ("--format", ["export", ".", "--format", ""]),
    ("--label", ["sample", ".", "--label", ""]),
    ("--seeds", ["bench", "table2d", "--seeds", ""]),
]


@pytest.fixture
def images(tmp_path):
    """The current folder holds images, which nobody named."""
    for index in range(4):
        Image.fromarray(np.full((8, 8), index, np.uint8)).save(tmp_path / f"{index}.png")


@pytest.mark.costly
@pytest.mark.parametrize(("name", "call"), CALLS)
def test_an_empty_argument_is_refused_by_name(flowgen, images, tmp_path, name, call):
    code, out, err = flowgen(*call)
    assert (code, out) == (2, "")
    assert f"'{name}'" in err
    assert "empty" in err
    assert err.count("\n") == 1
    assert len(list(tmp_path.iterdir())) == 4  # nothing was written


@pytest.mark.parametrize("command", ["info", "reflow", "distill", "train-classifier", "export", "likelihood"])
def test_no_command_takes_an_empty_run(flowgen, command):
    code, _, err = flowgen(command, "  ")
    assert code == 2
    assert "'RUN': it is empty" in err


@pytest.mark.parametrize("key", ["data", "source"])
def test_an_empty_setting_is_refused(flowgen, images, key):
    code, _, err = flowgen("train", "moons", "--set", f"{key}=")
    assert code == 2
    assert f"{key} is empty" in err
    with pytest.raises(InputError, match=f"{key} is empty"):
        make_config({"data": "moons", key: " "})


def test_the_library_takes_no_empty_data(images, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    split = make_config({"data": "moons"}).split
    for read in (lambda: load_data("", split), lambda: open_folder("")):
        with pytest.raises(InputError, match="is empty"):
            read()
