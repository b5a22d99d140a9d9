"""A client over gRPC, of a server that speaks TensorFlow Serving's protocol.

It needs grpcio and protobuf; `predict` needs numpy, too. B is the batch axis.
"""

from collections.abc import Mapping
from typing import Any, Self

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.serving import protos
from dynkhydra_tf.serving.connection import (
    MAX_MESSAGE_BYTES,
    SHOW_CERT,
    Credentials,
    Patience,
    ServerError,
    checked_columns,
    is_finite,
    is_this_host,
)

CLOSED = ("Socket closed", "Connection reset", "Broken pipe")  # how gRPC says so


class GrpcClient:
    """A client over gRPC; a context manager. Several threads may use it at once.

    The environment's proxies (grpc_proxy, https_proxy, http_proxy, no_proxy) are used for other hosts than
    this one.

    Args:
        target: str, as in localhost:8500.
        model: str, the model's name.
        timeout, deadline: see `Patience`.
        version: int, the model's version; None for the newest.
        credentials: see `Credentials`; the headers are sent as metadata, their names in small letters.
        tls: whether the connection is encrypted; it is where there are certificates. Where `ca` is not
            given, those authorities vouch for the server that grpcio knows.
        max_answer_bytes: of an answer; a longer one is an error.
        label: str, the version's label in place of its number, such as "stable".

    Raises:
        UserError: a timeout or a header that cannot be, or grpcio is not installed.
    """

    def __init__(
        self,
        target: str,
        model: str,
        timeout: float = 10.0,
        version: int | None = None,
        deadline: float | None = None,
        credentials: Credentials = Credentials(),  # noqa: B008 - it never changes
        tls: bool = False,
        max_answer_bytes: int = MAX_MESSAGE_BYTES,
        label: str | None = None,
    ) -> None:
        # Here, for whoever uses REST needs none of these.
        try:
            import grpc

            messages = protos.messages()
        except ImportError as error:
            raise UserError(f"gRPC needs packages: pip install grpcio protobuf ({error})") from error
        self.patience = Patience(timeout, deadline)
        self.credentials = credentials
        self.target, self.model, self.version, self.label = target, model, version, label
        for name, _ in credentials.headers:
            if name.lower().endswith("-bin") or name.lower().startswith(("grpc-", ":")):
                raise UserError(
                    f"header must not be one of gRPC's own, grpc-... or ...-bin. Received: {name}"
                )
        options = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", max_answer_bytes),
            ("grpc.enable_http_proxy", 0 if target.startswith("unix:") or is_this_host(_host(target)) else 1),
        ]
        self._tls = tls or credentials.given
        if self._tls:
            known = grpc.ssl_channel_credentials(**credentials.pem())
            self._channel = grpc.secure_channel(target, known, options)
        else:
            self._channel = grpc.insecure_channel(target, options)

        def method(path, answer):
            return self._channel.unary_unary(
                path, lambda request: request.SerializeToString(), answer.FromString
            )

        self._predict_method = method(protos.PREDICT, messages.PredictResponse)
        self._status_method = method(protos.STATUS, messages.StatusResponse)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Closes the connection; requests under way fail."""
        self._channel.close()

    def predict(self, inputs: Mapping[str, Any], signature: str = "serving_default") -> dict[str, Any]:
        """Sends one request and waits for the answer; see `RestClient.predict`.

        Arrays are sent with the dtype they have, and come back with those of the signature.
        """
        return self._predict(inputs, signature, protos.to_array)

    def rows(self, inputs: Mapping[str, Any], signature: str = "serving_default") -> list[dict[str, Any]]:
        """As `predict`, but needs no numpy for lists; see `RestClient.rows`."""
        columns = self._predict(inputs, signature, protos.to_list)
        try:
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        except ValueError as error:
            raise ServerError(f"{self.target}: not an answer to predict: {error}") from error

    def status(self) -> dict[str, Any]:
        """Returns what the server says of the model; see `RestClient.status`."""
        from google.protobuf import json_format

        request = protos.messages().StatusRequest(model_spec=self._spec())
        answer = Patience(self.patience.timeout).ask(
            lambda seconds: self._attempt(self._status_method, request, seconds)
        )
        return json_format.MessageToDict(answer, preserving_proto_field_name=True)

    # === One request ===

    def _predict(self, inputs, signature, decode):
        checked_columns(inputs)
        try:
            named = protos.named(inputs)
        except (ValueError, TypeError) as error:
            raise UserError(f"inputs cannot be sent: {error}") from error
        spec = self._spec(signature_name=signature)
        request = protos.messages().PredictRequest(model_spec=spec, inputs=named)
        answer = self.patience.ask(lambda seconds: self._attempt(self._predict_method, request, seconds))
        try:
            columns = {output.key: decode(output.value) for output in answer.outputs}
            if not all(map(is_finite, columns.values())):
                raise ValueError("NaN or infinity")
        except (ValueError, TypeError) as error:
            raise ServerError(f"{self.target}: not an answer to predict: {error}") from error
        return columns

    def _spec(self, **fields):
        messages = protos.messages()
        if self.label is not None:
            fields["version_label"] = self.label
        elif self.version is not None:
            fields["version"] = messages.Int64(value=self.version)
        return messages.ModelSpec(name=self.model, **fields)

    def _attempt(self, method, request, seconds):
        import grpc

        metadata = [(name.lower(), value) for name, value in self.credentials.sent()]
        try:
            return method(request, timeout=seconds, metadata=metadata)
        except grpc.RpcError as error:
            code, details = error.code().name, error.details() or "no details"
            pause = 0 if code == "UNAVAILABLE" and "CERTIFICATE_VERIFY_FAILED" not in details else None
            message = f"{self.target}, {self.model}: {code}: {details:.1000}"
            if self._tls and not self.credentials.cert and any(word in details for word in CLOSED):
                message += SHOW_CERT
            raise ServerError(message, code, pause) from error


def _host(target):
    """The host in a target such as dns:///localhost:8500 or [::1]:8500."""
    return target.rpartition("/")[2].rpartition(":")[0].strip("[]")
