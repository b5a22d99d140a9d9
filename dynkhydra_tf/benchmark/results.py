"""The JSON files of the benchmarks, read again."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from dynkhydra_tf.errors import UserError

TURN = "a model's turn"  # the key of `runner.TURN` in a file's environment; once a turn was one request


def read_results(
    path: str, flag: str, kind: str, check: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """Reads what a benchmark wrote.

    Args:
        path: the file. flag: the one that named it. kind: what such a file is called.
        check: raises AttributeError, KeyError or TypeError on what this version does not write.

    Raises:
        UserError: it cannot be read, or is of another kind or version.
    """
    try:
        results = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        check(results)
        return results
    except (OSError, ValueError) as error:
        raise UserError(f"--{flag}={path} cannot be read: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"--{flag}={path} is no {kind} of this version ({error!r}); measure it anew"
        ) from error
