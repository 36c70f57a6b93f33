"""Pairs from the batches of a loader, such as PyTorch's DataLoader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from flowgen.core import InputError, Pair, generator
from flowgen.couplings.exact import COUPLINGS, Coupling
from flowgen.data.distributions import Distribution
from flowgen.data.epochs import endless
from flowgen.data.scaling import Scaling
from flowgen.data.streams import as_distribution, floats
from flowgen.pairs.batches import coupled

__all__ = ["loader_pairs"]


def loader_pairs(
    loader: Iterable[Any],
    source: Distribution | Tensor | None,
    *,
    seed: int,
    scaling: Scaling | None = None,
    coupling: Coupling | str | None = None,
    start: int = 0,
) -> Iterator[Pair]:
    """Yield pairs without end: the batches of a loader, epoch after epoch, each with a source drawn for it.

    The source of batch k, and its coupling, are functions of (seed, k). The order of the rows is the loader's own.

    Args:
        loader: its batches are rows x `(B, *shape)`, or a list or tuple [x] or [x, cond]; bytes are pixels, and become
            floats in [0, 1].
        source: the distribution of x0; None where batches are both ends, [x0, x1] or [x0, x1, cond].
        scaling: takes x to model units; None where it is in these.
        coupling: pairs the rows of each batch anew; an object, or its name as on the command line, such as "exact".
        start: the number of the first batch.

    Raises:
        InputError: for batches of another kind, rows of another shape than the source's, or a loader that is an
            iterator and ends.
    """
    coupling = COUPLINGS("independent" if coupling is None else coupling)
    source = None if source is None else as_distribution(source)
    for k, batch in enumerate(endless(loader), start):
        if source is None:
            x0, x1, cond = _both_ends(batch)
        else:
            x1, cond = _rows(batch)
            x0 = source.sample(len(x1), generator(seed, "pairs", k)).to(x1.device)
        x1 = floats(x1) if scaling is None else scaling.apply_to(floats(x1))
        yield coupled(coupling, Pair(x0, x1, cond).checked(), generator(seed, "coupling", k))


def _rows(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Return the rows of a batch, and their conditions."""
    parts = [batch] if isinstance(batch, Tensor) else batch
    if not _tensors(parts) or len(parts) > 2:
        raise InputError(f"a batch of the loader must be x, [x] or [x, cond], not {_kind(batch)}: see its collate_fn")
    return parts[0], parts[1] if len(parts) == 2 else None


def _both_ends(batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    if not _tensors(batch) or len(batch) not in (2, 3):
        raise InputError(
            f"without a source, a batch of the loader must be [x0, x1] or [x0, x1, cond], not {_kind(batch)}"
        )
    return batch[0], batch[1], batch[2] if len(batch) == 3 else None


def _tensors(parts: Any) -> bool:
    return isinstance(parts, list | tuple) and bool(parts) and all(isinstance(x, Tensor) for x in parts)


def _kind(batch: Any) -> str:
    parts = (
        f" of {len(batch)} ({', '.join(type(x).__name__ for x in batch)})" if isinstance(batch, list | tuple) else ""
    )
    return f"{type(batch).__name__}{parts}"
