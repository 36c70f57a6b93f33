"""Data by name: what training draws from, and what it does not see."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import Field
from torch import Tensor

from flowgen.checkpoints import file_hash
from flowgen.config.fields import Section, lookup
from flowgen.core import InputError
from flowgen.data import TOYS, Law, Rows, Scaling, read_table, splitting
from flowgen.data.tables import READERS

__all__ = ["LoadedData", "SplitConfig", "load_data"]


class SplitConfig(Section):
    """Rows of a table that training never sees: a share of them, drawn by a seed that reflows keep."""

    held_out: float = Field(0.1, ge=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**63)


class LoadedData(NamedTuple):
    """What training draws from, in data units, and what it does not see.

    law: of training.
    held_out: of evaluation: the same for a toy, whose every draw is new; other rows of a table; None without any.
    scaling: takes data into model units.
    columns: their names.
    labels: classes of the training rows and of the held-out rows, where the file has them.
    hash: SHA-256 of the file; None of a toy.
    """

    law: Law
    held_out: Law | None
    scaling: Scaling
    columns: tuple[str, ...]
    labels: tuple[Tensor, Tensor] | None = None
    hash: str | None = None

    def unseen(self, name: str) -> Law:
        """The held-out law.

        Raises:
            InputError: if there is none.
        """
        if self.held_out is None:
            raise InputError(f"no row of {name} was held out from training: there is nothing to evaluate on")
        return self.held_out


def load_data(name: str, split: SplitConfig) -> LoadedData:
    """The data of a toy's name, or of a table's file. Toys keep their units; tables are standardised, by training rows.

    Raises:
        InputError: for an unknown name or a bad file.
    """
    if name in TOYS:
        law = TOYS[name]()
        return LoadedData(law, law, Scaling(), ())
    path = Path(name)
    if path.suffix not in READERS and not path.exists():
        lookup("data", name, TOYS)
    table = read_table(path)
    seen, unseen = splitting.split(table.x, split.held_out, split.seed)
    if len(seen) < 2:
        raise InputError(f"{name}: training needs at least 2 rows, found {len(seen)}, with {len(unseen)} held out")
    x = table.x[seen]
    return LoadedData(
        Rows(x),
        Rows(table.x[unseen]) if len(unseen) else None,
        Scaling.standardising(x),
        table.columns,
        None if table.labels is None else (table.labels[seen], table.labels[unseen]),
        file_hash(path),
    )
