"""The loops that `images.py` times and compares, how it times them, and what it says."""

from __future__ import annotations

import argparse
import gc
import math
import sys
import textwrap
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from flowgen import FlowMatching, IndependentPairs, InputError, Model, Pair, State, batches, fit
from flowgen.bench.speed import ChunkTimes
from flowgen.data import Gaussian, Scaled, Scaling, TensorDataset, read_images
from flowgen.data.streams import floats
from flowgen.nn import UNET_SIZES, UNet
from flowgen.pairs import prefetch
from flowgen.training.loop import channels_last, compile_net
from flowgen.training.optim import ConstantRate

LR, CLIP, DECAY = 2e-4, 1.0, 0.9999
"""Of torchcfm's CIFAR-10 example: learning rate, norm of the gradient, decay of the average."""
WARM_UP = 5
"""Steps before any is measured: the first compiles."""
GIB = 2**30


# --- Fashion-MNIST, and the loops on it


class Data(NamedTuple):
    """The publisher's own training and test set, as bytes."""

    train: TensorDataset
    test: TensorDataset


def read_data(folder: Path) -> Data:
    """
    Raises:
        InputError: unless the folder holds idx files of both sets, with labels.
    """
    images = read_images(folder)
    if images.labels is None or not images.held_out:
        raise InputError(f"{folder}: expected train-* and t10k-* idx files of images and of labels")
    rows, count = TensorDataset(images.pixels, images.labels), len(images.pixels) - images.held_out
    return Data(rows.take(slice(count)), rows.take(slice(count, None)))


class Training(NamedTuple):
    """A loop that trains without end, a step for each `next`, and the models that it changes."""

    loop: Iterator[object]
    averaged: Model
    last: Model


def unet(rows: TensorDataset, options: argparse.Namespace, seed: int) -> UNet:
    return UNet(rows.shape, int(rows.labels.max()) + 1, **UNET_SIZES[options.size], seed=seed)


def plain(rows: TensorDataset, options: argparse.Namespace, seed: int) -> Training:
    """torchcfm's matcher in a plain PyTorch loop."""
    net = unet(rows, options, seed).to(options.device)
    averaged = deepcopy(net).requires_grad_(False)
    scaling = Scaling.of_range(0, 1)
    models = (Model(each, scaling=scaling).to(options.device) for each in (averaged, net))
    return Training(plain_loop(net, averaged, rows, options), *models)


def plain_loop(net: UNet, averaged: UNet, rows: TensorDataset, options: argparse.Namespace) -> Iterator[None]:
    """The steps of torchcfm's CIFAR-10 example, with all data as floats on the device."""
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    images, labels = 2 * floats(rows.x.to(options.device)) - 1, rows.labels.to(options.device)
    weights, averages = list(net.parameters()), list(averaged.parameters())
    optimizer = torch.optim.Adam(weights, lr=LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, ConstantRate(1.0, options.warmup))
    matcher = ConditionalFlowMatcher(sigma=0.0)
    whole = len(images) // options.batch * options.batch
    while True:
        for index in torch.randperm(len(images), device=options.device)[:whole].split(options.batch):
            optimizer.zero_grad()
            x1 = images[index]
            t, x, u = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
            loss = torch.mean((net(x, t, cond=labels[index]) - u) ** 2)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, CLIP)
            optimizer.step()
            schedule.step()
            torch._foreach_lerp_(averages, [weight.detach() for weight in weights], 1 - DECAY)
            yield


def flowgen(rows: TensorDataset, options: argparse.Namespace, seed: int, fast: bool = True) -> Training:
    """flowgen's loop as the command line makes it; `fast` in bfloat16 and compiled, as far as the options allow it."""
    scaling = Scaling.of_range(0, 1)
    state = State(channels_last(Model(unet(rows, options, seed), scaling=scaling).to(options.device)))
    if fast and options.compile:
        compile_net(state, options.backend)
    source, data = Gaussian(rows.shape), Scaled(rows.to(options.device), scaling.to(options.device))
    pairs = ahead_of(batches(IndependentPairs(source, data), options.batch, seed=seed), options.device)
    precision, rate = options.precision if fast else None, ConstantRate(LR, options.warmup)
    loop = fit(state, pairs, FlowMatching(), 10**9, seed=seed, clip=CLIP, precision=precision, rate=rate)
    return Training(loop, state.ema, state.model)


def ahead_of(pairs: Iterator[Pair], device: torch.device) -> Iterator[Pair]:
    """The pairs as `flowgen train` reads them: for a GPU, a thread makes them while a step is computed."""
    if device.type != "cuda":
        yield from pairs
        return
    with prefetch(pairs, device) as ready:
        yield from ready


# --- time and memory


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def release(device: torch.device) -> None:
    """Gives back what the last part of the report held: compiled code and memory."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def steps(loop: Iterator[object], options: argparse.Namespace, batch: int) -> ChunkTimes:
    """The next steps of a loop, until the device has done them; the unit is an image."""

    def run() -> None:
        next(islice(loop, options.chunk - 1, None))
        synchronize(options.device)

    return run, options.chunk * batch


def warmed(make: Callable[[], Training], options: argparse.Namespace) -> tuple[Training, float]:
    """A loop whose first steps are done, and the most GiB that it holds on the GPU (NaN without one)."""
    cuda = options.device.type == "cuda"
    before = torch.cuda.memory_allocated() if cuda else 0
    made = make()
    next(islice(made.loop, WARM_UP - 1, None))
    if not cuda:
        return made, math.nan
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    next(islice(made.loop, WARM_UP - 1, None))
    torch.cuda.synchronize()
    return made, (torch.cuda.max_memory_allocated() - before) / GIB


def rates(milliseconds: list[float]) -> list[float]:
    """Images per second in each round."""
    return [1000 / each for each in milliseconds]


def named(number: float, digits: int = 1) -> str:
    """The number, or a dash where there is none."""
    return "-" if math.isnan(number) else f"{number:.{digits}f}"


def say(text: str) -> None:
    """What is being done, for those who watch."""
    print(text, file=sys.stderr, flush=True)


def wrapped(text: str) -> str:
    """Its paragraphs in lines of equal length."""
    return "\n\n".join(textwrap.fill(part, 120) for part in text.strip().split("\n\n")) + "\n"
