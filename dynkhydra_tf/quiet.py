"""TensorFlow without the lines that it writes on every machine: a command's own are to be seen.

Run as a script, this file is the filter that stands between TensorFlow and the terminal.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator

# What TensorFlow 2.21 writes while it is imported, and whatever its log level: before its logging is set up.
NOISE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR"
    rb"|I\d{4} .*"
    rb"|To enable the following instructions: "
)

GPU = "/dev/nvidia0"


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Imports TensorFlow without its noise; anything else that is written to stderr meanwhile comes through.

    After it, TensorFlow writes nothing to its log; what fails is told by exceptions. Where
    TF_CPP_MIN_LOG_LEVEL is set, nothing is changed.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
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
    if os.path.exists(GPU) and not sys.modules["tensorflow"].config.list_physical_devices("GPU"):
        message = "TensorFlow does not use this machine's GPU; with TF_CPP_MIN_LOG_LEVEL=0 it says why."
        print(message, file=sys.stderr)


def _pass_on() -> None:
    """Copies stdin to stderr without the noise."""
    for line in sys.stdin.buffer:
        if not NOISE.match(line):
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()


if __name__ == "__main__":
    _pass_on()
