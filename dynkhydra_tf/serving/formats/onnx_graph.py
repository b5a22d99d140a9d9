"""The ONNX graph of a Hydra, joined from parts that were converted each on its own.

    head       images -> features, gate, active_branches, branch, weight; where images can exit also
               class_probabilities, and of a shared trunk its map, trunk
    template   one branch: features (n, H, W, C) and its weights -> projection
    tail       combined projections -> probabilities

A Loop takes one turn for each branch that some image needs: it gathers these images' features, runs the
branch, and adds its projections to the sum. Which branch runs is told by a binary tree of Ifs, whose leaves
hold nb copies of the template's nodes, each with its own weights as constants: so ONNX Runtime lays them out
once, when it loads the file. (Weights gathered from a stack, of which it knows nothing beforehand, took a
tenth to a quarter longer.) Each weight is in the file once, and the template is converted once, whatever nb.

Axis letters: B batch, n images of a branch, N branches (nb), K most branches of an image, h w c a projection.
In the graph, maps have their channels first.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

FEATURES, PROJECTION, COMBINED = "features", "projection", "combined"  # inputs and outputs of the parts
OUTPUTS = ("probabilities", "class_id", "gate", "active_branches")


def weight_name(index: int) -> str:
    """Returns the name of the template's input for a branch's weight of that index."""
    return f"weight{index}"


class Branches(NamedTuple):
    """The template's nodes that are run, and what they take besides features.

    Attributes:
        nodes: of the template, those that depend on features.
        own: for each branch {name: array}: its weights, as these nodes take them, and the filters that all
            have alike, for ONNX Runtime lays out those alone that lie beside their convolution.
        shared: the other constants that all branches have alike.
    """

    nodes: list[onnx.NodeProto]
    own: list[dict[str, np.ndarray]]
    shared: list[onnx.TensorProto]


def join(
    head: onnx.ModelProto,
    template: onnx.ModelProto,
    tail: onnx.ModelProto,
    values: Sequence[Sequence[np.ndarray]],
    projection_shape: Sequence[int],
    weighted: bool,
) -> onnx.ModelProto:
    """Returns the model of a Hydra from images (B, S, S, 3) to `OUTPUTS`.

    Args:
        head, template, tail: the parts, see above. branch (B, K) integers are the best branches of each
            image, weight (B, K) float32 their weights in its sum. A branch of weight 0 is not run.
        values: for each branch its weights, in the order of the template's inputs.
        projection_shape: (h, w, c).
        weighted: whether projections are multiplied by their weights; else these are 0 and 1.
    """
    branches = split_template(template, values)
    height, width, channels = projection_shape
    route, constants = _sum_of_branches(branches, (channels, height, width), weighted)
    constants += [*head.graph.initializer, *_named("branch/", branches.shared)]
    constants += _named("tail/", tail.graph.initializer)
    outside = {COMBINED: COMBINED, "probabilities": "answers"}
    combiner = _prefixed(tail.graph.node, "tail/", outside)
    given = {output.name for output in head.graph.output}
    if "class_probabilities" in given:
        answering, more = _unless_all_exit(route, combiner, tail, "trunk" in given)
        constants += more
    else:
        answering = [*route, *combiner, _node("Identity", ["answers"], "probabilities")]
    classes = [
        _node("ArgMax", ["probabilities"], "best_class", axis=1, keepdims=0),
        _node("Cast", ["best_class"], "class_id", to=TensorProto.INT32),
    ]
    by_name = {output.name: output for output in (*tail.graph.output, *head.graph.output)}
    by_name["class_id"] = _info("class_id", TensorProto.INT32, ["batch"])
    graph = helper.make_graph(
        [*head.graph.node, *answering, *classes],
        "hydra",
        head.graph.input,
        [by_name[name] for name in OUTPUTS],
        constants,
    )
    return helper.make_model(graph, opset_imports=head.opset_import, ir_version=head.ir_version)


def split_template(template: onnx.ModelProto, values: Sequence[Sequence[np.ndarray]]) -> Branches:
    """Returns what is left to be run of a template where the weights are known.

    Args:
        template: the converted branch. values: for each branch its weights.
    """
    graph, running = template.graph, {FEATURES}
    nodes, before = [], []
    for node in graph.node:
        if running.intersection(node.input):
            nodes.append(node)
            running.update(node.output)
        else:
            before.append(node)
    taken = list(dict.fromkeys(name for node in nodes for name in node.input if name not in running))
    constants = {constant.name: constant for constant in graph.initializer}
    made = {name for node in before for name in node.output}
    prepared = [name for name in taken if name in made]
    inputs = [value for value in graph.input if value.name != FEATURES]
    outputs = [_info(name, TensorProto.FLOAT, None) for name in prepared]
    layout = helper.make_graph(before, "layout", inputs, outputs, graph.initializer)
    evaluator = ReferenceEvaluator(helper.make_model(layout, opset_imports=template.opset_import))
    filters = {
        name: numpy_helper.to_array(constants.pop(name))
        for node in nodes
        for name in node.input[1:2]
        if node.op_type == "Conv" and name in constants
    }
    own = []
    for weights in values:
        given = {weight_name(index): value for index, value in enumerate(weights)}
        laid_out = dict(zip(prepared, evaluator.run(None, given), strict=True)) if prepared else {}
        known = given | laid_out | filters
        own.append({name: known[name] for name in taken if name in known})
    return Branches(nodes, own, [constants[name] for name in taken if name in constants])


def _sum_of_branches(branches, shape, weighted):
    """Nodes from features, branch and weight to the combined projections (B, c, h, w), and constants."""
    constants = [_constant("shape", np.array(shape)), _constant("axis", np.array([0]))]
    nodes = [
        # (N, B), 0 where an image does not need a branch.
        _node("Cast", ["branch"], "branch_index", to=TensorProto.INT64),
        _node("Shape", ["gate"], "gate_shape"),
        _node("ConstantOfShape", ["gate_shape"], "no_weights"),
        _node("ScatterElements", ["no_weights", "branch_index", "weight"], "weights", axis=1),
        _node("Transpose", ["weights"], "of_branch", perm=[1, 0]),
        # The branches that some image needs.
        _node("ReduceMax", ["of_branch"], "most", axes=[1], keepdims=0),
        _node("NonZero", ["most"], "needed_places"),
        _node("Squeeze", ["needed_places", "route/axis"], "needed"),
        _node("Size", ["needed"], "turns"),
        _node("Shape", ["gate"], "batch_size", start=0, end=1),
        _node("Concat", ["batch_size", "route/shape"], "combined_shape", axis=0),
        _node("ConstantOfShape", ["combined_shape"], "nothing"),
    ]
    tree = _tree(branches, 0, len(branches.own), shape, "tree")
    turn = [
        _node("Gather", ["needed", "turn"], "turn_branch"),  # ()
        _node("Gather", ["of_branch", "turn_branch"], "turn_weights"),  # (B,)
        _node("NonZero", ["turn_weights"], "turn_places"),
        _node("Transpose", ["turn_places"], "turn_image", perm=[1, 0]),  # (n, 1)
        _node("GatherND", [FEATURES, "turn_image"], "turn_features"),
        *tree.node,
    ]
    projections = tree.output[0].name
    if weighted:
        turn += [
            _node("GatherND", ["turn_weights", "turn_image"], "turn_weight"),
            _node("Reshape", ["turn_weight", "route/rows"], "turn_factor"),
            _node("Mul", [projections, "turn_factor"], "turn_weighted"),
        ]
        constants.append(_constant("rows", np.array([-1, 1, 1, 1])))
        projections = "turn_weighted"
    turn += [
        _node("ScatterND", ["sum", "turn_image", projections], "next_sum", reduction="add"),
        _node("Identity", ["goes_on"], "still_goes_on"),
    ]
    maps = ["batch", *shape]
    body = helper.make_graph(
        turn,
        "turn",
        [
            _info("turn", TensorProto.INT64, []),
            _info("goes_on", TensorProto.BOOL, []),
            _info("sum", TensorProto.FLOAT, maps),
        ],
        [_info("still_goes_on", TensorProto.BOOL, []), _info("next_sum", TensorProto.FLOAT, maps)],
        tree.initializer,
    )
    return [*nodes, _node("Loop", ["turns", "", "nothing"], COMBINED, body=body)], constants


def _tree(branches, first, end, shape, place):
    """A graph that runs one of the branches first..end-1, "turn_branch", on "turn_features"."""
    if end - first == 1:
        prefix = f"branch{first}/"
        outside = {FEATURES: "turn_features", **{c.name: f"branch/{c.name}" for c in branches.shared}}
        nodes = _prefixed(branches.nodes, prefix, outside)
        weights = [numpy_helper.from_array(v, prefix + name) for name, v in branches.own[first].items()]
        output = _info(prefix + PROJECTION, TensorProto.FLOAT, ["n", *shape])
        return helper.make_graph(nodes, f"branch{first}", [], [output], weights)
    middle = (first + end) // 2
    low, high = (
        _tree(branches, *ends, shape, place + digit)
        for *ends, digit in ((first, middle, "0"), (middle, end, "1"))
    )
    nodes = [
        _node("Less", ["turn_branch", f"route/{place}_middle"], f"{place}_low"),
        _node("If", [f"{place}_low"], f"{place}_projection", then_branch=low, else_branch=high),
    ]
    output = _info(f"{place}_projection", TensorProto.FLOAT, ["n", *shape])
    return helper.make_graph(nodes, place, [], [output], [_constant(f"{place}_middle", np.array(middle))])


def _unless_all_exit(route, combiner, tail, trunk):
    """Nodes that combine and answer where an image at least goes on beyond the exit, and constants."""
    (answers,) = tail.graph.output
    classes = answers.type.tensor_type.shape.dim[1].dim_value
    for node in combiner:
        node.input[:] = ["going_on" if name == COMBINED else name for name in node.input]
    beyond = [
        *route,
        *([_node("Add", [COMBINED, "trunk"], "with_trunk")] if trunk else []),
        _node("NonZero", ["active_branches"], "places"),
        _node("Transpose", ["places"], "image", perm=[1, 0]),  # (n, 1)
        _node("GatherND", ["with_trunk" if trunk else COMBINED, "image"], "going_on"),
        *combiner,
        _node("ScatterND", ["class_probabilities", "image", "answers"], "answers_of_all"),
    ]
    alone = [_node("Identity", ["class_probabilities"], "answers_of_exit")]
    graphs = {
        f"{name}_branch": helper.make_graph(
            nodes, name, [], [_info(nodes[-1].output[0], TensorProto.FLOAT, ["batch", classes])]
        )
        for name, nodes in (("then", beyond), ("else", alone))
    }
    nodes = [
        _node("ReduceMax", ["active_branches"], "most_active", keepdims=0),
        _node("Greater", ["most_active", "route/none"], "any_goes_on"),
        _node("If", ["any_goes_on"], "probabilities", **graphs),
    ]
    return nodes, [_constant("none", np.int32(0))]


# === Pieces ===


def _prefixed(
    nodes: Iterable[onnx.NodeProto], prefix: str, outside: Mapping[str, str]
) -> list[onnx.NodeProto]:
    """Copies of nodes, all names with a prefix but for those that are mapped to names of outside."""

    def renamed(name):
        return outside.get(name, prefix + name if name else "")

    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:], copy.output[:] = map(renamed, node.input), map(renamed, node.output)
        copy.name = prefix + node.name
        copies.append(copy)
    return copies


def _named(prefix, constants):
    copies = []
    for constant in constants:
        copy = onnx.TensorProto()
        copy.CopyFrom(constant)
        copy.name = prefix + constant.name
        copies.append(copy)
    return copies


def _node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], name=f"route/{output}", **attributes)


def _constant(name, value):
    return numpy_helper.from_array(np.asarray(value), f"route/{name}")


def _info(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)
