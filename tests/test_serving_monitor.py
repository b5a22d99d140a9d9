"""What is seen of answers, how far it is from validation, and what Prometheus is told."""

import json
import math
import urllib.request

import numpy as np
import pytest

from dynkhydra_tf import cli
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.serving import drift, monitor
from dynkhydra_tf.serving.drift import Histograms, Seen, Window, divergence, load_validation
from dynkhydra_tf.serving.monitor import Metrics, Options, proxy, read_lines
from dynkhydra_tf.serving.rest import RestClient
from dynkhydra_tf.serving.tau_controller import TauController
from tests import prepared_server
from tests.prepared_server import reply

FOUR = [Seen(0.9, 1, "ant"), Seen(1.0, 1, "ant"), Seen(0.32, 2, "bee"), Seen(0.30, 2, "ant")]


def test_the_divergence_by_hand():
    assert divergence({"a": 3}, {"a": 7}) == 0
    assert divergence({"a": 1}, {"b": 1, "c": 2}) == pytest.approx(1)
    # P = (1, 0), Q = (1/2, 1/2), M = (3/4, 1/4): H(M) = 0.811278, H(P) = 0, H(Q) = 1
    assert divergence({"a": 4}, {"a": 5, "b": 5}) == pytest.approx(0.811278 - 0.5, abs=1e-6)


def test_histograms_by_hand():
    counted = Histograms.of(FOUR, ["ant", "bee", "cat"])
    assert counted == ({18: 1, 19: 1, 6: 2}, {1: 2, 2: 2}, {"ant": 3, "bee": 1, "cat": 0})
    assert Histograms.from_json(json.loads(json.dumps(counted.to_json()))) == counted


def test_a_window_forgets():
    window = Window(Histograms.of(FOUR), 4)
    assert window.distances() == {} and len(window) == 0
    for seen in [Seen(0.1, 3, "cat")] * 5:
        window.add(seen)
    assert len(window) == 4
    assert window.distances() == {"gate": 1, "active_branches": 1, "classes": 1}
    for seen in FOUR:
        window.add(seen)
    assert window.distances() == {"gate": 0, "active_branches": 0, "classes": 0}


def test_like_images_stay_below_what_the_text_says():
    rng = np.random.default_rng(0)
    draw = lambda n: [Seen(p, 1, "a") for p in rng.uniform(0, 1, n)]  # noqa: E731
    right, n = Histograms.of(draw(100_000)), 1000
    found = []
    for _ in range(20):
        found.append(divergence(right.gate, Histograms.of(draw(n)).gate))
    assert np.mean(found) == pytest.approx((drift.BINS - 1) / (8 * n * math.log(2)), rel=0.3)


@pytest.fixture
def model_dir(tmp_path):
    folder = tmp_path / "1" / "assets.extra"
    folder.mkdir(parents=True)
    (folder / "reference.json").write_text(json.dumps({"validation": Histograms.of(FOUR).to_json()}))
    return folder.parent


def metrics_of(model_dir, window=10):
    return Metrics(load_validation(model_dir / "assets.extra" / "reference.json"), window)


def test_lines(model_dir):
    metrics = metrics_of(model_dir)
    good = {"gate": 0.9, "active_branches": 2, "label": "ant", "seconds": 0.02, "file": "a.png"}
    wrong = [
        {**good, "gate": 2},
        {**good, "gate": math.nan},
        {**good, "active_branches": "1"},
        {"label": "ant"},
        3,
    ]
    lines = [json.dumps(line).encode() for line in [good, {**good, "label": "new"}, *wrong]]
    read_lines([*lines, b"\n", b"\xff{"], metrics)
    value = metrics.registry.get_sample_value
    assert value("dynkhydra_failures_total") == 6
    assert value("dynkhydra_images_total", {"label": "ant"}) == 1
    assert value("dynkhydra_images_total", {"label": "other"}) == 1
    assert value("dynkhydra_active_branches_sum") / value("dynkhydra_active_branches_count") == 2
    assert value("dynkhydra_gate_probability_bucket", {"le": "0.9"}) == 2
    assert value("dynkhydra_request_seconds_sum") == pytest.approx(0.04)
    # P = validation (1/4 at 18, 1/4 at 19, 1/2 at 6), Q = all at 18
    assert value("dynkhydra_drift", {"of": "gate"}) == pytest.approx(
        divergence({18: 1, 19: 1, 6: 2}, {18: 1})
    )


def test_the_proxy_passes_on_and_looks(model_dir):
    row = {"label": "ant", "gate": [0.1, 0.9], "active_branches": 1, "error": ""}
    bad = {"label": "", "gate": [0, 0], "active_branches": 0, "error": "damaged"}
    metrics = metrics_of(model_dir)
    value = metrics.registry.get_sample_value
    with prepared_server.running() as server:
        server.answers = [
            reply({"name": "tiny"}),
            reply({"predictions": [row, bad]}),
            reply({"error": "no"}, 400),
        ]
        base, _, path = server.url.partition("/v1")
        options = Options(model_dir=str(model_dir), url=base, listen=0)
        with proxy(options, metrics) as port, RestClient(f"http://127.0.0.1:{port}/v1{path}") as client:
            assert client.status() == {"name": "tiny"}
            assert client.rows({"image_bytes": [b"1", b"2"]}, "image_bytes") == [row, bad]
            assert server.received[-1]["signature_name"] == "image_bytes"
            with pytest.raises(UserError, match=r"HTTP 400 .*: no"):
                client.rows({"image_bytes": [b"1"]})
    assert value("dynkhydra_images_total", {"label": "ant"}) == 1
    assert value("dynkhydra_gate_probability_sum") == 0.9
    assert (value("dynkhydra_failures_total"), value("dynkhydra_request_seconds_count")) == (2, 2)


def test_the_proxy_asks_with_a_tau_that_follows_the_load(model_dir):
    row = {"label": "ant", "gate": [0.1, 0.9], "active_branches": 1, "error": ""}
    metrics = metrics_of(model_dir)
    controller = TauController([{"tau": 0.1}, {"tau": 0.3}], seconds=1e-6)
    metrics.watch_tau(controller)
    with prepared_server.running() as server:
        server.answers = [reply({"predictions": [row]})]
        base, _, path = server.url.partition("/v1")
        options = Options(model_dir=str(model_dir), url=base, listen=0)
        with (
            proxy(options, metrics, controller) as port,
            RestClient(f"http://127.0.0.1:{port}/v1{path}") as client,
        ):
            for _ in range(3):
                client.rows({"image_bytes": [b"1"]}, "image_bytes")
            client.rows({"image_bytes": [b"1"], "tau": [0.7]}, "image_bytes_with_tau")
            client.status()
    *asked, own, status = server.received
    assert {request["signature_name"] for request in asked} == {"image_bytes_with_tau"}
    assert [request["instances"][0]["tau"] for request in asked] == [0.1, 0.1, 0.3]
    assert own["instances"][0]["tau"] == 0.7 and status is None
    assert metrics.registry.get_sample_value("dynkhydra_tau") == 0.3
    assert metrics.registry.get_sample_value("dynkhydra_images_total", {"label": "ant"}) == 4


def test_the_command(model_dir, tmp_path, capsys, monkeypatch):
    answers = tmp_path / "answers.jsonl"
    line = {"gate": 0.9, "active_branches": 1, "label": "ant", "seconds": 0.02}
    answers.write_text(f"{json.dumps(line)}\n" * 4)
    told = []

    def read(lines, metrics):  # the metrics are there while it reads
        real(lines, metrics)
        url = capsys.readouterr().err.partition("Metrics: ")[2].strip()
        told.append(urllib.request.urlopen(url, timeout=10).read().decode())

    real = monitor.read_lines
    monkeypatch.setattr(monitor, "read_lines", read)
    cli.run(
        monitor.main,
        Options,
        ["monitor", f"--model_dir={model_dir}", "--port=0", "--window=10", str(answers)],
        positional="answers",
        at_least=0,
    )
    assert "dynkhydra_active_branches_count 4.0" in told[0] and 'dynkhydra_drift{of="gate"}' in told[0]
    assert json.loads(capsys.readouterr().out)["active_branches"] == pytest.approx(
        divergence({1: 1, 2: 1}, {1: 1})
    )
    for arguments, message in [
        (["answers"], "Give --model_dir"),
        ([f"--model_dir={model_dir}"], "Give files of answers"),
        ([f"--model_dir={model_dir}", "--port=0", "nowhere"], "nowhere cannot be read"),
        ([f"--model_dir={tmp_path}", "-"], "cannot be read"),
        ([f"--model_dir={model_dir}", "--target_ms=5", "-"], "--target_ms is for the proxy"),
    ]:
        with pytest.raises(SystemExit) as leaving:
            cli.run(monitor.main, Options, ["monitor", *arguments], positional="answers", at_least=0)
        assert leaving.value.code == 2 and message in capsys.readouterr().err


def test_an_export_without_histograms_is_told(model_dir):
    path = model_dir / "assets.extra" / "reference.json"
    for record in (
        {},
        {"validation": {}},
        {"validation": {"gate": {}, "active_branches": {}, "classes": {}}},
        [],
    ):
        path.write_text(json.dumps(record))
        with pytest.raises(UserError, match="has no histograms of validation images: export the run again"):
            load_validation(path)


def test_shifted_images_raise_the_drift(trained):
    """Images of a trained network's classes, and the same turned grey and dark."""
    from tests.conftest import coloured_images

    def seen(images):
        out = trained(images)
        rows = zip(out["gate"].numpy().max(axis=1), out["selected"].numpy().sum(axis=1), strict=True)
        return [Seen(float(gate), int(count), "any") for gate, count in rows]

    window = Window(Histograms.of(seen(coloured_images(np.arange(1200) % 6, seed=1)[0])), 600)
    alike, _ = coloured_images(np.arange(600) % 6, seed=2)
    shifted = np.repeat(alike.mean(axis=-1, keepdims=True) / 4, 3, axis=-1).astype(np.uint8)
    distances = []
    for images in (alike, shifted):
        for each in seen(images):
            window.add(each)
        distances.append(window.distances())
    assert distances[0]["gate"] < 0.02
    assert distances[1]["gate"] > 5 * distances[0]["gate"] and distances[1]["gate"] > 0.05
