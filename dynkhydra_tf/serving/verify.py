"""Replays the reference requests of an export and compares the answers with the Keras model's.

    python -m dynkhydra_tf.serving.verify --model_dir=served/digits/1
    python -m dynkhydra_tf.serving.verify --model_dir=served/digits/1 --url=http://localhost:8501/v1/models/digits
    python -m dynkhydra_tf.serving.verify --model_dir=served/digits/1 --grpc=localhost:8500 --model=digits

The first runs the directory in TensorFlow's C API, the loader that TensorFlow Serving uses; the others ask a
running server. Exit status 0: all answers agree; 1: some do not.
"""

import pathlib
import sys

from absl import flags

from dynkhydra_tf import cli
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.serving import native, reference
from dynkhydra_tf.serving.client import GrpcClient, RestClient
from dynkhydra_tf.serving.formats import saved_model
from dynkhydra_tf.tables import table


def define_flags(flag_values):
    """Defines the flags of this command."""

    def define(kind, *args, **kwargs):
        kind(*args, flag_values=flag_values, **kwargs)

    define(flags.DEFINE_string, "model_dir", None, "A version directory, such as served/digits/1.")
    define(flags.DEFINE_string, "url", None, "A running server's REST address, up to the model's name.")
    define(flags.DEFINE_string, "grpc", None, "A running server's gRPC address, HOST:PORT; with --model.")
    define(flags.DEFINE_string, "model", None, "The model's name on the gRPC server.")
    define(flags.DEFINE_float, "timeout", 10.0, "Seconds that a server has for an answer.", lower_bound=0.1)


def replay(requests, answer):
    """Asks every request and returns (signature, difference or the error's text) of each.

    Args:
        requests: as `reference.load` returns them.
        answer: callable (inputs, signature) -> dict of arrays, which may raise `UserError` or
            `native.ModelError`.
    """
    results = []
    for request in requests:
        try:
            received = answer(request["inputs"], request["signature"])
            results.append((request["signature"], reference.difference(request["outputs"], received)))
        except (UserError, native.ModelError) as error:
            results.append((request["signature"], str(error)))
    return results


def main(options):
    """Replays, prints a row for each request, and ends with 1 where an answer differs."""
    if not options.model_dir:
        raise UserError("Give --model_dir=DIR/VERSION, where the reference requests are")
    if (options.url and options.grpc) or bool(options.grpc) != bool(options.model):
        raise UserError("Give either --url, or --grpc with --model, or none of them")
    directory = pathlib.Path(options.model_dir)
    requests, tolerance = reference.load(directory / "assets.extra" / "reference.json")
    if options.url:
        results = replay(requests, RestClient(options.url, options.timeout).predict)
    elif options.grpc:
        results = replay(requests, GrpcClient(options.grpc, options.model, options.timeout).predict)
    else:
        try:
            with saved_model.open_version(directory) as model:
                results = replay(requests, model.run)
        except native.ModelError as error:
            raise UserError(f"{directory} cannot be loaded: {error}") from error
    rows = [["signature", "largest difference", ""]]
    for signature, result in results:
        text = result if isinstance(result, str) else f"{result:.1e}"
        rows.append([signature, text, "ok" if _agrees(result, tolerance) else "DIFFERS"])
    print(table(rows))
    if not all(_agrees(result, tolerance) for _, result in results):
        sys.exit(1)


def _agrees(result, tolerance):
    return not isinstance(result, str) and result <= tolerance


if __name__ == "__main__":
    cli.run(main, define_flags)
