"""Views of samples and data: rows as they are, or features of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flowgen.core import InputError
from flowgen.data import Scaling
from flowgen.extras import install, torchvision_fault
from flowgen.nn import Classifier

__all__ = ["FeatureExtractor", "check_image", "classified", "in_model_units", "inception", "principal", "rows"]


CHARTS = {False: ("w2", "sliced_w2", "coverage"), True: ("frechet", "kernel", "coverage")}
"""What a chart shows of rows, and of features."""


FEW = 500
"""Of data of no more columns, or rows, all principal components are found to take the first."""


class FeatureExtractor(NamedTuple):
    """A map of samples and data to the features that are compared.

    name: says it in words.
    features: whether it makes features, for which the distances of the image papers stand.
    apply: data units `(N, *shape)` to rows `(N, F)`, on the CPU.
    classify: data units to labels `(N,)`; None of a view that knows none.
    """

    name: str
    features: bool
    apply: Callable[[Tensor], Tensor]
    classify: Callable[[Tensor], Tensor] | None = None

    @property
    def chart(self) -> tuple[str, ...]:
        """Return the figures of its chart."""
        return CHARTS[self.features]


def in_model_units(scaling: Scaling, x: Tensor) -> Tensor:
    """Convert x in data units, on the CPU, to those of a model that may be on another device."""
    return deepcopy(scaling).cpu().in_model_units(x)


def rows(scaling: Scaling) -> FeatureExtractor:
    """Return the view of rows in the model's units: a table's columns, each over its standard deviation; toys as they
    are.
    """
    name = "columns over their standard deviations" if scaling.scale.ndim else "points as they are"
    return FeatureExtractor(name, False, lambda x: in_model_units(scaling, x).flatten(1))


def principal(scaling: Scaling, data: Tensor, components: int = 20) -> FeatureExtractor:
    """Return the view of the first principal components of the training data in the model's units, `(N,
    components)`.
    """
    from sklearn.decomposition import PCA

    inner = rows(scaling).apply
    x = inner(data).double().numpy()
    solver = "arpack" if min(x.shape) > FEW else "full"  # of many columns, all components would take hours
    fitted = PCA(min(components, *x.shape), svd_solver=solver, random_state=0).fit(x)
    share = fitted.explained_variance_ratio_.sum()
    name = f"{fitted.n_components_} principal components, {share:.1%} of the variance"
    return FeatureExtractor(name, True, lambda x: torch.from_numpy(fitted.transform(inner(x).double().numpy())))


def classified(scaling: Scaling, net: Classifier, accuracy: float) -> FeatureExtractor:
    """Return the view of the last hidden layer of a classifier in the model's units."""

    @torch.no_grad()
    def apply(x: Tensor) -> Tensor:
        return torch.cat([net.features(part) for part in in_model_units(scaling, x).split(4096)])

    name = f"features of a classifier that labels {accuracy:.1%} of the held-out rows right"
    return FeatureExtractor(name, True, apply, lambda x: labels_by(scaling, net, x))


@torch.no_grad()
def labels_by(scaling: Scaling, net: Classifier, x: Tensor) -> Tensor:
    """Return the labels `(N,)` that a classifier in the model's units gives to rows in data units."""
    return torch.cat([net(part).argmax(1) for part in in_model_units(scaling, x).split(4096)])


def check_image(shape: tuple[int, ...]) -> None:
    """Refuse events that are not images of 1 or 3 channels.

    Raises:
        InputError: unless events are images of 1 or 3 channels.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(f"Inception looks at images of 1 or 3 channels, not at rows of shape {shape}")


def inception(scaling: Scaling, weights: Path | None) -> FeatureExtractor:
    """Return the view of the 2048 features of torch-fidelity's Inception, for images `(N, 1 or 3, H, W)`.

    Args:
        scaling: takes data to [-1, 1], black to white.
        weights: torch-fidelity's file of weights; None to fetch it.

    Raises:
        InputError: if torch-fidelity is not installed or cannot be imported, or the file is not one of weights.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except ModuleNotFoundError as error:
        raise InputError(f"features of Inception need torch-fidelity: {install('fid')} ({error})") from error
    except (ImportError, RuntimeError) as error:  # of torchvision, which torch-fidelity imports
        raise InputError(f"torch-fidelity cannot be imported: {torchvision_fault() or error}") from error
    try:
        if weights is None:
            state = torch.hub.load_state_dict_from_url(URL_INCEPTION_V3, check_hash=True, weights_only=True)
        else:
            state = torch.load(weights, weights_only=True)
    except Exception as error:  # no network, no file, not weights: each has a type of its own
        raise InputError(f"cannot read the weights of Inception: {str(error).splitlines()[0]}") from error
    with tempfile.TemporaryDirectory() as folder:  # torch-fidelity unpickles its file: it gets one that we wrote
        safe = Path(folder) / "weights.pth"
        torch.save(state, safe)
        net = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(safe))

    @torch.no_grad()
    def apply(x: Tensor) -> Tensor:
        check_image(tuple(x.shape[1:]))
        pixels = (deepcopy(scaling).cpu().pixels(x) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
        return torch.cat([net(part)[0] for part in pixels.split(64)])

    return FeatureExtractor("2048 features of Inception", True, apply)
