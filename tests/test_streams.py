"""Rows are read in epochs, and every batch is a function of the seed and its number, whoever reads which part of it."""

from itertools import islice

import pytest
import torch

from flowgen.core import InputError, Pair, Part, generator
from flowgen.couplings import Independent
from flowgen.data import Flipped, Gaussian, Scaled, Scaling, TensorDataset, chunks, moons
from flowgen.data.epochs import order, positions
from flowgen.pairs import IndependentPairs, Pool, StoredPairs, batches

COUNT = 23
"""Rows of most tests: a prime, so that no batch ends with an epoch."""


@pytest.fixture
def rows(normal):
    """Rows of floats, whose labels are their numbers."""
    return TensorDataset(normal("rows", COUNT, 2).float(), torch.arange(COUNT))


@pytest.fixture
def pictures():
    """8-bit images, whose labels are their numbers."""
    pixels = torch.randint(256, (COUNT, 3, 2, 5), generator=generator(0, "pixels"), dtype=torch.uint8)
    return TensorDataset(pixels, torch.arange(COUNT))


def take(stream, count):
    return list(islice(stream, count))


def equal(left, right):
    """Whether two chunks or pairs are the same, to the bit and the type."""
    return all((a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in zip(left, right))  # noqa: B905


def joined(parts):
    """Chunks or pairs of the parts of a batch as one."""
    return [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]


# epochs


@pytest.mark.parametrize("count", [1, 2, COUNT])
def test_an_epoch_has_every_row_once(count):
    assert order(count, 3, 5).sort().values.tolist() == list(range(count))


def test_orders_differ_by_seed_epoch_and_stream_alone():
    keys = [(0, 0, "data"), (1, 0, "data"), (0, 1, "data"), (0, 0, "source")]
    found = {tuple(order(COUNT, *key).tolist()) for key in keys}
    assert len(found) == 4
    before = [order(COUNT, *key).clone() for key in keys]
    order.cache_clear()
    assert all(torch.equal(order(COUNT, *key), x) for key, x in zip(keys, before, strict=True))


@pytest.mark.parametrize("span", [(0, 0), (0, 5), (3, 23), (20, 30), (23, 46), (7, 100)])
def test_positions_are_those_of_one_endless_walk(span):
    start, stop = span
    walk = torch.cat([order(COUNT, 9, epoch) for epoch in range(5)])
    assert torch.equal(positions(COUNT, start, stop, seed=9), walk[start:stop])


def test_what_is_done_with_positions_changes_no_order():
    positions(COUNT, 0, COUNT, seed=1).zero_()
    assert order(COUNT, 1, 0).unique().numel() == COUNT


# rows


@pytest.mark.parametrize("size", [1, 7, COUNT, 60])
@pytest.mark.parametrize("kind", ["rows", "pictures"])
def test_chunks_are_rows_of_the_walk_with_their_labels(request, kind, size):
    law = request.getfixturevalue(kind)
    for k, (x, labels) in enumerate(take(law.chunks(size, seed=4), 4)):
        assert torch.equal(labels, positions(COUNT, k * size, (k + 1) * size, 4))
        assert x.dtype == law.x.dtype
        assert torch.equal(x, law.x[labels])


LAWS = {
    "rows": lambda rows, pictures: rows,
    "pictures": lambda rows, pictures: pictures,
    "scaled": lambda rows, pictures: Scaled(rows, Scaling(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0]))),
    "scaled pictures": lambda rows, pictures: Scaled(pictures, Scaling.of_range(0, 1)),
    "flipped": lambda rows, pictures: Flipped(pictures),
    "flipped, scaled": lambda rows, pictures: Scaled(Flipped(pictures), Scaling.of_range(0, 1)),
    "noise": lambda rows, pictures: Gaussian((2,)),
    "toy": lambda rows, pictures: moons(),
    "scaled toy": lambda rows, pictures: Scaled(moons(), Scaling(torch.tensor(1.0), torch.tensor(2.0))),
}


@pytest.fixture(params=LAWS.values(), ids=LAWS)
def law(request, rows, pictures):
    return request.param(rows, pictures)


@pytest.mark.parametrize("start", [0, 1, 9])
def test_a_stream_that_starts_later_goes_on_as_the_whole(law, start):
    whole = take(chunks(law, 7, seed=2), start + 3)
    later = take(chunks(law, 7, seed=2, start=start), 3)
    assert all(map(equal, whole[start:], later))
    assert not equal(whole[0], take(chunks(law, 7, seed=3), 1)[0])


@pytest.mark.parametrize("of", [2, 3, 7])
def test_the_parts_of_a_chunk_are_the_chunk(law, of):
    parts = [take(chunks(law, 7, seed=2, part=Part(index, of)), 5) for index in range(of)]
    for whole, some in zip(take(chunks(law, 7, seed=2), 5), zip(*parts, strict=True), strict=True):
        assert equal(whole, joined(some))


def test_draws_of_bytes_are_rows_over_255(pictures):
    drawn = pictures.sample(50, generator(0, "draw"))
    found = (drawn.unsqueeze(1) == pictures.x.float() / 255).flatten(2).all(2)
    assert drawn.dtype == torch.float32
    assert found.any(1).all()
    assert torch.equal(pictures.values, pictures.x.float() / 255)
    assert found.any(0).sum() < COUNT  # with replacement


def test_some_rows_keep_their_labels(pictures):
    some = pictures.take(torch.tensor([5, 2]))
    assert some.labels.tolist() == [5, 2]
    assert torch.equal(some.x, pictures.x[[5, 2]])
    assert (len(some), some.shape) == (2, (3, 2, 5))
    assert TensorDataset(pictures.x).take(slice(3)).labels is None


@pytest.mark.parametrize(
    ("x", "labels", "words"),
    [
        (torch.zeros(0, 2), None, "no rows"),
        (torch.tensor([[1.0], [torch.nan], [-torch.inf]]), None, "2 of 3 rows"),
        (torch.zeros(3, 2), torch.zeros(2), "3 rows need as many labels"),
        (torch.zeros(3, 2), torch.zeros(3, 1), "3 rows need as many labels"),
    ],
)
def test_rows_that_are_none_are_refused(x, labels, words):
    with pytest.raises(InputError, match=words):
        TensorDataset(x, labels)


def test_scaled_chunks_are_in_the_units_of_the_model(rows, pictures):
    scaling = Scaling.standardising(rows.x)
    for (x, labels), (z, same) in zip(
        take(rows.chunks(9, seed=0), 3), take(Scaled(rows, scaling).chunks(9, seed=0), 3), strict=True
    ):
        torch.testing.assert_close(z, (x - rows.x.mean(0)) / rows.x.std(0, correction=0))
        assert torch.equal(labels, same)
    (z, labels), *_ = take(Scaled(pictures, Scaling.of_range(0, 1)).chunks(9, seed=0), 1)
    torch.testing.assert_close(z, pictures.x[labels] / 127.5 - 1)


def test_each_image_is_mirrored_or_not_as_a_coin_falls(pictures):
    mirrored = []
    for x, labels in take(Flipped(pictures).chunks(40, seed=0), 50):
        kept, turned = pictures.x[labels], pictures.x[labels].flip(-1)
        is_kept, is_turned = ((x == y).flatten(1).all(1) for y in (kept, turned))
        assert (is_kept ^ is_turned).all()
        mirrored.append(is_turned.double())
    share = torch.stack(mirrored)
    assert abs(share.mean() - 0.5) < 0.04  # three and a half standard deviations of 2000 coins
    assert share.std(1).min() > 0  # each image for itself
    assert share.unique(dim=0).shape[0] == 50  # and each batch
    # draws for measuring are as they are
    assert torch.equal(Flipped(pictures).sample(9, generator(0, "a")), pictures.sample(9, generator(0, "a")))


# pairs


def test_source_and_data_have_orders_of_their_own():
    both = TensorDataset(torch.arange(200.0).unsqueeze(1))
    met = torch.zeros(200, 200)
    for pair in take(IndependentPairs(both, both).stream(200, seed=0), 60):
        assert pair.x0.sort(0).values.equal(both.x)
        assert pair.x1.sort(0).values.equal(both.x)
        met[pair.x0.long().squeeze(), pair.x1.long().squeeze()] += 1
    # a random pairing has one fixed point in an epoch; and so has each shifted diagonal
    assert 0.4 < met.diagonal().sum() / 60 < 1.8
    assert met.max() <= 5


@pytest.mark.parametrize("seed", range(5))
def test_orders_of_source_and_data_are_independent(seed):
    both = TensorDataset(torch.arange(2000.0).unsqueeze(1))
    (pair,) = take(IndependentPairs(both, both).stream(2000, seed=seed), 1)
    assert torch.corrcoef(torch.cat([pair.x0, pair.x1], dim=1).T)[0, 1].abs() < 0.09  # four standard deviations


def test_the_labels_of_the_data_are_the_condition(rows, normal):
    source = TensorDataset(normal("source", 31, 2).float(), torch.full((31,), -1))
    for pair in take(IndependentPairs(source, rows).stream(10, seed=1), 5):
        assert torch.equal(pair.x1, rows.x[pair.cond])
        assert (pair.x0.unsqueeze(1) == source.x).all(2).any(1).all()


@pytest.fixture
def stored(rows, normal):
    """Pairs whose ends and labels tell their number."""
    return StoredPairs(Pair(rows.x + 1, rows.x - 1, rows.labels))


@pytest.mark.parametrize("pool", [None, Pool(3, 2)], ids=str)
def test_stored_pairs_stay_together_and_come_once_an_epoch(stored, rows, pool):
    reuse = pool.reuse if pool else 1
    read = take(batches(stored, 5, seed=0, pool=pool), COUNT * 3 * reuse)
    for pair in read:
        assert torch.equal(pair.x0, rows.x[pair.cond] + 1)
        assert torch.equal(pair.x1, rows.x[pair.cond] - 1)
    assert torch.cat([pair.cond for pair in read]).bincount().tolist() == [15 * reuse] * COUNT


DRAWS = {
    "labelled rows": lambda rows, stored: IndependentPairs(Gaussian((2,)), TensorDataset(rows.x, rows.labels % 3)),
    "rows to rows": lambda rows, stored: IndependentPairs(rows, TensorDataset(rows.x)),
    "toy": lambda rows, stored: IndependentPairs(Gaussian(), moons()),
    "stored": lambda rows, stored: stored,
    "function": lambda rows, stored: lambda n, rng: Pair(*torch.randn(2, n, 2, generator=rng)),
}
POOLS = {"alone": None, "pool": Pool(3, 2), "reused": Pool(1, 3)}


@pytest.fixture(params=DRAWS.values(), ids=DRAWS)
def draw(request, rows, stored):
    return request.param(rows, stored)


@pytest.mark.costly
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_the_parts_of_a_batch_are_the_batch_whatever_is_coupled(draw, coupling, pool):
    options = {"seed": 5, "coupling": coupling, "pool": pool}
    whole = take(batches(draw, 10, **options), 8)
    parts = [take(batches(draw, 10, **options, part=Part(index, 3)), 8) for index in range(3)]
    for pair, some in zip(whole, zip(*parts, strict=True), strict=True):
        assert equal(pair, joined(some))
    for start in (1, 7):
        assert equal(whole[start], next(batches(draw, 10, **options, start=start)))
        assert equal(
            whole[start].take(Part(2, 3).rows(10)), next(batches(draw, 10, **options, start=start, part=Part(2, 3)))
        )


@pytest.mark.costly
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_coupled_rows_are_those_of_the_walk_each_as_often(rows, coupling, pool):
    reuse = pool.reuse if pool else 1
    read = take(
        batches(IndependentPairs(Gaussian((2,)), rows), 5, seed=3, coupling=coupling, pool=pool), 3 * COUNT * reuse
    )
    assert all(torch.equal(pair.x1, rows.x[pair.cond]) for pair in read)
    assert torch.cat([pair.cond for pair in read]).bincount().tolist() == [15 * reuse] * COUNT
    sources = torch.cat([pair.x0 for pair in read])
    assert sources.unique(dim=0, return_counts=True)[1].unique().tolist() == [reuse]


def test_what_is_read_in_part_is_not_read_whole(rows):
    """Independent pairs that are not pooled: a process decodes its own images alone."""
    asked = []

    class Spy:
        shape = (2,)

        def sample(self, n, generator): ...

        def chunks(self, size, *, seed, start=0, part=None):
            asked.append(part)
            return rows.chunks(size, seed=seed, start=start, part=part)

    next(batches(IndependentPairs(Gaussian((2,)), Spy()), 10, seed=0, part=Part(1, 2), coupling=Independent()))
    assert asked == [Part(1, 2)]
