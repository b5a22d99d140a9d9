"""TensorFlow and others without the lines that they write on every machine: a command's own are to be seen.

Run as a script, this file is the filter that stands between TensorFlow and the terminal.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator

# What TensorFlow 2.21 writes while it is imported, and LiteRT when it begins, whatever the log level.
NOISE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR"
    rb"|I\d{4} .*"
    rb"|To enable the following instructions: "
    rb"|INFO: Created TensorFlow Lite XNNPACK delegate for CPU"
)

SILENT = "3"  # of TF_CPP_MIN_LOG_LEVEL
GPU = "/dev/nvidia0"


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Imports TensorFlow without its noise; a GPU that it cannot use is told.

    After it, TensorFlow writes nothing to its log; what fails is told by exceptions.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", SILENT)
    with without_noise():
        yield
    if os.path.exists(GPU) and not sys.modules["tensorflow"].config.list_physical_devices("GPU"):
        message = "TensorFlow does not use this machine's GPU; with TF_CPP_MIN_LOG_LEVEL=0 it says why."
        print(message, file=sys.stderr)


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Keeps the noise from stderr; anything else that is written to it comes through.

    Where TF_CPP_MIN_LOG_LEVEL asks for TensorFlow's log, nothing is kept.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", SILENT) != SILENT:
        yield
        return
    # A process of its own: what TensorFlow says when it ends this one must come through, too.
    passing_on = subprocess.Popen([sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE)
    sys.stderr.flush()
    stderr = os.dup(2)
    os.dup2(passing_on.stdin.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        passing_on.communicate()


@contextlib.contextmanager
def errors_alone(logger: str | None = None) -> Iterator[None]:
    """Within the block a logger of Python's, by its name or the root, tells errors and nothing less."""
    import logging  # the filter below begins without it

    found = logging.getLogger(logger)
    level = found.level
    found.setLevel(logging.ERROR)
    try:
        yield
    finally:
        found.setLevel(level)


def _pass_on() -> None:
    """Copies stdin to stderr without the noise."""
    for line in sys.stdin.buffer:
        if not NOISE.match(line):
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()


if __name__ == "__main__":
    _pass_on()
