"""What inference is measured on: exports of networks with random weights and a gate that spreads.

Every network is exported as it would be served, its batch normalisation folded and uint8 images in, so that
the differences are those of the method. B is the batch axis.
"""

import os
import pathlib
import pickle
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dynkhydra_tf.backbones import ResNet
from dynkhydra_tf.backbones.blocks import ConvBN
from dynkhydra_tf.backbones.resnet import BasicBlock
from dynkhydra_tf.folding import constants_of, fold
from dynkhydra_tf.gating import combination_weights
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.serving.formats.saved_model import write_endpoints
from dynkhydra_tf.serving.graph import InferenceGraph, widened
from dynkhydra_tf.serving.signatures import signatures

NUM_CLASSES = 100
TOP_K = 4


def images(count: int, seed: int = 0) -> np.ndarray:
    """Returns random images (count, 32, 32, 3) uint8: colours and patches, for a gate to tell apart."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3)).astype(np.float32)
    smooth = tf.image.resize(coarse, (32, 32)).numpy()
    return np.clip(smooth + rng.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)


def make_hydra(
    depth: int,
    num_branches: int,
    seed: int = 0,
    top_k: int = TOP_K,
    combine: str = "gate_weighted",
    num_classes: int = NUM_CLASSES,
) -> Hydra:
    """Returns a `Hydra` of random weights whose gate spreads as a trained one does.

    The gater's classifier is set so that its logits, over random images, are independent and normal; each
    branch is then the first choice of about as many images as any other.
    """
    keras.utils.set_random_seed(seed)
    clusters = [index % num_branches for index in range(max(num_classes, num_branches))]
    model = Hydra(ResNet(depth), clusters, top_k=top_k, tau=0.0, combine=combine, branch_weight=0.0)
    trunk, pool, dense = model.gater.layers
    sample = model.normalize(images(512, seed=1))
    # Moving statistics as those of a batch: the gate is then the same in training and at inference.
    units = [part for part in model.stem._flatten_layers() if isinstance(part, ConvBN)]
    units += [part for part in trunk._flatten_layers() if isinstance(part, ConvBN)]
    for unit in units:
        unit.norm.momentum = 0.0
    trunk(model.stem(sample, training=True), training=True)
    for unit in units:
        unit.norm.momentum = 0.97
    pooled = pool(trunk(model.stem(sample))).numpy()
    centred = pooled - pooled.mean(axis=0)
    # Whitened in the directions in which the images differ.
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    spread = spread / np.sqrt(len(pooled))
    count = min(16, int((spread > 1e-3 * spread[0]).sum()))
    white = directions[:count].T / spread[:count]
    kernel = white @ np.random.default_rng(seed).normal(size=(count, num_branches)) * 2 / np.sqrt(count)
    dense.set_weights([kernel, -pooled.mean(axis=0) @ kernel])
    return model


def class_names(model: Hydra | Plain) -> list[str]:
    """Returns names for a model's classes: their numbers."""
    return [str(index) for index in range(model.num_classes)]


def tau_for(model: Hydra, batch: np.ndarray, active: float) -> float:
    """Returns the tau at which the images of a batch run `active` branches on average (1 to K)."""
    gate = np.sort(model(batch)["gate"].numpy(), axis=1)[:, ::-1]
    further = np.sort(gate[:, 1 : model.top_k].ravel())[::-1]  # the first branch always runs
    wanted = round((active - 1) * len(batch))
    if wanted == 0:
        return 0.99
    # Between two probabilities: at one of them rounding would decide.
    return float(further[wanted - 1 : wanted + 1].mean()) if wanted < further.size else 0.0


# === Exports ===


def export_hydra(model: Hydra, path: str | os.PathLike, tau: float) -> None:
    """Exports a Hydra as `export.py` does."""
    write_endpoints(_served(InferenceGraph(model), tau), path)


def export_at(
    model: Hydra | Plain, path: str | os.PathLike, taus: Sequence[float | None]
) -> dict[float | None, str]:
    """Exports a network once, with a signature for each tau that answers as that of `export.py` does.

    Args:
        model: the network. path: where to. taus: thresholds of a Hydra; of a plain network [None].

    Returns:
        {tau: name of its signature}.
    """
    graph, names = InferenceGraph(model), {tau: f"tau_{number}" for number, tau in enumerate(taus)}
    write_endpoints({name: _served(graph, tau)["serving_default"] for tau, name in names.items()}, path)
    return names


def export_static(model: Hydra, path: str | os.PathLike, active: int, gater: bool = True) -> None:
    """Exports the limit, see `static_function`."""
    write_endpoints({"serving_default": static_function(model, active, gater)}, path)


def static_function(
    model: Hydra, active: int, gater: bool = True
) -> tf.types.experimental.PolymorphicFunction:
    """Returns the limit: stem, gater, `active` branches on the whole batch, combiner; nothing is chosen.

    With `active` 0, the stem and the gater alone; without `gater`, the stem alone, its features averaged.
    """
    graph, branches = _folded(model, active)
    normalize = widened(graph.normalize, graph.backbone.input_shape)
    constants = _constants_of(*graph.shared_parts, *branches)

    def static(batch):
        with constants():
            return run(batch)

    def run(batch):
        features = graph.stem(normalize(batch))
        if not gater:
            return {"features": tf.reduce_mean(features, axis=(1, 2))}
        gate = tf.nn.softmax(graph.gater(features))
        if not branches:
            return {"gate": gate}
        combined = tf.add_n([branch(features) for branch in branches])
        return {"probabilities": tf.nn.softmax(graph.combiner(combined)), "gate": gate}

    return _on_images(static)


def export_masked(model: Hydra, path: str | os.PathLike, tau: float) -> None:
    """Exports what runs every branch on the whole batch and masks: same answers as the Hydra."""
    graph, (_, branches) = InferenceGraph(model), _folded(model, model.num_branches)
    constants = _constants_of(graph.model.combiner, *branches)

    def masked(batch):
        gating = graph.gating(batch, tau)
        weights = combination_weights(gating.gate, gating.selected, model.combine)
        with constants():
            projections = [branch(gating.features) for branch in branches]
            combined = tf.add_n([p * weights[:, i, None, None, None] for i, p in enumerate(projections)])
            return {"probabilities": tf.nn.softmax(graph.model.combiner(combined)), "gate": gating.gate}

    write_endpoints({"serving_default": _on_images(masked)}, path)


def export_plain(depth: int, path: str | os.PathLike, seed: int = 0) -> None:
    """Exports the plain ResNet of 6 depth + 2 layers, of random weights."""
    keras.utils.set_random_seed(seed)
    export_network(Plain(ResNet(depth), NUM_CLASSES), path)


def export_network(model: Plain, path: str | os.PathLike) -> None:
    """Exports a `Plain`: its probabilities, in float32."""
    graph = InferenceGraph(model)

    def classify(batch):
        return {"probabilities": graph.answer(batch, None)["probabilities"]}

    write_endpoints({"serving_default": _on_images(classify, model.backbone.input_shape)}, path)


def export_pytorch(model: Hydra | Plain, path: str | os.PathLike, tau: float = 0.0) -> None:
    """Writes a ResNet's `Plain`, or its `Hydra` with all branches and a mask, for `pytorch.py`."""
    content: dict[str, Any] = {"image_shape": model.backbone.input_shape, "parts": {}, "branches": []}
    content |= {key: np.float32(getattr(model.normalize, key)) for key in ("scale", "offset")}
    branches: list[keras.Layer] = []
    if isinstance(model, Hydra):
        model, branches = _folded(model, model.num_branches)
        names = ("stem", "gater", "combiner")
        content |= {"top_k": model.top_k, "tau": tau, "combine": model.combine}
    else:
        model, names = model.for_inference(), ("network",)
        fold(model.network)
    content["parts"] = {name: _described(getattr(model, name)) for name in names}
    content["branches"] = [_described(branch) for branch in branches]
    pathlib.Path(path).write_bytes(pickle.dumps(content))


def _described(layer):
    """A folded layer as a list of the tuples that `pytorch.py` reads."""
    if isinstance(layer, keras.Sequential):
        return [described for part in layer.layers for described in _described(part)]
    if isinstance(layer, ConvBN):
        kernel = layer.conv.kernel.numpy()[::-1, ::-1]
        return [("conv", kernel, layer.norm.beta.numpy(), layer.strides, layer.relu)]
    if isinstance(layer, BasicBlock):
        return [("block", _described(layer.conv1) + _described(layer.conv2), layer.strides)]
    if isinstance(layer, keras.layers.GlobalAveragePooling2D):
        return [("pool",)]
    return [("dense", layer.kernel.numpy(), layer.bias.numpy())]


def _served(graph, tau):
    return signatures(graph, class_names(graph.model), "stretch", tau)


def _folded(model, count):
    """A folded copy of a Hydra's parts, and of its first `count` branches."""
    model = model.for_inference()
    branches = [model.branches.branch(index) for index in range(count)]
    for part in (*model.shared_parts, *branches):
        fold(part)
    return model, branches


def _constants_of(*layers):
    return constants_of(variable for layer in layers for variable in layer.variables)


def _on_images(call, shape=(32, 32, 3)):
    spec = tf.TensorSpec((None, *shape), tf.uint8, name="images")
    return tf.function(lambda images: call(images), input_signature=[spec], autograph=False)
