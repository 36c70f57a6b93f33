"""Small faults in the functions of a program: where one can be made, which are drawn, how one is found again."""

from __future__ import annotations

import ast
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path

SWAPPED = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
"""Operators, and what a fault makes of each."""

COMMUTE = {"isinstance", "min", "max", "isclose", "allclose", "equal", "array_equal", "hypot", "gcd"}
"""Functions whose arguments may be swapped, or whose arguments nobody would swap."""

OF_ONE_WORD = {"comparison", "arithmetic", "logic", "off by one"}
"""Kinds of faults that no renaming touches."""

ALIKE = 0.6
"""How alike a statement and its place must be to count as the same under other names, from 0 to 1."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Fault:
    """A change of one place in a function.

    `statement` is the text of the innermost statement around the place, without the blocks that hang on it, and `nth`
    tells faults apart that read the same. The lines are where the statement and its block begin: they are not part of
    what the fault is.
    """

    file: str
    function: str
    kind: str
    statement: str
    before: str
    after: str
    nth: int
    line: int
    block: int | None
    start: int
    """The bytes `start:end` of the file become `after`."""
    end: int

    @property
    def identity(self) -> tuple[str, str, str, str, str, int]:
        return self.file, self.function, self.statement, self.before, self.after, self.nth

    def planted(self, source: bytes) -> bytes:
        """Return the source with the fault in it."""
        return source[: self.start] + self.after.encode() + source[self.end :]


class Source:
    """The text of a file, and the bytes where its nodes are."""

    def __init__(self, file: str, text: bytes) -> None:
        self.file, self.text, self.tree = file, text, ast.parse(text)
        self.starts = [0]
        for line in text.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def start(self, node: ast.expr | ast.stmt) -> int:
        return self.starts[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr | ast.stmt) -> int:
        return self.starts[node.end_lineno - 1] + node.end_col_offset

    def of(self, node: ast.expr | ast.stmt) -> str:
        return self.text[self.start(node) : self.end(node)].decode()


def faults(file: str, text: bytes) -> list[Fault]:
    """Return all faults of a file that can be made, in the order of its statements."""
    source, found, seen = Source(file, text), [], defaultdict(int)
    for name, function in functions(source.tree):
        for statement in statements(function):
            block = _block(statement)
            header = _header(source, statement, block)
            for kind, start, end, after in _places(source, statement, function):
                before = text[start:end].decode()
                fault = Fault(file, name, kind, header, before, after, 0, statement.lineno, block, start, end)
                if before != after:
                    seen[fault.identity] += 1
                    found.append(replace(fault, nth=seen[fault.identity] - 1))
    return found


def functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """Give the functions and methods of a module by qualified name; those within a function are part of it."""

    def inside(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                yield prefix + child.name, child
            elif isinstance(child, ast.ClassDef):
                yield from inside(child, f"{prefix}{child.name}.")
            else:
                yield from inside(child, prefix)

    return inside(tree, "")


def statements(node: ast.AST) -> Iterator[ast.stmt]:
    """Give the statements within a function, without its docstring."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
                yield child
            yield from statements(child)
        elif isinstance(child, ast.ExceptHandler | ast.match_case):
            yield from statements(child)


def draw(found: Iterable[Fault], number: int, seed: int) -> list[Fault]:
    """Draw faults evenly over the statements in their order, so that each file has its share.

    Of a statement first the kind is drawn: most places are constants and arguments, and most rules are not.
    """
    by_statement = defaultdict(lambda: defaultdict(list))
    for fault in found:
        by_statement[fault.file, fault.line][fault.kind].append(fault)
    kinds, dice = [by_statement[place] for place in sorted(by_statement)], random.Random(seed)
    number = min(number, len(kinds))
    step = len(kinds) / max(number, 1)
    offset, drawn = dice.random() * step, []
    for index in range(number):
        some = kinds[int(offset + index * step)]
        drawn.append(dice.choice(some[dice.choice(sorted(some))]))
    return drawn


def again(old: Fault, found: Iterable[Fault]) -> Fault | None:
    """Return the fault that an old one is today: the same, or the most alike under other names; None if it is gone."""
    same_kind = [fault for fault in found if fault.kind == old.kind]
    for fault in same_kind:
        if fault.identity == old.identity:
            return fault
    scores = [(_likeness(old, fault), -abs(fault.nth - old.nth), fault) for fault in same_kind]
    best = max(scores, key=lambda score: score[:2], default=None)
    return best[2] if best and best[0] > 0 else None


def faults_of(folder: Path, root: Path) -> list[Fault]:
    """Return all faults of the files in a folder; of its benchmarks none."""
    files = sorted(file for file in folder.rglob("*.py") if file.relative_to(folder).parts[0] != "bench")
    return [fault for file in files for fault in faults(file.relative_to(root).as_posix(), file.read_bytes())]


def to_json(fault: Fault) -> dict:
    return asdict(fault)


def from_json(record: dict) -> Fault:
    return Fault(**{name: record[name] for name in Fault.__dataclass_fields__})


def _block(statement: ast.stmt) -> int | None:
    """The line where the block that hangs on a statement begins, as of an `if` or a loop."""
    match statement:
        case ast.Match(cases=[first, *_]):
            return first.pattern.lineno
        case ast.stmt(body=[first, *_]):
            return first.lineno
    return None


def _header(source: Source, statement: ast.stmt, block: int | None) -> str:
    """The text of a statement on one line, up to where its own block begins."""
    lines = source.of(statement).splitlines()
    if block and block > statement.lineno:
        lines = lines[: block - statement.lineno]
    return " ".join(" ".join(lines).split())


def _places(source: Source, statement: ast.stmt, function: Function) -> Iterator[tuple[str, int, int, str]]:
    """Give the kind, the span and the new text of each fault that a statement itself can have."""
    start, end = source.start(statement), source.end(statement)
    match statement:
        case ast.Raise():
            yield "raise removed", start, end, "pass"
            return  # what is wrong in a message is no fault of the function
        case ast.Expr(ast.Call()):
            yield "call removed", start, end, "pass"
        case ast.If(test=test):
            yield "branch never taken", source.start(test), source.end(test), "False"
        case ast.Return(ast.expr() as value) if function.returns and source.of(function.returns) == "bool":
            yield "answer negated", source.start(value), source.end(value), f"not ({source.of(value)})"
    for node in _expressions(statement):
        yield from _of_expression(source, node)


def _of_expression(source: Source, node: ast.expr) -> Iterator[tuple[str, int, int, str]]:
    match node:
        case ast.Compare(first, ops, others):
            for (left, right), op in zip(pairwise([first, *others]), ops, strict=True):
                yield from _swapped(source, "comparison", left, op, right)
        case ast.BinOp(left, op, right) if type(op) in SWAPPED and not _text(left) and not _text(right):
            yield from _swapped(source, "arithmetic", left, op, right)
        case ast.BoolOp(op, values):
            for left, right in pairwise(values):
                yield from _swapped(source, "logic", left, op, right)
        case ast.UnaryOp(ast.Not() | ast.USub(), value):
            yield "sign dropped", source.start(node), source.end(node), source.of(value)
        case ast.Constant(int() | float() as value) if not isinstance(value, bool):
            yield "off by one", source.start(node), source.end(node), repr(value + 1)
        case ast.Call(func=func, args=args) if source.of(func).split(".")[-1] not in COMMUTE:
            for left, right in pairwise(args):
                if type(left) is type(right) is not ast.Starred:  # others are seldom taken for one another
                    between = source.text[source.end(left) : source.start(right)].decode()
                    swapped = source.of(right) + between + source.of(left)
                    yield "arguments swapped", source.start(left), source.end(right), swapped


def _swapped(source: Source, kind: str, left: ast.expr, op: ast.AST, right: ast.expr) -> Iterator[tuple]:
    """An operator for its like, between two expressions that are not touched."""
    if type(op) not in SWAPPED:
        return
    old, new = SWAPPED[type(op)]
    start = source.end(left)
    if at := re.search(rf"(?<!\w){re.escape(old)}(?!\w)", source.text[start : source.start(right)].decode()):
        yield kind, start + at.start(), start + at.end(), new


def _expressions(statement: ast.stmt) -> Iterator[ast.expr]:
    """The expressions of a statement that are run with it: no blocks, annotations, defaults, decorators, no text."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return

    def below(node: ast.AST) -> Iterator[ast.expr]:
        for name, field in ast.iter_fields(node):
            for child in field if isinstance(field, list) else [field]:
                if name == "annotation" or isinstance(child, ast.stmt | ast.JoinedStr | ast.ExceptHandler):
                    continue
                if isinstance(child, ast.expr):
                    yield child
                if isinstance(child, ast.AST) and not isinstance(child, ast.match_case):
                    yield from below(child)

    yield from below(statement)


def _text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _likeness(old: Fault, new: Fault) -> float:
    """How alike two faults of a kind read, and 0 where they mean another change or another function."""
    if old.kind in OF_ONE_WORD and (old.before, old.after) != (new.before, new.after):
        return 0.0
    statement, before = _ratio(old.statement, new.statement), _ratio(old.before, new.before)
    mean = (statement + before + _ratio(old.function, new.function) + _ratio(old.file, new.file)) / 4
    return mean if min(statement, mean) >= ALIKE else 0.0


def _ratio(a: str, b: str) -> float:
    return 1.0 if a == b else SequenceMatcher(None, a, b, autojunk=False).ratio()
