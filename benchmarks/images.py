"""Training on images: flowgen beside a plain loop with torchcfm, on Fashion-MNIST, and how busy a GPU is with DiT.

Speed is measured in one process, in chunks and in a new random order each round; a ratio is taken within each round.
Quality is that of samples of the same flows trained to the end, in the features of a classifier.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from image_dits import peak_tflops, transformers
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
    say,
    steps,
    synchronize,
    unet,
    warmed,
    wrapped,
)
from torch import Tensor

from flowgen import InputError, Model, euler, grids, metrics, sample
from flowgen.bench.report import machine, quartiles, spread, table
from flowgen.bench.speed import StepTimes, measure, ratios
from flowgen.core import generator
from flowgen.data import Gaussian, Scaling, TensorDataset
from flowgen.data.images.pictures import to_uint8
from flowgen.data.streams import floats
from flowgen.nn import DIT_SIZES, UNET_SIZES, Classifier, fit_classifier, seeded

RESULTS = Path(__file__).parent / "results" / "images.md"
SAMPLED = 1000
"""Samples that are made at a time."""
QUICK = {"steps": 200, "samples": 1000, "classifier_steps": 200, "rounds": 3}
"""The most of each."""
PARTS = ("speed", "quality", "dit")
PLAIN, FULL, FLOAT = "torchcfm, plain loop", "flowgen", "flowgen, float32, not compiled"


# --- the parts of the report


class Speed(NamedTuple):
    """Milliseconds per image of each loop in each round, and the most GiB that each holds on the GPU."""

    times: StepTimes
    memory: dict[str, float]


def timed(data: Data, options: argparse.Namespace) -> Speed:
    """The loops, each after its first steps, in turn."""
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
    return Speed(measure(chunks, options.rounds), memory)


def speed(data: Data, options: argparse.Namespace) -> str:
    """Images per second of the loops."""
    return speed_table(timed(data, options), data, options)


def speed_table(found: Speed, data: Data, options: argparse.Namespace) -> str:
    rows = [speed_row(name, found.times, found.memory[name], options) for name in found.times]
    per_second = f"images/s, median [quartiles] of {options.rounds} rounds"
    head = ("loop", per_second, "ms per step", "times as fast as torchcfm", "peak memory (GiB)")
    return f"## Training a U-Net: speed\n\n{table(head, rows)}\n{speed_note(data, options)}"


def speed_row(name: str, times: StepTimes, memory: float, options: argparse.Namespace) -> tuple[str, ...]:
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


class Judge(NamedTuple):
    """What makes features of images in [0, 1], the share of the test set that it labels right, and test images."""

    features: Callable[[Tensor], Tensor]
    accuracy: float
    real: TensorDataset

    def frechet(self, images: Tensor) -> float:
        """The Fréchet distance of images to the test images, alone."""
        return metrics.frechet_distance(self.features(images), self.features(self.real.values))

    def figures(self, images: Tensor) -> dict[str, float]:
        """Features of images `(N, C, H, W)` beside those of the test images."""
        seen, real = self.features(images), self.features(self.real.values)
        shares = metrics.manifold(seen, real)
        return {
            "frechet": metrics.frechet_distance(seen, real),
            "kernel": 1000 * metrics.kernel_distance(seen, real),
            "coverage": shares.coverage,
            "precision": shares.precision,
            "recall": shares.recall,
        }


def judge(data: Data, options: argparse.Namespace) -> Judge:
    """The last hidden layer of a classifier that is trained on the training set."""
    say("quality: the classifier")
    scaling, device = Scaling.of_range(0, 1), options.device
    net = Classifier(data.train.shape, int(data.train.labels.max()) + 1).to(device)
    with seeded(0, device):
        x = scaling.apply_to(data.train.values).to(device)
        fit_classifier(net, x, data.train.labels, options.classifier_steps, seed=0)
    net.eval().requires_grad_(False)

    def applied(layers: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        return torch.cat([layers(scaling.apply_to(part).to(device)).cpu() for part in images.split(4096)])

    right = applied(net, data.test.values).argmax(1) == data.test.labels
    real = data.test.take(slice(options.samples))
    return Judge(lambda images: applied(net.features, images), right.double().mean().item(), real)


def quality(data: Data, options: argparse.Namespace) -> str:
    """The distance of samples to the test set."""
    judged = judge(data, options)
    rows = [floor(data, judged)]
    for name, make in ((PLAIN, plain), (FULL, flowgen)):
        found: dict[str, list[dict[str, float]]] = {"averaged weights": [], "last weights": []}
        minutes = []
        for seed in range(options.seeds):
            say(f"quality: {name}, seed {seed}")
            trained, took = train(make, data.train, options, seed)
            minutes.append(took)
            for kind, model in zip(found, (trained.averaged, trained.last), strict=True):
                found[kind].append(judged.figures(samples(model, judged.real, seed, options.euler_steps)))
        rows += [figures_row(f"{label(name, options)}: {kind}", each, minutes) for kind, each in found.items()]
    return f"## Training a U-Net: quality\n\n{table(FIGURES, rows)}\n{quality_note(judged, options)}"


FIGURES = ("images", "Fréchet", "kernel x 1000", "coverage", "precision", "recall", "minutes of training")


def floor(data: Data, judged: Judge) -> list[str]:
    """The row of training images, beside the same test images."""
    some = torch.randperm(len(data.train), generator=generator(0, "floor"))[: len(judged.real)]
    return figures_row("training images (the floor)", [judged.figures(data.train.take(some).values)], [])


def train(
    make: Callable[..., Training], rows: TensorDataset, options: argparse.Namespace, seed: int
) -> tuple[Training, float]:
    """A loop after all steps, and the minutes that they took."""
    release(options.device)
    start = time.perf_counter()
    with seeded(seed, options.device):  # torchcfm's loop draws from the global generators
        training = make(rows, options, seed)
        next(islice(training.loop, options.steps - 1, None))
        synchronize(options.device)
    return training, (time.perf_counter() - start) / 60


def samples(model: Model, real: TensorDataset, seed: int, euler_steps: int) -> Tensor:
    """A sample for each label of true rows, rounded to 8 bits as in a file, `(N, C, H, W)` in [0, 1]."""
    model, grid = deepcopy(model).eval(), grids.uniform(euler_steps)  # the copy is not compiled
    made = sample(model, Gaussian(real.shape), len(real), grid, euler, seed=seed, chunk=SAMPLED, cond=real.labels)
    return floats(to_uint8(made))


def figures_row(name: str, found: list[dict[str, float]], minutes: list[float]) -> list[str]:
    means = [spread([each[key] for each in found]) for key in found[0]]
    return [name, *means, spread(minutes, 1) if minutes else ""]


def quality_note(judged: Judge, options: argparse.Namespace) -> str:
    return wrapped(f"""{options.steps:,} steps at batch {options.batch}, warm-up {options.warmup:,},
{options.seeds} training seed(s), of which mean and deviation are given. {len(judged.real):,} samples by
{options.euler_steps} Euler steps in float32, with the labels of as many test images, from the same noise for all;
beside those test images, and rounded to 8 bits as they are. Features: the last hidden layer of a classifier trained on
the training set for {options.classifier_steps:,} steps, which labels {judged.accuracy:.1%} of the test set right. The
averages differ: torchcfm's, of decay {DECAY}, reaches back some {1 / (1 - DECAY):,.0f} steps, flowgen's a share of the
steps done; the last weights have no such difference. Minutes include compilation.
""")


# --- the command line


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line; of that of this process, where no words are given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the idx files of Fashion-MNIST")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--steps", type=positive, default=20_000, help="of the trainings whose samples are measured")
    parser.add_argument("--batch", type=positive, default=128)
    parser.add_argument("--warmup", type=int, help="steps; by default a tenth of all, up to 5000")
    parser.add_argument("--size", choices=UNET_SIZES, default="small")
    parser.add_argument("--seeds", type=positive, default=1, help="how many trainings of each loop")
    parser.add_argument("--samples", type=positive, default=10_000)
    parser.add_argument("--euler-steps", type=positive, default=50, help="of a sample")
    parser.add_argument("--classifier-steps", type=positive, default=4000)
    parser.add_argument("--rounds", type=positive, default=20, help="of a measurement of speed")
    parser.add_argument("--chunk", type=positive, default=20, help="steps of a loop in a round")
    parser.add_argument("--dit", nargs="+", choices=DIT_SIZES, default=tuple(DIT_SIZES))
    parser.add_argument("--dit-batch", type=positive, help="by default what fills the GPU")
    parser.add_argument("--image-size", type=positive, default=32, help="height and width of what they are trained on")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in dense bfloat16, where its name is not known")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--no-bf16", dest="bf16", action="store_false")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    once = parser.add_mutually_exclusive_group()
    once.add_argument("--quick", action="store_true", help="few steps, samples and rounds")
    once.add_argument("--write", action="store_true", help=f"append the report to {RESULTS.name}")
    options = parser.parse_args(words)
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
    options.backend = "inductor"
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
