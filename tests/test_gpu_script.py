"""benchmarks/gpu.sh, which has one call on a machine with a GPU: all of it runs here in small, and loses nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.journey

ROOT = Path(__file__).parent.parent
PARTS = ("start", "laws", "dit", "transport", "train", "sample", "distill")


def gpu(*words, python=sys.executable, timeout=1800):
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *map(str, words)]
    # no GPU, where there is one: what is tried is whether all of it runs
    environment = {**os.environ, "PYTHON": str(python), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


@pytest.mark.slow
def test_all_parts_run_in_small_on_the_cpu(tmp_path):
    done = gpu("--tiny", "--out", tmp_path / "out")
    text = (tmp_path / "out" / "gpu.md").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + text
    assert all(f"| {part} | ok |" in text for part in PARTS)
    files = list((tmp_path / "out").iterdir())
    assert {file.name for file in files} == {"gpu.md", "gpu.jsonl", "gpu.log"}
    facts = [json.loads(line) for line in (tmp_path / "out" / "gpu.jsonl").read_text().splitlines()]
    assert {fact["part"] for fact in facts} == set(PARTS)
    transport = [fact for fact in facts if fact["part"] == "transport"]
    assert all(fact["cost"] > 0 for fact in transport), transport


@pytest.fixture
def stub(tmp_path):
    """A Python that writes a line for each part, runs out of time in one, fails in another and leaves one out."""
    path = tmp_path / "python"
    path.write_text(
        """#!/bin/bash
while [ $# -gt 0 ]; do
    case $1 in *gpu.py) part=$2 ;; --out) out=$2 ;; esac
    shift
done
echo "what $part had" >> "$out/gpu.md"
case $part in
    dit) echo "Traceback" >&2; echo "RuntimeError: no kernel for $part" >&2; exit 1 ;;
    transport) exit 124 ;;
    train) echo "it needs torchcfm" >&2; exit 3 ;;
esac
"""
    )
    path.chmod(0o755)
    return path


def test_a_part_that_fails_is_told_and_the_next_goes_on(tmp_path, stub):
    done = gpu("--out", tmp_path / "out", python=stub)
    text = (tmp_path / "out" / "gpu.md").read_text()
    assert done.returncode == 1
    assert all(f"what {part} had" in text for part in PARTS)
    assert "RuntimeError: no kernel for dit" in text
    for line in ("| dit | failed |", "| transport | out of time |", "| train | left out: it needs torchcfm |"):
        assert line in text
    assert all(f"| {part} | ok |" in text for part in ("laws", "sample", "distill"))


def test_one_part_is_run_alone(tmp_path, stub):
    assert gpu("--part", "sample", "--out", tmp_path / "out", python=stub).returncode == 0
    text = (tmp_path / "out" / "gpu.md").read_text()
    assert [part for part in PARTS if f"what {part} had" in text] == ["start", "sample"]


@pytest.mark.parametrize("words", [["--part", "none"], ["--part"], ["--fast"]], ids=" ".join)
def test_options_that_are_none_are_refused(words):
    done = gpu(*words)
    assert done.returncode == 2
    assert "parts: laws dit transport train sample distill" in done.stderr


def test_the_limits_of_all_parts_are_under_nine_minutes():
    text = (ROOT / "benchmarks" / "gpu.sh").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("parts=(")]
    seconds = [int(part.split(":")[1]) for part in line.removeprefix("parts=(").rstrip(")").split()]
    assert sum(seconds) + 5 * len(seconds) < 540  # each may take 5 seconds more to end
