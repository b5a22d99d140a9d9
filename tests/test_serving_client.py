import base64
import concurrent.futures
import contextlib
import csv
import http.client
import http.server
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import types
import urllib.parse

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from dynkhydra_tf import cli
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.serving import client as command
from dynkhydra_tf.serving import native
from dynkhydra_tf.serving.client import GrpcClient, RestClient, ServerError
from dynkhydra_tf.serving.connection import SEND_ALONE
from dynkhydra_tf.serving.formats.saved_model import write_version
from dynkhydra_tf.serving.model_card import requests_text
from tests import kserve_server, prepared_server
from tests.conftest import ROOT, TinyBackbone, to_serve
from tests.prepared_server import hang_up, reply, stall

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")
POOL = 40  # images that requests are made of
IMAGES = np.random.default_rng(0).integers(0, 256, (POOL, 8, 8, 3), np.uint8)
TAUS = np.linspace(0, 0.9, POOL, dtype=np.float32)
FILES = [tf.io.encode_png(image).numpy() for image in IMAGES]
INPUTS = {  # the whole pool, for each signature
    "serving_default": {"images": IMAGES},
    "image_bytes": {"image_bytes": FILES},
    "with_tau": {"images": IMAGES, "tau": TAUS},
    "image_bytes_with_tau": {"image_bytes": FILES, "tau": TAUS},
    "gate": {"images": IMAGES},
}


@pytest.fixture(scope="module")
def model():
    """Three branches, K = 3; weights made such that images differ in branches, their number and class."""
    keras.utils.set_random_seed(0)
    model = Hydra(TinyBackbone(), cluster_of_class=(0, 0, 1, 1, 2, 2), top_k=3, tau=0.2)

    def spread(dense, values):
        kernel, _ = dense.get_weights()
        dense.set_weights([5 * kernel, -5 * np.mean(values, axis=0)])

    spread(model.gater.layers[-1], np.log(model(IMAGES)["gate"]))
    spread(model.combiner.layers[-1], model(IMAGES)["logits"].numpy())
    out = {name: values.numpy() for name, values in model(IMAGES).items()}
    assert set(out["selected"].sum(axis=1)) == {1, 2, 3}
    assert set(out["gate"].argmax(axis=1)) == {0, 1, 2} and set(out["logits"].argmax(axis=1)) == set(range(6))
    return model


@pytest.fixture(scope="module")
def export(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("served")
    settings = {"top_classes": 2, "batch_sizes": (1,), "max_batch": 100_000}
    write_version(to_serve(model, CLASSES, **settings), directory)
    return directory


@pytest.fixture(scope="module")
def saved_model(export):
    with native.SavedModel(export) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def expected(saved_model):
    """The answers to the whole pool, by signature."""
    return {
        name: saved_model.run({**inputs, **files}, name)
        for name, inputs in INPUTS.items()
        for files in [{"image_bytes": np.array(FILES, object)} if "image_bytes" in inputs else {}]
    }


@pytest.fixture(scope="module")
def kserve_url(export):
    try:
        kserve_server.environment()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"kserve cannot be installed: {(error.stderr or '')[-300:]}")
    with kserve_server.running(export, "tiny") as url:
        yield url


@pytest.fixture(scope="module")
def rest(kserve_url):
    with RestClient(kserve_url, timeout=60) as client:  # it is not about how fast the processor is
        yield client


def some(inputs, chosen):
    """The chosen images of the inputs of a signature, or of an answer."""
    return {
        name: [values[index] for index in chosen] if isinstance(values, list) else values[chosen]
        for name, values in inputs.items()
    }


def assert_same(answer, expected):
    assert set(answer) == set(expected)
    for name, values in expected.items():
        assert (answer[name].dtype, answer[name].shape) == (values.dtype, values.shape), name
        if values.dtype == np.float32:
            np.testing.assert_allclose(answer[name], values, rtol=0, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(answer[name], values, err_msg=name)


# === REST, with a KServe server ===


@pytest.mark.parametrize("signature", INPUTS)
def test_rest_answers_as_the_saved_model_does(rest, expected, signature):
    assert_same(rest.predict(INPUTS[signature], signature), expected[signature])


def test_rest_answers_as_the_trained_model_does(rest, model):
    answer = rest.predict({"images": IMAGES})
    out = model(IMAGES)
    np.testing.assert_allclose(answer["probabilities"], tf.nn.softmax(out["logits"]), atol=1e-5)
    np.testing.assert_allclose(answer["gate"], out["gate"], atol=1e-5)
    assert answer["active_branches"].tolist() == out["selected"].numpy().sum(axis=1).tolist()
    assert answer["label"].tolist() == [CLASSES[i].encode() for i in out["logits"].numpy().argmax(axis=1)]


def test_rest_status(rest, kserve_url):
    assert rest.status() == {"name": "tiny", "ready": True}
    with RestClient(kserve_url + "s") as other, pytest.raises(ServerError, match="tinys"):
        other.status()


@pytest.mark.slow
def test_eight_clients_at_once(rest, expected):
    """2,000 requests of all signatures and of 1 to 5 images; each must get its own answer."""
    assert len(np.unique(expected["serving_default"]["probabilities"], axis=0)) == POOL

    def one_client(seed):
        random = np.random.default_rng(seed)
        for _ in range(250):
            signature = random.choice(list(INPUTS))
            chosen = random.integers(0, POOL, random.integers(1, 6))
            answer = rest.predict(some(INPUTS[signature], chosen), signature)
            assert_same(answer, some(expected[signature], chosen))
        return 250

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(one_client, range(8))) == 2000


@pytest.mark.parametrize(
    ("inputs", "signature", "message"),
    [
        ({"images": IMAGES}, "no_such", "signature_name must be one of .*no_such"),
        ({"images": IMAGES[:, :7]}, "serving_default", r"images must be \(B, 8, 8, 3\)"),
        ({"images": IMAGES[:0]}, "serving_default", "No values in 'instances'"),
        ({"images": IMAGES / 2}, "serving_default", "uint8 expected"),
        ({"images": np.full((1, 8, 8, 3), 256)}, "serving_default", "uint8 expected. .* from 256 to 256"),
        ({"images": IMAGES[:1], "tau": [2.0]}, "with_tau", r"tau must be in \[0, 1\)"),
        ({"images": IMAGES}, "with_tau", "list of objects with the keys"),
    ],
)
def test_bad_requests(rest, expected, inputs, signature, message):
    with pytest.raises(ServerError, match=message) as caught:
        rest.predict(inputs, signature)
    assert caught.value.code == 400 and "\n" not in str(caught.value)
    assert_same(rest.predict({"images": IMAGES}), expected["serving_default"])


def test_malformed_json(rest, kserve_url, expected):
    url = urllib.parse.urlsplit(kserve_url)
    with contextlib.closing(http.client.HTTPConnection(url.netloc, timeout=10)) as connection:
        for body in (b'{"instances": [', b"[]", b'{"instances": 3}', b'{"instances": [[[1], [1, 2]]]}'):
            connection.request("POST", url.path + ":predict", body)
            response = connection.getresponse()
            assert response.status == 400 and json.loads(response.read())["error"], body
    assert_same(rest.predict({"images": IMAGES}), expected["serving_default"])


def test_the_curl_line_of_the_model_card(kserve_url, model, photos, saved_model):
    text = requests_text(to_serve(model, CLASSES, name="tiny"))
    (line,) = (line for line in text.splitlines() if "curl" in line)
    line = line.replace("http://localhost:8501/v1/models/tiny", kserve_url)
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    shutil.copy(photos[1], os.path.join(os.path.dirname(photos[1]), "photo.jpg"))
    done = subprocess.run(
        ["bash", "-c", line], cwd=os.path.dirname(photos[1]), capture_output=True, text=True
    )
    (row,) = json.loads(done.stdout)["predictions"]
    (right,) = answers(photos[1:], saved_model, 2)
    assert (row["label"], row["error"]) == (right["label"], "")


# === REST, with a server that gives prepared answers ===


@pytest.fixture
def prepared():
    with prepared_server.running() as server:
        yield server


ONE = {"predictions": [1]}


def test_what_rest_sends(prepared):
    prepared.answers = [reply(ONE)]
    with RestClient(prepared.url) as client:
        client.predict({"images": np.array([[1, 2], [3, 4]], np.uint8)})
        client.predict({"image_bytes": [b"\xff\0"]}, "image_bytes")
        client.predict({"images": [[1], [2]], "tau": np.array([0.5, 0.25], np.float32)}, "with_tau")
        client.status()
    assert prepared.received == [
        {"signature_name": "serving_default", "instances": [[1, 2], [3, 4]]},
        {"signature_name": "image_bytes", "instances": [{"b64": "/wA="}]},
        {
            "signature_name": "with_tau",
            "instances": [{"images": [1], "tau": 0.5}, {"images": [2], "tau": 0.25}],
        },
        None,
    ]
    assert prepared.connections == 1  # the one connection served all


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([1, 2], np.int32, [1, 2]),
        ([1, 2**31], np.int64, [1, 2**31]),
        ([[0.1], [1]], np.float32, np.float32([[0.1], [1]])),
        ([True, False], np.bool_, [True, False]),
        (["é", "b"], object, ["é".encode(), b"b"]),
        ([["a"], [{"b64": "/wA="}]], object, [[b"a"], [b"\xff\0"]]),
    ],
)
def test_types_of_rest_answers(prepared, values, dtype, expected):
    prepared.answers = [reply({"predictions": [{"x": value, "y": 0} for value in values]})]
    prepared.answers += [reply({"predictions": values})]
    with RestClient(prepared.url) as client:
        answer = client.predict({"images": [0, 0]})
        assert answer["x"].dtype == dtype and answer["x"].tolist() == np.array(expected, dtype).tolist()
        only = client.predict({"images": [0, 0]})
        assert only["predictions"].dtype == dtype


@pytest.mark.parametrize(
    ("answer", "message", "code"),
    [
        (reply({"error": "tau must be\n in [0, 1)"}, 400), "HTTP 400 .*: tau must be in", 400),
        (reply({"error": "busy"}, 503), "HTTP 503 .*: busy", 503),
        (reply("<html>moved", 301), "HTTP 301 .*: <html>moved", 301),
        (reply("<html>hello"), "<html>hello", 200),
        (reply({"name": "tiny"}), "not an answer to predict", None),
        (reply({"predictions": []}), "not an answer to predict", None),
        (reply({"predictions": [[1], [1, 2]]}), "not an answer to predict", None),
        (reply({"predictions": [{"x": 1}, {"y": 1}]}), "not an answer to predict", None),
        (reply({"predictions": [None, 1]}), "not an answer to predict", None),
        (lambda handler: handler.wfile.write(b"no HTTP\r\n\r\n"), "no answer", None),
    ],
)
def test_errors_of_rest(prepared, answer, message, code):
    prepared.answers = [answer, reply(ONE)]
    with RestClient(prepared.url) as client:
        with pytest.raises(ServerError, match=message) as caught:
            client.predict({"images": [0]})
        assert caught.value.code == code
        assert len(prepared.received) == 1  # not asked again
        assert client.predict({"images": [0]})["predictions"] == [1]


def test_a_lost_connection_is_made_again_once(prepared):
    prepared.answers = [reply(ONE), hang_up, reply(ONE), hang_up, hang_up, reply(ONE)]
    with RestClient(prepared.url) as client:
        client.predict({"images": [1]})
        client.predict({"images": [2]})
        with pytest.raises(ServerError, match="no answer"):
            client.predict({"images": [3]})
    assert [request["instances"] for request in prepared.received] == [[1], [2], [2], [3], [3]]


def test_rest_timeout(prepared):
    prepared.answers = [stall, reply(ONE)]
    with RestClient(prepared.url, timeout=0.5) as client:
        with pytest.raises(ServerError, match=r"no answer within 0\.5 seconds"):
            client.predict({"images": [0]})
        assert client.predict({"images": [0]})["predictions"] == [1]  # not the late answer to the first


def test_no_server(unused_port):
    rest, rpc = (
        RestClient(f"http://127.0.0.1:{unused_port}/v1/models/m"),
        GrpcClient(f"127.0.0.1:{unused_port}", "m"),
    )
    for client, message in ((rest, r"no answer: .*refused"), (rpc, "UNAVAILABLE")):
        with client, pytest.raises(ServerError, match=message):
            client.predict({"images": [0]})


@pytest.fixture
def unused_port():
    with http.server.HTTPServer(("127.0.0.1", 0), None) as server:
        port = server.server_port
    return port


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8501",
        "http://localhost:8501",
        "ftp://localhost/v1/models/tiny",
        "http:///v1/models/tiny",
        "http://localhost:port/v1/models/tiny",
        "http://localhost/v1/models/tiny:predict",
        "http://localhost/v1/models/tiny?x=1",
        "http://localhost/v1/models/ti ny",
        "http://[localhost/v1/models/tiny",
    ],
)
def test_bad_urls(url):
    with pytest.raises(UserError, match="url must be as in"):
        RestClient(url)


def test_good_urls():
    for end in ("", "/", "/versions/3", "/labels/stable"):
        RestClient(f"https://host.example/serving/v1/models/tiny{end}")


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_bad_timeouts(timeout):
    for make in (lambda: RestClient("http://h/v1/models/m", timeout), lambda: GrpcClient("h", "m", timeout)):
        with pytest.raises(UserError, match="timeout must be"):
            make()


def test_inputs_need_one_batch_axis():
    client = RestClient("http://127.0.0.1:1/v1/models/tiny")
    with pytest.raises(UserError, match=r"tau must have a batch axis.* 0\.5"):
        client.predict({"images": [1], "tau": 0.5})
    for inputs in ({"images": [1, 2], "tau": [0.5]}, {}):
        with pytest.raises(UserError, match="inputs must be of one length"):
            client.predict(inputs)


# === gRPC, with a server of the real protocol in this process ===


class Service(
    prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer
):
    """What TensorFlow Serving does with one model, "tiny", versions 1 and 3; "slow" never answers in time."""

    def __init__(self, saved_model):
        self.saved_model = saved_model
        self.requests = []

    def Predict(self, request, context):
        self.requests.append(request)
        self._check(request.model_spec, context)
        inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        try:
            outputs = self.saved_model.run(inputs, request.model_spec.signature_name)
        except native.ModelError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        answer = predict_pb2.PredictResponse()
        for name, array in outputs.items():
            answer.outputs[name].CopyFrom(tf.make_tensor_proto(array))
        return answer

    def GetModelStatus(self, request, context):
        self._check(request.model_spec, context)
        answer = get_model_status_pb2.GetModelStatusResponse()
        answer.model_version_status.add(version=3, state="AVAILABLE")
        return answer

    def _check(self, spec, context):
        if spec.name == "slow":
            time.sleep(1)
        if spec.name != "tiny" or (spec.HasField("version") and spec.version.value not in (1, 3)):
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found: {spec.name}")


@pytest.fixture(scope="module")
def service(saved_model):
    return Service(saved_model)


@pytest.fixture(scope="module")
def target(service):
    limits = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), options=limits)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(scope="module")
def rpc(target):
    with GrpcClient(target, "tiny") as client:
        yield client


@pytest.mark.parametrize("signature", INPUTS)
def test_grpc_answers_as_the_saved_model_does(rpc, expected, signature):
    assert_same(rpc.predict(INPUTS[signature], signature), expected[signature])


def test_grpc_takes_lists(rpc, expected):
    inputs = {"images": IMAGES, "tau": TAUS.tolist()}
    assert_same(rpc.predict(inputs, "with_tau"), expected["with_tau"])


def test_grpc_names_the_version(target, service, rpc, expected):
    rpc.predict({"images": IMAGES})
    assert not service.requests[-1].model_spec.HasField("version")
    with GrpcClient(target, "tiny", version=3) as client:
        assert_same(client.predict({"images": IMAGES}), expected["serving_default"])
    assert service.requests[-1].model_spec.version.value == 3
    with GrpcClient(target, "tiny", version=2) as client, pytest.raises(ServerError, match="NOT_FOUND"):
        client.predict({"images": IMAGES})


def test_grpc_status(rpc, target):
    assert rpc.status()["model_version_status"][0]["state"] == "AVAILABLE"
    with GrpcClient(target, "other") as client, pytest.raises(ServerError, match="Servable not found: other"):
        client.status()


@pytest.mark.parametrize(
    ("inputs", "signature", "message"),
    [
        ({"images": IMAGES}, "no_such", "signature must be one of"),
        ({"image": IMAGES}, "serving_default", "takes the inputs"),
        ({"images": IMAGES[:, :7]}, "serving_default", r"images must be \(B, 8, 8, 3\)"),
        ({"images": IMAGES[:0]}, "serving_default", "images must be 1 to"),
        ({"images": IMAGES / 2}, "serving_default", "double"),
        ({"images": IMAGES[:1], "tau": [2.0]}, "with_tau", r"tau must be in \[0, 1\)"),
    ],
)
def test_bad_requests_over_grpc(rpc, expected, inputs, signature, message):
    with pytest.raises(ServerError, match=f"INVALID_ARGUMENT: .*{message}") as caught:
        rpc.predict(inputs, signature)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert_same(rpc.predict({"images": IMAGES}), expected["serving_default"])


def test_grpc_timeout(target):
    with (
        GrpcClient(target, "slow", timeout=0.2) as client,
        pytest.raises(ServerError, match="DEADLINE_EXCEEDED"),
    ):
        client.predict({"images": IMAGES})


def test_grpc_takes_large_messages(rpc):
    answer = rpc.predict({"images": np.tile(IMAGES[:1], (80_000, 1, 1, 1))})
    assert sum(values.nbytes for values in answer.values()) > 4 * 1024 * 1024  # gRPC's own limit
    assert len(answer["label"]) == 80_000


# === The command ===


@pytest.fixture
def run_client(capsys):
    """Returns a function that runs the command: exit status, stdout, stderr."""

    def run(*arguments):
        try:
            cli.run(command.main, command.Options, ["client", *arguments], positional="photos")
            status = 0
        except SystemExit as leaving:
            status = leaving.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def photos(tmp_path):
    """Paths of a PNG of 8x8 and of a larger JPEG."""
    large = tf.image.resize(IMAGES[1], (60, 40)).numpy().astype(np.uint8)
    (tmp_path / "a.png").write_bytes(FILES[0])
    (tmp_path / "b.jpg").write_bytes(tf.io.encode_jpeg(large).numpy())
    return [f"{tmp_path}/a.png", f"{tmp_path}/b.jpg"]


def answers(photos, saved_model, top, tau=None):
    """What is to be answered, as `predict` prints it as JSON."""
    inputs = {"image_bytes": np.array([pathlib.Path(photo).read_bytes() for photo in photos], object)}
    if tau is not None:
        inputs["tau"] = np.full(len(photos), tau, np.float32)
    answer = saved_model.run(inputs, "image_bytes" if tau is None else "image_bytes_with_tau")
    records = []
    for i, photo in enumerate(photos):
        best = [
            {"label": label.decode(), "probability": pytest.approx(float(p), abs=2e-6)}
            for label, p in zip(answer["top_labels"][i][:top], answer["top_probabilities"][i], strict=False)
        ]
        branches = np.argsort(-answer["gate"][i])[: answer["active_branches"][i]]
        records.append({"file": photo, **best[0], "branches": sorted(branches.tolist()), "top": best})
    return records


def test_the_command_over_rest(run_client, kserve_url, photos, saved_model):
    for top in (0, 1, 2):
        status, out, err = run_client(f"--url={kserve_url}", *photos, f"--top={top}", "--json")
        assert (status, json.loads(out), err) == (0, answers(photos, saved_model, max(top, 1)), "")


def test_the_command_over_grpc(run_client, target, photos, saved_model):
    status, out, err = run_client(f"--grpc={target}", "--model=tiny", *photos, "--json")
    assert (status, json.loads(out), err) == (0, answers(photos, saved_model, 2), "")


def test_a_threshold_for_files(run_client, kserve_url, target, photos, saved_model):
    counts = set()
    for tau in (0.0, 0.9):
        for server in ([f"--url={kserve_url}"], [f"--grpc={target}", "--model=tiny"]):
            _, out, _ = run_client(*server, *photos, "--json", f"--tau={tau}")
            assert json.loads(out) == answers(photos, saved_model, 2, tau)
        counts |= {len(record["branches"]) for record in json.loads(out)}
    assert counts == {1, 3}


def test_the_forms_of_the_output(run_client, target, photos, saved_model, monkeypatch):
    server = (f"--grpc={target}", "--model=tiny")
    first, second = answers(photos, saved_model, 2)
    _, out, _ = run_client(*server, *photos)
    head, _, *rows = out.splitlines()
    assert head.split() == ["photo", "class", "probability", "branches", "next"]
    assert [row.split()[:2] for row in rows] == [[photos[0], first["label"]], [photos[1], second["label"]]]
    _, out, _ = run_client(*server, os.path.dirname(photos[0]), "--csv")
    rows = list(csv.reader(out.splitlines()))
    assert rows[0] == ["file", "label", "probability", "branches", "label_2", "probability_2"]
    assert [row[:2] for row in rows[1:]] == [[first["file"], first["label"]], [photos[1], second["label"]]]
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(f"{photos[1]}\n".encode())))
    status, out, _ = run_client(*server, "-", "--json_lines")
    (line,) = map(json.loads, out.splitlines())
    gate = saved_model.run(
        {"image_bytes": np.array([pathlib.Path(photos[1]).read_bytes()], object)}, "image_bytes"
    )
    assert status == 0 and {name: line[name] for name in second} == second
    assert line["active_branches"] == len(second["branches"])
    assert line["gate"] == pytest.approx(gate["gate"].max(), abs=1e-6) and 0 < line["seconds"] < 10


def test_the_command_goes_on_after_bad_photos(run_client, target, photos, saved_model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    names = ["missing.jpg", photos[0], f"{tmp_path}/broken.png", f"{tmp_path}/empty.png", photos[1]]
    for batch in (1, 3, 16):
        status, out, err = run_client(
            f"--grpc={target}", "--model=tiny", *names, "--json", f"--batch={batch}"
        )
        assert (status, json.loads(out)) == (1, answers(photos, saved_model, 2))
        assert err.splitlines() == [
            "missing.jpg: no such file or folder",
            f"{tmp_path}/broken.png: not JPEG, PNG, GIF, BMP or WebP",
            f"{tmp_path}/empty.png: empty",
            "error: 3 of 5 photos failed",
        ]


def test_names_and_labels_stay_in_their_line(run_client, prepared, photos, tmp_path):
    sound, damaged = f"{tmp_path}/a\x1b[31m\n.png", f"{tmp_path}/b\n.png"
    for name in (sound, damaged):
        shutil.copy(photos[0], name)
    label = "ant\x1b[0m\nbee"
    rows = [{"label": label, "probabilities": [1], "error": error} for error in ("", "cut\noff")]
    prepared.answers = [reply({}), reply({"predictions": rows})]
    _, out, err = run_client(f"--url={prepared.url}", sound, damaged)
    assert len(out.splitlines()) == 3 and "\x1b" not in out
    assert r"a\x1b[31m\n.png" in out and r"ant\x1b[0m\nbee" in out
    assert err.splitlines()[0] == rf"{tmp_path}/b\n.png: cut\noff"


def test_photos_go_in_batches_and_halves_of_what_is_refused(run_client, prepared, tmp_path):
    """A server that refuses more than two images, and files that begin with "b"."""
    for name in "aabaaba":
        (tmp_path / f"{len(os.listdir(tmp_path))}.png").write_bytes(name.encode())
    sizes = []

    def answer(handler):
        request = prepared.received[-1]
        if request is None:
            return reply({})(handler)
        files = [base64.b64decode(file["b64"]) for file in request["instances"]]
        sizes.append(len(files))
        if len(files) > 2 or b"b" in files:
            return reply({"error": "bad b" if len(files) < 3 else "too many"}, 400)(handler)
        row = {"label": "ant", "probabilities": [0.25, 0.75]}
        return reply({"predictions": [row] * len(files)})(handler)

    prepared.answers = [answer]
    status, out, err = run_client(f"--url={prepared.url}", str(tmp_path), "--batch=4", "--csv", "--at_once=1")
    good = [line.rpartition("/")[2] for line in out.splitlines()[1:]]
    assert (status, good) == (1, [f"{index}.png,ant,0.750000," for index in (0, 1, 3, 4, 6)])
    *bad, last = err.splitlines()
    assert [line.rpartition("/v1")[0].rpartition("http")[0][-7:] for line in bad] == ["2.png: ", "5.png: "]
    assert all(line.endswith("HTTP 400 Bad Request: bad b") for line in bad)
    assert last == "error: 2 of 7 photos failed"
    assert sizes == [4, 2, 2, 1, 1, 3, 1, 2, 1, 1]


def test_a_photo_that_its_request_has_no_room_for_is_sent_alone(run_client, prepared, tmp_path):
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(b"a")
    row = {"label": "ant", "probabilities": [0.25, 0.75], "error": ""}
    full = {"label": "", "probabilities": [0.0, 0.0], "error": f"too many pixels: {SEND_ALONE}"}
    answers = [[row, full, row], [{**row, "label": "bee"}]]
    prepared.answers = [reply({}), *(reply({"predictions": rows}) for rows in answers)]
    status, out, _ = run_client(f"--url={prepared.url}", str(tmp_path), "--csv")
    assert status == 0
    assert [line.split(",")[1] for line in out.splitlines()[1:]] == ["ant", "bee", "ant"]
    assert [len(request["instances"]) for request in prepared.received[1:]] == [3, 1]
    # What is refused alone is not sent for ever.
    prepared.received.clear()
    prepared.answers = [reply({}), reply({"predictions": [full]})]
    status, _, err = run_client(f"--url={prepared.url}", str(tmp_path / "0.png"))
    assert status == 1 and SEND_ALONE in err and len(prepared.received) == 2


def test_a_server_that_goes_away_is_not_waited_for_again_and_again(run_client, prepared, tmp_path):
    for index in range(40):
        (tmp_path / f"{index:02}.png").write_bytes(b"a")
    prepared.answers = [reply({}), reply({"error": "busy"}, 503)]
    status, out, err = run_client(
        f"--url={prepared.url}", str(tmp_path), "--batch=1", "--at_once=2", "--deadline=0.5"
    )
    assert (status, out) == (1, "")
    assert (
        err.count("HTTP 503") in (1, 2, 3) and err.count("not sent: the server is not there any more") >= 37
    )


LIGHT = """
import runpy, sys
class Nothing:  # as if they were not installed
    def find_spec(self, name, path, target=None):
        if name in ("keras", "tensorflow", "tensorflow_serving", "numpy", "tqdm", "matplotlib"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nothing())
runpy.run_module("dynkhydra_tf.serving.client", run_name="__main__", alter_sys=True)
"""


def run_light(*arguments):
    """The command in a process where nothing but its own libraries can be imported."""
    return subprocess.run(
        [sys.executable, "-c", LIGHT, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_needs_neither_tensorflow_nor_keras_nor_numpy(photos, target, prepared, saved_model):
    row = {"label": "ant", "probabilities": [0.25, 0.75]}
    prepared.answers = [reply({}), reply({"predictions": [row, row]})]
    done = run_light(f"--url={prepared.url}", *photos, "--csv")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.splitlines()[1:] == [
        f"{photo},ant,0.750000," for photo in photos
    ]
    done = run_light(f"--grpc={target}", "--model=tiny", *photos, "--json", "--tau=0.5", "--timeout=60")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == answers(photos, saved_model, 2, 0.5)


def test_a_server_that_is_not_there_is_told_in_a_line(photos, unused_port):
    done = run_light(f"--url=http://127.0.0.1:{unused_port}/v1/models/m", *photos)
    assert done.returncode == 2 and done.stderr.startswith("error: http://127.0.0.1"), done.stderr
    assert done.stderr.count("\n") == 1


def test_bad_calls_of_the_command(run_client, target, photos, unused_port):
    server = (f"--grpc={target}", "--model=tiny")
    for arguments, message in [
        (photos, "Give --url="),
        ((f"--grpc={target}", *photos), "Give either --url="),
        ((*server, "--url=http://h/v1/models/m", *photos), "Give either --url="),
        (server, "There are no photos"),
        (("--url=localhost:8501", *photos), "url must be as in"),
        (("--timeout=0", *server, *photos), "timeout must be above 0"),
        ((f"--url=http://127.0.0.1:{unused_port}/v1/models/m", *photos), "http://127"),
    ]:
        status, out, err = run_client(*arguments)
        assert (status, out) == (2, "") and err.startswith(f"error: {message}"), err
        assert err.count("\n") == 1


def test_the_command_with_a_server_of_another_model(run_client, prepared, photos):
    prepared.answers = [reply({}), reply({"predictions": [{"score": 0.5, "label": "ant"}]})]
    status, _, err = run_client(f"--url={prepared.url}", photos[0])
    assert status == 2 and "the answer must have ['label', 'probabilities']" in err


def test_the_command_with_a_plain_network(run_client, prepared, photos):
    prepared.answers = [reply({}), reply({"predictions": [{"label": "ant", "probabilities": [0.25, 0.75]}]})]
    status, out, _ = run_client(f"--url={prepared.url}", photos[0], "--csv")
    assert (status, out.splitlines()[1]) == (0, f"{photos[0]},ant,0.750000,")
