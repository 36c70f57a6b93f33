"""The name of the distribution, and how to install what it needs only for some work."""

from __future__ import annotations

__all__ = ["DISTRIBUTION", "install"]

DISTRIBUTION = "flowgen-torch"
"""What pip calls this package: `flowgen` on the package index is another project."""


def install(extra: str) -> str:
    """Return the command that installs an extra.

    >>> install("hub")
    "pip install 'flowgen-torch[hub]'"
    """
    return f"pip install '{DISTRIBUTION}[{extra}]'"
