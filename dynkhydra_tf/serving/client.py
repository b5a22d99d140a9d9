"""A client of a server that speaks TensorFlow Serving's protocols, such as TensorFlow Serving or KServe.

    python -m dynkhydra_tf.serving.client --url=http://localhost:8501/v1/models/digits photo.jpg photos/
    find . -name '*.jpg' | python -m dynkhydra_tf.serving.client --grpc=localhost:8500 --model=digits --csv -

Takes files, folders with all that is in them, globs, and for - a path a line from standard input. The files
go as they are, several in a request: the served model decodes and prepares them. Prints a row for each photo:
the best labels with their probabilities, and which branches ran. One that cannot be read, or that the server
refuses, does not stop the others: it is named at the end, and the exit status is 1.

Needs absl-py, and httpx or grpcio and protobuf; tqdm for a bar on a terminal; no TensorFlow, no numpy. In
Python both clients take all that the signatures take (`serving/signatures.py`), a threshold for each image
among it:

    with RestClient("http://localhost:8501/v1/models/digits") as client:
        answer = client.predict({"images": images, "tau": np.full(len(images), 0.2)}, "with_tau")
"""

import collections
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dynkhydra_tf import cli
from dynkhydra_tf.answers import Answer
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.photo_files import find_photos
from dynkhydra_tf.printed_answers import print_answers, record
from dynkhydra_tf.serving.connection import MAX_MESSAGE_BYTES, SEND_ALONE, ServerError
from dynkhydra_tf.serving.rest import RestClient
from dynkhydra_tf.serving.rpc import GrpcClient
from dynkhydra_tf.serving.server_flags import ServerFlags

__all__ = ["GrpcClient", "RestClient", "ServerError"]

BATCH_BYTES = 16 * 1024 * 1024  # of the files of a request; one file may be larger
# A request may be refused as a whole: it is too large, or, by an export of version 0.1, one file is bad.
REFUSALS = (400, 413, "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command."""

    server: ServerFlags = dataclasses.field(default_factory=ServerFlags)
    batch: int = setting(16, "Photos in a request, at most.", least=1)
    at_once: int = setting(4, "Requests at the same time.", least=1, most=256)
    tau: float | None = setting(
        None,
        "The threshold of a Hydra; default: the served one. Exports of before 0.2 do not take it with files.",
        least=0,
        below=1,
    )
    signature: str | None = setting(
        None, "The signature to ask; default: image_bytes, or with --tau image_bytes_with_tau."
    )
    top: int = setting(5, "Best labels to print, if the server has them.", least=0)
    json: bool = setting(False, "Print JSON in place of a table: a list with an object for each photo.")
    csv: bool = setting(False, "Print CSV in place of a table.")
    json_lines: bool = setting(
        False, "Print a line of JSON for each photo as it is answered, for dynkhydra_tf.serving.monitor."
    )

    def check(self) -> None:
        """Checks what goes together."""
        if not self.server.given:
            raise UserError(
                "Give --url=http://HOST:8501/v1/models/NAME, or --grpc=HOST:8500 and --model=NAME"
            )
        if self.json + self.csv + self.json_lines > 1:
            raise UserError("Give one of --json, --csv and --json_lines")

    @property
    def asked(self) -> str:
        """The signature to ask."""
        return self.signature or ("image_bytes" if self.tau is None else "image_bytes_with_tau")


class Reply(NamedTuple):
    """What became of a photo.

    Attributes:
        answer: its problem is set where there is none.
        row: the outputs for it; empty where there is a problem.
        seconds: what the request that it was in took.
    """

    answer: Answer
    row: Mapping[str, Any]
    seconds: float


def main(options: Options, names: Sequence[str]) -> None:
    """Sends the photos and prints what they are."""
    photos, problems = find_photos(names)
    form = "json" if options.json else "csv" if options.csv else None if options.json_lines else "table"
    with options.server.connect() as client:
        client.status()  # a server or a model that is not there is told once, and not for each photo
        answers = _answers(Sender(client, options), photos, options.json_lines)
        print_answers(answers, len(photos), problems, form, failed="photos failed")


def _answers(sender, photos, json_lines):
    """The answers; prints a line of each where that is asked for."""
    for answer, row, seconds in sender.send(photos):
        if json_lines and not answer.problem:
            print(json.dumps(_line(answer, row, seconds), ensure_ascii=False), flush=True)
        yield answer


def _line(answer, row, seconds):
    """What the monitor reads of an answer."""
    gate = {}
    if "gate" in row:
        gate = {"gate": round(max(row["gate"]), 6), "active_branches": row["active_branches"]}
    return {**record(answer), **gate, "seconds": round(seconds, 6)}


class Sender:
    """Sends photos in batches, several requests at a time.

    Args:
        client: the server's.
        options: batch, at_once, tau, signature, top.
    """

    def __init__(self, client: RestClient | GrpcClient, options: Options) -> None:
        self.client = client
        self.options = options
        self._lost = threading.Event()  # the server, for good

    def send(self, paths: Sequence[str]) -> Iterator[Reply]:
        """Gives a reply for each photo, in order."""
        workers = self.options.at_once
        batches = _batches(paths, self.options.batch)
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            # Files are read when their batch is about to go: a few batches are held, not all.
            ahead: collections.deque = collections.deque()
            try:
                for batch in batches:
                    ahead.append(pool.submit(self._replies, batch))
                    if len(ahead) > workers:
                        yield from ahead.popleft().result()
                while ahead:
                    yield from ahead.popleft().result()
            finally:
                self._lost.set()  # after Ctrl-C nothing more is sent
                pool.shutdown(cancel_futures=True)

    def _replies(self, paths):
        """The replies for a batch."""
        contents, problems = {}, {}
        for path in paths:
            try:
                content = _read(path)
            except OSError as error:
                problems[path] = f"cannot be read: {error.strerror}"
            except ValueError as error:
                problems[path] = str(error)
            else:
                contents[path] = content
        replies = {path: Reply(Answer(path, problem=problem), {}, 0.0) for path, problem in problems.items()}
        replies |= self._request(contents)
        return [replies[path] for path in paths]

    def _request(self, contents):
        """{path: Reply} of files by path; of a batch that is refused as a whole, the halves are asked."""
        if not contents:
            return {}
        options = self.options
        inputs = {"image_bytes": list(contents.values())}
        if options.tau is not None:
            inputs["tau"] = [options.tau] * len(contents)
        begun = time.monotonic()
        try:
            if self._lost.is_set():
                raise ServerError("not sent: the server is not there any more")
            rows = self.client.rows(inputs, options.asked)
            if len(rows) != len(contents):
                raise ServerError(f"{len(rows)} answers for {len(contents)} photos")
        except ServerError as error:
            if error.pause is not None:  # until the deadline was over
                self._lost.set()
            if len(contents) > 1 and error.code in REFUSALS:
                items, half = list(contents.items()), len(contents) // 2
                return self._request(dict(items[:half])) | self._request(dict(items[half:]))
            return {path: Reply(Answer(path, problem=str(error)), {}, 0.0) for path in contents}
        seconds = time.monotonic() - begun
        replies = {path: self._reply(path, row, seconds) for path, row in zip(contents, rows, strict=True)}
        alone = [path for path, reply in replies.items() if (reply.answer.problem or "").endswith(SEND_ALONE)]
        for path in alone if len(contents) > 1 else ():
            replies |= self._request({path: contents[path]})
        return replies

    def _reply(self, path, row, seconds):
        try:
            return Reply(Answer.served(path, row, max(1, self.options.top)), row, seconds)
        except (KeyError, TypeError, ValueError) as error:
            needed = ["label", "probabilities"]
            raise UserError(f"the answer must have {needed}. Received: {sorted(row)}") from error


def _batches(paths: Sequence[str], most: int) -> Iterator[list[str]]:
    """The photos in batches of at most so many, and not of more bytes than there should be in a request."""
    batch: list[str] = []
    size = 0
    for path in paths:
        try:
            more = os.path.getsize(path)
        except OSError:  # told when it is read
            more = 0
        if batch and (len(batch) == most or size + more > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += more
    if batch:
        yield batch


def _read(path: str) -> bytes:
    """A file's content; ValueError where there is none to send."""
    with pathlib.Path(path).open("rb") as file:
        content = file.read(MAX_MESSAGE_BYTES + 1)
    if not content:
        raise ValueError("empty")
    if len(content) > MAX_MESSAGE_BYTES:
        raise ValueError(f"more than {MAX_MESSAGE_BYTES} bytes")
    return content


if __name__ == "__main__":
    cli.run(main, Options, positional="photos")
