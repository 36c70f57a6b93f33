"""Training on images: flowgen beside a plain loop with torchcfm, on Fashion-MNIST, and how busy a transformer keeps a
GPU.

Speed is measured in one process, in chunks and in a new random order each round; a ratio is taken within each round.
Quality is that of samples of the same flows trained to the end, in the features of a classifier.
"""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from itertools import islice, repeat
from pathlib import Path
from statistics import median

import torch
from image_loops import (
    CLIP,
    DECAY,
    GIB,
    LR,
    Data,
    Training,
    flowgen,
    named,
    plain,
    rates,
    read_data,
    release,
    steps,
    synchronize,
    unet,
    warmed,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowgen import Ends, FlowMatching, InputError, Model, Pair, State, batches, euler, fit, grids, metrics, sample
from flowgen.bench.report import machine, quartiles, spread, table
from flowgen.bench.speed import Times, measure, ratios
from flowgen.core import generator
from flowgen.data import Gaussian, Rows, Scaled, Scaling
from flowgen.data.pictures import to_uint8
from flowgen.data.streams import floats
from flowgen.evaluation.views import classified
from flowgen.nn import DIT_SIZES, UNET_SIZES, Classifier, DiT, fit_classifier, seeded
from flowgen.training import compile_net

RESULTS = Path(__file__).parent / "results" / "images.md"
EVENT, CLASSES = (3, 32, 32), 10
"""What the transformers are trained on."""
EULER_STEPS, SAMPLED = 50, 1000
"""Of a sample, and how many are made at a time."""
MOST, PROBE = 1024, 32
"""Images in a batch of a transformer, at most; and as many as tell how much memory one takes."""
PEAKS = {"H100 80GB HBM3": 989.0, "H200": 989.0, "A100": 312.0}
"""Dense bfloat16 TFLOP/s of SXM cards, by what their names hold; those of PCIe, and NVL, are slower."""
QUICK = {"steps": 200, "samples": 1000, "classifier_steps": 200, "rounds": 3}
"""The most of each."""
PARTS = ("speed", "quality", "dit")
PLAIN, FULL, FLOAT = "torchcfm, plain loop", "flowgen", "flowgen, float32, not compiled"


def say(text: str) -> None:
    """What is being done, for those who watch."""
    print(text, file=sys.stderr, flush=True)


def wrapped(text: str) -> str:
    """Its paragraphs in lines of equal length."""
    return "\n\n".join(textwrap.fill(part, 120) for part in text.strip().split("\n\n")) + "\n"


# --- the parts of the report


def speed(data: Data, options: argparse.Namespace) -> str:
    """Images per second of the loops."""
    makers = {
        PLAIN: lambda: plain(data.train, options, 0),
        FULL: lambda: flowgen(data.train, options, 0),
        FLOAT: lambda: flowgen(data.train, options, 0, fast=False),
    }
    made, memory = {}, {}
    for name, make in makers.items():
        say(f"speed: {name}")
        made[name], memory[name] = warmed(make, options)
    chunks = {name: steps(training.loop, options, options.batch) for name, training in made.items()}
    times = measure(chunks, options.rounds)
    rows = [speed_row(name, times, memory[name], options) for name in times]
    per_second = f"images/s, median [quartiles] of {options.rounds} rounds"
    head = ("loop", per_second, "ms per step", "times as fast as torchcfm", "peak memory (GiB)")
    return f"## Training on Fashion-MNIST: speed\n\n{table(head, rows)}\n{speed_note(data, options)}"


def speed_row(name: str, times: Times, memory: float, options: argparse.Namespace) -> tuple[str, ...]:
    step = median(times[name]) * options.batch
    faster = quartiles(ratios(times, PLAIN, name), 2)
    return label(name, options), quartiles(rates(times[name]), 0), f"{step:.2f}", faster, named(memory, 2)


def label(name: str, options: argparse.Namespace) -> str:
    """The name of a loop, with what makes it fast."""
    how = ["bfloat16" if options.precision else "float32", "compiled" if options.compile else "not compiled"]
    return f"{name}, {', '.join(how)}" if name == FULL else name


def speed_note(data: Data, options: argparse.Namespace) -> str:
    count = sum(weight.numel() for weight in unet(data.train, options, 0).parameters())
    conv, matmul = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    tf32 = f"convolutions {'on' if conv else 'off'}, products {'on' if matmul else 'off'}"
    return wrapped(f"""The U-Net `{options.size}` ({count / 1e6:.1f} million weights) with labels, batch
{options.batch}, the same first weights. Chunks of {options.chunk} steps in random order, after steps that compile;
memory is what the loop adds to the process, its data included.

torchcfm's loop has the settings of its CIFAR-10 example: Adam at {LR:g} after a warm-up, gradients cut at {CLIP:g}, an
average of decay {DECAY}. It is written to be fast: all images lie on the device as float32, so that nothing is loaded;
the average is one fused call, and the loss is never read. float32 is PyTorch's default (TF32: {tf32}). flowgen's loops
have the same rate and cut, keep the images as bytes on the device and the convolutions channels last, and do what
`flowgen train` does: draws by seed and step, the check that loss and gradient are finite, the loss as a float.
""")


def quality(data: Data, options: argparse.Namespace) -> str:
    """The distance of samples to the test set."""
    apply, accuracy = features(data, options)
    real = data.test.take(slice(options.samples))
    seen = apply(real.values)
    some = torch.randperm(len(data.train), generator=generator(0, "floor"))[: options.samples]
    rows = [figures_row("training images (the floor)", [figures(apply(data.train.take(some).values), seen)], [])]
    for name, make in ((PLAIN, plain), (FULL, flowgen)):
        found: dict[str, list[dict[str, float]]] = {"averaged weights": [], "last weights": []}
        minutes = []
        for seed in range(options.seeds):
            say(f"quality: {name}, seed {seed}")
            trained, took = train(make, data.train, options, seed)
            minutes.append(took)
            for kind, model in zip(found, (trained.averaged, trained.last), strict=True):
                found[kind].append(figures(apply(samples(model, real, seed)), seen))
        rows += [figures_row(f"{label(name, options)}: {kind}", each, minutes) for kind, each in found.items()]
    head = ("images", "Fréchet", "kernel x 1000", "coverage", "precision", "recall", "minutes of training")
    return f"## Training on Fashion-MNIST: quality\n\n{table(head, rows)}\n{quality_note(accuracy, options)}"


def features(data: Data, options: argparse.Namespace) -> tuple[Callable[[Tensor], Tensor], float]:
    """What a classifier makes of images in [0, 1], and the share of the test set that it labels right."""
    say("quality: the classifier")
    scaling, (train, test) = Scaling.of_range(0, 1), data
    net = Classifier(train.event, int(train.labels.max()) + 1).to(options.device)
    with seeded(0, options.device):
        x = scaling.apply_to(train.values).to(options.device)
        fit_classifier(net, x, train.labels, options.classifier_steps, seed=0)
    net = net.cpu().eval().requires_grad_(False)
    view = classified(scaling, net, 0.0)
    return view.apply, (view.classify(test.values) == test.labels).double().mean().item()


def train(make: Callable[..., Training], rows: Rows, options: argparse.Namespace, seed: int) -> tuple[Training, float]:
    """A loop after all steps, and the minutes that they took."""
    release(options.device)
    start = time.perf_counter()
    with seeded(seed, options.device):  # torchcfm's loop draws from the global generators
        training = make(rows, options, seed)
        next(islice(training.loop, options.steps - 1, None))
        synchronize(options.device)
    return training, (time.perf_counter() - start) / 60


def samples(model: Model, real: Rows, seed: int) -> Tensor:
    """A sample for each label of true rows, rounded to 8 bits as in a file, `(N, C, H, W)` in [0, 1]."""
    model, grid = deepcopy(model).eval(), grids.uniform(EULER_STEPS)  # the copy is not compiled
    made = sample(model, Gaussian(real.event), len(real), grid, euler, seed=seed, chunk=SAMPLED, cond=real.labels)
    return floats(to_uint8(made))


def figures(seen: Tensor, real: Tensor) -> dict[str, float]:
    """Features beside those of the test set."""
    shares = metrics.manifold(seen, real)
    return {
        "frechet": metrics.frechet_distance(seen, real),
        "kernel": 1000 * metrics.kernel_distance(seen, real),
        "coverage": shares.coverage,
        "precision": shares.precision,
        "recall": shares.recall,
    }


def figures_row(name: str, found: list[dict[str, float]], minutes: list[float]) -> list[str]:
    means = [spread([each[key] for each in found]) for key in found[0]]
    return [name, *means, spread(minutes, 1) if minutes else ""]


def quality_note(accuracy: float, options: argparse.Namespace) -> str:
    return wrapped(f"""{options.steps:,} steps at batch {options.batch}, warm-up {options.warmup:,},
{options.seeds} training seed(s), of which mean and deviation are given. {options.samples:,} samples by {EULER_STEPS}
Euler steps in float32, with the labels of {options.samples:,} test images, from the same noise for all; beside those
test images, and rounded to 8 bits as they are. Features: the last hidden layer of a classifier trained on the training
set for {options.classifier_steps:,} steps, which labels {accuracy:.1%} of the test set right. The averages differ:
torchcfm's, of decay {DECAY}, reaches back some {1 / (1 - DECAY):,.0f} steps, flowgen's a share of the steps done; the
last weights have no such difference. Minutes include compilation.
""")


# --- transformers


def training_flops(net: nn.Module) -> int:
    """The operations of forward and backward for one image, products and attention, none counted twice."""
    shape = deepcopy(net).to("meta")
    x, t = torch.empty(1, *EVENT, device="meta"), torch.empty(1, device="meta")
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


def ready(batch: int, device: torch.device) -> Pair:
    """A pair that is on the device already."""
    x0, x1 = torch.randn(2, batch, *EVENT, generator=generator(0, "ready"))
    return Pair(x0, x1, torch.arange(batch) % CLASSES).to(device)


def looped(state: State, pairs: Iterable[Pair], options: argparse.Namespace) -> Iterator[float]:
    return fit(state, pairs, FlowMatching(), 10**9, seed=0, precision=options.precision)


def filling(net: DiT, options: argparse.Namespace) -> int:
    """The largest power of two up to MOST whose batch fits on the GPU, by the memory of a few images, not compiled."""
    if options.dit_batch or options.device.type != "cuda":
        return options.dit_batch or 8
    loop = looped(State(Model(net).to(options.device)), repeat(ready(PROBE, options.device)), options)
    next(loop)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    next(loop)
    image = (torch.cuda.max_memory_allocated() - before) / PROBE
    fits = 0.8 * torch.cuda.mem_get_info()[0] / image
    return max(1, min(MOST, 2 ** int(math.log2(max(1.0, fits)))))


def transformer(size: str, options: argparse.Namespace, peak: float) -> list[str]:
    """A row of the table: the loop from bytes, and the same state on one pair that is ready."""
    say(f"dit: {size}")
    net = DiT(EVENT, CLASSES, **DIT_SIZES[size])
    batch, flops = filling(net, options), training_flops(net)
    release(options.device)
    state = State(Model(net).to(options.device))
    if options.compile:
        compile_net(state)
    pixels = torch.randint(256, (4 * batch, *EVENT), dtype=torch.uint8, generator=generator(0, "pixels"))
    rows = Rows(pixels, torch.arange(4 * batch) % CLASSES).to(options.device)
    ends = Ends(Gaussian(EVENT), Scaled(rows, Scaling.of_range(0, 1).to(options.device)))
    streams = {"whole": batches(ends, batch, seed=0), "step": repeat(ready(batch, options.device))}
    chunks = {name: steps(looped(state, pairs, options), options, batch) for name, pairs in streams.items()}
    cells = [size, f"{sum(w.numel() for w in state.parameters) / 1e6:.1f}", str(batch), f"{flops / 1e9:.2f}"]
    for milliseconds in measure(chunks, options.rounds).values():
        found = rates(milliseconds)
        cells += [quartiles(found, 0), named(median(found) * flops / peak / 1e10)]
    return cells


def transformers(options: argparse.Namespace) -> str:
    """The table of the transformers."""
    peak, rows = peak_tflops(options), []
    for size in options.dit:
        release(options.device)
        rows.append(transformer(size, options, peak))
    head = ("DiT", "million weights", "batch", "GFLOP per image", "images/s", "% of peak")
    return f"## Training DiT\n\n{table([*head, 'images/s, pairs ready', '% of peak'], rows)}\n{dit_note(peak, options)}"


def dit_note(peak: float, options: argparse.Namespace) -> str:
    share = f"The share is that of {peak:g} TFLOP/s, the dense peak in bfloat16."
    of = "No share is given, since no peak is known." if math.isnan(peak) else share
    how = f"{'bfloat16' if options.precision else 'float32'}{', compiled' if options.compile else ''}"
    return wrapped(f"""Random images of {"x".join(map(str, EVENT))} with labels, kept as bytes on the device; {how}.
Medians [quartiles] of {options.rounds} rounds of {options.chunk} steps, in random order. The batch is the largest power
of two up to {MOST} that fits, unless it was asked for. "Pairs ready" is the same state on one pair that lies on the
device: what is slower without it are noise and rows. GFLOP are those of forward and backward, as PyTorch's
FlopCounterMode counts them, of which nothing is counted that is computed twice. {of}
""")


# --- the command line


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the idx files of Fashion-MNIST")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--steps", type=positive, default=20_000, help="of the trainings whose samples are measured")
    parser.add_argument("--batch", type=positive, default=128)
    parser.add_argument("--warmup", type=int, help="steps; by default a tenth of all, up to 5000")
    parser.add_argument("--size", choices=UNET_SIZES, default="small")
    parser.add_argument("--seeds", type=positive, default=1, help="how many trainings of each loop")
    parser.add_argument("--samples", type=positive, default=10_000)
    parser.add_argument("--classifier-steps", type=positive, default=4000)
    parser.add_argument("--rounds", type=positive, default=20, help="of a measurement of speed")
    parser.add_argument("--chunk", type=positive, default=20, help="steps of a loop in a round")
    parser.add_argument("--dit", nargs="+", choices=DIT_SIZES, default=tuple(DIT_SIZES))
    parser.add_argument("--dit-batch", type=positive, help="by default what fills the GPU")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in dense bfloat16, where its name is not known")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--no-bf16", dest="bf16", action="store_false")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    once = parser.add_mutually_exclusive_group()
    once.add_argument("--quick", action="store_true", help="few steps, samples and rounds")
    once.add_argument("--write", action="store_true", help=f"append the report to {RESULTS.name}")
    options = parser.parse_args()
    if options.quick:
        for name, most in QUICK.items():
            setattr(options, name, min(getattr(options, name), most))
    return completed(options)


def positive(text: str) -> int:
    """A whole number above zero."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def completed(options: argparse.Namespace) -> argparse.Namespace:
    """The options, with what follows from others.

    Raises:
        InputError: for a device that is not there.
    """
    cuda = torch.cuda.is_available()
    if options.device == "cuda" and not cuda:
        raise InputError("there is no GPU here that PyTorch can use: --device cpu")
    options.device = torch.device(("cuda" if cuda else "cpu") if options.device == "auto" else options.device)
    options.precision = torch.bfloat16 if options.bf16 else None
    if options.warmup is None:
        options.warmup = min(5000, options.steps // 10)
    return options


def hardware(device: torch.device) -> str:
    """The line of the GPU, for the list of machine and versions."""
    if device.type == "cpu":
        return "- on the CPU\n"
    memory = torch.cuda.get_device_properties(device).total_memory / GIB
    cudnn = torch.backends.cudnn.version()
    return f"- {torch.cuda.get_device_name(device)}, {memory:.0f} GiB; CUDA {torch.version.cuda}, cuDNN {cudnn}\n"


def report(options: argparse.Namespace) -> Iterator[str]:
    """The parts that are asked for, then the machine and the versions."""
    say(hardware(options.device).strip())
    if "dit" in options.parts:
        peak_tflops(options)  # before hours of work, if it is to be asked for
    data = read_data(options.folder)
    if options.samples > len(data.test) or options.batch > len(data.train):
        raise InputError(f"there are {len(data.train)} images to train on, and {len(data.test)} to compare with")
    makers = {"speed": speed, "quality": quality, "dit": lambda _, options: transformers(options)}
    for part in (part for part in PARTS if part in options.parts):
        release(options.device)
        yield makers[part](data, options)
    yield f"## Machine\n\n{hardware(options.device)}{machine()}"


def main() -> None:
    made = []
    try:
        options = parse()
        for text in report(options):
            made.append(text)
            print(text, flush=True)
    except InputError as error:
        sys.exit(str(error))
    if options.write:
        before = RESULTS.read_text() + "\n" if RESULTS.exists() else "# Images\n\n"
        RESULTS.write_text(before + "\n".join([made[-1], *made[:-1]]))


if __name__ == "__main__":
    main()
