"""Times exported models in a process of its own, through TensorFlow's C API: no Python TensorFlow in it.

    python runner.py JOB.pickle RESULT.pickle

A job: {"native": path of native.py, "models": {name: (directory, signature)}, "images": (n, S, S, 3),
"batch_sizes": [B], "threads": int, "seconds": float, "requests": int, or None for as many as 64 images make,
at least 2, "loads": how often each is loaded}. Its result: {"load_ms": {name: [ms, ...]}, "memory_mb":
{name: growth}, "times_ms" and "cpu_ms": {B: {name: [n requests][rounds]}}, "answers": {name: outputs for the
first 64 images}}. In place of a directory there may be a .onnx file, which ONNX Runtime answers, or a .torch
file, see `pytorch.py`.

All models are loaded, then they answer in turn, again and again: what slows the machine down for a while
slows all alike. After the others' turns a model finds the processor's caches full of their weights, so each
answers all requests before it is the next one's turn, and from another one on in each round: those that find
the caches so are others each time, and the median over the rounds is that of a server with no other model.
"""

import importlib.util
import itertools
import pathlib
import pickle
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

TURN = "all requests"  # what a model answers before it is the next one's turn


def rss_mb() -> float:
    """Resident memory of this process in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def peak_mb() -> float:
    """Most memory that this process has had, in MB; the system's ru_maxrss begins with the parent's."""
    with open("/proc/self/status") as file:
        return int(file.read().partition("VmHWM:")[2].split()[0]) / 1024


class OnnxModel:
    """A .onnx file in ONNX Runtime, with what is used here of `native.SavedModel`."""

    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options)
        self.names = [output.name for output in self.session.get_outputs()]

    def run(self, inputs: dict, signature: str) -> dict:
        """Returns the outputs for a batch."""
        return dict(zip(self.names, self.session.run(self.names, inputs), strict=True))

    def request(self, inputs: dict, signature: str) -> "OnnxRequest":
        """Returns a request to be run again and again."""
        return OnnxRequest(self, inputs)

    def close(self) -> None:
        """Lets go of it."""
        del self.session


class OnnxRequest:
    """A batch for an `OnnxModel`."""

    def __init__(self, model: OnnxModel, inputs: dict) -> None:
        self.session, self.names, self.inputs = model.session, model.names, inputs

    def run(self) -> None:
        """Answers it."""
        self.session.run(self.names, self.inputs)

    def __exit__(self, *error: object) -> None:
        """Nothing to release."""


def _module(path):
    """The module of a file; this process's path has none of our packages."""
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def open_model(native: ModuleType, path: str, threads: int) -> Any:
    """Loads an export into its runtime."""
    if path.endswith(".torch"):
        return _module(pathlib.Path(__file__).with_name("pytorch.py")).TorchModel(path, threads)
    return (OnnxModel if path.endswith(".onnx") else native.SavedModel)(path, threads)


def load(native: ModuleType, job: dict) -> tuple[dict, dict, dict]:
    """Loads each model `loads` times; returns the last ones, load times in ms and growth of memory in MB.

    Where that is once, the signatures of one directory have it together.
    """
    load_ms: dict[str, list[float]] = {name: [] for name in job["models"]}
    models, memory_mb = {}, {}
    opened: dict[str, Any] = {}
    first, _ = next(iter(job["models"].values()))
    open_model(native, first, job["threads"]).close()  # starts the runtime
    for left in reversed(range(job["loads"])):
        for name, (directory, signature) in job["models"].items():
            before, start = rss_mb(), time.perf_counter()
            together = opened.get(directory) if job["loads"] == 1 else None
            model = opened[directory] = together or open_model(native, directory, job["threads"])
            load_ms[name].append((time.perf_counter() - start) * 1e3)
            if left:
                model.close()
            else:
                model.run({"images": job["images"][:1]}, signature)
                memory_mb[name], models[name] = rss_mb() - before, model
    return models, load_ms, memory_mb


def batches_of(images: Any, batch_size: int, count: int | None = None) -> list:
    """Returns the first `count` batches of images; None: as many as 64 images make, at least 2."""
    return [images[i * batch_size : (i + 1) * batch_size] for i in range(count or max(2, 64 // batch_size))]


def in_turn(requests: Mapping[str, Sequence[Callable[[], object]]], seconds: float) -> tuple[dict, dict]:
    """Times requests, round after round.

    Args:
        requests: {who answers: functions, each of which runs a request; as many for all}.
        seconds: at least so long, and five rounds, after one that warms up.

    Returns:
        Two dicts {who: [requests][rounds]} in ms: by the clock, of the CPUs.
    """
    taken: dict[str, list[list[float]]] = {name: [[] for _ in own] for name, own in requests.items()}
    spent: dict[str, list[list[float]]] = {name: [[] for _ in own] for name, own in requests.items()}
    count = len(next(iter(requests.values())))
    end, rounds = None, 0
    while rounds < 6 or time.perf_counter() < end:  # the first round warms up
        first = rounds * round(0.618 * count) % count  # the golden section: they lie far from one another
        for name, index in itertools.product(requests, [*range(first, count), *range(first)]):
            start, cpu = time.perf_counter(), time.process_time()
            requests[name][index]()
            if rounds:
                taken[name][index].append((time.perf_counter() - start) * 1e3)
                spent[name][index].append((time.process_time() - cpu) * 1e3)
        rounds += 1
        if rounds == 1:
            end = time.perf_counter() + seconds
    return taken, spent


def times(models: dict, job: dict, batch_size: int) -> tuple[dict, dict]:
    """Times each model's answers to the job's batches of one size; see `in_turn`."""
    batches = batches_of(job["images"], batch_size, job["requests"])
    requests = {
        name: [model.request({"images": batch}, job["models"][name][1]) for batch in batches]
        for name, model in models.items()
    }
    measured = in_turn(
        {name: [request.run for request in own] for name, own in requests.items()}, job["seconds"]
    )
    for prepared in requests.values():
        for request in prepared:
            request.__exit__()
    return measured


def main(job_path: str, result_path: str) -> None:
    """Runs the job."""
    with open(job_path, "rb") as file:
        job = pickle.load(file)
    models, load_ms, memory_mb = load(_module(job["native"]), job)
    measured = {size: times(models, job, size) for size in job["batch_sizes"]}
    result = {
        "load_ms": load_ms,
        "memory_mb": memory_mb,
        "process_mb": rss_mb(),
        "times_ms": {size: taken for size, (taken, _) in measured.items()},
        "cpu_ms": {size: spent for size, (_, spent) in measured.items()},
        "answers": {
            name: model.run({"images": job["images"][:64]}, job["models"][name][1])
            for name, model in models.items()
        },
    }
    with open(result_path, "wb") as file:
        pickle.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
