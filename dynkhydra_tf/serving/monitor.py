"""Watches what a served model answers, and tells Prometheus: lambda, latency, drift.

    python -m dynkhydra_tf.serving.client --url=... --json_lines photos/ | tee -a answers.jsonl
    tail -F answers.jsonl | python -m dynkhydra_tf.serving.monitor --model_dir=served/digits/1 -
    python -m dynkhydra_tf.serving.monitor --model_dir=served/digits/1 --url=http://localhost:8501

reads answers, a JSON object a line, from files or for - from standard input; or stands in front of a server
as a proxy: what it gets on port --listen goes to --url as it is, the answer goes back as it is, and is looked
at. With --target_ms predictions are asked with a tau that follows the load. The metrics are on
http://HOST:PORT/metrics, by default only for this machine:

    dynkhydra_active_branches      histogram: branches of an image; sum / count is lambda
    dynkhydra_gate_probability     histogram: the highest gate probability of an image
    dynkhydra_request_seconds      histogram: what a request took; of lines, that of each image
    dynkhydra_images_total         by label, "other" where the export has no such class
    dynkhydra_failures_total       requests and images that got no answer; lines that are none
    dynkhydra_tau                  with --target_ms: the threshold that requests get which bring none, see
                                   serving/tau_controller.py
    dynkhydra_drift                of gate, active_branches and classes: distance of the last --window images
                                   from the validation images of the export, see serving/drift.py

A plain network has no gate, and nothing of this to watch.
"""

import contextlib
import dataclasses
import functools
import http.server
import json
import pathlib
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

from dynkhydra_tf import cli
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.serving import drift
from dynkhydra_tf.serving.connection import MAX_MESSAGE_BYTES, is_this_host
from dynkhydra_tf.serving.drift import Seen, Window
from dynkhydra_tf.serving.tau_controller import TauController, rungs, with_tau
from dynkhydra_tf.serving.tau_times import load_taus

HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host", "content-length"}


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command."""

    model_dir: str | None = setting(None, "The version that is served, such as served/digits/1.", path=True)
    url: str | None = setting(None, "The server to stand in front of, such as http://localhost:8501.")
    listen: int = setting(8502, "The proxy's port, with --url.", least=0, most=65535)
    host: str = setting("127.0.0.1", "The address to listen on; 0.0.0.0 for every machine.")
    port: int = setting(9402, "The port of the metrics.", least=0, most=65535)
    window: int = setting(1000, "Images that the drift is told of.", least=10)
    timeout: float = setting(60.0, "Seconds that the server has for an answer, with --url.", above=0)
    target_ms: float | None = setting(
        None,
        "With --url: raise tau while more than one of a hundred requests take longer, see "
        "serving/tau_controller.py.",
        above=0,
    )
    max_accuracy_drop: float = setting(
        2.0,
        "With --target_ms: the percentage points of top-1 that this may cost, by the export's table.",
        least=0,
    )

    def check(self) -> None:
        """Checks what goes together."""
        if not self.model_dir:
            raise UserError("Give --model_dir=DIR/VERSION, what is served: its reference.json is needed")
        if self.target_ms is not None and not self.url:
            raise UserError("--target_ms is for the proxy: give --url=http://HOST:PORT, too")


class Metrics:
    """The metrics of one model, in a registry of their own.

    Args:
        validation: the histograms of the export.
        window: images that the drift is told of.

    Raises:
        UserError: prometheus_client is not installed.
    """

    def __init__(self, validation: drift.Histograms, window: int) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise UserError(
                f"The monitor needs a package: pip install prometheus_client ({error})"
            ) from error
        self.registry = registry = prometheus.CollectorRegistry()
        most = max(validation.active_branches)
        self._lock = threading.Lock()
        self._window = Window(validation, window)
        self._branches = prometheus.Histogram(
            "dynkhydra_active_branches", "Branches of an image.", buckets=range(most + 1), registry=registry
        )
        self._gate = prometheus.Histogram(
            "dynkhydra_gate_probability",
            "The highest gate probability of an image.",
            buckets=[place / drift.BINS for place in range(1, drift.BINS + 1)],
            registry=registry,
        )
        self._seconds = prometheus.Histogram("dynkhydra_request_seconds", "Of a request.", registry=registry)
        self._images = prometheus.Counter("dynkhydra_images", "Images.", ["label"], registry=registry)
        self._failures = prometheus.Counter("dynkhydra_failures", "What got no answer.", registry=registry)
        told = prometheus.Gauge(
            "dynkhydra_drift", "Jensen-Shannon divergence from validation.", ["of"], registry=registry
        )
        for name in drift.Histograms._fields:
            told.labels(name).set_function(functools.partial(self._distance, name))

    def watch_tau(self, controller: TauController) -> None:
        """Tells the tau that a controller chooses."""
        from prometheus_client import Gauge

        told = Gauge("dynkhydra_tau", "The threshold that is sent now.", registry=self.registry)
        told.set_function(lambda: controller.tau)

    def distances(self) -> dict[str, float]:
        """The drift now; nothing before there is a tenth of a window."""
        with self._lock:
            return self._window.distances() if len(self._window) >= self._window.size / 10 else {}

    def _distance(self, name):
        return self.distances().get(name, float("nan"))

    def image(self, seen: Seen) -> None:
        """Takes an image in."""
        with self._lock:
            self._window.add(seen)
        self._branches.observe(seen.active_branches)
        self._gate.observe(seen.gate)
        self._images.labels(seen.label if seen.label in self._window.validation.classes else "other").inc()

    def request(self, seconds: float) -> None:
        """Takes a request's time in."""
        self._seconds.observe(seconds)

    def failure(self) -> None:
        """Counts what got no answer."""
        self._failures.inc()


# === Answers as lines ===


def read_lines(lines: Iterable[bytes], metrics: Metrics) -> None:
    """Takes in answers as the client prints them with --json_lines: gate, active_branches, label, seconds."""
    for line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            metrics.image(_seen(record["gate"], record["active_branches"], record["label"]))
            metrics.request(float(record["seconds"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            metrics.failure()


def _seen(gate, active_branches, label):
    """`Seen` of what came; ValueError or TypeError where it cannot be."""
    if not 0 <= gate <= 1 or not isinstance(active_branches, int) or active_branches < 0:
        raise ValueError(f"gate {gate}, active_branches {active_branches}")
    if not isinstance(label, str):
        raise TypeError("label")
    return Seen(float(gate), active_branches, label)


# === A proxy ===


def look_at(path: str, status: int, content: bytes, seconds: float, metrics: Metrics) -> None:
    """Takes in what a server answered to a request to `path`; what is no prediction is left alone."""
    if not path.endswith(":predict"):
        return
    metrics.request(seconds)
    try:
        if status != 200:
            raise ValueError(status)
        rows: list[dict[str, Any]] = json.loads(content)["predictions"]
        for row in rows:
            if not isinstance(row, dict) or row.get("error"):
                metrics.failure()
            elif "gate" in row and "label" in row:  # not the signature `gate`
                metrics.image(_seen(max(row["gate"]), row["active_branches"], row["label"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        metrics.failure()


@contextlib.contextmanager
def proxy(options: Options, metrics: Metrics, controller: TauController | None = None) -> Iterator[int]:
    """Passes requests on to `options.url` until the block ends; yields its port.

    With a controller, predictions that are asked without a tau of their own get its.
    """
    import httpx

    here = is_this_host(urllib.parse.urlsplit(options.url).hostname or "")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if not self.path.startswith("/"):
                return self._answer(400, [], b'{"error": "a path is needed"}')
            size = self.headers.get("Content-Length", "0")
            if not size.isdecimal() or "Transfer-Encoding" in self.headers:
                return self._answer(411, [], b'{"error": "a request needs a Content-Length"}')
            if int(size) > MAX_MESSAGE_BYTES:
                self.close_connection = True
                return self._answer(413, [], b'{"error": "the request is too large"}')
            body = self.rfile.read(int(size))
            headers = [(name, value) for name, value in self.headers.items() if name.lower() not in HOP]
            begun = time.monotonic()
            chosen: contextlib.AbstractContextManager = contextlib.nullcontext()
            if controller and self.path.endswith(":predict"):
                chosen = controller.request()
            try:
                with chosen as tau:
                    if tau is not None:
                        body = with_tau(body, tau)
                    answer = server.request(self.command, self.path, content=body, headers=headers)
            except httpx.HTTPError as error:
                metrics.failure()
                told = json.dumps(
                    {"error": f"the server behind the monitor: {error or type(error).__name__}"}
                )
                return self._answer(
                    504 if isinstance(error, httpx.TimeoutException) else 502, [], told.encode()
                )
            passed = [
                (name, value)
                for name, value in answer.headers.multi_items()
                if name.lower() not in HOP and name.lower() != "content-encoding"  # httpx has undone it
            ]
            self._answer(answer.status_code, passed, answer.content)
            look_at(self.path, answer.status_code, answer.content, time.monotonic() - begun, metrics)

        do_POST = do_GET

        def _answer(self, status, headers, content):
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    try:
        with (
            httpx.Client(base_url=options.url, timeout=options.timeout, trust_env=not here) as server,
            http.server.ThreadingHTTPServer((options.host, options.listen), Handler) as front,
        ):
            thread = threading.Thread(target=front.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
            thread.start()
            try:
                yield front.server_port
            finally:
                front.shutdown()
    except (httpx.InvalidURL, OSError) as error:
        raise UserError(
            f"Cannot stand in front of {options.url} on {options.host}:{options.listen}: {error}"
        ) from error


def main(options: Options, names: list[str]) -> None:
    """Watches until its input ends, or as a proxy until it is stopped."""
    if bool(options.url) == bool(names):
        raise UserError("Give files of answers, - for standard input, or --url=http://HOST:PORT of a server")
    path = pathlib.Path(options.model_dir) / "assets.extra" / "reference.json"
    metrics = Metrics(drift.load_validation(path), options.window)
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(options.port, options.host, registry=metrics.registry)
    except OSError as error:
        raise UserError(f"Cannot listen on {options.host}:{options.port}: {error}") from error
    print(f"Metrics: http://{options.host}:{server.server_port}/metrics", file=sys.stderr, flush=True)
    if options.url:
        controller = None
        if options.target_ms is not None:
            controller = TauController(
                rungs(load_taus(path), options.max_accuracy_drop), options.target_ms / 1000
            )
            metrics.watch_tau(controller)
        with proxy(options, metrics, controller) as port:
            print(f"In front of {options.url}: http://{options.host}:{port}", file=sys.stderr, flush=True)
            threading.Event().wait()
    for name in names:
        try:
            with open(0 if name == "-" else name, "rb", closefd=name != "-") as lines:
                read_lines(lines, metrics)
        except OSError as error:
            raise UserError(f"{name} cannot be read: {error.strerror}") from error
    server.shutdown()
    thread.join()
    print(json.dumps(metrics.distances()), flush=True)


if __name__ == "__main__":
    cli.run(main, Options, positional="answers", at_least=0)
