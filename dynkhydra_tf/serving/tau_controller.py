"""tau from the load: a busy server answers with fewer branches, so that the slowest answers stay fast.

A rung is a row of the export's table of thresholds (`tau_times`). Too many slow requests lead up the rungs,
half of those that are left at once; a long calm leads down again, one rung at a time. The controller asks
nothing of the server, and knows no more of it than how long its answers take: what makes them slow, the
model, decoding, other work on the machine, does not matter.

    controller = TauController(rungs(load_taus(".../assets.extra/reference.json"), max_drop=3), seconds=0.05)
    with controller.request() as tau:
        client.predict({"images": images, "tau": [tau] * len(images)}, "with_tau")
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dynkhydra_tf.errors import UserError

WINDOW = 100  # requests; of these one may be slower than the target: the 99th percentile
CALM = 10  # windows that lead a rung down
# {signature: the one that takes tau with the same input, that input}
WITH_TAU = {
    "serving_default": ("with_tau", "images"),
    "image_bytes": ("image_bytes_with_tau", "image_bytes"),
}


def rungs(rows: Sequence[Mapping[str, Any]], max_drop: float) -> list[Mapping[str, Any]]:
    """The rows of a table of thresholds to choose among: the best, then each that runs fewer branches.

    Args:
        rows: of `tau_times.load_taus`, tau rising.
        max_drop: percentage points of top-1 that a row may lie below the best.

    Raises:
        UserError: a drop that is negative or not a number.
    """
    if not max_drop >= 0:
        raise UserError(f"max_accuracy_drop must be 0 or more percentage points. Received: {max_drop}")
    best = max(rows, key=lambda row: row["top1"])
    kept = [best]
    for row in rows:
        near = best["top1"] - row["top1"] <= max_drop / 100
        if row["tau"] > best["tau"] and near and row["active_branches"] < kept[-1]["active_branches"]:
            kept.append(row)
    return kept


class TauController:
    """Chooses the tau of each request; several threads may use it at once.

    Args:
        rungs: rows with a tau each, the most accurate first.
        seconds: the target, of which the 99th percentile of the requests is to stay below.
        clock: seconds that rise.

    Attributes:
        rung: int, the row that is chosen now.
    """

    def __init__(
        self,
        rungs: Sequence[Mapping[str, Any]],
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rungs, self.seconds = list(rungs), seconds
        self.rung = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._requests = self._slow = self._lively = self._calm = 0
        self._since = clock()

    @property
    def tau(self) -> float:
        """The threshold of now."""
        return self.rungs[self.rung]["tau"]

    @contextlib.contextmanager
    def request(self) -> Iterator[float]:
        """Gives the tau for a request, which lasts as long as the block; a failed one counts as slow."""
        begun, done = self._clock(), False
        try:
            yield self.tau
            done = True
        finally:
            self.observe(begun, self._clock() - begun if done else float("inf"))

    def observe(self, begun: float, seconds: float) -> None:
        """Takes in a request: when it began, by the clock, and how long it took."""
        with self._lock:
            if begun < self._since:  # it went out with another tau
                return
            self._requests += 1
            self._slow += seconds > self.seconds
            self._lively += seconds > self.seconds / 2
            if self._slow > 1:
                self.rung += (len(self.rungs) - self.rung) // 2
                self._begin_windows()
            elif self._requests == WINDOW:
                self._calm = 0 if self._lively > 1 else self._calm + 1
                self._requests = self._slow = self._lively = 0
                if self._calm == CALM and self.rung:
                    self.rung -= 1
                    self._begin_windows()

    def _begin_windows(self) -> None:
        self._since = self._clock()
        self._requests = self._slow = self._lively = self._calm = 0


def with_tau(body: bytes, tau: float) -> bytes:
    """A REST request's body with a tau for each image; as it is where it brings its own, or takes none.

    Args:
        body: of a request to :predict, with the rows in "instances", see `serving/rest.py`.
        tau: the threshold.
    """
    try:
        request = json.loads(body)
        signature, name = WITH_TAU[request.get("signature_name") or "serving_default"]
        rows = [row if isinstance(row, dict) and name in row else {name: row} for row in request["instances"]]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return body
    taken = {**request, "signature_name": signature, "instances": [{**row, "tau": tau} for row in rows]}
    return json.dumps(taken).encode()
