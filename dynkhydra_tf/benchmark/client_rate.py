"""Photos a second through the client and a server, beside the same photos through TensorFlow's C API here.

    python -m dynkhydra_tf.benchmark.client_rate --url=http://localhost:8501/v1/models/digits \\
        --model_dir=served/digits/1 photos/

The server runs on this machine and serves --model_dir. Both ways read the files, send --batch in a request
and --at_once requests at the same time; they take turns, and the medians of the rounds are compared.
"""

import concurrent.futures
import dataclasses
import pathlib
import statistics
import time
from collections.abc import Sequence

import numpy as np

from dynkhydra_tf import cli
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.photo_files import find_photos
from dynkhydra_tf.serving import client, native
from dynkhydra_tf.serving.server_flags import ServerFlags


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command."""

    server: ServerFlags = dataclasses.field(default_factory=ServerFlags)
    model_dir: str | None = setting(None, "The version that the server serves.", path=True)
    photos: int = setting(1000, "At most so many.", least=1)
    batch: int = setting(16, "Photos in a request.", least=1)
    at_once: int = setting(4, "Requests at the same time.", least=1, most=256)
    rounds: int = setting(3, "Turns of each way.", least=1)

    def check(self) -> None:
        """Checks that there is something to ask."""
        if not (self.server.given and self.model_dir):
            raise UserError(
                "Give --url of a server, or --grpc and --model, and --model_dir of what it serves"
            )


def main(options: Options, names: Sequence[str]) -> None:
    """Measures both ways and prints what came out."""
    found, problems = find_photos(names)
    paths = found[: options.photos]
    if not paths:
        raise UserError(f"There are no photos: {problems}")
    asked = client.Options(server=options.server, batch=options.batch, at_once=options.at_once)

    def over_the_server():
        with options.server.connect() as server:
            replies = list(client.Sender(server, asked).send(paths))
        return [reply.answer.problem or reply.row["label"] for reply in replies]

    with native.SavedModel(options.model_dir) as model:

        def batch_here(some):
            files = np.array([pathlib.Path(path).read_bytes() for path in some], object)
            return [label.decode() for label in model.run({"image_bytes": files}, "image_bytes")["label"]]

        def here():
            batches = [paths[at : at + options.batch] for at in range(0, len(paths), options.batch)]
            with concurrent.futures.ThreadPoolExecutor(options.at_once) as pool:
                return [label for labels in pool.map(batch_here, batches) for label in labels]

        ways = {"C API": here, "client": over_the_server}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        labels = {name: way() for name, way in ways.items()}  # the first time is slow
        for _ in range(options.rounds):
            for name, way in ways.items():
                begun = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - begun)
    if labels["C API"] != labels["client"]:
        differ = [pair for pair in zip(*labels.values(), strict=True) if len(set(pair)) > 1]
        raise UserError(f"{len(differ)} photos have another answer over the server, such as {differ[0]}")
    rates = {name: len(paths) / statistics.median(found) for name, found in seconds.items()}
    for name, rate in rates.items():
        turns = ", ".join(f"{each:.2f}" for each in seconds[name])
        print(f"{name}: {rate:.0f} photos a second ({len(paths)} photos in {turns} s)")
    print(f"client / C API: {rates['client'] / rates['C API']:.2f}")


if __name__ == "__main__":
    cli.run(main, Options, positional="photos")
