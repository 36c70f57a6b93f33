"""The format of a file, by its name."""

from __future__ import annotations

from pathlib import Path

__all__ = ["suffix"]


def suffix(path: Path | str) -> str:
    """Return the suffix of a path in lower case: `.csv` of `T.CSV`, `.csv.gz` of `t.csv.gz`."""
    path = Path(path)
    last, before = path.suffix.lower(), Path(path.stem).suffix.lower()
    return before + last if last == ".gz" and before else last
