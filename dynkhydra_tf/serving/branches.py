"""The branches at inference: folded, and each run only where some image selected it.

Two layouts of the same computation. `StackedBranches`, for servers: the weights of all branches lie in one
variable and one body runs whichever branch is asked for, so that neither the graph, nor its load time, nor
the cost of a branch that is not run grows with nb. `UnrolledBranches`, for edge runtimes: a tf.cond for
each branch, with weights that are constants to the converter, which can then quantise them. (ONNX takes
its `template` and makes its own conditions, see `formats/onnx_graph.py`.)

Axis letters: B batch, N branches (nb), K most branches of an image, R routes (pairs of image and branch),
H W C feature map of the stem, h w c projection of a branch, P floats of one branch.
"""

import keras
import numpy as np
import tensorflow as tf

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.folding import Folding, constants
from dynkhydra_tf.gating import Ranking, combination_weights
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.routing import Routes, combine

# TensorFlow shares the memory of a slice that begins and ends at a multiple of 64 bytes, and copies others.
_ALIGNED = 16  # floats


class StackedBranches(tf.Module):
    """All branches as one variable (N, P/16, 16), of which a branch's weights are a slice that is not copied.

    One image: K slots, one inside the other; each but the first under its own tf.cond, "is there one more
    branch?", their projections added up, with nothing to gather, to scatter or to sort. A batch: a loop over
    the branches that some image needs, each on its own images. The variable is read once, before: TensorFlow
    runs functions that read one in turn, and these side by side.

    Args:
        model: `Hydra` in float32.
    """

    def __init__(self, model: Hydra) -> None:
        super().__init__(name="branches")
        self.top_k, self.combine = model.top_k, model.combine
        self.projection_shape = model.branches.projection_shape
        self._body, self._weights, values = _folded(model.branches)
        if others := [f"{v.path} ({v.dtype})" for v in self._weights if v.dtype != "float32"]:
            raise UserError(
                "The branches are served from one array of their weights, which must all be float32. "
                f"Received: {', '.join(others)}"
            )
        rows = [np.concatenate([_aligned(weight) for weight in own]) for own in values]
        self._sizes = [-(-weight.value.shape.num_elements() // _ALIGNED) for weight in self._weights]
        self._rows = tf.Variable(np.stack(rows), trainable=False, name="branches")
        stack = tf.TensorSpec(self._rows.shape, tf.float32)
        features = tf.TensorSpec(model.branches.features_shape, tf.float32)
        # Runs one branch ((1,) int32) on features (n, H, W, C); a function, so that the file holds it once.
        self._run = tf.function(
            self._trace, input_signature=[stack, tf.TensorSpec((1,), tf.int32), features], autograph=False
        ).get_concrete_function()

    def ready(self) -> tf.Tensor:
        """Returns the variable's value: to be read before a tf.cond within which the branches are called."""
        return tf.identity(self._rows)

    def __call__(
        self,
        features: tf.Tensor,
        gate: tf.Tensor,
        ranking: Ranking,
        ready: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns the combined projections of a batch, in which some image at least has a branch.

        Args:
            features: (B, H, W, C) float32, B > 0.
            gate: (B, N) float32, probabilities.
            ranking: `Ranking` of them.
            ready: what `ready` returned; None: it is called here.

        Returns:
            (B, h, w, c) float32; zeros for an image without a branch.
        """
        stack = self.ready() if ready is None else ready
        combined = tf.cond(
            is_one_image(features),
            lambda: self._one_image(stack, features, ranking),
            lambda: self._batch(stack, features, gate, ranking),
        )
        return tf.ensure_shape(combined, (None, *self.projection_shape))

    def _trace(self, stack, branch, features):
        # stack[branch[0]]; it would compute an end, of which nothing is used.
        row = tf.raw_ops.StridedSlice(input=stack, begin=branch, end=branch, strides=[1], shrink_axis_mask=1)
        parts = tf.split(row, self._sizes)
        values = [
            tf.reshape(tf.reshape(part, [-1])[: weight.value.shape.num_elements()], weight.shape)
            for part, weight in zip(parts, self._weights, strict=True)
        ]
        with keras.StatelessScope(state_mapping=list(zip(self._weights, values, strict=True))):
            return self._body(features)

    def _one_image(self, stack, features, ranking):
        # No mask over all branches, no routes: the image's branches are the first ones of its ranking.
        # (Never reshaped: from [None, K] -> [K] Grappler infers, for all of the graph, that B is 1.)
        weights = None
        if self.combine != "sum":
            weights = combination_weights(ranking.probability, ranking.kept, self.combine)

        def slot(rank, combined):
            projection = self._run(stack, ranking.branch[0, rank : rank + 1], features)
            if weights is not None:
                projection *= weights[0, rank]
            combined = projection if combined is None else combined + projection
            if rank + 1 == self.top_k:
                return combined
            return tf.cond(ranking.kept[0, rank + 1], lambda: slot(rank + 1, combined), lambda: combined)

        return slot(0, None)

    def _batch(self, stack, features, gate, ranking):
        selected = ranking.selected(gate.shape[-1])
        weights = combination_weights(gate, selected, self.combine)
        # Sorted by branch, the rows of one branch are a slice, and that costs nothing.
        selected = tf.cast(selected, tf.int32)
        branch, image = tf.unstack(tf.where(tf.transpose(selected)), axis=1)  # (R,) each
        rows = tf.gather(features, image)
        count = tf.reduce_sum(selected, axis=0)
        needed = tf.cast(tf.where(count > 0)[:, 0], tf.int32)
        end = tf.gather(tf.cumsum(count), needed)
        begin = end - tf.gather(count, needed)
        turns = tf.size(needed)

        def run(turn, projections):
            own = rows[begin[turn] : end[turn]]
            return turn + 1, projections.write(turn, self._run(stack, needed[turn : turn + 1], own))

        # Collected, not added up on the way: each addition would copy the sum.
        shape = (None, *self.projection_shape)
        projections = tf.TensorArray(tf.float32, turns, infer_shape=False, element_shape=shape)
        _, projections = tf.while_loop(lambda turn, _: turn < turns, run, (0, projections))
        projections = tf.ensure_shape(projections.concat(), shape)
        return combine(projections, Routes(projections, image, branch), weights)


def is_one_image(features: tf.Tensor) -> tf.Tensor:
    """Returns whether features (B, H, W, C) are those of one image: () bool."""
    return tf.shape(features)[0] == 1


class UnrolledBranches(tf.Module):
    """N folded branches, each under its own tf.cond with the gather of its images inside.

    Args:
        model: `Hydra` in float32.

    Attributes:
        template: a folded branch as a Keras layer, its variables, and for each branch the values of these.
    """

    def __init__(self, model: Hydra) -> None:
        super().__init__(name="branches")
        self.combine = model.combine
        self.projection_shape = model.branches.projection_shape
        self._body, self._weights, self._values = self.template = _folded(model.branches)

    def ready(self) -> None:
        """Nothing: the weights are constants."""

    def __call__(
        self, features: tf.Tensor, gate: tf.Tensor, ranking: Ranking, ready: None = None
    ) -> tf.Tensor:
        """Returns the combined projections (B, h, w, c) of a batch; see `StackedBranches`."""
        selected = ranking.selected(gate.shape[-1])
        weights = combination_weights(gate, selected, self.combine)
        needed = tf.cast(selected, tf.int32)
        combined = tf.zeros((tf.shape(features)[0], *self.projection_shape))
        for index, own in enumerate(self._values):

            def add(index=index, own=own, combined=combined):
                image = tf.where(needed[:, index])[:, 0]
                # tf2onnx can lose the shapes of what comes into this function, and a convolution needs it.
                rows = tf.ensure_shape(tf.gather(features, image), features.shape)
                with constants(zip(self._weights, own, strict=True)):
                    projections = self._body(rows)
                if self.combine != "sum":
                    projections *= tf.gather(weights[:, index], image)[:, None, None, None]
                return tf.tensor_scatter_nd_add(combined, image[:, None], projections)

            used = tf.reduce_sum(needed[:, index]) > 0
            combined = tf.cond(used, add, lambda combined=combined: combined)
        return tf.ensure_shape(combined, (None, *self.projection_shape))


def _folded(branches):
    """Returns a folded branch as a Keras layer, its variables, and for each branch the values of these."""
    body = branches.branch(0)
    folding = Folding(body)
    values = []
    for index in range(branches.num_branches):
        branches.load(body, index)
        folding.apply()
        values.append([variable.numpy() for variable in folding.variables])
    return body, folding.variables, values


def _aligned(weight):
    """A weight as rows of `_ALIGNED` floats, (n, 16), zeros at the end."""
    return np.pad(weight.ravel(), (0, -weight.size % _ALIGNED)).reshape(-1, _ALIGNED)
