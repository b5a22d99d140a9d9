"""How far long work is, and how long it will take: a bar on a terminal, elsewhere a line now and then.

Lines also where tqdm is not installed, which the client of a server can do without.
"""

import importlib.util
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0


class Meter:
    """How many of a known number of things are done; a context manager, which ends the bar.

    Args:
        heading: what they belong to, such as "epoch 3/12".
        total: how many there are.
        unit: what one is called, such as "step".
        done: how many of them were done before.
        stream: where to write; default: `sys.stdout`.
    """

    def __init__(
        self, heading: str, total: int, unit: str, done: int = 0, stream: TextIO | None = None
    ) -> None:
        self.heading, self.total, self.unit = heading, total, unit
        self._stream = sys.stdout if stream is None else stream
        self._has_bar = self._stream.isatty() and importlib.util.find_spec("tqdm") is not None
        self._bar: tqdm | None = None
        self._before = self.done = done
        # (seconds, done): the rate leaves out the first update, which traces and reads.
        self._first: tuple[float, int] | None = None
        self._told = time.monotonic()

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()

    @property
    def rate(self) -> float | None:
        """Things a second; None before the second update."""
        if self._first is None or self.done == self._first[1]:
            return None
        seconds, done = self._first
        return (self.done - done) / (time.monotonic() - seconds)

    def update(self, done: int, note: str = "", run_left: Callable[[], float | None] = lambda: None) -> None:
        """Says that so many are done, those before included.

        Args:
            done: how many.
            note: what else there is to tell, such as "loss 2.31".
            run_left: gives the seconds that are left of a whole run, of which these things are a part.
        """
        self.done = done
        if self._first is None:
            self._first = (time.monotonic(), done)
        if self._has_bar:
            self._bar = self._bar or self._make_bar()
            seconds = run_left()
            parts = [note, "" if seconds is None else f"run {duration(seconds)}"]
            self._bar.set_postfix_str(", ".join(filter(None, parts)), refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._told >= SECONDS_BETWEEN_LINES and self.rate:
            self._told = time.monotonic()
            parts = [note, f"{self.rate:.3g} {self.unit}s/s"]
            parts.append(f"{duration((self.total - done) / self.rate)} left")
            seconds = run_left()
            parts.append("" if seconds is None else f"{duration(seconds)} of the run")
            head = f"{self.heading}, {self.unit} {done}/{self.total}"
            print(f"{head}: {', '.join(filter(None, parts))}", file=self._stream, flush=True)

    def _make_bar(self) -> "tqdm":
        from tqdm import tqdm

        return tqdm(
            total=self.total,
            initial=self._before,
            desc=self.heading,
            unit=self.unit,
            file=self._stream,
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} {rate_fmt} {remaining} left{postfix}",
            leave=False,
            dynamic_ncols=True,
        )


def duration(seconds: float) -> str:
    """Returns a time as "0:52", "12:03" or "3:05:00"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
