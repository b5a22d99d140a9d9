"""Fig. 5: is there a hill in the loss between two branches?

    python -m dynkhydra_tf.analysis.interpolation --run_dir=runs/digits --branches=0,1

The paper (section "Discussion") makes a branch whose weights are (1 - alpha) times those of branch A plus
alpha times those of branch B, and measures its loss on the images of both partitions. It tells neither what
makes class scores of a branch's projection nor what becomes of batch normalisation. Here:

- The branch runs on the stem's output and is read in two ways. "own head": by the training-only head of the
  branch, interpolated like it, which has only ever seen its own partition; a run with --branch_weight=0 has
  none. "ensemble": by the combiner, not interpolated, as the model itself does where it uses that one branch.
- Loss is the mean cross-entropy over all M classes, in nats; top-1 beside it. Both on the images of the two
  partitions together, and of each of them.
- Interpolated moving statistics do not fit interpolated weights, and would make a hill of their own. So the
  statistics of the interpolated branch are estimated anew, from all training images of both partitions: the
  means and variances of batches of 256, each normalised by its own, pooled over the batches. This is the main
  curve; the dashed one has the statistics interpolated like weights. At its ends the dashed curve is
  the trained branches as they are, the main one what they are with statistics of both partitions.

Measured on CIFAR-100 (d=1, nb=20, 12 epochs, branches 0 and 1): the paper's hill is there only where the
statistics are interpolated and the ensemble reads, 0.45 nats above the worse end. Read by its own head, a
trained branch is far worse on the other partition than the branches between are on both.

Writes interpolation.csv and interpolation.png into RUN_DIR/evaluation, or --output_dir; the run itself stays
as it is. Axis letters: B batch, T alphas, M classes, R ways to read a branch, h w c a projection.
"""

import dataclasses
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from dynkhydra_tf import cli, figures
from dynkhydra_tf.analysis.options import HydraRunOptions
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import setting
from dynkhydra_tf.files import write_csv
from dynkhydra_tf.runs import EvaluationFile
from dynkhydra_tf.settings import length_text
from dynkhydra_tf.tables import table

if TYPE_CHECKING:  # they load Keras, which --help can do without
    import tensorflow as tf

    from dynkhydra_tf.hydra import Hydra

OWN_HEAD, ENSEMBLE = "own head", "ensemble"
STATISTICS = ("re-estimated", "interpolated")
BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Interpolation:
    """What the branches between two trained ones do.

    Attributes:
        branches: two ints, the first and the second branch.
        alphas: (T,) float64; 0 is the first branch, 1 the second.
        readings: R of "own head" and "ensemble".
        images: two ints, images of the first and of the second partition.
        loss: (R, 2, T, 3) float64, mean cross-entropy in nats: by reading, by `STATISTICS`, by alpha, and on
            the images of both partitions, of the first and of the second.
        top1: (R, 2, T, 3) float64, accuracy in 0..1, likewise.
    """

    branches: tuple[int, int]
    alphas: np.ndarray
    readings: tuple[str, ...]
    images: tuple[int, int]
    loss: np.ndarray
    top1: np.ndarray

    @property
    def hill(self) -> np.ndarray:
        """(R, 2), how far the loss on both partitions rises above the worse of the two ends, in nats."""
        loss = self.loss[..., 0]
        return loss.max(axis=-1) - np.maximum(loss[..., 0], loss[..., -1])

    def rows(self) -> list[dict[str, str | float]]:
        """Returns a dict for each reading, statistics and alpha, as interpolation.csv has them."""
        names = [f"{kind}_{on}" for kind in ("loss", "top1") for on in ("both", "first", "second")]
        return [
            {
                "reading": reading,
                "statistics": statistics,
                "alpha": float(alpha),
                **dict(zip(names, np.append(self.loss[r, s, t], self.top1[r, s, t]).tolist(), strict=True)),
            }
            for r, reading in enumerate(self.readings)
            for s, statistics in enumerate(STATISTICS)
            for t, alpha in enumerate(self.alphas)
        ]


def interpolate(
    model: "Hydra",
    first: int,
    second: int,
    alphas: np.ndarray,
    examples: "tf.data.Dataset",
    training_examples: "tf.data.Dataset",
) -> Interpolation:
    """Evaluates the branches on the line between two branches (Fig. 5).

    Args:
        model: `Hydra`; it stays as it is.
        first, second: two different ints in 0..nb-1.
        alphas: T floats, ascending.
        examples: `tf.data.Dataset` of (image (H, W, 3) 0..255, label () int) to evaluate on, such as
            `ImageData.examples` gives; images of other partitions are passed over.
        training_examples: likewise, to estimate the statistics of batch normalisation from.

    Returns:
        `Interpolation`.

    Raises:
        ValueError: not two branches of the model.
        UserError: one of the two partitions has no image in `examples` or none in `training_examples`.
    """
    import tensorflow as tf

    if first == second or not {first, second} <= set(range(model.num_branches)):
        raise ValueError(
            f"first and second must be two branches in 0..{model.num_branches - 1}. Received: "
            f"first={first}, second={second}"
        )
    alphas = np.asarray(alphas, np.float64)
    branch = model.branches.branch(first)
    ends = [_parameters(model, branch, index) for index in (first, second)]
    points = [tf.nest.map_structure(lambda x, y, a=a: _between(x, y, a), *ends) for a in alphas]
    states = _reestimated(branch, points, _features(model, first, second, training_examples, "estimate from"))

    @tf.function(reduce_retracing=True)
    def score(features, labels, point, state):
        """Losses and hits, (R, B) each."""
        projections, _ = branch.stateless_call(point["learned"], state, features, training=False)
        logits = [model.combiner(projections, training=False)]
        if point["head"]:
            kernel, bias = point["head"]
            pooled = tf.reduce_mean(tf.cast(projections, tf.float32), axis=[1, 2])
            logits.insert(0, pooled @ kernel + bias)
        logits = tf.stack(logits)  # (R, B, M)
        labels = tf.repeat(labels[tf.newaxis], len(logits), axis=0)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return losses, tf.argmax(logits, axis=-1, output_type=labels.dtype) == labels

    readings = (OWN_HEAD, ENSEMBLE) if model.heads else (ENSEMBLE,)
    sums = np.zeros((2, len(readings), 2, len(alphas), 2))  # loss and hits, by partition
    images = np.zeros(2, int)
    for features, labels, of_second in _features(model, first, second, examples, "evaluate on"):
        parts = np.stack([~of_second, of_second], axis=1)  # (B, 2)
        images += parts.sum(axis=0)
        for t, (point, state) in enumerate(zip(points, states, strict=True)):
            for s, statistics in enumerate((state, point["state"])):
                for kind, values in enumerate(score(features, labels, point, statistics)):
                    sums[kind, :, s, t] += values.numpy().astype(np.float64) @ parts
    means = np.concatenate([sums.sum(axis=-1, keepdims=True) / images.sum(), sums / images], axis=-1)
    return Interpolation((first, second), alphas, readings, tuple(images.tolist()), *means)


def _parameters(model, branch, index):
    """The values of one branch, in the order of the layer `branch`, and of its head if there are heads."""
    model.branches.load(branch, index)
    head = [model.heads.kernel, model.heads.bias] if model.heads else []
    return {
        "learned": [variable.value.numpy().copy() for variable in branch.trainable_variables],
        "state": [variable.value.numpy().copy() for variable in branch.non_trainable_variables],
        "head": [stack.value.numpy()[index] for stack in head],
    }


def _between(x, y, alpha):
    return ((1 - alpha) * x + alpha * y).astype(x.dtype)


def _features(model, first, second, examples, purpose):
    """Yields the stem's output, labels (B,) and "is of the second partition" (B,), the others left out."""
    import tensorflow as tf

    cluster_of_class = np.array(model.cluster_of_class)
    wanted = tf.constant(np.isin(cluster_of_class, (first, second)))
    stem = tf.function(lambda images: model.stem(model.normalize(images)), reduce_retracing=True)
    batches = examples.filter(lambda image, label: tf.gather(wanted, label)).batch(BATCH_SIZE)
    seen = set()
    for images, labels in batches.prefetch(tf.data.AUTOTUNE):
        clusters = cluster_of_class[labels.numpy()]
        seen.update(clusters.tolist())
        yield stem(images), labels, clusters == second
    for branch in {first, second} - seen:
        raise UserError(f"The partition of branch {branch} has no image to {purpose}: choose another branch")


def _reestimated(branch, points, batches):
    """The state of the branch at each point, with the normalisation's statistics of these batches.

    A layer's mean is the mean of its batches' means; its variance, of the batches' variances and of
    their means. From here on `branch` keeps nothing of its moving statistics.
    """
    import keras
    import tensorflow as tf

    norms = [
        layer for layer in branch._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)
    ]
    for norm in norms:
        norm.momentum = 0.0  # the moving statistics after a call are those of its batch
    places = {id(variable): place for place, variable in enumerate(branch.non_trainable_variables)}
    places = [(places[id(norm.moving_mean)], places[id(norm.moving_variance)]) for norm in norms]

    @tf.function(reduce_retracing=True)
    def state_after(features, point):
        return branch.stateless_call(point["learned"], point["state"], features, training=True)[1]

    sums = [[(0.0, 0.0) for _ in norms] for _ in points]  # of the mean and of the mean square, by image
    images = 0
    for features, labels, _ in batches:
        images += len(labels)
        for point, point_sums in zip(points, sums, strict=True):
            state = state_after(features, point)
            for n, moments in enumerate(places):
                mean, variance = (state[place].numpy().astype(np.float64) for place in moments)
                total, squares = point_sums[n]
                point_sums[n] = (
                    total + len(labels) * mean,
                    squares + len(labels) * (variance + mean**2),
                )
    states = []
    for point, point_sums in zip(points, sums, strict=True):
        state = list(point["state"])
        for (mean_place, variance_place), (total, squares) in zip(places, point_sums, strict=True):
            mean = total / images
            state[mean_place] = mean.astype(np.float32)
            state[variance_place] = (squares / images - mean**2).astype(np.float32)
        states.append(state)
    return states


# === The command ===


@dataclasses.dataclass(frozen=True)
class Options(HydraRunOptions):
    """The flags of this command."""

    branches: tuple[int, ...] = setting(
        (0, 1), "Two branches, such as 3,17. The paper: a random pair.", least=0
    )
    points: int = setting(21, "Values of alpha, evenly spaced from 0 to 1.", least=2)
    split: str = setting("test", "The images to evaluate on.", choices=("train", "validation", "test"))


def main(options: Options) -> None:
    """Interpolates between two branches of a run, prints the result and writes it."""
    from dynkhydra_tf.partition import clusters_of

    # === What to interpolate ===
    run, output = options.open_run("branches")
    pair, num_branches = options.branches, run.settings.network.num_branches
    if len(pair) != 2 or max(pair) >= num_branches:
        raise UserError(
            f"--branches must be two different numbers in 0..{num_branches - 1}, such as 0,1. "
            f"Received: {','.join(map(str, pair)) or 'none'}"
        )
    model = run.load_model()
    data = options.open_data(run)
    examples, training_examples = data.examples(options.split), data.examples("train")

    # === Interpolate, print, write ===
    alphas = np.linspace(0, 1, options.points)
    result = interpolate(model, *pair, alphas, examples, training_examples)
    clusters = clusters_of(data.class_names, model.cluster_of_class)
    optimisation = run.settings.optimisation
    title = f"{run.name}, {length_text(optimisation.epochs, optimisation.schedule)}"
    print(f"{title}: {run.model_path} on {data.name}/{options.split}")
    for branch, count in zip(result.branches, result.images, strict=True):
        print(f"branch {branch}, {count} images: {textwrap.shorten(', '.join(clusters[branch]), 80)}")
    for r, reading in enumerate(result.readings):
        hills = [f"{hill:.2f} with {kind}" for kind, hill in zip(STATISTICS, result.hill[r], strict=True)]
        print(f"\nRead by the {reading}, statistics re-estimated\n{_text(result, r)}")
        print(f"Rise above the worse end, nats: {', '.join(hills)} statistics")
    write_csv(output / EvaluationFile.INTERPOLATION_ROWS, result.rows())
    figures.save_interpolation(result, clusters, output / EvaluationFile.INTERPOLATION, title)
    written = (EvaluationFile.INTERPOLATION_ROWS, EvaluationFile.INTERPOLATION)
    print(f"\nWritten to {output}: {', '.join(written)}")


def _text(result, r):
    """The re-estimated curves of one reading as aligned columns."""
    a, b = result.branches
    columns = [f"{kind} {on}" for kind in ("loss", "top-1") for on in ("both", a, b)]
    cells = [
        [f"{alpha:.2f}", *(f"{loss:.3f}" for loss in losses), *(f"{top1:.1%}" for top1 in hits)]
        for alpha, losses, hits in zip(result.alphas, result.loss[r, 0], result.top1[r, 0], strict=True)
    ]
    return table([["alpha", *columns], *cells], text_columns=())


if __name__ == "__main__":
    cli.run(main, Options)
