"""The faults that the mutator makes, how it finds them again, and the tests that it runs for one."""

import ast

import pytest
from mutant_faults import again, draw, faults, from_json, to_json
from mutant_runs import LIBRARY, PROBE, Probes
from mutants import MOST, Map, table

TEXT = '''
LEFT_ALONE = 1 + 2

class Box:
    def put(self, x: int = 3) -> bool:
        """Adds 1 + 2."""
        if not x and self.low <= x:
            raise ValueError(f"{x + 1} é is too small")
        self.keep(x, self.low)
        return x - 1 < -7

def other(x, y):
    return x if x is not None else (y) * 2.5
'''
SOURCE = TEXT.encode()
FOUND = faults("flowgen/box.py", SOURCE)


def changes(found):
    return {(fault.function, fault.kind, fault.before, fault.after) for fault in found}


def test_each_kind_of_fault_is_found_where_it_can_be():
    assert changes(FOUND) == {
        ("Box.put", "branch never taken", "not x and self.low <= x", "False"),
        ("Box.put", "logic", "and", "or"),
        ("Box.put", "sign dropped", "not x", "x"),
        ("Box.put", "comparison", "<=", "<"),
        ("Box.put", "raise removed", 'raise ValueError(f"{x + 1} é is too small")', "pass"),
        ("Box.put", "call removed", "self.keep(x, self.low)", "pass"),
        ("Box.put", "answer negated", "x - 1 < -7", "not (x - 1 < -7)"),
        ("Box.put", "comparison", "<", "<="),
        ("Box.put", "arithmetic", "-", "+"),
        ("Box.put", "off by one", "1", "2"),
        ("Box.put", "sign dropped", "-7", "7"),
        ("Box.put", "off by one", "7", "8"),
        ("other", "comparison", "is not", "is"),
        ("other", "arithmetic", "*", "/"),
        ("other", "off by one", "2.5", "3.5"),
    }


@pytest.mark.parametrize("call", ["f(a, b)", "f(x.a, x.b)"])
def test_arguments_of_one_form_are_swapped(call):
    (fault,) = faults("f.py", f"def g():\n    return {call}\n".encode())
    assert fault.after == ", ".join(reversed(fault.before.split(", ")))


@pytest.mark.parametrize("call", ["f(a, 'b')", "f(*a, *b)", "max(a, b)", "isinstance(a, b)"])
def test_other_arguments_are_not(call):
    assert faults("f.py", f"def g():\n    return {call}\n".encode()) == []


@pytest.mark.parametrize("fault", FOUND, ids=lambda fault: f"{fault.kind} {fault.before[:9]}")
def test_a_fault_changes_its_own_place_alone(fault):
    planted = fault.planted(SOURCE)
    assert SOURCE[fault.start : fault.end].decode() == fault.before
    assert planted == SOURCE[: fault.start] + fault.after.encode() + SOURCE[fault.end :]
    assert ast.dump(ast.parse(planted)) != ast.dump(ast.parse(SOURCE))


def test_faults_are_drawn_by_the_seed_over_all_files():
    files = [faults(f"{name}.py", SOURCE) for name in "abc"]
    found = [fault for file in files for fault in file]
    drawn = draw(found, 6, seed=1)
    assert drawn == draw(found, 6, seed=1) != draw(found, 6, seed=2)
    assert [fault.file for fault in drawn] == ["a.py", "a.py", "b.py", "b.py", "c.py", "c.py"]
    assert len({(fault.file, fault.line) for fault in draw(found, 99, seed=1)}) == len(draw(found, 99, seed=1)) == 15


def test_a_fault_is_found_again_after_a_move_and_a_rename():
    moved = (
        TEXT.replace("LEFT_ALONE = 1 + 2", "").replace("keep", "hold").replace("low", "least").replace("Box", "Case")
    )
    today = faults("flowgen/boxes/box.py", moved.encode())
    assert [again(old, FOUND) for old in FOUND] == FOUND
    assert [again(old, today) for old in FOUND] == today


def test_a_fault_whose_function_is_gone_is_gone():
    today = faults("flowgen/box.py", b"def third(x):\n    return x * 2.5\n")
    assert all(again(old, today) is None for old in FOUND)


def test_a_fault_is_read_as_it_was_written():
    assert [from_json(to_json(fault) | {"outcome": "killed"}) for fault in FOUND] == FOUND


def test_probes_see_the_statements_that_are_run():
    probes, seen = Probes(), []
    module = {"__name__": "flowgen.losses", PROBE: seen.append}
    exec(compile(probes.probed(LIBRARY / "losses.py"), "losses.py", "exec"), module)
    assert not seen
    with pytest.raises(ValueError, match="positive"):
        module["PseudoHuber"](-1.0)
    lines = (LIBRARY / "losses.py").read_text().splitlines()
    run = [lines[probes.places[place][1] - 1].split()[0] for place in seen]
    assert run[-1] == "raise"
    assert len(set(probes.places)) == len(probes.places)


def test_the_cheapest_case_of_each_test_comes_first():
    fault = next(fault for fault in FOUND if not fault.block)
    seconds = {"t.py::a[1]": 0.1, "t.py::a[2]": 0.2, "t.py::b": 3.0, "t.py::long": 99.0, "t.py::c": 1.0}
    known = Map([{"tests": seconds, "lines": {fault.file: {str(fault.line): [0, 1, 2, 3], "999": [4]}}}])
    assert known.chosen(fault) == ["t.py::a[1]", "t.py::b", "t.py::a[2]"]
    assert Map([{"tests": seconds, "lines": {fault.file: {"999": [4]}}}]).chosen(fault) == ["t.py::c"]
    assert Map([]).chosen(fault) == []


def test_half_of_the_tests_enter_the_block_of_a_fault():
    fault = next(fault for fault in FOUND if fault.kind == "branch never taken")
    names = [f"t.py::t{index:03}" for index in range(3 * MOST)]
    inside = list(range(2 * MOST, 3 * MOST))
    lines = {str(fault.line): list(range(3 * MOST)), str(fault.block): inside}
    known = Map([{"tests": dict.fromkeys(names, 0.01), "lines": {fault.file: lines}}])
    entering = {names[index] for index in inside}
    assert [test in entering for test in known.chosen(fault)] == [True] * (MOST // 2) + [False] * (MOST // 2)


def test_the_table_holds_the_survivors_of_both_times():
    outcomes = [("survives", "killed"), ("killed", "survives"), ("killed", "killed"), ("survives", "gone")]
    records = [
        to_json(fault) | {"was": was, "outcome": now} for fault, (was, now) in zip(FOUND, outcomes, strict=False)
    ]
    lines = table(records).splitlines()
    assert lines[:2] == ["4 faults: 2 killed, 1 survives, 1 gone.", "Before: 2 survive."]
    assert [line.split(" | ")[4] for line in lines if "→" in line] == [" → ".join(outcomes[at]) for at in (0, 1, 3)]
