"""The flags by which a command finds a running server, and the client that they describe."""

import dataclasses
from typing import TYPE_CHECKING, Union

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.serving.connection import MAX_MESSAGE_BYTES, Credentials, Patience

if TYPE_CHECKING:
    from dynkhydra_tf.serving.rest import RestClient
    from dynkhydra_tf.serving.rpc import GrpcClient


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise ValueError(f"a header is NAME: VALUE. Received: {text!r}")
    return name.strip(), value.strip()


@dataclasses.dataclass(frozen=True)
class ServerFlags(Checked):
    """Which server, who asks, and how long it may take."""

    url: str | None = setting(None, "The model: http://HOST:8501/v1/models/NAME[/versions/3].")
    grpc: str | None = setting(None, "The server over gRPC instead: HOST:8500.")
    model: str | None = setting(None, "The model's name, with --grpc.")
    timeout: float = setting(10.0, "Seconds that the server has for an answer, to its last byte.")
    deadline: float = setting(
        30.0,
        "Seconds for a request in all: a server that is not there, or has no time (HTTP 503, UNAVAILABLE), "
        "is asked again as long; 0: never again.",
        least=0,
    )
    max_answer_bytes: int = setting(MAX_MESSAGE_BYTES, "Of an answer; a longer one is an error.", least=1)
    header: tuple[tuple[str, str], ...] = setting(
        (),
        "NAME: VALUE, sent with every request; may be given several times. With --grpc it is metadata.",
        item=_header,
        item_text=": ".join,
        repeated=True,
    )
    token_file: str | None = setting(
        None, "A file with a token, sent as Authorization: Bearer; read for each request.", path=True
    )
    ca: str | None = setting(
        None, "Certificates (PEM) that vouch for the server; default: the system's.", path=True
    )
    cert: str | None = setting(None, "This client's own certificate (PEM), where the server asks.", path=True)
    key: str | None = setting(None, "Its key (PEM), where --cert does not hold it.", path=True)
    tls: bool = setting(False, "With --grpc: encrypt; --ca and --cert do, too. With --url: write https.")

    def check(self) -> None:
        """Checks what goes together."""
        if (self.url and self.grpc) or bool(self.grpc) != bool(self.model):
            raise UserError(
                "Give either --url=http://HOST:8501/v1/models/NAME, or --grpc with --model, as in "
                "--grpc=HOST:8500 --model=NAME"
            )
        if self.tls and not self.grpc:
            raise UserError("--tls is for --grpc; with --url, write https")
        Patience(self.timeout, self.deadline or None)

    @property
    def given(self) -> bool:
        """Whether there is a server."""
        return bool(self.url or self.grpc)

    def connect(self) -> Union["RestClient", "GrpcClient"]:
        """Makes the client; a context manager.

        Raises:
            UserError: it cannot be.
        """
        credentials = Credentials(self.header, self.token_file, self.ca, self.cert, self.key)
        deadline, most = self.deadline or None, self.max_answer_bytes
        # Here: who asks for the help need not wait for either.
        if self.url:
            from dynkhydra_tf.serving.rest import RestClient

            return RestClient(self.url, self.timeout, deadline, credentials, most)
        from dynkhydra_tf.serving.rpc import GrpcClient

        return GrpcClient(
            self.grpc,
            self.model,
            self.timeout,
            deadline=deadline,
            credentials=credentials,
            tls=self.tls,
            max_answer_bytes=most,
        )
