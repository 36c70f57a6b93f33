"""Optional packages: the name of the distribution, its extras, and whether torchvision fits torch."""

from __future__ import annotations

import re
import sys
from importlib import import_module, metadata

__all__ = ["DISTRIBUTION", "install", "torchvision_error", "torchvision_fault"]

DISTRIBUTION = "flowgen-torch"
"""What pip calls this package: `flowgen` on the package index is another project."""

WHEELS = "https://download.pytorch.org/whl"
"""PyTorch's own index, which has a folder for each build: cpu, cu128, ..."""


def install(extra: str) -> str:
    """Return the command that installs an extra.

    >>> install("hub")
    "pip install 'flowgen-torch[hub]'"
    """
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def torchvision_error() -> Exception | None:
    """Return what the import of torchvision raises; None where it works."""
    try:
        import_module("torchvision")
    except (ImportError, RuntimeError) as error:  # RuntimeError: of the operators that another torch would have
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] == "torchvision" and module is not None:  # half of it; None stands for: not there
                del sys.modules[name]
        return error
    return None


def torchvision_fault() -> str | None:
    """Return in one line why torchvision does not fit torch, and what to install; None where it does, or is not there.

    A build of torchvision fits one build of torch: that of a release for the CPU needs the torch of that release for
    the CPU.
    """
    error = torchvision_error()
    if error is None or (isinstance(error, ModuleNotFoundError) and error.name == "torchvision"):
        return None
    torch, torchvision = metadata.version("torch"), metadata.version("torchvision")
    why = " ".join(str(error).split())
    unfit = f"torchvision {torchvision} does not fit torch {torch} ({why})"
    release, plus, build = torch.partition("+")
    if not re.fullmatch(r"|cpu|xpu|cu\d+|rocm[\d.]+", build):  # not of PyTorch's index
        return f"{unfit}: install the torchvision of the same build"
    needs = " ".join(metadata.requires("torchvision") or ())
    wanted = found[1] if (found := re.search(r"\btorch\b[ (]*==([\w.]+)", needs)) else release
    fitting = f"torchvision=={torchvision.partition('+')[0]}{plus}{build}"
    other = f"torch=={wanted}{plus}{build}"
    packages = f"--force-reinstall --no-deps {fitting}" if wanted == release else f"{other} {fitting}"
    index = f" --index-url {WHEELS}/{build}" if build else ""
    return f"{unfit}: pip install {packages}{index}"
