"""Tests of writing files whole or not at all."""

import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import check_writable, replacing, write_csv


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
