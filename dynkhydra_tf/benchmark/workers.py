"""How fast several workers of one machine train, one thread each, beside one alone.

    python -m dynkhydra_tf.benchmark.workers --counts=0,1,2 --seconds=6

0 is without --distribute. A Hydra on resnet with drawn weights, the same random batch in every step; for each
count images a second, milliseconds of processor time a step and worker, and from two on what a step adds up
over the workers: bytes, and the milliseconds that this takes by itself.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time

from dynkhydra_tf import cli
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.launch import environment_of, free_addresses
from dynkhydra_tf.tables import table

WORKER = "DYNKHYDRA_BENCHMARK_WORKER"  # set in the environment of the processes that train
STEPS_FIRST = 3  # traced, warmed up


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command."""

    counts: tuple[int, ...] = setting((0, 1, 2), "How many workers, each in turn.", least=0)
    depth: int = setting(1, "d, blocks per stage.", least=1)
    num_branches: int = setting(20, "nb.", least=1)
    batch_size: int = setting(128, "Images in a step, of all workers together.", least=1)
    seconds: float = setting(6.0, "How long to measure each.", above=0)


def main(options: Options) -> None:
    """Measures and prints a table."""
    if WORKER in os.environ:
        print(json.dumps(_train(options, int(os.environ[WORKER]))), flush=True)
        return
    rows = [["workers", "images/s", "CPU ms a step", "MB added up", "ms for that alone"]]
    for count in options.counts:
        found = _measure(options, count)
        row = [str(count or "none"), f"{found['images_per_second']:.1f}", f"{found['cpu_ms']:.1f}"]
        alone = found["adding_ms"]
        row += [f"{found['bytes'] / 1e6:.2f}", f"{alone:.2f}"] if alone else ["-", "-"]
        rows.append(row)
        print(json.dumps({"workers": count, **found}), flush=True)
    print(table(rows))


def _measure(options, count):
    """What the first of so many workers tells."""
    command = [sys.executable, "-m", __spec__.name]
    command += [f"--{field.name}={getattr(options, field.name)}" for field in dataclasses.fields(options)[1:]]
    with free_addresses(max(count, 1)) as addresses:
        environments = [
            environment_of(addresses, index, threads=1) | {WORKER: str(count)}
            for index in range(max(count, 1))
        ]
    processes = [subprocess.Popen(command, env=each, stdout=subprocess.PIPE) for each in environments]
    told = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise UserError(f"A process of {count} workers failed: see what it tells")
    return json.loads(told[0])


def _train(options, count):
    import keras
    import numpy as np
    import tensorflow as tf

    from dynkhydra_tf import distribution
    from dynkhydra_tf.averaging import build_optimizer
    from dynkhydra_tf.backbones import ResNet
    from dynkhydra_tf.hydra import Hydra
    from dynkhydra_tf.optimisation import SGD
    from dynkhydra_tf.workers import open_workers

    with open_workers("workers" if count else "none", 120) as workers:
        with distribution.scope(workers.strategy):
            keras.utils.set_random_seed(0)
            classes = 5 * options.num_branches
            model = Hydra(ResNet(depth=options.depth), np.arange(classes) // 5, top_k=4)
            model.compile(SGD(1e-3, momentum=0.9))
            build_optimizer(model)
        size = options.batch_size // workers.count
        random = np.random.default_rng(workers.index)
        images = random.integers(0, 256, (size, 32, 32, 3), np.uint8)
        batch = images, random.integers(0, classes, size, np.int32)
        batches = distribution.dealt(tf.data.Dataset.from_tensors(batch).repeat(), model, workers.count)
        if count == 1:  # as `fit` does it
            batches = model.distribute_strategy.experimental_distribute_dataset(batches)
        model.make_train_function()
        iterator = iter(batches)
        for _ in range(STEPS_FIRST):
            model.train_function(iterator)
        steps, begun, spent = 0, time.monotonic(), time.process_time()
        while not workers.any(time.monotonic() - begun > options.seconds):
            np.asarray(model.train_function(iterator)["loss"])
            steps += 1
        seconds, spent = time.monotonic() - begun, time.process_time() - spent
        added = sum(int(np.prod(variable.shape)) for variable in model.variables)
        times = []
        if workers.count > 1:
            numbers = np.zeros(added, np.float32)
            for _ in range(12):
                begun = time.monotonic()
                workers.add_up(numbers)
                times.append(time.monotonic() - begun)
        return {
            "images_per_second": steps * options.batch_size / seconds,
            "cpu_ms": 1e3 * spent / steps,
            "steps": steps,
            "bytes": 4 * added,
            "adding_ms": 1e3 * sorted(times[2:])[len(times[2:]) // 2] if times else None,
        }


if __name__ == "__main__":
    cli.run(main, Options)
