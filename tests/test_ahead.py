"""Pairs that are made ahead are the same pairs, and what goes wrong there is seen here."""

import threading
from itertools import count, islice

import pytest
import torch

from flowgen.core import Failure, Pair
from flowgen.couplings import Ends, ExactOT, Pool, ahead, batches
from flowgen.data import Gaussian, moons

CPU = torch.device("cpu")


def stream():
    return batches(Ends(Gaussian(), moons()), 8, seed=3, coupling=ExactOT(), pool=Pool(3, 2))


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_pairs_made_ahead_are_the_pairs(depth, global_state_untouched):
    with ahead(stream(), CPU, depth) as pairs:
        for got, pair in zip(islice(pairs, 20), stream(), strict=False):
            assert torch.equal(got.x0, pair.x0)
            assert torch.equal(got.x1, pair.x1)


def test_a_stream_that_ends_ends():
    with ahead(islice(stream(), 3), CPU) as pairs:
        assert len(list(pairs)) == 3


def test_conditions_come_along():
    x = torch.zeros(4, 2)
    with ahead(iter([Pair(x, x, torch.arange(4))]), CPU) as pairs:
        assert torch.equal(next(pairs).cond, torch.arange(4))


def broken():
    yield from islice(stream(), 2)
    raise Failure("the third pair")


def test_what_is_raised_there_is_raised_here_and_in_its_place():
    with ahead(broken(), CPU, depth=5) as pairs:
        assert len(list(islice(pairs, 2))) == 2
        with pytest.raises(Failure, match="the third pair"):
            next(pairs)


def test_no_more_is_made_than_is_asked_for_and_the_thread_ends():
    made = []

    def counted():
        for index, pair in zip(count(), stream(), strict=False):
            made.append(index)
            yield pair

    before = threading.active_count()
    with ahead(counted(), CPU, depth=2) as pairs:
        for _ in islice(pairs, 5):
            pass
    assert threading.active_count() == before
    assert len(made) <= 5 + 2 + 1  # those that wait, and the one in hand
