"""Pairs, generators and times."""

import pytest
import torch

from flowgen.core import Pair, expand_time, generator, like


def test_a_draw_is_a_function_of_seed_stream_and_index():
    def draw(*key):
        return torch.rand(8, generator=generator(*key))

    assert torch.equal(draw(3, "a", 5), draw(3, "a", 5))
    others = [draw(4, "a", 5), draw(3, "b", 5), draw(3, "a", 6), draw(5, "a", 3), draw(35, "a"), draw(3, "a")]
    assert not any(torch.equal(draw(3, "a", 5), other) for other in others)


def test_the_draws_of_a_stream_are_distinct_and_uncorrelated():
    rows = torch.stack([torch.randn(200, generator=generator(0, "stream", index)) for index in range(100)])
    correlation = torch.corrcoef(rows) - torch.eye(100)
    assert correlation.abs().max() < 6 / 200**0.5
    assert len(rows.unique(dim=0)) == 100


def test_making_a_generator_leaves_global_state_alone(global_state_untouched):
    torch.rand(3, generator=generator(7, "anything"))


def test_taking_rows_keeps_ends_and_condition_together(normal):
    pair = Pair(normal("x0", 6, 2), normal("x1", 6, 2), torch.arange(6))
    index = torch.tensor([4, 4, 0])
    taken = pair.take(index)
    assert all(torch.equal(part, whole[index]) for part, whole in zip(taken, pair, strict=True))


@pytest.mark.parametrize("cond", [None, torch.arange(6)])
def test_cat_undoes_split(normal, cond):
    pair = Pair(normal("x0", 6, 2), normal("x1", 6, 2), cond)
    again = Pair.cat([pair.take(slice(0, 4)), pair.take(slice(4, 6))])
    assert torch.equal(again.x0, pair.x0)
    assert torch.equal(again.x1, pair.x1)
    assert again.cond is None if cond is None else torch.equal(again.cond, cond)


def test_times_scale_each_row_of_any_event(normal):
    x, t = normal("image", 3, 2, 4, 5), torch.tensor([2.0, 0.0, -1.0])
    scaled = like(t, x) * x
    assert torch.equal(scaled[0], 2 * x[0])
    assert torch.equal(scaled[1], 0 * x[1])
    assert torch.equal(scaled[2], -x[2])


@pytest.mark.parametrize(
    ("dtype", "held"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_half_types_never_hold_a_time(dtype, held):
    t = expand_time(0.3, torch.zeros(2, 3, dtype=dtype))
    assert torch.equal(t, torch.tensor([0.3, 0.3], dtype=held))
