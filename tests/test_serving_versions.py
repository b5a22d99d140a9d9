import errno
import os
import subprocess
import sys

import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.serving.versions import MODEL, following, latest, new_version, whole


def entries(path):
    return sorted(entry.name for entry in path.iterdir())


def test_the_next_free_number(tmp_path):
    directory = tmp_path / "a" / "model"
    for number in (1, 2):
        with new_version(directory) as version:
            (version / "file").write_text("x")
        assert latest(directory) == number
    (directory / "10").mkdir()
    with new_version(directory):
        assert latest(directory) == 10, "not to be seen before it is whole"
    assert entries(directory) == ["1", "10", "11", "2"]


def test_failure_leaves_nothing(tmp_path):
    directory = tmp_path / "a" / "model"
    with pytest.raises(ZeroDivisionError), new_version(directory) as version:
        (version / "file").write_text("x")
        1 / 0  # noqa: B018
    assert entries(tmp_path) == []


def test_failure_leaves_the_other_versions(tmp_path):
    with new_version(tmp_path / "model"):
        pass
    with pytest.raises(UserError, match="No space left"), new_version(tmp_path / "model"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert entries(tmp_path / "model") == ["1"]


def test_a_killed_export_leaves_nothing_to_load_and_is_cleared_away(tmp_path):
    script = """if True:
        import os, sys
        from dynkhydra_tf.serving.versions import new_version
        with new_version(sys.argv[1]) as version:
            (version / "saved_model.pb").write_text("half")
            os.kill(os.getpid(), 9)
    """
    assert subprocess.run([sys.executable, "-c", script, tmp_path], check=False).returncode == -9
    (left,) = entries(tmp_path)
    assert not left.isdecimal() and latest(tmp_path) is None
    with new_version(tmp_path):
        pass
    assert entries(tmp_path) == ["1"]


def test_another_export_at_work_is_left_alone(tmp_path):
    # Two containers with one disk: the other process has our process id, as each container's first one has.
    script = """if True:
        import os, sys
        os.getpid = lambda: int(sys.argv[2])
        from dynkhydra_tf.serving.versions import new_version
        with new_version(sys.argv[1]) as version:
            (version / "theirs").write_text("x")
            print("at work", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", script, tmp_path, str(os.getpid())]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"at work\n"
    with new_version(tmp_path) as version:
        (version / "ours").write_text("x")
    other.communicate(timeout=60)
    assert other.returncode == 0
    assert entries(tmp_path) == ["1", "2"]
    assert entries(tmp_path / "1") == ["ours"] and entries(tmp_path / "2") == ["theirs"]


def test_names_that_are_no_versions_of_a_server(tmp_path):
    for name in ("99999999999999999999", "²", "\u0663", "x"):
        (tmp_path / name).mkdir()
    (tmp_path / "7").symlink_to("nowhere")
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / MODEL).touch()
    assert (latest(tmp_path), following(tmp_path), whole(tmp_path)) == (7, 8, [3])
    with new_version(tmp_path):
        pass
    assert latest(tmp_path) == 8
    (tmp_path / str(2**63 - 1)).mkdir()
    with pytest.raises(UserError, match="no version after 9223372036854775807"), new_version(tmp_path):
        pass
    assert latest(tmp_path) == 2**63 - 1


def test_two_exports_at_once_take_two_numbers(tmp_path, monkeypatch):
    # The other one takes number 1 between our look and our rename.
    with new_version(tmp_path) as version:
        (version / "ours").write_text("x")
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "theirs").write_text("x")
    assert entries(tmp_path / "1") == ["theirs"] and entries(tmp_path / "2") == ["ours"]


def test_a_file_where_the_directory_should_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="Cannot write to"), new_version(tmp_path / "file" / "model"):
        pass
    assert (tmp_path / "file").read_text() == "x"
