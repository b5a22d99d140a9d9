"""Every export format by its interface, on a plain network; a Hydra's are in the tests of each format."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.serving.formats import FORMATS
from tests.conftest import TinyBackbone, to_serve


@pytest.fixture(scope="module")
def plain():
    """A network trained by nobody, its normalisation statistics its own, in mixed precision."""
    keras.utils.set_random_seed(0)
    model = Plain(TinyBackbone(), 6, mean=(100, 110, 120), std=(50, 60, 70), part_dtype="mixed_bfloat16")
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if variable.path.split("/")[-1] in ("gamma", "beta", "moving_mean", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


@pytest.mark.parametrize("name", FORMATS)
def test_a_plain_network_answers_as_in_keras(plain, batch, tmp_path, name):
    for package in {"litert": ["ai_edge_litert"], "onnx": ["tf2onnx", "onnxruntime"]}.get(name, []):
        pytest.importorskip(package)
    format = FORMATS[name]
    format.check_installed()
    told = format.convert(to_serve(plain, card="# plain"), tmp_path / "out")
    assert str(tmp_path / "out") in told and "of Keras" in told
    assert len(list((tmp_path / "out").rglob(format.FILE))) == 1
    (card,) = (tmp_path / "out").rglob("model_card.md")
    assert card.read_text() == "# plain"
    answer = format.load(tmp_path / "out", threads=1)
    images, _ = batch(np.zeros(5))
    expected = tf.nn.softmax(plain.for_inference()(images)["logits"]).numpy()
    assert np.ptp(expected, axis=0).max() > 0.01, "the images must differ to the network"
    for rows in (slice(0, 1), slice(0, 5)):
        outputs = answer(images[rows])
        assert outputs.keys() - {"label"} == {"probabilities", "class_id"}
        np.testing.assert_allclose(outputs["probabilities"], expected[rows], atol=1e-5)
        np.testing.assert_array_equal(outputs["class_id"], expected[rows].argmax(axis=1))


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_not_there_cannot_be_loaded(tmp_path, name):
    for directory in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=f"{directory}.* cannot be "):
            FORMATS[name].load(directory)
