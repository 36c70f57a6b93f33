"""Progress without a terminal: plain lines on standard error, for nohup, batch systems and logs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Lines"]

FIRST, LEAST, MOST = 3.0, 30.0, 600.0
"""Seconds to the first line of work of known size, and the fewest and the most from one line to the next."""
SHARE = 0.1
"""Between these, a line is due when so much more of the whole is done."""


class Lines:
    """Lines that say how far long work has come: `moons: 1200/20000 steps, loss 0.41, 0:12 elapsed, 3:10 left`.

    The first comes soon, then one at each tenth of the whole, but neither sooner than LEAST nor later than MOST, and
    one at the end.

    Args:
        total: None where it is not known; then short work has no line at all.
        unit: what is counted.
        write: takes each line.
        clock: seconds, from any start.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        unit: str,
        write: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.total, self.unit, self.write, self.clock = title, total, unit, write, clock
        self.done, self.note, self.began = 0, "", clock()
        self._first: tuple[float, int] | None = None  # when the first progress was seen, and how far it was
        self._last: tuple[float, int] | None = None  # the same of the last line
        self._lock = threading.Lock()

    def move(self, done: int, note: str = "") -> None:
        """Report how far the work has come."""
        with self._lock:
            self.done, self.note = done, note
            self._first = self._first or (self.clock(), done)
        self.beat()

    def beat(self) -> None:
        """Write a line if one is due."""
        with self._lock:
            if self._due():
                self._write()

    def end(self) -> None:
        """Write the last line, unless the last one has said it."""
        with self._lock:
            said = self._last is None if self.total is None else self._last is not None and self._last[1] == self.done
            if not said:
                self._write()

    @contextmanager
    def beating(self, interval: float = 1.0) -> Iterator[Lines]:
        """Write lines also while the work does not move, and the last one when the block ends."""
        over = threading.Event()

        def run() -> None:
            while not over.wait(interval):
                self.beat()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()
            self.end()

    def _due(self) -> bool:
        now = self.clock()
        if self._last is None:
            return now - self.began >= (LEAST if self.total is None else FIRST)
        passed, more = now - self._last[0], self.done - self._last[1]
        enough = self.total is None or more >= SHARE * self.total
        return passed >= MOST or (passed >= LEAST and enough)

    def _write(self) -> None:
        now = self.clock()
        counted = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        parts = [f"{counted} {self.unit}".strip() if self.total or self.done else "", self.note]
        parts += [f"{_clock(now - self.began)} elapsed", self._left(now)]
        self.write(f"{self.title}: {', '.join(filter(None, parts))}")
        self._last = now, self.done

    def _left(self, now: float) -> str:
        """Return the time that is left, at the speed since the first progress: a run may resume from the middle."""
        if self.total is None or self._first is None or not self._first[1] < self.done < self.total:
            return ""
        began, before = self._first
        return f"{_clock((self.total - self.done) * (now - began) / (self.done - before))} left"


def _clock(seconds: float) -> str:
    """Format seconds as 0:12, or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
