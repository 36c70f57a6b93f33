"""What is compared: rows, principal components, and features of classifiers and of Inception."""

import json
import sys
import types

import numpy as np
import pytest
import torch

from flowgen import InputError, checkpoints, evaluation, metrics
from flowgen.data import Scaling
from flowgen.evaluation import views
from flowgen.nn import Classifier, fit_classifier

pytestmark = [pytest.mark.journey, pytest.mark.usefixtures("few_measured")]


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


@pytest.mark.parametrize("shape", [(6,), (1, 8, 8), (3, 9, 7)])
def test_features_of_a_classifier_tell_classes_apart(shape, normal, global_state_untouched):
    labels = torch.arange(300) % 3
    centres = normal("centres", 3, *shape).float()
    x = centres[labels] + 0.5 * normal("noise", 300, *shape).float()
    nets = [Classifier(shape, 3, width=16, seed=1) for _ in range(2)]
    for net in nets:
        fit_classifier(net, x[:200], labels[:200], steps=60, seed=2)
    assert (nets[0](x[200:]).argmax(1) == labels[200:]).float().mean() > 0.9
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    view = views.classified(Scaling(), nets[0].requires_grad_(False), 1.0)
    same, apart = x[labels == 0], x[labels == 1]
    far = metrics.frechet_distance(view.apply(same[:50]), view.apply(apart[:50]))
    assert far > 5 * metrics.frechet_distance(view.apply(same[:50]), view.apply(same[50:]))


def test_a_classifier_is_kept_beside_the_run(table, tmp_path, trained, monkeypatch):
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


@pytest.mark.parametrize("damage", ["garbage", "of another", "of other data"])
def test_a_classifier_that_is_not_of_the_run_is_trained_anew(table, tmp_path, trained, damage):
    run = trained(table, tmp_path / "run")
    path, x = run.folder / "classifier.safetensors", torch.from_numpy(np.load(table)["x"])
    first = evaluation.load_subject(run.folder, features="classifier").view
    tensors, metadata = checkpoints.read_tensors(path)
    if damage == "garbage":
        path.write_bytes(b"garbage")
    elif damage == "of another":
        checkpoints.write_tensors(path, {"x": torch.zeros(1)}, metadata)
    else:
        other = {key: x + 1 for key, x in tensors.items()}
        checkpoints.write_tensors(path, other, {"flowgen": json.dumps({"of": {"data_hash": "0"}, "accuracy": 1.0})})
    again = evaluation.load_subject(run.folder, features="classifier").view
    assert torch.equal(first.apply(x), again.apply(x))


def test_a_classifier_needs_two_classes(table, tmp_path, trained):
    np.savez(tmp_path / "one.npz", x=np.load(table)["x"], y=np.full(300, 7))
    run = trained(tmp_path / "one.npz", tmp_path / "run")
    with pytest.raises(InputError, match="two classes"):
        evaluation.load_subject(run.folder, features="classifier")


def test_a_classifier_needs_labels(tmp_path, table, trained):
    np.savez(tmp_path / "bare.npz", x=np.load(table)["x"])
    run = trained(tmp_path / "bare.npz", tmp_path / "run")
    with pytest.raises(InputError, match="labels"):
        evaluation.load_subject(run.folder, features="classifier")


def test_inception_without_torch_fidelity_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(InputError, match=r"pip install 'flowgen-torch\[fid\]'"):
        views.inception(Scaling(), None)


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
    apply = views.inception(Scaling.of_range(0, 1), tmp_path / "w.pth").apply
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
        views.inception(Scaling(), tmp_path / "w.pth")
    with pytest.raises(InputError, match="cannot read the weights"):
        views.inception(Scaling(), tmp_path / "missing.pth")


def test_components_are_those_of_a_full_decomposition(normal, monkeypatch):
    x = normal("wide", 60, 50).float() * torch.linspace(3, 0.1, 50)
    full = views.principal(Scaling(), x, 5)
    monkeypatch.setattr(views, "FEW", 10)
    some = views.principal(Scaling(), x, 5)
    assert some.name == full.name
    torch.testing.assert_close(some.apply(x).abs(), full.apply(x).abs(), rtol=1e-6, atol=1e-6)
