import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf import Hydra, ResNet
from dynkhydra_tf.folding import fold
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.serving.graph import InferenceGraph, widened
from tests.conftest import TinyBackbone, coloured_images


def run(graph, images, tau):
    """Probabilities and `Gating`, of the graph traced for any batch size."""

    @tf.function(input_signature=[tf.TensorSpec((None, *images.shape[1:]), tf.uint8)], autograph=False)
    def traced(images):
        gating = graph.gating(images, tau)
        return graph.classify(gating), gating

    probabilities, gating = traced(images)
    return probabilities.numpy(), gating


def test_folding_keeps_the_outputs_of_a_trained_model(trained):
    images, _ = coloured_images(np.arange(64) % 6, seed=1)
    plain = trained.for_inference()
    folded = trained.for_inference()
    used = fold(folded.stem)
    assert len(used) == 2 < len(folded.stem.variables) == 5
    features = plain.stem(plain.normalize(images)).numpy()
    np.testing.assert_allclose(
        folded.stem(folded.normalize(images)), features, rtol=0, atol=1e-5 * np.abs(features).max()
    )
    # And the whole network, branches included: relative to the largest logit.
    expected = plain(images)
    for unrolled in (False, True):
        probabilities, _ = run(InferenceGraph(trained, unrolled), images, trained.tau)
        np.testing.assert_allclose(probabilities, tf.nn.softmax(expected["logits"]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("combine", ["sum", "gate_weighted"])
@pytest.mark.parametrize("unrolled", [False, True])
def test_every_batch_size_and_tau_is_as_keras(make_hydra, batch, combine, unrolled):
    model = make_hydra(combine=combine, top_k=3, tau=0.3, combiner_conv=combine == "sum")
    graph = InferenceGraph(model, unrolled)
    images, _ = batch(np.zeros(7))
    for size in (1, 2, 7):
        for tau in (0.0, 0.34, 0.9):
            probabilities, gating = run(graph, images[:size], tau)
            expected = model(images[:size], tau=tau)
            np.testing.assert_array_equal(gating.selected, expected["selected"])
            np.testing.assert_allclose(probabilities, tf.nn.softmax(expected["logits"]), atol=1e-5)


def test_tau_can_differ_by_image(make_hydra, batch):
    graph = InferenceGraph(make_hydra(top_k=3))
    images, _ = batch(np.zeros(3))
    _, gating = run(graph, images, tf.constant([0.0, 0.9, 0.0]))
    assert np.sum(gating.selected, axis=1).tolist() == [3, 1, 3]


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("size", [1, 4])
def test_a_branch_that_no_image_selects_is_not_run(make_hydra, fix_gate, batch, unrolled, size):
    # NaN weights times a weight of 0 would be NaN.
    images, _ = batch(np.zeros(size))
    model = make_hydra(top_k=2, tau=0.15)
    fix_gate(model, [0.5, 0.1, 0.4])
    before, gating = run(InferenceGraph(model, unrolled), images, model.tau)
    assert gating.selected.numpy().tolist() == [[True, False, True]] * size

    def spoil(branch):
        for stack in model.branches.stacks:
            stack.assign(
                np.where(np.arange(3).reshape(-1, *[1] * (len(stack.shape) - 1)) == branch, np.nan, stack)
            )

    spoil(1)
    np.testing.assert_array_equal(run(InferenceGraph(model, unrolled), images, model.tau)[0], before)
    spoil(2)
    assert not np.array_equal(run(InferenceGraph(model, unrolled), images, model.tau)[0], before)


def test_the_trained_model_stays_as_it_is(make_hydra, batch):
    model = make_hydra()
    images, _ = batch(np.zeros(2))
    before = model(images)["logits"].numpy()
    InferenceGraph(model)
    np.testing.assert_array_equal(model(images)["logits"], before)


def test_weights_of_any_size_are_packed():
    # Widths that are no multiple of 16 floats, where a slice of the stack must be cut to size.
    keras.utils.set_random_seed(0)
    model = Hydra(
        ResNet(1, stem_width=0.2, branch_width=0.07, image_size=16), np.arange(6) % 3, top_k=2, tau=0.0
    )
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    probabilities, _ = run(InferenceGraph(model), images, 0.0)
    np.testing.assert_allclose(probabilities, tf.nn.softmax(model(images)["logits"]), atol=1e-5)


def test_mixed_precision_is_served_in_float32(make_hydra, batch):
    images, _ = batch(np.zeros(2))
    model = make_hydra(part_dtype="mixed_bfloat16")
    graph = InferenceGraph(model)
    assert graph.model.part_dtype == "float32"
    probabilities, _ = run(graph, images, 0.0)
    np.testing.assert_allclose(probabilities, tf.nn.softmax(model(images, tau=0.0)["logits"]), atol=2e-2)


def test_a_plain_network_is_folded_and_has_nothing_to_select(batch):
    images, _ = batch(np.zeros(3))
    model = Plain(TinyBackbone(), 6, part_dtype="mixed_bfloat16")
    graph = InferenceGraph(model)
    spec = tf.TensorSpec((None, 8, 8, 3), tf.uint8)
    traced = tf.function(lambda images: graph.answer(images, graph.gating(images, None)), autograph=False)
    traced = traced.get_concrete_function(spec)
    assert not any("BatchNorm" in op.type for op in traced.graph.get_operations())
    answer = traced(tf.constant(images))
    assert set(answer) == {"probabilities", "class_id"} and not graph.gated
    expected = tf.nn.softmax(model.for_inference()(images)["logits"])
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-6)
    np.testing.assert_array_equal(answer["class_id"], np.argmax(expected, axis=1))


@pytest.mark.parametrize("side", [8, 65])
def test_wide_factors_normalise_to_the_same_bits(side):
    layer = keras.layers.Rescaling([1 / 58.1, 1 / 57.4, 1 / 62.3], [-2.1, -2.0, -1.7], dtype="float32")
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    wide = widened(layer, (side, side, 3))
    assert np.shape(wide.scale) == ((8, 8, 3) if side == 8 else (65, 3))
    np.testing.assert_array_equal(wide(images), layer(images))
    one_factor = keras.layers.Rescaling(1 / 255, dtype="float32")
    assert widened(one_factor, (8, 8, 3)) is one_factor
