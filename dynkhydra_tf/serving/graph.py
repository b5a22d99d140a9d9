"""The inference graph: a trained model as it is served.

No heads, batch normalisation folded into the convolutions, float32, and branches that run only where an
image needs them; where a shared trunk answers alone, neither branches nor combiner, and where a classifier on
the stem's map does, no gater either. Axis letters: B batch, S side of an image, N branches (nb), M classes,
h w c a projection.

The weights of the parts that every image runs are constants of the graph, those of the branches a variable.
"""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dynkhydra_tf.folding import constants_of, fold
from dynkhydra_tf.gating import Ranking, exits, rank_branches
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.serving.branches import StackedBranches, UnrolledBranches, is_one_image

_SMALL_IMAGE = 64 * 64  # pixels


class Gating(NamedTuple):
    """The cheap part of a pass.

    Attributes:
        features: (B, H, W, C) float32, the output of the stem.
        gate: (B, N) float32, the gate probabilities; 0 of an image that the stem's classifier answers.
        ranking: `Ranking` of them; the branches that are kept are to be run, none of an image that exits.
        trunk: (B, h, w, c) float32, the map of a shared trunk; None where there is none.
        class_probabilities: (B, M) float32, the answers of the classifier by which images exit; None where
            none can.
    """

    features: tf.Tensor
    gate: tf.Tensor
    ranking: Ranking
    trunk: tf.Tensor | None = None
    class_probabilities: tf.Tensor | None = None

    @property
    def selected(self) -> tf.Tensor:
        """Which branches each image runs: (B, N) bool."""
        return self.ranking.selected(self.gate.shape[-1])

    @property
    def active_branches(self) -> tf.Tensor:
        """How many branches each image runs: (B,) int32."""
        return tf.reduce_sum(tf.cast(self.ranking.kept, tf.int32), axis=1)


class InferenceGraph(tf.Module):
    """A trained model made ready to serve; its weights are copies.

    Args:
        model: `Hydra` or `Plain`.
        unrolled: bool, a tf.cond for each branch (edge runtimes), else stacked weights and one body
            (servers); see `serving/branches.py`.

    Attributes:
        model: the copy.
        gated: bool, whether it has a gate: a `Hydra`.
        can_exit: bool, whether images can be answered without branches.
    """

    def __init__(self, model: Hydra | Plain, unrolled: bool = False) -> None:
        super().__init__(name="inference")
        self.model = model = model.for_inference()
        for part in model.shared_parts:
            fold(part)
        self._normalize = widened(model.normalize, model.backbone.input_shape)
        self.gated, self._unrolled = isinstance(model, Hydra), unrolled
        self.can_exit = self.gated and model.can_exit
        self._has_trunk = self.gated and model.trunk
        # What `_run` is called on; of a gater that shares its trunk, one layer after the other.
        layers = [*model.shared_parts, *(model.gater.layers if self._has_trunk else ())]
        self._constants = {id(layer): constants_of(layer.variables) for layer in layers}
        if self.gated:
            self.branches = (UnrolledBranches if unrolled else StackedBranches)(model)
        if self._has_trunk:
            one_hot = np.arange(model.num_branches) == np.array(model.cluster_of_class)[:, np.newaxis]
            self._in_cluster = one_hot.astype(np.float32)  # (M, N)

    def _run(self, layer, inputs):
        """Runs a part with constant weights: oneDNN lays these out once.

        A filter that comes from a variable it lays out at each call, or makes patches and a matrix product.
        """
        with self._constants[id(layer)]():
            return layer(inputs)

    def gating(
        self,
        images: tf.Tensor,
        tau: tf.Tensor | float | None,
        exit_confidence: tf.Tensor | float | None = None,
    ) -> Gating | None:
        """Runs the stem and, where an image does not exit at it, the gater; selects the branches.

        Args:
            images: (B, S, S, 3), 0..255, uint8 or float; B > 0.
            tau: float32, () or (B,), the threshold.
            exit_confidence: float32, () or (B,), see `Hydra`; None: the model's.

        Returns:
            `Gating`; None for a plain network, which has nothing to select.
        """
        if not self.gated:
            return None
        features = self._run(self.model.stem, self._normalize(images))
        confidence = self.model.exit_confidence if exit_confidence is None else exit_confidence
        if self.model.exit:
            classes = tf.nn.softmax(self._run(self.model.exit, features))
            goes_on = ~exits(classes, confidence)
            gate, trunk = self._gate_where(goes_on, features)
        else:
            gate, trunk, classes = self._gate(features)
            goes_on = ~exits(classes, confidence) if self.can_exit else None
        ranking = rank_branches(gate, self.model.top_k, tau)
        if self.can_exit:
            ranking = ranking._replace(kept=ranking.kept & tf.expand_dims(goes_on, 1))
        return Gating(features, gate, ranking, trunk, classes)

    def _gate(self, features):
        """The gate of maps, and of a shared trunk its map and its class probabilities, else None."""
        if not self._has_trunk:
            return tf.nn.softmax(self._run(self.model.gater, features)), None, None
        to_map, *to_logits = self.model.gater.layers
        trunk = logits = self._run(to_map, features)
        for layer in to_logits:
            logits = self._run(layer, logits)
        classes = tf.nn.softmax(logits)
        return classes @ self._in_cluster, trunk, classes

    def _gate_where(self, goes_on, features):
        """Gate and trunk's map (or None) of the images that go on, at their places; 0 of the others."""
        shapes = [(self.model.num_branches,), *([self.branches.projection_shape] if self._has_trunk else [])]
        images = tf.shape(features)[:1]

        def of(maps):
            return [part for part in self._gate(maps)[:2] if part is not None]

        def of_some():
            rows = tf.cast(tf.where(goes_on), tf.int32)  # (n, 1)
            # As in `UnrolledBranches`: tf2onnx can lose the shape.
            maps = tf.ensure_shape(tf.gather(features, rows[:, 0]), (None, *features.shape[1:]))
            found = zip(of(maps), shapes, strict=True)
            return [tf.scatter_nd(rows, part, tf.concat([images, shape], 0)) for part, shape in found]

        def of_those():
            if self._unrolled:
                return of_some()
            return tf.cond(is_one_image(features), lambda: of(features), of_some)

        found = tf.cond(
            tf.reduce_any(goes_on),
            of_those,
            lambda: [tf.zeros(tf.concat([images, shape], 0)) for shape in shapes],
        )
        gate, *trunk = (
            tf.ensure_shape(part, (None, *shape)) for part, shape in zip(found, shapes, strict=True)
        )
        return gate, trunk[0] if trunk else None

    def classify(self, gating: Gating) -> tf.Tensor:
        """Runs a Hydra's selected branches and its combiner: class probabilities (B, M) float32."""
        if not self.can_exit:
            branches = self.branches(gating.features, gating.gate, gating.ranking)
            return self.combine(branches)
        ready = self.branches.ready()
        return tf.cond(
            tf.reduce_any(gating.ranking.kept),
            lambda: self._beyond_exit(gating, ready),
            lambda: gating.class_probabilities,
        )

    def combine(self, combined: tf.Tensor) -> tf.Tensor:
        """Runs the combiner on summed projections (B, h, w, c): class probabilities (B, M) float32."""
        return tf.nn.softmax(self._run(self.model.combiner, combined))

    def _beyond_exit(self, gating, ready):
        """The class probabilities where an image at least goes on; of the others those of their exit."""
        features, gate, ranking, trunk, classes = gating
        combined = self.branches(features, gate, ranking, ready)
        if trunk is not None:
            combined += trunk

        def going_on():
            return tf.where(ranking.kept[:, 0])  # (n, 1)

        def rest_of_all(answers):
            return tf.tensor_scatter_nd_update(classes, going_on(), answers)

        combined = self._if_one(features, combined, lambda maps: tf.gather(maps, going_on()[:, 0]))
        combined = tf.ensure_shape(combined, (None, *self.branches.projection_shape))
        answers = self.combine(combined)
        return tf.ensure_shape(self._if_one(features, answers, rest_of_all), classes.shape)

    def _if_one(self, features, value, otherwise):
        """A value as it is where there is but one image, which goes on; else a function of it."""
        if self._unrolled:
            return otherwise(value)
        return tf.cond(is_one_image(features), lambda: value, lambda: otherwise(value))

    def answer(self, images: tf.Tensor, gating: Gating | None) -> dict[str, tf.Tensor]:
        """Returns what is known of a batch.

        Args:
            images: as in `gating`.
            gating: what `gating` returned for them.

        Returns:
            probabilities (B, M) float32, class_id (B) int32; of a Hydra also gate (B, N) float32 and
            active_branches (B) int32.
        """
        if gating is None:
            return _classes(tf.nn.softmax(self._run(self.model.network, self._normalize(images))))
        return {
            **_classes(self.classify(gating)),
            "gate": gating.gate,
            "active_branches": gating.active_branches,
        }


def _classes(probabilities):
    class_id = tf.argmax(probabilities, axis=1, output_type=tf.int32)
    return {"probabilities": probabilities, "class_id": class_id}


def widened(normalize: keras.Layer, image_shape: tuple[int, int, int]) -> keras.Layer:
    """Returns what normalises images (B, H, W, 3) as a layer does, to the bit, by more factors at a time.

    Vectors of three values are too short for a processor. Of small images the factors are those of the whole
    image, of others, to keep the file small, those of a row.
    """
    if type(normalize) is not keras.layers.Rescaling or np.ndim(normalize.scale) != 1:
        return normalize
    height, width, _ = image_shape
    copies = (height, width, 1) if height * width <= _SMALL_IMAGE else (width, 1)
    scale, offset = (np.tile(np.float32(values), copies) for values in (normalize.scale, normalize.offset))
    return keras.layers.Rescaling(scale, offset, dtype="float32", name=normalize.name)
