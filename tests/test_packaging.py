"""What is published: the names of the distribution and of its extras, and what people are told to install."""

import re
import tomllib
from pathlib import Path

import pytest

import flowgen
from flowgen.extras import DISTRIBUTION, install

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEXTS = ("", ".md", ".py", ".sh", ".toml", ".txt")
WRITTEN = [
    *(ROOT / name for name in ("README.md", "Makefile", "pyproject.toml", "constraints.txt")),
    *(file for folder in ("flowgen", "cli", "docs", "examples", "benchmarks") for file in (ROOT / folder).rglob("*.*")),
]
STRANGER = re.compile(r"(?<![\w./-])flowgen(?![\w/.-])")
"""`flowgen` alone, or with extras, as a requirement: on the package index that is another project."""


def strangers(text: str) -> list[str]:
    """The commands of pip in a text that install `flowgen`."""
    commands = re.findall(r"pip3? (?:install|download)([^`\n]*)", text)
    return [command for command in commands if STRANGER.search(command.split(" #")[0])]


@pytest.mark.parametrize("text", ["pip install flowgen", "pip install 'flowgen[hub]'", "pip install -U flowgen==1"])
def test_a_command_that_installs_a_stranger_is_found(text: str) -> None:
    assert strangers(text)


@pytest.mark.parametrize("text", ["pip install 'flowgen-torch[hub]'", "pip install -e .", "pip install ./flowgen"])
def test_a_command_that_installs_none_is_not(text: str) -> None:
    assert not strangers(text)


def test_nobody_is_told_to_install_a_stranger() -> None:
    texts = [
        file for file in WRITTEN if file.suffix in (".md", ".py", ".sh", ".toml", ".txt") or file.name == "Makefile"
    ]
    assert len(texts) > 100
    assert not [(str(file), found) for file in texts if (found := strangers(file.read_text(encoding="utf-8")))]


def test_the_distribution_has_a_name_of_its_own() -> None:
    assert PROJECT["name"] == DISTRIBUTION != "flowgen"
    extras = [need for needs in PROJECT["optional-dependencies"].values() for need in needs]
    assert not [need for need in extras if STRANGER.search(need)]


def test_every_extra_that_code_names_exists() -> None:
    code = "".join(file.read_text(encoding="utf-8") for file in ROOT.glob("flowgen/**/*.py"))
    named = set(re.findall(r"\binstall\(['\"](\w+)['\"]\)", code))
    assert {"export", "fid", "hub", "tensorboard"} <= named <= PROJECT["optional-dependencies"].keys()
    assert install("hub") == "pip install 'flowgen-torch[hub]'"


def test_the_version_is_one() -> None:
    assert PROJECT["version"] == flowgen.__version__
