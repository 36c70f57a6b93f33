"""One public name has one meaning in all of the library, and tests have short ones."""

import ast
from collections import defaultdict
from pathlib import Path

FLOWGEN = Path(__file__).parent.parent / "flowgen"


def defined(node: ast.stmt) -> str | None:
    """Return the name of a class, or of a type that an assignment gives a name."""
    if isinstance(node, ast.ClassDef):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id[:1].isupper():
        return None if node.targets[0].id.isupper() else node.targets[0].id
    return None


def test_no_class_or_type_has_the_name_of_another() -> None:
    places = defaultdict(list)
    for file in sorted(FLOWGEN.glob("**/*.py")):
        for node in ast.parse(file.read_text()).body:
            if (name := defined(node)) and not name.startswith("_") and len(name) > 1:
                places[name].append(str(file.relative_to(FLOWGEN)))
    assert not {name: files for name, files in places.items() if len(files) > 1}


def test_names_of_tests_are_under_60_characters() -> None:
    functions = (
        node.name
        for file in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )
    assert not [name for name in functions if len(name) >= 60]
