"""The inference graph: a trained Hydra as it is served.

No heads, batch normalisation folded into the convolutions, float32, and branches that run only where an
image needs them. Axis letters: B batch, S side of an image, N branches (nb), M classes.
"""

from typing import NamedTuple

import tensorflow as tf

from dynkhydra_tf.folding import fold
from dynkhydra_tf.gating import select_branches
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
    """A trained `Hydra` made ready to serve; its weights are copies.

    Args:
        model: `Hydra`.
        unrolled: bool, a tf.cond for each branch (edge runtimes), else stacked weights and one body
            (servers); see `serving/branches.py`.
    """

    def __init__(self, model, unrolled=False):
        super().__init__(name="inference")
        model = model.for_inference()
        for part in (model.stem, model.gater, model.combiner):
            fold(part)
        self.model = model
        self.branches = (UnrolledBranches if unrolled else StackedBranches)(model)

    def gating(self, images, tau):
        """Runs stem and gater and selects the branches.

        Args:
            images: (B, S, S, 3), 0..255, uint8 or float; B > 0.
            tau: float32, () or (B,), the threshold.

        Returns:
            `Gating`.
        """
        features = self.model.stem(self.model.normalize(images))
        gate = tf.nn.softmax(self.model.gater(features))
        return Gating(features, gate, select_branches(gate, self.model.top_k, tau))

    def classify(self, gating):
        """Runs the selected branches and the combiner: class probabilities (B, M) float32."""
        return tf.nn.softmax(self.model.combiner(self.branches(*gating)))
