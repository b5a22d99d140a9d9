"""The one exception that a command prints as a single line instead of a traceback."""

from collections.abc import Sequence


class UserError(ValueError):
    """Bad input from the user: a flag, a file, a data set.

    The message is one line: what was received, what is allowed, what to do. The commands
    (`train.py`, `python -m dynkhydra_tf.evaluation`) print it and exit with status 2; library users
    can catch it as a `ValueError`.
    """


def first_few(items: Sequence, most: int = 5) -> str:
    """Returns the first few items for a message, and how many more there are."""
    text = ", ".join(repr(item) for item in items[:most])
    return text if len(items) <= most else f"{text} and {len(items) - most} more"
