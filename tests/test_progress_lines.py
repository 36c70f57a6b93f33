"""Progress where standard error is a file: a plain line every so often, and nothing on standard output."""

import json
import re

import pytest
from flowgen_cli.console import bar
from flowgen_cli.progress import Lines

pytestmark = pytest.mark.journey

QUICK = ["--steps", 20, "--batch-size", 32, "--set", "net.width=16", "--set", "pool.batches=3"]


class Work:
    """Work on a clock of its own, and the lines that it writes."""

    def __init__(self, total, unit="steps"):
        self.now, self.lines = 0.0, []
        self.shown = Lines("moons", total, unit, lambda line: self.lines.append((self.now, line)), lambda: self.now)

    def go_on(self, seconds, done, note=""):
        self.now += seconds
        self.shown.move(done, note)


def test_a_line_says_how_far_the_work_has_come():
    work = Work(20_000)
    work.go_on(0, 0)
    work.go_on(12, 1200, "loss 0.41")
    assert work.lines == [(12, "moons: 1200/20000 steps, loss 0.41, 0:12 elapsed, 3:08 left")]


def test_lines_come_soon_then_by_tenths_then_at_the_end():
    work = Work(2000)
    for step in range(1, 2001):
        work.go_on(1, step)
    work.shown.end()
    times = [at for at, _ in work.lines]
    assert times == [3, *range(203, 2000, 200), 2000]
    assert work.lines[-1][1] == "moons: 2000/2000 steps, 33:20 elapsed"


def test_fast_work_has_a_line_in_30_seconds_at_most():
    work = Work(100)
    for step in range(1, 101):
        work.go_on(1, step)
    assert [at for at, _ in work.lines] == [3, 33, 63, 93]


def test_work_that_does_not_move_says_that_it_goes_on():
    work = Work(64, "samples")
    for _ in range(2000):
        work.now += 1
        work.shown.beat()
    assert [at for at, _ in work.lines] == [3, 603, 1203, 1803]
    assert work.lines[-1][1] == "moons: 0/64 samples, 30:03 elapsed"


def test_time_left_is_by_the_speed_of_this_run():
    work = Work(1000)
    work.go_on(0, 900)  # resumed
    work.go_on(50, 950)
    assert work.lines[-1][1].endswith("0:50 elapsed, 0:50 left")


def test_short_work_of_unknown_size_is_silent():
    work = Work(None, "evaluations")
    work.go_on(2, 5)
    work.shown.end()
    assert not work.lines
    work.go_on(3700, 7, "set 2 of 5")
    work.shown.end()
    assert [line for _, line in work.lines] == ["moons: 7 evaluations, set 2 of 5, 1:01:42 elapsed"] * 2


def test_a_bar_beats_while_nothing_moves(capsys):
    work = Work(3)
    with work.shown.beating(0.001):
        work.now = 5.0
        while not work.lines:
            pass
    assert work.lines[0][1] == "moons: 0/3 steps, 0:05 elapsed"
    with bar("quiet", 3, shown=False) as move:
        move(1, "note")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["[red]", "[/]", ":smile:"])
def test_titles_are_no_markup(capsys, name):
    with bar(name, 2, "rows") as move:
        move(2, name)
    assert capsys.readouterr().err == f"{name}: 2/2 rows, {name}, 0:00 elapsed\n"


def test_commands_write_plain_lines_and_say_next_at_last(flowgen, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as CI services set it
    code, out, err = flowgen("train", "moons", *QUICK)
    assert code == 0, err
    assert re.search(r"^training runs/moons: 20/20 steps, loss \S+, 0:\d\d elapsed$", err, re.M)
    code, out, err = flowgen("reflow", "runs/moons", "--pairs", 64, "--steps", 5, "--rounds", 2, "--stall", 0)
    assert code == 0, err
    assert "\x1b" not in err
    last = out.splitlines()[-1]
    assert last.startswith("Next: flowgen sample runs/moons-reflow")
    assert out.count("Next:") == 1
    assert "runs/moons-reflow1: pairs: 64/64 pairs" in err
    code, out, err = flowgen("evaluate", "runs/moons", "--steps", 1, "--num", 50, "--repeats", 2, "--json", "-")
    assert code == 0, err
    assert json.loads(out)
    assert "measuring moons: 4/4 measurements" in err
