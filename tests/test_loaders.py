"""Training reads a DataLoader, or any other iterable, for as many steps as were asked for, or says why not."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from flowgen import loader_pairs
from flowgen.core import InputError, Pair, generator
from flowgen.couplings import ExactOT
from flowgen.data import Gaussian, Scaling, moons
from flowgen.model import Model
from flowgen.nn import MLP
from flowgen.objectives import FlowMatching
from flowgen.pairs import IndependentPairs, batches
from flowgen.training.loop import State, fit


def rows(n=10):
    return torch.randn(n, 2, generator=generator(0, "rows"))


def trained(pairs, steps, net=None):
    return list(fit(State(Model(net or MLP(2, 8, 1))), pairs, FlowMatching(), steps, seed=0))


def take(pairs, n):
    return [next(pairs) for _ in range(n)]


# the stream that fit reads


def pair_of(index):
    return Pair(rows()[index], rows()[index] + 1)


class Pairs(torch.utils.data.Dataset):
    """A data set whose rows are pairs."""

    def __init__(self, cond=None):
        self.cond = cond

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return pair_of(index)._replace(cond=self.cond)


def test_what_can_be_read_again_is_read_epoch_after_epoch():
    whole = take(batches(IndependentPairs(Gaussian(), moons()), 8, seed=0), 3)
    assert trained(whole, 8) == trained([*whole, *whole, *whole], 8)


def test_an_iterator_that_ends_says_how_many_batches_there_were():
    pairs = take(batches(IndependentPairs(Gaussian(), moons()), 8, seed=0), 4)
    assert len(trained(iter(pairs), 4)) == 4
    with pytest.raises(InputError, match="there were only 4 batches"):
        trained(iter(pairs), 5)
    with pytest.raises(InputError, match="there were only 0 batches"):
        trained([], 5)


def test_a_loader_that_gives_nothing_again_is_refused():
    once = iter(take(batches(IndependentPairs(Gaussian(), moons()), 8, seed=0), 3))

    class Once:
        def __iter__(self):
            yield from once

    with pytest.raises(InputError, match="there were only 3 batches"):
        trained(Once(), 5)


@pytest.mark.parametrize("pairs", [IndependentPairs(Gaussian(), moons()), 5], ids=["IndependentPairs", "number"])
def test_what_is_no_iterable_is_refused(pairs):
    with pytest.raises(InputError, match="expected an iterable"):
        trained(pairs, 5)


def test_batches_that_are_no_pairs_are_refused():
    with pytest.raises(InputError, match=r"Pair\(x0, x1, cond\), not list: loader_pairs"):
        trained(DataLoader(TensorDataset(rows(), rows()), 5), 1)


def test_a_loader_of_pairs_is_trained_on():
    with pytest.raises(InputError, match=r"collate_fn=Pair.stack"):
        trained(DataLoader(Pairs(), 5), 4)
    assert trained(DataLoader(Pairs(), 5, collate_fn=Pair.stack), 4) == trained(
        [pair_of(slice(0, 5)), pair_of(slice(5, 10))], 4
    )
    labels = DataLoader(Pairs(cond=1), 5), DataLoader(Pairs(cond=1), 5, collate_fn=Pair.stack)
    plain, stacked = (trained(loader, 4, MLP(2, 8, 1, classes=2)) for loader in labels)
    assert plain == stacked


# pairs of a loader of data


def test_a_loader_of_rows_trains_in_one_line():
    state, loader = State(Model(MLP(2, 8, 1))), DataLoader(TensorDataset(rows()), 4)
    assert len(list(fit(state, loader_pairs(loader, Gaussian(), seed=0), FlowMatching(), 12, seed=0))) == 12


@pytest.mark.parametrize("collate", [None, torch.stack, lambda x: (torch.stack(x),)], ids=["list", "tensor", "tuple"])
def test_batches_of_a_loader_are_its_rows_in_order(collate):
    data = rows() if collate else TensorDataset(rows())
    pairs = take(loader_pairs(DataLoader(data, 4, collate_fn=collate), Gaussian(), seed=0), 6)
    assert [len(pair.x1) for pair in pairs] == [4, 4, 2] * 2
    assert torch.equal(torch.cat([pair.x1 for pair in pairs]), torch.cat([rows(), rows()]))
    assert all(pair.cond is None for pair in pairs)


def test_sources_are_functions_of_seed_and_batch():
    loader = DataLoader(TensorDataset(rows()), 4)
    first, again = (take(loader_pairs(loader, Gaussian(), seed=0), 6) for _ in range(2))
    late, other = (next(loader_pairs(loader, Gaussian(), **given)) for given in ({"seed": 0, "start": 3}, {"seed": 1}))
    assert all(torch.equal(p.x0, q.x0) for p, q in zip(first, again, strict=True))
    assert len({pair.x0[0, 0].item() for pair in first}) == 6
    assert torch.equal(late.x0, first[3].x0)
    assert not torch.equal(other.x0, first[0].x0)


def test_conditions_of_a_loader_go_with_their_rows():
    labels, scaling = torch.arange(10) % 2, Scaling(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    loader = DataLoader(TensorDataset(rows(), labels), 10)
    pair = next(loader_pairs(loader, Gaussian(), seed=0, scaling=scaling, coupling=ExactOT()))
    where = torch.cdist(scaling.undo(pair.x1), rows()).argmin(1)
    assert sorted(where.tolist()) == list(range(10))
    assert where.tolist() != list(range(10))
    assert torch.equal(pair.cond, labels[where])


def test_a_loader_of_both_ends_needs_no_source():
    x, y = rows(), rows() + 1
    pair = next(loader_pairs(DataLoader(TensorDataset(x, y, torch.arange(10)), 10), None, seed=0))
    assert torch.equal(pair.x0, x)
    assert torch.equal(pair.x1, y)
    assert torch.equal(pair.cond, torch.arange(10))


def test_bytes_of_a_loader_are_pixels():
    pixels = torch.tensor([[[[0, 51], [102, 255]]]], dtype=torch.uint8)
    pair = next(loader_pairs(DataLoader(TensorDataset(pixels), 1), Gaussian((1, 2, 2)), seed=0))
    torch.testing.assert_close(pair.x1, torch.tensor([[[[0, 0.2], [0.4, 1]]]]))


@pytest.mark.parametrize(
    ("batch", "source", "message"),
    [
        ({"x": rows()}, Gaussian(), r"x, \[x\] or \[x, cond\], not dict"),
        ([rows(), rows(), rows()], Gaussian(), r"not list of 3 \(Tensor, Tensor, Tensor\)"),
        (rows().numpy(), Gaussian(), "not ndarray"),
        (rows(), None, r"without a source.*not Tensor"),
        ([rows(), torch.zeros(10)], None, r"x0 has \(10, 2\), x1 \(10,\)"),
        (rows(), Gaussian((3,)), r"x0 has \(10, 3\), x1 \(10, 2\)"),
    ],
    ids=["dict", "three", "numpy", "no source", "labels for an end", "event"],
)
def test_batches_of_another_kind_are_refused(batch, source, message):
    with pytest.raises(InputError, match=message):
        next(loader_pairs([batch], source, seed=0))


def test_a_coupling_of_loaders_is_named_and_checked():
    named, made = (next(loader_pairs([rows()], Gaussian(), seed=0, coupling=c)) for c in ("exact", ExactOT()))
    assert torch.equal(named.x1, made.x1)
    with pytest.raises(InputError, match=r"ExactOT\(\)"):
        next(loader_pairs([rows()], Gaussian(), seed=0, coupling=ExactOT))
    with pytest.raises(InputError, match="must return"):
        next(loader_pairs([rows()], Gaussian(), seed=0, coupling=lambda pair, rng: (pair.x0, pair.x1)))
