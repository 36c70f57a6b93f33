"""Sample i is the same wherever drawing starts, with whatever labels beside it, and whoever draws it."""

import math

import pytest
import torch

from flowgen.core import InputError, Part, generator
from flowgen.data import Gaussian, Scaling, TensorDataset
from flowgen.data.streams import BLOCK, source_rows
from flowgen.guidance import Guided
from flowgen.model import Model
from flowgen.nn import MLP
from flowgen.samplers.grids import uniform
from flowgen.samplers.ode import AdamsBashforth2, AdaptiveSolver, euler, heun
from flowgen.sampling import chunk_rows, flow, pair_chunks, sample, sample_chunks

pytestmark = pytest.mark.journey

CLASSES, NUM = 3, 300
SOLVERS = {"euler": euler, "heun": heun, "ab2": AdamsBashforth2(), "joint": AdaptiveSolver("bosh3", 1e-3, 1e-3)}


@pytest.fixture
def model():
    net = MLP(2, 32, 2, classes=CLASSES)
    net.layers[0].weight.data[:, -CLASSES - 1 :] *= 20  # so that labels matter
    return Model(net, scaling=Scaling(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5])))


@pytest.fixture
def labels():
    return torch.randint(CLASSES + 1, (NUM,), generator=generator(0, "labels"))


@pytest.fixture(params=SOLVERS.values(), ids=SOLVERS)
def solver(request):
    return request.param


def joined(made):
    made = list(made)
    return made[0].cat(made) if hasattr(made[0], "x0") else torch.cat(made)


def made(model, num=NUM, solver=heun, distribution=None, **options):
    return joined(pair_chunks(model, distribution or Gaussian(), num, uniform(3), solver, seed=7, **options))


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("start", [0, 64, 256])
@pytest.mark.parametrize("chunk", [1, 100, None])
def test_pairs_that_start_later_are_the_same(model, labels, solver, start, chunk):
    whole = made(model, solver=solver, cond=labels)
    assert same(
        made(model, solver=solver, cond=labels[start:], start=start, chunk=chunk), whole.take(slice(start, NUM))
    )


@pytest.mark.parametrize("num", [257, 299])
def test_pairs_that_start_later_and_end_sooner_are_the_same(model, labels, num):
    whole = made(model, cond=labels)
    assert same(made(model, num, cond=labels[128:num], start=128), whole.take(slice(128, num)))


def test_source_points_are_those_of_their_numbers(model):
    distribution = TensorDataset(torch.arange(50.0).repeat(2, 1).T.contiguous())
    assert torch.equal(made(model, distribution=distribution).x0, source_rows(distribution, 0, NUM, 7, "sample"))
    assert torch.equal(
        made(model, distribution=distribution, start=64).x0, source_rows(distribution, 0, NUM, 7, "sample")[64:]
    )


def test_each_pair_is_where_the_flow_of_its_label_ends(model, labels, solver):
    pair = made(model, solver=solver, cond=labels)
    assert torch.equal(pair.cond, labels)
    for label in range(CLASSES + 1):
        own = pair.take(labels == label)
        close = {"rtol": 1e-2, "atol": 1e-2} if solver.couples_batch else {}
        torch.testing.assert_close(own.x1, flow(model, own.x0, uniform(3), solver, own.cond), **close)
        other = flow(model, own.x0, uniform(3), solver, (own.cond + 1) % (CLASSES + 1))
        assert (own.x1 - other).abs().mean() > 0.02


def test_a_label_changes_its_own_sample_alone(model, labels):
    other = labels.clone()
    other[100] = (other[100] + 1) % CLASSES
    moved = (made(model, cond=labels).x1 != made(model, cond=other).x1).any(1)
    assert moved.nonzero().tolist() == [[100]]


@pytest.mark.parametrize("num", [1, 63, 65, 200])
def test_labels_do_not_tell_how_many_there_are(model, labels, solver, num):
    assert same(made(model, num, solver, cond=labels[:num]), made(model, solver=solver, cond=labels).take(slice(num)))


def test_the_field_is_walked_in_place_of_the_velocity(model, labels):
    guided = Guided(model.velocity, CLASSES, 0.0)
    assert torch.equal(made(model, field=guided, cond=labels).x1, made(model, cond=torch.full((NUM,), CLASSES)).x1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": 10}, "start at a multiple of 64, not at 10"),
        ({"cond": torch.zeros(299)}, "300 samples need as many conditions, not 299"),
        ({"cond": torch.zeros(300), "start": 64}, "236 samples need as many conditions, not 300"),
        ({"chunk": 0}, "positive whole number"),
        ({"start": 320}, "positive whole number"),
        ({"num": 0}, "positive whole number"),
    ],
)
def test_what_makes_no_sense_is_refused(model, options, words):
    with pytest.raises(InputError, match=words):
        made(model, **options)


@pytest.mark.parametrize("shape", [(2,), (1000,), (1, 8, 8), (3, 32, 32), (3, 256, 256), (10**6,)])
def test_chunks_of_their_own_size_hold_little(shape):
    rows = chunk_rows(shape)
    assert BLOCK <= rows <= 8192
    assert rows == BLOCK or rows * math.prod(shape) <= 2**18
    assert rows == 8192 or 2 * (rows + 1) * math.prod(shape) > 2**18


# several processes


class Told:
    """A process of several that keeps what it would have told the first."""

    def __init__(self, index, of):
        self.part, self.said = Part(index, of), []

    def gathered(self, x):
        self.said.append(x)


def together(of, draw):
    """What the first of several processes gathers, one conversation after another."""
    said = []
    for index in range(of):
        told = Told(index, of)
        assert list(draw(told)) == []
        said.append(told.said)
    return [torch.cat(rows) for rows in zip(*said, strict=True)]


@pytest.mark.parametrize("of", [2, 3, 5])
@pytest.mark.parametrize(
    ("num", "chunk"), [(1, None), (64, 64), (65, 64), (300, 64), (300, 1), (299, 128), (300, None)]
)
def test_processes_draw_the_samples_of_one_in_order(model, labels, of, num, chunk):
    options = {"seed": 3, "chunk": chunk, "cond": labels[:num]}
    alone = sample(model, Gaussian(), num, uniform(2), euler, **options)
    found = together(
        of, lambda told: sample_chunks(model, Gaussian(), num, uniform(2), euler, **options, processes=told)
    )
    assert torch.equal(torch.cat(found), alone)
    pair = joined(pair_chunks(model, Gaussian(), num, uniform(2), euler, seed=3, cond=labels[:num]))
    assert torch.equal(model.scaling.undo(pair.x1), alone)
    assert alone.shape == (num, 2)


def test_processes_share_the_work_evenly(model):
    rows = []
    for index in range(3):
        told = Told(index, 3)
        list(sample_chunks(model, Gaussian(), 64 * 9, uniform(1), euler, chunk=64, processes=told))
        rows.append([len(x) for x in told.said])
    assert rows == [[64] * 3] * 3
