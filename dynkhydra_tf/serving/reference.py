"""Reference requests and the answers that the Keras model gave to them; replayed by `verify`.

    {"tolerance": 1e-4, "requests": [{"signature", "inputs": {name: array}, "outputs": {name: array}}, ...]}

Where there were validation images, also "taus", the table of `tau_times`, and "validation", the histograms
of `drift`. An array is {"dtype", "shape", "base64": its bytes}; of strings ("dtype": "bytes") a list of each
one's.
Axis letters: B batch, S side of an image.
"""

import base64
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dynkhydra_tf.data.decoding import decode_picture, why_unreadable
from dynkhydra_tf.data.preprocessing import preprocess
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.serving.drift import Histograms

TOLERANCE = 1e-4  # another processor, another order of sums


def make_reference(
    model: Hydra | Plain,
    class_names: Sequence[str],
    fit: str,
    tau: float | None,
    top_classes: int = 0,
    input_dtype: np.typing.DTypeLike = np.uint8,
    seed: int = 0,
) -> list[dict]:
    """Makes one or two requests for each signature and answers them with the Keras model.

    Args:
        model: `Hydra` or `Plain`; its own tau is not used, its own exit confidence is.
        class_names: M str.
        fit, top_classes: as for `signatures`.
        tau: the served threshold; None for a plain network.
        input_dtype: numpy dtype of `images`.
        seed: of the images.

    Returns:
        list of dicts signature, inputs, outputs; arrays as numpy arrays, strings as bytes objects.
    """
    rng = np.random.default_rng(seed)
    size = model.backbone.input_shape[0]

    def answer(images, inputs, signature):
        knobs = {} if tau is None else {"tau": tau}
        knobs |= {name: inputs[name] for name in ("tau", "exit_confidence") if name in inputs}
        out = model(images, **knobs)
        gate = {}
        if tau is not None:
            selected = out["selected"].numpy()
            gate = {"gate": out["gate"].numpy(), "active_branches": selected.sum(axis=1, dtype=np.int32)}
        if signature == "gate":
            return {**gate, "selected": selected}
        probabilities = tf.nn.softmax(out["logits"]).numpy()
        names = np.array([name.encode() for name in class_names], object)
        class_id = probabilities.argmax(axis=1).astype(np.int32)
        outputs = {"probabilities": probabilities, "class_id": class_id, "label": names[class_id], **gate}
        if top_classes:
            best = tf.math.top_k(probabilities, top_classes)
            ids = best.indices.numpy()
            outputs |= {
                "top_class_ids": ids,
                "top_labels": names[ids],
                "top_probabilities": best.values.numpy(),
            }
        return outputs

    requests = []
    batches = [("serving_default", 1), ("serving_default", 5)]
    # One exits whatever it is, one never does, and of a batch some.
    can_exit = getattr(model, "can_exit", False)
    confidences = {"exit_confidence": np.array([1e-6, 1.0, 0.5], np.float32)}
    if tau is not None:
        batches += [("with_tau", 3), ("gate", 2)]
    if can_exit:
        batches += [("with_exit_confidence", 1), ("with_exit_confidence", 3)]
    for signature, batch in batches:
        images = _pictures(rng, batch, size, size)
        inputs = {"images": images.astype(input_dtype)}
        if signature.startswith("with_"):
            inputs["tau"] = np.array([0.0, tau, 0.5], np.float32)[:batch]
        if signature == "with_exit_confidence":
            inputs |= {name: values[:batch] for name, values in confidences.items()}
        outputs = answer(images, inputs, signature)
        requests.append({"signature": signature, "inputs": inputs, "outputs": outputs})
    files = [
        tf.io.encode_jpeg(_pictures(rng, 1, size, 2 * size)[0]).numpy(),
        tf.io.encode_png(_pictures(rng, 1, size + 3, size)[0, :, :, :1]).numpy(),
    ]
    images = [preprocess(decode_picture(file), size, fit) for file in files]
    images = tf.stack([*images, tf.zeros_like(images[0])])
    files.append(b"no picture")  # its row is blank, see `signatures`
    inputs = {"image_bytes": np.array(files, object)}
    asked = [("image_bytes", inputs)]
    if tau is not None:
        with_tau = {**inputs, "tau": np.array([tau, 0.5, 0.0], np.float32)}
        asked.append(("image_bytes_with_tau", with_tau))
        if can_exit:
            asked.append(("image_bytes_with_exit_confidence", {**with_tau, **confidences}))
    for signature, inputs in asked:
        outputs = answer(images, inputs, signature)
        for name, array in outputs.items():
            array[-1] = -1 if "class_id" in name else b"" if array.dtype == object else 0
        outputs["error"] = np.array([b"", b"", why_unreadable(files[-1]).encode()], object)
        requests.append({"signature": signature, "inputs": inputs, "outputs": outputs})
    return requests


def _pictures(rng, batch, height, width):
    """Random colour patches (B, H, W, 3) uint8: unlike noise, no two of them look alike to a gater."""
    coarse = rng.integers(0, 256, (batch, 4, 4, 3)).astype(np.float32)
    return tf.cast(tf.image.resize(coarse, (height, width)), tf.uint8).numpy()


def difference(expected: dict, received: dict) -> float:
    """Compares two answers.

    Args:
        expected, received: dicts of arrays by output name.

    Returns:
        The largest absolute difference of the floats; infinite where names, shapes, or values that are
        no floats differ.
    """
    if set(expected) != set(received):
        return float("inf")
    largest = 0.0
    for name, array in expected.items():
        other = np.asarray(received[name])
        if other.shape != array.shape:
            return float("inf")
        if array.dtype.kind == "f":
            largest = max(largest, float(np.max(np.abs(array - other), initial=0.0)))
            if np.isnan(other).any():
                return float("inf")
        elif not np.array_equal(other, array):
            return float("inf")
    return largest


# === The file ===


def to_json(
    requests: Sequence[dict], taus: Sequence[dict] = (), validation: Histograms | None = None
) -> dict:
    """Returns the file as a value that `json` can write.

    Args:
        requests: of `make_reference`.
        taus: the rows of `measure_taus`.
        validation: what the model did on validation images.
    """

    def arrays(named):
        return {name: _encode(array) for name, array in named.items()}

    records = [
        {
            "signature": request["signature"],
            "inputs": arrays(request["inputs"]),
            "outputs": arrays(request["outputs"]),
        }
        for request in requests
    ]
    known: dict[str, Any] = {"taus": list(taus)} if taus else {}
    if validation:
        known["validation"] = validation.to_json()
    return {"tolerance": TOLERANCE, "requests": records, **known}


def load(path: str | os.PathLike) -> tuple[list[dict], float]:
    """Reads a reference file; returns (requests as `make_reference` gives them, tolerance).

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        requests = [
            {
                "signature": request["signature"],
                "inputs": {name: _decode(value) for name, value in request["inputs"].items()},
                "outputs": {name: _decode(value) for name, value in request["outputs"].items()},
            }
            for request in record["requests"]
        ]
        return requests, float(record["tolerance"])
    except OSError as error:
        raise UserError(f"The reference file {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no reference file of an export: {error!r}") from error


def _encode(array):
    if array.dtype.kind == "O":
        values = [base64.b64encode(value).decode() for value in array.ravel()]
        return {"dtype": "bytes", "shape": array.shape, "base64": values}
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": array.shape, "base64": data}


def _decode(value):
    if value["dtype"] == "bytes":
        values = np.empty(len(value["base64"]), object)
        values[:] = [base64.b64decode(text) for text in value["base64"]]
        return values.reshape(value["shape"])
    return np.frombuffer(base64.b64decode(value["base64"]), value["dtype"]).reshape(value["shape"])
