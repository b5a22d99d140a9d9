"""The process beside the training: what it does, and that it goes when it is to go."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.frontier.beside import process_beside, result_of


def refuse():
    raise UserError("It cannot be done")


def state():
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], os.nice(0), sys.stdout.name


def test_what_it_does_and_what_it_raises_comes_back(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with process_beside() as beside:
        told, refused = beside.submit(state), beside.submit(refuse)
        process, devices, niceness, output = result_of(told)
        with pytest.raises(UserError, match="It cannot be done"):
            result_of(refused)
        assert process != os.getpid() and devices == "" and output == os.devnull
        assert niceness == min(19, os.nice(0) + 5)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_that_it_was_killed_is_told():
    with process_beside() as beside:
        process = result_of(beside.submit(os.getpid))
        waiting = beside.submit(signal.pause)
        os.kill(process, signal.SIGKILL)
        with pytest.raises(UserError, match=r"was killed, .*The same command goes on from there"):
            result_of(waiting)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_its_parent(tmp_path, number):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent("""
            import os, signal, tempfile
            from dynkhydra_tf.frontier.beside import process_beside, result_of

            if __name__ == "__main__":
                with tempfile.TemporaryDirectory() as folder, process_beside() as beside:
                    result_of(beside.submit(os.getpid))
                    print(folder, flush=True)
                    signal.pause()
        """)
    )
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    folder = parent.stdout.readline().strip()
    parent.send_signal(number)
    # The process beside writes to the same pipe: it has an end when both have ended.
    _, told = parent.communicate(timeout=60)
    assert parent.returncode == (-number if number == signal.SIGKILL else 128 + number)
    if number == signal.SIGTERM:
        assert not told and not os.path.exists(folder)
