"""The parts of `gpu.py` on images: training beside torchcfm, sampling, reflow and distillation of what was trained."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from statistics import median

import torch
from gpu_report import Given, LeftOut, needed, options_of
from image_loops import CLIP, LR, ahead_of, flowgen, plain, release, say, synchronize, unet, wrapped
from images import (
    FIGURES,
    FLOAT,
    FULL,
    PLAIN,
    Judge,
    figures_row,
    floor,
    judge,
    label,
    quality_note,
    speed_table,
    timed,
)
from images import samples as images_of
from images import train as trained_by
from torch import Tensor

from flowgen import FlowMatching, Model, Pair, State, batches, euler, fit, grids
from flowgen.bench.report import quartiles
from flowgen.data import Gaussian, Scaling
from flowgen.data.images.pictures import to_uint8
from flowgen.data.streams import floats, source_rows
from flowgen.objectives import Objective
from flowgen.objectives.flow_maps import EndPoint
from flowgen.pairs import StoredPairs
from flowgen.samplers.flow_map import FlowMapStep
from flowgen.samplers.ode import Solver
from flowgen.sampling import pair_chunks, sample_chunks
from flowgen.training.loop import channels_last, compile_net
from flowgen.training.optim import ConstantRate

TEACHER = "teacher.pt"
EXAMINED = 15.0
"""Seconds that are kept for measuring samples, beside those of making them."""
COMPILES = 25.0
"""Seconds to compile once more what was compiled before."""
FEWEST = 200
"""Steps, of which samples say nothing yet, but that something was learned."""


# --- training beside torchcfm


def train(given: Given) -> None:
    """Images per second of the loops, and the distance of samples after as many steps as there is time for."""
    needed("torchcfm", "ot")
    data, options, report = given.read(), options_of(given), given.report
    found = timed(data, options)
    report.write(speed_table(found, data, options))
    report.facts("train", what="speed", milliseconds_per_image=found.times, gib=finite(found.memory))
    if not given.has_images:
        report.write("Of random images there is no quality: give Fashion-MNIST as `--data`.")
        return
    judged = judge(data, options)
    if not given.tiny:
        options.steps = fitting({name: median(times) / 1e3 for name, times in found.times.items()}, given, options)
        options.warmup = options.steps // 10
    report.write("## Training a U-Net: quality")
    report.begin(FIGURES)
    report.row(*floor(data, judged))
    for name, make in ((PLAIN, plain), (FULL, flowgen)):
        say(f"quality: {name}, {options.steps} steps")
        training, minutes = trained_by(make, data.train, options, 0)
        if name == FULL:
            torch.save(training.averaged.net.state_dict(), given.work / TEACHER)
        for kind, model in (("averaged weights", training.averaged), ("last weights", training.last)):
            figures = judged.figures(images_of(model, judged.real, 0, options.euler_steps))
            report.row(*figures_row(f"{label(name, options)}: {kind}", [figures], [minutes]))
            report.facts("train", what=name, weights=kind, steps=options.steps, minutes=minutes, **figures)
    report.end(quality_note(judged, options))


def fitting(seconds: dict[str, float], given: Given, options: argparse.Namespace) -> int:
    """The steps of both loops for which there is time, given the seconds of an image in a step of each."""
    evaluations = 4 * options.samples * options.euler_steps  # of two loops, last and averaged weights
    left = given.left - EXAMINED - COMPILES - evaluations * seconds[FLOAT] / 3
    return max(FEWEST, min(options.steps, int(left / (options.batch * (seconds[PLAIN] + seconds[FULL])))))


def finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(x) else x for name, x in values.items()}


# --- sampling


def teacher(given: Given, options: argparse.Namespace) -> tuple[Model, bool]:
    """The network of `train`, or one that is untrained, and whether it is trained."""
    data = given.read()
    net, kept = unet(data.train, options, 0), given.work / TEACHER
    if kept.exists():
        net.load_state_dict(torch.load(kept, weights_only=True, map_location="cpu"))
    model = Model(net, scaling=Scaling.of_range(0, 1)).to(given.device).for_inference()
    return channels_last(model), kept.exists()


@dataclass(frozen=True)
class Way:
    """How samples are made: so many at once (by default as the library chooses), in half precision, compiled."""

    name: str
    at_once: int | None
    half: bool = False
    compiled: bool = False

    def precision(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16) if self.half else nullcontext()


def sample(given: Given) -> None:
    """Images per second in few steps and many, and what noise from the CPU costs them."""
    needed("torchcfm", "ot")
    options, report, sizes = options_of(given), given.report, given.sizes
    model, trained = teacher(given, options)
    source = Gaussian(tuple(given.read().train.shape))
    judged = judge(given.read(), options) if trained else None
    report.write("## Sampling")
    noise = noise_of(source, sizes.at_once, given, options)
    ways = [
        Way("float32", None),
        Way("float32", sizes.at_once),
        Way("bfloat16", sizes.at_once, half=True),
        Way("bfloat16, compiled", sizes.at_once, half=True, compiled=True),
    ]
    report.begin(("precision", "at once", "steps", "images", "images/s", "of it noise from the CPU", "Fréchet"))
    left = len(sizes.walks) * len(ways)
    for way in ways:
        with way.precision(given.device):
            walked = deepcopy(model)
            if way.compiled:
                walked.net.compile(backend=options.backend)
            next(made_of(walked, source, way, 1, given))
            for steps in sizes.walks:
                seconds, rows = timed_samples(
                    made_of(walked, source, way, steps, given), (given.left - EXAMINED) / left
                )
                left -= 1
                share = noise * len(rows) / seconds
                distance = frechet(judged, rows[: sizes.samples])
                cells = (
                    way.name,
                    str(way.at_once or "default"),
                    str(steps),
                    f"{len(rows):,}",
                    f"{len(rows) / seconds:,.0f}",
                )
                report.row(*cells, f"{share:.1%}", "" if distance is None else f"{distance:.3f}")
                report.facts(
                    "sample", way=way.name, at_once=way.at_once, steps=steps, images=len(rows), seconds=seconds,
                    noise_seconds=noise * len(rows), frechet=distance,
                )  # fmt: skip
    which = "The net of the part before" if trained else "A net that is not trained"
    report.end(
        wrapped(f"""{which}, U-Net `{sizes.unet}`, Euler steps with labels, until {sizes.sampled:,} images are made or
their share of the time is over. Samples come to the CPU. The share of noise is what is made and copied before a chunk
is walked, by the table above.""")
    )


def noise_of(source: Gaussian, rows: int, given: Given, options: argparse.Namespace) -> float:
    """Writes what noise costs, and gives the seconds of noise for one image: made on the CPU, and copied."""
    labels, model = torch.zeros(rows, dtype=torch.int64, device=given.device), teacher(given, options)[0]
    x = source_rows(source, 0, rows, 0).to(given.device)
    t = torch.full((rows,), 0.5, device=given.device)

    def evaluated() -> None:
        with torch.no_grad():
            model.velocity(x, t, labels)

    host = source_rows(source, 0, rows, 1)
    found = {
        "made on the CPU, a generator for each 64 rows": lambda: source_rows(source, 0, rows, 0),
        "copied to the device": lambda: host.to(given.device),
        "made on the device instead": lambda: torch.randn(rows, *source.shape, device=given.device),
        "one evaluation of the net, float32": evaluated,
    }
    times = {name: milliseconds(run, given.device) for name, run in found.items()}
    given.report.begin((f"noise of {rows:,} images", "ms, median [quartiles]"))
    for name, values in times.items():
        given.report.row(name, quartiles(values))
    given.report.end()
    given.report.facts("sample", what="noise", rows=rows, milliseconds=times)
    made, copied, *_ = (median(values) for values in times.values())
    return (made + copied) / 1e3 / rows


def milliseconds(run: Callable[[], object], device: torch.device, rounds: int = 7) -> list[float]:
    times = []
    for _ in range(rounds + 1):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return times[1:]


def made_of(model: Model, source: Gaussian, way: Way, steps: int, given: Given) -> Iterator[Tensor]:
    """The chunks of a sample."""
    num = given.sizes.sampled
    labels, grid = torch.arange(num) % 10, grids.uniform(steps)
    return sample_chunks(model, source, num, grid, euler, seed=steps, chunk=way.at_once, cond=labels)


def timed_samples(chunks: Iterator[Tensor], seconds: float) -> tuple[float, Tensor]:
    """The seconds of chunks that are made in so many, of at least one, and their rows."""
    start, made = time.perf_counter(), []
    for rows in chunks:
        made.append(rows)
        if time.perf_counter() - start > seconds:
            break
    return time.perf_counter() - start, torch.cat(made)


def frechet(judged: Judge | None, rows: Tensor) -> float | None:
    """The distance of samples, if there is a judge."""
    return None if judged is None else judged.frechet(floats(to_uint8(rows)))


# --- reflow and distillation


def distill(given: Given) -> None:
    """One step after a reflow, and after a regression on its pairs, beside many steps of the teacher."""
    needed("torchcfm", "ot")
    options, sizes, report = options_of(given), given.sizes, given.report
    model, trained = teacher(given, options)
    if not trained:
        raise LeftOut("it needs the net that part train leaves")
    judged, source = judge(given.read(), options), Gaussian(tuple(given.read().train.shape))
    report.write("## Reflow and distillation")
    report.begin(("net", "steps", "Fréchet", "coverage", "seconds", "trained for"))

    def row(name: str, model: Model, solver: Solver, steps: int, seconds: float = 0.0, trained_for: str = "") -> None:
        grid, real = grids.uniform(steps), judged.real
        made = torch.cat(
            [*sample_chunks(model, source, len(real), grid, solver, chunk=sizes.at_once, cond=real.labels)]
        )
        found = judged.figures(floats(to_uint8(made)))
        report.row(
            name, str(steps), f"{found['frechet']:.3f}", f"{found['coverage']:.3f}", f"{seconds:.1f}", trained_for
        )
        report.facts("distill", net=name, steps=steps, seconds=seconds, trained_for=trained_for, **found)

    for steps in (sizes.evaluations, 4, 1):
        row("teacher", model, euler, steps)
    pair, seconds = reflowed(model, source, given)
    say(f"distill: {len(pair.x0)} pairs in {seconds:.1f} s")
    share = 1.0 if given.tiny else max(1.0, (given.left - EXAMINED - 2 * COMPILES) / 2)
    straight, done = student(model, pair, FlowMatching(), share, options)
    for steps in (4, 1):
        row("reflow", straight, euler, steps, share, f"{done:,} steps")
    quick, done = student(straight, pair, EndPoint(), share, options)
    row("reflow, then regression on its pairs", quick, FlowMapStep(), 1, share, f"{done:,} steps")
    report.end(
        wrapped(f"""{len(pair.x0):,} pairs, made in {seconds:.1f} s by {sizes.evaluations} Euler steps of the teacher in
bfloat16. Students begin at their teacher, and train as flowgen does above; seconds are without compilation.""")
    )


def reflowed(model: Model, source: Gaussian, given: Given) -> tuple[Pair, float]:
    """Pairs of a reflow, as many as there is time for, and the seconds that they took."""
    sizes, start, pairs = given.sizes, time.perf_counter(), []
    labels, grid = torch.arange(sizes.pairs) % 10, grids.uniform(sizes.evaluations)
    with torch.autocast(given.device.type, torch.bfloat16):
        chunks = pair_chunks(
            model, source, sizes.pairs, grid, euler, stream="reflow 1", chunk=sizes.at_once, cond=labels
        )
        for pair in chunks:
            pairs.append(pair)
            if time.perf_counter() - start > given.left / 4:
                break
    return Pair.cat(pairs), time.perf_counter() - start


def student(
    model: Model, pair: Pair, objective: Objective, seconds: float, options: argparse.Namespace
) -> tuple[Model, int]:
    """The averaged model after so many seconds of training on pairs from where another stands, and its steps."""
    release(options.device)
    state = State(channels_last(deepcopy(model)))
    if options.compile:
        compile_net(state, options.backend)
    pairs = ahead_of(batches(StoredPairs(pair), options.batch, seed=1), options.device)
    loop = fit(
        state, pairs, objective, 10**9, seed=1, clip=CLIP, precision=options.precision, rate=ConstantRate(LR, 10)
    )
    next(loop)
    start = time.perf_counter()
    for _ in loop:
        if time.perf_counter() - start > seconds:
            break
    loop.close()  # type: ignore[attr-defined]
    return state.ema, state.step
