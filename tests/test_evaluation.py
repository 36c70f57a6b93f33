"""A model that is the truth measures as the truth, and no measurement sees what training saw."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from flowgen import VE, InputError, Model, checkpoints, evaluation
from flowgen.core import generator
from flowgen.data import Gaussian, Scaling, TensorDataset, eight_gaussians
from flowgen.evaluation import Estimate, EvaluatedModel, Reference, Settings, views
from flowgen.evaluation.measure import estimate
from flowgen.samplers import ode

SMALL = Settings(steps=(1, 3), num=400, repeats=3)


class Still(nn.Module):
    """A flow that leaves every point where it is, or moves all by the same."""

    def __init__(self, by=(0.0, 0.0)):
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, x, t, s=None, cond=None):
        return self.by.expand_as(x)


def subject(by=(0.0, 0.0), distribution=None, view=None, trained_on=None):
    distribution = distribution or Gaussian()
    return EvaluatedModel(
        "still",
        Model(Still(by)).requires_grad_(False),
        Reference("noise", Gaussian(), sets=1),
        Reference("a law", distribution),
        view or views.rows(Scaling()),
        trained_on,
    )


# estimates


def test_the_interval_is_students():
    values = [0.3, 0.5, 0.1, 0.9]
    found = estimate(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.mean - found.ci95, found.mean + found.ci95) == pytest.approx((low, high), rel=1e-9)


@pytest.mark.costly
def test_intervals_hold_the_truth_nineteen_times_of_twenty(normal):
    found = [estimate(values) for values in normal("values", 4000, 5).tolist()]
    assert sum(abs(e.mean) < e.ci95 for e in found) / 4000 == pytest.approx(0.95, abs=0.015)


def test_what_is_not_finite_has_no_interval():
    assert math.isnan(estimate([1.0, math.nan, 2.0]).mean)
    assert all(map(math.isnan, estimate([math.inf, -math.inf])))


def test_one_repeat_has_no_interval():
    assert estimate([2.0]).mean == 2.0
    assert math.isnan(estimate([2.0]).ci95)


# measurements of models that are known


@pytest.mark.costly
def test_the_truth_measures_as_the_truth():
    """Samples of the law itself are at the floor in every figure, with any number of steps."""
    measured = subject()
    settings = SMALL._replace(num=500, repeats=8)
    floor = evaluation.real_vs_real(measured, settings)
    for quality in evaluation.quality(measured, settings):
        assert quality.figures["endpoint_error"].mean == pytest.approx(0, abs=1e-6)
        for name, expected in floor.items():
            found = quality.figures[name]
            assert abs(found.mean - expected.mean) < 2 * (found.ci95 + expected.ci95) + 1e-9, name


@pytest.mark.costly
def test_a_moved_law_is_as_far_as_it_was_moved():
    measured = subject(distribution=Gaussian(), by=(3.0, -4.0))
    (quality,) = evaluation.quality(measured, SMALL._replace(steps=(2,), num=1000))
    assert quality.figures["w2"].mean == pytest.approx(5, rel=0.03)
    assert quality.figures["sliced_w2"].mean == pytest.approx(5 / math.sqrt(2), rel=0.06)
    assert quality.figures["coverage"].mean < 0.1


@pytest.mark.costly
def test_geometry_of_a_translation():
    """The flow of optimal transport to a moved law has its energy, no turn, and no excess."""

    class Moved:
        shape = (2,)

        def sample(self, n, generator):
            return Gaussian().sample(n, generator) + torch.tensor([3.0, -4.0])

    found = evaluation.geometry(subject(by=(3.0, -4.0), distribution=Moved()), SMALL._replace(num=1000))
    assert found["path_energy"].mean == pytest.approx(25, rel=1e-5)
    assert found["straightness"].mean == pytest.approx(0, abs=1e-4)
    assert found["curvature"].mean == pytest.approx(0, abs=1e-5)
    assert found["transport_cost"].mean == pytest.approx(25, rel=0.05)
    assert found["normalised_path_energy"].mean < 2 * found["normalised_path_energy"].ci95 + 0.01


def test_a_path_energy_is_not_normalised_by_noise(normal):
    """Where two true sets are as far apart as source and data, their distance says nothing of the laws."""
    assert "normalised_path_energy" not in evaluation.geometry(subject(), SMALL)


def test_the_divergence_of_the_truth_from_itself_is_zero():
    assert evaluation.kl_divergence(subject(), SMALL).mean == pytest.approx(0, abs=1e-5)


@pytest.mark.costly
def test_the_divergence_of_gaussians_is_half_their_square():
    found = evaluation.kl_divergence(subject(by=(0.6, 0.8)), SMALL._replace(num=1000, repeats=8))
    assert abs(found.mean - 0.5) < 2 * found.ci95
    assert found.ci95 < 0.05


def test_a_path_that_starts_elsewhere_is_measured_from_there():
    """VE starts at 50 times the source: W2^2 from there is E(|x| - |y|)^2, up to the corners of the eight."""
    still = subject(distribution=eight_gaussians())
    wide = still._replace(model=Model(Still(), VE()).requires_grad_(False))
    found = evaluation.geometry(wide, SMALL)
    radii = 2 * 50**2 + (25 + 2) - 2 * (50 * math.sqrt(math.pi / 2)) * 5.1
    assert found["transport_cost"].mean == pytest.approx(radii, rel=0.1)
    assert evaluation.geometry(still, SMALL)["transport_cost"].mean < 30


@pytest.mark.costly
def test_trajectories_are_followed_in_chunks(monkeypatch):
    turning = subject(distribution=eight_gaussians(), by=(1.0, 2.0))
    before = evaluation.geometry(turning, SMALL), [q.figures for q in evaluation.quality(turning, SMALL)]
    monkeypatch.setattr("flowgen.sampling.chunk_rows", lambda shape: 64)
    after = evaluation.geometry(turning, SMALL), [q.figures for q in evaluation.quality(turning, SMALL)]
    for name, value in before[0].items():
        assert after[0][name] == pytest.approx(value, rel=1e-6, abs=1e-6)
    assert after[1] == before[1]


def test_no_divergence_without_a_density():
    assert evaluation.kl_divergence(subject(distribution=TensorDataset(torch.randn(50, 2))), SMALL) is None


@pytest.mark.parametrize(("name", "each"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_evaluations_are_those_of_the_solver(name, each):
    settings = SMALL._replace(solver=getattr(ode, name), steps=(1, 5), num=100, repeats=2)
    assert [q.nfe for q in evaluation.quality(subject(), settings)] == [each, 5 * each]


@pytest.mark.costly
def test_a_measurement_is_a_function_of_its_seed(global_state_untouched):
    def measure(seed):
        settings = SMALL._replace(seed=seed)
        return [q.figures for q in evaluation.quality(subject(distribution=eight_gaussians()), settings)]

    assert measure(1) == measure(1)
    assert measure(1) != measure(2)


@pytest.mark.costly
def test_the_same_starts_are_walked_at_all_steps():
    """A flow that is the same at any number of steps has the same figures at all of them."""
    first, second = evaluation.quality(subject(distribution=eight_gaussians()), SMALL)
    assert {k: x.mean for k, x in first.figures.items()} == pytest.approx(
        {k: x.mean for k, x in second.figures.items()}, abs=1e-5
    )


@pytest.mark.costly
def test_a_model_that_repeats_its_data_is_found_out():
    kept = Gaussian().sample(200, generator(0, "kept"))

    class Copying(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(()))

        def forward(self, x, t, s=None, cond=None):
            return kept[torch.cdist(x, kept).argmin(1)] - x  # in one step: the nearest row that it was trained on

    copying = subject(trained_on=kept)._replace(model=Model(Copying()).requires_grad_(False))
    (quality,) = evaluation.quality(copying, SMALL._replace(steps=(1,)))
    assert quality.figures["copies"].mean == 1
    assert evaluation.real_vs_real(copying, SMALL)["copies"].mean < 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num": 0}, "num must be at least 1"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"steps": (0, 2)}, "steps must be at least 1"),
        ({"steps": ()}, "steps must be at least 1"),
        ({"neighbours": 0}, "neighbours must be at least 1"),
        ({"num": 5}, "5 neighbours need sets of more rows"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        evaluation.real_vs_real(subject(), SMALL._replace(**change))


# the report


def test_a_measurement_says_what_was_compared_and_how(table, tmp_path, trained):
    run = trained(table, tmp_path / "run")
    measured = evaluation.load_subject(run.folder)
    settings = Settings(steps=(1,), num=1000, repeats=1, neighbours=3)
    quality = list(evaluation.quality(measured, settings))
    floor, geometry = evaluation.real_vs_real(measured, settings), evaluation.geometry(measured, settings)
    plain = evaluation.Evaluation(measured, settings, floor, quality, geometry, None).plain()
    assert plain["reference"] == "the 30 held-out rows of t.npz, which training did not see"
    assert (plain["reference_rows"], plain["rows_per_set"], plain["w2_rows"], plain["seed"]) == (30, 15, 15, 0)
    assert plain["quality"][0]["w2"] == {"mean": quality[0].figures["w2"].mean, "ci95": None}
    assert plain["floor"].keys() | {"endpoint_error"} == quality[0].figures.keys()
    assert plain["kl"] is None
    assert plain["solver"] == "euler"
    assert plain["split"] == {"held_out": 0.1, "seed": 0, "stratify": False}
    assert plain["weights_hash"] == checkpoints.file_hash(run.weights)
    assert plain["data_hash"] == checkpoints.file_hash(table)
    bad = evaluation.Evaluation(measured, settings, floor, quality, {"x": Estimate(math.nan, math.inf)}, None)
    assert bad.plain()["geometry"] == {"x": {"mean": None, "ci95": None}}


# copies


def test_likely_copies_are_shown_with_what_they_copy(normal):
    """Noise that stays where it is, beside training images of which one is such a sample, and one nearly."""
    noise = Reference("noise", Gaussian((1, 4, 4)), sets=1)
    settings = Settings(steps=(1,), num=50, repeats=2)
    (drawn,) = noise.draw(50, settings.seed, 0)
    others = normal("images", 30, 1, 4, 4).float()
    seen = TensorDataset(torch.cat([others[:10], drawn[7:8], others[10:], drawn[20:21] + 0.1]).clamp(-9, 9))
    view = views.rows(Scaling())
    made = subject(distribution=Gaussian((1, 4, 4)), view=view, trained_on=view.apply(seen.values))
    found = evaluation.suspects(made._replace(model=Model(Still(0.0)), source=noise, seen=seen), settings)
    assert found.ratios[0] == 0
    assert 0 < found.ratios[1] < found.ratios[2]
    assert (found.ratios.diff() >= 0).all()
    pixels = Scaling().pixels
    assert torch.equal(found.samples[:2], pixels(drawn[[7, 20]]))
    assert torch.equal(found.images[:2], pixels(seen.values[[10, 31]]))
    assert len(found.samples) == len(found.images) == len(found.ratios) == 12


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
def test_without_images_in_memory_no_copies_are_shown(shape):
    made = subject(distribution=Gaussian(shape))._replace(source=Reference("noise", Gaussian(shape), sets=1))
    assert evaluation.suspects(made, SMALL) is None
    rows = TensorDataset(torch.randn(5, *shape, generator=generator(0, "rows")))
    if shape == (2,):
        assert evaluation.suspects(made._replace(seen=rows, trained_on=rows.values), SMALL) is None
