import sys

import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.serving.formats import litert, onnx, single_file
from tests.conftest import to_serve

NAMES = ["a", "b", "c", "d", "e", "ü f"]
FORMATS = ["litert", "onnx"]


@pytest.fixture
def convert():
    """Returns a function that converts a model and loads it; skips where the format's packages are absent."""

    def convert(model, format, tau=0.08):
        if format == "litert":
            pytest.importorskip("ai_edge_litert")
            return litert.run(litert.to_litert(model, tau))
        pytest.importorskip("tf2onnx")
        pytest.importorskip("onnxruntime")
        return onnx.run(onnx.to_onnx(model, tau))

    return convert


def gate_by_image(model, images):
    """Sets the gater so that it tells the images apart: each branch is the first one for about a third."""
    logits = model.gater(model.stem(model.normalize(images)))
    mean, std = np.mean(logits, axis=0), np.std(logits, axis=0)
    dense = model.gater.layers[-1]
    dense.set_weights([2 * dense.kernel / std, -2 * mean / std])


def fill_branch(model, branch, value):
    for stack in model.branches.stacks:
        values = stack.numpy()
        values[branch] = value
        stack.assign(values)


def random_statistics(model):
    """Gives every normalisation moving statistics and weights of its own, so that folding has work to do."""
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if any(name in variable.path for name in ("gamma", "moving_variance", "beta", "moving_mean")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))


@pytest.mark.parametrize("combine", ["sum", "gate_weighted"])
@pytest.mark.parametrize("format", FORMATS)
def test_same_as_keras_at_any_batch_size(make_hydra, batch, convert, format, combine):
    images, _ = batch(np.zeros(12))
    model = make_hydra(combine=combine, mean=(100, 110, 120), std=(50, 60, 70))
    random_statistics(model)
    gate_by_image(model, images)
    run = convert(model, format, tau=0.25)
    for rows in (slice(0, 1), slice(0, 3), slice(0, 8), slice(8, 9)):
        outputs, expected = run(images[rows]), model(images[rows], tau=0.25)
        probabilities = tf.nn.softmax(expected["logits"]).numpy()
        assert {name: (value.shape, value.dtype.name) for name, value in outputs.items()} == {
            "probabilities": ((len(probabilities), 6), "float32"),
            "class_id": ((len(probabilities),), "int32"),
            "gate": ((len(probabilities), 3), "float32"),
            "active_branches": ((len(probabilities),), "int32"),
        }
        np.testing.assert_allclose(outputs["probabilities"], probabilities, atol=1e-5)
        np.testing.assert_allclose(outputs["gate"], expected["gate"], atol=1e-5)
        np.testing.assert_array_equal(outputs["class_id"], probabilities.argmax(axis=1))
        np.testing.assert_array_equal(outputs["active_branches"], np.sum(expected["selected"], axis=1))
    # The 12 images do not all take the same number of branches, or the last line would prove little.
    assert set(run(images)["active_branches"]) == {1, 2}


@pytest.mark.parametrize("format", FORMATS)
def test_a_branch_runs_only_on_the_images_that_select_it(make_hydra, batch, convert, format):
    images, _ = batch(np.zeros(12))
    model = make_hydra(top_k=1)
    gate_by_image(model, images)
    sound = convert(model, format)
    fill_branch(model, 1, np.nan)
    broken = convert(model, format)
    taken = np.argmax(sound(images)["gate"], axis=1) == 1
    assert 0 < taken.sum() < len(images)

    def answers(rows):
        return [run(images[rows])["probabilities"] for run in (sound, broken)]

    np.testing.assert_array_equal(*answers(~taken))
    # That NaN shows where the branch is run is what makes the line above a proof.
    for row in np.flatnonzero(taken):
        assert not np.array_equal(*answers([row]))
    before, after = answers(slice(None))
    np.testing.assert_allclose(before[~taken], after[~taken], atol=1e-6)
    assert (before != after)[taken].any(axis=1).all()


@pytest.mark.parametrize("format", FORMATS)
def test_tau_is_in_the_file(make_hydra, fix_gate, batch, convert, format):
    images, _ = batch([0, 1, 2])
    model = make_hydra(tau=0.0)
    fix_gate(model, [0.6, 0.1, 0.3])
    fill_branch(model, 2, np.nan)
    low, high = convert(model, format, tau=0.0)(images), convert(model, format, tau=0.35)(images)
    assert low["active_branches"].tolist() == [2, 2, 2]
    assert high["active_branches"].tolist() == [1, 1, 1]
    assert np.isfinite(high["probabilities"]).all()
    assert not np.array_equal(low["probabilities"], high["probabilities"])


def test_check_compares_with_keras(make_hydra, fix_gate):
    model = make_hydra()
    fix_gate(model, [0.6, 0.1, 0.3])
    change = {}

    def run(images):
        outputs = model(images, tau=0.2)
        probabilities, gate = tf.nn.softmax(outputs["logits"]).numpy(), outputs["gate"].numpy()
        probabilities[3] += change.get("probabilities", 0)
        gate[:5] = change.get("gate", gate[:5])
        active = np.sum(outputs["selected"], axis=1)
        return {"probabilities": probabilities, "gate": gate, "active_branches": active}

    def check(**changes):
        change.update(changes)
        return single_file.check(run, model, 0.2, num_images=12)

    assert check().max_error < 1e-6
    assert check()[1:] == (12, 0)
    assert check(probabilities=0.25).max_error == pytest.approx(0.25, abs=1e-6)
    # Another order of branches 0 and 2 selects the same two; a branch fewer is another selection.
    assert check(gate=[0.3, 0.1, 0.6])[1:] == (12, 0)
    assert check(gate=[0.7, 0.15, 0.15])[1:] == (7, 5)
    assert check().max_error < 1e-6


def test_written_are_the_model_its_labels_and_its_card(make_hydra, tmp_path):
    pytest.importorskip("ai_edge_litert")
    (tmp_path / "labels.txt").write_text("old")
    written, note = litert.convert(to_serve(make_hydra(), NAMES, "pad", card="# ü"), tmp_path).splitlines()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "labels.txt",
        "model.tflite",
        "model_card.md",
    ]
    assert (tmp_path / "labels.txt").read_text(encoding="utf-8").splitlines() == NAMES
    assert (tmp_path / "model_card.md").read_text(encoding="utf-8") == "# ü"
    assert written.startswith(f"{tmp_path}/model.tflite: 0.0") and "of Keras (16 random images in" in written
    assert note == single_file.input_note("LiteRT", 8, "pad")


def test_input_note_says_what_the_device_has_to_do():
    assert single_file.input_note("LiteRT", 32, "crop") == (
        "LiteRT takes images (B,32,32,3) uint8, RGB, not JPEG or PNG bytes: decode on the device, turn as "
        "EXIF says, crop to the central square, resize to 32x32 (bilinear, antialiased)"
    )


def test_without_the_runtime_the_model_is_written_and_not_checked(make_hydra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    written = litert.convert(to_serve(make_hydra()), tmp_path).splitlines()[0]
    assert (tmp_path / "model.tflite").exists()
    assert "MB, not checked: ai-edge-litert cannot be imported" in written
    assert written.endswith("pip install -e '.[litert]'")


@pytest.mark.parametrize("checked", [(0.3, 16, 0), (float("nan"), 16, 0), (0.0, 0, 16)])
def test_a_conversion_that_changed_the_model_is_not_written(make_hydra, tmp_path, monkeypatch, checked):
    monkeypatch.setattr(single_file, "check", lambda *arguments: single_file.Check(*checked))
    for name in ("to_litert", "run"):
        monkeypatch.setattr(litert, name, lambda *arguments: b"")
    with pytest.raises(UserError, match="conversion to LiteRT changed the model"):
        litert.convert(to_serve(make_hydra()), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    litert.convert(to_serve(make_hydra(), quantize="float16"), tmp_path / "new")  # quantised: it may
    assert (tmp_path / "new" / "model.tflite").exists()


def test_a_failed_write_leaves_nothing_behind(make_hydra, tmp_path):
    served = to_serve(make_hydra(), [*NAMES[:5], "\ud800"])
    with pytest.raises(UnicodeEncodeError):
        single_file.write(served, tmp_path, "model", b"", "LiteRT", "checked")
    assert list(tmp_path.iterdir()) == []
