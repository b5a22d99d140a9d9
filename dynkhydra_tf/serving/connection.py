"""What the clients of both protocols share: who they say they are, how long they wait, when they ask again.

It needs no more than the standard library.
"""

import dataclasses
import ipaddress
import math
import pathlib
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from dynkhydra_tf.errors import UserError

MAX_SECONDS = 86400  # a day
MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # of an answer, and of a gRPC request; gRPC's own limit is 4 MiB
SEND_ALONE = "send it alone"  # so ends what a model says of a picture that its request has no room for
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between two attempts

Answer = TypeVar("Answer")
# Where an encrypted connection is closed without a word and the client has shown no certificate.
SHOW_CERT = "; a server that asks for a client's certificate may do so: give cert (--cert)"


class ServerError(UserError):
    """The server refused a request, gave no answer, or one that cannot be understood.

    Attributes:
        code: int, an HTTP status of 300 or more, or str, a gRPC status such as "INVALID_ARGUMENT"; None
            where nothing, or nothing sensible, came over HTTP.
        pause: seconds after which the same request may succeed: the server was not there, or had no time.
            None where asking again is of no use.
    """

    def __init__(self, message: str, code: int | str | None = None, pause: float | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.code = code
        self.pause = pause


@dataclasses.dataclass(frozen=True)
class Credentials:
    """What a client shows to a server, and by what it knows the server.

    Attributes:
        headers: (name, value) of each, sent with every request: HTTP's headers, gRPC's metadata.
        token_file: a file with a bearer token, read for each request, for such files are renewed.
        ca: a file of PEM certificates, the authorities that may vouch for the server; None: the system's.
        cert: a file with the client's own certificate, PEM; key: one with its key; None: in `cert`, too.

    Raises:
        UserError: a header that cannot be sent, a file that cannot be read, a key without a certificate.
    """

    headers: Sequence[tuple[str, str]] = ()
    token_file: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        """Checks the headers and reads the files once."""
        for name, value in self.headers:
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not re.fullmatch(r"[ -~\t]*", value):
                raise UserError(f"header must be NAME: VALUE, printable ASCII. Received: {name}: {value!a}")
        if self.key and not self.cert:
            raise UserError(f"key needs cert, the certificate that it belongs to. Received: key={self.key}")
        for name in ("ca", "cert", "key"):
            if path := getattr(self, name):
                _read(path, name)
        self.sent()

    @property
    def given(self) -> bool:
        """Whether there are certificates, so that the connection must be encrypted."""
        return bool(self.ca or self.cert)

    def sent(self) -> list[tuple[str, str]]:
        """The headers with the token of now.

        Raises:
            UserError: the token's file cannot be read, or holds none.
        """
        headers = [(name, value.strip()) for name, value in self.headers]
        if self.token_file:
            token = _read(self.token_file, "token_file").decode("ascii", "replace").strip()
            if not re.fullmatch("[!-~]+", token):  # never shown
                raise UserError(
                    f"token_file must hold one token, printable ASCII. Received: {self.token_file}"
                )
            headers.append(("authorization", f"Bearer {token}"))
        return headers

    def tls(self) -> ssl.SSLContext:
        """What Python's TLS needs.

        Raises:
            UserError: files that are no certificates, or do not belong together.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert:
                # A key with a password would be asked for on the terminal.
                context.load_cert_chain(self.cert, self.key, password="")
        except (ssl.SSLError, ValueError) as error:
            given = ", ".join(f"{name}={getattr(self, name)}" for name in ("ca", "cert", "key"))
            raise UserError(
                f"ca, cert and key must be PEM, the key without a password. Received: {given}: {error}"
            ) from error
        return context

    def pem(self) -> dict[str, bytes | None]:
        """What gRPC's TLS needs, by the names that `grpc.ssl_channel_credentials` has for it."""
        self.tls()  # it says what is wrong with them; gRPC does not
        return {
            "root_certificates": _read(self.ca, "ca") if self.ca else None,
            "private_key": _read(self.key or self.cert, "key") if self.cert else None,
            "certificate_chain": _read(self.cert, "cert") if self.cert else None,
        }


def _read(path, name):
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}. Received: {path}") from error


def is_this_host(name: str) -> bool:
    """Whether a host's name or address is this machine's own, to which no proxy leads."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        name = name.lower().rstrip(".")
        return name == "localhost" or name.endswith(".localhost") or name == socket.gethostname().lower()


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a client waits.

    Attributes:
        timeout: seconds that the server has for an answer, from the connection to its last byte.
        deadline: seconds for a request in all: while it is not over, a server that is not there, or has no
            time (HTTP 503, gRPC's UNAVAILABLE), is asked again, after pauses that grow. None: never.

    Raises:
        UserError: a number that is none of seconds.
    """

    timeout: float = 10.0
    deadline: float | None = None

    def __post_init__(self) -> None:
        """Checks both."""
        for name in ("timeout", "deadline"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds <= MAX_SECONDS:
                raise UserError(
                    f"{name} must be above 0 and at most {MAX_SECONDS} seconds, a day. Received: {seconds}"
                )

    def ask(self, attempt: Callable[[float], Answer]) -> Answer:
        """Asks until there is an answer, or the deadline is over.

        Args:
            attempt: takes the seconds that it has; returns the answer or raises `ServerError`.

        Raises:
            ServerError: the last attempt's.
        """
        begun, pause = time.monotonic(), FIRST_PAUSE
        left = self.deadline
        while True:
            try:
                return attempt(self.timeout if left is None else min(self.timeout, left))
            except ServerError as error:
                if left is None or error.pause is None:
                    raise
                # Not all at once: the others who were turned away come back, too.
                wait = max(error.pause, pause * random.uniform(0.5, 1))
                left = self.deadline - (time.monotonic() - begun) - wait
                if left <= 0:
                    raise
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)


# === Values ===


def checked_columns(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Checks the inputs of a request: lists or arrays with a batch axis, without NaN.

    Raises:
        UserError: one of them is something else.
    """
    for name, values in inputs.items():
        alone = isinstance(values, (str, bytes)) or not hasattr(values, "__len__")
        if alone or getattr(values, "shape", None) == ():
            raise UserError(f"{name} must have a batch axis, as in a list of one. Received: {values!r:.80}")
        if not is_finite(values):
            raise UserError(f"{name} must be finite numbers. Received: NaN or infinity")
    return inputs


def is_finite(values: Any) -> bool:
    """Whether no float in a number, a list of any depth or an array is NaN or infinite."""
    if isinstance(values, float):
        return math.isfinite(values)
    if isinstance(values, (list, tuple)):
        return all(map(is_finite, values))
    if hasattr(values, "dtype"):  # numpy's
        import numpy as np

        return values.dtype.kind not in "fc" or bool(np.isfinite(values).all())
    return True
