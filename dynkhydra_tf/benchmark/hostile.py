"""What the most expensive requests cost a server: seconds and megabytes of each, for an export.

    python -m dynkhydra_tf.benchmark.hostile --model_dir=served/digits/1
    python -m dynkhydra_tf.benchmark.hostile --model_dir=served/digits/1 GIF PNG     # with this in their name

Each request is of at most --bytes bytes and made to be dear (`hostile_files`): sizes that are only declared,
deflate streams that go on behind the picture, JPEGs of thousands of scans, files of nothing but tiny pieces,
as many files as a request may hold; of a Hydra all at tau 0. Each is answered in a process of its own,
through TensorFlow's C API, after small ones that warm its signature up, as a server does before it answers.
One that needs more than --most_megabytes, or than --most_seconds by the clock and of the processor (on a busy
machine the clock tells of other work), makes the exit status 2.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import re
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dynkhydra_tf import cli
from dynkhydra_tf.benchmark.hostile_files import FILES, png, request
from dynkhydra_tf.benchmark.runner import peak_mb, rss_mb
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.serving import native
from dynkhydra_tf.tables import table

IMAGES = "images"  # the name of the request of as many images as there may be


@dataclasses.dataclass(frozen=True)
class AskedExport(Checked):
    """The flag of a command that asks an export."""

    model_dir: str | None = setting(None, "The version to ask, such as served/digits/1.", path=True)

    def check(self) -> None:
        """Checks that there is a model."""
        if not self.model_dir:
            raise UserError("Give --model_dir=DIR/VERSION, an export")


@dataclasses.dataclass(frozen=True)
class Options(AskedExport):
    """The flags of this command."""

    bytes: int = setting(1_000_000, "Of a request, at most.", least=1000)
    most_seconds: float = setting(0.3, "That a request may take.", above=0)
    most_megabytes: float = setting(256, "That a request may take, beyond what the server holds.", above=0)


class Cost(NamedTuple):
    """What a request took: wall and processor seconds, megabytes; what was said of its first file."""

    seconds: float
    cpu_seconds: float
    megabytes: float
    said: str


def cost(model_dir: str, inputs: dict, signature: str) -> Cost:
    """Answers one request, after a sound one, and measures it."""
    # As the export's warm-up requests: the first request of a signature takes a quarter of a second.
    files = "image_bytes" in inputs
    first = {name: np.repeat(values[:1], 1 + files, axis=0) for name, values in inputs.items()}
    if files:  # one that is refused, too
        first["image_bytes"] = np.array([png(40, 30), b""], object)
    with native.SavedModel(model_dir) as model:
        for _ in range(3):
            model.run(first, signature)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak begins now
        before, begun, cpu = rss_mb(), time.perf_counter(), time.process_time()
        try:
            answer = model.run(inputs, signature)
            said = answer["error"][0].decode() if "error" in answer else ""
        except native.ModelError as error:
            said = str(error).splitlines()[0]
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        return Cost(seconds, cpu, peak_mb() - before, said)


# === All of them ===


def requests(model_dir: str, most: int, words: Sequence[str]) -> dict[str, tuple[dict, str]]:
    """The requests of at most so many bytes, and the signatures to ask: those with a word in their name."""
    with native.SavedModel(model_dir) as model:
        spec = model.signatures["serving_default"].inputs["images"]
        more = "with_tau" in model.signatures
        largest = _largest_batch(model, spec)
    made: dict[str, tuple[dict, str]] = {}

    def wanted(name):
        return not words or any(word in name for word in words)

    def asked(name, values, without, with_tau):
        tau = {"tau": np.zeros(len(values), np.float32)} if more else {}
        return {name: values, **tau}, with_tau if more else without

    for name in filter(wanted, FILES):
        files = np.array(request(name, most, largest), object)
        made[f"{name} ({len(files)})"] = asked("image_bytes", files, "image_bytes", "image_bytes_with_tau")
    if wanted(IMAGES):
        shape = spec.shape[1:]
        count = min(largest, most // (np.dtype(spec.dtype).itemsize * int(np.prod(shape))))
        images = np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(spec.dtype)
        made[f"{IMAGES} ({count})"] = asked("images", images, "serving_default", "with_tau")
    return made


def _largest_batch(model, spec):
    """The most images of a request, which the model says when it refuses one of none."""
    try:
        model.run({"images": np.zeros((0, *spec.shape[1:]), spec.dtype)})
    except native.ModelError as error:
        return int(re.search(r"1 to (\d+)", str(error))[1])
    raise UserError("This export sets no limit to the images of a request: export the run again")


def main(options: Options, words: Sequence[str]) -> None:
    """Measures each request and prints a table."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    made = requests(options.model_dir, options.bytes, words)
    spawned = multiprocessing.get_context("spawn")
    rows, dear = [["request (files in it)", "s", "CPU s", "MB", "", "what was said of the first file"]], []
    for name, asked in made.items():
        # A new process for each: what one leaves behind would hide what the next one needs.
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawned) as pool:
            found = pool.submit(cost, options.model_dir, *asked).result()
        seconds = min(found.seconds, found.cpu_seconds)
        over = seconds > options.most_seconds or found.megabytes > options.most_megabytes
        numbers = f"{found.seconds:.2f}", f"{found.cpu_seconds:.2f}", f"{found.megabytes:.0f}"
        rows.append([name, *numbers, "OVER" if over else "", found.said[:60]])
        print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
        dear += [name] if over else []
    print(table(rows, text_columns=(0, 4, 5)))
    if dear:
        raise UserError(f"{len(dear)} of {len(made)} requests cost more than they may: {'; '.join(dear)}")


if __name__ == "__main__":
    cli.run(main, Options, positional="words", at_least=0)
