"""What a command writes to stderr before its own first line, in a process of its own."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

COMMAND = """
import dataclasses, os, sys
from dynkhydra_tf import cli
from dynkhydra_tf.fields import Checked, setting

@dataclasses.dataclass(frozen=True)
class Options(Checked):
    fail: bool = setting(False, "Whether to fail.")

def main(options):
    "Multiplies."
    import tensorflow as tf
    print(float(tf.reduce_sum(tf.ones((2, 2)))))
    print(tf.config.list_physical_devices("GPU"))
    os.write(2, b"a line of C++\\n")
    print("a line of Python", file=sys.stderr)

cli.run(main, Options, ["command", *sys.argv[1:]])
"""


def run(script, *arguments, **environment):
    env = {name: value for name, value in os.environ.items() if not name.startswith("TF_CPP")}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**env, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_command_says_nothing_but_its_own():
    done = run(COMMAND)
    assert (done.returncode, done.stdout) == (0, "4.0\n[]\n")
    assert done.stderr == "a line of C++\na line of Python\n"


@pytest.mark.slow
def test_tensorflow_s_log_is_there_for_those_who_want_it():
    done = run(COMMAND, TF_CPP_MIN_LOG_LEVEL="0")
    assert done.returncode == 0 and "oneDNN custom operations are on" in done.stderr


def run_with(tensorflow, tmp_path, script=COMMAND):
    """Runs a script with a TensorFlow that is this text."""
    (tmp_path / "tensorflow.py").write_text(tensorflow)
    return run(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{script}")


def test_errors_while_tensorflow_is_imported_come_through(tmp_path):
    # It says a thing that it always says, one that it seldom says, and ends the process.
    done = run_with(
        "import os\n"
        "os.write(2, b'I0000 00:00:1.2 port.cc:153] oneDNN custom operations are on.\\n')\n"
        "os.write(2, b'F0000 00:00:1.2 cpu.cc:1] compiled to use AVX, which this machine lacks\\n')\n"
        "os.abort()\n",
        tmp_path,
    )
    assert done.returncode == -6
    assert done.stderr == "F0000 00:00:1.2 cpu.cc:1] compiled to use AVX, which this machine lacks\n"


def test_a_gpu_that_tensorflow_cannot_use_is_told(tmp_path):
    done = run_with(
        "class config: list_physical_devices = staticmethod(lambda kind: [])\n"
        "ones = reduce_sum = lambda of: 4.0\n",
        tmp_path,
        f"from dynkhydra_tf import quiet\nquiet.GPU = '/dev/null'\n{COMMAND}",
    )
    told = "TensorFlow does not use this machine's GPU; with TF_CPP_MIN_LOG_LEVEL=0 it says why."
    assert done.returncode == 0 and done.stderr.splitlines()[0] == told, done.stderr


def test_help_and_bad_flags_load_nothing():
    script = COMMAND + "\nfinally: print(sorted({'keras', 'tensorflow'} & set(sys.modules)))\n"
    script = script.replace("cli.run", "try: cli.run")
    for argument, status in [("--help", 0), ("--fail=maybe", 2)]:
        done = run(script, argument)
        assert done.returncode == status and done.stdout.endswith("[]\n"), done.stderr
        assert done.stderr.count("\n") == (status == 2)
