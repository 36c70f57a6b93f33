"""Guidance goes from the flow of all classes through that of one and beyond, and is the same whatever is predicted."""

import math

import pytest
import torch
from torch import nn

from flowgen import predictions
from flowgen.core import InputError, Pair, like
from flowgen.guidance import AutoGuided, ClassifierGuided, Guided, Rescale
from flowgen.model import Model
from flowgen.samplers.grids import uniform
from flowgen.samplers.ode import euler, heun
from flowgen.sampling import Counted, solve
from flowgen.schedules import VE, VP, Cosine, Linear

MEANS = torch.tensor([[2.0, 0.5], [-1.5, 1.0], [0.0, -2.0]], dtype=torch.float64)
STDS = torch.tensor([0.4, 0.8, 0.6], dtype=torch.float64)
NULL = len(MEANS)


class Mixture(nn.Module):
    """The net that has learned a mixture of three Gaussians, each a class, exactly; NULL is the whole mixture."""

    def __init__(self, schedule, prediction):
        super().__init__()
        self.schedule, self.prediction = schedule, prediction
        self.weight = nn.Parameter(torch.zeros(()))

    def log_densities(self, x, t):
        """log p_t(x | class) for each class, `(B, K)`."""
        c = self.schedule.coeffs(t.unsqueeze(1))
        variance = (c.alpha * STDS) ** 2 + c.sigma**2
        square = (x.unsqueeze(1) - c.alpha.unsqueeze(2) * MEANS).square().sum(2)
        return -square / (2 * variance) - torch.log(2 * math.pi * variance)

    def ends(self, x, t, cond):
        posterior = torch.softmax(self.log_densities(x, t), dim=1)
        known = nn.functional.one_hot(cond.clamp(max=NULL - 1), NULL).double()
        weights = torch.where((cond == NULL).unsqueeze(1), posterior, known)
        c = self.schedule.coeffs(t.reshape(-1, 1, 1))
        std = STDS.reshape(1, -1, 1)
        rest = (x.unsqueeze(1) - c.alpha * MEANS) / ((c.alpha * std) ** 2 + c.sigma**2)
        ends = c.sigma * rest, MEANS + c.alpha * std**2 * rest
        return Pair(*((weights.unsqueeze(2) * end).sum(1) for end in ends))

    def forward(self, x, t, s, cond):
        c = self.schedule.coeffs(like(t, x))
        if size := predictions.size(self.schedule, self.prediction):
            x = x * size(c)
        return predictions.encode(self.ends(x, t, cond), c, self.prediction)


@pytest.fixture
def points(normal):
    """Points, times inside (0, 1), and a label of each; one of them is none."""
    t = torch.linspace(0.05, 0.95, 12, dtype=torch.float64)
    return 2 * normal("points", 12, 2), t, torch.arange(12) % (NULL + 1)


def model_of(schedule, prediction=predictions.velocity):
    return Model(Mixture(schedule, prediction), schedule, prediction)


@pytest.mark.parametrize("weight", [-0.5, 0.0, 0.5, 1.0, 2.0, 7.5])
def test_the_guided_velocity_is_the_line_through_both(schedule, points, weight):
    x, t, cond = points
    field = model_of(schedule).velocity
    without, with_label = field(x, t, torch.full_like(cond, NULL)), field(x, t, cond)
    made = Guided(field, NULL, weight)(x, t, cond)
    torch.testing.assert_close(made, without + weight * (with_label - without))
    if weight in (0, 1):
        assert torch.equal(made, with_label if weight else without)
    assert torch.equal(made[cond == NULL], without[cond == NULL])


def test_guidance_is_the_same_in_every_prediction(usable, points):
    """Predictions are converted by `targets`; guided in one, and told as another, they are what is guided there."""
    schedule, prediction = usable
    x, t, cond = points
    model = model_of(schedule, prediction)
    c = schedule.coeffs(like(t, x))
    for weight in (0.0, 2.0, 4.0):
        raw = Guided(lambda x, t, cond: model(x, t, t, cond), NULL, weight)(x, t, cond)
        for other in (predictions.velocity, predictions.score, predictions.data, predictions.noise, predictions.v):

            def field(x, t, cond, other=other):
                return predictions.convert(model(x, t, t, cond), x, schedule.coeffs(like(t, x)), prediction, other)

            there = Guided(field, NULL, weight)(x, t, cond)
            torch.testing.assert_close(predictions.convert(there, x, c, other, prediction), raw, rtol=1e-6, atol=1e-6)
        velocity = Guided(model.velocity, NULL, weight)(x, t, cond)
        torch.testing.assert_close(
            velocity, predictions.convert(raw, x, c, prediction, predictions.velocity), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("schedule", [Linear(), VP(), VE()], ids=["linear", "vp", "ve"])
@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_the_guided_score_is_that_of_the_sharpened_density(schedule, points, weight):
    """grad log of p(x) (p(x | label) / p(x))^w, by autograd from the densities."""
    x, t, cond = points
    cond, x = cond % NULL, x.clone().requires_grad_(True)
    logs = Mixture(schedule, None).log_densities(x, t)
    whole = torch.logsumexp(logs, dim=1) - math.log(NULL)
    own = logs.gather(1, cond.unsqueeze(1)).squeeze(1)
    (exact,) = torch.autograd.grad((whole + weight * (own - whole)).sum(), x)
    found = Guided(model_of(schedule).score, NULL, weight)(x.detach(), t, cond)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)


def test_more_guidance_is_more_of_the_label(normal):
    """The share of samples whose class is told from them, and their spread: up, and down."""
    model, cond = model_of(Linear()), torch.zeros(400, dtype=torch.int64)
    likely, spread = [], []
    for weight in (0.0, 1.0, 3.0):
        field = Guided(model.velocity, NULL, weight)
        x = solve(field, normal("source", 400, 2), uniform(20), heun, cond)
        logs = model.net.log_densities(x, torch.ones(400, dtype=torch.float64))
        likely.append(torch.softmax(logs, dim=1)[:, 0].mean().item())
        spread.append(x.std(0).mean().item())
    assert abs(likely[0] - 1 / 3) < 0.08
    assert likely[0] < likely[1] < likely[2]
    assert spread[0] > spread[1] > spread[2]


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.6), (0.5, 0.5), (0.0, 0.0)])
@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_outside_the_interval_stands_the_field_of_the_label(normal, interval, weight):
    """Each row has a time of its own; both ends of the interval belong to it."""
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    x, cond = normal("points", 11, 2), torch.arange(11) % NULL
    field = model_of(Linear(sigma_min=0.1)).velocity
    made = Guided(field, NULL, weight, interval)(x, t, cond)
    inside = (t >= interval[0]) & (t <= interval[1])
    torch.testing.assert_close(made[inside], Guided(field, NULL, weight)(x, t, cond)[inside])
    torch.testing.assert_close(made[~inside], field(x, t, cond)[~inside])


def counted(weight, interval=(0.0, 1.0), cond=True):
    field = Counted(model_of(Linear()).velocity)
    x = torch.ones(4, 2, dtype=torch.float64)
    labels = torch.zeros(4, dtype=torch.int64) if cond else torch.full((4,), NULL)
    solve(Guided(field, NULL, weight, interval), x, uniform(10), euler, labels)
    return field.evaluations


@pytest.mark.parametrize(
    ("weight", "interval", "evaluations"),
    [
        (0.0, (0.0, 1.0), 10),
        (1.0, (0.0, 1.0), 10),
        (2.0, (0.0, 1.0), 20),
        (-1.0, (0.0, 1.0), 20),
        (2.0, (0.25, 0.65), 14),  # at the times 0.3, 0.4, 0.5 and 0.6
        (2.0, (0.95, 1.0), 10),
    ],
)
def test_guidance_costs_two_evaluations_where_it_is_at_work(weight, interval, evaluations):
    assert counted(weight, interval) == evaluations


def test_without_labels_there_is_nothing_to_guide(recorder, normal):
    field = Counted(Model(recorder).velocity)
    Guided(field, NULL, 5.0)(normal("x", 3, 2), torch.zeros(3), None)
    assert field.evaluations == 1
    assert recorder.seen[3] is None


def test_images_are_guided_row_by_row(normal):
    x, t = normal("images", 3, 1, 4, 5), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    cond = torch.tensor([0, 1, 2])

    def field(x, t, cond):
        return x * (1.0 + like(cond, x))

    made = Guided(field, NULL, 3.0, (0.0, 0.5))(x, t, cond)
    factors = [4 + 3 * (1 - 4), 4 + 3 * (2 - 4), 3]
    torch.testing.assert_close(made, x * like(torch.tensor(factors, dtype=torch.float64), x))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_type_of_a_velocity_stays(normal, kind):
    x, t = normal("x", 3, 2).to(kind), torch.zeros(3, dtype=torch.float64 if kind == torch.float64 else torch.float32)
    made = Guided(lambda x, t, cond: x * cond.unsqueeze(1), NULL, 1.5)(x, t, torch.arange(3))
    assert made.dtype == kind


# data that are rescaled


def ends_of(schedule, points, cond=None):
    x, t, own = points
    return Mixture(schedule, None).ends(x, t, own if cond is None else cond)


@pytest.mark.parametrize("weight", [1.5, 7.0])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_data_are_rescaled_as_diffusers_does(schedule, points, weight, share):
    rescaled = pytest.importorskip("diffusers.guiders.guider_utils").rescale_noise_cfg
    x, t, cond = points
    with_label, without = ends_of(schedule, points).x1, ends_of(schedule, points, torch.full_like(cond, NULL)).x1
    data = rescaled(without + weight * (with_label - without), with_label, share)
    c = schedule.coeffs(like(t, x))
    exact = c.d_alpha * data + c.d_sigma * (x - c.alpha * data) / c.sigma
    made = Guided(model_of(schedule).velocity, NULL, weight, rescale=Rescale(schedule, share))(x, t, cond)
    torch.testing.assert_close(made, exact, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("weight", [-1.0, 0.0, 0.5, 1.0])
def test_nothing_is_rescaled_up_to_the_conditional_field(schedule, points, weight):
    field = model_of(schedule).velocity
    made = Guided(field, NULL, weight, rescale=Rescale(schedule, 0.7))(*points)
    assert torch.equal(made, Guided(field, NULL, weight)(*points))


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=str)
def test_at_the_data_end_rescaling_is_its_own_limit(schedule, normal):
    """Where sigma is 0, all data are x, and so are rescaled ones; their velocities are not."""
    x, cond = normal("x", 12, 5), torch.arange(12) % NULL

    def field(x, t, cond):
        return torch.sin(x * (1 + like(cond, x)))

    one = torch.ones(12, dtype=torch.float64)
    rescaled, bare = (Guided(field, NULL, 5.0, rescale=rescale) for rescale in (Rescale(schedule, 0.8), None))
    torch.testing.assert_close(rescaled(x, one, cond), rescaled(x, one - 1e-7, cond), rtol=1e-5, atol=1e-5)
    assert (rescaled(x, one, cond) - bare(x, one, cond)).abs().max() > 0.1


def test_rescaling_asks_for_nothing_more(points):
    field = Counted(model_of(Linear()).velocity)
    Guided(field, NULL, 3.0, rescale=Rescale(Linear(), 1.0))(*points)
    assert field.evaluations == 2


def test_rows_without_spread_and_times_outside_stay(points):
    """Of one value there is no spread; and outside the interval nothing is guided."""
    x, t, cond = points
    schedule = Linear()

    def narrow(x, t, cond):
        return x * (1.0 + like(cond, x))

    made = Guided(narrow, NULL, 3.0, rescale=Rescale(schedule, 0.9))(x[:, :1], t, cond)
    assert torch.equal(made, Guided(narrow, NULL, 3.0)(x[:, :1], t, cond))
    field, interval = model_of(schedule).velocity, (0.3, 0.6)
    part = Guided(field, NULL, 3.0, interval, Rescale(schedule, 0.9))(x, t, cond)
    inside = (t >= 0.3) & (t <= 0.6)
    torch.testing.assert_close(part[~inside], field(x, t, cond)[~inside], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        part[inside], Guided(field, NULL, 3.0, rescale=Rescale(schedule, 0.9))(x, t, cond)[inside]
    )


# classifiers


def posterior(schedule):
    """log p(class | x_t) of the mixture, by Bayes' rule from its densities."""
    logs = Mixture(schedule, None).log_densities
    return lambda x, t, cond: torch.log_softmax(logs(x, t), dim=1).gather(1, cond.unsqueeze(1)).squeeze(1)


def unlabelled(schedule):
    field = model_of(schedule).velocity
    return lambda x, t, cond: field(x, t, torch.full(x.shape[:1], NULL))


@pytest.fixture
def labelled(points):
    """The points, each with a class."""
    return points[0], points[1], points[2] % NULL


def test_an_exact_classifier_makes_the_exact_conditional_field(schedule, labelled):
    made = ClassifierGuided(unlabelled(schedule), posterior(schedule), schedule, 1.0)(*labelled)
    torch.testing.assert_close(made, model_of(schedule).velocity(*labelled), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("labels", "classifier"), [(0.0, 2.5), (1.0, 1.5), (2.0, 0.5), (4.0, -1.5)])
def test_guidance_by_labels_and_by_a_classifier_add_up(schedule, labelled, labels, classifier):
    """Of exact models both lead along the same line, and the weights count from the field without labels."""
    field = model_of(schedule).velocity
    both = ClassifierGuided(Guided(field, NULL, labels), posterior(schedule), schedule, classifier)(*labelled)
    torch.testing.assert_close(both, Guided(field, NULL, 2.5)(*labelled), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=str)
def test_where_there_is_only_noise_no_classifier_guides(schedule, labelled):
    x, _, cond = labelled
    t = torch.tensor([0.0, 0.5] * 6, dtype=torch.float64)
    field = unlabelled(schedule)
    made = ClassifierGuided(field, posterior(schedule), schedule, 3.0)(x, t, cond)
    bare = field(x, t, cond)
    assert torch.equal(made[t == 0], bare[t == 0])
    assert (made - bare)[t > 0].abs().max() > 0.1
    assert made.isfinite().all()


def test_a_classifier_guides_within_its_interval(labelled):
    x, t, cond = labelled
    field, schedule = unlabelled(VP()), VP()
    made = ClassifierGuided(field, posterior(schedule), schedule, 2.0, (0.3, 0.6))(x, t, cond)
    inside = (t >= 0.3) & (t <= 0.6)
    torch.testing.assert_close(
        made[inside], ClassifierGuided(field, posterior(schedule), schedule, 2.0)(x, t, cond)[inside]
    )
    assert torch.equal(made[~inside], field(x, t, cond)[~inside])


def test_a_classifier_of_no_weight_is_not_asked(labelled):
    def never(x, t, cond):
        raise AssertionError

    x, t, cond = labelled
    field = unlabelled(Linear())
    for weight, label, time, interval in (
        (0.0, cond, t, (0.0, 1.0)),
        (2.0, None, t, (0.0, 1.0)),
        (2.0, cond, torch.zeros_like(t), (0.0, 1.0)),
        (2.0, cond, t, (0.99, 1.0)),
    ):
        made = ClassifierGuided(field, never, Linear(), weight, interval)(x, time, label)
        assert torch.equal(made, field(x, time, label))


def test_a_classifier_guides_where_no_gradient_is_kept(labelled):
    with torch.no_grad():
        made = ClassifierGuided(unlabelled(VP()), posterior(VP()), VP(), 1.0)(*labelled)
    assert not made.requires_grad
    torch.testing.assert_close(made, model_of(VP()).velocity(*labelled), rtol=1e-9, atol=1e-9)


def test_a_float32_image_is_guided_in_its_type():
    x, t = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 0.25, 0.5])

    def log_prob(x, t, cond):
        return -(x.flatten(1).square().sum(1) / 2)

    made = ClassifierGuided(lambda x, t, cond: 0 * x, log_prob, Linear(), 2.0)(x, t, torch.zeros(3))
    assert made.dtype == torch.float32
    force = torch.tensor([0.0, 2 * 0.75 / 0.25, 2 * 0.5 / 0.5])  # weight (1 - t) / t, and none at t = 0
    torch.testing.assert_close(made, -like(force, x) * x)


# a weaker model


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 2.0])
def test_autoguidance_leads_from_weak_through_strong(points, weight):
    strong, weak = (Counted(model_of(schedule).velocity) for schedule in (Linear(), Cosine()))
    made = AutoGuided(strong, weak, weight)(*points)
    assert (strong.evaluations, weak.evaluations) == (int(weight != 0), int(weight != 1))
    torch.testing.assert_close(made, weak(*points) + weight * (strong(*points) - weak(*points)))
    assert weight != 1 or torch.equal(made, strong(*points))


def test_a_model_without_its_label_is_weak(points):
    x, t, cond = points
    field, rescale = model_of(VP()).velocity, Rescale(VP(), 0.5)
    weak = lambda x, t, cond: field(x, t, torch.full_like(cond, NULL))  # noqa: E731
    auto = AutoGuided(field, weak, 3.0, (0.2, 0.7), rescale)(x, t, cond)
    torch.testing.assert_close(auto, Guided(field, NULL, 3.0, (0.2, 0.7), rescale)(x, t, cond))


def test_outside_the_interval_the_weak_field_may_be_anything(points):
    """One that was read on another path is not known at all times of this."""
    x, t, cond = points
    field = model_of(Linear()).velocity
    weak = lambda x, t, cond: torch.where(like(t > 0.5, x), 0 * x, math.nan)  # noqa: E731
    made = AutoGuided(field, weak, 3.0, (0.5, 1.0))(x, t, cond)
    v = field(x, t, cond)
    torch.testing.assert_close(made, torch.where(like(t > 0.5, x), 3 * v, v))


@pytest.mark.parametrize("weight", [math.nan, math.inf])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.6, 0.4)])
def test_all_kinds_refuse_what_is_no_weight_and_no_interval(weight, interval):
    weight = weight if interval == (0.0, 1.0) else 2.0
    with pytest.raises(InputError, match="of guidance must be"):
        AutoGuided(None, None, weight, interval)
    with pytest.raises(InputError, match="of guidance must be"):
        ClassifierGuided(None, None, Linear(), weight, interval)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(InputError, match="share of a rescaled guidance must be from 0 to 1"):
        Rescale(Linear(), share)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_refused(weight):
    with pytest.raises(InputError, match="weight of guidance must be finite"):
        Guided(None, NULL, weight)


@pytest.mark.parametrize("interval", [(-0.1, 1), (0, 1.1), (0.6, 0.4), (math.nan, 1), (0, math.nan), (0, math.inf)])
def test_an_interval_that_is_none_is_refused(interval):
    with pytest.raises(InputError, match="interval of guidance must be within 0 and 1, and in order"):
        Guided(None, NULL, 2.0, interval)
