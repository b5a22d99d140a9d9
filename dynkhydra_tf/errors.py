"""The one exception that a command prints as a single line instead of a traceback."""


class UserError(ValueError):
    """Bad input from the user: a flag, a file, a data set.

    The message is one line: what was received, what is allowed, what to do. The commands
    (`train.py`, `python -m dynkhydra_tf.evaluation`) print it and exit with status 2; library users
    can catch it as a `ValueError`.
    """
