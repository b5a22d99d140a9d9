import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.routing import Branches, Routes, combine, rows_of
from tests.conftest import TinyBackbone

FEATURES = np.random.default_rng(1).normal(size=(4, 4, 4, 4)).astype(np.float32)


def make_branches(routing="routed", num_branches=3):
    keras.utils.set_random_seed(0)
    branches = Branches(TinyBackbone().branch, num_branches, routing)
    branches.build((None, 4, 4, 4))
    return branches


def fill(branches, index, value):
    """Fills all weights of one branch."""
    for stack in branches.stacks:
        values = stack.numpy()
        values[index] = value
        stack.assign(values)


def test_combine_by_hand():
    # Image 0: 2 * 1 + 3 * 10; image 1: no route; image 2: 5 * 100, and a route of weight 0.
    routes = Routes(np.float32([[1], [1000], [10], [100]]), *map(np.int64, ([0, 2, 0, 2], [0, 0, 1, 1])))
    weights = np.float32([[2, 3], [7, 7], [0, 5]])
    np.testing.assert_array_equal(
        combine(tf.constant(routes.projections), routes, weights), [[32], [0], [500]]
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("image", [[2, 0, 2, 0, 2], []])
def test_the_gradient_of_rows_by_hand(dtype, image):
    features = tf.cast(FEATURES[:3], dtype)
    weight = tf.cast([1.0, 2, 4, 8, 16][: len(image)], dtype)[:, None, None, None]
    gradient_of = {}
    for gather in (rows_of, tf.gather):
        with tf.GradientTape() as tape:
            tape.watch(features)
            rows = gather(features, tf.constant(image, tf.int64))
            total = tf.reduce_sum(rows * weight)
        np.testing.assert_array_equal(rows, np.asarray(features)[np.array(image, int)])
        gradient_of[gather] = tf.convert_to_tensor(tape.gradient(total, features))
    expected = [10, 0, 21] if image else [0, 0, 0]  # 2 + 8, none, 1 + 4 + 16
    found = gradient_of[rows_of]
    assert found.dtype == dtype
    np.testing.assert_array_equal(tf.cast(found[:, 0, 0, 0], tf.float32), expected)
    np.testing.assert_array_equal(found, gradient_of[tf.gather])


def test_routes_name_the_pairs_that_were_needed():
    needed = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 0], [1, 0, 0]], bool)
    routes = make_branches()(FEATURES, needed)
    assert routes.branch.numpy().tolist() == [0, 0, 2, 2]
    assert routes.image.numpy().tolist() == [0, 3, 0, 1]
    assert routes.projections.shape == (4, 2, 2, 6)


def test_a_route_is_its_branch_on_its_image():
    branches = make_branches()
    routes = branches(FEATURES, np.array([[1, 0, 1], [0, 0, 1], [0, 1, 0], [1, 0, 0]], bool))
    for projection, image, branch in zip(*(part.numpy() for part in routes), strict=True):
        alone = branches.branch(int(branch))(FEATURES[image : image + 1])
        np.testing.assert_allclose(projection, alone[0], rtol=1e-5, atol=1e-6)


def test_twins_start_with_different_weights():
    first, second = make_branches().branch(0), make_branches().branch(1)
    assert not np.allclose(first.get_weights()[0], second.get_weights()[0])


def test_a_branch_that_is_not_needed_is_not_run():
    needed = np.array([[1, 0, 1]] * 4, bool)
    branches = make_branches()
    before = branches(FEATURES, needed).projections.numpy()
    fill(branches, 1, np.nan)
    np.testing.assert_array_equal(branches(FEATURES, needed).projections, before)
    # The check can fail: a needed branch of NaN shows (as zeros even, where oneDNN's ReLU swallows NaN).
    fill(branches, 2, np.nan)
    assert not np.array_equal(branches(FEATURES, needed).projections, before)


@pytest.mark.parametrize("routing", ["routed", "dense"])
@pytest.mark.parametrize("training", [False, True])
def test_a_batch_that_needs_nothing(routing, training):
    branches = make_branches(routing)
    routes = branches(FEATURES, np.zeros((4, 3), bool), training=training)
    assert routes.projections.shape == (12 if routing == "dense" else 0, 2, 2, 6)


def test_functional_branches_called_eagerly_where_one_gets_no_image():
    def make_branch():
        inputs = keras.Input((4, 4, 4))
        x = keras.layers.Conv2D(6, 4, name="conv")(inputs)  # a map of 1x1
        y = keras.layers.Conv2D(6, 1, name="inner")(x)
        outputs = keras.layers.Conv2D(6, 1, name="last")(keras.layers.Add(name="add")([x, y]))
        return keras.Model(inputs, outputs, name="branch")

    branches = Branches(make_branch, 2)
    branches.build((None, 4, 4, 4))
    routes = branches(FEATURES, np.array([[0, 1]] * 4, bool))
    np.testing.assert_allclose(routes.projections, branches.branch(1)(FEATURES), rtol=1e-5, atol=1e-6)


def test_training_moves_the_statistics_of_the_branches_that_ran():
    branches = make_branches()
    moving_mean = next(stack for stack in branches.stacks if "moving_mean" in stack.path)
    branches(FEATURES, np.array([[1, 0, 0]] * 4, bool), training=True)
    moved = np.abs(moving_mean.numpy()).sum(axis=1) > 0
    assert moved.tolist() == [True, False, False]


def test_one_branch_is_traced_once_for_all():
    calls = []

    class Counting(keras.layers.Dense):
        def call(self, x, training=None):
            calls.append(x.shape)
            return super().call(x)

    branches = Branches(lambda: keras.Sequential([Counting(3, name="dense")], name="branch"), 5)
    branches.build((None, 2, 2, 1))
    calls.clear()
    needed = np.eye(5, dtype=bool)

    @tf.function
    def run(x):
        return branches(x, needed).projections

    run(np.ones((5, 2, 2, 1), np.float32))
    assert len(calls) == 1


def test_dense_and_routed_agree_in_outputs_and_gradients():
    needed = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 1], [1, 0, 0]], bool)
    weights = tf.constant([[1, 0.5, 0], [0, 1, 0], [0, 0.25, 2], [1, 0, 0]], tf.float32)
    results = []
    for routing in ("routed", "dense"):
        branches = make_branches(routing)
        features = tf.constant(FEATURES)
        with tf.GradientTape() as tape:
            tape.watch(features)
            routes = branches(features, needed)
            combined = combine(routes.projections, routes, weights)
            loss = tf.reduce_sum(combined**2)
        variables = [v.value for v in branches.trainable_variables]
        gradients = tape.gradient(loss, [features, *variables])
        results.append([combined, *map(tf.convert_to_tensor, gradients)])
    for routed, dense in zip(*results, strict=True):
        assert np.abs(dense).max() > 0
        np.testing.assert_allclose(routed, dense, rtol=1e-4, atol=1e-5)


def functional_branch(name):
    """A functional model with a shortcut and a dropout: its layers are ordered by hash."""
    inputs = keras.Input((4, 4, 4))
    x = keras.layers.Conv2D(4, 3, padding="same", name=f"{name}_a")(inputs)
    y = keras.layers.Conv2D(4, 3, padding="same", name="b")(inputs)
    y = keras.layers.Dropout(0.5, name="dropout")(y)
    return keras.Model(inputs, keras.layers.Add(name="add")([x, y, inputs]), name="branch")


def test_functional_branches_with_named_layers():
    keras.utils.set_random_seed(0)
    branches = Branches(lambda: functional_branch("x"), 3)
    branches.build((None, 4, 4, 4))
    needed = np.array([[1, 0, 1]] * 4, bool)
    routes = branches(FEATURES, needed)
    np.testing.assert_allclose(routes.projections[4:], branches.branch(2)(FEATURES), rtol=1e-5, atol=1e-5)
    # Dropout's seed is state of each branch that ran: two training calls differ.
    first, second = (branches(FEATURES, needed, training=True).projections.numpy() for _ in range(2))
    assert not np.allclose(first, second)


def test_twins_that_name_their_variables_differently_are_refused():
    names = iter("xyz")
    branches = Branches(lambda: functional_branch(next(names)), 3)
    with pytest.raises(ValueError, match="must name their weights alike"):
        branches.build((None, 4, 4, 4))
