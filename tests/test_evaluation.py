"""A model that is the truth measures as the truth, and no measurement sees what training saw."""

import math
import sys
import types

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from flowgen import InputError, Model, evaluation, metrics, runs, solvers
from flowgen.config import SplitConfig, load_data, make_config
from flowgen.core import generator
from flowgen.data import Gaussian, Rows, Scaling, eight_gaussians, split
from flowgen.evaluation import Reference, Settings, Subject, views
from flowgen.evaluation.measure import estimate
from flowgen.nn import Classifier, fit_classifier
from flowgen.runs import Run

SMALL = Settings(steps=(1, 3), num=400, repeats=3)


class Still(nn.Module):
    """A flow that leaves every point where it is, or moves all by the same."""

    def __init__(self, by=(0.0, 0.0)):
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, x, t, s=None, cond=None):
        return self.by.expand_as(x)


def subject(by=(0.0, 0.0), law=None, view=None, trained_on=None):
    law = law or Gaussian()
    return Subject(
        "still",
        Model(Still(by)).requires_grad_(False),
        Gaussian(),
        Reference("a law", law),
        view or views.rows(Scaling()),
        trained_on,
    )


# the split


@pytest.mark.parametrize("rows", [1, 2, 9, 10, 1000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_every_row_is_either_trained_on_or_held_out(rows, share):
    seen, unseen = split(rows, share, seed=3)
    assert sorted([*seen.tolist(), *unseen.tolist()]) == list(range(rows))
    assert len(unseen) == math.floor(share * rows)
    again = split(rows, share, seed=3)
    assert torch.equal(seen, again[0])
    assert torch.equal(unseen, again[1])


def test_held_out_rows_are_a_fair_draw():
    counts = torch.zeros(20)
    for seed in range(2000):
        counts[split(20, 0.25, seed)[1]] += 1
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(InputError, match="share"):
        split(10, share, 0)


@pytest.fixture
def table(tmp_path, normal):
    """A table of three columns with labels, and a quick experiment on it."""
    x, y = normal("table", 300, 3).float().numpy(), np.arange(300) % 2
    x[y == 1] += 4
    np.savez(tmp_path / "t.npz", x=x, y=y)
    return tmp_path / "t.npz"


def trained(path, folder, steps=30, **tree):
    small = {"net": {"width": 16, "depth": 2}, "train": {"steps": steps, "batch_size": 32}, "pool": {"batches": 2}}
    run = Run.create(folder, make_config({"data": str(path), **small, **tree}), "flowgen train", overwrite=True)
    for _ in runs.train(run):
        pass
    return run


def weights(run):
    return runs.load(run.folder).model.state_dict()


def changed(path, which):
    """Adds 100 to the rows `which` of a table."""
    kept = dict(np.load(path))
    kept["x"][which.numpy()] += 100
    np.savez(path, **kept)


def test_training_does_not_see_held_out_rows(table, tmp_path):
    """Their values are nothing to the weights, nor to the scaling."""
    before = weights(trained(table, tmp_path / "run"))
    seen, unseen = split(300, 0.1, 0)
    changed(table, unseen)
    after = weights(trained(table, tmp_path / "run"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    changed(table, seen[:1])
    other = weights(trained(table, tmp_path / "run"))
    assert not all(torch.equal(before[name], other[name]) for name in before)


def test_evaluation_does_not_see_training_rows(table, tmp_path):
    """Their values are nothing to any figure but the share of copies, which is there to compare with them."""
    run = trained(table, tmp_path / "run")
    seen, unseen = split(300, 0.1, 0)
    settings = Settings(steps=(2,), num=15, repeats=2, neighbours=3)

    def figures():
        measured = evaluation.load_subject(run.folder)
        (quality,) = evaluation.quality(measured, settings)
        floor, geometry = evaluation.floor(measured, settings), evaluation.geometry(measured, settings)
        return [{key: x for key, x in part.items() if key != "copies"} for part in (quality.figures, floor, geometry)]

    before = figures()
    changed(table, seen)
    assert figures() == before
    changed(table, unseen)
    assert figures() != before


def test_a_source_table_is_held_out_too(table, tmp_path):
    run = trained(table, tmp_path / "run", source=str(table))
    measured = evaluation.load_subject(run.folder)
    unseen = {tuple(row) for row in load_data(str(table), SplitConfig()).held_out.x.tolist()}
    starts = measured.model.scaling.undo(measured.source.sample(200, generator(0, "x")))
    near = torch.cdist(starts.double(), torch.tensor(sorted(unseen), dtype=torch.float64)).amin(1)
    assert near.max() < 1e-5


def test_the_split_has_a_seed_of_its_own_which_a_reflow_keeps(table, tmp_path):
    run = trained(table, tmp_path / "run", seed=5, split={"seed": 9, "held_out": 0.3})
    again = runs.reflow_config(run.folder, {"pairs": 10}, seed=6)
    assert again.split == run.config.split == SplitConfig(held_out=0.3, seed=9)
    assert len(load_data(str(table), again.split).held_out.x) == 90


def test_a_table_without_held_out_rows_says_so(table, tmp_path):
    run = trained(table, tmp_path / "run", split={"held_out": 0})
    with pytest.raises(InputError, match="was held out"):
        evaluation.load_subject(run.folder)
    assert evaluation.load_subject(run.folder, against=str(table)).reference.size(10_000) == 150


def test_two_sets_have_no_row_in_common():
    rows = torch.arange(101.0).unsqueeze(1)
    reference = Reference("rows", Rows(rows))
    draws = [reference.draw(1000, 0, index) for index in range(20)]
    for first, second in draws:
        assert len(first) == len(second) == 50
        assert not set(first.flatten().tolist()) & set(second.flatten().tolist())
    assert len({tuple(first.flatten().tolist()) for first, _ in draws}) == 20
    again = reference.draw(1000, 0, 7)
    assert torch.equal(again.first, draws[7].first)
    assert torch.equal(again.second, draws[7].second)


# estimates


def test_the_interval_is_students():
    values = [0.3, 0.5, 0.1, 0.9]
    found = estimate(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.mean - found.ci95, found.mean + found.ci95) == pytest.approx((low, high), rel=1e-9)


def test_intervals_hold_the_truth_nineteen_times_of_twenty(normal):
    found = [estimate(values) for values in normal("values", 4000, 5).tolist()]
    assert sum(abs(e.mean) < e.ci95 for e in found) / 4000 == pytest.approx(0.95, abs=0.015)


def test_one_repeat_has_no_interval():
    assert estimate([2.0]).mean == 2.0
    assert math.isnan(estimate([2.0]).ci95)


# measurements of models that are known


def test_the_truth_measures_as_the_truth():
    """Samples of the law itself are at the floor in every figure, with any number of steps."""
    measured = subject()
    settings = SMALL._replace(num=500, repeats=8)
    floor = evaluation.floor(measured, settings)
    for quality in evaluation.quality(measured, settings):
        assert quality.figures["endpoint_error"].mean == pytest.approx(0, abs=1e-6)
        for name, expected in floor.items():
            found = quality.figures[name]
            assert abs(found.mean - expected.mean) < 2 * (found.ci95 + expected.ci95) + 1e-9, name


def test_a_moved_law_is_as_far_as_it_was_moved():
    measured = subject(law=Gaussian(), by=(3.0, -4.0))
    (quality,) = evaluation.quality(measured, SMALL._replace(steps=(2,), num=1000))
    assert quality.figures["w2"].mean == pytest.approx(5, rel=0.03)
    assert quality.figures["sliced_w2"].mean == pytest.approx(5 / math.sqrt(2), rel=0.06)
    assert quality.figures["coverage"].mean < 0.1


def test_geometry_of_a_translation():
    """The flow of optimal transport to a moved law has its energy, no turn, and no excess."""

    class Moved:
        event = (2,)

        def sample(self, n, generator):
            return Gaussian().sample(n, generator) + torch.tensor([3.0, -4.0])

    found = evaluation.geometry(subject(by=(3.0, -4.0), law=Moved()), SMALL._replace(num=1000))
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


def test_the_divergence_between_gaussians_is_half_the_square_of_their_distance():
    found = evaluation.kl_divergence(subject(by=(0.6, 0.8)), SMALL._replace(num=1000, repeats=8))
    assert abs(found.mean - 0.5) < 2 * found.ci95
    assert found.ci95 < 0.05


def test_no_divergence_without_a_density():
    assert evaluation.kl_divergence(subject(law=Rows(torch.randn(50, 2))), SMALL) is None


@pytest.mark.parametrize(("name", "each"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_evaluations_are_those_of_the_solver(name, each):
    settings = SMALL._replace(solver=getattr(solvers, name), steps=(1, 5), num=100, repeats=2)
    assert [q.nfe for q in evaluation.quality(subject(), settings)] == [each, 5 * each]


def test_a_measurement_is_a_function_of_its_seed(global_state_untouched):
    def measure(seed):
        settings = SMALL._replace(seed=seed)
        return [q.figures for q in evaluation.quality(subject(law=eight_gaussians()), settings)]

    assert measure(1) == measure(1)
    assert measure(1) != measure(2)


def test_the_same_starts_are_walked_at_all_steps():
    """A flow that is the same at any number of steps has the same figures at all of them."""
    first, second = evaluation.quality(subject(law=eight_gaussians()), SMALL)
    assert {k: x.mean for k, x in first.figures.items()} == pytest.approx(
        {k: x.mean for k, x in second.figures.items()}, abs=1e-5
    )


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
    assert evaluation.floor(copying, SMALL)["copies"].mean < 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num": 0}, "--num must be at least 1"),
        ({"repeats": 0}, "--repeats must be at least 1"),
        ({"steps": (0, 2)}, "--steps must be at least 1"),
        ({"steps": ()}, "--steps must be at least 1"),
        ({"neighbours": 0}, "--neighbours must be at least 1"),
        ({"num": 5}, "5 neighbours need sets of more rows"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        SMALL._replace(**change).check(Reference("a law", Gaussian()))


# views


def test_rows_are_compared_in_the_units_of_the_model(normal):
    x = normal("x", 50, 3).float() * torch.tensor([1.0, 100.0, 0.01]) + 7
    view = views.rows(Scaling.standardising(x))
    seen = view.apply(x)
    torch.testing.assert_close(seen.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_all_principal_components_are_a_rotation(normal):
    """They keep every distance; a few of them keep the most that so many can."""
    x = normal("x", 200, 5).float() @ torch.diag(torch.tensor([5.0, 3.0, 1.0, 0.3, 0.1]))
    whole, few = views.principal(Scaling(), x, 9).apply(x), views.principal(Scaling(), x, 2).apply(x)
    torch.testing.assert_close(torch.cdist(whole, whole), torch.cdist(x.double(), x.double()), atol=1e-5, rtol=0)
    kept = torch.linalg.eigvalsh(torch.cov(x.double().T)).flip(0)[:2]
    torch.testing.assert_close(few.var(0), kept, rtol=1e-5, atol=0)


def test_images_are_compared_by_principal_components(normal):
    x = normal("images", 40, 1, 4, 4).float()
    view = views.principal(Scaling(), x, 6)
    assert view.apply(x).shape == (40, 6)
    assert metrics.frechet_distance(view.apply(x), view.apply(x.flip(0))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("event", [(6,), (1, 8, 8), (3, 9, 7)])
def test_a_classifier_learns_and_its_features_tell_classes_apart(event, normal, global_state_untouched):
    labels = torch.arange(300) % 3
    centres = normal("centres", 3, *event).float()
    x = centres[labels] + 0.5 * normal("noise", 300, *event).float()
    nets = [Classifier(event, 3, width=16, seed=1) for _ in range(2)]
    for net in nets:
        fit_classifier(net, x[:200], labels[:200], steps=150, seed=2)
    assert (nets[0](x[200:]).argmax(1) == labels[200:]).float().mean() > 0.9
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    view = views.classified(Scaling(), nets[0].requires_grad_(False), 1.0)
    same, apart = x[labels == 0], x[labels == 1]
    far = metrics.frechet_distance(view.apply(same[:50]), view.apply(apart[:50]))
    assert far > 5 * metrics.frechet_distance(view.apply(same[:50]), view.apply(same[50:]))


def test_a_classifier_is_kept_beside_the_run(table, tmp_path, monkeypatch):
    run = trained(table, tmp_path / "run")
    x = torch.from_numpy(np.load(table)["x"])
    first = evaluation.load_subject(run.folder, features="classifier").view
    assert "labels 100.0%" in first.name
    kept = (run.folder / "classifier.safetensors").read_bytes()
    monkeypatch.setattr("flowgen.evaluation.subject.fit_classifier", None)  # it is not trained again
    second = evaluation.load_subject(run.folder, features="classifier").view
    assert second.name == first.name
    assert torch.equal(first.apply(x), second.apply(x))
    assert (run.folder / "classifier.safetensors").read_bytes() == kept


def test_a_classifier_needs_labels(tmp_path, table):
    np.savez(tmp_path / "bare.npz", x=np.load(table)["x"])
    run = trained(tmp_path / "bare.npz", tmp_path / "run")
    with pytest.raises(InputError, match="labels"):
        evaluation.load_subject(run.folder, features="classifier")


def test_inception_without_torch_fidelity_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(InputError, match=r"pip install 'flowgen\[fid\]'"):
        views.inception(None)


@pytest.fixture
def fidelity(monkeypatch):
    """A stand-in for torch-fidelity, whose features are the mean of each channel."""

    class Extractor:
        def __init__(self, name, features_list, feature_extractor_weights_path):
            assert features_list == ["2048"]
            self.scale = torch.load(feature_extractor_weights_path, weights_only=False)["scale"]

        def __call__(self, x):
            assert x.dtype == torch.uint8
            return (x.double().mean((2, 3)) * self.scale,)

    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3, module.URL_INCEPTION_V3 = Extractor, "https://example.invalid/weights.pth"
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)


def test_inception_sees_bytes_of_three_channels(fidelity, tmp_path):
    torch.save({"scale": torch.tensor(2.0)}, tmp_path / "w.pth")
    apply = views.inception(tmp_path / "w.pth").apply
    grey = torch.tensor([0.0, 0.5, 1.0, 1.7]).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    assert apply(grey).tolist() == [[2.0 * byte] * 3 for byte in (0, 128, 255, 255)]
    assert apply(torch.ones(130, 3, 2, 2)).shape == (130, 3)
    with pytest.raises(InputError, match="1 or 3 channels"):
        apply(torch.zeros(5, 2))


class Payload:
    def __reduce__(self):
        return (sys.exit, ("a pickle ran",))


def test_weights_that_would_run_code_are_refused(fidelity, tmp_path):
    torch.save({"scale": Payload()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="cannot read the weights"):
        views.inception(tmp_path / "w.pth")
    with pytest.raises(InputError, match="cannot read the weights"):
        views.inception(tmp_path / "missing.pth")


# the report


def test_a_measurement_says_what_was_compared_and_how(table, tmp_path):
    run = trained(table, tmp_path / "run")
    measured = evaluation.load_subject(run.folder)
    settings = Settings(steps=(1,), num=1000, repeats=1, neighbours=3)
    quality = list(evaluation.quality(measured, settings))
    floor, geometry = evaluation.floor(measured, settings), evaluation.geometry(measured, settings)
    plain = evaluation.Evaluation(measured, settings, floor, quality, geometry, None).plain()
    assert plain["reference"] == "the 30 held-out rows of t.npz, which training did not see"
    assert (plain["reference_rows"], plain["rows_per_set"], plain["w2_rows"], plain["seed"]) == (30, 15, 15, 0)
    assert plain["quality"][0]["w2"] == {"mean": quality[0].figures["w2"].mean, "ci95": None}
    assert plain["floor"].keys() | {"endpoint_error"} == quality[0].figures.keys()
    assert plain["kl"] is None
