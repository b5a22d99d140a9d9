"""A server under load: how slow it gets, and what a tau that follows the load makes of it.

    python -m dynkhydra_tf.benchmark.load --url=http://localhost:8501/v1/models/digits \\
        --model_dir=served/digits/1 --photos=photos/val

8 to 64 clients, each with its own connection, send --rate requests a second each, at random times, of
--batch photos each; --photos has a folder for each class. Every number of clients is tried at each fixed tau,
then with `serving/tau_controller.py`. A request's time is counted from when it was due, so that a client that
waits for its last answer hides nothing. The target is --target_ms, or twice the 99th percentile of one client
alone.
"""

import base64
import concurrent.futures
import contextlib
import dataclasses
import functools
import http.client
import json
import pathlib
import random
import re
import sys
import time
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dynkhydra_tf import cli
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.files import write_json
from dynkhydra_tf.serving.tau_controller import TauController, rungs
from dynkhydra_tf.serving.tau_times import load_taus
from dynkhydra_tf.tables import table

ALONE = 100  # requests of one client, one after the other
HEAD = (
    "clients",
    "tau",
    "asked/s",
    "answered/s",
    "lost",
    "p50 ms",
    "p99 ms",
    "mean tau",
    "lambda",
    "top-1 %",
)


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command."""

    url: str | None = setting(None, "The model: http://HOST:8501/v1/models/NAME.")
    model_dir: str | None = setting(
        None, "The version that is served: its table of thresholds is needed.", path=True
    )
    photos: str | None = setting(None, "A folder with one of each class, named as its label.", path=True)
    clients: tuple[int, ...] = setting((8, 16, 32, 64), "Clients at once.", least=1)
    rate: float = setting(1.0, "Requests of a client in a second.", above=0)
    batch: int = setting(8, "Photos in a request.", least=1)
    seconds: float = setting(5.0, "Of each load.", above=0)
    taus: tuple[float, ...] = setting(
        (0.0,), "Thresholds to hold fast, beside the one that follows.", least=0, below=1
    )
    target_ms: float | None = setting(
        None, "Default: twice the 99th percentile of one client alone.", above=0
    )
    max_accuracy_drop: float = setting(5.0, "Percentage points that the controller may give.", least=0)
    output: str | None = setting(None, "A JSON file for all numbers.", path=True)

    def check(self) -> None:
        """Checks that there is something to ask."""
        if not (self.url and self.model_dir and self.photos):
            raise UserError("Give --url of a server, --model_dir of what it serves, and --photos")


class Load(NamedTuple):
    """What became of the requests of a load.

    Attributes:
        seconds: of each answered request, from when it was due, rising.
        lost: requests without an answer, or with a photo that has none.
        took: seconds from the first request that was due to the last answer.
        taus: of each request.
        active_branches: of each photo; right: whether its label was.
    """

    seconds: list[float]
    lost: int
    took: float
    taus: list[float]
    active_branches: list[int]
    right: list[bool]

    def percentile(self, share: float) -> float:
        """The time in milliseconds below which so many of a hundred requests stay."""
        if not self.seconds:
            return float("inf")
        return 1e3 * self.seconds[min(len(self.seconds) - 1, int(len(self.seconds) * share / 100))]


class Client:
    """One connection, its photos in requests that are made before the clock runs.

    Args:
        url: str, of the model.
        photos: list of (label, file).
        batch: photos in a request.
    """

    def __init__(self, url: str, photos: Sequence[tuple[str, bytes]], batch: int) -> None:
        parts = urllib.parse.urlsplit(url)
        self._place, self._path = parts.netloc, f"{parts.path}:predict"
        self._requests = []
        for at in range(0, len(photos) - batch + 1, batch):
            some = photos[at : at + batch]
            rows = [{"image_bytes": {"b64": base64.b64encode(file).decode()}, "tau": -1} for _, file in some]
            body = json.dumps({"signature_name": "image_bytes_with_tau", "instances": rows})
            self._requests.append(([label for label, _ in some], body))

    def ask(self, count: int, due: Callable[[int], float], choose: Callable, end: float) -> list[tuple]:
        """Sends requests when they are due, none after `end`: (due, done, tau, branches, right) of each."""
        connection = http.client.HTTPConnection(self._place, timeout=60)
        told = []
        for number in range(count):
            at = due(number)
            if at > end:
                break
            time.sleep(max(0.0, at - time.monotonic()))
            labels, body = self._requests[number % len(self._requests)]
            branches, right, tau = [], [], float("nan")
            try:
                with choose() as tau:
                    connection.request(
                        "POST",
                        self._path,
                        body.replace('"tau": -1', f'"tau": {tau}'),
                        {"Content-Type": "application/json"},
                    )
                    answer = connection.getresponse()
                    content = answer.read()
                    if answer.status != 200:
                        raise http.client.HTTPException(content[:200])
                given = re.findall(rb'"label": ?"([^"]*)"', content)
                branches = [int(n) for n in re.findall(rb'"active_branches": ?(\d+)', content)]
                right = [one.decode() == other for one, other in zip(given, labels, strict=True)]
            except (OSError, http.client.HTTPException, ValueError):
                connection.close()
                branches, right = [], []
            told.append((at, time.monotonic(), tau, branches, right))
        connection.close()
        return told


def fixed(tau: float) -> Callable:
    """What a client asks before each request where tau stays as it is."""
    return functools.partial(contextlib.nullcontext, tau)


def load(clients: Sequence[Client], rate: float, seconds: float, choose: Callable) -> Load:
    """Puts a load on the server: each client at random times, `rate` a second, for so many seconds.

    Args:
        clients: each with a connection of its own.
        rate: of a client; infinity: one after the other.
        seconds: in which requests are due.
        choose: makes the context manager of a request, which gives its tau.
    """
    begin = time.monotonic() + 0.05 * (len(clients) > 1)

    def ask(client, seed):
        draw, at = random.Random(seed), begin

        def due(number):
            nonlocal at
            at = time.monotonic() if rate == float("inf") else at + draw.expovariate(rate)
            return at

        return client.ask(ALONE if rate == float("inf") else sys.maxsize, due, choose, begin + seconds)

    with concurrent.futures.ThreadPoolExecutor(len(clients)) as pool:
        told = [one for some in pool.map(ask, clients, range(len(clients))) for one in some]
    answered = [one for one in told if one[3]]
    return Load(
        sorted(done - at for at, done, *_ in answered),
        len(told) - len(answered),
        max((done for _, done, *_ in told), default=begin) - begin,
        [tau for _, _, tau, _, _ in answered],
        [count for *_, branches, _ in answered for count in branches],
        [each for *_, right in answered for each in right],
    )


def numbers(count: int, name: str, asked: float, found: Load) -> dict[str, Any]:
    """A row of the table."""

    def mean(values):
        return sum(values) / len(values) if values else float("nan")

    answered = len(found.seconds)
    values = [
        *(count, name, round(asked, 1), round(answered / max(found.took, 1e-9), 1), found.lost),
        *(round(found.percentile(50), 1), round(found.percentile(99), 1)),
        *(
            round(mean(found.taus), 3),
            round(mean(found.active_branches), 3),
            round(100 * mean(found.right), 2),
        ),
    ]
    return dict(zip(HEAD, values, strict=True))


def find_photos(folder: str) -> list[tuple[str, bytes]]:
    """(label, file) of each photo below a folder, in an order that mixes the classes.

    Raises:
        UserError: there are none.
    """
    paths = sorted(path for path in pathlib.Path(folder).glob("*/*") if path.is_file())
    if not paths:
        raise UserError(f"photos must hold folders, named as their labels, with files. Received: {folder}")
    random.Random(0).shuffle(paths)
    return [(path.parent.name, path.read_bytes()) for path in paths]


def main(options: Options) -> None:
    """Measures each load and prints a table."""
    rows = load_taus(pathlib.Path(options.model_dir) / "assets.extra" / "reference.json")
    steps = rungs(rows, options.max_accuracy_drop)
    photos = find_photos(options.photos)
    if len(photos) < options.batch:
        raise UserError(f"photos must be at least batch={options.batch}. Received: {len(photos)}")
    most = max(options.clients)
    share = max(options.batch, len(photos) // most)  # each client has photos of its own, if there are enough

    def part(number):
        start = number * share % (len(photos) - options.batch + 1)
        return photos[start : start + share]

    clients = [Client(options.url, part(number), options.batch) for number in range(most)]
    load(clients[:2], float("inf"), 2, fixed(steps[0]["tau"]))  # the first requests are slow
    alone = load(clients[:1], float("inf"), options.seconds, fixed(steps[0]["tau"]))
    if alone.lost or not alone.seconds:
        raise UserError(f"{options.url} does not answer image_bytes_with_tau: {alone.lost} requests are lost")
    found = [numbers(1, "alone", 0, alone)]
    target = (options.target_ms or 2 * alone.percentile(99)) / 1e3
    print(f"target {1e3 * target:.1f} ms; rungs: {', '.join(str(row['tau']) for row in steps)}", flush=True)
    for count in options.clients:
        ways = [(f"{tau:g}", fixed(tau)) for tau in options.taus]
        controller = TauController(steps, target)
        for name, choose in [*ways, ("follows", controller.request)]:
            result = load(clients[:count], options.rate, options.seconds, choose)
            found.append(numbers(count, name, count * options.rate, result))
            print(found[-1], file=sys.stderr, flush=True)
    print(table([HEAD, *([str(value) for value in row.values()] for row in found)], text_columns=(1,)))
    if options.output:
        write_json(options.output, {"target_ms": 1e3 * target, "rungs": steps, "loads": found})


if __name__ == "__main__":
    cli.run(main, Options)
