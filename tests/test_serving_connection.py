"""Who a client says it is, how long it waits, what it refuses: against real servers on this machine."""

import concurrent.futures
import contextlib
import gzip
import ssl
import subprocess
import time
import types

import grpc
import numpy as np
import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.serving import connection, protos
from dynkhydra_tf.serving.connection import Credentials, Patience, ServerError, is_this_host
from dynkhydra_tf.serving.rest import RestClient
from dynkhydra_tf.serving.rpc import CLOSED, GrpcClient
from dynkhydra_tf.serving.server_flags import ServerFlags
from tests import prepared_server
from tests.prepared_server import hang_up, reply

ONE = {"predictions": [1]}


@pytest.fixture
def prepared():
    with prepared_server.running() as server:
        yield server


@pytest.fixture
def pauses(monkeypatch):
    """The seconds that clients wait before they ask again, nothing drawn; they alone move the clock."""
    made = []
    clock = types.SimpleNamespace(sleep=made.append, monotonic=lambda: sum(made))
    monkeypatch.setattr(connection, "time", clock)
    monkeypatch.setattr(connection, "random", types.SimpleNamespace(uniform=lambda least, most: most))
    return made


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A folder with an authority's ca.pem, and NAME.pem and NAME.key of a server here and of a client."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    try:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout"]
        openssl("req", "-x509", *key, "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2")
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
        for name in ("server", "client"):
            openssl("req", *key, f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
            signed = [
                "-CA",
                "ca.pem",
                "-CAkey",
                "ca.key",
                "-CAcreateserial",
                "-days",
                "2",
                "-extfile",
                "names",
            ]
            openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return folder


def credentials(folder, *names):
    """Those of a client with the files named."""
    files = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"}
    return Credentials(**{name: str(folder / files[name]) for name in names})


# === Over gRPC: a server of any answer ===


@contextlib.contextmanager
def rpc_server(answer, known=None):
    """A gRPC server whose Predict is `answer(request, context)`; yields its target."""
    messages = protos.messages()

    class Any(grpc.GenericRpcHandler):
        def service(self, call):
            assert call.method == protos.PREDICT
            return grpc.unary_unary_rpc_method_handler(
                answer, messages.PredictRequest.FromString, lambda value: value.SerializeToString()
            )

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2), handlers=[Any()])
    port = server.add_secure_port("localhost:0", known) if known else server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(None).wait()


def outputs(**values):
    return protos.messages().PredictResponse(outputs=protos.named(values))


# === Who asks ===


def test_headers_and_a_token_that_is_renewed(prepared, tmp_path):
    token = tmp_path / "token"
    token.write_text("first\n")
    prepared.answers = [reply(ONE)]
    shown = Credentials([("X-Team", "vision, 2"), ("Host", "models.example")], token_file=str(token))
    with RestClient(prepared.url, credentials=shown) as client:
        client.predict({"x": [1]})
        token.write_text("second")
        client.predict({"x": [1]})
    assert [headers["Authorization"] for headers in prepared.headers] == ["Bearer first", "Bearer second"]
    assert {(headers["X-Team"], headers["Host"]) for headers in prepared.headers} == {
        ("vision, 2", "models.example")
    }
    seen = []

    def answer(request, context):
        seen.append(dict(context.invocation_metadata()))
        return outputs(x=[1])

    shown = Credentials([("X-Team", "vision")], token_file=str(token))
    with rpc_server(answer) as target, GrpcClient(target, "m", credentials=shown) as client:
        client.predict({"x": [1]})
    assert (seen[0]["x-team"], seen[0]["authorization"]) == ("vision", "Bearer second")


def test_the_flags_make_the_client(prepared, tmp_path):
    (tmp_path / "token").write_text("t")
    prepared.answers = [reply(ONE)]
    flags = ServerFlags(url=prepared.url, header=(("A", "1, 2"), ("B", "3")), token_file=f"{tmp_path}/token")
    with flags.connect() as client:
        assert (client.patience.timeout, client.patience.deadline) == (10, 30)
        client.predict({"x": [1]})
    (headers,) = prepared.headers
    assert [headers[name] for name in ("A", "B", "Authorization")] == ["1, 2", "3", "Bearer t"]
    for wrong, told in [
        ({"url": prepared.url, "tls": True}, "write https"),
        ({"url": prepared.url, "ca": "/nowhere"}, "ca cannot be read: No such file"),
        ({"url": prepared.url, "key": "/nowhere"}, "key needs cert"),
        ({"url": prepared.url, "header": (("A\n", "1"),)}, "header must be NAME: VALUE"),
        ({"url": prepared.url, "header": (("A", "1\r\nB: 2"),)}, "header must be NAME: VALUE"),
        ({"url": prepared.url, "token_file": "/nowhere"}, "token_file cannot be read"),
        (
            {"grpc": "localhost:1", "model": "m", "header": (("a-bin", "1"),)},
            "header must not be one of gRPC",
        ),
    ]:
        with pytest.raises(UserError, match=told):
            ServerFlags(**wrong).connect()
    (tmp_path / "token").write_text("two words: geheim")
    with pytest.raises(UserError, match="must hold one token") as caught:
        Credentials(token_file=f"{tmp_path}/token")
    assert "geheim" not in str(caught.value)


def test_tls_with_certificates_on_both_sides_over_rest(certificates, pauses):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.load_verify_locations(certificates / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    with prepared_server.running(context) as prepared:
        prepared.answers = [reply(ONE)]
        with RestClient(prepared.url, credentials=credentials(certificates, "ca", "cert", "key")) as client:
            assert client.predict({"x": [1]})["predictions"] == [1]
        unknown = RestClient(prepared.url, deadline=30, credentials=credentials(certificates, "cert", "key"))
        with unknown, pytest.raises(ServerError, match=r"no answer: TLS failed: .*certificate"):
            unknown.predict({"x": [1]})
        assert not pauses  # not asked again
        # A server that does not know us often closes the connection before its reason is read.
        nobody = RestClient(prepared.url, credentials=credentials(certificates, "ca"))
        closed = "no answer: (TLS failed|(the connection was closed|Connection reset|Broken pipe).*--cert)"
        with nobody, pytest.raises(ServerError, match=closed):
            nobody.predict({"x": [1]})
        assert len(prepared.received) == 1
    context.verify_mode = ssl.CERT_NONE
    with prepared_server.running(context) as prepared:
        prepared.answers = [hang_up]
        for names, hint in ((("ca",), True), (("ca", "cert", "key"), False)):
            with RestClient(prepared.url, credentials=credentials(certificates, *names)) as client:
                with pytest.raises(ServerError, match="no answer: ") as caught:
                    client.predict({"x": [1]})
                assert (
                    "asks for a client's certificate may do so: give cert (--cert)" in str(caught.value)
                ) == hint
    with pytest.raises(UserError, match="Certificates are for https"):
        RestClient("http://localhost/v1/models/m", credentials=credentials(certificates, "ca"))
    with pytest.raises(UserError, match="must be PEM, the key without a password"):
        Credentials(ca=str(certificates / "names")).tls()
    with pytest.raises(UserError, match="must be PEM, the key without a password"):
        Credentials(cert=str(certificates / "client.pem"), key=str(certificates / "server.key")).tls()


def test_https_where_http_is_spoken(prepared):
    client = RestClient(prepared.url.replace("http", "https"), deadline=30)
    with client, pytest.raises(ServerError, match=r"no answer: TLS failed: .*wrong version number"):
        client.predict({"x": [1]})


def test_tls_with_certificates_on_both_sides_over_grpc(certificates):
    read = lambda name: (certificates / name).read_bytes()  # noqa: E731
    known = grpc.ssl_server_credentials([(read("server.key"), read("server.pem"))], read("ca.pem"), True)
    with rpc_server(lambda request, context: outputs(x=[1]), known) as target:
        shown = credentials(certificates, "ca", "cert", "key")
        with GrpcClient(target, "m", credentials=shown) as client:
            assert client.predict({"x": [1]})["x"] == [1]
        for client in (
            GrpcClient(target, "m", credentials=credentials(certificates, "ca")),
            GrpcClient(target, "m", tls=True),
        ):
            with client, pytest.raises(ServerError, match="UNAVAILABLE") as caught:
                client.predict({"x": [1]})
            # gRPC may say in several ways that a connection was closed.
            told = str(caught.value)
            assert (connection.SHOW_CERT.strip("; ") in told) == any(word in told for word in CLOSED), told


# === How long ===


def dribble(handler):
    """An answer, a byte each 0.05 seconds."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    drip(handler, b" ")


def dribble_headers(handler):
    drip(handler, b"H")


def drip(handler, byte):
    """Writes for ten seconds, as long as somebody listens; the server knows if somebody did to the end."""
    with contextlib.suppress(OSError):
        for _ in range(200):
            handler.wfile.write(byte)
            time.sleep(0.05)
        handler.server.heard_to_the_end = True


@pytest.mark.parametrize("answer", [dribble, dribble_headers])
def test_a_server_that_dribbles_has_no_more_time(prepared, answer):
    prepared.answers = [answer, reply(ONE)]
    with RestClient(prepared.url, timeout=1, deadline=20) as client:
        with pytest.raises(ServerError, match="no answer within 1 seconds"):
            client.predict({"x": [1]})
        assert not hasattr(prepared.server, "heard_to_the_end")
        assert client.predict({"x": [1]})["predictions"] == [1]


def test_a_busy_server_is_asked_again_until_the_deadline(prepared, pauses):
    busy = reply({"error": "busy"}, 503)
    prepared.answers = [busy, hang_up, hang_up, busy, reply(ONE)]  # one that hangs up is asked at once, too
    with RestClient(prepared.url, deadline=20) as client:
        assert client.predict({"x": [1]})["predictions"] == [1]
    assert len(prepared.received) == 5
    prepared.answers = [busy]
    for settings in ({}, {"deadline": 5}):
        prepared.received.clear()
        pauses.clear()
        with (
            RestClient(prepared.url, **settings) as client,
            pytest.raises(ServerError, match="busy") as caught,
        ):
            client.predict({"x": [1]})
        assert caught.value.code == 503 and len(prepared.received) == 1 + len(pauses)
        assert sum(pauses) < settings.get("deadline", 1) and bool(pauses) == bool(settings)


def test_a_busy_server_is_asked_for_its_status_again(prepared, pauses):
    prepared.answers = [reply({"error": "busy"}, 503), reply({"name": "m"})]
    with RestClient(prepared.url, deadline=20) as client:
        assert client.status() == {"name": "m"}
    assert len(pauses) == 1
    client = RestClient("http://127.0.0.1:1/v1/models/m", deadline=20)
    with client, pytest.raises(ServerError, match="refused"):  # that none is there is told at once
        client.status()
    assert len(pauses) == 1


def test_a_server_that_says_when_is_not_asked_before(prepared, pauses):
    prepared.answers = [reply({"error": "busy"}, 503, Retry_After="1"), reply(ONE)]
    with RestClient(prepared.url, deadline=20) as client:
        client.predict({"x": [1]})
    assert pauses == [1]
    prepared.answers = [reply({"error": "busy"}, 503, Retry_After="3600")]
    with RestClient(prepared.url, deadline=20) as client, pytest.raises(ServerError, match="busy"):
        client.predict({"x": [1]})
    assert pauses == [1]  # the deadline would be over


def test_a_busy_server_is_asked_again_over_grpc():
    calls = []

    def answer(request, context):
        calls.append(request)
        if len(calls) < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        return outputs(x=[1])

    with rpc_server(answer) as target:
        with GrpcClient(target, "m", deadline=20) as client:
            assert client.predict({"x": [1]})["x"] == [1]
        calls.clear()
        with GrpcClient(target, "m") as client, pytest.raises(ServerError, match="UNAVAILABLE: busy"):
            client.predict({"x": [1]})
        assert len(calls) == 1


def test_other_errors_are_not_asked_again():
    asked = []

    def attempt(seconds):
        asked.append(seconds)
        raise ServerError("no", 400)

    with pytest.raises(ServerError, match="no"):
        Patience(timeout=3, deadline=2).ask(attempt)
    assert asked == [2]  # the deadline is over before the timeout


# === What is refused ===


def test_an_answer_has_a_limit(prepared):
    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(100):
                handler.wfile.write(b"[" * 100_000)

    def compressed(handler):
        reply(gzip.compress(b"0" * 10**6).decode("latin-1"), Content_Encoding="gzip")(handler)

    prepared.answers = [endless, compressed, reply("[" * 100_000), reply(ONE)]
    with RestClient(prepared.url, max_answer_bytes=1_000_000) as client:
        with pytest.raises(ServerError, match="of more than 1000000 bytes"):
            client.predict({"x": [1]})
        with pytest.raises(ServerError, match="compressed, which nobody asked for"):
            client.predict({"x": [1]})
        with pytest.raises(ServerError, match="HTTP 200"):  # too deep for a parser
            client.predict({"x": [1]})
        assert client.predict({"x": [1]})["predictions"] == [1]
    large = np.zeros((1, 300_000), np.float32)
    with (
        rpc_server(lambda request, context: outputs(x=large)) as target,
        GrpcClient(target, "m", max_answer_bytes=1_000_000) as client,
        pytest.raises(ServerError, match="RESOURCE_EXHAUSTED"),
    ):
        client.predict({"x": [1]})


@pytest.mark.parametrize(
    "text", ["NaN", "Infinity", "-Infinity", "1e999", '{"x": NaN}', '{"x": [[1.0, 1e999]]}']
)
def test_nan_in_an_answer_is_refused(prepared, text):
    prepared.answers = [reply(f'{{"predictions": [{text}]}}')]
    with RestClient(prepared.url) as client:
        for ask in (client.predict, client.rows):
            with pytest.raises(ServerError):
                ask({"x": [1]})


def test_nan_in_an_answer_over_grpc_is_refused():
    bad = np.array([[1, np.nan]], np.float32)
    with (
        rpc_server(lambda request, context: outputs(x=bad)) as target,
        GrpcClient(target, "m") as client,
    ):
        for ask in (client.predict, client.rows):
            with pytest.raises(ServerError, match="NaN or infinity"):
                ask({"x": [1]})


@pytest.mark.parametrize(
    "values", [[0.5, float("nan")], [[float("inf")]], np.array([[np.nan]]), np.float32([np.inf])]
)
def test_nan_is_never_sent(prepared, values):
    with rpc_server(None) as target, RestClient(prepared.url) as rest, GrpcClient(target, "m") as rpc:
        for client in (rest, rpc):
            with pytest.raises(UserError, match="x must be finite numbers"):
                client.predict({"x": values})
    assert prepared.received == []


# === Proxies ===


def test_proxies_are_for_other_hosts(prepared, monkeypatch):
    """The prepared server as a proxy: what it gets for another host; this one is asked itself."""
    address = prepared.url.partition("/v1")[0]
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, address)
    monkeypatch.setenv("NO_PROXY", "inside.example")
    monkeypatch.setenv("no_proxy", "inside.example")
    prepared.answers = [reply(ONE)]
    with RestClient("http://models.example/v1/models/m") as client:
        assert client.predict({"x": [1]})["predictions"] == [1]
    assert prepared.headers[0]["Host"] == "models.example"
    with RestClient("http://inside.example/v1/models/m", timeout=5) as client, pytest.raises(ServerError):
        client.predict({"x": [1]})
    assert len(prepared.received) == 1
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # would fail
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for host in ("127.0.0.1", "localhost"):
        with RestClient(prepared.url.replace("127.0.0.1", host)) as client:
            assert client.predict({"x": [1]})["predictions"] == [1]
    with rpc_server(lambda request, context: outputs(x=[1])) as target, GrpcClient(target, "m") as client:
        assert client.predict({"x": [1]})["x"] == [1]


@pytest.mark.parametrize(
    ("name", "here"),
    [
        *[(name, True) for name in ("localhost", "LOCALHOST.", "a.localhost", "127.9.9.9", "::1")],
        *[(name, False) for name in ("localhost.example", "10.0.0.1", "example")],
    ],
)
def test_which_host_is_this_one(name, here):
    assert is_this_host(name) is here


# === Tensors as they go over the wire ===


ARRAYS = {
    "f": np.float32([[0.5, -1], [2, 3]]),
    "d": np.array([[1e300]]),
    "i": np.int32([[[1], [-2]]]),
    "q": np.array([2**40]),
    "u": np.uint8([[255, 0]]),
    "b": np.array([[True, False]]),
    "s": np.array([[b"a\0", "ü".encode()]], object),
    "none": np.zeros((0, 3), np.float32),
    "empty": np.zeros((2, 0), np.float32),
}


def test_tensors_are_tensorflows():
    import tensorflow as tf

    for name, array in ARRAYS.items():
        theirs = tf.make_tensor_proto(array)
        values = tf.compat.v1.make_tensor_proto(array)
        for sent in (theirs, values):
            ours = protos.messages().Tensor.FromString(sent.SerializeToString())
            assert protos.to_array(ours).dtype == array.dtype, name
            np.testing.assert_array_equal(protos.to_array(ours), array, err_msg=name)
        back = tf.make_ndarray(type(theirs).FromString(protos.to_tensor(array).SerializeToString()))
        np.testing.assert_array_equal(back, array, err_msg=name)
        plain = np.vectorize(lambda text: text.decode(), otypes=[object])(array) if name == "s" else array
        assert protos.to_list(ours) == plain.tolist(), name
    one_for_all = tf.make_tensor_proto(128, tf.uint8, (2, 3))  # TensorFlow writes it once
    ours = protos.messages().Tensor.FromString(one_for_all.SerializeToString())
    assert protos.to_list(ours) == [[128] * 3] * 2
    for values in ([0.5, 1.0], ["a", b"b\0"], [[1, 2]]):
        theirs = type(one_for_all).FromString(protos.to_tensor(values).SerializeToString())
        right = {str: object, bytes: object, float: np.float32, list: np.int32}[type(values[0])]
        assert tf.make_ndarray(theirs).dtype == right


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": 99},
        {"dtype": 1, "shape": [2**40, 2**40]},
        {"dtype": 1, "shape": [-1]},
        {"dtype": 1, "shape": [2]},
        {"dtype": 1, "shape": [2], "tensor_content": b"123"},
        {"dtype": 1, "shape": [1], "float_val": [1, 2]},
        {"dtype": 7, "shape": [1], "tensor_content": b"123"},
    ],
)
def test_what_is_no_tensor_is_refused(fields):
    tensor = protos._tensor(fields.pop("dtype"), fields.pop("shape", [1]), **fields)
    for read in (protos.to_array, protos.to_list):
        with pytest.raises((ValueError, TypeError)):
            read(tensor)
