"""The messages of TensorFlow Serving's gRPC protocol that a client needs, without its package.

tensorflow-serving-api brings all of TensorFlow along; these few messages, as they go over the wire, need
protobuf alone. Sources: tensorflow_serving/apis/{model,predict,get_model_status}.proto and
tensorflow/core/framework/{tensor,tensor_shape,types}.proto. They stand in a pool of their own, beside
TensorFlow's where that is imported. Maps are repeated entries, which is what they are on the wire.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from google.protobuf.message import Message

PREDICT = "/tensorflow.serving.PredictionService/Predict"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
MOST_VALUES = 64 * 1024 * 1024  # of a tensor that is taken

# {message: {field: (number, type, repeated)}}; types with a capital are messages, or the one enum.
_MESSAGES = {
    "Int64": {"value": (1, "int64", False)},
    "ModelSpec": {
        "name": (1, "string", False),
        "version": (2, "Int64", False),
        "signature_name": (3, "string", False),
        "version_label": (4, "string", False),
    },
    "Dim": {"size": (1, "int64", False), "name": (2, "string", False)},
    "Shape": {"dim": (2, "Dim", True), "unknown_rank": (3, "bool", False)},
    "Tensor": {
        "dtype": (1, "int32", False),
        "tensor_shape": (2, "Shape", False),
        "tensor_content": (4, "bytes", False),
        "float_val": (5, "float", True),
        "double_val": (6, "double", True),
        "int_val": (7, "int32", True),
        "string_val": (8, "bytes", True),
        "int64_val": (10, "int64", True),
        "bool_val": (11, "bool", True),
    },
    "Named": {"key": (1, "string", False), "value": (2, "Tensor", False)},
    "PredictRequest": {"model_spec": (1, "ModelSpec", False), "inputs": (2, "Named", True)},
    "PredictResponse": {"outputs": (1, "Named", True)},
    "StatusRequest": {"model_spec": (1, "ModelSpec", False)},
    "StatusProto": {"error_code": (1, "int32", False), "error_message": (2, "string", False)},
    "VersionStatus": {
        "version": (1, "int64", False),
        "state": (2, "State", False),
        "status": (3, "StatusProto", False),
    },
    "StatusResponse": {"model_version_status": (1, "VersionStatus", True)},
}
_STATES = {"UNKNOWN": 0, "START": 10, "LOADING": 20, "AVAILABLE": 30, "UNLOADING": 40, "END": 50}

# TensorFlow's number of a dtype: its name in numpy, its code in a buffer, the field of its values.
_DTYPES = {
    1: ("float32", "f", "float_val"),
    2: ("float64", "d", "double_val"),
    3: ("int32", "i", "int_val"),
    4: ("uint8", "B", "int_val"),
    5: ("int16", "h", "int_val"),
    6: ("int8", "b", "int_val"),
    7: ("object", None, "string_val"),
    9: ("int64", "q", "int64_val"),
    10: ("bool", "?", "bool_val"),
    17: ("uint16", "H", "int_val"),
}
_CODES = {name: code for code, (name, _, _) in _DTYPES.items()}
_STRING = 7


@functools.cache
def messages() -> SimpleNamespace:
    """The classes of the messages, by name; protobuf is imported now."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="dynkhydra_tf/serving.proto", syntax="proto3")
    states = file.enum_type.add(name="State")
    for name, number in _STATES.items():
        states.value.add(name=name, number=number)
    kinds = descriptor_pb2.FieldDescriptorProto
    for message, fields in _MESSAGES.items():
        made = file.message_type.add(name=message)
        for name, (number, kind, repeated) in fields.items():
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            field = made.field.add(name=name, number=number, label=label)
            if kind[0].isupper():
                field.type = kinds.TYPE_ENUM if kind == "State" else kinds.TYPE_MESSAGE
                field.type_name = f".{kind}"
            else:
                field.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    find = pool.FindMessageTypeByName
    return SimpleNamespace(**{name: message_factory.GetMessageClass(find(name)) for name in _MESSAGES})


# === Tensors ===


def to_tensor(values: Any) -> "Message":
    """A list or an array as a tensor: arrays with the dtype that they have.

    Of lists, floats become float32, ints int32, str and bytes strings, as in TensorFlow.

    Raises:
        ValueError: it has no dtype that can be sent, or is a list of lists of several lengths.
    """
    if not hasattr(values, "dtype"):
        if values and all(isinstance(value, (bytes, str)) for value in values):
            return _tensor(_STRING, (len(values),), string_val=map(_encoded, values))
        if values and all(type(value) is float for value in values):
            return _tensor(1, (len(values),), float_val=values)
        import numpy as np

        values = np.asarray(values)
        values = values.astype({"f": np.float32, "i": np.int32}.get(values.dtype.kind, values.dtype))
    if values.dtype.kind in "OSU":
        return _tensor(_STRING, values.shape, string_val=map(_encoded, values.ravel().tolist()))
    if values.dtype.name not in _CODES:
        raise ValueError(f"a dtype that can be sent is needed. Received: {values.dtype}")
    content = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    return _tensor(_CODES[values.dtype.name], values.shape, tensor_content=content)


def _encoded(value):
    return value if isinstance(value, bytes) else str(value).encode()


def _tensor(dtype, shape, **values):
    tensor = messages().Tensor(dtype=dtype, **values)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


def _read(tensor):
    """(numpy's dtype name, shape, a flat list or buffer of as many values) of a tensor that came."""
    name, code, field = _DTYPES.get(tensor.dtype, (None, None, None))
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    count = math.prod(shape)
    if name is None or any(size < 0 for size in shape) or not 0 <= count <= MOST_VALUES:
        raise ValueError(f"a tensor of dtype {tensor.dtype} and shape {shape}")
    if tensor.tensor_content:
        values: Sequence = memoryview(tensor.tensor_content).cast(code)  # TypeError: strings have no code
    else:
        values = list(getattr(tensor, field))
        if values and len(values) < count:  # the last one stands for the rest
            values += values[-1:] * (count - len(values))
    if len(values) != count:
        raise ValueError(f"{len(values)} values in a tensor of shape {shape}")
    return name, shape, values


def to_array(tensor: "Message") -> "np.ndarray":
    """A tensor that came as an array, strings as bytes objects.

    Raises:
        ValueError, TypeError: it is none.
    """
    import numpy as np

    name, shape, values = _read(tensor)
    if name == "object":
        array = np.empty(len(values), object)
        array[:] = values
        return array.reshape(shape)
    return np.array(values, name).reshape(shape)


def to_list(tensor: "Message") -> list:
    """A tensor that came as nested lists, strings as str, or bytes where they are no UTF-8.

    Raises:
        ValueError, TypeError: it is none, or has no batch axis.
    """
    name, shape, values = _read(tensor)
    if not shape:
        raise ValueError("a tensor without a batch axis")
    flat = list(values) if name != "object" else [_decoded(value) for value in values]
    for size in reversed(shape[1:]):
        count = len(flat) // size if size else math.prod(shape[:-1])
        flat = [flat[row * size : (row + 1) * size] for row in range(count)]
        shape = shape[:-1]
    return flat


def _decoded(value):
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def named(tensors: Mapping[str, Any]) -> list["Message"]:
    """Inputs by name as a request has them."""
    return [messages().Named(key=name, value=to_tensor(values)) for name, values in tensors.items()]
