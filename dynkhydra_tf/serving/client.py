"""A client of a server that speaks TensorFlow Serving's protocols, such as TensorFlow Serving or KServe.

    python -m dynkhydra_tf.serving.client --url=http://localhost:8501/v1/models/digits photo.jpg more.png
    python -m dynkhydra_tf.serving.client --grpc=localhost:8500 --model=digits photo.jpg

prints a line for each picture: file, label, probability, how many branches it took, the best labels. The
files go as they are: the served model decodes and prepares them. One that cannot be read, or that the server
refuses, does not stop the others: it is named at the end, and the exit status is 1.

In Python both clients take all that the signatures take (`serving/signatures.py`), a threshold for each image
among it:

    with RestClient("http://localhost:8501/v1/models/digits") as client:
        answer = client.predict({"images": images, "tau": np.full(len(images), 0.2)}, "with_tau")

B is the batch axis, the first one of every input and output.
"""

import base64
import collections
import dataclasses
import http.client
import json
import pathlib
import re
import ssl
import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from dynkhydra_tf import cli
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting

MAX_TIMEOUT = 86400  # seconds
MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # of a gRPC request or answer; gRPC's own limit is 4 MiB


class ServerError(UserError):
    """The server refused a request, gave no answer, or one that cannot be understood.

    Attributes:
        code: int, an HTTP status of 300 or more, or str, a gRPC status such as "INVALID_ARGUMENT"; None
            where nothing, or nothing sensible, came over HTTP.
    """

    def __init__(self, message: str, code: int | str | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.code = code


# === REST ===


class RestClient:
    """A client over HTTP and JSON; a context manager. Several threads may use it at once.

    It keeps connections open, one for each request under way at once. A request whose connection breaks is
    sent once more; any other failure is told at once.

    Args:
        url: str, as in http://localhost:8501/v1/models/digits, the newest version, or
            http://localhost:8501/v1/models/digits/versions/3; https as well.
        timeout: float, seconds to wait for the connection, and for each piece of the answer.

    Raises:
        UserError: a url or a timeout that cannot be.
    """

    def __init__(self, url: str, timeout: float = 10.0) -> None:
        self.timeout = _checked_timeout(timeout)
        form = "url must be as in http://localhost:8501/v1/models/digits or .../digits/versions/3"
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UserError(f"{form}. Received: {url!r}, {error}") from error
        self._path = parts.path.rstrip("/")
        model = r"(/[^/:]+)*/v1/models/[^/:]+(/(versions|labels)/[^/:]+)?"
        if not (
            parts.scheme in ("http", "https")
            and parts.hostname
            and re.fullmatch(model, self._path)
            and re.fullmatch("[!-~]+", url)
            and not (parts.query or parts.fragment or parts.username)
        ):
            raise UserError(f"{form}. Received: {url!r}")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._address = (parts.hostname, port or (443 if self._tls else 80))
        self.url = url.rstrip("/")
        self._idle: collections.deque = collections.deque()  # connections; append and pop are atomic

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Closes the connections that are not in use."""
        while self._idle:
            self._idle.pop().close()

    def predict(self, inputs: Mapping[str, Any], signature: str = "serving_default") -> dict[str, np.ndarray]:
        """Sends one request and waits for the answer.

        Args:
            inputs: dict of arrays (B, ...) or lists by the signature's input names, files as bytes. A
                server may be strict about types: no floats where the signature has integers.
            signature: str, its name.

        Returns:
            dict of arrays (B, ...) by output name: float32, int32 (int64 where a value needs it), bool, or
            bytes objects for strings. The protocol leaves out the name of an only input, so that any will
            do, and of an only output, which is "predictions" here.

        Raises:
            UserError: inputs without a batch axis, or of several lengths.
            ServerError: the server refused, or no answer came.
        """
        arrays = _arrays(inputs)
        if len({len(array) for array in arrays.values()}) != 1:
            received = {name: array.shape for name, array in arrays.items()}
            raise UserError(f"inputs must be of one length, the batch's. Received shapes: {received}")
        columns = {name: _to_json(array) for name, array in arrays.items()}
        if len(columns) == 1:
            (instances,) = columns.values()
        else:
            rows = zip(*columns.values(), strict=True)
            instances = [dict(zip(columns, row, strict=True)) for row in rows]
        body = json.dumps({"signature_name": signature, "instances": instances}).encode()
        answer = self._request("POST", f"{self._path}:predict", body)
        try:
            return _from_rows(answer["predictions"])
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ServerError(f"{self.url}: not an answer to predict: {answer!s:.200}") from error

    def status(self) -> dict[str, Any]:
        """Returns what the server says of the model: its versions and their states; a dict as it came.

        Raises:
            ServerError: the server has no such model, or no answer came.
        """
        return self._request("GET", self._path)

    def _request(self, method, path, body=None):
        """Sends a request, once more if the connection breaks; returns the parsed JSON."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            try:
                status, reason, content = self._exchange(connection, method, path, body)
            except (ConnectionResetError, BrokenPipeError):
                # A server closes idle connections. To ask twice does no harm: the model keeps no state.
                connection.close()
                connection = self._connect()
                status, reason, content = self._exchange(connection, method, path, body)
        except TimeoutError as error:
            connection.close()
            raise ServerError(f"{self.url}: no answer within {self.timeout:g} seconds") from error
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ServerError(f"{self.url}: no answer: {error or type(error).__name__}") from error
        self._idle.append(connection)
        try:
            answer = json.loads(content)
        except ValueError:
            answer = content.decode(errors="replace")
        if status == 200 and isinstance(answer, dict):
            return answer
        if isinstance(answer, dict):
            answer = answer.get("error", answer)
        raise ServerError(f"{self.url}: HTTP {status} {reason}: {answer!s:.1000}", status)

    def _connect(self):
        if self._tls:
            return http.client.HTTPSConnection(*self._address, timeout=self.timeout, context=self._tls)
        return http.client.HTTPConnection(*self._address, timeout=self.timeout)

    @staticmethod
    def _exchange(
        connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
    ) -> tuple[int, str, bytes]:
        headers = {"Content-Type": "application/json"} if body else {}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.reason, response.read()


def _to_json(array):
    """An array as nested lists; strings as TensorFlow Serving takes bytes, {"b64": ...}."""

    def encoded(value):
        if isinstance(value, list):
            return [encoded(each) for each in value]
        value = value if isinstance(value, bytes) else str(value).encode()
        return {"b64": base64.b64encode(value).decode()}

    values = array.tolist()
    return encoded(values) if array.dtype.kind in "OSU" else values


def _from_rows(predictions):
    """The rows of an answer, {output: value} each, as a dict of arrays (B, ...)."""
    if isinstance(predictions[0], dict) and set(predictions[0]) != {"b64"}:
        columns = {name: [row[name] for row in predictions] for name in predictions[0]}
    else:
        columns = {"predictions": predictions}
    return {name: _from_json(column) for name, column in columns.items()}


def _from_json(values):
    """Nested lists as an array; JSON does not say which type it was, but how it is written does."""
    first = values
    while isinstance(first, list) and first:
        first = first[0]
    if isinstance(first, str | dict):
        return np.array(_to_bytes(values), object)
    array = np.array(values)
    if array.dtype == np.float64:
        return array.astype(np.float32)
    if array.dtype == np.int64 and np.all(array == array.astype(np.int32)):
        return array.astype(np.int32)
    if array.dtype.kind not in "biu":
        raise ValueError(f"values of several types: {values}")
    return array


def _to_bytes(value):
    if isinstance(value, list):
        return [_to_bytes(each) for each in value]
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value.encode()


# === gRPC ===


class GrpcClient:
    """A client over gRPC; a context manager. Several threads may use it at once.

    It needs the package tensorflow-serving-api. The connection is not encrypted.

    Args:
        target: str, as in localhost:8500.
        model: str, the model's name.
        timeout: float, seconds to wait for an answer.
        version: int, the model's version; None for the newest.

    Raises:
        UserError: a timeout that cannot be, or tensorflow-serving-api is not installed.
    """

    def __init__(self, target: str, model: str, timeout: float = 10.0, version: int | None = None) -> None:
        # Here, for whoever uses REST needs none of these.
        try:
            import grpc
            from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
        except ImportError as error:
            raise UserError(f"gRPC needs a package: pip install tensorflow-serving-api ({error})") from error
        self.timeout = _checked_timeout(timeout)
        self.target, self.model, self.version = target, model, version
        limits = ("grpc.max_send_message_length", "grpc.max_receive_message_length")
        self._channel = grpc.insecure_channel(target, [(limit, MAX_MESSAGE_BYTES) for limit in limits])
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._model = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Closes the connection; requests under way fail."""
        self._channel.close()

    def predict(self, inputs: Mapping[str, Any], signature: str = "serving_default") -> dict[str, np.ndarray]:
        """Sends one request and waits for the answer; see `RestClient.predict`.

        Arrays are sent with the dtype they have, and come back with those of the signature.
        """
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        self._name_model(request.model_spec)
        request.model_spec.signature_name = signature
        for name, array in _arrays(inputs).items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
        answer = self._call(self._prediction.Predict, request)
        return {name: tf.make_ndarray(tensor) for name, tensor in answer.outputs.items()}

    def status(self) -> dict[str, Any]:
        """Returns what the server says of the model; see `RestClient.status`."""
        from google.protobuf import json_format
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest()
        self._name_model(request.model_spec)
        answer = self._call(self._model.GetModelStatus, request)
        return json_format.MessageToDict(answer, preserving_proto_field_name=True)

    def _name_model(self, model_spec):
        model_spec.name = self.model
        if self.version is not None:
            model_spec.version.value = self.version

    def _call(self, method, request):
        import grpc

        try:
            return method(request, timeout=self.timeout)
        except grpc.RpcError as error:
            code, details = error.code().name, error.details() or "no details"
            raise ServerError(f"{self.target}, {self.model}: {code}: {details:.1000}", code) from error


# === What both share ===


def _arrays(inputs):
    """Inputs as arrays; of what is no array yet, floats become float32 and ints int32, as in TensorFlow."""
    arrays = {}
    for name, values in inputs.items():
        if isinstance(values, list | tuple) and any(isinstance(value, bytes) for value in values):
            array = np.array(values, object)  # numpy's own strings lose zeros at the end
        elif isinstance(values, np.ndarray):
            array = values
        else:
            array = np.asarray(values)
            narrow = {"f": np.float32, "i": np.int32}.get(array.dtype.kind, array.dtype)
            array = array.astype(narrow)
        if array.ndim == 0:
            raise UserError(f"{name} must have a batch axis, as in a list of one. Received: {values!r:.80}")
        arrays[name] = array
    return arrays


def _checked_timeout(timeout):
    if not 0 < timeout <= MAX_TIMEOUT:
        raise UserError(
            f"timeout must be above 0 and at most {MAX_TIMEOUT} seconds, a day. Received: {timeout}"
        )
    return timeout


# === The command ===


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command."""

    url: str | None = setting(None, "The model: http://HOST:8501/v1/models/NAME[/versions/3].")
    grpc: str | None = setting(None, "The server over gRPC instead: HOST:8500.")
    model: str | None = setting(None, "The model's name, with --grpc.")
    timeout: float = setting(10.0, "Seconds to wait for an answer.")
    top: int = setting(5, "Best labels to print, if the server has them.", least=0)

    def check(self) -> None:
        """Checks what goes together."""
        if bool(self.url) == bool(self.grpc) or bool(self.grpc) != bool(self.model):
            raise UserError(
                "Give --url=http://HOST:8501/v1/models/NAME, or --grpc=HOST:8500 and --model=NAME"
            )


def _line(answer, top):
    """What a server answered for one picture, as text; at most `top` of its best labels."""
    needed = {"label", "probabilities"}
    if not needed <= set(answer):
        raise UserError(f"the answer must have {sorted(needed)}. Received: {sorted(answer)}")
    line = f"{answer['label'][0].decode()}  {answer['probabilities'][0].max():.1%}"
    if "active_branches" in answer:  # not of a plain network
        branches = int(answer["active_branches"][0])
        line += f"  {branches} {'branch' if branches == 1 else 'branches'}"
    if top and "top_labels" in answer:
        best = zip(answer["top_labels"][0][:top], answer["top_probabilities"][0][:top], strict=True)
        line += "  " + ", ".join(f"{label.decode()} {probability:.1%}" for label, probability in best)
    return line


def _check_picture(answer):
    """Raises a `ServerError` where the served model says that it could not read the picture."""
    if error := answer.get("error", [b""])[0]:
        raise ServerError(error.decode())


def main(options: Options, photos: Sequence[str]) -> None:
    """Sends each picture and prints what it is."""
    client: RestClient | GrpcClient
    if options.url:
        client = RestClient(options.url, options.timeout)
    else:
        client = GrpcClient(options.grpc, options.model, options.timeout)
    failed = []
    with client:
        client.status()  # a server or a model that is not there is told once, and not for each photo
        for photo in photos:
            try:
                content = pathlib.Path(photo).read_bytes()
                answer = client.predict({"image_bytes": [content]}, "image_bytes")
                _check_picture(answer)
            except (OSError, ServerError) as error:
                reason = error if isinstance(error, ServerError) else f"cannot be read: {error.strerror}"
                print(f"{photo}: {reason}", file=sys.stderr)
                failed.append(photo)
            else:
                print(f"{photo}  {_line(answer, options.top)}")
    if failed:
        print(f"error: {len(failed)} of {len(photos)} photos failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, Options, positional="photos")
