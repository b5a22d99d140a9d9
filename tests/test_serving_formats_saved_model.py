"""The export as a server meets it: in a process that never imports tensorflow."""

import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf import DenseNet, Hydra, ResNet, ResSep
from dynkhydra_tf.data import preprocess
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.serving.formats import saved_model
from dynkhydra_tf.serving.formats.saved_model import write_version
from dynkhydra_tf.serving.model_card import requests_text
from dynkhydra_tf.serving.served_model import BATCH_SIZES
from tests.conftest import TinyBackbone, coloured_images, executed_ops, to_serve

NAMES = ("apple", "Äpfel", "pear", "plum", "fig", "date")


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory):
    """The trained model's SavedModel, with top-2 outputs."""
    directory = tmp_path_factory.mktemp("served") / "1"
    directory.mkdir()
    assert write_version(to_serve(trained, NAMES, top_classes=2), directory) < 1e-5
    return directory


def keras_answer(model, images, tau):
    out = model(images, tau=tau)
    return {
        "probabilities": tf.nn.softmax(out["logits"]).numpy(),
        "gate": out["gate"].numpy(),
        "active_branches": np.sum(out["selected"], axis=1),
    }


def png(width, height, body=b""):
    """A PNG's header for an image of any size, and what follows it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def test_every_signature_and_batch_size_is_as_keras(trained, exported, answer_natively):
    requests, expected = [], []
    for size in (1, 2, 7, 64):
        images, _ = coloured_images(np.arange(size) % 6, seed=size)
        taus = np.linspace(0, 0.9, size).astype(np.float32)
        files = np.array([tf.io.encode_png(image).numpy() for image in images], object)
        requests += [("serving_default", {"images": images}), ("with_tau", {"images": images, "tau": taus})]
        requests += [("image_bytes", {"image_bytes": files}), ("gate", {"images": images})]
        own = keras_answer(trained, images, trained.tau)
        expected += [own, keras_answer(trained, images, taus), own, own]
    counts = set()
    for (signature, _), answer, right in zip(
        requests, answer_natively(exported, requests), expected, strict=True
    ):
        assert isinstance(answer, dict), answer
        for name, dtype in (("gate", np.float32), ("active_branches", np.int32)):
            assert answer[name].dtype == dtype
            np.testing.assert_allclose(answer[name], right[name], atol=1e-5)
        counts |= set(answer["active_branches"].tolist())
        if signature == "gate":
            assert set(answer) == {"gate", "active_branches", "selected"}
            assert (answer["selected"].sum(axis=1) == answer["active_branches"]).all()
            continue
        np.testing.assert_allclose(answer["probabilities"], right["probabilities"], atol=1e-5)
        order = np.argsort(-right["probabilities"], axis=1)[:, :2]
        np.testing.assert_array_equal(answer["top_class_ids"], order)
        np.testing.assert_array_equal(answer["class_id"], order[:, 0])
        assert answer["class_id"].dtype == np.int32
        assert [label.decode() for label in answer["label"]] == [NAMES[i] for i in order[:, 0]]
        assert [label.decode() for label in answer["top_labels"].ravel()] == [NAMES[i] for i in order.ravel()]
        np.testing.assert_allclose(
            answer["top_probabilities"], np.take_along_axis(right["probabilities"], order, 1), atol=1e-5
        )
    assert counts == {1, 2}, "the requests must take the path of one and of two branches"


def test_one_image_is_neither_gathered_nor_scattered_nor_sorted(exported):
    images, _ = coloured_images([0, 1])
    for signature, knobs in (("serving_default", {}), ("with_tau", {"tau": np.zeros(2, np.float32)})):
        one, two = (
            executed_ops(exported, signature, {k: v[:size] for k, v in {"images": images, **knobs}.items()})
            for size in (1, 2)
        )
        for op in ("Where", "GatherNd", "Cumsum", "Transpose", "ScatterNd", "TensorListConcatV2"):
            assert op in two and op not in one, (op, one, two)
        assert one["GatherV2"] == 2  # label and top_labels
        assert sum(one.values()) < sum(two.values()) / 2


def test_pictures_of_every_kind_are_prepared_as_in_training(trained, exported, answer_natively):
    image = np.random.default_rng(0).integers(0, 256, (21, 13, 3), np.uint8)
    grey, alpha = image[..., :1], np.concatenate([image, image[..., :1]], axis=-1)
    header = b"BM" + struct.pack("<IHHI", 54 + 16 * 21 * 4, 0, 0, 54)
    header += struct.pack("<IiiHHIIiiII", 40, 13, -21, 1, 32, 0, 0, 0, 0, 0, 0)
    bmp = header + np.concatenate([image[..., ::-1], alpha[..., 3:]], axis=-1).tobytes()
    jpeg = tf.io.encode_jpeg(image, quality=95).numpy()
    # EXIF of one entry: orientation (0x0112), a short, 6: the camera was held on its side.
    note = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
    on_its_side = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(note) + 2) + note + jpeg[2:]
    kinds = [
        (tf.io.encode_png(image).numpy(), image),
        (tf.io.encode_png(grey).numpy(), np.repeat(grey, 3, axis=-1)),
        (tf.io.encode_png(alpha).numpy(), image),
        (tf.io.encode_png(alpha[..., 2:]).numpy(), np.repeat(image[..., 2:], 3, axis=-1)),
        (tf.io.encode_png(tf.cast(image, tf.uint16) * 256).numpy(), image),
        (jpeg, tf.io.decode_jpeg(jpeg, channels=3).numpy()),
        (on_its_side, np.rot90(tf.io.decode_jpeg(jpeg, channels=3).numpy(), -1)),
        (bmp, image),
    ]
    (answer,) = answer_natively(
        exported, [("image_bytes", {"image_bytes": np.array([file for file, _ in kinds], object)})]
    )
    assert isinstance(answer, dict), answer
    images = tf.stack([preprocess(pixels, 8, "stretch") for _, pixels in kinds])
    right = keras_answer(trained, images, trained.tau)
    np.testing.assert_allclose(answer["probabilities"], right["probabilities"], atol=1e-5)


BAD_IMAGES = np.zeros((1, 8, 8, 3), np.uint8)
BAD = [
    ("serving_default", {"images": np.zeros((8, 8, 3), np.uint8)}, "images must be"),
    ("serving_default", {"images": np.zeros((1, 1, 8, 8, 3), np.uint8)}, "images must be"),
    ("serving_default", {"images": np.uint8(3)}, "images must be"),
    ("serving_default", {"images": np.zeros((1, 9, 8, 3), np.uint8)}, "images must be \\(B, 8, 8, 3\\)"),
    ("serving_default", {"images": np.zeros((1, 8, 8, 1), np.uint8)}, "images must be"),
    ("serving_default", {"images": np.zeros((1, 0, 8, 3), np.uint8)}, "images must be"),
    ("serving_default", {"images": np.zeros((0, 8, 8, 3), np.uint8)}, "images must be 1 to 128"),
    ("serving_default", {"images": np.zeros((1, 8, 8, 3), np.float32)}, "uint8"),
    ("serving_default", {"images": np.array(["text"], object)}, "uint8"),
    ("gate", {"images": np.zeros((2, 4, 4, 3), np.uint8)}, "images must be"),
    ("with_tau", {"images": BAD_IMAGES, "tau": np.float32([1])}, "tau must be in \\[0, 1\\)"),
    ("with_tau", {"images": BAD_IMAGES, "tau": np.float32([-0.1])}, "tau must be in"),
    ("with_tau", {"images": BAD_IMAGES, "tau": np.float32([np.nan])}, "tau must be in"),
    ("with_tau", {"images": BAD_IMAGES, "tau": np.float32([0.1, 0.1])}, "a value for each image"),
    ("with_tau", {"images": BAD_IMAGES, "tau": np.float32(0.1)}, "a value for each image"),
    ("image_bytes", {"image_bytes": np.array([], object)}, "image_bytes must be"),
    ("image_bytes", {"image_bytes": np.array([[b"a"], [b"b"]], object)}, "image_bytes must be \\(B,\\)"),
    ("image_bytes", {"image_bytes": np.array([b"a"] * 4097, object)}, "of 1 to 128 images"),
    ("serving_default", {"images": np.repeat(BAD_IMAGES, 4097, axis=0)}, "images must be 1 to 128"),
    ("nowhere", {"images": BAD_IMAGES}, "signature must be one of"),
    ("gate", {"pictures": BAD_IMAGES}, "gate takes the inputs"),
]
BAD_FILES = {
    b"": "not JPEG, PNG, GIF, BMP or WebP",
    b"no image": "not JPEG, PNG, GIF, BMP or WebP",
    b"RIFF\x1a\0\0\0WEBPVP8L" + b"\xff" * 20: "more than 16777216 pixels",
    png(20_000, 20_000): "more than 16777216 pixels",
    png(4096, 4097): "more than 16777216 pixels",
    b"GIF89a\xff\xff\xff\xff\0\0\0": "more than 16777216 pixels",
    b"BM" + b"\x7f" * 60: "not supported",
    png(8, 8, b"short"): "damaged or cut off",
}


def test_a_bad_request_gets_an_error_and_the_next_one_its_answer(exported, answer_natively):
    images, _ = coloured_images([3])
    good = ("serving_default", {"images": images})
    jpeg = tf.io.encode_jpeg(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).numpy()
    files = {**BAD_FILES, jpeg[: len(jpeg) // 2]: "damaged or cut off", jpeg: "^$"}
    requests = [good]
    for signature, inputs, _ in BAD:
        requests += [(signature, inputs), good]
    requests.append(("image_bytes", {"image_bytes": np.array(list(files), object)}))
    *answers, of_files = answer_natively(exported, requests)
    for message, error, probabilities in zip(
        files.values(), of_files["error"], of_files["probabilities"], strict=True
    ):
        assert re.search(message, error.decode()), (message, error)
        assert probabilities.sum() == pytest.approx(0.0 if error else 1.0)
    for (signature, inputs, message), answer in zip(BAD, answers[1::2], strict=True):
        shown = (signature, {name: np.shape(value) for name, value in inputs.items()}, answer)
        assert isinstance(answer, str), shown
        assert re.search(message, answer), shown
    for answer in answers[::2]:
        np.testing.assert_array_equal(answer["probabilities"], answers[0]["probabilities"])


@pytest.mark.slow
def test_a_thousand_mutations_leave_the_process_well(exported, answer_natively):
    rng = np.random.default_rng(0)
    images, _ = coloured_images(np.arange(4))
    pictures = [np.repeat(np.repeat(image, 3, axis=0), 5, axis=1) for image in images]
    files = [tf.io.encode_jpeg(pictures[0]).numpy(), tf.io.encode_png(pictures[1]).numpy()]
    files += [tf.io.encode_jpeg(pictures[2][..., :1]).numpy(), tf.io.encode_png(pictures[3][..., :2]).numpy()]

    def mutated_bytes():
        content = bytearray(files[rng.integers(len(files))])
        for _ in range(rng.integers(1, 9)):
            place = int(rng.integers(len(content)))
            match rng.integers(4):
                case 0:
                    content[place] = rng.integers(256)
                case 1:
                    del content[place:]
                    content += b"\0"
                case 2:
                    content[place:place] = rng.bytes(rng.integers(1, 9))
                case 3:
                    del content[place : place + int(rng.integers(1, 9))]
            content = content or bytearray(b"\0")
        return bytes(content)

    def mutated_images():
        shape = [int(rng.integers(0, 4)), 8, 8, 3]
        if rng.random() < 0.7:
            shape[rng.integers(4)] = int(rng.integers(0, 20))
        if rng.random() < 0.3:
            shape = shape[: rng.integers(5)]
        dtype = rng.choice([np.uint8, np.float32, np.int32, np.int64, np.float64])
        return rng.integers(0, 256, shape).astype(dtype)

    good = ("with_tau", {"images": images, "tau": np.full(4, 0.3, np.float32)})
    requests = [good]
    for _ in range(500):
        requests.append(("image_bytes", {"image_bytes": np.array([mutated_bytes()], object)}))
        tau = rng.choice([0.1, -1, 2, np.nan, np.inf], rng.integers(0, 5)).astype(np.float32)
        requests.append(("with_tau", {"images": mutated_images(), "tau": tau}))
    answers = answer_natively(exported, [*requests, good])
    refused = [isinstance(answer, str) for answer in answers]
    assert not any(refused[1:-1:2]), "a bad file has an answer"
    assert sum(answer["error"][0] != b"" for answer in answers[1:-1:2]) > 100
    assert sum(refused[2:-1:2]) > 300
    for name, value in answers[0].items():
        np.testing.assert_array_equal(answers[-1][name], value)


def test_float_images(trained, tmp_path, answer_natively):
    write_version(to_serve(trained, NAMES, input_dtype="float32"), tmp_path)
    images, _ = coloured_images([0, 4])
    floats = images.astype(np.float32)
    requests = [("serving_default", {"images": floats}), ("serving_default", {"images": floats - 300})]
    requests.append(("serving_default", {"images": np.where(floats > 100, np.float32(np.nan), floats)}))
    requests.append(("serving_default", {"images": floats[0]}))
    good, low, nan, rank = answer_natively(tmp_path, requests)
    right = keras_answer(trained, images, trained.tau)
    np.testing.assert_allclose(good["probabilities"], right["probabilities"], atol=1e-5)
    assert "images must be in 0..255" in low and "images must be in 0..255" in nan
    assert "images must be (B, 8, 8, 3)" in rank


@pytest.mark.slow
def test_branches_that_no_image_takes_are_not_run(make_hydra, fix_gate, batch, tmp_path, answer_natively):
    # All weights of branch 1 are NaN; one image takes the slots, four the loop.
    images, _ = batch(np.zeros(4))
    requests = [("serving_default", {"images": images[:1]}), ("serving_default", {"images": images})]

    def answers(name, spoiled, gate):
        model = make_hydra(top_k=2, tau=0.15, branch_weight=0.0)
        fix_gate(model, gate)
        for stack in model.branches.stacks:
            numbers = np.arange(3).reshape(-1, *[1] * (len(stack.shape) - 1))
            stack.assign(np.where(numbers == spoiled, np.nan, stack))
        directory = tmp_path / name
        directory.mkdir()
        try:
            write_version(to_serve(model, NAMES), directory)
        except UserError as error:
            assert "differs from the Keras model" in str(error)  # NaN in the reference answers
        return [answer["probabilities"] for answer in answer_natively(directory, requests)]

    sound, skipped = answers("sound", None, [0.6, 0.1, 0.3]), answers("skipped", 1, [0.6, 0.1, 0.3])
    for left, right in zip(sound, skipped, strict=True):
        np.testing.assert_array_equal(left, right)
    for left, right in zip(
        answers("other", None, [0.6, 0.3, 0.1]), answers("run", 1, [0.6, 0.3, 0.1]), strict=True
    ):
        assert not np.array_equal(left, right)


@pytest.mark.slow
def test_weights_are_stored_once_and_the_graph_does_not_grow_with_nb(tmp_path):
    sizes = {}
    for branches in (3, 12):
        keras.utils.set_random_seed(0)
        model = Hydra(ResNet(1, image_size=16), np.arange(24) % branches, top_k=2, branch_weight=0.0)
        directory = tmp_path / str(branches)
        directory.mkdir()
        write_version(to_serve(model, [str(i) for i in range(24)], batch_sizes=[1]), directory)
        weights = (directory / "variables" / "variables.data-00000-of-00001").stat().st_size
        assert weights <= 1.01 * 4 * model.count_params()
        sizes[branches] = (directory / "saved_model.pb").stat().st_size
    assert sizes[12] < 1.01 * sizes[3]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [ResSep, DenseNet])
def test_separable_and_dense_networks_are_served_with_onednn_and_without(
    backbone, tmp_path, answer_natively, monkeypatch
):
    keras.utils.set_random_seed(0)
    model = Hydra(backbone(1, branch_width=0.5, image_size=32), (0, 0, 1, 1, 2, 2), top_k=2, tau=0.3)
    rng = np.random.default_rng(0)
    for variable in model.variables:  # normalisations of their own, as after a training
        if variable.path.split("/")[-1] in ("gamma", "beta", "moving_mean", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    (tmp_path / "1").mkdir()
    assert write_version(to_serve(model, NAMES, batch_sizes=[1]), tmp_path / "1") < 1e-4
    images = rng.integers(0, 256, (7, 32, 32, 3), np.uint8)
    taus = np.linspace(0, 0.9, 7).astype(np.float32)
    requests = [("with_tau", {"images": images[:n], "tau": taus[:n]}) for n in (1, 2, 7)]
    for onednn in ("0", "1"):
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", onednn)
        for (_, inputs), answer in zip(requests, answer_natively(tmp_path / "1", requests), strict=True):
            right = keras_answer(model, inputs["images"], inputs["tau"])
            np.testing.assert_array_equal(answer["active_branches"], right["active_branches"])
            np.testing.assert_allclose(answer["probabilities"], right["probabilities"], atol=1e-4)


@pytest.mark.slow
def test_the_saved_model_cli_lines_of_the_model_card(trained, exported, tmp_path):
    text = requests_text(to_serve(trained, NAMES, top_classes=2))
    text = text.replace("/tmp/images.npy", f"{tmp_path}/images.npy")
    show, save, run = (line for line in text.splitlines() if line.startswith(("saved_model_cli", "python")))
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    for command, told in ((show, "inputs['images'] tensor_info"), (save, ""), (run, "output key label")):
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=exported,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and told in done.stdout, done.stderr[-2000:]


def test_warmup_requests_are_answered(exported, answer_natively):
    from tensorflow_serving.apis import prediction_log_pb2

    records = tf.data.TFRecordDataset(str(exported / "assets.extra" / "tf_serving_warmup_requests"))
    requests = []
    for record in records.as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        requests.append((request.model_spec.signature_name, inputs))
    signatures = ("serving_default", "image_bytes", "with_tau", "image_bytes_with_tau", "gate")
    wanted = {(name, size) for name in signatures for size in BATCH_SIZES}
    assert {(signature, len(next(iter(inputs.values())))) for signature, inputs in requests} == wanted
    assert all(isinstance(answer, dict) for answer in answer_natively(exported, requests))
    assert (exported / "assets.extra" / "tf_serving_warmup_requests").stat().st_size < 200_000


def test_what_was_trained_in_bfloat16_is_served_in_float32(make_hydra, tmp_path):
    model = make_hydra(part_dtype="mixed_bfloat16", tau=0.2)
    assert write_version(to_serve(model, NAMES, "pad"), tmp_path) < 1e-5


def test_an_export_that_answers_otherwise_is_refused(trained, tmp_path, monkeypatch):
    wrong = saved_model.make_reference(trained, NAMES, "stretch", 0.2)
    wrong[0]["outputs"]["probabilities"] = wrong[0]["outputs"]["probabilities"] + 1e-3
    monkeypatch.setattr(saved_model, "make_reference", lambda *arguments: wrong)
    with pytest.raises(UserError, match=r"differs from the Keras model by 0\.00"):
        write_version(to_serve(trained, NAMES), tmp_path)


def test_keras_opens_it_too(exported, trained):
    images, _ = coloured_images([1, 2])
    served = tf.saved_model.load(str(exported)).signatures["serving_default"](images=tf.constant(images))
    right = keras_answer(trained, images, trained.tau)
    np.testing.assert_allclose(served["probabilities"], right["probabilities"], atol=1e-5)
    assert json.loads((exported / "assets.extra" / "reference.json").read_text())["requests"]


def test_a_plain_network_has_the_signatures_without_a_gate(batch, tmp_path, answer_natively):
    keras.utils.set_random_seed(0)
    model = Plain(TinyBackbone(), 6)
    assert write_version(to_serve(model, NAMES, top_classes=2, batch_sizes=[1]), tmp_path) < 1e-5
    images, _ = batch(np.zeros(3))
    files = np.array([tf.io.encode_png(image).numpy() for image in images], object)
    requests = [("serving_default", {"images": images}), ("image_bytes", {"image_bytes": files})]
    refused = [("serving_default", {"images": images[0]}), ("with_tau", {}), ("gate", {"images": images})]
    *answers, rank, with_tau, gate = answer_natively(tmp_path, requests + refused)
    right = tf.nn.softmax(model(images)["logits"]).numpy()
    assert answers[1].pop("error").tolist() == [b""] * 3
    for answer in answers:
        assert set(answer) == {
            *("probabilities", "class_id", "label"),
            *("top_class_ids", "top_labels", "top_probabilities"),
        }
        np.testing.assert_allclose(answer["probabilities"], right, atol=1e-5)
        assert [label.decode() for label in answer["label"]] == [NAMES[i] for i in right.argmax(axis=1)]
    assert "images must be (B, 8, 8, 3)" in rank
    for text in (with_tau, gate):
        assert "signature must be one of ['image_bytes', 'serving_default']" in text
