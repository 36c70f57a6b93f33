"""Labels: transport keeps them with their class, and a share of them is hidden, and nothing else changes."""

from itertools import islice, repeat

import pytest
import torch

from flowgen.core import Pair, Part, generator
from flowgen.couplings import ExactOT, Independent, Sinkhorn, assign, transport_cost
from flowgen.pairs import with_null_labels

CLASSES = 3


@pytest.fixture
def labelled(normal):
    """90 pairs of three classes in a random order, whose data lie apart and whose rows can be told."""
    labels = torch.randint(CLASSES, (90,), generator=generator(0, "labels"))
    centres = 4 * normal("centres", CLASSES, 2)
    return Pair(normal("source", 90, 2), normal("data", 90, 2) + centres[labels], labels)


def run(coupling, pair, seed=0):
    return coupling(pair, generator(seed, "coupling"))


def cost(pair):
    return (pair.x0 - pair.x1).square().sum()


def rows_of(x, table):
    """The number of each row of x in a table of distinct rows."""
    return (x.unsqueeze(1) == table).all(2).int().argmax(1)


def test_every_row_stays_in_its_class(coupling, labelled):
    made = run(coupling, labelled)
    assert torch.equal(made.cond, labelled.cond)
    assert torch.equal(made.x0, labelled.x0)
    index = rows_of(made.x1, labelled.x1)
    assert index.sort().values.tolist() == list(range(90))
    assert torch.equal(labelled.cond[index], labelled.cond)


@pytest.mark.parametrize("group", [0, 7, 128])
def test_each_class_costs_what_it_costs_alone(labelled, group):
    made = run(ExactOT(group), labelled)
    for label in range(CLASSES):
        own = labelled.cond == label
        alone = run(ExactOT(group), Pair(labelled.x0[own], labelled.x1[own]))
        assert torch.equal(made.x1[own], alone.x1)
        if group == 0:
            matrix = transport_cost(labelled.x0[own], labelled.x1[own])
            least = matrix[torch.arange(len(matrix)), assign(matrix)].sum()
            torch.testing.assert_close(cost(made.take(own)), least)
    assert cost(made) < cost(labelled)


def test_little_regularisation_is_exact_transport_in_each_class(labelled):
    torch.testing.assert_close(
        cost(run(Sinkhorn(0.001, 0.01, group=0), labelled)), cost(run(ExactOT(0), labelled)), rtol=1e-2, atol=0
    )


def test_one_class_is_as_none(coupling, labelled):
    same = labelled._replace(cond=torch.full((90,), 7))
    assert torch.equal(run(coupling, same).x1, run(coupling, labelled._replace(cond=None)).x1)


def test_a_class_of_one_row_keeps_its_pair(labelled):
    lonely = labelled._replace(cond=torch.arange(90))
    assert torch.equal(run(ExactOT(), lonely).x1, labelled.x1)


@pytest.mark.parametrize("kind", ["floats", "columns"])
def test_a_condition_that_is_no_label_moves_with_its_row(coupling, labelled, kind):
    cond = labelled.cond.double() if kind == "floats" else torch.stack([labelled.cond, torch.arange(90)], dim=1)
    made = run(coupling, labelled._replace(cond=cond))
    free = run(coupling, labelled._replace(cond=None))
    assert torch.equal(made.x1, free.x1)
    assert torch.equal(made.cond, cond[rows_of(free.x1, labelled.x1)])


@pytest.mark.parametrize("make", [ExactOT, lambda: Sinkhorn(0.05)], ids=["exact", "sinkhorn"])
def test_each_class_starts_from_the_whole_source(make, normal):
    """Sampling a class starts from N(0, I). Transport that pairs across classes teaches it from a part of that."""
    labels = torch.arange(128) % 2
    means = {"within": [], "across": []}
    for batch in range(8):
        x0, x1 = normal(f"source {batch}", 128, 1), 0.3 * normal(f"data {batch}", 128, 1) + 6.0 * labels.unsqueeze(1)
        for name, cond in (("within", labels), ("across", labels.double())):
            made = run(make(), Pair(x0, x1, cond), batch)
            means[name].append(made.x0[made.cond == 1].mean())
    # of 512 standard normals the mean is within 0.2 of 0; of the upper half of them it is sqrt(2 / pi) = 0.80
    assert torch.stack(means["within"]).mean().abs() < 0.2
    assert abs(torch.stack(means["across"]).mean() - 0.80) < 0.1


def test_independent_pairs_stay_as_they_are(labelled):
    assert run(Independent(), labelled) is labelled


# labels that are hidden


SIZE, NULL = 50, 9


def hidden(pairs, share, count=1, start=0, seed=0, part=None):
    part = part or Part()
    stream = with_null_labels(iter(pairs), share, NULL, SIZE, seed=seed, start=start, part=part)
    return list(islice(stream, count))


@pytest.fixture
def pair(normal):
    return Pair(normal("x0", SIZE, 2), normal("x1", SIZE, 2), torch.arange(SIZE) % NULL)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_share_of_hidden_labels_is_that_share(pair, share):
    found = torch.stack([made.cond == NULL for made in hidden(repeat(pair), share, 200)]).double()
    spread = (share * (1 - share) / found.numel()) ** 0.5
    assert abs(found.mean() - share) < 4 * spread
    # no place of a batch, and no batch, has more of them than others
    assert (found.mean(0) - share).abs().max() < 5 * (share * (1 - share) / 200) ** 0.5
    assert (found.mean(1) - share).abs().max() < 5 * (share * (1 - share) / SIZE) ** 0.5


def test_only_labels_change_and_only_to_none(pair):
    (made,) = hidden([pair], 0.3)
    assert made.x0 is pair.x0
    assert made.x1 is pair.x1
    assert made.cond.dtype == torch.int64
    assert (made.cond[made.cond != NULL] == pair.cond[made.cond != NULL]).all()
    assert 0 < (made.cond == NULL).sum() < SIZE
    assert pair.cond.max() < NULL  # the batch itself is not written to


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, SIZE)])
def test_none_and_all(pair, share, count):
    (made,) = hidden([pair], share)
    assert (made.cond == NULL).sum() == count


def test_pairs_without_labels_pass(pair):
    bare = pair._replace(cond=None)
    assert hidden([bare], 0.5) == [bare]


def test_hidden_labels_are_a_function_of_seed_and_batch(pair):
    whole = [made.cond for made in hidden(repeat(pair), 0.3, 6)]
    later = [made.cond for made in hidden(repeat(pair), 0.3, 3, start=3)]
    assert all(map(torch.equal, whole[3:], later))
    assert len({tuple(cond.tolist()) for cond in whole}) == 6
    assert not torch.equal(whole[0], hidden([pair], 0.3, seed=1)[0].cond)


@pytest.mark.parametrize("of", [2, 3])
def test_the_parts_of_a_batch_hide_what_the_whole_hides(pair, of):
    whole = [made.cond for made in hidden(repeat(pair), 0.3, 3, start=2)]
    parts = [hidden(repeat(pair.take(p.rows(SIZE))), 0.3, 3, start=2, part=p) for p in (Part(i, of) for i in range(of))]
    for cond, made in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(cond, torch.cat([part.cond for part in made]))
