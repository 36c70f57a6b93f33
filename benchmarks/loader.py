"""How fast a folder of images streams, in how much memory, and whether a training step waits for it.

Makes a folder of small PNG files, smooth and in colour, in ten class folders, and reads one epoch of it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from flowgen import FlowMatching, Model, Pair, State, fit
from flowgen.bench.report import machine, table
from flowgen.core import generator
from flowgen.data import Scaling
from flowgen.data.images.folder import ImageFolder, open_folder
from flowgen.nn import UNET_SIZES, UNet

RESULTS = Path(__file__).parent / "results" / "loader.md"
SIDE, CLASSES, BLOCK = 32, 10, 1000
MEMORY = Path("/proc")


def smooth(index: int) -> Tensor:
    """A thousand images of low frequencies, `(BLOCK, SIDE, SIDE, 3)` uint8."""
    coarse = torch.rand(BLOCK, 3, 4, 4, generator=generator(0, "images", index))
    fine = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic")
    return (fine.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1)


def make_folder(root: Path, count: int) -> None:
    """Writes `count` images, the same whenever it is called."""
    for number in range(CLASSES):
        (root / f"class{number}").mkdir()

    def write(index: int) -> None:
        for number, image in enumerate(smooth(index).numpy()[: count - index * BLOCK], index * BLOCK):
            path = root / f"class{number % CLASSES}" / f"{number:06d}.png"
            Image.fromarray(image).save(path, compress_level=1)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(write, range(-(-count // BLOCK))))


def resident(process: int | str) -> float:
    """The memory of a process in MiB; of pages that several share, its share."""
    lines = (MEMORY / str(process) / "smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


class Reading(NamedTuple):
    """At so many images: the rate since the last reading, in images a second, and the memory in MiB."""

    images: int
    rate: float
    main: float
    workers: float


def readings(folder: ImageFolder, batch: int, count: int) -> Iterator[Reading]:
    """Streams an epoch and reads the memory `count` times on the way."""
    stream, per_reading = folder.chunks(batch, seed=0), max(1, len(folder) // batch // count)
    next(stream)  # workers start
    for index in range(count):
        start = time.perf_counter()
        for _ in islice(stream, per_reading):
            pass
        rate = per_reading * batch / (time.perf_counter() - start)
        workers = [resident(child.pid) for child in multiprocessing.active_children() if child.pid]
        yield Reading((index + 1) * per_reading * batch, rate, resident("self"), sum(workers))


def training_step(size: str, batch: int, device: torch.device, steps: int = 10) -> float:
    """The median time of a training step of a U-Net on images that are there already, in seconds."""
    shape, rng = (3, SIDE, SIDE), generator(0, "step")
    net = UNet(shape, classes=CLASSES, **UNET_SIZES[size])
    state = State(Model(net, scaling=Scaling.of_range(0, 1)).to(device))
    labels = torch.arange(batch) % CLASSES
    pair = Pair(torch.randn(batch, *shape, generator=rng), torch.randn(batch, *shape, generator=rng), labels).to(device)
    times = [time.perf_counter()]
    for _ in fit(state, [pair] * (steps + 3), FlowMatching(), steps + 3, seed=0):
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())
    return median(after - before for before, after in pairwise(times[3:]))


def report(found: list[Reading], seconds: tuple[float, float], options: argparse.Namespace) -> str:
    """The table, and the sentences around it."""
    making, opening = seconds
    rows = [[f"{r.images:,}", f"{r.rate:,.0f}", f"{r.main:,.0f}", f"{r.workers:,.0f}"] for r in found]
    return (
        f"{options.images:,} PNG files of {SIDE}x{SIDE}, made in {making:.0f} s and listed in {opening:.2f} s. Batches "
        f"of {options.batch}, {options.workers} workers. Of memory that processes share, each has its share.\n\n"
        + table(["images read", "images/s", "main process (MiB)", "all workers (MiB)"], rows)
    )


def comparison(found: list[Reading], options: argparse.Namespace) -> str:
    """What a batch costs beside a training step."""
    device = torch.device(options.device)
    step = training_step(options.net, options.batch, device)
    load = options.batch / median(r.rate for r in found)
    return (
        f"\nA step of the U-Net `{options.net}` on {device.type} with this batch takes {1000 * step:.1f} ms, and its "
        f"batch {1000 * load:.1f} ms of the loader: {step / load:.1f} times as long.\n"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--readings", type=int, default=10)
    parser.add_argument("--net", choices=UNET_SIZES, help="compare with a training step of this U-Net")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the step")
    parser.add_argument("--folder", type=Path, help="where to make the images; by default a temporary folder")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    return parser.parse_args()


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        start = time.perf_counter()
        make_folder(Path(name), options.images)
        made = time.perf_counter()
        folder = open_folder(name, workers=options.workers)
        seconds = made - start, time.perf_counter() - made
        found = list(readings(folder, options.batch, options.readings))
    text = f"# Loading images\n\n{machine()}\n{report(found, seconds, options)}"
    text += comparison(found, options) if options.net else ""
    print(text)
    if options.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
