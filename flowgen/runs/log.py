"""The log of a training run: always lines of JSON, and TensorBoard on request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowgen.core import InputError
from flowgen.extras import install

__all__ = ["Log", "board", "opened"]


class Log:
    """Values by step, as lines of a file and, with a TensorBoard writer, as curves and pictures."""

    def __init__(self, lines: Any, board: Any = None) -> None:
        self.lines, self.board = lines, board

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step."""
        self.lines.write(json.dumps({"step": step, **values}) + "\n")
        self.lines.flush()
        for name, value in values.items() if self.board else ():
            self.board.add_scalar(name, value, step)

    def show(self, step: int, picture: Path) -> None:
        """Log a picture of a step; TensorBoard keeps it."""
        if self.board:
            import numpy as np
            from PIL import Image

            with Image.open(picture, formats=["PNG"]) as image:
                self.board.add_image("preview", np.asarray(image.convert("RGB")), step, dataformats="HWC")


@contextmanager
def opened(path: Path, kind: str, step: int) -> Iterator[Log]:
    """Yield the log at a path, to write on; kind is `jsonl` or `tensorboard`, whose files go beside it, into
    tensorboard/. What TensorBoard has of steps after `step`, from which the run resumes, is removed.

    Raises:
        InputError: if TensorBoard is not installed.
    """
    if kind == "jsonl":
        with path.open("a", encoding="utf-8") as lines:
            yield Log(lines)
        return
    with (
        path.open("a", encoding="utf-8") as lines,
        board()(str(path.parent / "tensorboard"), purge_step=step + 1) as writer,
    ):
        yield Log(lines, writer)


def board() -> Any:
    """Return TensorBoard's writer.

    Raises:
        InputError: if TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(f"--log tensorboard needs TensorBoard: {install('tensorboard')}") from error
    return SummaryWriter
