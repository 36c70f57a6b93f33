"""The cases of a product that are run: few, and every two values meet."""

from itertools import combinations, product

import pytest
from tiers import pairwise


def cases(*sizes):
    return [dict(enumerate(values)) for values in product(*map(range, sizes))]


def pairs(some):
    return {pair for values in some for pair in combinations(values.items(), 2)}


@pytest.mark.parametrize(("sizes", "most"), [((3, 4), 12), ((3, 4, 5), 20), ((6, 5, 4, 3), 34), ((2,) * 6, 8)], ids=str)
def test_every_two_values_meet(sizes, most):
    made = cases(*sizes)
    kept = pairwise(made)
    assert pairs(made[index] for index in kept) == pairs(made)
    assert len(kept) <= most


def test_what_cannot_meet_is_not_asked_for():
    made = [values for values in cases(4, 4, 4) if values[0] != values[1]]
    assert pairs(made[index] for index in pairwise(made)) == pairs(made)


def test_all_values_of_a_single_parameter_are_kept():
    assert pairwise(cases(30)) == set(range(30))
