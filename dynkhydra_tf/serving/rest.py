"""A client over HTTP and JSON, of a server that speaks TensorFlow Serving's REST protocol.

It needs httpx; `predict` needs numpy, too. B is the batch axis, the first one of every input and output.

httpx has time limits for the pieces of an exchange, which a server that dribbles never reaches. So each
exchange runs in an event loop, whose own limit ends it whatever it waits for. The loop is one for the
process, in a thread.
"""

import asyncio
import base64
import functools
import json
import os
import re
import ssl
import threading
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from dynkhydra_tf.errors import UserError
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

if TYPE_CHECKING:
    import httpx
    import numpy as np


class RestClient:
    """A client over HTTP and JSON; a context manager. Several threads may use it at once.

    It keeps connections open, one for each request under way at once. A request whose connection was closed
    is sent once more; any other failure is told at once, unless there is a deadline. The environment's
    proxies (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) are used for other hosts than this one.

    Args:
        url: str, as in http://localhost:8501/v1/models/digits, the newest version, or
            http://localhost:8501/v1/models/digits/versions/3, .../labels/stable; https as well.
        timeout, deadline: see `Patience`.
        credentials: see `Credentials`.
        max_answer_bytes: of an answer's body; a longer one is an error, and not read to its end.

    Raises:
        UserError: a url or a timeout that cannot be; httpx is not installed.
    """

    def __init__(
        self,
        url: str,
        timeout: float = 10.0,
        deadline: float | None = None,
        credentials: Credentials = Credentials(),  # noqa: B008 - it never changes
        max_answer_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self.patience = Patience(timeout, deadline)
        self.credentials = credentials
        self.max_answer_bytes = max_answer_bytes
        form = "url must be as in http://localhost:8501/v1/models/digits or .../digits/versions/3"
        try:
            parts = urllib.parse.urlsplit(url)
            _ = parts.port
        except ValueError as error:
            raise UserError(f"{form}. Received: {url!r}, {error}") from error
        model = r"(/[^/:]+)*/v1/models/[^/:]+(/(versions|labels)/[^/:]+)?"
        if not (
            parts.scheme in ("http", "https")
            and parts.hostname
            and re.fullmatch(model, parts.path.rstrip("/"))
            and re.fullmatch("[!-~]+", url)
            and not (parts.query or parts.fragment or parts.username)
        ):
            raise UserError(f"{form}. Received: {url!r}")
        if credentials.given and parts.scheme != "https":
            raise UserError(f"Certificates are for https. Received: {url!r}")
        self.url = url.rstrip("/")
        self._client = _make_client(url, parts, credentials)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        asyncio.run_coroutine_threadsafe(self._client.aclose(), _loop()).result()

    def predict(
        self, inputs: Mapping[str, Any], signature: str = "serving_default"
    ) -> dict[str, "np.ndarray"]:
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
            UserError: inputs without a batch axis, of several lengths, or with NaN.
            ServerError: the server refused, or no answer came, or one with NaN.
        """
        answer = self._predict(inputs, signature)
        try:
            return _to_arrays(_columns(answer["predictions"]))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ServerError(f"{self.url}: not an answer to predict: {answer!s:.200}") from error

    def rows(self, inputs: Mapping[str, Any], signature: str = "serving_default") -> list[dict[str, Any]]:
        """As `predict`, but needs no numpy and returns a dict by output name for each item.

        Returns:
            B dicts of numbers, str, bytes (of what is no UTF-8), and lists of them.
        """
        answer = self._predict(inputs, signature)
        try:
            columns = {name: _plain(column) for name, column in _columns(answer["predictions"]).items()}
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ServerError(f"{self.url}: not an answer to predict: {answer!s:.200}") from error

    def status(self) -> dict[str, Any]:
        """Returns what the server says of the model: its versions and their states; a dict as it came.

        A server that has no time is asked again, as ever; that none is there is told at once.

        Raises:
            ServerError: the server has no such model, or no answer came.
        """

        def attempt(seconds):
            try:
                return self._attempt("GET", "", None, seconds)
            except ServerError as error:
                error.pause = None if error.code is None else error.pause
                raise

        return self.patience.ask(attempt)

    # === One request ===

    def _predict(self, inputs, signature):
        columns = {name: _to_json(values) for name, values in checked_columns(inputs).items()}
        if len({len(column) for column in columns.values()}) != 1:
            received = {name: len(column) for name, column in columns.items()}
            raise UserError(f"inputs must be of one length, the batch's. Received lengths: {received}")
        if len(columns) == 1:
            (instances,) = columns.values()
        else:
            rows = zip(*columns.values(), strict=True)
            instances = [dict(zip(columns, row, strict=True)) for row in rows]
        body = json.dumps({"signature_name": signature, "instances": instances}, allow_nan=False).encode()
        return self.patience.ask(lambda seconds: self._attempt("POST", ":predict", body, seconds))

    def _attempt(self, method, end, body, seconds):
        """Sends a request and returns the parsed JSON; `ServerError` whatever goes wrong."""
        import httpx

        exchange = asyncio.run_coroutine_threadsafe(
            self._exchange(method, self.url + end, body, seconds), _loop()
        )
        try:
            status, reason, headers, content = exchange.result()
        except TimeoutError as error:
            raise ServerError(f"{self.url}: no answer within {round(seconds, 2):g} seconds") from error
        except (httpx.HTTPError, OSError) as error:
            pause = None if _is_final(error) else 0
            reason = _reason(error)
            if isinstance(error, _closed()) and self.url.startswith("https:") and not self.credentials.cert:
                reason += SHOW_CERT
            raise ServerError(f"{self.url}: no answer: {reason}", pause=pause) from error
        finally:
            exchange.cancel()  # after Ctrl-C
        try:
            answer = json.loads(content, parse_constant=_refuse)
        except (ValueError, RecursionError):
            answer = content.decode(errors="replace")
        if status == 200 and isinstance(answer, dict):
            return answer
        if isinstance(answer, dict):
            answer = answer.get("error", answer)
        pause = _retry_after(headers) if status == 503 else None
        raise ServerError(f"{self.url}: HTTP {status} {reason}: {answer!s:.1000}", status, pause)

    async def _exchange(self, method, url, body, seconds):
        """Sends a request, once more if its connection was closed: status, reason, headers, body."""
        headers = [*self.credentials.sent(), ("accept-encoding", "identity")]
        if body:
            headers.append(("content-type", "application/json"))
        async with asyncio.timeout(seconds):
            try:
                return await self._once(method, url, body, headers)
            except _closed() as error:
                # A server closes idle connections. To ask twice does no harm: the model keeps no state.
                if _is_final(error):
                    raise
                return await self._once(method, url, body, headers)

    async def _once(self, method, url, body, headers):
        async with self._client.stream(method, url, content=body, headers=headers) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise ServerError(f"{self.url}: the answer is compressed, which nobody asked for")
            content = bytearray()
            async for piece in response.aiter_raw():
                content += piece
                if len(content) > self.max_answer_bytes:
                    raise ServerError(f"{self.url}: the answer is of more than {self.max_answer_bytes} bytes")
            return response.status_code, response.reason_phrase, response.headers, bytes(content)


def _make_client(url: str, parts: urllib.parse.SplitResult, credentials: Credentials) -> "httpx.AsyncClient":
    # Here: who asks for a command's help need not wait for it.
    try:
        import httpx
    except ImportError as error:
        raise UserError(f"REST needs a package: pip install httpx ({error})") from error
    here = is_this_host(parts.hostname)
    try:
        httpx.URL(url)
        return httpx.AsyncClient(
            verify=credentials.tls() if parts.scheme == "https" or not here else False,  # a proxy's, perhaps
            timeout=None,  # see the top
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=60),
            trust_env=not here,
        )
    except (httpx.InvalidURL, ValueError, ImportError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"url, or a proxy of the environment, cannot be used: {error}. Received: {url!r}"
        ) from error


_starting = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all clients of this process."""
    with _starting:  # a cache alone lets threads that come together make one each
        return _start_loop()


@functools.cache
def _start_loop():
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="dynkhydra_tf-rest", daemon=True).start()
    return loop


def _closed():
    """The errors of a connection that the other side closed."""
    import httpx

    return httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError


def _is_final(error):
    """Whether asking again is of no use: what came is no HTTP, or the other side is not whom we know."""
    import httpx

    if any(isinstance(cause, ssl.SSLError) for cause in _causes(error)):
        return True
    if isinstance(error, httpx.RemoteProtocolError):
        return not str(error).startswith("Server disconnected")
    return isinstance(error, (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL))


def _causes(error):
    """An error, what it came from, what that came from, and so on."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error):
    """What the system says of an error, such as "Connection refused"; the libraries' layers leave it out."""
    for cause in _causes(error):
        for inner in getattr(cause, "exceptions", [cause]):  # of each address of a host
            if isinstance(inner, ssl.SSLError):  # its number is none of the system's
                return f"TLS failed: {getattr(inner, 'verify_message', '') or _words(inner.reason)}"
            if isinstance(inner, OSError) and inner.errno:
                return os.strerror(inner.errno) if inner.errno > 0 else inner.strerror
    return str(error) or "the connection was closed before an answer came"


def _words(reason):
    """What OpenSSL calls an error, such as WRONG_VERSION_NUMBER, in small letters."""
    return (reason or "no reason given").replace("_", " ").lower()


def _retry_after(headers: "httpx.Headers") -> float:
    """The seconds that a server asks to wait; 0 where it does not say, or says a date."""
    value = headers.get("retry-after", "")
    return float(value) if re.fullmatch("[0-9]{1,6}", value) else 0.0


def _refuse(constant):
    raise ValueError(f"{constant} is no JSON")


# === JSON ===


def _to_json(values: Any) -> Any:
    """An input as nested lists; strings as TensorFlow Serving takes bytes, {"b64": ...}."""
    if hasattr(values, "tolist"):  # an array
        values = values.tolist()
    if isinstance(values, (list, tuple)):
        if values and isinstance(values[0], (int, float)):  # soon done
            return list(values)
        return [_to_json(value) for value in values]
    if isinstance(values, (str, bytes)):
        values = values if isinstance(values, bytes) else values.encode()
        return {"b64": base64.b64encode(values).decode()}
    return values


def _columns(predictions: Any) -> dict[str, list]:
    """The rows of an answer, {output: value} each, as {output: values of the rows}."""
    if isinstance(predictions[0], dict) and set(predictions[0]) != {"b64"}:
        columns = {name: [row[name] for row in predictions] for name in predictions[0]}
    else:
        columns = {"predictions": list(predictions)}
    if not all(map(is_finite, columns.values())):
        raise ValueError("a float that is infinite")
    return columns


def _plain(value):
    """A value of an answer as it is, {"b64": ...} as str, or bytes where it is no UTF-8."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    content = base64.b64decode(value["b64"])
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _to_arrays(columns: dict[str, list]) -> dict[str, "np.ndarray"]:
    return {name: _to_array(column) for name, column in columns.items()}


def _to_array(values: Sequence) -> "np.ndarray":
    """Nested lists as an array; JSON does not say which type it was, but how it is written does."""
    import numpy as np

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
