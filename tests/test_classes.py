"""Classes are ordered by value where they are numbers, and found by name, by value, and in ranges."""

import pytest

from flowgen import InputError
from flowgen.data import classes

NUMBERS = tuple(map(str, range(12)))


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (NUMBERS, NUMBERS),
        (("10", "-2", "1.5", "007"), ("-2", "1.5", "007", "10")),
        (("10", "9", "cat"), ("10", "9", "cat")),
        (("1e3", "2"), ("1e3", "2")),
    ],
)
def test_the_order_of_classes(names, order):
    assert classes.ordered(reversed(names)) == order


@pytest.mark.parametrize(
    ("text", "names", "found"),
    [
        ("7", ("1", "2", "3", "7"), "7"),
        ("7.0", ("1", "2", "3", "7"), "7"),
        ("1", ("1.0", "2.0"), "1.0"),
        ("01", ("1", "01"), "01"),
        ("cat", ("cat", "dog"), "cat"),
        ("1", ("cat", "dog"), "dog"),
    ],
)
def test_a_label_is_a_name_or_a_value(text, names, found):
    assert names[classes.find(text, names)] == found


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("0", ("1", "2", "3", "7"), "no label '0': choose one of 1, 2, 3, 7"),
        ("4", ("1", "2", "3"), "choose 1 to 3"),
        ("001", ("1", "01"), "no label '001'"),
        ("0", ("cat", "7"), "no label '0': choose one of cat, 7"),
        ("2", ("cat", "dog"), "choose 0 to 1, or a name: cat, dog"),
    ],
)
def test_a_label_that_is_none_is_refused(text, names, message):
    with pytest.raises(InputError, match=message):
        classes.find(text, names)


@pytest.mark.parametrize(
    ("text", "names", "found"),
    [
        ("1-3", NUMBERS, ["1", "2", "3"]),
        ("9-11,0", NUMBERS, ["9", "10", "11", "0"]),
        ("1-3", ("1", "10", "11", "2", "3", "cat"), ["1", "2", "3"]),
        ("1-7", ("1", "2", "3", "7"), ["1", "2", "3", "7"]),
        ("-1-1", ("-1", "0", "1", "2"), ["-1", "0", "1"]),
        ("a-b-c", ("a-b", "c", "d"), ["a-b", "c"]),
        ("a-b", ("a-b", "c"), ["a-b"]),
        ("0-1", ("cat", "dog", "eel"), ["cat", "dog"]),
        ("dog , cat", ("cat", "dog", "eel"), ["dog", "cat"]),
    ],
)
def test_ranges_run_by_value(text, names, found):
    assert [names[label] for label in classes.several(text, names)] == found
