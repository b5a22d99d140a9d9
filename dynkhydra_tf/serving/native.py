"""A SavedModel run by TensorFlow's C API, the loader of TensorFlow Serving, without tensorflow in Python.

    python dynkhydra_tf/serving/native.py served/digits/1       # prints its signatures

This file imports nothing of this package and no tensorflow, only numpy and the shared library in
TensorFlow's wheel. It proves that an export works where there is no Python TensorFlow, and it measures
without the cost of calling TensorFlow from Python. B is the batch axis.
"""

import ctypes
import importlib.util
import os
import pathlib
import sys
from typing import NamedTuple

import numpy as np

# TF_DataType (tensorflow/c/tf_datatype.h) to numpy; strings are arrays of bytes objects.
DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 7: object, 9: np.int64, 10: np.bool_}
_STRING = 7
_STRING_BYTES = 24  # sizeof(TF_TString)
_P, _N, _B, _I = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_int


class Spec(NamedTuple):
    """An input or output of a signature.

    Attributes:
        tensor: str, its name in the graph, such as "serving_default_images:0".
        dtype: numpy dtype; object for strings.
        shape: tuple of int, -1 where any size will do; None for any rank.
    """

    tensor: str
    dtype: type
    shape: tuple | None


class Signature(NamedTuple):
    """Inputs and outputs by name, each a `Spec`."""

    inputs: dict
    outputs: dict


class ModelError(Exception):
    """What TensorFlow said when it could not load a model or answer a request."""


class _Buffer(ctypes.Structure):
    _fields_ = (("data", _P), ("length", _N), ("deallocator", _P))


class _Output(ctypes.Structure):
    _fields_ = (("operation", _P), ("index", _I))


class SavedModel:
    """A loaded SavedModel; a context manager. `run` may be called by several threads at once.

    Args:
        path: a version directory, the one with saved_model.pb.
        threads: int, threads for one op and for ops side by side; 0 for as many as there are cores.
        library: path of the shared library; default, the one of the installed tensorflow.

    Attributes:
        signatures: dict of `Signature` by name.

    Raises:
        ModelError: TensorFlow cannot load it, or there is no library.
    """

    def __init__(self, path, threads=0, library=None):
        self._tf = _library(library)
        self._session = None
        self._status = self._tf.TF_NewStatus()
        self._graph = self._tf.TF_NewGraph()
        options, meta = self._tf.TF_NewSessionOptions(), self._tf.TF_NewBuffer()
        try:
            config = b"\x10%c\x28%c" % (threads, threads)  # ConfigProto: intra-op, inter-op
            self._tf.TF_SetConfig(options, config, len(config), self._status)
            _check(self._tf, self._status)
            tags = (_B * 1)(b"serve")
            self._session = self._tf.TF_LoadSessionFromSavedModel(
                options, None, os.fsencode(path), tags, 1, self._graph, meta, self._status
            )
            _check(self._tf, self._status)
            content = ctypes.cast(meta, ctypes.POINTER(_Buffer)).contents
            self.signatures = _signatures(ctypes.string_at(content.data, content.length))
        except ModelError:
            self.close()
            raise
        finally:
            self._tf.TF_DeleteSessionOptions(options)
            self._tf.TF_DeleteBuffer(meta)

    def __enter__(self):
        """Returns itself."""
        return self

    def __exit__(self, *error):
        """Closes it."""
        self.close()

    def close(self):
        """Gives its memory back; may be called twice."""
        if self._session:
            self._tf.TF_DeleteSession(self._session, self._status)
        if self._graph:
            self._tf.TF_DeleteGraph(self._graph)
            self._tf.TF_DeleteStatus(self._status)
        self._session = self._graph = None

    def run(self, inputs, signature="serving_default"):
        """Answers one request.

        Args:
            inputs: dict of arrays (or what `np.asarray` takes), by the signature's input names; sent
                with the dtype and shape they have.
            signature: str, its name.

        Returns:
            dict of arrays by the signature's output names; strings as bytes objects.

        Raises:
            ModelError: an unknown signature, inputs that are missing, unknown or of a dtype that
                TensorFlow does not have, or TensorFlow's error.
        """
        with self.request(inputs, signature) as request:
            request.run()
            return request.outputs()

    def request(self, inputs, signature="serving_default"):
        """Returns the `Request` for `run`'s arguments, to be run as often as one likes."""
        if signature not in self.signatures:
            raise ModelError(f"signature must be one of {sorted(self.signatures)}. Received: {signature!r}")
        spec = self.signatures[signature]
        if set(inputs) != set(spec.inputs):
            raise ModelError(
                f"{signature} takes the inputs {sorted(spec.inputs)}. Received: {sorted(inputs)}"
            )
        return Request(self._tf, self._session, self._graph, spec, inputs)


class Request:
    """Inputs that lie ready in TensorFlow's memory; a context manager. Not for two threads at once.

    A clock around `run` measures TensorFlow and not ctypes.
    """

    def __init__(self, tf, session, graph, signature, inputs):
        self._tf, self._session = tf, session
        self._status = tf.TF_NewStatus()
        arrays = {name: _as_array(inputs[name], spec.dtype) for name, spec in signature.inputs.items()}
        for name, array in arrays.items():
            if _code(array) is None:
                raise ModelError(f"{name} has a dtype that TensorFlow does not know: {array.dtype}")

        def places(specs):
            found = [spec.tensor.rsplit(":", 1) for spec in specs.values()]
            operations = [(tf.TF_GraphOperationByName(graph, name.encode()), int(i)) for name, i in found]
            return (_Output * len(specs))(*(_Output(operation, index) for operation, index in operations))

        self._names = list(signature.outputs)
        self._feeds, self._fetches = places(signature.inputs), places(signature.outputs)
        self._strings = [array.size if _code(array) == _STRING else 0 for array in arrays.values()]
        self._inputs = (_P * len(arrays))(*(self._tensor(array) for array in arrays.values()))
        self._results = (_P * len(self._names))()

    def __enter__(self):
        """Returns itself."""
        return self

    def __exit__(self, *error):
        """Gives its memory back."""
        for tensor, strings in zip(self._inputs, self._strings, strict=True):
            first = self._tf.TF_TensorData(tensor) or 0
            for place in range(first, first + strings * _STRING_BYTES, _STRING_BYTES):
                self._tf.TF_StringDealloc(place)
            self._tf.TF_DeleteTensor(tensor)
        self._forget_results()
        self._tf.TF_DeleteStatus(self._status)

    def run(self):
        """Runs the model once.

        Raises:
            ModelError: TensorFlow's error.
        """
        self._forget_results()
        self._tf.TF_SessionRun(
            self._session,
            None,
            self._feeds,
            self._inputs,
            len(self._feeds),
            self._fetches,
            self._results,
            len(self._fetches),
            None,
            0,
            None,
            self._status,
        )
        _check(self._tf, self._status)

    def outputs(self):
        """Returns what the last `run` gave: a dict of arrays by output name, strings as bytes objects."""
        return {name: self._array(tensor) for name, tensor in zip(self._names, self._results, strict=True)}

    def _forget_results(self):
        for index, tensor in enumerate(self._results):
            if tensor:
                self._tf.TF_DeleteTensor(tensor)
            self._results[index] = None

    def _tensor(self, array):
        tf, code = self._tf, _code(array)
        array = np.asarray(array, order="C")
        size = array.size * _STRING_BYTES if code == _STRING else array.nbytes
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        tensor = tf.TF_AllocateTensor(code, shape, array.ndim, size)
        data = tf.TF_TensorData(tensor)
        if code == _STRING:
            for index, text in enumerate(array.ravel()):
                text = text if isinstance(text, bytes) else str(text).encode()
                tf.TF_StringInit(data + index * _STRING_BYTES)
                tf.TF_StringCopy(data + index * _STRING_BYTES, text, len(text))
        elif size:
            ctypes.memmove(data, array.ctypes.data, size)
        return tensor

    def _array(self, tensor):
        tf = self._tf
        shape = tuple(tf.TF_Dim(tensor, axis) for axis in range(tf.TF_NumDims(tensor)))
        data, code = tf.TF_TensorData(tensor), tf.TF_TensorType(tensor)
        if code == _STRING:
            end = (data or 0) + int(np.prod(shape)) * _STRING_BYTES
            places = range(data or 0, end, _STRING_BYTES)
            texts = [ctypes.string_at(tf.TF_StringGetDataPointer(p), tf.TF_StringGetSize(p)) for p in places]
            return np.array(texts, object).reshape(shape)
        content = ctypes.string_at(data, tf.TF_TensorByteSize(tensor)) if data else b""
        return np.frombuffer(content, DTYPES[code]).reshape(shape)


def _as_array(values, dtype):
    if isinstance(values, np.ndarray) or dtype is not object:
        return np.asarray(values)
    return np.array(values, object)  # an array of dtype S would drop the zeros at the end of a file


def _code(array):
    """The TF_DataType of an array; None where it has none."""
    if array.dtype.kind in "OSU":
        return _STRING
    return next((code for code, dtype in DTYPES.items() if dtype == array.dtype), None)


def _check(tf, status):
    if tf.TF_GetCode(status):
        raise ModelError(tf.TF_Message(status).decode(errors="replace"))


def find_library():
    """Returns the path of the installed tensorflow's libtensorflow_cc, or None; imports nothing."""
    spec = importlib.util.find_spec("tensorflow")
    for folder in spec.submodule_search_locations if spec else ():
        for path in sorted(pathlib.Path(folder).glob("libtensorflow_cc.*")):
            return path
    return None


def _library(path=None):
    path = path or find_library()
    if path is None:
        raise ModelError("There is no libtensorflow_cc here: install tensorflow, or give its path")
    try:
        tf = ctypes.CDLL(os.fspath(path))  # RTLD_LOCAL: RTLD_GLOBAL crashes beside numpy.random
    except OSError as error:
        raise ModelError(f"{path} cannot be loaded: {error}") from error
    result_and_arguments = {
        "TF_NewStatus": (_P,),
        "TF_GetCode": (_I, _P),
        "TF_Message": (_B, _P),
        "TF_DeleteStatus": (None, _P),
        "TF_NewGraph": (_P,),
        "TF_DeleteGraph": (None, _P),
        "TF_NewSessionOptions": (_P,),
        "TF_SetConfig": (None, _P, _B, _N, _P),
        "TF_DeleteSessionOptions": (None, _P),
        "TF_NewBuffer": (_P,),
        "TF_DeleteBuffer": (None, _P),
        "TF_LoadSessionFromSavedModel": (_P, _P, _P, _B, ctypes.POINTER(_B), _I, _P, _P, _P),
        "TF_DeleteSession": (None, _P, _P),
        "TF_GraphOperationByName": (_P, _P, _B),
        "TF_SessionRun": (None, _P, _P, _P, _P, _I, _P, _P, _I, _P, _I, _P, _P),
        "TF_AllocateTensor": (_P, _I, _P, _I, _N),
        "TF_DeleteTensor": (None, _P),
        "TF_TensorType": (_I, _P),
        "TF_NumDims": (_I, _P),
        "TF_Dim": (ctypes.c_int64, _P, _I),
        "TF_TensorByteSize": (_N, _P),
        "TF_TensorData": (_P, _P),
        "TF_StringInit": (None, _P),
        "TF_StringCopy": (None, _P, _B, _N),
        "TF_StringDealloc": (None, _P),
        "TF_StringGetDataPointer": (_P, _P),
        "TF_StringGetSize": (_N, _P),
    }
    for name, (result, *arguments) in result_and_arguments.items():
        function = getattr(tf, name)
        function.restype, function.argtypes = result, arguments
    return tf


# === MetaGraphDef, read from the wire: its protobuf classes come with tensorflow only ===


def _fields(message):
    """Yields (number, value) of a protobuf message: ints and bytes."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            size = varint() if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
            yield key >> 3, message[at : at + size]
            at += size


def _map(message, number, read):
    """A map field of string keys."""
    entries = [dict(_fields(value)) for key, value in _fields(message) if key == number]
    return {entry[1].decode(): read(entry.get(2, b"")) for entry in entries}


def _spec(message):
    tensor_info = dict(_fields(message))
    shape = list(_fields(tensor_info.get(3, b"")))
    sizes = [dict(_fields(dim)).get(1, 0) for number, dim in shape if number == 2]
    sizes = tuple(size - (1 << 64) if size >> 63 else size for size in sizes)
    unknown_rank = any(number == 3 and value for number, value in shape)
    dtype = DTYPES.get(tensor_info.get(2), object)
    return Spec(tensor_info.get(1, b"").decode(), dtype, None if unknown_rank else sizes)


def _signatures(meta_graph):
    def signature(message):
        return Signature(_map(message, 1, _spec), _map(message, 2, _spec))

    signatures = _map(meta_graph, 5, signature)
    return {name: value for name, value in signatures.items() if not name.startswith("__")}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python native.py MODEL_DIR/VERSION")
    try:
        model = SavedModel(sys.argv[1])
    except ModelError as error:
        sys.exit(f"error: {error}")
    for name, signature in model.signatures.items():
        print(name)
        for arrow, specs in (("<-", signature.inputs), ("->", signature.outputs)):
            for key, spec in specs.items():
                print(f"  {arrow} {key}: {np.dtype(spec.dtype).name} {spec.shape}")
