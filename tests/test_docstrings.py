"""The docstring of a function says first what it does: it begins with a verb in the imperative."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERBS = re.compile(
    "Add|Apply|Check|Clear|Close|Compile|Compute|Construct|Convert|Copy|Crop|Cut|Declare|Decode|"
    "Describe|Draw|Edit|Encode|Export|Fill|Find|Follow|Format|Hold|Import|Interpolate|Invert|"
    "Keep|Let|List|Load|Log|Make|Map|Measure|Move|Open|Parse|Pin|Plot|Print|Raise|Read|Redraw|"
    "Refuse|Register|Remove|Replace|Report|Restore|Return|Run|Sample|Seed|Set|Show|Silence|Solve|"
    "Split|Store|Submit|Take|Time|Train|Turn|Update|Validate|Wait|Warn|Write|Yield"
)


def docstrings(file: Path) -> dict[str, str]:
    """Map the place of each function with a docstring to that docstring."""
    made = {}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
            made[f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"] = text
    return made


def test_docstrings_of_functions_begin_with_a_verb():
    files = [*ROOT.glob("flowgen/**/*.py"), *ROOT.glob("cli/**/*.py")]
    every = {place: text for file in files for place, text in docstrings(file).items()}
    others = [place for place, text in every.items() if not VERBS.fullmatch(text.split()[0].rstrip(",.:"))]
    assert len(every) > 500
    assert not others, "write the verb first, or add a missing verb to VERBS"
