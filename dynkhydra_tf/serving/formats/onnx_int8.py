"""int8 for ONNX: convolutions and what is between them in whole numbers, by the ranges seen on images.

ONNX Runtime's quantiser of static ranges does it (QDQ: QuantizeLinear and DequantizeLinear around each op,
a scale for each filter), but it does not look into a Loop or an If, where a Hydra's branches lie. So each
body of these that holds something to quantise is taken out as a model of its own, whose inputs are what it
uses from around it, with the values that these have on the images that run it, in a Loop turn by turn; it is
quantised and put back. One that no image runs stays as it is.
"""

import graphlib
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynkhydra_tf.quiet import errors_alone
from dynkhydra_tf.serving.formats.single_file import installed

if TYPE_CHECKING:
    import onnx

# What is quantised. The gate decides by small differences, and its layer of logits costs nothing.
OPS = ("Conv", "Relu", "Add", "AveragePool", "MaxPool", "GlobalAveragePool", "Pad", "Concat")
_BATCH = 32  # images of a request for calibration

Feed = Mapping[str, np.ndarray]  # a value for each input of a model


def quantized(content: bytes, images: np.ndarray) -> bytes:
    """Quantises a model.

    Args:
        content: an ONNX file with the one input `images`.
        images: (n, S, S, 3) uint8, which tell the ranges.

    Returns:
        An ONNX file with the same inputs and outputs.

    Raises:
        UserError: a package is not installed.
    """
    onnx = installed("onnx", "onnx")
    installed("onnxruntime.quantization", "onnx")
    feeds = [{"images": images[start : start + _BATCH]} for start in range(0, len(images), _BATCH)]
    with errors_alone():  # not the advice to prepare the model, which is prepared
        model = _quantized(onnx.load_from_string(content), feeds)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _quantized(model: "onnx.ModelProto", feeds: Sequence[Feed]) -> "onnx.ModelProto":
    """A model, quantised; `feeds` are requests that tell the ranges."""
    bodies = dict(_bodies(model, feeds))
    here = any(node.op_type in OPS for node in model.graph.node)
    made = _quantize_flat(model, feeds) if here else model
    for node in made.graph.node:
        for attribute in node.attribute:
            if (node.name, attribute.name) in bodies:
                attribute.g.CopyFrom(bodies[node.name, attribute.name])
    _sort(made.graph)
    return made


def _quantize_flat(model, feeds):
    """ONNX Runtime's quantiser, which leaves every body as it is."""
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        """Gives the feeds one after the other."""

        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> Feed | None:
            """The next one."""
            return next(self._feeds, None)

    with tempfile.TemporaryDirectory() as directory:
        given, made = (pathlib.Path(directory) / f"{name}.onnx" for name in ("float32", "int8"))
        onnx.save(model, given)
        quantization.quantize_static(
            given,
            made,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=[*OPS],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx.load(made)


# === Inside of a Loop or an If ===


def _bodies(model: "onnx.ModelProto", feeds: Sequence[Feed]) -> Iterator[tuple[tuple[str, str], Any]]:
    """((node's name, attribute's name), quantised graph) of each body that can be quantised."""
    from onnx import numpy_helper

    constants = {value.name: value for value in model.graph.initializer}
    bodies = [
        (node, attribute.name, attribute.g, _taken(attribute.g))
        for node in model.graph.node
        if node.op_type in ("If", "Loop")
        for attribute in node.attribute
        if _has_work(attribute.g)
    ]
    asked = {name for node, _, _, taken in bodies for name in (*node.input, *taken)} - {""}
    known = {name: numpy_helper.to_array(constants[name]) for name in asked & constants.keys()}
    values = [known | each for each in _values(model, sorted(asked - known.keys()), feeds)] if bodies else []
    for node, which, graph, taken in bodies:
        inputs = [name for name in taken if name not in constants]
        body = _alone(model, graph, [constants[name] for name in taken if name in constants])
        body.graph.input.extend(_declared(name, values[0][name]) for name in inputs)
        if node.op_type == "Loop":
            runs = [turn for each in values for turn in _turns(node, body, inputs, each)]
        else:
            chosen = [each for each in values if bool(each[node.input[0]]) == (which == "then_branch")]
            runs = [{name: each[name] for name in inputs} for each in chosen]
        if runs:
            made = _quantized(body, runs)
            own = len(graph.input)
            yield (node.name, which), _renamed(made.graph, f"{node.name}/{which}/", inputs, own)


def _alone(model, graph, constants):
    """A body as a model of its own, with the constants that it uses from around it."""
    import onnx

    alone = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph)
    alone.graph.initializer.extend(constants)
    return alone


def _turns(loop, body, inputs, values):
    """What a Loop's body is given turn by turn, the values around the Loop being known."""
    import onnxruntime

    session = onnxruntime.InferenceSession(body.SerializeToString())
    turn, goes_on, *carried = (value.name for value in body.graph.input[: len(loop.input)])
    most, first, *start = (values[name] if name else None for name in loop.input)
    around, state = {name: values[name] for name in inputs}, start
    number, going = 0, first is None or bool(first)
    while going and (most is None or number < most):
        feed = {turn: np.array(number), goes_on: np.array(True), **dict(zip(carried, state, strict=True))}
        yield feed | around
        continued, *state = session.run(None, feed | around)[: 1 + len(carried)]
        number, going = number + 1, first is None or bool(continued)


def _sort(graph: "onnx.GraphProto") -> None:
    """Puts the nodes in an order in which they can run; the quantiser does not see what bodies use."""
    maker = {name: place for place, node in enumerate(graph.node) for name in node.output}
    needs = {
        place: {maker[name] for name in _used(node) if name in maker} for place, node in enumerate(graph.node)
    }
    nodes = [graph.node[place] for place in graphlib.TopologicalSorter(needs).static_order()]
    ordered = type(graph)(node=nodes)
    del graph.node[:]
    graph.node.extend(ordered.node)


def _used(node):
    """The names that a node uses, in its bodies too."""
    return [*node.input, *(name for attribute in node.attribute for name in _taken(attribute.g))]


def _has_work(graph):
    return any(
        node.op_type in OPS or any(_has_work(attribute.g) for attribute in node.attribute)
        for node in graph.node
    )


def _taken(graph):
    """The names that a graph uses from around it, each once."""
    known = {"", *(value.name for value in graph.initializer), *(value.name for value in graph.input)}
    taken: dict[str, None] = {}
    for node in graph.node:
        taken.update(dict.fromkeys(name for name in _used(node) if name not in known))
        known.update(node.output)
    return [*taken, *(value.name for value in graph.output if value.name not in known | taken.keys())]


def _values(model, names, feeds):
    """For each feed the values that some names of a model have, inputs among them."""
    import onnx
    import onnxruntime

    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    there = {value.name for value in (*wide.graph.input, *wide.graph.output)}
    wide.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    session = onnxruntime.InferenceSession(wide.SerializeToString())
    outputs = [value.name for value in session.get_outputs()]
    return [{**feed, **dict(zip(outputs, session.run(outputs, feed), strict=True))} for feed in feeds]


def _declared(name, value):
    """An input with the type of a value, and its sizes but the first one's."""
    from onnx import helper

    shape = [None, *value.shape[1:]] if value.ndim else []
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), shape)


def _renamed(graph, prefix, taken, own):
    """A model's graph as a body: of its inputs the first `own`, and no name that may occur around it."""
    import onnx

    made = onnx.GraphProto()
    made.CopyFrom(graph)
    del made.input[own:], made.value_info[:]

    def rename(names):
        for place, name in enumerate(names):
            if name and name not in taken:
                names[place] = prefix + name

    def rename_in(inner):
        for value in (*inner.initializer, *inner.input, *inner.output, *inner.value_info):
            if value.name not in taken:
                value.name = prefix + value.name
        for node in inner.node:
            rename(node.input)
            rename(node.output)
            for attribute in node.attribute:
                rename_in(attribute.g)

    rename_in(made)
    return made
