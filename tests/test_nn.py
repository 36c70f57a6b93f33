"""The laws of the networks `net(x, t, s, cond)`: what they read, what they ignore, and how they start."""

import re

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowgen.core import InputError, generator
from flowgen.nn import MLP, UNET_SIZES, DiT, ResMLP, UNet
from flowgen.nn.conditioning import Conditioning, FourierFeatures
from flowgen.nn.dit import patchify, positions, unpatchify

EVENT, CLASSES, ROWS = (2, 8, 8), 3, 6
NETS = {
    "unet": lambda classes=CLASSES, seed=0: UNet(EVENT, classes, 32, 1, (1, 2), (2,), 2, seed=seed),
    "dit": lambda classes=CLASSES, seed=0: DiT(EVENT, classes, 2, 16, 2, 2, seed=seed),
    "resmlp": lambda classes=CLASSES, seed=0: ResMLP(EVENT, classes, 16, 2, seed=seed),
}


@pytest.fixture(params=NETS)
def make(request):
    """make(classes, seed): an image network of each kind."""
    return NETS[request.param]


@pytest.fixture
def inputs(normal):
    """x, t, s and labels of six rows."""
    x, (t, s) = normal("x", ROWS, *EVENT).float(), normal("times", 2, ROWS).float().sigmoid()
    return x, t, s, torch.arange(ROWS) % CLASSES


def awake(net: nn.Module) -> nn.Module:
    """The net with noise on all of its weights: nothing is zero any more."""
    for index, parameter in enumerate(net.parameters()):
        noise = torch.randn(parameter.shape, generator=generator(0, "awake", index))
        parameter.data += 0.05 * noise
    return net.eval()


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


# all of them


def test_first_weights_are_a_function_of_the_seed(make, global_state_untouched):
    assert torch.equal(weights(make(seed=4)), weights(make(seed=4)))
    assert not torch.equal(weights(make(seed=4)), weights(make(seed=5)))


def test_a_new_net_predicts_zero(make, inputs):
    assert not make()(*inputs).any()


def test_every_weight_learns(make, inputs):
    net, (x, t, s, cond) = awake(make()), inputs
    cond = torch.cat([cond[:-1], torch.tensor([CLASSES])])
    net(x, t, s, cond).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_no_condition_is_the_null_label(make, inputs):
    net, (x, t, s, cond) = awake(make()), inputs
    assert torch.equal(net(x, t, s), net(x, t, s, torch.full_like(cond, CLASSES)))


def test_every_label_has_its_own_prediction(make, inputs):
    net, (x, t, s, _) = awake(make()), inputs
    labels = torch.arange(CLASSES + 1)
    same = [z[:1].expand(len(labels), *z.shape[1:]) for z in (x, t, s)]
    assert torch.pdist(net(*same, labels).flatten(1)).min() > 1e-3


def test_a_label_out_of_range_is_an_error(make, inputs):
    x, t, s, cond = inputs
    with pytest.raises(IndexError):
        make()(x, t, s, cond + CLASSES)


def test_without_classes_a_net_ignores_the_condition(make, inputs):
    net, (x, t, s, cond) = awake(make(classes=0)), inputs
    assert torch.equal(net(x, t, s, cond), net(x, t, s))


def test_a_net_depends_on_both_times(make, inputs):
    net, (x, t, s, cond) = awake(make()), inputs
    assert (net(x, t, s, cond) - net(x, t, t, cond)).abs().max() > 1e-3
    assert (net(x, s, s, cond) - net(x, t, t, cond)).abs().max() > 1e-3
    assert torch.equal(net(x, t, None, cond), net(x, t, t, cond))


def test_a_trained_velocity_does_not_know_the_second_time(make, inputs):
    """Trained at s = t, the weights that read s - t have no gradient: a flow map starts as the velocity it was."""
    net, (x, t, s, cond) = awake(make()), inputs
    nn.init.zeros_(net.conditioning.delta.weight)
    assert torch.equal(net(x, t, s, cond), net(x, t, t, cond))
    net(x, t, t, cond).square().sum().backward()
    assert not net.conditioning.delta.weight.grad.any()


def test_rows_of_a_batch_do_not_see_each_other(make, inputs):
    net = awake(make())
    alone = torch.cat([net(*(z[i : i + 1] for z in inputs)) for i in range(ROWS)])
    torch.testing.assert_close(net(*inputs), alone, rtol=1e-4, atol=1e-5)


def test_channels_last_is_the_same_image(make, inputs):
    net, (x, *rest) = awake(make()), inputs
    there = net(x.to(memory_format=torch.channels_last), *rest)
    torch.testing.assert_close(there, net(x, *rest), rtol=1e-4, atol=1e-5)


def test_autocast_keeps_a_prediction_and_its_type(make, inputs):
    net = awake(make())
    exact = net(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = net(*inputs)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_under_autocast_times_are_not_rounded(make, inputs):
    """0.999 would be 1 in a half type."""
    net, (x, _, _, cond) = awake(make()), inputs
    last, end = torch.full((ROWS,), 0.999), torch.ones(ROWS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(net(x, last, last, cond), net(x, end, end, cond))
        assert not torch.equal(net(x, last, end, cond), net(x, last, last, cond))


def test_forward_derivatives_are_differences(make, inputs, normal):
    """d/de net(x + e dx, t + e, s - e) at e = 0, beside the central difference of fourth order."""
    net, (x, t, s, cond), dx = awake(make()).double(), inputs, normal("dx", ROWS, *EVENT)

    def along(e):
        return net(x + e * dx, t + e, s - e, cond)

    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        zero = torch.zeros((), dtype=torch.float64)
        _, derivative = torch.func.jvp(along, (zero,), (zero + 1,))
        e = zero + 1e-3
        difference = (8 * (along(e) - along(-e)) - (along(2 * e) - along(-2 * e))) / (12 * e)
    # torchcfm's attention rounds its weights to float32
    assert (derivative - difference).norm() < 1e-3 * derivative.norm()


# sizes


@pytest.mark.parametrize("size", [28, 32, 40, 48, 96])
def test_images_whose_size_the_levels_divide(size):
    x, t = torch.ones(1, 1, size, size - 4), torch.ones(1)
    for net in (UNet((1, size, size - 4), 0, 32, 1, (1, 1, 1), ()), DiT((1, size, size - 4), 0, 4, 16, 1, 2)):
        with torch.no_grad():
            assert net(x, t).shape == x.shape


@pytest.mark.parametrize("who", [lambda shape: UNet(shape, 0, 32, 1, (1, 1, 1)), lambda shape: DiT(shape, patch=4)])
@pytest.mark.parametrize("size", [(30, 30), (32, 30), (30, 32)])
def test_other_sizes_are_refused_and_told_which_would_do(who, size):
    height, width = size
    message = rf"divisible by 4 \(such as \d+x\d+.*\), not {height}x{width}"
    with pytest.raises(InputError, match=message) as refused:
        who((3, *size))
    offered = re.findall(r"(\d+)x", str(refused.value))[:-1]
    for near in offered:
        who((3, int(near), int(near)))


@pytest.mark.parametrize(
    "refused",
    [
        lambda: UNet((7,)),
        lambda: DiT((8, 8)),
        lambda: UNet(EVENT, channels=48),
        lambda: UNet(EVENT, channels=32, heads=3),
        lambda: UNet(EVENT, multipliers=(1, 2), attention=(4,)),
        lambda: DiT(EVENT, width=18, heads=2),
        lambda: DiT(EVENT, width=16, heads=3),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(refused):
    with pytest.raises(InputError, match=r"^[^\n]+$"):
        refused()


# the U-Net


def torchcfm_cifar10(shape, size):
    from torchcfm.models.unet import UNetModel

    return UNetModel(
        dim=shape,
        num_res_blocks=size["blocks"],
        num_channels=size["channels"],
        channel_mult=list(size["multipliers"]),
        num_heads=4,
        num_head_channels=64,
        attention_resolutions=str(shape[1] // 2),
        dropout=0.1,
    )


def test_the_cifar10_size_is_that_of_torchcfm():
    """But for the weights that read the second time."""
    shape, size = (3, 32, 32), UNET_SIZES["cifar10"]
    with torch.device("meta"):
        peer, net = torchcfm_cifar10(shape, size), UNet(shape, **size)
    second = net.conditioning.delta.weight.numel()
    count = sum(p.numel() for p in peer.parameters())
    assert sum(p.numel() for p in net.parameters()) - second == count
    assert 35.7e6 < count < 35.8e6


def test_blocks_are_walked_as_torchcfm_walks_them(normal):
    """The same weights and the same embedding make the same prediction."""
    shape, size = (1, 8, 8), {**UNET_SIZES["cifar10"], "blocks": 1, "multipliers": (1, 2)}
    peer, net = awake(torchcfm_cifar10(shape, size)), awake(UNet(shape, **size))
    embedding = normal("embedding", 2, 512).float()
    peer.time_embed = nn.Identity()
    parts = (net.down, net.middle, net.up, net.out)
    for part, other in zip(parts, (peer.input_blocks, peer.middle_block, peer.output_blocks, peer.out), strict=True):
        part.load_state_dict(other.state_dict())
    net.conditioning.forward = lambda t, s, cond: embedding
    peer.time_embed.forward = lambda waves: embedding
    x, t = normal("x", 2, *shape).float(), torch.rand(2, generator=generator(0, "t"))
    torch.testing.assert_close(net(x, t), peer(t, x), rtol=1e-5, atol=1e-6)


# the transformer


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_make_the_image_again(normal, patch):
    x = normal("x", 3, 2, 8, 12)
    h = patchify(x, patch)
    assert h.shape == (3, 96 // patch**2, 2 * patch**2)
    assert torch.equal(unpatchify(h, patch, (2, 8, 12)), x)


def test_patches_come_row_by_row():
    h = patchify(torch.arange(24.0).reshape(1, 1, 4, 6), 2)
    assert h[0, :, 0].tolist() == [0, 2, 4, 12, 14, 16]
    assert h[0, 1].tolist() == [2, 3, 8, 9]


def test_every_patch_has_its_own_position():
    place = positions(5, 7, 32)
    assert torch.pdist(place).min() > 0.5
    torch.testing.assert_close(place.square().sum(1), torch.full((35,), 16.0))


def test_patches_know_where_they_are(inputs):
    """Without positions a transformer would move its prediction with the patches."""
    net, (x, t, s, cond) = awake(NETS["dit"]()), inputs

    def moved(image):
        return image.roll(2, dims=3)

    assert not torch.allclose(net(moved(x), t, s, cond), moved(net(x, t, s, cond)), atol=1e-2)
    net.position.zero_()
    torch.testing.assert_close(net(moved(x), t, s, cond), moved(net(x, t, s, cond)), rtol=1e-4, atol=1e-5)


# what they share


def test_times_have_waves_of_their_own():
    t = torch.linspace(-1, 1, 2001)
    waves = FourierFeatures(32)(t)
    assert torch.pdist(waves).min() > 0.05
    assert torch.pdist(waves[::2].bfloat16().float()).min() > 0.05


def test_conditioning_takes_times_of_double_precision(normal):
    net, t = awake(Conditioning(8, 8, 0)).double(), normal("t", 5)
    assert net(t, t + 1e-9).dtype == torch.float64
    assert not torch.equal(net(t, t + 1e-9), net(t, t))


# the perceptron


def test_a_perceptron_reads_labels(normal):
    net, x, t = MLP(2, 8, 1, classes=3), normal("x", 4, 2).float(), torch.zeros(4)
    x[:] = x[0]
    predicted = net(x, t, t, torch.arange(4))
    assert torch.pdist(predicted).min() > 1e-4
    assert torch.equal(net(x, t, t)[3], predicted[3])
    with pytest.raises(RuntimeError, match="num_classes"):
        net(x, t, t, torch.arange(4) + 1)


def test_a_perceptron_without_classes_is_the_one_it_was(normal):
    net, x, t = MLP(2, 8, 1), normal("x", 4, 2).float(), torch.zeros(4)
    assert net.layers[0].in_features == 2 + net.time.size
    assert torch.equal(net(x, t, t, torch.arange(4)), net(x, t, t))
