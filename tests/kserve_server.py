"""A real KServe server that answers TensorFlow Serving's REST predict protocol from a SavedModel.

    python tests/kserve_server.py served/digits/1 --name=digits --port=8501 --library=libtensorflow_cc.so.2

kserve cannot be installed beside TensorFlow, for it wants an older protobuf. It gets a virtual environment of
its own, without TensorFlow; the model runs through serving/native.py, loaded by its path. In a test:

    with running(export, "digits") as url:
        RestClient(url).predict(...)
"""

import argparse
import asyncio
import base64
import concurrent.futures
import contextlib
import fcntl
import functools
import http.client
import importlib.util
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
REQUIREMENT = "kserve==0.21.*"
CLIENTS = 8  # requests answered at once
HOST = "127.0.0.1"


# === In the process of the tests ===


@functools.cache
def environment():
    """Returns the Python of a virtual environment with kserve, made now unless one is in the user's cache.

    Raises:
        subprocess.CalledProcessError: kserve could not be installed; its stderr says why.
    """
    cache_home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = pathlib.Path(cache_home) / "dynkhydra_tf" / f"kserve-0.21-python3.{sys.version_info.minor}"
    python = folder / "bin" / "python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run of the tests may be making it
        try:
            subprocess.run([python, "-I", "-c", "import kserve, numpy"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            make = [sys.executable, "-m", "venv", "--clear", folder]
            install = [python, "-m", "pip", "install", "--quiet", REQUIREMENT, "numpy"]
            for command in (make, install):
                subprocess.run(command, check=True, capture_output=True, text=True)
    return python


@contextlib.contextmanager
def running(export, name):
    """Runs a server of one model until the block ends.

    Args:
        export: a version directory, the one with saved_model.pb.
        name: str, the model's name.

    Yields:
        str, the model's url.
    """
    with socket.socket() as any_free:
        any_free.bind((HOST, 0))
        port = any_free.getsockname()[1]
    library = _native().find_library()
    arguments = [str(export), f"--name={name}", f"--port={port}", f"--library={library}"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            # -I: nothing of this environment or folder is found by accident
            [environment(), "-I", __file__, *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(server, port, f"/v1/models/{name}", log)
            yield f"http://{HOST}:{port}/v1/models/{name}"
        finally:
            server.terminate()
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait(server, port, path, log, seconds=120):
    """Returns when the model is ready; RuntimeError with the server's log if that does not happen."""
    end = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < end:
        connection = http.client.HTTPConnection(HOST, port, timeout=5)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass  # it does not listen yet
        finally:
            connection.close()
        time.sleep(0.1)
    log.seek(0)
    raise RuntimeError(f"the KServe server is not ready: {log.read()[-2000:]}")


def _native():
    spec = importlib.util.spec_from_file_location("native", ROOT / "dynkhydra_tf" / "serving" / "native.py")
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    return native


# === In the process of the server ===


def predict(model, request):
    """Answers the parsed JSON of a request as TensorFlow Serving does.

    Args:
        model: `native.SavedModel`.
        request: {"signature_name": str, "instances": [...]}: a row for each item, either its value, where
            the signature has one input, or {input: value}; strings may be {"b64": ...}.

    Returns:
        {"predictions": [...]}, {output: value} for each item.

    Raises:
        ValueError: what is wrong with the request.
        native.ModelError: what TensorFlow finds wrong with it.
    """
    if not isinstance(request, dict):
        raise ValueError("the request is no JSON object")
    name = request.get("signature_name", "serving_default")
    if name not in model.signatures:
        raise ValueError(f"signature_name must be one of {sorted(model.signatures)}. Received: {name!r}")
    inputs = to_arrays(request.get("instances"), model.signatures[name].inputs)
    outputs = {output: to_json(array) for output, array in model.run(inputs, name).items()}
    return {
        "predictions": [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
    }


def to_arrays(instances, specs):
    """The rows of a request as arrays by input name, each with the dtype that the signature wants."""
    if not isinstance(instances, list):
        raise ValueError("'instances' must be a list")
    if not instances:
        raise ValueError("No values in 'instances' array")
    if all(isinstance(row, dict) and set(row) != {"b64"} for row in instances):
        if any(set(row) != set(specs) for row in instances):
            raise ValueError(f"the keys of each of 'instances' must be {sorted(specs)}")
        columns = {name: [row[name] for row in instances] for name in specs}
    elif len(specs) == 1:
        columns = dict.fromkeys(specs, instances)
    else:
        raise ValueError(f"'instances' must be a list of objects with the keys {sorted(specs)}")
    return {name: to_array(columns[name], specs[name].dtype) for name in specs}


def to_array(values, dtype):
    """Nested lists of JSON values as an array; refuses values that would change, such as 0.5 for an int."""
    if dtype is object:
        return np.array(_to_bytes(values), object)
    array = np.array(values)
    allowed = {"u": "iu", "i": "iu", "f": "iuf", "b": "b"}[np.dtype(dtype).kind]
    if array.dtype.kind not in allowed:
        raise ValueError(f"{dtype.__name__} expected. Received values of the type {array.dtype}")
    if array.dtype.kind != "f" and np.any(array.astype(dtype) != array):
        raise ValueError(f"{dtype.__name__} expected. Received values from {array.min()} to {array.max()}")
    return array.astype(dtype)


def _to_bytes(value):
    if isinstance(value, list):
        return [_to_bytes(each) for each in value]
    if isinstance(value, dict) and set(value) == {"b64"}:
        return base64.b64decode(value["b64"], validate=True)
    if not isinstance(value, str):
        raise ValueError(f"string expected. Received: {value!r:.80}")
    return value.encode()


def to_json(array):
    """An array as nested lists, of which one row belongs to each item."""
    if array.dtype == object:
        array = np.vectorize(bytes.decode, otypes=[object])(array)
    return array.tolist()


def main():
    """Serves a model until it is stopped."""
    import kserve  # only there
    from kserve.errors import InvalidInput

    parser = argparse.ArgumentParser()
    parser.add_argument("export")
    for flag in ("--name", "--port", "--library"):
        parser.add_argument(flag, required=True)
    options = parser.parse_args()
    native = _native()

    class Model(kserve.Model):
        def load(self):
            self.saved_model = native.SavedModel(options.export, library=options.library)
            self.threads = concurrent.futures.ThreadPoolExecutor(CLIENTS)
            self.ready = True
            return self.ready

        async def predict(self, payload, headers=None):
            # In a thread, so that the server takes other requests meanwhile.
            loop = asyncio.get_running_loop()
            try:
                return await loop.run_in_executor(self.threads, predict, self.saved_model, payload)
            except (native.ModelError, ValueError) as error:
                raise InvalidInput(str(error)) from error

    class Server(kserve.ModelServer):
        async def _serve(self):
            # kserve listens to the whole network, and has no setting for it.
            self._rest_server.config.host = HOST
            await super()._serve()

    model = Model(options.name)
    model.load()
    Server(http_port=int(options.port), workers=1, enable_grpc=False).start([model])


if __name__ == "__main__":
    main()
