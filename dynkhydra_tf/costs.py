"""FLOPs and parameters of a model by part.

FLOPs are 2 x the multiply-adds of convolutions and dense layers for one image, as in the paper's
tables; element-wise operations are not counted. cost(image) = stem + gater + lambda branch + combiner.
"""

import keras
import tensorflow as tf

from dynkhydra_tf.backbones.blocks import classifier


def count_flops(layer, input_shape):
    """Returns the FLOPs of a Keras layer or model for one example.

    Counted on the traced graph, so that any layer will do, whatever it is composed of.

    Args:
        layer: a built Keras layer.
        input_shape: its input's shape without the batch axis.
    """
    traced = tf.function(lambda x: layer(x, training=False)).get_concrete_function(
        tf.TensorSpec((1, *input_shape), tf.float32)
    )
    return sum(_flops(op) for op in traced.graph.get_operations())


def _flops(op):
    if op.type == "Conv2D":
        height, width, channels_in, _ = op.inputs[1].shape
        return 2 * height * width * channels_in * op.outputs[0].shape.num_elements()
    if op.type == "DepthwiseConv2dNative":
        height, width, _, _ = op.inputs[1].shape
        return 2 * height * width * op.outputs[0].shape.num_elements()
    if op.type == "MatMul":
        inner = op.inputs[0].shape[0 if op.get_attr("transpose_a") else 1]
        return 2 * inner * op.outputs[0].shape.num_elements()
    return 0


def hydra_costs(model):
    """Returns what a `Hydra` costs by part.

    Returns:
        {"flops": {"stem", "gater", "branch", "combiner"}, "parameters": {"stem", "gater", "branches",
        "combiner", "heads"}}, ints. A branch's FLOPs are those of one branch; parameters are those of
        all. The heads are not part of inference, nor of its FLOPs.
    """
    branch = model.branches.branch(0)
    features_shape = model.stem.compute_output_shape((None, *model.backbone.input_shape))[1:]
    return {
        "flops": {
            "stem": count_flops(model.stem, model.backbone.input_shape),
            "gater": count_flops(model.gater, features_shape),
            "branch": count_flops(branch, features_shape),
            "combiner": count_flops(model.combiner, model.branches.projection_shape),
        },
        "parameters": {
            "stem": model.stem.count_params(),
            "gater": model.gater.count_params(),
            "branches": model.branches.count_params(),
            "combiner": model.combiner.count_params(),
            "heads": model.heads.count_params() if model.heads else 0,
        },
    }


def inference_flops(flops, active_branches):
    """Returns the FLOPs of an image that runs `active_branches` branches (a mean, lambda, is fine)."""
    return flops["stem"] + flops["gater"] + active_branches * flops["branch"] + flops["combiner"]


def plain_costs(backbone, num_classes):
    """Returns {"flops", "parameters"} of the plain network of the same depth, its classifier included."""
    network = keras.Sequential([backbone.plain(), *classifier(num_classes)])
    network.build((None, *backbone.input_shape))
    return {"flops": count_flops(network, backbone.input_shape), "parameters": network.count_params()}
