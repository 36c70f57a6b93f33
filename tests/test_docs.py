"""The documentation is true: its code runs, its commands run, its links lead somewhere, its tables are complete."""

import dataclasses
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flowgen_cli
import pytest
import typer

from flowgen import config, predictions, schedules
from flowgen.core import InputError
from flowgen.data import TOYS
from flowgen.data.tables import READERS
from flowgen.settings import flat

pytestmark = pytest.mark.journey

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
EXCEPTED = ("pip install ",)
"""What the documentation tells to run and no test does; of `make`, the target has to exist."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, language and text of each block of code."""
    text = page.read_text()
    for block in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S):
        yield text[: block.start()].count("\n") + 2, block[1], block[2]


def quick(text: str) -> str:
    """The same with a hundredth of every whole number from 1000 on: training steps, pairs, samples."""
    return re.sub(r"(?<![\w.#-])[1-9]\d{3,}(?![\w.])", lambda number: str(int(number[0]) // 100), text)


def commands(text: str) -> list[str]:
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def flowgen(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a line `flowgen ...`, in short."""
    argv = shlex.split(quick(line), comments=True)
    if argv[1] == "train" and "--resume" not in argv:
        argv += ["--set", "pool.batches=2"]
        if not {"--steps", "--config"} & set(argv):
            argv += ["--steps", "200"]
    if argv[1:3] == ["train", "digits"]:  # a net that takes no time
        argv += ["--net", "resmlp", "--set", "net.width=32", "--set", "net.depth=1"]
    ends = argv[1] == "distill" and not {"--method", "--steps"} & set(argv)
    if (ends or argv[1] == "reflow") and "--pairs" not in argv:
        argv += ["--pairs", "500"]
    if argv[1] == "evaluate" and "--num" not in argv:
        argv += ["--num", "60", "--repeats", "2"]
    if argv[1] == "bench":
        argv += ["--help"]  # its options are read, and no benchmark is run
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as end:
        flowgen_cli.main()
    assert not end.value.code, line


SLOW = ("README.md", "commands.md", "library.md", "images.md", "one-step.md", "diffusion.md", "measuring.md")
"""Pages whose blocks take long."""


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow) if page.name in SLOW else page for page in PAGES], ids=name
)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for constant in ("POINTS", "TRAINING", "PAIRS"):
        module = sys.modules["flowgen_cli.demo"]
        monkeypatch.setattr(module, constant, getattr(module, constant) // 100)
    Path("table.csv").write_text("a,b,c\n" + "".join(f"{i},{i % 7},{i % 3 - 0.5}\n" for i in range(60)))
    namespace: dict[str, Any] = {}
    for line, language, text in blocks(page):
        if language == "python":
            padded = "\n" * (line - 1) + quick(text)  # so that a traceback shows the page's own lines
            exec(compile(padded, str(page), "exec"), namespace)
        elif language == "toml":
            file = re.match(r"# (\S+\.toml)\n", text)
            assert file, f"{name(page)}:{line}: the first line of a TOML block is a comment with its file"
            Path(file[1]).write_text(quick(text))
        elif language == "bash":
            for command in commands(text):
                if command.startswith("make "):
                    assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()
                elif not command.startswith(EXCEPTED):
                    assert command.startswith("flowgen "), f"{name(page)}: {command}"
                    flowgen(command, monkeypatch)
        else:
            assert language == "text", f"{name(page)}:{line}: a block of {language} is not tested"


def slug(heading: str) -> str:
    """The anchor that GitHub and MkDocs give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        there = page.parent / target if target else page
        assert there.exists(), target
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.*)$", there.read_text(), re.M)), f"{target}#{anchor}"


def rows(page: str) -> list[list[str]]:
    """The rows of all tables of a page, cell by cell."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def settings() -> dict[str, str]:
    """Every key of a configuration, with its default as the documentation writes it."""
    defaults = {"data": None, **flat(config.make_config({"data": "moons"}).model_dump())}
    keys = {key.removesuffix(".name"): value for key, value in defaults.items() if key not in ("reflow", "distill")}
    keys["data"] = None
    parts = {
        "schedule": config.SCHEDULES,
        "prediction": config.PREDICTIONS,
        "weight": config.WEIGHTS,
        "coupling": config.COUPLINGS,
        "objective": config.OBJECTIVES,
        "times": config.TIMES,
        "loss": config.LOSSES,
        "net": config.NETS,
    }
    for part, table in parts.items():
        fields = [field for made in table.values() if isinstance(made, type) for field in dataclasses.fields(made)]
        for name in dict.fromkeys(field.name for field in fields):
            defaults = dict.fromkeys(written(field.default) for field in fields if field.name == name)
            keys[f"{part}.{name}"] = " or ".join(defaults)
    parent = config.ReflowConfig(parent="", parent_hash="").model_dump()
    keys |= {f"reflow.{key}": value or None for key, value in parent.items()}
    keys |= {f"distill.{key}": value or None for key, value in config.DistillConfig(parent="", parent_hash="")}
    return {key: written(x) for key, x in keys.items()}


def written(x: Any) -> str:
    """A default as the documentation writes it."""
    if isinstance(x, tuple):
        return ", ".join(map(written, x))
    return f"{x:g}" if isinstance(x, float) else "" if x is None else str(x).lower() if isinstance(x, bool) else str(x)


def test_every_setting_is_documented() -> None:
    documented = {row[0].strip("`"): row[1] for row in rows("commands.md") if len(row) == 3 and row[0] != "key"}
    documented = {key: default for key, default in documented.items() if not key.startswith("-")}
    assert documented == settings()


def every_command(group: Any) -> Iterator[tuple[str, Any]]:
    """The commands of a group by name, and those of the groups within it."""
    for name, made in group.commands.items():
        yield name, made
        if hasattr(made, "commands"):
            yield from every_command(made)


def test_every_option_is_documented() -> None:
    text = (ROOT / "docs/commands.md").read_text()
    sections = dict(re.findall(r"^##+ ([\w-]+)\n(.*?)(?=^##+ |\Z)", text, re.M | re.S))
    for command, made in every_command(typer.main.get_command(flowgen_cli.app)):
        options = {option for parameter in made.params for option in parameter.opts if option.startswith("--")}
        documented = set(re.findall(r"^\| `(--[\w-]+)` \|", sections[command], re.M))
        assert documented == options - {"--help"}, command


def test_every_name_is_documented() -> None:
    text = (ROOT / "docs/commands.md").read_text()
    names = (
        TOYS,
        READERS,
        config.SCHEDULES,
        config.PREDICTIONS,
        config.COUPLINGS,
        config.TIMES,
        config.NETS,
        config.LR_SCHEDULES,
    )
    for table in names:
        assert not [name for name in table if f"`{name}`" not in text]
    for table in (config.SOLVERS, config.SAMPLERS, config.GRIDS, config.WEIGHTS):
        assert not [name for name in table if f"`{name}`" not in text]


def determined(path: schedules.Schedule, target: predictions.Prediction) -> str:
    try:
        return "all t" if predictions.span(path, target)[1] == 1 else "t < 1"
    except InputError:
        return "refused"


def test_where_targets_are_singular() -> None:
    table = {row[0]: row[1:] for row in rows("choosing.md") if row[0] in (*config.SCHEDULES, "path") and len(row) == 7}
    assert table.pop("path") == list(config.PREDICTIONS)
    made = {name: made() for name, made in config.SCHEDULES.items()}
    kinds = [target() if isinstance(target, type) else target for target in config.PREDICTIONS.values()]
    assert table == {name: [determined(path, target) for target in kinds] for name, path in made.items()}
