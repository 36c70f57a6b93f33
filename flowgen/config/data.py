"""Data by name: the rows for training, and the held-out rows."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from flowgen.config.fields import Section
from flowgen.config.places import is_place
from flowgen.core import InputError
from flowgen.data import TOYS, Distribution, Scaling, TensorDataset, read_table, splitting
from flowgen.data.images.arrays import Images, is_folder, is_images
from flowgen.data.images.folder import ImageFolder, open_folder
from flowgen.data.images.reading import read_images
from flowgen.data.suffixes import suffix
from flowgen.data.tables import READERS, column_order
from flowgen.training.checkpoints import file_hash

__all__ = [
    "DataKind",
    "ImagesConfig",
    "LoadedData",
    "SplitConfig",
    "TableConfig",
    "data_hash",
    "kind",
    "load_data",
    "named_kind",
    "read_rows",
]

HELD_OUT_FILES = 10_000
"""The most images of a streamed folder that are held out: they are kept in memory to compare samples with."""


class SplitConfig(Section):
    """Rows that training never sees: a share of them, drawn by a seed that reflows keep; with `stratify`, a share of
    each class, of which at least one row is trained on."""

    held_out: float = Field(0.1, ge=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**63)
    stratify: bool = False


class TableConfig(Section):
    """How tables are read: whether the first line of text holds names, and which column holds labels, where `auto` is
    one that is named so."""

    header: Literal["auto", "yes", "no"] = "auto"
    label_column: str | None = None

    @property
    def named(self) -> bool | None:
        """Return whether the first line holds names; None to find out."""
        return {"auto": None, "yes": True, "no": False}[self.header]

    def asked(self, header: str | None) -> TableConfig:
        """Return how to read another table: with a header, `yes` or `no`, or as these are where it is None.

        Raises:
            InputError: for another word.
        """
        if header not in (None, "auto", "yes", "no"):
            raise InputError(f"--header is yes or no, not {header}")
        return self if header is None else self.model_copy(update={"header": header})


class ImagesConfig(Section):
    """How images are read: their size, the bits of those stored in 16, and whether broken ones are skipped; folders
    above `memory` MiB are streamed.
    """

    size: int | None = Field(None, ge=1, le=4096)
    channels: Literal[1, 3] | None = None
    bits: int | None = Field(None, ge=8, le=16)
    flip: bool = False
    strict: bool = False
    memory: int = Field(256, ge=0)
    workers: int = Field(2, ge=0, le=256)


class LoadedData(NamedTuple):
    """The data of training, in data units, with the held-out rows.

    distribution: of training; of given rows it holds their labels too, where they have any.
    held_out: of evaluation: the same for a toy, whose every draw is new; other rows of a file; None without any.
    scaling: takes data into model units.
    columns: their names.
    classes: names of the labels 0, 1, ...; empty without labels.
    hash: SHA-256 of the file, or of the list of a folder; None of a toy.
    label_column: the column of a table that holds its labels; None where none does.
    no_labels: why there are none, in words.
    unused: how many classes the labels have that were left out.
    """

    distribution: Distribution
    held_out: Distribution | None
    scaling: Scaling
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    hash: str | None = None
    label_column: str | None = None
    no_labels: str = ""
    unused: int = 0

    @property
    def counts(self) -> list[int]:
        """Return how many training rows each label has; empty without labels."""
        labels = self.distribution.labels if isinstance(self.distribution, TensorDataset | ImageFolder) else None
        return [] if labels is None else labels.bincount(minlength=len(self.classes)).tolist()

    @property
    def seen(self) -> list[int]:
        """Return the labels that some training row has."""
        return [label for label, count in enumerate(self.counts) if count]

    def unlabelled(self) -> LoadedData:
        """Return the same data without labels."""
        distribution, held_out = _without_labels(self.distribution), self.held_out and _without_labels(self.held_out)
        return self._replace(distribution=distribution, held_out=held_out, classes=(), unused=len(self.classes))

    def in_order(self, classes: tuple[str, ...]) -> LoadedData:
        """Return the same data, with labels numbered by the same classes in another order."""
        to = torch.tensor([classes.index(name) for name in self.classes])
        distribution, held_out = _renumbered(self.distribution, to), self.held_out and _renumbered(self.held_out, to)
        return self._replace(distribution=distribution, held_out=held_out, classes=classes)

    def with_columns(self, columns: tuple[str, ...], shape: tuple[int, ...], name: str) -> LoadedData:
        """Return the same data with the columns of a table in the order of another's with that shape, by their names.

        Raises:
            InputError: if it has not the same columns.
        """
        if not isinstance(self.distribution, TensorDataset) or len(shape) != 1 or len(self.distribution.shape) != 1:
            return self
        order = column_order(self.columns, self.distribution.shape[0], columns, shape[0], name)
        held_out = self.held_out and _columns_of(self.held_out, order)
        return self._replace(
            distribution=_columns_of(self.distribution, order), held_out=held_out, columns=columns or self.columns
        )

    def unseen(self, name: str) -> Distribution:
        """Return the held-out distribution.

        Raises:
            InputError: if there is none.
        """
        if self.held_out is None:
            raise InputError(f"no row of {name} was held out from training: there is nothing to evaluate on")
        return self.held_out


def _columns_of(distribution: Distribution, order: list[int]) -> Distribution:
    return (
        TensorDataset(distribution.x[:, order], distribution.labels)
        if isinstance(distribution, TensorDataset)
        else distribution
    )


def _without_labels(distribution: Distribution) -> Distribution:
    if isinstance(distribution, ImageFolder):
        return distribution.without_labels()
    return TensorDataset(distribution.x) if isinstance(distribution, TensorDataset) else distribution


def _renumbered(distribution: Distribution, to: Tensor) -> Distribution:
    """Return the distribution with the label to[i] in place of i."""
    if isinstance(distribution, TensorDataset | ImageFolder) and distribution.labels is not None:
        return replace(distribution, labels=to[distribution.labels])
    return distribution


def read_rows(
    name: str,
    images: ImagesConfig,
    tables: TableConfig = TableConfig(),  # noqa: B008
) -> tuple[TensorDataset, tuple[str, ...]]:
    """Read all rows of a file or of a folder of images, and the names of their columns. Nothing is held out, and labels
    are left out.

    Raises:
        InputError: for a bad file.
    """
    if not is_images(name):
        table = read_table(Path(name), header=tables.named, label_column=tables.label_column, labels_needed=False)
        return TensorDataset(table.x), table.columns
    found = _read(name, images)
    return TensorDataset((found.load() if isinstance(found, ImageFolder) else found).pixels), ()


def data_hash(name: str, images: ImagesConfig) -> str | None:
    """Return the `LoadedData.hash` of a file or a folder; None where it cannot be read."""
    try:
        return _read(name, images).hash if is_images(name) else file_hash(Path(name))
    except (InputError, OSError):
        return None


DataKind = Literal["toy", "table", "images"]


def named_kind(name: object) -> DataKind | None:
    """Return the kind of the data of a name that is no place; None of a file or a folder."""
    if not isinstance(name, str) or is_place(name):
        return None
    return "toy" if name in TOYS else "images"


def kind(name: str) -> DataKind:
    """Return the kind of the data of a name without reading them; of an array only the header is read. A name of
    nothing counts as a table, and is refused later.
    """
    return named_kind(name) or ("images" if is_images(name) else "table")


def load_data(
    name: str,
    split: SplitConfig,
    images: ImagesConfig = ImagesConfig(),  # noqa: B008
    tables: TableConfig = TableConfig(),  # noqa: B008
    labels_needed: bool = True,
) -> LoadedData:
    """Load the data of a toy's name, of a table's file, or of images.

    Toys keep their units, tables are standardised by training rows, images go to [-1, 1] by the range of their values.

    Args:
        labels_needed: whether a table must have the column of labels of `tables`.

    Raises:
        InputError: for an unknown name or a bad file.
    """
    if tables.label_column and labels_needed and kind(name) != "table":
        raise InputError(f"{name} is no table: leave out the column of labels, {tables.label_column}")
    if not name.strip():  # Path("") is the current folder
        raise InputError("the name of the data is empty: give a toy, a file or a folder")
    if name in TOYS:
        distribution = TOYS[name]()
        return LoadedData(distribution, distribution, Scaling(), no_labels=f"{name} has no labels")
    if is_images(name):
        return _images(name, split, images)
    return _table(name, split, tables, labels_needed)


def _table(name: str, split: SplitConfig, tables: TableConfig, labels_needed: bool) -> LoadedData:
    path = Path(name)
    if suffix(path) not in READERS and not path.exists():
        raise InputError(_missing(name))
    table = read_table(path, header=tables.named, label_column=tables.label_column, labels_needed=labels_needed)
    labels, classes = table.numbered or (None, ())
    seen, unseen = _split(name, TensorDataset(table.x, labels), split)
    return LoadedData(
        seen,
        unseen,
        Scaling.standardising(seen.x),
        table.columns,
        classes,
        file_hash(path),
        table.label_column,
        table.no_labels,
    )


def _missing(name: str) -> str:
    """Return the message that there are no data of a name, with the nearest name that exists."""
    if Path(name).name != name:
        return f"{name}: there is no such file or folder"
    names = (*TOYS, "digits")
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"{name}: there is no such file or folder, and no data of that name{hint}: choose from {', '.join(names)}"


def _images(name: str, split: SplitConfig, settings: ImagesConfig) -> LoadedData:
    found = _read(name, settings)
    if isinstance(found, ImageFolder):
        seen_files, held = _split_files(found, split)
        unseen = TensorDataset(held.pixels, held.labels) if held else None
        why = "" if found.classes else f"{name}: the images lie in no folders of classes"
        return LoadedData(seen_files, unseen, Scaling.of_range(0, 1), (), found.classes, found.hash, no_labels=why)
    rows = TensorDataset(found.pixels, found.labels)
    if found.held_out:
        cut = len(rows) - found.held_out
        seen, unseen = rows.take(slice(cut)), rows.take(slice(cut, None))
    else:
        seen, unseen = _split(name, rows, split)
    lo, hi = (0, 1) if seen.x.dtype == torch.uint8 else (seen.x.min().item(), seen.x.max().item())
    why = "" if found.classes else found.no_labels or f"{name}: the images have no labels"
    return LoadedData(seen, unseen, Scaling.of_range(lo, hi), (), found.classes, found.hash, no_labels=why)


def _read(name: str, settings: ImagesConfig) -> Images | ImageFolder:
    """Read images into memory, or open a folder that is too large for it."""
    if not is_folder(name):
        return read_images(name, size=settings.size, channels=settings.channels, bits=settings.bits)
    folder = open_folder(
        Path(name),
        size=settings.size,
        channels=settings.channels,
        workers=settings.workers,
        strict=settings.strict,
        bits=settings.bits,
    )
    channels, height, width = folder.shape
    large = len(folder) * channels * height * width > settings.memory * 2**20
    return folder if large else folder.load()


def _split_files(folder: ImageFolder, split: SplitConfig) -> tuple[ImageFolder, Images | None]:
    """Return the files to train on, and the held-out images."""
    count = min(int(split.held_out * len(folder)), HELD_OUT_FILES)
    taken = splitting.hold_out(len(folder), count, split.seed, folder.labels if split.stratify else None)
    seen = torch.ones(len(folder), dtype=torch.bool)
    seen[taken] = False
    return folder.subset(seen.nonzero().squeeze(1)), folder.subset(taken).load() if len(taken) else None


def _split(name: str, rows: TensorDataset, split: SplitConfig) -> tuple[TensorDataset, TensorDataset | None]:
    """Return the rows to train on, and the held-out ones."""
    seen, unseen = splitting.split(rows.x, split.held_out, split.seed, rows.labels if split.stratify else None)
    if len(seen) < 2:
        raise InputError(f"{name}: training needs at least 2 rows, found {len(seen)}, with {len(unseen)} held out")
    return rows.take(seen), rows.take(unseen) if len(unseen) else None
