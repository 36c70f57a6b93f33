"""The floors of docs/architecture.md: imports go down only, and nothing heavy is imported before it is needed."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import flowgen

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("flowgen/**/*.py"), *ROOT.glob("cli/**/*.py")])
HEAVY = {"matplotlib", "ot", "pandas", "pyarrow", "pydantic", "scipy", "sklearn", "torchdiffeq", "torchvision", "rich"}


def documented_floors() -> dict[str, int]:
    """Module to floor, from the drawing in the documentation."""
    (drawing,) = re.findall(r"^```text\n((?:\d+ .*\n)+)```$", (ROOT / "docs/architecture.md").read_text(), re.M)
    rows = (line.split() for line in drawing.splitlines())
    return {module: int(floor) for floor, *modules in rows for module in modules}


def part(file: Path) -> str:
    """The module or package that a file belongs to: `paths`, `couplings`, `cli`."""
    inside = file.relative_to(ROOT)
    return "cli" if inside.parts[0] == "cli" else inside.with_suffix("").parts[1]


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports in a tree, those inside functions too, but for those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from statements(child)


def names(statement: ast.Import | ast.ImportFrom) -> list[str]:
    """The dotted names that a statement imports; `from a import b` is a.b."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    if statement.level:
        return []  # relative: within its own package
    return [f"{statement.module}.{alias.name}" for alias in statement.names]


def imported(file: Path) -> set[str]:
    return {name for statement in statements(ast.parse(file.read_text())) for name in names(statement)}


def dotted(file: Path) -> str:
    """Return the name by which a file is imported."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_every_module_has_a_floor() -> None:
    parts = {part(file) for file in FILES} - {"__init__", "__main__"}
    assert parts == documented_floors().keys()


def test_no_file_imports_itself_by_others() -> None:
    modules = {dotted(file): file for file in FILES if part(file) not in ("__init__", "__main__")}
    graph = {
        module: {next((at for at in (name, name.rpartition(".")[0]) if at in modules), "") for name in imported(file)}
        for module, file in modules.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


def test_imports_go_down() -> None:
    floors = documented_floors()
    for file in FILES:
        if (here := part(file)) in ("__init__", "__main__"):  # the front door shows all floors
            continue
        inside = {name.split(".")[1] for name in imported(file) if name.startswith("flowgen.")} - {here, "__version__"}
        not_below = {name for name in inside if floors[name] >= floors[here]}
        assert not not_below, f"{file}: {here} is on floor {floors[here]}, and imports {not_below}"


def test_what_is_never_imported() -> None:
    for file in FILES:
        tops = {name.split(".")[0] for name in imported(file)}
        assert "torchvision" not in tops, file
        assert not tops & {"cli", "flowgen_cli"} or file.name == "__main__.py", file


def loaded_by(code: str) -> set[str]:
    """The packages that some code loads."""
    script = f"import sys; before = set(sys.modules); {code}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_import_flowgen_loads_nothing() -> None:
    loaded = loaded_by("import flowgen")
    assert "flowgen" in loaded
    assert not loaded & (HEAVY | {"torch", "numpy"})


@pytest.mark.costly
def test_what_flowgen_shows_is_light() -> None:
    """Its classes and functions, and all modules below the configuration."""
    low = {module for module, floor in documented_floors().items() if floor < documented_floors()["config"]}
    code = f"import torch; before |= set(sys.modules); from flowgen import {', '.join(flowgen._PLACES)}"
    loaded = loaded_by(f"{code}; import flowgen.{', flowgen.'.join(low)}")
    assert "flowgen" in loaded
    assert not loaded & HEAVY


def test_type_checkers_see_what_flowgen_shows() -> None:
    (block,) = [node for node in ast.parse(Path(flowgen.__file__).read_text()).body if isinstance(node, ast.If)][:1]
    shown = {name for statement in block.body for name in names(statement)}
    assert shown == {f"flowgen.{flowgen._PLACES[name]}.{name}" for name in flowgen._PLACES} | {
        f"flowgen.{name}" for name in flowgen._MODULES.split()
    }


def test_flowgen_shows_its_modules_and_names() -> None:
    shown = {module.partition(".")[0] for module in flowgen._MODULES.split()}
    assert shown == documented_floors().keys() - {"cli", "extras", "threads"}
    assert set(flowgen.__all__) <= set(dir(flowgen))
    with pytest.raises(AttributeError, match="no attribute 'premetric'"):
        flowgen.premetric  # noqa: B018


@pytest.mark.costly
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]], ids=" ".join)
def test_help_needs_no_torch(arguments: list[str]) -> None:
    script = (
        "import atexit, sys; sys.argv[0] = 'flowgen'; import flowgen_cli;"
        "atexit.register(lambda: print('LOADED', *sorted(sys.modules))); flowgen_cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    loaded = {name.split(".")[0] for name in done.stdout.rpartition("LOADED")[2].split()}
    assert "flowgen_cli" in loaded
    assert not loaded & (HEAVY - {"rich", "pydantic"} | {"torch", "numpy"})
