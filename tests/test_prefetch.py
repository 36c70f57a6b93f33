"""Pairs that are made ahead are the same pairs, and what goes wrong there is seen here."""

import random
import threading
import time
from functools import partial
from itertools import count, islice

import pytest
import torch

from flowgen.core import Failure, Pair
from flowgen.couplings import ExactOT
from flowgen.data import Gaussian, moons
from flowgen.pairs import IndependentPairs, Pool, batches, in_order, prefetch

CPU = torch.device("cpu")


def stream():
    return batches(IndependentPairs(Gaussian(), moons()), 8, seed=3, coupling=ExactOT(), pool=Pool(3, 2))


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_pairs_made_ahead_are_the_pairs(depth, global_state_untouched):
    with prefetch(stream(), CPU, depth) as pairs:
        for got, pair in zip(islice(pairs, 20), stream(), strict=False):
            assert torch.equal(got.x0, pair.x0)
            assert torch.equal(got.x1, pair.x1)


def test_a_stream_that_ends_ends():
    with prefetch(islice(stream(), 3), CPU) as pairs:
        assert len(list(pairs)) == 3


def test_conditions_come_along():
    x = torch.zeros(4, 2)
    with prefetch(iter([Pair(x, x, torch.arange(4))]), CPU) as pairs:
        assert torch.equal(next(pairs).cond, torch.arange(4))


def broken():
    yield from islice(stream(), 2)
    raise Failure("the third pair")


def test_what_is_raised_there_is_raised_here_and_in_its_place():
    with prefetch(broken(), CPU, depth=5) as pairs:
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
    with prefetch(counted(), CPU, depth=2) as pairs:
        for _ in islice(pairs, 5):
            pass
    assert threading.active_count() == before
    assert len(made) <= 5 + 2 + 1  # those that wait, and the one in hand


# tasks in order

THREADS = [0, 1, 3]


def slept(k, begun=None):
    """k, after a random time."""
    if begun is not None:
        begun.append(k)
    time.sleep(0.003 * random.random())
    return k


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("depth", [1, 2, 7, 100])
def test_results_come_in_the_order_of_their_tasks(threads, depth):
    assert list(in_order((partial(slept, k) for k in range(40)), threads, depth)) == list(range(40))


@pytest.mark.parametrize("threads", THREADS)
def test_no_tasks_have_no_results(threads):
    assert list(in_order([], threads, 3)) == []


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("depth", [1, 4])
def test_no_more_tasks_are_made_or_begun_than_may_wait(threads, depth):
    begun, made = [], []

    def tasks():
        for k in count():
            made.append(k)
            yield partial(slept, k, begun)

    results = in_order(tasks(), threads, depth)
    for k in range(10):
        assert next(results) == k
        time.sleep(0.005)
        assert len(begun) <= len(made) <= k + 1 + (depth if threads else 0)
    results.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_so_many_tasks_are_done_while_the_first_result_is_used(threads):
    done = threading.Semaphore(0)
    results = in_order((done.release for _ in count()), threads, 4)
    next(results)
    for _ in range(5):
        assert done.acquire(timeout=10)
    results.close()


def test_without_threads_tasks_are_done_when_asked_for():
    begun = []
    results = in_order([lambda: begun.append(threading.current_thread())] * 3, 0, 2)
    assert not begun
    next(results)
    assert begun == [threading.current_thread()]


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("error", [Failure, KeyboardInterrupt, SystemExit])
def test_what_a_task_raises_is_raised_in_its_place(threads, error):
    def fail():
        raise error("the third task")

    before = threading.active_count()
    results = in_order([partial(slept, 0), partial(slept, 1), fail, partial(slept, 3)], threads, 4)
    assert list(islice(results, 2)) == [0, 1]
    with pytest.raises(error, match="the third task"):
        next(results)
    assert threading.active_count() == before
    assert next(results, None) is None


@pytest.mark.parametrize("threads", [1, 2])
def test_closing_waits_for_the_tasks_under_way(threads):
    begun, ended, before = [], [], threading.active_count()

    def task(k):
        begun.append(k)
        time.sleep(0.02)
        ended.append(k)

    results = in_order((partial(task, k) for k in count()), threads, 400)
    next(results)
    results.close()
    assert threading.active_count() == before
    assert sorted(begun) == sorted(ended)
    assert len(begun) < 200  # of 401 that were made
