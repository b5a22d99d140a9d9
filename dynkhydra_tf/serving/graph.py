"""The inference graph: a trained model as it is served.

No heads, batch normalisation folded into the convolutions, float32, and branches that run only where an
image needs them. Axis letters: B batch, S side of an image, N branches (nb), M classes.
"""

from typing import NamedTuple

import tensorflow as tf

from dynkhydra_tf.folding import fold
from dynkhydra_tf.gating import select_branches
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.serving.branches import StackedBranches, UnrolledBranches


class Gating(NamedTuple):
    """The cheap part of a pass.

    Attributes:
        features: (B, H, W, C) float32, the output of the stem.
        gate: (B, N) float32, the gate probabilities.
        selected: (B, N) bool, the branches to run.
    """

    features: tf.Tensor
    gate: tf.Tensor
    selected: tf.Tensor


class InferenceGraph(tf.Module):
    """A trained model made ready to serve; its weights are copies.

    Args:
        model: `Hydra` or `Plain`.
        unrolled: bool, a tf.cond for each branch (edge runtimes), else stacked weights and one body
            (servers); see `serving/branches.py`.

    Attributes:
        model: the copy.
        gated: bool, whether it has a gate: a `Hydra`.
    """

    def __init__(self, model: Hydra | Plain, unrolled: bool = False) -> None:
        super().__init__(name="inference")
        self.model = model = model.for_inference()
        for part in model.shared_parts:
            fold(part)
        self.gated = isinstance(model, Hydra)
        if self.gated:
            self.branches = (UnrolledBranches if unrolled else StackedBranches)(model)

    def gating(self, images: tf.Tensor, tau: tf.Tensor | float | None) -> Gating | None:
        """Runs stem and gater and selects the branches.

        Args:
            images: (B, S, S, 3), 0..255, uint8 or float; B > 0.
            tau: float32, () or (B,), the threshold.

        Returns:
            `Gating`; None for a plain network, which has nothing to select.
        """
        if not self.gated:
            return None
        features = self.model.stem(self.model.normalize(images))
        gate = tf.nn.softmax(self.model.gater(features))
        return Gating(features, gate, select_branches(gate, self.model.top_k, tau))

    def classify(self, gating: Gating) -> tf.Tensor:
        """Runs a Hydra's selected branches and its combiner: class probabilities (B, M) float32."""
        return tf.nn.softmax(self.model.combiner(self.branches(*gating)))

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
            return _classes(tf.nn.softmax(self.model.network(self.model.normalize(images))))
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
