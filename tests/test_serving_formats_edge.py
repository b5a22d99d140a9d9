import collections
import json
import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.backbones import ResNet
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.serving.formats import edge

NAMES = ["a", "b", "c", "d", "e", "ü f"]
FORMATS = ["litert", "onnx"]


@pytest.fixture
def convert():
    """Returns a function that converts a model and loads it; skips where the format's packages are absent."""

    def convert(model, format, tau=0.08, quantize=None):
        if format == "litert":
            pytest.importorskip("ai_edge_litert")
            return edge.load(edge.to_litert(model, tau, quantize), format)
        pytest.importorskip("tf2onnx")
        pytest.importorskip("onnxruntime")
        return edge.load(edge.to_onnx(model, tau), format)

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


def test_litert_has_an_if_for_each_branch_and_builtin_ops_only(make_hydra):
    flatbuffer_utils = pytest.importorskip("tensorflow.lite.tools.flatbuffer_utils")
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(edge.to_litert(make_hydra(), 0.08)))
    assert [code.customCode for code in model.operatorCodes if code.customCode] == []
    main, *branches = [
        collections.Counter(flatbuffer_utils.opcode_to_name(model, op.opcodeIndex) for op in graph.operators)
        for graph in model.subgraphs
    ]
    assert main["IF"] == 3
    assert main["CONV_2D"] == 3  # stem, gater, combiner
    assert sorted(graph["CONV_2D"] for graph in branches) == [0, 0, 0, 1, 1, 1]


def test_onnx_has_an_if_for_each_branch(make_hydra):
    pytest.importorskip("tf2onnx")
    onnx = pytest.importorskip("onnx")
    graph = onnx.load_from_string(edge.to_onnx(make_hydra(), 0.08)).graph
    ops = collections.Counter(node.op_type for node in graph.node)
    assert ops["If"] == 3
    assert ops["Conv"] == 3  # stem, gater, combiner
    for node in graph.node:
        if node.op_type == "If":
            inside = [[op.op_type for op in attribute.g.node] for attribute in node.attribute]
            assert sorted(names.count("Conv") for names in inside) == [0, 1]
    dimensions = {value.name: value.type.tensor_type.shape.dim for value in (*graph.input, *graph.output)}
    assert {name: dims[0].dim_param for name, dims in dimensions.items()} == dict.fromkeys(
        ["images", "probabilities", "class_id", "gate", "active_branches"], "batch"
    )


def test_onnx_runs_the_convolutions_of_the_selected_branches_only(make_hydra, fix_gate, batch, tmp_path):
    pytest.importorskip("tf2onnx")
    runtime = pytest.importorskip("onnxruntime")
    model = make_hydra()
    fix_gate(model, [0.6, 0.1, 0.3])

    def convolutions(tau):
        options = runtime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
        session = runtime.InferenceSession(edge.to_onnx(model, tau), options)
        session.run(None, {"images": batch([0, 1])[0]})
        events = json.loads(pathlib.Path(session.end_profiling()).read_text())
        return sum(event.get("args", {}).get("op_name", "").endswith("Conv") for event in events)

    assert convolutions(tau=0.0) == 3 + 2  # stem, gater, combiner and K = 2 branches
    assert convolutions(tau=0.35) == 3 + 1


@pytest.fixture(scope="module")
def resnet():
    """ResNet(1) with three branches, about a megabyte, and its flatbuffer in float32."""
    keras.utils.set_random_seed(0)
    model = Hydra(ResNet(depth=1), (0, 0, 1, 1, 2, 2), top_k=2, branch_weight=0.0)
    return model, edge.to_litert(model, 0.3)


def test_float32_is_little_more_than_the_weights(resnet):
    model, litert = resnet
    assert len(litert) < 1.1 * 4 * model.count_params()


def test_onnx_is_little_more_than_the_weights(resnet):
    pytest.importorskip("tf2onnx")
    assert len(edge.to_onnx(resnet[0], 0.3)) < 1.1 * 4 * resnet[0].count_params()


@pytest.mark.parametrize("quantize,share,error", [("float16", 1 / 2, 1e-2), ("dynamic", 1 / 4, 5e-2)])
def test_quantised_is_smaller_and_close(resnet, quantize, share, error):
    model, litert = resnet
    content = edge.to_litert(model, 0.3, quantize)
    assert share < len(content) / len(litert) < share + 0.06
    pytest.importorskip("ai_edge_litert")
    checked = edge.check(content, "litert", model, 0.3)
    assert 0 < checked.max_error < error
    assert checked.images >= 14


def test_check_compares_with_keras(make_hydra, fix_gate, monkeypatch):
    model = make_hydra()
    fix_gate(model, [0.6, 0.1, 0.3])
    change = {}

    def run(images):
        outputs = model(images, tau=0.2)
        probabilities, gate = tf.nn.softmax(outputs["logits"]).numpy(), outputs["gate"].numpy()
        probabilities[3] += change.get("probabilities", 0)
        gate[:5] = change.get("gate", gate[:5])
        return {"probabilities": probabilities, "gate": gate}

    monkeypatch.setattr(edge, "load", lambda content, format: run)

    def check(**changes):
        change.update(changes)
        return edge.check(b"", "litert", model, 0.2, num_images=12)

    assert check().max_error < 1e-6
    assert check()[1:] == (12, 0)
    assert check(probabilities=0.25).max_error == pytest.approx(0.25, abs=1e-6)
    # Another order of branches 0 and 2 selects the same two; a branch fewer is another selection.
    assert check(gate=[0.3, 0.1, 0.6])[1:] == (12, 0)
    assert check(gate=[0.7, 0.15, 0.15])[1:] == (7, 5)
    assert check().max_error < 1e-6


def test_check_of_a_model_trained_in_mixed_precision_is_against_float32(make_hydra):
    pytest.importorskip("ai_edge_litert")
    model = make_hydra(part_dtype="mixed_bfloat16")
    checked = edge.check(edge.to_litert(model, 0.08), "litert", model, 0.08)
    assert checked.max_error < 1e-5


@pytest.mark.parametrize("format,file", [("litert", "model.tflite"), ("onnx", "model.onnx")])
def test_export_writes_the_model_and_its_labels(make_hydra, convert, tmp_path, capsys, format, file):
    model = make_hydra()
    convert(model, format)  # skips
    path = edge.export_edge(model, NAMES, "pad", 0.08, tmp_path / "new", format)
    assert path == tmp_path / "new" / file
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["labels.txt", file]
    assert (path.parent / "labels.txt").read_text(encoding="utf-8").splitlines() == NAMES
    images = np.zeros((2, 8, 8, 3), np.uint8)
    assert edge.load(path.read_bytes(), format)(images)["class_id"].shape == (2,)
    written, note = capsys.readouterr().out.splitlines()
    assert written.startswith(f"{path}: 0.0")
    assert "of Keras (16 random images in" in written
    assert note == edge.input_note(format, 8, "pad")


def test_export_replaces_an_older_one_whole(make_hydra, tmp_path):
    for name in ("model.tflite", "labels.txt"):
        (tmp_path / name).write_text("old")
    edge.export_edge(make_hydra(), NAMES, "stretch", 0.08, tmp_path, "litert", "dynamic")
    assert (tmp_path / "model.tflite").read_bytes()[4:8] == b"TFL3"
    assert len(list(tmp_path.iterdir())) == 2


def test_input_note_says_what_the_device_has_to_do():
    assert edge.input_note("litert", 32, "crop") == (
        "litert takes images (B,32,32,3) uint8, RGB, not JPEG or PNG bytes: decode on the device, turn as "
        "EXIF says, crop to the central square, resize to 32x32 (bilinear, antialiased)"
    )


def test_without_the_runtime_the_model_is_written_and_not_checked(make_hydra, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    assert edge.export_edge(make_hydra(), NAMES, "stretch", 0.08, tmp_path, "litert").exists()
    written = capsys.readouterr().out.splitlines()[0]
    assert "MB, not checked: ai-edge-litert cannot be imported" in written
    assert written.endswith("pip install -e '.[litert]'")


def test_without_the_converter_one_line_says_what_to_install(make_hydra, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    edge.check_extra("litert")
    with pytest.raises(UserError, match="tf2onnx"):
        edge.check_extra("onnx")
    with pytest.raises(UserError) as raised:
        edge.export_edge(make_hydra(), NAMES, "stretch", 0.08, tmp_path / "new", "onnx")
    assert str(raised.value).startswith("tf2onnx cannot be imported (")
    assert str(raised.value).endswith("pip install -e '.[onnx]'")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"format": "coreml"}, "format must be one of litert, onnx. Received: format='coreml'"),
        (
            {"format": "litert", "quantize": "int4"},
            "one of float16, dynamic. Received: quantize='int4'",
        ),
        ({"format": "onnx", "quantize": "float16"}, "Only litert can be quantised"),
    ],
)
def test_bad_arguments_leave_nothing_behind(make_hydra, tmp_path, settings, message):
    given = {"class_names": NAMES, "fit": "stretch", "tau": 0.08, "directory": tmp_path / "new"}
    with pytest.raises(ValueError, match=message):
        edge.export_edge(make_hydra(), **given, **settings)
    assert list(tmp_path.iterdir()) == []


def test_labels_must_be_as_many_as_the_classes(make_hydra, tmp_path):
    with pytest.raises(ValueError, match=r"There must be 6 class names\. Received: 5"):
        edge.export_edge(make_hydra(), NAMES[:5], "stretch", 0.08, tmp_path / "new", "litert")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("checked", [(0.3, 16, 0), (float("nan"), 16, 0), (0.0, 0, 16)])
def test_a_conversion_that_changed_the_model_is_not_written(make_hydra, tmp_path, monkeypatch, checked):
    monkeypatch.setattr(edge, "check", lambda *arguments: edge.Check(*checked))
    with pytest.raises(UserError, match="conversion to litert changed the model"):
        edge.export_edge(make_hydra(), NAMES, "stretch", 0.08, tmp_path / "new", "litert")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing_behind(make_hydra, tmp_path):
    with pytest.raises(UnicodeEncodeError):
        edge.export_edge(make_hydra(), [*NAMES[:5], "\ud800"], "stretch", 0.08, tmp_path, "litert")
    assert list(tmp_path.iterdir()) == []
