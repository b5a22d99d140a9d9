"""Tests of writing files whole or not at all, and of directories that one process works in."""

import concurrent.futures
import errno
import json
import os
import subprocess
import sys

import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import (
    LOCK,
    check_writable,
    is_disk_full,
    is_written_as,
    locked,
    replacing,
    write_csv,
    write_json,
    write_text,
)
from tests.conftest import ROOT


def test_replaces_a_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "new" / "file.txt"
    for text in ("one", "two"):
        with replacing(path) as beside:
            beside.write_text(text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writable_is_tried_and_leaves_nothing(tmp_path):
    check_writable(tmp_path / "not" / "yet", "run_dir")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(
        UserError, match=r"Cannot write to /proc .*; give another --run_dir. Received: /proc/run"
    ):
        check_writable("/proc/run", "run_dir")


def test_csv(tmp_path):
    write_csv(tmp_path / "rows.csv", [{"a": 1, "b": None}, {"a": 2, "b": "x,ü"}])
    assert (tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines() == ["a,b", "1,", '2,"x,ü"']


def test_names_that_are_no_utf_8_become_their_bytes(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_text(tmp_path / "a.txt", name)
    write_csv(tmp_path / "a.csv", [{"class": name}])
    write_json(tmp_path / "a.json", [name])
    assert (tmp_path / "a.txt").read_bytes() == b"caf\xe9"
    assert (tmp_path / "a.csv").read_bytes() == b"class\r\ncaf\xe9\r\n"
    assert json.loads((tmp_path / "a.json").read_text()) == [name]


@pytest.mark.parametrize(
    ("entry", "written"),
    [
        ("flags.cfg", True),
        (".flags.123.cfg", True),
        (".flags.0f3a77bc.cfg", True),
        ("flags.123.cfg", False),
        (".flags.cfg", False),
        (".flags.backup.cfg", False),
        (".flags.123.cfg.orig", False),
        ("flagsXcfg", False),
    ],
)
def test_what_a_killed_process_left_is_known(entry, written):
    assert is_written_as(entry, "flags.cfg") is written


def test_replacing_leaves_what_is_known_when_it_is_killed(tmp_path):
    with replacing(tmp_path / "model.keras") as beside:
        assert beside.name != "model.keras" and is_written_as(beside.name, "model.keras")
        beside.touch()


# === Locks ===


def test_one_process_at_a_time(tmp_path):
    with locked(tmp_path):
        told = rf"{tmp_path} is in use by process {os.getpid()} on .*: wait"
        with pytest.raises(UserError, match=told), locked(tmp_path):
            pass
        assert os.listdir(tmp_path) == [LOCK]
    assert os.listdir(tmp_path) == []
    with locked(tmp_path):
        pass


def test_a_dead_process_holds_nothing(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from dynkhydra_tf.files import locked\n"
        "with locked(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path], cwd=ROOT)
    assert os.listdir(tmp_path) == [LOCK]
    with locked(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_many_at_once_take_turns(tmp_path):
    # Each removes the file that the lock is on: none may hold a lock on a file that is gone.
    inside, most, turns = [], [], []

    def work():
        while len(turns) < 200:
            try:
                with locked(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
                    turns.append(1)
            except UserError:
                pass

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work) for _ in range(4)]:
            done.result()
    assert set(most) == {1}


def test_the_lock_of_another_user_is_told(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("pathlib.Path.open", refuse)  # root may open everything
    told = f"{tmp_path} may be in use by another user, whose {LOCK} is there"
    with pytest.raises(UserError, match=told), locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path):
        assert "cannot be locked" in caplog.text and "let no second process work in it" in caplog.text


def test_full_disks():
    assert is_disk_full(OSError(errno.ENOSPC, "full"))
    assert is_disk_full(
        RuntimeError("Can't write data: errno = 28, error message = 'No space left on device'")
    )
    assert not is_disk_full(OSError(errno.EACCES, "no"))
