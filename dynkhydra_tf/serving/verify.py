"""Replays the reference requests of an export and compares the answers with the Keras model's.

    python -m dynkhydra_tf.serving.verify --model_dir=served/digits/1
    python -m dynkhydra_tf.serving.verify --model_dir=served/digits/1 --url=http://localhost:8501/v1/models/digits
    python -m dynkhydra_tf.serving.verify --model_dir=served/digits/1 --grpc=localhost:8500 --model=digits

The first runs the directory in TensorFlow's C API, the loader that TensorFlow Serving uses; the others ask a
running server. Exit status 0: all answers agree; 1: some do not.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable

from dynkhydra_tf import cli
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.serving import native
from dynkhydra_tf.serving.server_flags import ServerFlags
from dynkhydra_tf.tables import table


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command."""

    model_dir: str | None = setting(None, "A version directory, such as served/digits/1.", path=True)
    server: ServerFlags = dataclasses.field(default_factory=ServerFlags)

    def check(self) -> None:
        """Checks what goes together."""
        if not self.model_dir:
            raise UserError("Give --model_dir=DIR/VERSION, where the reference requests are")


def replay(requests: list[dict], answer: Callable) -> list[tuple[str, float | str]]:
    """Asks every request and returns (signature, difference or the error's text) of each.

    Args:
        requests: as `reference.load` returns them.
        answer: callable (inputs, signature) -> dict of arrays, which may raise `UserError` or
            `native.ModelError`.
    """
    from dynkhydra_tf.serving import reference

    results: list[tuple[str, float | str]] = []
    for request in requests:
        try:
            received = answer(request["inputs"], request["signature"])
            results.append((request["signature"], reference.difference(request["outputs"], received)))
        except (UserError, native.ModelError) as error:
            results.append((request["signature"], str(error)))
    return results


def main(options: Options) -> None:
    """Replays, prints a row for each request, and ends with 1 where an answer differs."""
    # Only now: to see the help takes no more than a moment.
    from dynkhydra_tf.serving import reference
    from dynkhydra_tf.serving.formats import saved_model

    directory = pathlib.Path(options.model_dir)
    requests, tolerance = reference.load(directory / "assets.extra" / "reference.json")
    if options.server.given:
        with options.server.connect() as client:
            results = replay(requests, client.predict)
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
    cli.run(main, Options)
