"""How fast several workers of one machine train, one thread each, beside one process alone.

    python -m dynkhydra_tf.benchmark.workers --counts=0,1,2 --apart=2 --rounds=5 --seconds=3

0 is without --distribute. "2 apart" are two processes that train at the same time, each on half of the batch,
and tell each other nothing: as fast as two workers would be whose messages cost nothing. "one of 2" is one of
them while the other rests: what lies between the two is the machine's, whose cores share caches, memory and
power.

Two processes that do the same may differ by some percent for as long as they live: --copies=3 starts three
for each row.

A Hydra on resnet with drawn weights, the same random batch in every step. All processes are started and
warmed up first; then each row is measured in turn, round after round, while the others rest. Medians of the
rounds: images a second, those over the first row's of the same round, milliseconds a step, and of processor
time for each process; of several workers the bytes that a step adds up, and how long this takes by itself.
"""

import contextlib
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from dynkhydra_tf import cli
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.launch import environment_of, free_addresses, send
from dynkhydra_tf.tables import table

PLACE = "DYNKHYDRA_BENCHMARK_WORKER"  # in the environment of the processes that train: which one it is
# TensorFlow takes each op of a new graph for an expensive one, which other threads should do, until some 90
# runs have shown that it is not: a step of thousands of small ops is slower before.
STEPS_FIRST = 100
TOP_K = 4  # the paper's


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command."""

    counts: tuple[int, ...] = setting((0, 1, 2), "How many workers; 0: without --distribute.", least=0)
    apart: tuple[int, ...] = setting((2,), "How many processes without messages.", least=2)
    depth: int = setting(1, "d, blocks per stage.", least=1)
    num_branches: int = setting(20, "nb.", least=TOP_K)
    batch_size: int = setting(128, "Images in a step, of all processes together.", least=1)
    per_worker: bool = setting(False, "Whether each process has so many of its own.")
    copies: int = setting(1, "How many rows of each kind, of other processes.", least=1)
    rounds: int = setting(3, "How often to measure each row.", least=1)
    seconds: float = setting(3.0, "For how long, each time.", above=0)
    pin: bool = setting(False, "Whether each process keeps to a core of its own.")
    ask: bool = setting(False, "Measure when Enter is pressed: time to stop what else the machine does.")

    def check(self) -> None:
        """The batch can be divided, and pinned processes have a core each."""
        for count in (*self.counts, *self.apart):
            if count and self.batch_size % count and not self.per_worker:
                raise UserError(
                    f"--batch_size must be a multiple of {count}, the number of processes. "
                    f"Received: {self.batch_size}"
                )
        if self.pin and len(_cores()) < (most := max((*self.counts, *self.apart, 1))):
            raise UserError(
                f"--pin needs {most} cores that a process can be kept to. Received: {len(_cores())}"
            )


def _cores():
    """The numbers of the cores that this process may use; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def main(options: Options) -> None:
    """Measures and prints a table."""
    if PLACE in os.environ:
        _train(options, *json.loads(os.environ[PLACE]))
        return
    with contextlib.ExitStack() as ended:
        rows = {}  # by name, the processes that train at the same time
        for which in ("", *(f" ({number})" for number in range(2, options.copies + 1))):
            for count in options.counts:
                processes = ended.enter_context(_started(options, max(count, 1), bool(count)))
                rows[f"{count or 'none'}{which}"] = processes
            for count in options.apart:
                processes = ended.enter_context(_started(options, count, distributed=False))
                rows |= {f"one of {count}{which}": processes[:1], f"{count} apart{which}": processes}
        for processes in rows.values():
            _ask(processes, 0.0)
        if options.ask:
            print("All is warm. Enter measures: ", end="", file=sys.stderr, flush=True)
            sys.stdin.readline()
        found: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
        for number in range(options.rounds):
            for name in list(rows)[:: -1 if number % 2 else 1]:
                found[name].append(_ask(rows[name], options.seconds))
    print(_table(found))


@contextlib.contextmanager
def _started(options: Options, count: int, distributed: bool) -> Iterator[list[subprocess.Popen]]:
    """Starts processes that share a batch; they are killed when the block ends."""
    passed = ("depth", "num_branches", "batch_size", "per_worker", "pin")
    command = [sys.executable, "-m", __spec__.name, "--counts=", "--apart="]
    command += [f"--{name}={getattr(options, name)}" for name in passed]
    with free_addresses(count) as addresses:
        environments = [environment_of(addresses, index, threads=1) for index in range(count)]
    processes = []
    try:
        for index, environment in enumerate(environments):
            environment[PLACE] = json.dumps([index, count, distributed])
            pipe = subprocess.PIPE
            processes.append(subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True))
        yield processes
    finally:
        send(processes, signal.SIGKILL)
        for process in processes:
            process.communicate()


def _ask(processes: Sequence[subprocess.Popen], seconds: float) -> dict[str, float]:
    """Lets them train for so long; returns what they tell: images a second added up, of the rest the mean."""
    with contextlib.suppress(BrokenPipeError):
        for process in processes:
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
    lines = [process.stdout.readline() for process in processes]
    if not all(lines):
        raise UserError("A process that trained has ended: see what it tells above")
    told = [json.loads(line) for line in lines]
    mean = {name: statistics.mean(each[name] for each in told) for name in told[0]}
    return mean | {"images_per_second": sum(each["images_per_second"] for each in told)}


def _table(found):
    """The medians of each row's rounds; prints the rounds."""
    rows = [["workers", "images/s", "x first", "ms a step", "CPU ms a step", "MB added up", "ms for that"]]
    first = next(iter(found.values()), [])
    for name, rounds in found.items():
        for each, theirs in zip(rounds, first, strict=True):
            each["ratio"] = each["images_per_second"] / theirs["images_per_second"]
        print(json.dumps({"workers": name, "rounds": rounds}), flush=True)
        middle = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        row = [f"{middle['images_per_second']:.1f}", f"{middle['ratio']:.3f}"]
        row += [f"{middle[key]:.1f}" for key in ("ms", "cpu_ms")]
        adds_up = middle["bytes"] > 0
        row += [f"{middle['bytes'] / 1e6:.2f}", f"{middle['adding_ms']:.2f}"] if adds_up else ["-", "-"]
        rows.append([name, *row])
    return table(rows)


# === In a process that trains ===


def _train(options: Options, index: int, count: int, distributed: bool) -> None:
    """Trains for as long as each line of stdin says, in seconds, and answers with what that gave."""
    if options.pin:
        os.sched_setaffinity(0, {_cores()[index]})  # before TensorFlow starts its threads

    import keras
    import numpy as np
    import tensorflow as tf

    from dynkhydra_tf import distribution
    from dynkhydra_tf.averaging import build_optimizer
    from dynkhydra_tf.backbones import ResNet
    from dynkhydra_tf.hydra import Hydra
    from dynkhydra_tf.optimisation import SGD
    from dynkhydra_tf.workers import open_workers

    answers = sys.stdout  # open_workers silences all but one
    with open_workers("workers" if distributed else "none", 120) as workers:
        with distribution.scope(workers.strategy):
            keras.utils.set_random_seed(0)
            classes = 5 * options.num_branches
            model = Hydra(
                ResNet(depth=options.depth), [number // 5 for number in range(classes)], top_k=TOP_K
            )
            model.compile(SGD(1e-3, momentum=0.9))
            build_optimizer(model)
        size = options.batch_size // (1 if options.per_worker else count)
        random = np.random.default_rng(index)
        images = random.integers(0, 256, (size, 32, 32, 3), np.uint8)
        batch = images, random.integers(0, classes, size, np.int32)
        batches = distribution.dealt(tf.data.Dataset.from_tensors(batch).repeat(), model, workers.count)
        if distributed and count == 1:  # as `fit` does it
            batches = model.distribute_strategy.experimental_distribute_dataset(batches)
        model.make_train_function()
        iterator = iter(batches)
        for _ in range(STEPS_FIRST):
            model.train_function(iterator)
        numbers = np.zeros(sum(int(np.prod(variable.shape)) for variable in model.variables), np.float32)
        messages = workers.count > 1
        for line in sys.stdin:
            workers.any(False)  # all begin at the same time
            steps, begun, spent = 0, time.monotonic(), time.process_time()
            while not (steps and workers.any(time.monotonic() - begun > float(line))):
                np.asarray(model.train_function(iterator)["loss"])
                steps += 1
            seconds, spent = time.monotonic() - begun, time.process_time() - spent
            times = []
            for _ in range(12 * messages):
                begun = time.monotonic()
                workers.add_up(numbers)
                times.append(time.monotonic() - begun)
            answer = {
                "images_per_second": steps * size / seconds,
                "ms": 1e3 * seconds / steps,
                "cpu_ms": 1e3 * spent / steps,
                "steps": steps,
                "bytes": numbers.nbytes * messages,
                "adding_ms": 1e3 * statistics.median(times[2:]) if messages else 0,
            }
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    cli.run(main, Options)
