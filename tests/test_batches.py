"""Batches: every pair used as often as promised, from any start, whoever solves them, and nothing left behind."""

import gc
import random
import threading
import time
import tracemalloc
from dataclasses import dataclass, field
from itertools import islice

import pytest
import torch

from flowgen.core import InputError, Pair, Part, generator
from flowgen.couplings import ExactOT, Independent, MultiscaleOT, Sinkhorn
from flowgen.data import Gaussian, moons
from flowgen.pairs import IndependentPairs, Pool, Prepared, StoredPairs, batches

THREADS = [0, 1, 3]
POOLS = [Pool(), Pool(batches=3), Pool(reuse=4), Pool(batches=3, reuse=2)]


def numbered(n, generator):
    """Pairs whose ends and condition are the number of their row, after a random one of the batch; no labels."""
    first = 1000 * int(torch.randint(1000, (), generator=generator))
    rows = first + torch.arange(n).double()
    return Pair(rows.unsqueeze(1), rows.unsqueeze(1), rows)


def toy(n, generator):
    """Pairs of the plane whose condition, no label, is the number of the row."""
    return IndependentPairs(Gaussian(), moons())(n, generator)._replace(cond=torch.arange(n).double())


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True) if a is not None or b is not None)


def total(pair):
    return float((pair.x0.double() - pair.x1.double()).square().sum())


@dataclass
class Watched:
    """A random permutation that takes some milliseconds, and notes the rows of its calls and their threads."""

    group: int = 0
    slow: float = 0.0
    rows: list = field(default_factory=list)
    threads: set = field(default_factory=set)

    def __call__(self, pair, generator):
        self.rows.append(len(pair.x0))
        self.threads.add(threading.current_thread())
        time.sleep(self.slow * random.random())
        return Pair(pair.x0, *pair.take(torch.randperm(len(pair.x1), generator=generator))[1:])


def solvers():
    """The threads that solve couplings."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("coupling")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not solvers()


# what is in them


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_every_pair_of_a_pool_is_used_as_often_as_promised(pool, threads):
    """Groups smaller and larger than the batch of 10 and the pool of 30, and such as do not divide them."""
    for group in (0, 1, 4, 7, 10, 12, 30, 31, 100):
        stream = batches(numbered, 10, seed=0, coupling=ExactOT(group), pool=pool, threads=threads)
        for k in range(3):
            drawn = numbered(10 * pool.batches, generator(0, "pairs", k)).cond
            for _ in range(pool.reuse):
                got = Pair.cat([next(stream) for _ in range(pool.batches)])
                for end in (got.x0.squeeze(1), got.x1.squeeze(1), got.cond):
                    assert torch.equal(end.sort().values, drawn)
                assert torch.equal(got.cond, got.x1.squeeze(1))


@pytest.mark.parametrize(("group", "rows"), [(0, [30]), (4, [12, 12, 6]), (10, [10] * 3), (15, [15, 15]), (99, [30])])
def test_a_coupling_gets_batches_or_larger_groups(group, rows):
    watched = Watched(group)
    next(batches(numbered, 10, seed=0, coupling=watched, pool=Pool(batches=3), threads=0))
    assert watched.rows == rows


def test_a_coupling_without_groups_is_handed_batches():
    rows = []

    def plain(pair, generator):
        rows.append(len(pair.x0))
        return pair

    next(batches(numbered, 10, seed=0, coupling=plain, pool=Pool(batches=3), threads=0))
    assert rows == [10, 10, 10]


def test_the_groups_of_a_pool_do_not_end_with_its_batches():
    """The pairs of a pool are those of the coupling of all its rows."""
    whole = ExactOT(4)(toy(30, generator(0, "pairs", 0)), generator(0, "unused"))
    got = Pair.cat(list(islice(batches(toy, 10, seed=0, coupling=ExactOT(4), pool=Pool(3)), 3)))
    assert sorted(zip(whole.x0.tolist(), whole.x1.tolist(), strict=True)) == sorted(
        zip(got.x0.tolist(), got.x1.tolist(), strict=True)
    )


def test_the_passes_over_a_pool_are_shuffled_anew():
    stream = batches(numbered, 50, seed=0, pool=Pool(batches=2, reuse=3))
    orders = [tuple(next(stream).cond.tolist()) for _ in range(12)]
    assert len(set(orders)) == 12


def test_pairs_of_all_batches_of_a_pool_are_mixed():
    first = next(batches(numbered, 50, seed=0, pool=Pool(batches=10))).cond
    assert len(((first % 1000) // 50).unique()) > 5


def test_a_stream_couples_the_rows_it_drew(coupling):
    """In 1-D a coupling cannot hide: every batch holds the drawn rows, each once, with its own condition."""

    def draw(n, generator):
        x = torch.randn(n, 2, 1, generator=generator)
        return Pair(x[:, 0], x[:, 1], x[:, 1] * 2)

    pool = Pool(batches=2)
    drawn = draw(40, generator(9, "pairs", 0))
    got = Pair.cat(list(islice(batches(draw, 20, seed=9, coupling=coupling, pool=pool), 2)))
    assert torch.equal(got.x0.sort(0).values, drawn.x0.sort(0).values)
    assert torch.equal(got.x1.sort(0).values, drawn.x1.sort(0).values)
    assert torch.equal(got.cond, got.x1 * 2)


def test_larger_groups_of_exact_ot_cost_less():
    def cost(coupling, pool=None):
        stream = batches(IndependentPairs(Gaussian(), moons()), 64, seed=1, coupling=coupling, pool=pool)
        return sum(total(pair) for pair in islice(stream, 8))

    # the same rows, in one draw of 8 batches
    alone, batch, whole = (cost(c, Pool(8)) for c in (Independent(), ExactOT(64), ExactOT(0)))
    assert batch < 0.6 * alone
    assert whole < 0.9 * batch
    assert cost(ExactOT(0)) < 0.6 * cost(Independent())


def test_seeds_and_pools_give_different_rows():
    def first(seed):
        return list(islice(batches(IndependentPairs(Gaussian(), moons()), 5, seed=seed), 3))

    pairs = [*first(0), *first(1)]
    assert len({tuple(pair.x0.flatten().tolist()) for pair in pairs}) == 6


def test_every_call_of_a_coupling_has_random_numbers_of_its_own():
    """Random permutations of the same rows: all of them differ, in a pool and from pool to pool."""

    def one(n, generator):
        return Pair(*[torch.arange(n).double().unsqueeze(1)] * 2, torch.arange(n).double())

    stream = batches(one, 20, seed=0, coupling=Watched(20), pool=Pool(2))
    pools = [Pair.cat(list(islice(stream, 2))) for _ in range(5)]
    drawn = [pool.x1[pool.x0.flatten().argsort()].flatten() for pool in pools]
    calls = {tuple((rows % 20).tolist()) for pool in drawn for rows in pool.split(20)}
    assert len(calls) == 10


@pytest.mark.parametrize("threads", THREADS)
def test_a_stream_leaves_global_state_alone(global_state_untouched, threads):
    ends = IndependentPairs(Gaussian(), moons())
    for coupling in (Sinkhorn(), ExactOT()):
        list(islice(batches(ends, 16, seed=0, coupling=coupling, pool=Pool(2, 2), threads=threads), 5))
    next(batches(ends, 550, seed=0, coupling=MultiscaleOT(), pool=Pool(2), threads=threads))


def test_ends_draw_source_and_data_independently():
    pair = IndependentPairs(Gaussian((2,)), Gaussian((2,)))(20_000, generator(0, "ends"))
    correlation = torch.corrcoef(torch.cat([pair.x0, pair.x1], dim=1).T) - torch.eye(4)
    assert correlation.abs().max() < 5 / 20_000**0.5


def test_ends_of_different_shape_are_refused():
    with pytest.raises(InputError, match=r"\(3,\).*\(2,\)"):
        IndependentPairs(Gaussian((3,)), moons())


def test_stored_pairs_are_drawn_as_pairs_and_evenly():
    rows = torch.arange(10)
    stored = Pair(rows.unsqueeze(1).float(), 10 * rows.unsqueeze(1).float(), rows)
    drawn = Pair.cat(list(islice(StoredPairs(stored).stream(25, seed=0), 2)))
    assert torch.equal(drawn.x1, 10 * drawn.x0)
    assert torch.equal(drawn.cond.unsqueeze(1), drawn.x0)
    assert torch.equal(drawn.cond.bincount(), torch.full((10,), 5))


# from any start, on any number of threads, in parts


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("start", [1, 2, 3, 5, 6, 7, 12])
def test_a_stream_that_starts_later_is_the_tail_of_the_whole(pool, start):
    def stream(start):
        return batches(
            IndependentPairs(Gaussian(), moons()), 10, seed=3, coupling=ExactOT(group=4), pool=pool, start=start
        )

    whole, tail = list(islice(stream(0), start + 4)), list(islice(stream(start), 4))
    assert all(same(a, b) for a, b in zip(whole[start:], tail, strict=True))


@pytest.mark.parametrize("pool", [Pool(), Pool(3, 2)], ids=str)
def test_a_tail_on_any_threads_is_that_of_every_coupling(coupling, pool):
    def stream(start, threads):
        return batches(toy, 10, seed=3, coupling=coupling, pool=pool, start=start, threads=threads)

    whole = list(islice(stream(0, 0), 12))
    for start, threads in ((0, 1), (0, 3), (4, 0), (5, 1), (7, 3)):
        tail = list(islice(stream(start, threads), 5))
        assert all(same(a, b) for a, b in zip(whole[start:], tail, strict=False))


@pytest.mark.costly
@pytest.mark.parametrize("coupling", [MultiscaleOT(), MultiscaleOT(group=1200, sweeps=1)], ids=str)
def test_a_prepared_multiscale_has_one_tail_on_any_threads(coupling):
    def stream(start, threads):
        return batches(toy, 500, seed=3, coupling=coupling, pool=Pool(3, 2), start=start, threads=threads)

    assert isinstance(coupling, Prepared)
    whole = list(islice(stream(0, 0), 14))
    for start, threads in ((0, 1), (0, 3), (8, 0), (9, 3)):
        tail = list(islice(stream(start, threads), 5))
        assert all(same(a, b) for a, b in zip(whole[start:], tail, strict=False))


@dataclass(frozen=True)
class Learner:
    """A coupling that adds to the data what it was prepared with: the number of rows, and the rows of its draw."""

    learned: float = 0.0
    rows: int = 0

    def __call__(self, pair, generator):
        return pair._replace(x1=pair.x1 + self.learned, cond=torch.full((len(pair.x1),), self.rows))

    def prepared(self, rows, draw):
        return Learner(float(draw(7).x1.sum()), rows)


@pytest.mark.parametrize("threads", THREADS)
def test_a_coupling_is_prepared_with_rows_of_its_own_stream(threads):
    def learned(seed, start=0):
        stream = batches(numbered, 10, seed=seed, coupling=Learner(), pool=Pool(3), start=start, threads=threads)
        first = next(stream)
        assert (first.cond == 30).all()
        return float((first.x1 - first.x0).unique())

    assert learned(0) == learned(0, start=5)
    assert learned(0) != learned(1)
    assert learned(0) != float(numbered(7, generator(0, "pairs", 0)).x1.sum())


@pytest.mark.parametrize("pool", [Pool(), Pool(3, 2)], ids=str)
@pytest.mark.parametrize("group", [0, 4, 10])
def test_threads_that_take_random_times_make_the_same_bits(pool, group):
    def stream(threads):
        return batches(toy, 10, seed=3, coupling=Watched(group, 0.004), pool=pool, threads=threads)

    whole = list(islice(stream(0), 14))
    for threads in (1, 3):
        assert all(same(a, b) for a, b in zip(whole, stream(threads), strict=False))


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("coupling", [None, ExactOT(), ExactOT(0)], ids=str)
@pytest.mark.parametrize("pool", POOLS[:2], ids=str)
def test_the_parts_of_a_batch_are_its_rows(coupling, pool, threads):
    def stream(part):
        return batches(toy, 10, seed=3, coupling=coupling, pool=pool, part=part, threads=threads)

    whole, parts = stream(Part()), zip(*(stream(Part(i, 3)) for i in range(3)), strict=True)
    for batch, split in islice(zip(whole, parts, strict=False), 7):
        assert [len(part.x0) for part in split] == [3, 3, 4]
        assert same(Pair.cat(split), batch)


# who solves them, and when


def test_threads_decide_where_a_coupling_is_called():
    for threads in THREADS:
        watched = Watched()
        list(islice(batches(numbered, 10, seed=0, coupling=watched, threads=threads), 3))
        assert (threading.current_thread() in watched.threads) == (threads == 0)


def test_independent_pairs_need_no_threads():
    stream = batches(numbered, 10, seed=0, pool=Pool(3), threads=3)
    next(stream)
    assert not solvers()


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("group", [0, 10])
def test_at_most_one_pool_is_solved_ahead(group, threads):
    watched, drawn = Watched(group), []

    def draw(n, generator):
        drawn.append(n)
        return numbered(n, generator)

    stream = batches(draw, 10, seed=0, coupling=watched, pool=Pool(4, 2), threads=threads)
    for made in range(1, 25):
        next(stream)
        time.sleep(0.005)  # time enough to be too far ahead
        used = -(-made // 8)
        assert sum(watched.rows) <= 40 * (used + min(threads, 1))
        assert len(drawn) <= used + min(threads, 1)


def test_the_next_pool_is_solved_while_this_one_is_used():
    solved = threading.Semaphore(0)

    def coupling(pair, generator):
        solved.release()
        return pair

    stream = batches(numbered, 10, seed=0, coupling=coupling, threads=1)
    next(stream)
    assert solved.acquire(timeout=10)
    assert solved.acquire(timeout=10)  # though it was not asked for
    stream.close()


def test_pools_are_solved_by_as_many_threads_as_were_asked_for():
    """Three groups that wait for one another would not end with fewer."""
    barrier = threading.Barrier(3, timeout=10)

    def coupling(pair, generator):
        barrier.wait()
        return pair

    stream = batches(numbered, 10, seed=0, coupling=coupling, pool=Pool(3), threads=3)
    assert len(list(islice(stream, 9))) == 9
    barrier.abort()  # those that are solved ahead need not wait
    stream.close()


# what goes wrong


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("error", [InputError, RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("pool", [Pool(), Pool(3, 2)], ids=str)
def test_errors_of_a_coupling_come_in_place_of_its_pool(pool, error, threads):
    def coupling(pair, generator):
        if calls.append(0) or len(calls) > 2 * pool.batches:
            raise error("the third pool")
        return pair

    calls = []
    stream = batches(numbered, 10, seed=0, coupling=coupling, pool=pool, threads=threads)
    assert len(list(islice(stream, 2 * pool.batches * pool.reuse))) == 2 * pool.batches * pool.reuse
    with pytest.raises(error, match="the third pool"):
        next(stream)
    assert not solvers()
    assert next(stream, None) is None


@pytest.mark.parametrize("threads", THREADS)
def test_what_a_draw_raises_is_raised_and_ends_the_threads(threads):
    def draw(n, generator):
        if drawn.append(0) or len(drawn) > 2:
            raise InputError("the third draw")
        return numbered(n, generator)

    drawn = []
    with pytest.raises(InputError, match="the third draw"):
        for _ in batches(draw, 10, seed=0, coupling=Watched(slow=0.01), threads=threads):
            pass
    assert not solvers()


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("coupling", [ExactOT(), ExactOT(0), Sinkhorn()], ids=str)
@pytest.mark.filterwarnings("ignore:Sinkhorn stopped")
def test_infinite_rows_are_an_input_error_on_any_thread(coupling, threads):
    def draw(n, generator):
        return toy(n, generator)._replace(x1=torch.full((n, 2), torch.nan))

    with pytest.raises(InputError, match="NaN or infinite"):
        next(batches(draw, 10, seed=0, coupling=coupling, threads=threads))


@pytest.mark.parametrize("parameters", [(0, 1), (1, 0), (-1, 1)])
def test_a_pool_needs_a_batch_and_a_use(parameters):
    with pytest.raises(InputError, match="pool"):
        Pool(*parameters)


# nothing is left behind


@pytest.mark.parametrize("leave", ["close", "drop", "never begun"])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_stream_that_is_left_ends_its_threads(leave, threads):
    watched = Watched(10, 0.04)
    stream = batches(numbered, 10, seed=0, coupling=watched, pool=Pool(60), threads=threads)
    if leave != "never begun":
        next(stream)
    if leave == "close":
        stream.close()
    del stream
    assert not solvers()
    called = len(watched.rows)
    assert called < 60 + 60  # not all groups of the pool that was begun
    time.sleep(0.1)
    assert len(watched.rows) == called


def test_many_streams_leave_no_threads():
    before = threading.active_count()
    for _ in range(50):
        next(batches(toy, 4, seed=0, coupling=ExactOT(), threads=3))
    assert threading.active_count() == before


def held(stream, n):
    """Bytes that Python holds more after n batches, objects of its collector, and threads."""
    for _ in islice(stream, 200):
        pass
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0], len(gc.get_objects()), threading.active_count()
    for _ in islice(stream, n):
        pass
    gc.collect()
    after = tracemalloc.get_traced_memory()[0], len(gc.get_objects()), threading.active_count()
    tracemalloc.stop()
    return tuple(b - a for a, b in zip(before, after, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("threads", THREADS)
def test_many_batches_leave_no_memory_no_objects_and_no_threads(threads):
    def cheap(pair, generator):
        return pair

    for coupling, n, pool in ((cheap, 2_000, Pool()), (ExactOT(), 300, Pool()), (cheap, 600, Pool(3, 2))):
        memory, objects, more = held(batches(toy_rows, 4, seed=0, coupling=coupling, pool=pool, threads=threads), n)
        assert memory < 20 * n + 10_000  # far less than an object a batch
        assert objects < 30
        assert more <= 0


def toy_rows(n, generator):
    """As cheap a draw as there is."""
    x = torch.rand(n, 1, generator=generator)
    return Pair(x, 1 - x)
