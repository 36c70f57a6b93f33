"""Flow maps: that of a Gaussian is known, and there every objective is zero; nets are differentiated as they should."""

import itertools
from dataclasses import dataclass, replace

import pytest
import torch

from flowgen.core import Pair, generator, like
from flowgen.guidance import Guided
from flowgen.losses import AdaptiveLoss, PseudoHuber, Squared
from flowgen.model import Model
from flowgen.nn import MLP, DiT, ResMLP, UNet
from flowgen.objectives import FlowMatching
from flowgen.objectives.flow_maps import AlphaFlow, EndPoint, MeanFlow, OfPairs, OfTeacher, Shortcut
from flowgen.schedules import Linear
from flowgen.times import TimePairs

ROWS = 500
DRAWS = 20_000


def errors(objective, model, pair, drawn):
    """What an objective finds between the map and what it should be, `(B, *shape)`, before it is made a loss."""
    seen = []

    def kept(error):
        seen.append(error)
        return error.flatten(1).sum(1)

    replace(objective, distance=kept).loss(model, pair, drawn)
    return seen[0]


def times(n=ROWS, count=2):
    """Times of each row in order, all apart from one another and from 1: `count` tensors `(n,)` float64."""
    t = torch.rand(n, count, generator=generator(0, "times"), dtype=torch.float64).sort(1).values
    return (0.9 * t + 0.03 * torch.arange(count)).unbind(1)


def pairs_of(flow, n=ROWS):
    """Independent pairs of a Gaussian flow."""
    x0, z = torch.randn(2, n, 2, generator=generator(0, "pairs"), dtype=torch.float64)
    return Pair(x0, flow.mean + flow.std * z)


def spans(n=ROWS, diagonal=0.25):
    """Times in float64, some of them on the diagonal."""
    t, s = times(n)
    return TimePairs(t, torch.where(torch.arange(n) < diagonal * n, t, s))


def taught(flow):
    return OfTeacher(flow.velocity)


# the known map


@pytest.mark.costly
def test_the_known_map_is_that_of_its_velocity(whole_flow):
    """Lagrangian: where one is at s moves with the velocity there. Eulerian: it does not move as t does."""
    (t, s), x = times(), pairs_of(whole_flow).x0

    def end(x, t, s):
        return x + like(s - t, x) * whole_flow.average(x, t, s)

    one = torch.ones_like(t)
    at, moved = torch.func.jvp(lambda s: end(x, t, s), (s,), (one,))
    torch.testing.assert_close(moved, whole_flow.velocity(at, s), rtol=1e-9, atol=1e-9)
    velocity = whole_flow.velocity(x, t)
    still = torch.func.jvp(lambda x, t: end(x, t, s), (x, t), (velocity, one))[1]
    assert still.abs().max() < 1e-9
    torch.testing.assert_close(whole_flow.average(x, t, t + 1e-7), velocity, rtol=0, atol=1e-4)


def test_the_known_map_is_a_semigroup(whole_flow):
    (t, m, s), x, u = times(count=3), pairs_of(whole_flow).x0, whole_flow.average
    there = x + like(m - t, x) * u(x, t, m)
    both = like(m - t, x) * u(x, t, m) + like(s - m, x) * u(there, m, s)
    torch.testing.assert_close(like(s - t, x) * u(x, t, s), both, rtol=1e-10, atol=1e-10)


# objectives at the known map


def error(objective, flow, map_model, drawn=None, average=None):
    """The errors of the known map, or of another, of an objective."""
    return errors(objective, map_model(flow.schedule, average or flow.average), pairs_of(flow), drawn or spans())


def test_meanflow_taught_by_the_velocity_is_zero_at_the_map(whole_flow, map_model):
    assert error(MeanFlow(velocity=taught(whole_flow)), whole_flow, map_model).abs().max() < 1e-10


def test_meanflow_of_pairs_is_wrong_by_their_noise_alone(whole_flow, map_model):
    """What is left is v - dx_t/dt, since the derivative is along the velocity, and not along the pair."""
    pair, drawn = pairs_of(whole_flow), spans()
    point = whole_flow.schedule.at(pair, drawn.t)
    noise = whole_flow.velocity(point.x, point.t) - point.dx
    torch.testing.assert_close(error(MeanFlow(), whole_flow, map_model), noise, rtol=1e-10, atol=1e-10)


WRONG = {
    "s moves, t stays": lambda v, dx: (v, 0.0, 1.0),
    "both move": lambda v, dx: (v, 1.0, 1.0),
    "backward in time": lambda v, dx: (v, -1.0, 0.0),
    "x stays": lambda v, dx: (0 * v, 1.0, 0.0),
    "along the pair": lambda v, dx: (dx, 1.0, 0.0),
}


@pytest.mark.parametrize("tangents", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("sign", [1, -1])
def test_no_other_derivative_would_do(tangents, sign, whole_flow):
    """u = v + (s - t) D_t u, as written here with the right derivative; with others it is far from true."""
    (t, s), u = times(), whole_flow.average
    point = whole_flow.schedule.at(pairs_of(whole_flow), t)
    v, one = whole_flow.velocity(point.x, t), torch.ones_like(t)

    def residual(x, at_t, at_s, sign=1):
        change = torch.func.jvp(u, (point.x, t, s), (x, at_t * one, at_s * one))[1]
        return (u(point.x, t, s) - v - sign * like(s - t, v) * change).abs().mean()

    assert residual(v, 1.0, 0.0) < 1e-10
    assert residual(v, 1.0, 0.0, -1) > 1e-2
    assert residual(*tangents(v, point.dx), sign) > 1e-2


def test_shortcuts_are_zero_at_the_map(whole_flow, map_model):
    objective = Shortcut(velocity=taught(whole_flow))
    assert error(objective, whole_flow, map_model).abs().max() < 1e-10
    other = error(objective, whole_flow, map_model, average=lambda x, t, s, cond: whole_flow.velocity(x, t))
    assert other[spans().s > spans().t].abs().mean() > 1e-2


def test_halves_of_a_teacher_are_its_jumps(whole_flow, map_model):
    """Whatever the student is; the velocity is not asked."""
    objective = Shortcut(velocity=None, halves=whole_flow.average)
    drawn = TimePairs(*times())
    found = error(objective, whole_flow, map_model, drawn, lambda x, t, s, cond: torch.zeros_like(x))
    x = whole_flow.schedule.at(pairs_of(whole_flow), drawn.t).x
    torch.testing.assert_close(found, -whole_flow.average(x, *drawn), rtol=1e-10, atol=1e-10)


def test_alpha_flow_is_zero_at_the_map_as_its_share_falls(whole_flow, map_model):
    """The first step is Euler's, and its error of order share^2 is carried on: half the share is a quarter of it."""
    found = [
        error(AlphaFlow(velocity=taught(whole_flow), share=share), whole_flow, map_model).abs().max()
        for share in (0.02, 0.01, 0.005)
    ]
    assert found[0] < 1e-2
    for one, half in itertools.pairwise(found):
        assert one / half == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_alpha_flow_is_exact_where_its_first_step_is(whole_flow, map_model, share):
    drawn = spans()
    gap = dict(zip(drawn.t.tolist(), (drawn.s - drawn.t).tolist(), strict=True))  # it is asked for some of the rows

    def first(x, t, cond):
        return whole_flow.average(x, t, t + share * torch.tensor([gap[each] for each in t.tolist()], dtype=t.dtype))

    found = error(AlphaFlow(velocity=OfTeacher(first), share=share), whole_flow, map_model, drawn)
    assert found.abs().max() < 1e-10


def test_alpha_flow_of_share_1_is_flow_matching_whatever_s_is(whole_flow, map_model):
    model, pair, (t, s) = map_model(whole_flow.schedule, lambda x, t, s, cond: x.sin()), pairs_of(whole_flow), times()
    known = FlowMatching(lambda n, generator: t)(model, pair, generator(0, "draws"))
    torch.testing.assert_close(AlphaFlow(share=1.0).loss(model, pair, TimePairs(t, s)), known)


def test_losses_of_alpha_flow_do_not_fall_with_its_share(whole_flow, map_model):
    """Off the diagonal errors are as small as the share, and their square over the share has a gradient that is not;
    on it they do not know of the share."""
    model, pair, drawn = map_model(whole_flow.schedule, lambda x, t, s, cond: x.sin()), pairs_of(whole_flow), spans()
    still = drawn.s == drawn.t
    by_share = {share: AlphaFlow(share=share).loss(model, pair, drawn) for share in (0.01, 1e-6)}
    torch.testing.assert_close(by_share[0.01][still], by_share[1e-6][still])
    ratio = by_share[0.01][~still].mean() / by_share[1e-6][~still].mean()
    assert ratio.item() == pytest.approx(1e4, rel=0.1)


def test_end_points_are_zero_at_the_map(whole_flow, map_model):
    x0 = pairs_of(whole_flow).x0
    made, model = Pair(x0, whole_flow.map(x0, 0.0, 1.0)), map_model(whole_flow.schedule, whole_flow.average)
    assert EndPoint()(model, made, generator(0, "draws")).max() < 1e-20
    assert EndPoint()(model, pairs_of(whole_flow), generator(0, "draws")).mean() > 0.1


# pairs in place of a velocity


def significant(values, x, t):
    """How many standard errors the means of values `(B, D)`, times some functions of x and t, are from zero."""
    waves = torch.stack([torch.ones_like(x), x.flip(1).sin(), (3 * like(t, x) + x).cos()])
    products = values * waves
    return (products.mean(1).abs() / (products.std(1) / len(x) ** 0.5 + 1e-13)).max()


IN_THE_MEAN = {
    "meanflow": MeanFlow(),
    "shortcut": Shortcut(),
    "alpha-flow": AlphaFlow(share=0.3),
    "flow matching": AlphaFlow(share=1.0),
}


@pytest.mark.parametrize("objective", IN_THE_MEAN.values(), ids=IN_THE_MEAN)
def test_pairs_teach_what_their_velocity_would(objective, whole_flow, map_model):
    """In the mean, at the map: the flow is affine, and so is what is made of the velocity."""
    model, pair, drawn = map_model(whole_flow.schedule, whole_flow.average), pairs_of(whole_flow, DRAWS), spans(DRAWS)
    by_pairs = errors(objective, model, pair, drawn)
    by_teacher = errors(replace(objective, velocity=taught(whole_flow)), model, pair, drawn)
    noise, x = by_pairs - by_teacher, whole_flow.schedule.at(pair, drawn.t).x
    assert significant(noise, x, drawn.t) < 4.5
    assert noise[drawn.s == drawn.t].abs().mean() > 0.1


def test_pairs_of_a_few_points_teach_their_velocity(empirical_flow, map_model, normal):
    """The flow is not affine, and its map not known; u = v at all s is as good as another."""
    flow = empirical_flow(Linear())
    pair = Pair(normal("x0", DRAWS, 2), flow.data[torch.randint(5, (DRAWS,), generator=generator(0, "rows"))])

    def velocity(x, t, cond=None):
        ends = flow.ends(x, t)
        return ends.x1 - ends.x0

    model, drawn = map_model(flow.schedule, lambda x, t, s, cond: velocity(x, t)), spans(DRAWS)
    by_pairs = errors(MeanFlow(), model, pair, drawn)
    by_teacher = errors(MeanFlow(velocity=OfTeacher(velocity)), model, pair, drawn)
    x = flow.schedule.at(pair, drawn.t).x
    assert significant(by_pairs - by_teacher, x, drawn.t) < 4.5
    assert by_teacher[drawn.t == drawn.s].abs().max() < 1e-12


# guidance


def labelled(flow):
    """A net of two labels, of which the last is none: the first has the flow's velocity, the other another."""

    def average(x, t, s, cond):
        return torch.where(like(cond == 1, x), x.sin() + like(t, x), flow.average(x, t, s))

    return average


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_pairs_are_guided_in_the_mean(weight, whole_flow, map_model):
    """v(null) + weight (v(label) - v(null)); rows without a label learn from their pairs."""
    model, pair, t = map_model(whole_flow.schedule, labelled(whole_flow)), pairs_of(whole_flow, DRAWS), times(DRAWS)[0]
    cond, point = torch.arange(DRAWS) % 2, whole_flow.schedule.at(pair, t)
    guided = OfPairs(weight, null=1)(model, point, cond)
    v, null = whole_flow.velocity(point.x, t), point.x.sin() + like(t, point.x)
    known = null + weight * (v - null)
    rows = cond == 0
    assert significant((guided - known)[rows], point.x[rows], t[rows]) < 4.5
    assert torch.equal(guided[~rows], point.dx[~rows])
    assert torch.equal(OfPairs(weight, null=1)(model, point, None), point.dx)


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_a_guided_teacher_is_its_field(weight, whole_flow, map_model):
    average = labelled(whole_flow)

    def field(x, t, cond=None):
        return average(x, t, t, cond)

    pair, drawn = pairs_of(whole_flow)._replace(cond=torch.arange(ROWS) % 2), spans(diagonal=1.0)
    objective = MeanFlow(velocity=OfTeacher(Guided(field, 1, weight)))
    found = errors(objective, map_model(whole_flow.schedule, lambda x, *_: torch.zeros_like(x)), pair, drawn)
    x = whole_flow.schedule.at(pair, drawn.t).x
    v, null = (field(x, drawn.t, torch.full((ROWS,), label)) for label in (0, 1))
    known = torch.where(like(pair.cond == 0, x), null + weight * (v - null), null)
    torch.testing.assert_close(-found, known, rtol=1e-10, atol=1e-10)


# nets

IMAGE = (2, 8, 8)
NETS = {
    "mlp": ((3,), lambda: MLP(3, 16, 2, classes=3, two_times=True)),
    "resmlp": (IMAGE, lambda: ResMLP(IMAGE, 3, 16, 2)),
    "unet": (IMAGE, lambda: UNet(IMAGE, 3, 32, 1, (1, 2), (2,), 2)),
    "dit": (IMAGE, lambda: DiT(IMAGE, 3, 2, 16, 2, 2)),
}


@dataclass
class Case:
    model: Model
    pair: Pair
    drawn: TimePairs


@pytest.fixture(params=NETS)
def case(request, normal):
    """A net of each kind in float64, no weight of which is zero, with labelled pairs, two of them on the diagonal."""
    shape, make = NETS[request.param]
    net = make().double()
    for index, parameter in enumerate(net.parameters()):
        parameter.data += 0.1 * torch.randn(
            parameter.shape, generator=generator(0, "awake", index), dtype=torch.float64
        )
    pair = Pair(normal("x0", 6, *shape), normal("x1", 6, *shape), torch.arange(6) % 4)
    return Case(Model(net), pair, spans(6, diagonal=0.3))


def along(case, h):
    """u at points moved by h along the flow of the net's own diagonal, s staying."""
    (t, s), model = case.drawn, case.model
    x = model.schedule.at(case.pair, t).x
    v = model.velocity(x, t, case.pair.cond)
    return model.average(x + h * v, t + h, s, case.pair.cond)


@torch.no_grad()
def test_meanflow_differentiates_like_finite_differences(case, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)  # torchcfm's attention would round to it
    h, (t, s), dx = 1e-4, case.drawn, case.pair.x1 - case.pair.x0
    near, far = along(case, h) - along(case, -h), along(case, 2 * h) - along(case, -2 * h)
    change = (8 * near - far) / (12 * h)
    assert (change.flatten(1).norm(dim=1) > 1e-3).all()
    known = along(case, 0.0) - dx - like(s - t, dx) * change
    found = errors(MeanFlow(), case.model, case.pair, case.drawn)
    torch.testing.assert_close(found, known, rtol=1e-6, atol=1e-6)


OBJECTIVES = {
    "meanflow": MeanFlow(),
    "meanflow, guided": MeanFlow(velocity=OfPairs(2.0, null=3), distance=Squared()),
    "shortcut": Shortcut(distance=AdaptiveLoss(0.5)),
    "shortcut, guided": Shortcut(velocity=OfPairs(2.0, null=3)),
    "alpha-flow": AlphaFlow(share=0.25),
    "alpha-flow, guided": AlphaFlow(velocity=OfPairs(0.5, null=3), distance=PseudoHuber(1.0), share=0.5),
    "endpoint": EndPoint(PseudoHuber(1.0)),
}


@pytest.fixture(params=OBJECTIVES.values(), ids=OBJECTIVES)
def objective(request):
    return request.param


def gradient(model, losses):
    found = torch.autograd.grad(losses.mean(), list(model.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


@pytest.mark.costly
def test_what_is_learned_from_has_no_gradient(objective, case):
    """The gradient is that of the distance from a constant."""
    model, pair, (t, s) = case.model, case.pair, objective.draw(case.pair.x1.shape, generator(0, "draws"))
    now, losses = (
        model.average(model.schedule.at(pair, t).x, t, s, pair.cond),
        objective.loss(model, pair, TimePairs(t, s)),
    )
    known = objective.distance(now - (now - errors(objective, model, pair, TimePairs(t, s))).detach())
    share = torch.where(s == t, 1.0, getattr(objective, "share", 1.0))
    torch.testing.assert_close(losses, known / share, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient(model, losses), gradient(model, known / share), rtol=1e-8, atol=1e-9)


def test_a_share_of_all_times_reaches_the_data(whole_flow, map_model):
    """Within it of the data the velocity alone is learned, and farther off it is a share of the way that is left."""
    model, pair, (t, _) = map_model(whole_flow.schedule, lambda x, t, s, cond: x.sin()), pairs_of(whole_flow), times()
    to_data, near = TimePairs(t, torch.ones_like(t)), t > 0.75
    found = errors(AlphaFlow(share=0.25, absolute=True), model, pair, to_data)
    assert near.any()
    assert (~near).any()
    torch.testing.assert_close(found[near], errors(AlphaFlow(share=1.0), model, pair, to_data)[near])
    for row in (~near).nonzero().flatten()[:5]:
        one = TimePairs(t[row : row + 1], torch.ones(1, dtype=t.dtype))
        known = errors(AlphaFlow(share=(0.25 / (1 - t[row])).item()), model, pair.take(slice(row, row + 1)), one)
        torch.testing.assert_close(found[row : row + 1], known)
