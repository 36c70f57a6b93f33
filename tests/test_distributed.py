"""Several processes train as one: the same losses and the same weights, however a batch is divided."""

import threading
from itertools import count, islice

import pytest
import torch
from torch import nn

from flowgen import distributed
from flowgen.core import Failure, InputError, Pair, Part, generator
from flowgen.model import Model
from flowgen.nn import MLP
from flowgen.objectives import FlowMatching
from flowgen.training.distributed import ALONE, Processes
from flowgen.training.loop import Diverged, State, fit

SIZE = 24


def whole(step):
    rng = generator(0, "pairs", step)
    x0, x1 = torch.randn(2, SIZE, 2, generator=rng, dtype=torch.float64)
    return Pair(x0, x1 + 2, torch.arange(SIZE) // (SIZE // 2))


def pairs(part, start=0):
    return (whole(step).take(part.rows(SIZE)) for step in count(start))


ONE_AT_A_TIME = threading.Lock()
"""First weights come from PyTorch's one global generator."""


def fresh():
    with ONE_AT_A_TIME:
        return State(Model(MLP(2, 16, 2)).double(), ema=(0.05, 0.2))


def trained(team, objective, steps=6, state=None, **options):
    """The losses and all tensors of a state after some steps."""
    state = state or fresh()
    stream = pairs(team.part, state.step)
    losses = list(fit(state, stream, objective, steps, seed=0, processes=team, **options))
    return {"losses": torch.tensor(losses, dtype=torch.float64), **state.tensors()}


def assert_close(left, right):
    assert left.keys() == right.keys()
    for name, x in left.items():
        torch.testing.assert_close(x, right[name], rtol=1e-9, atol=1e-9)


def test_alone_nothing_is_said_and_nothing_changes():
    x = torch.tensor([1.0, 2.0])
    for say in (ALONE.sum, ALONE.mean, ALONE.broadcast):
        say([x])
        assert x.tolist() == [1, 2]
    assert torch.equal(ALONE.gathered(x), x)
    assert [ALONE.any(True), ALONE.any(False), ALONE.barrier()] == [True, False, None]


# processes as threads: the same code, but for torch.distributed, many times in a second


class Threads:
    """What `flowgen.distributed` uses of torch.distributed, between threads."""

    def __init__(self, of):
        self.changed, self.who = threading.Condition(), threading.local()
        self.said, self.gone = [[] for _ in range(of)], set()

    def leave(self):
        with self.changed:
            self.gone.add(self.who.rank)
            self.changed.notify_all()

    def _all(self, x):
        with self.changed:
            self.said[self.who.rank].append(x.clone())
            turn = len(self.said[self.who.rank])
            self.changed.notify_all()
            behind = lambda: {rank for rank, words in enumerate(self.said) if len(words) < turn}  # noqa: E731
            self.changed.wait_for(lambda: behind() <= self.gone, timeout=60)
            if behind():
                raise RuntimeError("Connection closed by peer")
            return [words[turn - 1] for words in self.said]

    def all_reduce(self, x):
        x.copy_(torch.stack(self._all(x)).sum(0))

    def broadcast(self, x, src):
        x.copy_(self._all(x)[src])

    def gather(self, x, into):
        for place, heard in zip(into or [], self._all(x), strict=bool(into)):
            place.copy_(heard)


@pytest.fixture
def together(monkeypatch):
    """together(of, work): what work(processes) returns or raises at each of `of` processes."""

    def run(of, work):
        threads = Threads(of)
        monkeypatch.setattr(distributed, "dist", threads)
        made = [None] * of

        def one(rank):
            threads.who.rank = rank
            try:
                made[rank] = work(Processes(Part(rank, of)))
            except Exception as error:
                made[rank] = error
            finally:
                threads.leave()

        running = [threading.Thread(target=one, args=(rank,)) for rank in range(of)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return made

    return run


@pytest.mark.parametrize("of", [2, 3])
def test_sums_and_means_take_the_place_of_all_tensors(together, of):
    def work(team):
        here = team.part.index + 1
        tensors = [torch.full((2, 3), float(here)).T, torch.tensor(10.0 * here), torch.tensor([0.5 * here]).double()]
        team.sum(tensors)
        means = [torch.tensor(float(here))]
        team.mean(means)
        return [x.tolist() for x in tensors], means[0].item()

    total = of * (of + 1) / 2
    exact = [[[total] * 2] * 3, 10 * total, [0.5 * total]], (of + 1) / 2
    assert together(of, work) == [exact] * of


def test_what_the_first_process_says_is_heard_by_all(together):
    def work(team):
        x, y = torch.full((2,), float(team.part.index)), torch.tensor([[team.part.index]])
        team.broadcast([x, y])
        return x.tolist(), y.tolist(), y.dtype

    assert together(3, work) == [([0, 0], [[0]], torch.int64)] * 3


def test_a_flag_at_one_process_is_seen_by_all(together):
    assert together(3, lambda team: [team.any(team.part.index == k) for k in (0, 2, 5)]) == [[True, True, False]] * 3


@pytest.mark.parametrize("counts", [(2, 2), (0, 3), (3, 1, 0), (0, 0)])
def test_rows_of_all_processes_are_gathered_in_order(together, normal, counts):
    rows = [normal(f"rows of {index}", count, 2, 3) for index, count in enumerate(counts)]
    first, *others = together(len(counts), lambda team: team.gathered(rows[team.part.index]))
    assert torch.equal(first, torch.cat(rows))
    assert others == [None] * len(others)


@pytest.mark.costly
@pytest.mark.parametrize("of", [2, 3])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_processes_train_as_one_at_the_times_of_every_law(together, known_times, of, accumulate):
    objective = FlowMatching(known_times.distribution)
    alone = trained(ALONE, objective, 4, clip=1.0)
    for made in together(of, lambda team: trained(team, objective, 4, clip=1.0, accumulate=accumulate)):
        assert_close(made, alone)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_train_as_one_with_the_noise_of_every_bridge(together, bridge, accumulate):
    objective = FlowMatching(bridge=bridge)
    alone = trained(ALONE, objective, 4)
    for made in together(2, lambda team: trained(team, objective, 4, accumulate=accumulate)):
        assert_close(made, alone)


class Branches(nn.Module):
    """A weight for rows of class 0, one for those of class 1, and one for no rows."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.ones((), dtype=torch.float64)) for _ in range(3))

    def forward(self, x, t, s, cond):
        return torch.cat([x[cond == k] * self.weights[k] for k in cond.unique()])


def test_a_weight_that_only_some_processes_use_moves_as_at_one(together):
    def work(team):
        return trained(team, FlowMatching(), 4, State(Model(Branches()), weight_decay=0.1))

    alone = work(ALONE)
    assert alone["model.net.weights.0"] != 1 == alone["model.net.weights.2"]
    for made in together(2, work):
        assert_close(made, alone)


def test_an_infinite_loss_at_one_process_stops_all(together):
    states = [fresh(), fresh()]

    def work(team):
        stream = (Pair(p.x0 / (step != 2 or team.first), p.x1) for step, p in enumerate(pairs(team.part)))
        return list(fit(states[team.part.index], stream, FlowMatching(), 9, seed=0, processes=team))

    with_nan = together(2, work)
    assert all(isinstance(made, Diverged) and "step 3" in str(made) for made in with_nan)
    alone = trained(ALONE, FlowMatching(), 2)
    for state in states:
        assert_close({"losses": alone["losses"], **state.tensors()}, alone)


@pytest.mark.parametrize("rows", [(8, 7), (5, 4, 3)])
def test_parts_of_unlike_size_are_refused_at_all_processes(together, rows):
    def work(team):
        stream = (whole(step).take(slice(rows[team.part.index])) for step in count())
        return next(fit(fresh(), stream, FlowMatching(), 9, seed=0, processes=team))

    for made in together(len(rows), work):
        assert isinstance(made, InputError)
        assert str(list(rows)) in str(made)


@pytest.mark.parametrize("change", ["weights", "step"])
def test_processes_that_start_apart_are_refused(together, change):
    def work(team):
        state = fresh()
        if change == "step":
            state.step += team.part.index
        elif team.first:
            state.parameters[-1].data[0] += 1e-6
        return next(fit(state, pairs(team.part), FlowMatching(), 9, seed=0, processes=team))

    assert all(isinstance(made, InputError) and "same" in str(made) for made in together(2, work))


def test_a_conversation_that_breaks_is_a_failure(together):
    def work(team):
        if not team.first:
            raise KeyError("gone")
        return list(islice(fit(fresh(), pairs(team.part), FlowMatching(), 9, seed=0, processes=team), 1))

    first, second = together(2, work)
    assert isinstance(first, Failure)
    assert isinstance(second, KeyError)


def test_a_function_that_draws_for_itself_cannot_be_split(together):
    def objective(model, pair, generator):
        return FlowMatching()(model, pair, generator)

    assert all(isinstance(made, InputError) for made in together(2, lambda team: trained(team, objective)))
