"""The cases of a product that are run: few, and every two values meet, or every one."""

from itertools import combinations, product

import pytest
from tiers import covering, values_of


def cases(*sizes):
    return [dict(enumerate(values)) for values in product(*map(range, sizes))]


def pairs(some):
    return {pair for values in some for pair in combinations(values.items(), 2)}


@pytest.mark.parametrize(("sizes", "most"), [((3, 4), 12), ((3, 4, 5), 20), ((6, 5, 4, 3), 34), ((2,) * 6, 8)], ids=str)
def test_every_two_values_meet(sizes, most):
    made = cases(*sizes)
    kept = covering(made, 2)
    assert pairs(made[index] for index in kept) == pairs(made)
    assert len(kept) <= most


def test_what_cannot_meet_is_not_asked_for():
    made = [values for values in cases(4, 4, 4) if values[0] != values[1]]
    assert pairs(made[index] for index in covering(made, 2)) == pairs(made)


def test_all_values_of_a_single_parameter_are_kept():
    for size in (1, 2):
        assert covering(cases(30), size) == set(range(30))


def test_of_what_is_costly_every_value_is_met():
    made = cases(3, 5, 4)
    kept = covering(made, 1)
    assert {value for index in kept for value in made[index].items()} == {
        value for case in made for value in case.items()
    }
    assert len(kept) == 5


@pytest.mark.parametrize("letter", ["a", "b"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_value_is_the_same_in_every_case(request, letter, number):
    assert values_of(request.node) == {"letter": (str, letter), "number": (int, number)}
