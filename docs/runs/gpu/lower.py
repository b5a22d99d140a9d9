"""The runs of a GPU, TensorFlow's side: a training step as StableHLO, and a run directory of what came back.

    python docs/runs/gpu/lower.py export PARCEL --flagfile=configs/cifar100_plus.cfg --mixed_precision ...
    python loop.py PARCEL RESULT --seed=0   # there: JAX and numpy, no TensorFlow
    python docs/runs/gpu/lower.py finish PARCEL RESULT --flagfile=configs/cifar100_plus.cfg ...

`check PARCEL` in place of `export` compares a step of the routed network by TensorFlow with that of the
exported one by XLA on this processor (needs jax); with `--nomixed_precision --warmup_epochs=0`.

The step is the model's own `train_step`, the optimizer's update in it, behind the augmentation of `train.py`;
the loop draws another order of the images, and from seed 1 on other first weights. XLA wants static shapes: a
branch runs on the whole batch, and is normalised by the images that were routed to it alone (`run_masked`).
"""

import gzip
import json
import pathlib
import re
import sys

import keras
import numpy as np
import tensorflow as tf

import dynkhydra_tf.machine
import dynkhydra_tf.training
from dynkhydra_tf import cli
from dynkhydra_tf.backbones.blocks import BatchNorm
from dynkhydra_tf.data import evaluation_batches, open_data
from dynkhydra_tf.data.augment import make_augmentation
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.routing import Branches, Routes
from dynkhydra_tf.settings import Settings
from dynkhydra_tf.train import main
from dynkhydra_tf.training import last_learning_rate

# === A routed pass in static shapes ===

rows_that_count: list[tf.Tensor] = []  # (B,) float32 of the branch that is being traced


def run_masked(self, features, needed, training=False):
    """In place of `Branches.call`: every branch runs on all B images; rows that are not its own are zeros."""
    runner, projections, states = self._runner, [], []
    for index, values in enumerate(zip(*(tf.unstack(stack.value) for stack in self.stacks), strict=True)):
        learned, state = ([values[i] for i in which] for which in (runner.learned, runner.state))
        mine = needed[:, index]
        rows = features * tf.cast(mine, features.dtype)[:, None, None, None]
        rows_that_count.append(tf.cast(mine, tf.float32))
        projection, state = runner.branch.stateless_call(learned, state, rows, training=training)
        rows_that_count.clear()
        projections.append(projection)
        states.append(state)
    for index, values in zip(runner.state, zip(*states, strict=True), strict=True):
        self.stacks[index].assign(tf.stack(values))
    count = features.shape[0]
    image = tf.tile(tf.range(count, dtype=tf.int64), [self.num_branches])
    branch = tf.repeat(tf.range(self.num_branches, dtype=tf.int64), count)
    return Routes(tf.concat(projections, axis=0), image, branch)


def normalise_masked(self, inputs, training=None, mask=None):
    """In place of `BatchNorm.call`: within a branch, the statistics of the rows that count."""
    if not rows_that_count:
        return fused(self, inputs, training, mask)
    x, rows = tf.cast(inputs, tf.float32), rows_that_count[0][:, None, None, None]
    count = tf.reduce_sum(rows) * float(inputs.shape[1] * inputs.shape[2])
    mean = tf.math.divide_no_nan(tf.reduce_sum(x * rows, [0, 1, 2]), count)
    variance = tf.math.divide_no_nan(tf.reduce_sum(tf.square(x - mean) * rows, [0, 1, 2]), count)
    unbiased = variance * tf.math.divide_no_nan(count, count - 1)  # as the fused op's
    for moving, value in ((self.moving_mean, mean), (self.moving_variance, unbiased)):
        moved = moving * self.momentum + value * (1 - self.momentum)
        moving.assign(tf.stop_gradient(tf.where(count > 0, moved, tf.convert_to_tensor(moving))))
    scale = self.gamma.value * tf.math.rsqrt(variance + self.epsilon)
    return tf.cast((x - mean) * scale + self.beta.value, inputs.dtype)


def update_without_cond(self, gradients, forward):
    """In place of `Hydra.update`, which restores under a `tf.cond`: a GPU would wait for its answer."""
    cond, tf.cond = tf.cond, lambda condition, yes, no: no()
    try:
        update(self, gradients, forward)
    finally:
        tf.cond = cond


fused, routed, update = BatchNorm.call, Branches.call, Hydra.update


def use(masked):
    """Puts the three in place, or the product's own back."""
    BatchNorm.call, Branches.call, Hydra.update = (
        (normalise_masked, run_masked, update_without_cond) if masked else (fused, routed, update)
    )


# === The step and its state ===


def state_of(model):
    """{name: tf.Variable} of all that a step reads and writes."""
    variables = [*model.variables, *(v for metric in model.metrics for v in metric.variables)]
    variables += model.optimizer.variables
    values = [(v.path, v.value) if isinstance(v, keras.Variable) else (v.name, v) for v in variables]
    found = dict(values)
    assert len(found) == len({id(value) for _, value in values}), "two variables of one name"
    return found


def export(model, run, batches, validation, epochs, steps, *args, **kwargs):
    """In place of `training.fit`: writes the step, the state before it and what the loop has to know."""
    settings, size = run.settings, model.backbone.input_shape[0]
    data = open_data(settings.data, settings.place.cache_dir)
    augment = make_augmentation(settings.augmentation, data)
    seed, count = settings.optimisation.seed, settings.optimisation.batch_size

    def step(number, images, labels):
        if mode == "export":
            images = augment(images, tf.random.fold_in(tf.constant([seed, 7], tf.int64), number))
        return model.train_step((images, labels))

    images = tf.TensorSpec((count, size, size, 3), tf.uint8)
    given = tf.TensorSpec((), tf.int64), images, tf.TensorSpec((count,), tf.int32)
    use(masked=True)
    state = state_of(model)
    function = tf.function(step, autograph=False, jit_compile=True)
    traced = function.get_concrete_function(*given)
    lowered = function.experimental_get_compiler_ir(*given)
    text = lowered(stage="hlo", device_name="/device:CPU:0")
    places = {id(variable.handle): place for place, variable in enumerate(state.values())}
    takes = [places[id(handle)] for handle in traced.captured_inputs]
    # {output}: (parameter, ...): which outputs are the state after the step.
    aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}", text[: text.index("entry_computation_layout")])
    about = {
        "names": list(state),
        "takes": takes,
        "gives": [[int(output), takes[int(parameter) - len(given)]] for output, parameter in aliases],
        "sums": list(dict.fromkeys(v.path for metric in model.metrics for v in metric.variables)),
        "epochs": epochs,
        "steps": steps,
        "batch_size": count,
    }
    parcel.mkdir(parents=True, exist_ok=True)
    with gzip.open(parcel / "step.hlo.gz", "wb") as file:
        file.write(lowered(stage="hlo_serialized", device_name="/device:CPU:0"))
    np.savez_compressed(parcel / "state.npz", *(variable.numpy() for variable in state.values()))
    (parcel / "about.json").write_text(json.dumps(about))
    if mode == "check":
        check(model, step, batches, state)
    else:
        examples = evaluation_batches(data, "train", count).as_numpy_iterator()  # all, as they are
        images, labels = (np.concatenate(parts) for parts in zip(*examples, strict=True))
        np.savez(parcel / "images.npz", images=images, labels=labels)
    sys.exit()


def check(model, step, batches, state):
    """Prints how far a step of XLA's ends from the routed one of TensorFlow, for each part of the state."""
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import loop

    images, labels = next(batches.as_numpy_iterator())
    there = loop.Step(parcel)
    there(np.int64(0), images, labels)
    before = {name: variable.numpy() for name, variable in state.items()}
    use(masked=False)
    here = tf.function(step, autograph=False)
    here(tf.constant(0, tf.int64), tf.constant(images), tf.constant(labels))
    for name, variable in state.items():
        after, other = variable.numpy(), there.value(name)
        moved, apart = np.linalg.norm(after - before[name]), np.linalg.norm(after - other)
        print(f"{apart / moved if moved else apart:.1e} of the way  {name}")


# === What came back ===


def finish(model, run, batches, validation, epochs, steps, *args, **kwargs):
    """In place of `training.fit`: the weights and the log of a result, and one validation at the end."""
    weights, told = np.load(result.with_suffix(".npz")), json.loads(result.with_suffix(".json").read_text())
    assert len(told["epochs"]) == epochs, f"{epochs} epochs are not those of {result}"
    for variable in model.variables:
        variable.assign(weights[variable.path])
    for number, row in enumerate(told["epochs"], 1):
        model.optimizer.iterations.assign(number * steps)
        means = {}
        for name in (name.removesuffix("/loss") for name in row if name.endswith("/loss")):
            loss, images = np.array(row[f"{name}/loss"]), np.array(row[f"{name}/images"])
            means[name] = float(np.sum(loss[images > 0] / images[images > 0]))
        total = sum(term.weight * means[f"{name}_loss"] for name, term in model.loss_terms.items())
        written = {"epoch": number, "step": number * steps, "seconds": row["seconds"]}
        written |= {"learning_rate": last_learning_rate(model.optimizer), **means, "loss": total}
        if number == epochs:
            values = model.evaluate(validation, verbose=0, return_dict=True)
            written |= {f"val_{name}": float(value) for name, value in values.items()}
        run.append_metrics(written)
    machine["accelerators"] = [told["device"]]


if __name__ == "__main__":
    mode, parcel = sys.argv[1], pathlib.Path(sys.argv[2])
    result = pathlib.Path(sys.argv[3]) if mode == "finish" else None
    sys.argv[1:] = sys.argv[4:] if result else sys.argv[3:]
    machine = dynkhydra_tf.machine.describe_machine()
    dynkhydra_tf.machine.describe_machine = lambda accelerators: machine
    dynkhydra_tf.training.fit = finish if result else export
    cli.run(main, Settings)
