"""Runs of version 0.1 are refused in one line."""

from pathlib import Path

import pytest

from flowgen import runs
from flowgen.core import InputError
from flowgen.runs import Run


def test_a_run_of_version_0_1_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('data = "moons"\ntarget = "velocity"\n[path]\nname = "linear"\n')
    for use in (Run.open, lambda folder: runs.load(folder, "cpu")):
        with pytest.raises(InputError, match=r"config\.toml is of a run of flowgen 0\.1, .*: train it anew"):
            use(tmp_path)
