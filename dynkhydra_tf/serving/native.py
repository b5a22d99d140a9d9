"""A SavedModel run by TensorFlow's C API, the loader of TensorFlow Serving, without tensorflow in Python.

    python dynkhydra_tf/serving/native.py served/digits/1       # prints its signatures

This file imports nothing of this package and no tensorflow, only numpy and the shared library in
TensorFlow's wheel. It proves that an export works where there is no Python TensorFlow, and it measures
without the cost of calling TensorFlow from Python. B is the batch axis.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import pathlib
import sys
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np

# TF_DataType (tensorflow/c/tf_datatype.h) to numpy; strings are arrays of bytes objects.
DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 7: object, 9: np.int64, 10: np.bool_}
SIGNATURES = "assets.extra/signatures.json"
_STRING = 7
_STRING_BYTES = 24  # sizeof(TF_TString)
_MOST_THREADS = 4096  # TensorFlow ends the process where the system has no more
# A ConfigProto: graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 is ON.
BFLOAT16 = b"\x52\x05\x52\x03\xf8\x01\x01"
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


class _Output(ctypes.Structure):
    _fields_ = (("operation", _P), ("index", _I))


class _Session:
    """A session and its graph; given back when nobody holds this object, a running request included."""

    def __init__(self, session: Any, graph: Any, release: Callable[[], object]) -> None:
        self.session, self.graph = session, graph
        weakref.finalize(self, release)


class SavedModel:
    """A loaded SavedModel; a context manager. `run` may be called by several threads at once.

    Args:
        path: a version directory, the one with saved_model.pb.
        threads: int in 0..4096, for one op and for ops side by side; 0 for as many as there are cores.
        library: path of the shared library; default, the one of the installed tensorflow.
        signatures: what the file `SIGNATURES` of an export holds, for a SavedModel that has none; None to
            read the file.
        bfloat16: whether oneDNN computes convolutions and matrix products in bfloat16; of use on a processor
            that has it.

    Attributes:
        signatures: dict of `Signature` by name.

    Raises:
        ModelError: `threads` out of its range, no library, or a SavedModel that TensorFlow cannot load or
            that does not tell its signatures.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        threads: int = 0,
        library: str | os.PathLike | None = None,
        signatures: dict | None = None,
        bfloat16: bool = False,
    ) -> None:
        config = thread_config(threads) + (BFLOAT16 if bfloat16 else b"")
        self._tf = tf = _library(library)
        with contextlib.ExitStack() as kept, contextlib.ExitStack() as passing:
            status = _held(passing, tf.TF_NewStatus, tf.TF_DeleteStatus)
            options = _held(passing, tf.TF_NewSessionOptions, tf.TF_DeleteSessionOptions)
            tf.TF_SetConfig(options, config, len(config), status)
            _check(tf, status)
            closing = _held(kept, tf.TF_NewStatus, tf.TF_DeleteStatus)
            graph = _held(kept, tf.TF_NewGraph, tf.TF_DeleteGraph)
            session = tf.TF_LoadSessionFromSavedModel(
                options, None, os.fsencode(path), (_B * 1)(b"serve"), 1, graph, None, status
            )
            _check(tf, status)
            kept.callback(tf.TF_DeleteSession, session, closing)
            self.signatures = _signatures(path, signatures)
            self._session = _Session(session, graph, kept.pop_all().close)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Gives its memory back, once no thread runs it any more; may be called twice."""
        self._session = None

    def run(self, inputs: dict, signature: str = "serving_default") -> dict:
        """Answers one request.

        Args:
            inputs: dict of arrays (or what `np.asarray` takes), by the signature's input names; sent
                with the dtype and shape they have.
            signature: str, its name.

        Returns:
            dict of arrays by the signature's output names; strings as bytes objects.

        Raises:
            ModelError: a model that was closed, an unknown signature, inputs that are missing, unknown or
                of a dtype that TensorFlow does not have, or TensorFlow's error.
        """
        with self.request(inputs, signature) as request:
            request.run()
            return request.outputs()

    def request(self, inputs: dict, signature: str = "serving_default") -> "Request":
        """Returns the `Request` for `run`'s arguments, to be run as often as one likes."""
        if signature not in self.signatures:
            raise ModelError(f"signature must be one of {sorted(self.signatures)}. Received: {signature!r}")
        spec = self.signatures[signature]
        if set(inputs) != set(spec.inputs):
            raise ModelError(
                f"{signature} takes the inputs {sorted(spec.inputs)}. Received: {sorted(inputs)}"
            )
        return Request(self, spec, inputs)

    def open_session(self) -> _Session:
        """Returns what runs the model, to be held while it runs.

        Raises:
            ModelError: the model was closed.
        """
        session = self._session
        if session is None:
            raise ModelError("The model is closed: load it again")
        return session


class Request:
    """Inputs that lie ready in TensorFlow's memory; a context manager. Not for two threads at once.

    A clock around `run` measures TensorFlow and not ctypes.
    """

    def __init__(self, model: SavedModel, signature: Signature, inputs: dict) -> None:
        self._tf, self._model = model._tf, model
        held = model.open_session()
        arrays = {name: _as_array(inputs[name], spec.dtype) for name, spec in signature.inputs.items()}
        for name, array in arrays.items():
            if _code(array) is None:
                raise ModelError(f"{name} has a dtype that TensorFlow does not know: {array.dtype}")
        self._feeds = self._places(held.graph, signature.inputs)
        self._fetches = self._places(held.graph, signature.outputs)
        self._names = list(signature.outputs)
        self._results = (_P * len(self._names))()
        with contextlib.ExitStack() as kept:
            self._status = _held(kept, self._tf.TF_NewStatus, self._tf.TF_DeleteStatus)
            self._inputs = (_P * len(arrays))(*(_tensor(self._tf, kept, array) for array in arrays.values()))
            kept.callback(_forget, self._tf, self._results)
            self._release = weakref.finalize(self, kept.pop_all().close)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Gives its memory back; may be called twice."""
        self._release()

    def run(self) -> None:
        """Runs the model once.

        Raises:
            ModelError: the request or its model was closed, or TensorFlow's error.
        """
        if not self._release.alive:
            raise ModelError("The request is closed: make another")
        held = self._model.open_session()
        _forget(self._tf, self._results)
        self._tf.TF_SessionRun(
            held.session,
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

    def outputs(self) -> dict:
        """Returns what the last `run` gave: a dict of arrays by output name, strings as bytes objects.

        Raises:
            ModelError: there is nothing: `run` was not called, failed, or the request was closed.
        """
        if not all(self._results):
            raise ModelError("The request has no outputs: run it first")
        pairs = zip(self._names, self._results, strict=True)
        return {name: _array(self._tf, tensor) for name, tensor in pairs}

    def _places(self, graph, specs):
        places = (_Output * len(specs))()
        for place, spec in zip(places, specs.values(), strict=True):
            name, _, index = spec.tensor.rpartition(":")
            place.operation = self._tf.TF_GraphOperationByName(graph, name.encode())
            place.index = int(index)
            if not place.operation:
                raise ModelError(f"The signatures name {spec.tensor}, which the graph does not have")
        return places


# === Tensors ===


def _tensor(tf, kept, array):
    """A TF_Tensor with an array's values; `kept` gives it back."""
    code = _code(array)
    if code == _STRING:
        texts = [text if isinstance(text, bytes) else str(text).encode() for text in array.ravel()]
    else:
        array = np.asarray(array, order="C")
    size = array.size * _STRING_BYTES if code == _STRING else array.nbytes
    shape = (ctypes.c_int64 * array.ndim)(*array.shape)
    tensor = _held(kept, lambda: tf.TF_AllocateTensor(code, shape, array.ndim, size), tf.TF_DeleteTensor)
    data = tf.TF_TensorData(tensor)
    if code == _STRING:
        for index, text in enumerate(texts):
            place = data + index * _STRING_BYTES
            tf.TF_StringInit(place)
            kept.callback(tf.TF_StringDealloc, place)
            tf.TF_StringCopy(place, text, len(text))
    elif size:
        ctypes.memmove(data, array.ctypes.data, size)
    return tensor


def _array(tf, tensor):
    shape = tuple(tf.TF_Dim(tensor, axis) for axis in range(tf.TF_NumDims(tensor)))
    data, code = tf.TF_TensorData(tensor), tf.TF_TensorType(tensor)
    if code == _STRING:
        end = (data or 0) + int(np.prod(shape)) * _STRING_BYTES
        places = range(data or 0, end, _STRING_BYTES)
        texts = [ctypes.string_at(tf.TF_StringGetDataPointer(p), tf.TF_StringGetSize(p)) for p in places]
        return np.array(texts, object).reshape(shape)
    content = ctypes.string_at(data, tf.TF_TensorByteSize(tensor)) if data else b""
    return np.frombuffer(content, DTYPES[code]).reshape(shape)


def _forget(tf, tensors):
    """Deletes what is in an array of TF_Tensors and empties it."""
    for index, tensor in enumerate(tensors):
        if tensor:
            tf.TF_DeleteTensor(tensor)
        tensors[index] = None


def _as_array(values, dtype):
    if isinstance(values, np.ndarray) or dtype is not object:
        return np.asarray(values)
    return np.array(values, object)  # an array of dtype S would drop the zeros at the end of a file


def _code(array):
    """The TF_DataType of an array; None where it has none."""
    if array.dtype.kind in "OSU":
        return _STRING
    return next((code for code, dtype in DTYPES.items() if dtype == array.dtype), None)


# === The library ===


def _held(stack, new, delete):
    """What `new()` makes, for `stack` to `delete`."""
    made = new()
    stack.callback(delete, made)
    return made


def _check(tf, status):
    if tf.TF_GetCode(status):
        raise ModelError(tf.TF_Message(status).decode(errors="replace"))


def find_library() -> pathlib.Path | None:
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


# === What a model is loaded with ===


def thread_config(threads: int) -> bytes:
    """Returns a serialised ConfigProto: threads for one op (its field 2) and for ops side by side (5).

    Raises:
        ModelError: a number out of its range.
    """
    if not isinstance(threads, int) or not 0 <= threads <= _MOST_THREADS:
        raise ModelError(f"threads must be a whole number in 0..{_MOST_THREADS}. Received: {threads!r}")
    return b"\x10" + _varint(threads) + b"\x28" + _varint(threads)


def _varint(value):
    """A whole number >= 0 as protobuf writes it: seven bits a byte, the lowest first."""
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


def _signatures(path, record):
    """{name: `Signature`} of what a file `SIGNATURES` holds; None for the one of the export."""
    file = pathlib.Path(path) / SIGNATURES

    def specs(named):
        return {
            name: Spec(
                spec["tensor"],
                object if spec["dtype"] == "bytes" else np.dtype(spec["dtype"]).type,
                None if spec["shape"] is None else tuple(spec["shape"]),
            )
            for name, spec in named.items()
        }

    try:
        if record is None:
            record = json.loads(file.read_text(encoding="utf-8"))
        return {
            name: Signature(specs(value["inputs"]), specs(value["outputs"])) for name, value in record.items()
        }
    except OSError as error:
        raise ModelError(
            f"{file} cannot be read: {error.strerror}; exports of version 0.1 have none, "
            "dynkhydra_tf.serving.verify opens them"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} does not hold the signatures of a model: {error!r}") from error


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
