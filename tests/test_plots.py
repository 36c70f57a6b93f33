"""Axes of pictures: what is drawn on which scale."""

import pytest

from flowgen import plots


@pytest.fixture
def drawn(monkeypatch):
    """The figures in place of their files."""
    figures = []
    monkeypatch.setattr(plots, "write", lambda path, made: figures.append(made))
    return figures


def test_shares_are_drawn_from_0_to_1_others_by_logarithm(drawn):
    curves = {"run": plots.Curve([1, 2], [0.5, 0.2], [0.1, 0.1], 0.1)}
    plots.quality("quality.png", {"recall": curves, "distance": curves}, shares=["recall"])
    share, distance = drawn[0].axes
    assert (share.get_yscale(), distance.get_yscale()) == ("linear", "log")
    assert share.get_ylim() == pytest.approx((0, 1), abs=0.1)
