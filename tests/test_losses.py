"""Losses of an error: what they are in closed form, how they grow, and that their gradients are finite everywhere."""

import math

import pytest
import torch
from torch.func import grad, vmap

from flowgen.core import InputError
from flowgen.losses import AdaptiveLoss, PseudoHuber, Squared

LOSSES = {
    "squared": Squared(),
    "pseudo-huber": PseudoHuber(),
    "pseudo-huber-wide": PseudoHuber(2.0),
    "adaptive": AdaptiveLoss(),
    "adaptive-half": AdaptiveLoss(0.5, 0.1),
    "adaptive-none": AdaptiveLoss(0.0),
}
EVENTS = [(1,), (7,), (2, 3, 4)]


@pytest.fixture(params=LOSSES.values(), ids=LOSSES)
def loss(request):
    return request.param


@pytest.fixture(params=EVENTS, ids=str)
def errors(request, normal):
    """Errors of six rows, each ten times larger than the one before."""
    return normal("errors", 6, *request.param) * 10.0 ** torch.arange(-3.0, 3.0).reshape(6, *[1] * len(request.param))


# all of them


def test_each_row_has_its_own_loss(loss, errors):
    found = loss(errors)
    assert found.shape == (6,)
    torch.testing.assert_close(found, torch.cat([loss(row[None]) for row in errors]))


def test_a_loss_is_zero_without_an_error_and_grows_with_it(loss, errors):
    assert not loss(torch.zeros_like(errors)).any()
    sizes = torch.logspace(-6, 3, 100, dtype=torch.float64)  # `AdaptiveLoss` comes close to 1
    found = loss(sizes[:, None] * torch.nn.functional.normalize(errors[:1].flatten(1)))
    assert (found.diff() > 0).all()


def test_a_loss_does_not_know_the_direction_of_an_error(loss, errors):
    """Neither signs nor the places of values in the event matter, nor how the event is shaped."""
    torch.testing.assert_close(loss(-errors), loss(errors))
    torch.testing.assert_close(loss(errors.flip(1)), loss(errors))
    torch.testing.assert_close(loss(errors.flatten(1)), loss(errors))


def test_a_larger_event_of_like_errors_weighs_no_more(errors):
    """The mean over the event; |e| is the root of its sum, as in the paper, and grows with the root of the size."""
    twice = torch.cat([errors, errors], dim=1)
    for loss in (Squared(), AdaptiveLoss(), AdaptiveLoss(0.5)):
        torch.testing.assert_close(loss(twice), loss(errors))
    torch.testing.assert_close(PseudoHuber()(twice), math.sqrt(2) * PseudoHuber()(errors))


def test_gradients_are_those_of_finite_differences(loss, errors, normal):
    """But for what `AdaptiveLoss` holds constant: there the denominator is kept where it was."""
    x, way, h = errors[2:5].flatten(1), normal("way", 3, errors[0].numel()), 1e-6

    def value(e):
        held = (x.square().mean(1) + loss.c) ** loss.power if isinstance(loss, AdaptiveLoss) else 1.0
        return (Squared() if isinstance(loss, AdaptiveLoss) else loss)(e) / held

    slope = (value(x + h * way) - value(x - h * way)) / (2 * h)
    exact = vmap(grad(lambda e: loss(e[None])[0]))(x)
    torch.testing.assert_close((exact * way).sum(1), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_no_and_huge_errors_are_finite(loss, dtype):
    for size in (0.0, 1e-30, 1e-12, 1e12):
        error = torch.full((2, 3), size, dtype=dtype, requires_grad=True)
        found = loss(error)
        found.sum().backward()
        assert found.isfinite().all()
        assert error.grad.isfinite().all()
        assert size or not error.grad.any()


# each


def test_the_square_is_that_of_mse_loss(errors):
    known = torch.nn.functional.mse_loss(errors, torch.zeros_like(errors), reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(Squared()(errors), known)


def test_the_pseudo_huber_loss_of_one_value_is_that_of_scipy(normal):
    from scipy.special import pseudo_huber

    e = 3 * normal("e", 50, 1)
    for c in (0.01, 1.0, 20.0):  # scipy's is d times as large
        torch.testing.assert_close(PseudoHuber(c)(e), torch.from_numpy(pseudo_huber(c, e.squeeze(1).numpy()) / c))


@pytest.mark.parametrize("dim", [1, 9, 400])
def test_pseudo_huber_is_square_near_zero_and_linear_far(dim, normal):
    loss, e = PseudoHuber(), torch.nn.functional.normalize(normal("e", 4, dim))
    d = 0.00054 * math.sqrt(dim)
    torch.testing.assert_close(
        loss(e * d * 1e-4), torch.full((4,), d * 1e-8 / 2, dtype=torch.float64), rtol=1e-7, atol=0
    )
    torch.testing.assert_close(
        loss(e * 1e6 * d), torch.full((4,), (1e6 - 1) * d, dtype=torch.float64), rtol=1e-11, atol=0
    )


def test_pseudo_huber_keeps_small_errors_in_float32():
    """sqrt(e^2 + d^2) - d, as it is written, would be zero."""
    e = torch.full((1, 1), 1e-4)
    assert torch.sqrt(e**2 + 4) - 2 == 0
    torch.testing.assert_close(PseudoHuber(2.0)(e), torch.tensor([2.5e-9]), rtol=1e-6, atol=0)


def test_the_pseudo_huber_loss_pulls_with_at_most_one():
    e = torch.logspace(-9, 9, 60, dtype=torch.float64)[:, None].requires_grad_()
    PseudoHuber(0.3)(e).sum().backward()
    assert e.grad.max() <= 1
    assert (e.grad.diff(dim=0) > -1e-15).all()


def test_adaptive_losses_pull_by_the_power(normal):
    """|d loss / d e| goes with |e|^(1 - 2 power) of large errors: at power 1/2 all alike, at 1 like 1 / |e|."""
    for power in (0.0, 0.25, 0.5, 1.0, 1.5):
        e = normal("e", 1, 5).expand(2, 5) * torch.tensor([[1e4], [1e6]])
        e.requires_grad_()
        AdaptiveLoss(power)(e).sum().backward()
        ratio = (e.grad[1].norm() / e.grad[0].norm()).item()
        assert math.log10(ratio) / 2 == pytest.approx(1 - 2 * power, abs=1e-6)


def test_adaptive_losses_of_power_1_are_shares_of_one():
    e = torch.tensor([[1e-6], [math.sqrt(1e-3)], [0.1], [1e6]], dtype=torch.float64)
    known = torch.tensor([1e-9, 1 / 2, 10 / 11, 1.0], dtype=torch.float64)
    torch.testing.assert_close(AdaptiveLoss()(e), known, rtol=1e-8, atol=0)


@pytest.mark.parametrize("c", [0.0, -1.0, math.nan, math.inf])
def test_a_c_that_is_not_positive_is_refused(c):
    for made in (lambda: PseudoHuber(c), lambda: AdaptiveLoss(1.0, c)):
        with pytest.raises(InputError, match="positive c"):
            made()


@pytest.mark.parametrize("power", [-0.1, math.nan, math.inf])
def test_a_power_that_is_negative_is_refused(power):
    with pytest.raises(InputError, match="power >= 0"):
        AdaptiveLoss(power)
