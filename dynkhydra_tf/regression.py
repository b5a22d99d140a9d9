"""The classifier of a plain network by logistic regression: a convex problem, solved at once, not by steps.

It is scikit-learn's, on what the network gives before its classifier for each view of the training images.
Each feature is standardised; the weights of the layer undo that. The strength of the penalty, 1/C, is chosen
on a fifth of the training images; then all are fitted. The images held out from training choose nothing.

Axis letters: n images, V views of each, F features, M classes.
"""

import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dynkhydra_tf.averaging import restart_averages
from dynkhydra_tf.data.splits import draw_stratified
from dynkhydra_tf.distribution import scope_of
from dynkhydra_tf.frozen_maps import MapData
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.runs import RunDirectory
from dynkhydra_tf.stages import Stage

STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)  # C, the strongest penalty first
WITHOUT_CHOICE = 1e-2  # C, where no class has an image to spare
HELD_OUT = 0.2
AT_ONCE = 64  # images


class Regression(NamedTuple):
    """A classifier of F features.

    Attributes:
        kernel: (F, M) float32. bias: (M,) float32. strength: C.
    """

    kernel: np.ndarray
    bias: np.ndarray
    strength: float


def start_classifier(model: Plain, run: RunDirectory, stage: Stage) -> None:
    """Gives a network its classifier before the first step, and the run a row of epoch 0, if it has none.

    Args:
        model: compiled; all but its classifier is trained already.
        run: of the model.
        stage: its first one, with maps.
    """
    if run.metric_rows():
        return
    start = time.monotonic()
    features, labels = _features(model, stage.maps), stage.maps.labels("train")
    found = fit_regression(features, labels, stage.class_weights, model.num_classes)
    with scope_of(model):
        model.network.layers[-1].set_weights([found.kernel, found.bias])
        restart_averages(model)
    told = model.evaluate(stage.watched, return_dict=True, verbose=0)
    seconds = time.monotonic() - start
    row = {"epoch": 0, "step": 0, "seconds": seconds, "learning_rate": 0.0}
    run.append_metrics({**row, **{f"val_{name}": float(value) for name, value in told.items()}})
    run.save_checkpoint(model)
    print(
        f"classifier by logistic regression on {' x '.join(map(str, features.shape))} features, "
        f"C={found.strength:g}: val top-1 {told['top1']:.1%}, {seconds:.1f} s",
        flush=True,
    )


def fit_regression(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray | None, num_classes: int
) -> Regression:
    """Fits a classifier.

    Args:
        features: (n, V, F) float32.
        labels: (n,) int, each class at least once.
        weights: (M,), how much an image of each class counts; None: alike.
        num_classes: M.
    """
    from sklearn.linear_model import LogisticRegression

    images, views, size = features.shape
    mean, spread = features.mean((0, 1)), features.std((0, 1))
    spread = np.where(spread > 0, spread, 1)
    scaled = (features - mean) / spread

    def fit(some, strength):
        solver = LogisticRegression(C=strength, max_iter=200, tol=1e-3)
        targets = np.repeat(labels[some], views)
        # A penalty of so many images, whatever the number of their views.
        counted = (np.ones(num_classes) if weights is None else weights)[targets] / views
        solver.fit(scaled[some].reshape(-1, size), targets, counted)
        return solver

    held = draw_stratified(labels, HELD_OUT)
    best, least = WITHOUT_CHOICE, np.inf
    for strength in STRENGTHS if held.any() else ():
        loss = _loss(fit(~held, strength), scaled[held, 0], labels[held], weights)
        if loss >= least:  # it falls, then rises
            break
        best, least = strength, loss
    solver = fit(np.ones(images, bool), best)
    kernel, bias = solver.coef_.T, solver.intercept_
    if num_classes == 2:  # one logit, of the second class
        kernel, bias = np.hstack([-kernel / 2, kernel / 2]), np.array([-bias[0] / 2, bias[0] / 2])
    kernel = kernel / spread[:, None]
    return Regression(kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32), best)


def _loss(solver, features, labels, weights):
    """The mean cross-entropy, nats."""
    chosen = solver.predict_log_proba(features)[np.arange(len(labels)), labels]
    return -np.average(chosen, weights=None if weights is None else weights[labels])


def _features(model: Plain, maps: MapData) -> np.ndarray:
    """(n, V, F) float32: what reaches the classifier of each view of the training images."""
    views, _ = maps.splits["train"]
    parts = model.first_parts()[len(model.frozen_part()) : -1]
    if not parts:
        return np.asarray(views, np.float32)

    @tf.function(reduce_retracing=True, autograph=False)
    def run(some):
        for part in parts:
            some = part(some, training=False)
        return some

    found = []
    for start in range(0, len(views), AT_ONCE):
        some = np.asarray(views[start : start + AT_ONCE], np.float32)
        found.append(run(some.reshape(-1, *some.shape[2:])).numpy().reshape(*some.shape[:2], -1))
    return np.concatenate(found)
