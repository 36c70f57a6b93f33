"""Notes: what was guessed is told once, in Python and by commands."""

from __future__ import annotations

import warnings

import pytest

from flowgen import runs
from flowgen.core import Note, note


def guess(text: str) -> None:
    note(text)


def test_a_note_is_a_warning_of_the_caller():
    with pytest.warns(Note, match="a guess") as caught:
        guess("a guess")
    assert caught[0].filename == __file__


@pytest.mark.parametrize("filters", ["default", "ignore"])
def test_commands_print_each_note_once(flowgen, monkeypatch, filters):
    warnings.simplefilter(filters)  # pytest puts the filters back

    def describe(folder):
        for _ in range(3):
            guess("a guess")
        return {}

    monkeypatch.setattr(runs, "describe", describe)
    for _ in range(2):
        code, _, err = flowgen("info", "x", "--json")
        assert (code, err) == (0, "note: a guess\n")
