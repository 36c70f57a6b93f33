"""The parts of `gpu.sh`, which runs them one by one: each under a limit of its own, into one report."""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import torch
from gpu_images import distill, sample, train
from gpu_report import FULL, TINY, Given, LeftOut, Report, needed, options_of
from image_loops import wrapped

from flowgen import InputError
from flowgen.bench.report import machine

ROOT = Path(__file__).parent.parent
LACKS = {
    "torchcfm": "no U-Net, which is made of its blocks, and no peer in train and transport",
    "ot": "no exact transport, and no peer in transport",
    "pydantic": "no distributions on run folders",
    "sklearn": "no digits to try things on",
    "scipy": "no assignment of rows",
    "pytest": "no distributions",
}
"""What there is not without a package."""


def start(given: Given) -> None:
    """The head of the report: the machine, and what it lacks."""
    from images import hardware

    given.report.write(f"# On a GPU\n\n{hardware(given.device)}{driver()}{machine()}")
    missing = [f"no {name}: {lost}" for name, lost in LACKS.items() if find_spec(name) is None]
    line = "; ".join(missing) or "nothing is missing here"
    images = f"Fashion-MNIST from {given.data.name}/" if given.has_images else "random images: speeds, and no quality"
    data = "the digits of scikit-learn" if given.tiny else images
    given.report.write(f"Packages: {line}. Data: {data}.")
    print(f"packages: {line}; data: {data}", flush=True)
    given.report.facts(
        "start", torch=torch.__version__, cuda=torch.version.cuda, device=str(given.device), missing=missing
    )


def driver() -> str:
    """The line of the driver, where there is one."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"- driver {found[0]}\n" if found else ""


def distributions(given: Given) -> None:
    """The distributions of the suite on this device; without a GPU a few of them, on the CPU.

    Raises:
        RuntimeError: if one does not hold.
    """
    needed("pytest")
    only = ["-m", "gpu"] if given.device.type == "cuda" else ["-k", "starts and cpu"]
    words = [*only, "--noconftest", "-o", "addopts=", "-p", "no:cacheprovider", "-v", "--tb=short"]
    command, log = [sys.executable, "-m", "pytest", *words, "tests/test_gpu.py"], given.work / "distributions.txt"
    began, code = time.monotonic(), None
    with log.open("w") as file:  # what has run stays, if time runs out
        try:
            seconds = max(1.0, given.left - 3)
            code = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            pass
    text = log.read_text()
    held, *others = (re.findall(rf"^(\S+) {word}", text, re.MULTILINE) for word in ("PASSED", "FAILED", "ERROR"))
    failed, note = [*chain(*others)], "" if code is not None else " when time ran out"
    summary = f"{len(held)} distributions hold, {len(failed)} do not{note}."
    given.report.write(
        "\n".join(["## Distributions on the device", "", summary, "", *(f"- {name}" for name in failed)])
    )
    given.report.facts("distributions", code=code, held=len(held), failed=failed, seconds=time.monotonic() - began)
    print(text, file=sys.stderr)
    if code:
        raise RuntimeError(summary)


def dit(given: Given) -> None:
    """The share of the peak that a transformer reaches."""
    from image_dits import dit_table, peak_tflops, transformer

    options = options_of(given)
    options.compile = True
    options.chunk, options.rounds = (1, 1) if given.tiny else (4, 7)
    try:
        peak = peak_tflops(options)
    except InputError:
        peak = math.nan
    found = transformer(given.sizes.dit, options)
    given.report.write(dit_table([found], peak, options))
    given.report.facts("dit", **found._asdict(), peak_tflops=None if math.isnan(peak) else peak)


def transport(given: Given) -> None:
    """Seconds and cost of couplings, theirs and ours."""
    from transport import METHODS, Task, measured, sizes_of

    images = given.data if given.has_images and not given.tiny else None
    report, sizes = given.report, given.sizes
    report.write("## Transport")
    report.begin(("method", "dimensions", "rows", "seconds", "cost", ""))
    for method, about in METHODS.items():
        for dim in (2, 784):
            if any(find_spec(name) is None for name in about.needs):
                report.row(method, str(dim), "", "", "", f"needs {', '.join(about.needs)}")
                continue
            cap = min(sizes.cap, given.left - 5)
            task = Task(method, dim, sizes_of(method, sizes.rows), cap, given.device.type, images)
            for found in measured(task) if cap > 1 else ():
                done = not math.isnan(found.cost)
                cells = (f"{found.seconds:.4f}", f"{found.cost:.3f}") if done else ("", "")
                report.row(method, str(dim), f"{found.rows:,}", *cells, found.word)
                report.facts(
                    "transport", **found._asdict() if done else {**found._asdict(), "seconds": None, "cost": None}
                )
    report.end(
        wrapped(f"""Standard normal rows to 8gaussians in 2 dimensions, to images in 784. Cost is the mean squared
distance of pairs. A size may take {sizes.cap:g} seconds; after one that takes longer, larger ones are not tried. Each
is done once, after a small one to warm up.""")
    )


PARTS = {
    "start": start,
    "distributions": distributions,
    "dit": dit,
    "transport": transport,
    "train": train,
    "sample": sample,
    "distill": distill,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--work", type=Path, required=True, help="folder of what a part leaves for the next")
    parser.add_argument("--data", type=Path, required=True, help="folder of the idx files of Fashion-MNIST")
    parser.add_argument("--seconds", type=float, required=True, help="until the part is ended")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    end = time.monotonic() + options.seconds
    sizes = TINY if options.tiny else FULL
    given = Given(sizes, options.tiny, device, Report(options.out), options.work, options.data, end)
    try:
        PARTS[options.part](given)
    except LeftOut as reason:
        given.report.write(f"## {options.part}: left out\n\n{reason}.")
        print(reason, file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
