"""Photo files through an exported version, in TensorFlow's C API: Python's TensorFlow is not imported.

The export decodes and prepares the photos itself, at its own tau. M classes, N branches (nb).
"""

import collections
import concurrent.futures
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

from dynkhydra_tf.answers import Answer
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.serving import native, versions

SIGNATURE = "image_bytes"


def open_export(path: str | os.PathLike) -> native.SavedModel:
    """Loads a version directory, or the latest version of a model's directory.

    Raises:
        UserError: it is none, it cannot be loaded, or it does not take photos.
    """
    path = pathlib.Path(path)
    if not (path / "saved_model.pb").is_file() and (latest := versions.latest(path)) is not None:
        path = path / str(latest)
    if not (path / "saved_model.pb").is_file():
        raise UserError(f"{path} holds no saved_model.pb: give DIR/VERSION of export.py, such as served/x/1")
    try:
        if (path / native.SIGNATURES).exists():
            model = native.SavedModel(path)
        else:  # of version 0.1: its signatures are read by Python's TensorFlow
            from dynkhydra_tf.serving.formats.saved_model import open_version

            model = open_version(path)
    except native.ModelError as error:
        raise UserError(f"{path} cannot be loaded: {error}") from error
    if SIGNATURE not in model.signatures:
        raise UserError(f"{path} takes no photos: it has no signature {SIGNATURE}; export it with export.py")
    return model


def labels_told(model: native.SavedModel) -> int:
    """Returns how many labels it gives for a photo: k of its top-k outputs, else 1."""
    outputs = model.signatures[SIGNATURE].outputs
    return outputs["top_labels"].shape[1] if "top_labels" in outputs else 1


def classify_photos(
    model: native.SavedModel, paths: Sequence[str], top: int = 5, batch_size: int = 32
) -> Iterator[Answer]:
    """Gives an answer for each photo, in order; as many batches run side by side as there are cores.

    Args:
        model: see `open_export`.
        paths: of the photos.
        top: how many classes to name, at most `labels_told(model)`.
        batch_size: photos in a request.
    """
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    workers = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        ahead = collections.deque(pool.submit(_answers, model, batch, top) for batch in batches[:workers])
        for number in range(len(batches)):
            answers = ahead.popleft().result()
            if number + workers < len(batches):
                ahead.append(pool.submit(_answers, model, batches[number + workers], top))
            yield from answers


def _answers(model, paths, top):
    """The answers for a batch of photos."""
    contents, problems = {}, {}
    for path in paths:
        try:
            content = pathlib.Path(path).read_bytes()
        except OSError as error:
            problems[path] = error.strerror
        else:
            (contents if content else problems)[path] = content or "empty"
    answered = _request(model, contents, top)
    return [answered.get(path) or Answer(path, problem=problems.get(path)) for path in paths]


def _request(model, contents, top):
    """{path: Answer} of files by path; of a batch that is refused as a whole, the halves are asked."""
    if not contents:
        return {}
    try:
        outputs = model.run({SIGNATURE: np.array([*contents.values()], object)}, SIGNATURE)
    except native.ModelError as error:
        if len(contents) > 1:
            items, half = list(contents.items()), len(contents) // 2
            return _request(model, dict(items[:half]), top) | _request(model, dict(items[half:]), top)
        (path,) = contents
        reason = re.sub(r"\[\[\{\{.*", "", str(error), flags=re.S)  # in which node of the graph
        return {path: Answer(path, problem=" ".join(reason.split()))}
    rows = [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
    return {path: Answer.served(path, row, top) for path, row in zip(contents, rows, strict=True)}
