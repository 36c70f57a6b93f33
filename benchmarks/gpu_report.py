"""What the parts of `gpu.py` share: the report that they write as they go, their time, and their sizes."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from image_loops import Data, read_data

from flowgen.bench.report import table
from flowgen.core import generator
from flowgen.data import TensorDataset, read_images


class LeftOut(Exception):
    """A part that cannot be done here, and why."""


class Report:
    """gpu.md and gpu.jsonl in a folder, written to line by line: nothing is lost of a part that is ended."""

    def __init__(self, folder: Path) -> None:
        self._text, self._facts = folder / "gpu.md", folder / "gpu.jsonl"

    def write(self, text: str) -> None:
        """Appends a paragraph, a heading, or a whole section."""
        with self._text.open("a") as file:
            file.write(text.rstrip("\n") + "\n\n")

    def begin(self, head: Sequence[str]) -> None:
        """Appends the head of a table, whose rows come one by one."""
        with self._text.open("a") as file:
            file.write(table(head, []))

    def row(self, *cells: str) -> None:
        with self._text.open("a") as file:
            file.write(f"| {' | '.join(cells)} |\n")

    def end(self, note: str = "") -> None:
        """Ends a table; a note may follow it."""
        self.write(f"\n{note}")

    def facts(self, part: str, **facts: object) -> None:
        """Appends a line of raw numbers."""
        with self._facts.open("a") as file:
            file.write(json.dumps({"part": part, **facts}) + "\n")


class Sizes(NamedTuple):
    """How much is done: on a GPU, and to try all of it on a CPU.

    unet, batch, chunk, rounds: of the loops whose speed is measured; and the most steps of those whose samples are.
    dit, image, dit_batch: of the transformer; its batch is what fills the GPU, if it is 0.
    rows, cap: of transport, and the most seconds of one size.
    samples, evaluations: that are compared with data, and Euler steps of each.
    sampled, at_once, walks: images that are sampled for their speed, how many at a time, and in how many steps.
    pairs: of a reflow.
    """

    unet: str
    batch: int
    chunk: int
    rounds: int
    steps: int
    classifier_steps: int
    dit: str
    image: int
    dit_batch: int
    rows: tuple[int, ...]
    cap: float
    samples: int
    evaluations: int
    sampled: int
    at_once: int
    walks: tuple[int, ...]
    pairs: int


FULL = Sizes(
    "small",
    128,
    20,
    9,
    20_000,
    3000,
    "base",
    64,
    0,
    (512, 2048, 8192, 51_200),
    5.0,
    5000,
    25,
    51_200,
    2048,
    (1, 4, 50),
    40_960,
)
TINY = Sizes("tiny", 4, 1, 1, 2, 2, "tiny", 8, 2, (64,), 5.0, 64, 1, 64, 64, (1, 2), 64)


class Given(NamedTuple):
    """What a part is given: the sizes, the device, where to write and keep things, and when it has to end."""

    sizes: Sizes
    tiny: bool
    device: torch.device
    report: Report
    work: Path
    data: Path
    end: float

    @property
    def left(self) -> float:
        """Seconds until its limit."""
        return self.end - time.monotonic()

    @property
    def has_images(self) -> bool:
        """Whether there are images to learn from; of random ones only the speed says anything."""
        return self.tiny or bool(list(self.data.glob("train-images*")))

    def read(self) -> Data:
        """Fashion-MNIST where it is, the digits of scikit-learn to try things, else random bytes."""
        if list(self.data.glob("train-images*")) and not self.tiny:
            return read_data(self.data)
        if self.tiny:
            images = read_images("digits")
            rows = TensorDataset(images.pixels, images.labels)
            return Data(rows.take(slice(1500)), rows.take(slice(1500, None)))
        pixels = torch.randint(256, (70_000, 1, 28, 28), dtype=torch.uint8, generator=generator(0, "random images"))
        rows = TensorDataset(pixels, torch.arange(70_000) % 10)
        return Data(rows.take(slice(60_000)), rows.take(slice(60_000, None)))


def needed(*packages: str) -> None:
    """
    Raises:
        LeftOut: unless all packages are here.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise LeftOut(f"it needs {', '.join(missing)}")


def options_of(given: Given) -> argparse.Namespace:
    """The options of `images.py` for these sizes."""
    from images import parse

    s = given.sizes
    fixed = {
        "--size": s.unet,
        "--batch": s.batch,
        "--chunk": s.chunk,
        "--rounds": s.rounds,
        "--steps": s.steps,
        "--samples": s.samples,
        "--euler-steps": s.evaluations,
        "--classifier-steps": s.classifier_steps,
        "--dit": s.dit,
        "--image-size": s.image,
        "--device": given.device.type,
    }
    few = ["--dit-batch", str(s.dit_batch)] if s.dit_batch else []
    options = parse([str(given.data), *(str(x) for pair in fixed.items() for x in pair), *few])
    if given.device.type != "cuda":
        options.backend = "eager"  # traces as for a GPU, but writes no code, which would take minutes
        options.compile = False
    return options
