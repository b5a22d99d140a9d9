"""Training: a routed step against a dense one, where the time goes, and what the input pipeline gives.

    python -m dynkhydra_tf.benchmark.training DEPTH NUM_BRANCHES BATCH_SIZE ROUNDS DENSE_ROUNDS

prints a row as JSON. Each is measured in a process of its own, so that peak memory and the time to the first
step are its own.
"""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dynkhydra_tf.benchmark import subjects
from dynkhydra_tf.benchmark.runner import peak_mb
from dynkhydra_tf.data import Augmentation, load_data, training_batches
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.tables import number

ACTIVE = 2.5  # of a trained CIFAR-100 network at tau 0.08
DENSE_ROUNDS = 3  # a dense step takes seconds


def measure(depth: int, num_branches: int, batch_size: int, rounds: int, dense_rounds: int) -> dict[str, Any]:
    """Measures one network: a routed and a dense step in turn, and the parts of the routed one.

    Args:
        depth: d. num_branches: nb. batch_size: B. rounds: int, routed steps.
        dense_rounds: int, dense steps, at most `rounds`; 0 for none.

    Returns:
        dict: depth, num_branches, batch_size, active_branches; routed_first_step_s (building included),
        routed_peak_mb, and the same of dense; steps: {"routed", "dense", "optimizer", "branches" (forward and
        back, on features that are there): {"ms", "low", "high", "cpu"}}, median and quartiles, and the median
        of the processors' time; dense_over_routed, None without dense steps.
    """
    batch = subjects.images(batch_size), np.arange(batch_size, dtype=np.int32) % subjects.NUM_CLASSES
    batch = tuple(map(tf.constant, batch))
    found: dict[str, Any] = {"depth": depth, "num_branches": num_branches, "batch_size": batch_size}
    steps: dict[str, Callable[[], Any]] = {}
    source = subjects.make_hydra(depth, num_branches)
    tau = subjects.tau_for(source, batch[0], ACTIVE)
    for routing in ("routed", "dense") if dense_rounds else ("routed",):
        start = time.perf_counter()
        model = Hydra.from_config(
            {**source.get_config(), "routing": routing, "train_tau": tau, "branch_weight": 0.05}
        )
        model.compile(keras.optimizers.AdamW(1e-6))  # so small that the gate stays as it is
        model.make_train_function()
        step = model.train_function
        step(iter([batch]))
        found[f"{routing}_first_step_s"] = time.perf_counter() - start
        for part in ("stem", "gater", "branches", "combiner"):
            getattr(model, part).set_weights(getattr(source, part).get_weights())
        for _ in range(3):
            logs = step(iter([batch]))
        found[f"{routing}_peak_mb"] = peak_mb()
        steps[routing] = functools.partial(_step, step, batch)
        if routing == "routed":
            forward = model.forward(batch[0], model.train_tau, training=True)
            found["active_branches"] = float(forward.selected.numpy().sum()) / batch_size
            steps["branches"], steps["optimizer"] = _branches_alone(model, batch[0]), _optimizer_alone(model)
        del logs
    taken: dict[str, list[float]] = {name: [] for name in steps}
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, run in steps.items():
            if name == "dense" and turn > dense_rounds:
                continue
            start, cpu = time.perf_counter(), time.process_time()
            run()
            if turn:
                taken[name].append((time.perf_counter() - start) * 1e3)
                spent[name].append((time.process_time() - cpu) * 1e3)
    found["steps"] = {
        name: _spread(times) | {"cpu": float(np.median(spent[name]))} for name, times in taken.items()
    }
    ratios = np.array(taken.get("dense", [])) / np.array(taken["routed"][:dense_rounds])
    return found | {"dense_over_routed": float(np.median(ratios)) if dense_rounds else None}


def _step(step, batch):
    step(iter([batch]))


def _spread(times):
    """{"ms", "low", "high"}: the median of times in ms, and their quartiles."""
    low, median, high = np.quantile(times, (0.25, 0.5, 0.75))
    return {"ms": float(median), "low": float(low), "high": float(high)}


def _branches_alone(model, images):
    forward = model.forward(images, model.train_tau, training=False)
    features = model.stem(model.normalize(images))

    @tf.function
    def branches():
        with tf.GradientTape() as tape:
            tape.watch(features)
            routes = model.branches(features, forward.selected, training=True)
            loss = tf.reduce_sum(routes.projections)
        gradients = tape.gradient(loss, [features, *model.branches.trainable_variables])
        return tf.add_n([tf.reduce_sum(gradient) for gradient in gradients])

    return lambda: branches().numpy()


def _optimizer_alone(model):
    gradients = [tf.zeros_like(variable) for variable in model.trainable_variables]

    @tf.function
    def update():
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    return update


def training_steps(
    depths: Sequence[int],
    branch_counts: Sequence[int],
    batch_size: int,
    rounds: int,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Measures training at each nb of the first depth, there beside dense, and other depths at the first nb.

    A row is said as soon as it is measured.

    Returns:
        list of the dicts of `measure`.
    """
    sizes = [(depths[0], nb, min(rounds, DENSE_ROUNDS)) for nb in branch_counts]
    sizes += [(depth, branch_counts[0], 0) for depth in depths[1:]]
    say(f"\nTraining, batch {batch_size}, K=4, augmentation not included")
    header = [
        "d",
        " nb",
        "lambda",
        "first step s",
        "routed ms",
        "CPU ms",
        "images/s",
        "dense ms",
        "dense / routed",
    ]
    header += ["branches", "optimizer", "peak MB"]
    say("  ".join(header))
    results = []
    for depth, branches, dense_rounds in sizes:
        arguments = [str(value) for value in (depth, branches, batch_size, rounds, dense_rounds)]
        done = subprocess.run(
            [sys.executable, "-m", "dynkhydra_tf.benchmark.training", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1"},
        )
        if done.returncode:
            raise RuntimeError(f"The benchmark's process failed: {done.stderr[-2000:]}")
        results.append(json.loads(done.stdout.splitlines()[-1]))
        say("  ".join(map(str.rjust, _cells(results[-1]), map(len, header))))
    return results


def images_per_s(row: dict[str, Any]) -> float:
    """What the routed model of a row of `training_steps` eats."""
    return row["batch_size"] / row["steps"]["routed"]["ms"] * 1e3


def _cells(row):
    ms = {name: times["ms"] for name, times in row["steps"].items()}
    cells = [str(row["depth"]), str(row["num_branches"]), f"{row['active_branches']:.2f}"]
    cells += [f"{row['routed_first_step_s']:.1f}", f"{ms['routed']:.0f}"]
    cells += [f"{row['steps']['routed']['cpu']:.0f}", f"{images_per_s(row):.0f}"]
    cells += [number(ms.get("dense"), ".0f"), number(row["dense_over_routed"], ".2f")]
    cells += [f"{ms[part] / ms['routed']:.0%}" for part in ("branches", "optimizer")]
    return [*cells, f"{row['routed_peak_mb']:.0f}"]


def input_pipeline(
    batch_size: int,
    batches: int,
    row: dict[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Measures the training pipeline alone, on digits at 32 x 32: gather, shift, mirror, cutout.

    Args:
        batch_size: B. batches: int, at least 10.
        row: of `training_steps`, the model to compare with, or None.
        say: callable for the text.

    Returns:
        dict: batch_size; ms, low, high (median and quartiles of a batch); images_per_s; with a row also
        times_the_model, that over what the model eats.
    """
    data = load_data("digits")
    augment = Augmentation(data.image_size, data.mean, 4, True, 16)
    epochs = 1 + (batches + 10) * batch_size // data.sizes["train"]
    stream = iter(training_batches(data, batch_size, epochs + 1, 0, augment))
    for _ in range(10):
        next(stream)
    taken, turns = [], 10  # several batches a turn: one may be ready before it is asked for
    for _ in range(turns):
        start = time.perf_counter()
        for _ in range(batches // turns):
            next(stream)
        taken.append((time.perf_counter() - start) * 1e3 / (batches // turns))
    times = _spread(taken)
    rate = batch_size / times["ms"] * 1e3
    found, text = {"batch_size": batch_size, **times, "images_per_s": rate}, ""
    if row:
        found["times_the_model"] = rate / images_per_s(row)
        text = f", {found['times_the_model']:.1f} times what d={row['depth']}, nb={row['num_branches']} eats"
    say(f"\nInput pipeline alone: {rate:.0f} images/s{text}")
    return found


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:]))))
