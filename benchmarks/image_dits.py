"""How busy diffusion transformers keep a GPU: images per second, and the share of its peak."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator
from copy import deepcopy
from itertools import repeat
from statistics import median
from typing import NamedTuple

import torch
from image_loops import ahead_of, named, rates, release, say, steps, wrapped
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowgen import FlowMatching, IndependentPairs, InputError, Model, Pair, State, batches, fit
from flowgen.bench.report import quartiles, table
from flowgen.bench.speed import measure
from flowgen.core import generator
from flowgen.data import Gaussian, Scaled, Scaling, TensorDataset
from flowgen.nn import DIT_SIZES, DiT
from flowgen.training.loop import compile_net

CLASSES = 10
MOST, PROBE = 1024, 16
"""Images in a batch, at most; and as many as tell how much memory one takes."""
PEAKS = {"H100 80GB HBM3": 989.0, "H200": 989.0, "A100": 312.0}
"""Dense bfloat16 TFLOP/s of SXM cards, by what their names hold; those of PCIe, and NVL, are slower."""


def training_flops(net: DiT) -> int:
    """The operations of forward and backward for one image, products and attention, none counted twice."""
    shape = deepcopy(net).to("meta")
    x, t = torch.empty(1, *net.shape, device="meta"), torch.empty(1, device="meta")
    label = torch.zeros(1, dtype=torch.int64, device="meta")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        shape(x, t, t, label).sum().backward()
    return counter.get_total_flops()


def peak_tflops(options: argparse.Namespace) -> float:
    """The dense peak of the GPU in bfloat16; NaN on a CPU.

    Raises:
        InputError: for a GPU that is not known.
    """
    if options.peak_tflops or options.device.type != "cuda":
        return options.peak_tflops or math.nan
    name = torch.cuda.get_device_name(options.device)
    found = [peak for part, peak in PEAKS.items() if part in name and "NVL" not in name]
    if not found:
        raise InputError(f"the peak of {name} is not known here: give its dense bfloat16 TFLOP/s as --peak-tflops")
    return found[0]


def ready(net: DiT, batch: int, device: torch.device) -> Pair:
    """A pair that is on the device already."""
    x0, x1 = torch.randn(2, batch, *net.shape, generator=generator(0, "ready"))
    return Pair(x0, x1, torch.arange(batch) % CLASSES).to(device)


def looped(state: State, pairs: Iterable[Pair], options: argparse.Namespace) -> Iterator[float]:
    return fit(state, pairs, FlowMatching(), 10**9, seed=0, precision=options.precision)


def filling(net: DiT, options: argparse.Namespace) -> int:
    """The largest power of two up to MOST whose batch fits on the GPU, by the memory of a few images, not compiled."""
    if options.dit_batch or options.device.type != "cuda":
        return options.dit_batch or 8
    loop = looped(State(Model(net).to(options.device)), repeat(ready(net, PROBE, options.device)), options)
    next(loop)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    next(loop)
    image = (torch.cuda.max_memory_allocated() - before) / PROBE
    fits = 0.8 * torch.cuda.mem_get_info()[0] / image
    return max(1, min(MOST, 2 ** int(math.log2(max(1.0, fits)))))


class Measured(NamedTuple):
    """A transformer: its size and weights, images in a batch, operations for one, and images/s of each round."""

    size: str
    weights: int
    batch: int
    flops: int
    rates: dict[str, list[float]]

    def row(self, peak: float) -> list[str]:
        cells = [self.size, f"{self.weights / 1e6:.1f}", str(self.batch), f"{self.flops / 1e9:.2f}"]
        for found in self.rates.values():
            cells += [quartiles(found, 0), named(median(found) * self.flops / peak / 1e10)]
        return cells


def transformer(size: str, options: argparse.Namespace) -> Measured:
    """The loop from bytes, and the same state on one pair that is ready."""
    say(f"dit: {size}")
    shape = (3, options.image_size, options.image_size)
    net = DiT(shape, CLASSES, **DIT_SIZES[size])
    batch, flops = filling(net, options), training_flops(net)
    release(options.device)
    state = State(Model(net).to(options.device))
    if options.compile:
        compile_net(state, options.backend)
    pixels = torch.randint(256, (4 * batch, *shape), dtype=torch.uint8, generator=generator(0, "pixels"))
    rows = TensorDataset(pixels, torch.arange(4 * batch) % CLASSES).to(options.device)
    ends = IndependentPairs(Gaussian(shape), Scaled(rows, Scaling.of_range(0, 1).to(options.device)))
    read = ahead_of(batches(ends, batch, seed=0), options.device)
    streams = {"whole": read, "step": repeat(ready(net, batch, options.device))}
    chunks = {name: steps(looped(state, pairs, options), options, batch) for name, pairs in streams.items()}
    found = {name: rates(times) for name, times in measure(chunks, options.rounds).items()}
    return Measured(size, sum(w.numel() for w in state.parameters), batch, flops, found)


def transformers(options: argparse.Namespace) -> str:
    """The table of the transformers."""
    peak, found = peak_tflops(options), []
    for size in options.dit:
        release(options.device)
        found.append(transformer(size, options))
    return dit_table(found, peak, options)


def dit_table(found: list[Measured], peak: float, options: argparse.Namespace) -> str:
    head = ("DiT", "million weights", "batch", "GFLOP per image", "images/s", "% of peak")
    rows = [each.row(peak) for each in found]
    return f"## Training DiT\n\n{table([*head, 'images/s, pairs ready', '% of peak'], rows)}\n{dit_note(peak, options)}"


def dit_note(peak: float, options: argparse.Namespace) -> str:
    share = f"The share is that of {peak:g} TFLOP/s, the dense peak in bfloat16."
    of = "No share is given, since no peak is known." if math.isnan(peak) else share
    how = f"{'bfloat16' if options.precision else 'float32'}{', compiled' if options.compile else ''}"
    return wrapped(f"""Random images of 3x{options.image_size}x{options.image_size} with labels, kept as bytes on the
device; {how}. Medians [quartiles] of {options.rounds} rounds of {options.chunk} steps, in random order. The batch is
the largest power of two up to {MOST} that fits, unless it was asked for. "Pairs ready" is the same state on one pair
that lies on the device: what is slower without it are noise and rows. GFLOP are those of forward and backward, as
PyTorch's FlopCounterMode counts them, of which nothing is counted that is computed twice. {of}
""")
