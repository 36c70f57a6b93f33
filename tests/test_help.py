"""The help of the commands: version, short forms, groups of options, defaults that hold, completion; without torch."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import flowgen_cli
import numpy as np
import pytest
import typer
from flowgen_cli.groups import GROUPS, RUN, group_of
from PIL import Image

import flowgen as package
from flowgen.config import SCHEDULES, kind, resolve_config
from flowgen.config.defaults import reflow_defaults
from flowgen.config.parents import ReflowConfig
from flowgen.settings import flat

COMMANDS: dict[str, Any] = vars(typer.main.get_command(flowgen_cli.app))["commands"]
COMPLETIONS = {
    "flowgen tr": "train train-classifier",
    "flowgen train --batch": "--batch-size",
    "flowgen train '' --ov": "--overwrite",
    "flowgen train --steps ": "",
    "flowgen bench ": "table2d speed",
}
SETTINGS = {
    "source": "source",
    "coupling": "coupling.name",
    "objective": "objective.name",
    "guidance": "objective.guidance",
    "path": "schedule.name",
    "prediction": "prediction",
    "weight": "weight.name",
    "times": "times.name",
    "net": "net.name",
    "steps": "train.steps",
    "batch_size": "train.batch_size",
    "accumulate": "train.accumulate",
    "lr": "train.lr",
    "precision": "train.precision",
    "preview_every": "train.preview_every",
    "log": "train.log",
    "seed": "seed",
    "device": "device",
}
"""Options of train whose default is a setting's, and that setting."""
OTHER = {"out", "header", "label_column", "ot_batch", "size", "image_size", "threads"}
OTHER |= {"config", "settings", "moved", "parent"}
"""Options of train that have no default, or whose default is told in words, or tested apart."""


def options(command: str) -> dict[str, Any]:
    """The options of a command by the names of their parameters."""
    return {param.name: param for param in COMMANDS[command].params if param.opts[0].startswith("-")}


def told(text: str, *names: str) -> str:
    """What a default like `512; images, vp: 128` says: of the last of its clauses that has one of the names."""
    found = ""
    for clause in text.split("; "):
        of, _, value = clause.rpartition(": ")
        if not of or set(of.split(", ")) & set(names):
            found = value
    return found


@pytest.fixture
def data(tmp_path: Path) -> dict[tuple[str, ...], str]:
    """A name for each kind of data; digits are images too."""
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    return {(): "moons", ("table",): "t.csv", ("images",): str(tmp_path), ("images", "digits"): "digits"}


# the command itself


@pytest.mark.costly
def test_nothing_that_only_tells_imports_torch() -> None:
    script = f"""
import os, sys
import flowgen_cli

def run(*words, **environment):
    sys.argv = ["flowgen", *words]
    os.environ.update(environment)
    try:
        flowgen_cli.main()
    except SystemExit as end:
        print("ENDED", end.code)

for line in ("--version", "-h", "train -h", "bench -h", "bench speed -h", "--show-completion bash"):
    run(*line.split())
for line in {list(COMPLETIONS)}:
    print("LINE", line)
    run(COMP_WORDS=line, COMP_CWORD=str(line.count(" ")), _FLOWGEN_COMPLETE="complete_bash")
print("LOADED", *sorted({{name.split(".")[0] for name in sys.modules}}))
"""
    named = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # the shell is an argument
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=named)
    shown, _, completed = done.stdout.partition("LINE ")
    assert shown.startswith(f"flowgen {package.__version__}\nENDED 0\n")
    assert shown.count("Usage") == 4
    assert "_flowgen_completion" in shown
    found = {}
    for part in completed.partition("LOADED")[0].split("LINE "):
        line, *words, _, code = part.splitlines()[0], *part.split("\n", 1)[1].split()
        found[line] = " ".join(words)
        assert code == "0"
    assert found == COMPLETIONS
    assert not {"torch", "numpy"} & set(done.stdout.rpartition("LOADED")[2].split())


@pytest.mark.parametrize("command", [[], ["sample"], ["bench"], ["bench", "table2d"]], ids=" ".join)
def test_h_is_short_for_help(command: list[str], flowgen: Any) -> None:
    assert flowgen(*command, "-h") == flowgen(*command, "--help")
    assert flowgen(*command, "-h")[0] == 0


# groups


@pytest.mark.parametrize("command", GROUPS)
def test_groups_name_options_that_there_are(command: str) -> None:
    known = {option.opts[0].removeprefix("--") for option in options(command).values()}
    listed = [name for names in GROUPS[command].values() for name in names.split()]
    assert len(listed) == len(set(listed))
    assert set(listed) <= known


def test_the_groups_are_shown_in_order(flowgen: Any) -> None:
    code, out, _ = flowgen("train", "--help")
    assert code == 0
    assert re.findall(r"^╭─ (\w+)", out, re.M) == ["Arguments", *GROUPS["train"], RUN]
    training = out.partition("─ Training")[2].partition("─ Run")[0]
    assert "--batch-size" in training
    assert "--seed" not in training
    assert "--help" in out.partition("─ Run")[2]


def test_commands_with_many_options_have_groups() -> None:
    assert {name for name in COMMANDS if len(getattr(COMMANDS[name], "params", ())) > 9} <= GROUPS.keys()
    assert (group_of("train", "--lr"), group_of("train", "--resume")) == ("Training", RUN)


# defaults


def test_every_option_of_train_has_its_default_tested() -> None:
    open_ = {name for name, option in options("train").items() if option.default is None}
    assert open_ == SETTINGS.keys() | OTHER


@pytest.mark.costly
@pytest.mark.parametrize("option", SETTINGS)
def test_a_default_of_train_is_what_is_taken(option: str, data: dict[tuple[str, ...], str]) -> None:
    text = options("train")[option].show_default
    for kinds, name in data.items():
        for path in [None, *SCHEDULES] if option != "path" else [None]:
            config = flat(resolve_config({"data": name, **({"schedule": path} if path else {})}).model_dump())
            expected = told(text, *kinds, path or "linear")
            assert str(config.get(SETTINGS[option], 1.0)) == expected, (name, path)


def test_the_default_size_is_what_is_taken(data: dict[tuple[str, ...], str]) -> None:
    text = options("train")["size"].show_default
    for kinds, name in data.items():
        assert flat(resolve_config({"data": name}).model_dump()).get("net.size", "") == told(text, *kinds)
    chosen = resolve_config({"data": data["images",], "net": "dit"})
    assert flat(chosen.model_dump())["net.size"] == told(text, "images", "dit")


@pytest.mark.parametrize("command", ["train", "couplings"])
def test_the_default_of_ot_batch_is_what_is_taken(command: str) -> None:
    text = options(command)["ot_batch"].show_default
    for coupling in ("multiscale", "exact", "sinkhorn", "unbalanced", "partial", "bridge"):
        made = flat(resolve_config({"data": "moons", "coupling": coupling}).model_dump())
        assert str(made["coupling.group"]) == told(text, coupling)


def test_the_defaults_of_couplings_are_those_of_train() -> None:
    for option in ("source", "batch_size", "ot_batch", "seed"):
        assert options("couplings")[option].show_default == options("train")[option].show_default


def test_the_default_of_pairs_is_what_is_taken(data: dict[tuple[str, ...], str]) -> None:
    text, usual = options("reflow")["pairs"].show_default, ReflowConfig.model_fields["pairs"].default
    for kinds, name in data.items():
        assert str(reflow_defaults(name, kind(name)).get("pairs", usual)) == told(text, *kinds)
