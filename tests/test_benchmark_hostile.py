"""Requests that are made to be dear, damaged pictures, loads: small ones, against a small export."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from dynkhydra_tf.benchmark import client_rate, fuzz, hostile, hostile_files, load
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.serving import native
from dynkhydra_tf.serving.formats.saved_model import write_version
from dynkhydra_tf.serving.server_flags import ServerFlags
from tests import prepared_server
from tests.conftest import to_serve
from tests.prepared_server import reply

NAMES = ("apple", "Äpfel", "pear", "plum", "fig", "date")


@pytest.fixture(scope="module")
def model_dir(trained, tmp_path_factory):
    directory = tmp_path_factory.mktemp("served") / "1"
    directory.mkdir()
    write_version(to_serve(trained, NAMES), directory)
    return str(directory)


def test_hostile_files_are_what_they_say():
    with Image.open(io.BytesIO(hostile_files.png(24000, 1))) as picture:
        assert picture.size == (24000, 1) and not np.asarray(picture).any()
    assert len(hostile_files.zeros(20_000)) <= 20_000
    for name in ("PNGs of 24000 x 1", "tiny PNGs", "GIF of pieces", "JPEG of scans, 64 x 64", "PNG of texts"):
        files = hostile_files.request(name, 30_000, largest_batch=7)
        assert sum(map(len, files)) <= 30_000
        assert len(files) == (7 if hostile_files.FILES[name][1] else 1)


def test_damage_is_behind_the_headers_and_another_each_time():
    rng = np.random.default_rng(0)
    for kind, file in fuzz.sound_files(rng):
        damaged = {fuzz.DAMAGE[kind](rng, file) for _ in range(4)}
        assert len(damaged) > 1 and all(one[:14] == file[:14] for one in damaged)


@pytest.mark.slow
def test_damaged_pictures_leave_the_process_well(model_dir):
    with native.SavedModel(model_dir) as model:
        found = fuzz.fuzz(model, fuzz.Options(model_dir=model_dir, requests=300))
    assert found.answered > 50 and found.refused > 50
    assert found.after < 1.1 * found.before


@pytest.mark.slow
def test_what_dear_requests_cost(model_dir, capsys):
    words = ["PNG of 24000", "GIF of pieces", "JPEG of scans, 64"]
    hostile.main(hostile.Options(model_dir=model_dir, bytes=200_000, most_seconds=3), words)
    assert "GIF of pieces (1)" in capsys.readouterr().out
    with pytest.raises(UserError, match="1 of 1 requests cost more than they may: PNG of 24000 x 1"):
        hostile.main(hostile.Options(model_dir=model_dir, most_megabytes=0.01), ["PNG of 24000"])


# === Loads ===


@pytest.fixture
def photos(tmp_path):
    for label in ("ant", "bee"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "photos" / label / f"{number}.png").write_bytes(hostile_files.png(number + 1, 1))
    return str(tmp_path / "photos")


def test_a_load_counts_what_came_and_what_did_not(photos):
    rows = [{"label": "ant", "active_branches": 2, "top_labels": ["bee"]}] * 4
    with prepared_server.running() as server:
        server.answers = [
            reply({"predictions": rows}),
            reply({"error": "busy"}, 503),
            reply({"predictions": rows}),
        ]
        clients = [load.Client(server.url, load.find_photos(photos), 4)]
        found = load.load(clients, 1000.0, 0.2, load.fixed(0.25))
        asked = server.received
    assert found.lost == 1 and len(found.seconds) == len(asked) - 1 >= 5
    assert all(request["signature_name"] == "image_bytes_with_tau" for request in asked)
    assert {row["tau"] for request in asked for row in request["instances"]} == {0.25}
    assert set(found.active_branches) == {2} and set(found.taus) == {0.25}
    row = load.numbers(1, "0.25", 1000, found)
    assert row["top-1 %"] == pytest.approx(50, abs=25) and row["p99 ms"] >= row["p50 ms"] > 0
    # A request is late from when it was due, not from when it could go at last.
    assert row["p99 ms"] > 50, "a thousand a second are more than this server answers"


def test_bad_photos_of_a_load(tmp_path):
    with pytest.raises(UserError, match="photos must hold folders, named as their labels"):
        load.find_photos(str(tmp_path))


def test_the_rate_of_the_client_beside_the_c_api(model_dir, photos, capsys):
    contents = [file for _, file in load.find_photos(photos)]
    with native.SavedModel(model_dir) as model:
        labels = model.run({"image_bytes": np.array(contents, object)}, "image_bytes")["label"]
    label_of = dict(zip(contents, (label.decode() for label in labels), strict=True))
    with prepared_server.running() as server:

        def answer(handler):
            request = server.received[-1]
            if request is None:
                return reply({})(handler)
            files = [base64.b64decode(row["b64"]) for row in request["instances"]]
            rows = [{"label": label_of[file], "probabilities": [1.0]} for file in files]
            return reply({"predictions": rows})(handler)

        server.answers = [answer]
        flags = ServerFlags(url=server.url, timeout=60)
        options = client_rate.Options(flags, model_dir=model_dir, batch=4, rounds=1)
        client_rate.main(options, [photos])
        out = capsys.readouterr().out
        assert "C API: " in out and "client / C API: " in out and "(8 photos in " in out
        server.answers = [reply({"predictions": [{"label": "x", "probabilities": [1.0]}] * 4})]
        with pytest.raises(UserError, match="8 photos have another answer over the server"):
            client_rate.main(options, [photos])
