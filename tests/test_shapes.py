"""What has another shape than it should is refused, and never broadcast: nets, fields, pairs, conditions, labels."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from flowgen import likelihood, metrics, objectives, sampling
from flowgen.core import InputError, Note, Pair, generator
from flowgen.data import Gaussian, TensorDataset, moons
from flowgen.model import Model
from flowgen.nn import MLP, DiT, ResMLP, UNet
from flowgen.objectives import FlowMatching, classifier
from flowgen.objectives.flow_maps import AlphaFlow, EndPoint, MeanFlow, Shortcut
from flowgen.objectives.perceptual import PerceptualLoss
from flowgen.pairs import IndependentPairs, batches, with_null_labels
from flowgen.paths.bridge import ConstantBridge
from flowgen.samplers.grids import uniform
from flowgen.samplers.ode import euler
from flowgen.schedules import Linear
from flowgen.training.loop import State, fit

OBJECTIVES = [
    FlowMatching(),
    objectives.BridgeNoise(ConstantBridge(0.1)),
    MeanFlow(),
    Shortcut(),
    AlphaFlow(),
    EndPoint(),
    PerceptualLoss(torch.tanh),
]


class Shaped(nn.Module):
    """A net whose predictions are cut to another shape."""

    def __init__(self, dim, cut):
        super().__init__()
        self.net, self.cut = MLP(dim, 8, 1), cut

    def forward(self, x, t, s, cond=None):
        return self.cut(self.net(x.flatten(1), t).reshape(x.shape))


def draws(*shape):
    return torch.randn(*shape, generator=generator(0, "draws"))


def first_step(net, pair, objective=None, **options):
    return next(fit(State(Model(net)), [pair], objective or FlowMatching(), 1, seed=0, **options))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
@pytest.mark.parametrize(
    ("shape", "cut", "given"),
    [
        ((1,), lambda v: v.squeeze(1), r"\(\d,\)"),
        ((3, 4, 4), lambda v: v[:, :1], r"\(\d, 1, 4, 4\)"),
        ((2,), lambda v: v[:1], r"\(1, 2\)"),
    ],
    ids=["no column", "one channel", "one row"],
)
def test_a_net_gives_the_shape_of_x_to_every_objective(objective, shape, cut, given):
    net = Shaped(torch.Size(shape).numel(), cut)
    with pytest.raises(InputError, match=f"the net must return the shape of x.*, not {given}"):
        first_step(net, Pair(draws(8, *shape), draws(8, *shape)), objective)


def test_a_net_gives_the_shape_of_x_when_it_is_sampled():
    model = Model(Shaped(2, lambda v: v[:, :1]))
    with pytest.raises(InputError, match="the net must return"):
        next(sampling.pair_chunks(model, Gaussian(), 10, uniform(2), euler))
    with pytest.raises(InputError, match="the net must return"):
        likelihood.log_likelihood(model, Gaussian(), draws(3, 2), uniform(2), euler)
    with pytest.raises(InputError, match="the net must return a tensor, not tuple"):
        Model(Shaped(2, lambda v: (v, v))).velocity(draws(3, 2), torch.rand(3))


def narrow(x, t, cond=None):
    return x[:, :1]


def test_a_field_gives_the_shape_of_x():
    x = draws(5, 2)
    for walked in (
        lambda: sampling.solve(narrow, x, uniform(2), euler),
        lambda: next(sampling.pair_chunks(Model(MLP(2)), Gaussian(), 10, uniform(2), euler, field=narrow)),
        lambda: metrics.geometry(narrow, x, uniform(2)),
        lambda: likelihood.divergence(narrow, x, torch.rand(5)),
    ):
        with pytest.raises(InputError, match=r"the field must return the shape of x, \(\d+, 2\), not \(\d+, 1\)"):
            walked()


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (Pair(draws(8, 1), draws(8, 2)), r"x0 has \(8, 1\), x1 \(8, 2\)"),
        (Pair(draws(1, 2), draws(8, 2)), r"x0 has \(1, 2\), x1 \(8, 2\)"),
        (Pair(draws(8), draws(8)), r"x.unsqueeze\(1\)"),
        (Pair(draws(8, 2), draws(8, 2), draws(7, 3)), "condition"),
        (Pair(draws(8, 2), draws(8, 2), torch.tensor(1)), "condition"),
        (Pair(draws(8, 2).numpy(), draws(8, 2)), "x0 of a pair must be a tensor, not ndarray"),
    ],
    ids=["columns", "rows", "no event", "rows of cond", "one cond", "numpy"],
)
def test_pairs_whose_shapes_do_not_go_together_are_refused(pair, message):
    with pytest.raises(InputError, match=message):
        first_step(MLP(2), pair)
    with pytest.raises(InputError, match=message):
        Linear().at(pair, torch.rand(8))


@dataclass(frozen=True)
class Unequal:
    """A draw whose ends have different shapes."""

    def __call__(self, n, generator):
        return Pair(torch.randn(n, 1, generator=generator), torch.randn(n, 2, generator=generator))


def test_streams_of_unequal_ends_are_refused():
    with pytest.raises(InputError, match="one shape"):
        first_step(MLP(2), next(batches(Unequal(), 8, seed=0)))


# labels

LABELLED = [
    MLP(2, 8, 1, classes=3),
    ResMLP((2,), classes=3, width=8, depth=1),
    UNet((1, 4, 4), classes=3, channels=32, blocks=1, multipliers=(1,), attention=()),
    DiT((1, 4, 4), classes=3, width=8, depth=1, heads=1),
]


@pytest.mark.parametrize("net", LABELLED, ids=lambda net: type(net).__name__)
@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (torch.zeros(3, 1, dtype=torch.int64), r"3 rows need as many labels, not labels of shape \(3, 1\)"),
        (torch.zeros(3), "whole numbers"),
        (torch.tensor([0, 4, 1]), "labels must be 0 to 3, and there is a label 4"),
        (torch.tensor([0, -1, 1]), "labels must be 0 to 3, and there is a label -1"),
    ],
    ids=["column", "floats", "too large", "negative"],
)
def test_labels_that_a_net_does_not_know_are_refused(net, cond, message):
    shape = {MLP: (2,), ResMLP: (2,), UNet: (1, 4, 4), DiT: (1, 4, 4)}[type(net)]
    with pytest.raises(InputError, match=message):
        first_step(net, Pair(draws(3, *shape), draws(3, *shape), cond))
    with pytest.raises(InputError, match=message):
        next(sampling.pair_chunks(Model(net), Gaussian(shape), 3, uniform(1), euler, cond=cond))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.bool])
@pytest.mark.parametrize("net", LABELLED[:2], ids=lambda net: type(net).__name__)
def test_labels_of_other_whole_types_are_labels(net, dtype):
    cond, x = torch.tensor([1, 0, 1, 1]), draws(4, 2)
    losses = [first_step(net, Pair(x, x + 1, labels)) for labels in (cond, cond.to(dtype))]
    assert losses[0] == losses[1]


def labelled(labels):
    return TensorDataset(draws(len(labels), 2), labels)


def dropped(labels, null, size=6):
    return with_null_labels(
        batches(IndependentPairs(Gaussian(), labelled(labels)), size, seed=0), 0.5, null, size, seed=0
    )


def test_labels_that_seem_to_count_from_one_are_told():
    x, net = draws(6, 2), MLP(2, 8, 1, classes=3)
    with pytest.warns(Note, match="labels count from 0"):
        first_step(net, Pair(x, x, torch.tensor([1, 2, 3, 1, 2, 3])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first_step(net, Pair(x, x, torch.tensor([0, 1, 2, 3, 3, 0])))  # some are dropped, as for guidance


def test_labels_that_count_from_one_are_refused():
    assert next(dropped(torch.arange(6) % 3, null=3)).cond.max() == 3
    with pytest.raises(InputError, match="labels must be 0 to 2, and there is a label 3"):
        next(dropped(torch.arange(6) % 3 + 1, null=3))


def test_a_null_label_fits_labels_of_any_type():
    pair = next(dropped((torch.arange(6) % 3).to(torch.uint8), null=300))
    assert pair.cond.max() == 300
    with pytest.raises(InputError, match="whole numbers"):
        next(with_null_labels(iter([Pair(draws(4, 2), draws(4, 2), draws(4))]), 0.5, 3, 4, seed=0))


def test_null_labels_of_a_smaller_batch_are_its_own():
    whole = Pair(draws(6, 2), draws(6, 2), torch.zeros(6, dtype=torch.int64))
    first, second = (next(with_null_labels(iter([p]), 0.5, 1, 6, seed=0)).cond for p in (whole, whole.take(slice(4))))
    assert torch.equal(first[:4], second)
    with pytest.raises(InputError, match="batches of 5 rows, and there is one of 6"):
        next(with_null_labels(iter([whole]), 0.5, 1, 5, seed=0))


def test_a_classifier_refuses_labels_it_does_not_have():
    net = Shaped(2, lambda v: torch.cat([v, v[:, :1]], dim=1))
    objective = classifier.Labelling(classifier.log_prior([1, 1, 1]))
    x = draws(3, 2)
    assert first_step(net, Pair(x, x, torch.tensor([0, 1, 2])), objective) > 0
    for cond, message in [(torch.tensor([1, 2, 3]), "0 to 2"), (torch.zeros(3, 1).long(), "shape"), (None, "none")]:
        with pytest.raises(InputError, match=message):
            first_step(net, Pair(x, x, cond), objective)
    with pytest.raises(InputError, match=r"the net of a classifier must return \(3, 3\)"):
        first_step(MLP(2), Pair(x, x, torch.tensor([0, 1, 2])), objective)


# losses


def test_an_objective_gives_one_loss_for_each_row():
    def crossed(model, pair, generator):
        losses = FlowMatching()(model, pair, generator)
        return losses - losses.unsqueeze(1)

    pair = next(batches(IndependentPairs(Gaussian(), moons()), 6, seed=0))
    with pytest.raises(InputError, match=r"one loss for each row, \(6,\), not \(6, 6\)"):
        first_step(MLP(2), pair, crossed)
