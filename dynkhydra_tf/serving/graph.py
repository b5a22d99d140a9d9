"""The inference graph: a trained model as it is served.

No heads, batch normalisation folded into the convolutions, float32, and branches that run only where an
image needs them; where a shared trunk answers alone, neither branches nor combiner. Axis letters: B batch,
S side of an image, N branches (nb), M classes, h w c a projection.

The weights of the parts that every image runs are constants of the graph, those of the branches a variable.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dynkhydra_tf.folding import constants_of, fold
from dynkhydra_tf.gating import exits, select_branches
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.serving.branches import StackedBranches, UnrolledBranches


class Gating(NamedTuple):
    """The cheap part of a pass.

    Attributes:
        features: (B, H, W, C) float32, the output of the stem.
        gate: (B, N) float32, the gate probabilities.
        selected: (B, N) bool, the branches to run; none for an image that the trunk answers alone.
        trunk: (B, h, w, c) float32, the map of a shared trunk, and class_probabilities: (B, M) float32, its
            answer; None where there is none.
    """

    features: tf.Tensor
    gate: tf.Tensor
    selected: tf.Tensor
    trunk: tf.Tensor | None = None
    class_probabilities: tf.Tensor | None = None


class InferenceGraph(tf.Module):
    """A trained model made ready to serve; its weights are copies.

    Args:
        model: `Hydra` or `Plain`.
        unrolled: bool, a tf.cond for each branch (edge runtimes), else stacked weights and one body
            (servers); see `serving/branches.py`.

    Attributes:
        model: the copy.
        gated: bool, whether it has a gate: a `Hydra`.
        can_exit: bool, whether a shared trunk can answer alone.
    """

    def __init__(self, model: Hydra | Plain, unrolled: bool = False) -> None:
        super().__init__(name="inference")
        self.model = model = model.for_inference()
        for part in model.shared_parts:
            fold(part)
        self.gated = isinstance(model, Hydra)
        self.can_exit = self.gated and model.trunk
        # What `_run` is called on; of a gater that shares its trunk, one layer after the other.
        layers = [*model.shared_parts, *(model.gater.layers if self.can_exit else ())]
        self._constants = {id(layer): constants_of(layer.variables) for layer in layers}
        if self.gated:
            self.branches = (UnrolledBranches if unrolled else StackedBranches)(model)
        if self.can_exit:
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
        """Runs stem and gater and selects the branches.

        Args:
            images: (B, S, S, 3), 0..255, uint8 or float; B > 0.
            tau: float32, () or (B,), the threshold.
            exit_confidence: float32, () or (B,), see `Hydra`; None: the model's.

        Returns:
            `Gating`; None for a plain network, which has nothing to select.
        """
        if not self.gated:
            return None
        features = self._run(self.model.stem, self.model.normalize(images))
        if not self.can_exit:
            gate = tf.nn.softmax(self._run(self.model.gater, features))
            return Gating(features, gate, select_branches(gate, self.model.top_k, tau))
        to_map, *to_logits = self.model.gater.layers
        trunk = logits = self._run(to_map, features)
        for layer in to_logits:
            logits = self._run(layer, logits)
        classes = tf.nn.softmax(logits)
        gate = classes @ self._in_cluster
        confidence = self.model.exit_confidence if exit_confidence is None else exit_confidence
        goes_on = ~exits(classes, confidence)[:, tf.newaxis]
        selected = select_branches(gate, self.model.top_k, tau) & goes_on
        return Gating(features, gate, selected, trunk, classes)

    def classify(self, gating: Gating) -> tf.Tensor:
        """Runs a Hydra's selected branches and its combiner: class probabilities (B, M) float32."""
        if not self.can_exit:
            branches = self.branches(gating.features, gating.gate, gating.selected)
            return tf.nn.softmax(self._run(self.model.combiner, branches))
        used = tf.reduce_sum(tf.cast(gating.selected, tf.int32), axis=1)
        ready = self.branches.ready()
        return tf.cond(
            tf.reduce_sum(used) > 0,
            lambda: self._beyond_trunk(gating, used, ready),
            lambda: gating.class_probabilities,
        )

    def _beyond_trunk(self, gating, used, ready):
        """The class probabilities where an image at least goes on; for the others the trunk's."""
        features, gate, selected, trunk, classes = gating
        combined = self.branches(features, gate, selected, ready) + trunk
        image = tf.where(used > 0)
        combined = tf.ensure_shape(tf.gather(combined, image[:, 0]), (None, *self.branches.projection_shape))
        answers = tf.nn.softmax(self._run(self.model.combiner, combined))
        return tf.ensure_shape(tf.tensor_scatter_nd_update(classes, image, answers), classes.shape)

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
            return _classes(tf.nn.softmax(self._run(self.model.network, self.model.normalize(images))))
        return {
            **_classes(self.classify(gating)),
            "gate": gating.gate,
            "active_branches": count_branches(gating.selected),
        }


def count_branches(selected: tf.Tensor) -> tf.Tensor:
    """Returns how many branches each image of a selection (B, N) bool runs: (B,) int32."""
    return tf.reduce_sum(tf.cast(selected, tf.int32), axis=1)


def _classes(probabilities):
    class_id = tf.argmax(probabilities, axis=1, output_type=tf.int32)
    return {"probabilities": probabilities, "class_id": class_id}
