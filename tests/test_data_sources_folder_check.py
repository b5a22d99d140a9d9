import builtins
import os

import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.data.sources.folder import check as folder_check
from dynkhydra_tf.data.sources.folder.check import check_files, why_bad
from dynkhydra_tf.data.sources.folder.listing import find_images

GOOD = tf.io.encode_jpeg(np.full((8, 8, 3), 100, np.uint8)).numpy()


@pytest.fixture
def folder(tmp_path):
    """Good files and, in the class "bad", one of each kind that is not."""
    root = tmp_path / "photos"
    for name in ("bad", "good"):
        (root / name).mkdir(parents=True)
    (root / "good" / "a.jpg").write_bytes(GOOD)
    (root / "good" / "b.png").write_bytes(tf.io.encode_png(np.zeros((3, 3, 1), np.uint16)).numpy())
    (root / "bad" / "cut.jpg").write_bytes(GOOD[:-30])
    (root / "bad" / "empty.jpg").touch()
    (root / "bad" / "text.jpg").write_text("This is no image.")
    (root / "bad" / "scan.tif").write_bytes(b"II*\0 and so on")
    (root / "bad" / "gone.jpg").symlink_to("nowhere")
    (root / "bad" / "round.jpg").symlink_to("round.jpg")
    os.mkfifo(root / "bad" / "pipe.jpg")
    return root


def check(root, cache_dir):
    """The bad paths and the fingerprint."""
    paths = find_images(root).paths
    found = check_files(root, paths, cache_dir)
    return paths[~found.good].tolist(), found.fingerprint


def test_every_kind_of_bad_file_is_found_and_told(folder, tmp_path):
    bad, _ = check(folder, tmp_path / "cache")
    reasons = {path.decode(): why_bad(folder / path.decode()) for path in bad}
    assert reasons == {
        "bad/cut.jpg": "damaged or cut off",
        "bad/empty.jpg": "empty",
        "bad/gone.jpg": "No such file or directory",
        "bad/pipe.jpg": "not a file",
        "bad/round.jpg": "Too many levels of symbolic links",
        "bad/scan.tif": "TIFF, which is not supported: save it as PNG or JPEG",
        "bad/text.jpg": "not JPEG, PNG, GIF, BMP or WebP",
    }


def test_a_file_that_may_not_be_read_is_bad(folder, tmp_path, monkeypatch):
    really_read, really_open, locked = tf.io.read_file, builtins.open, str(folder / "good" / "a.jpg")

    def read(path):  # permissions do not hold root back, which tests may run as
        return really_read(tf.where(path == locked, locked + " that may not be read", path))

    def refuse(path, *args, **kwargs):
        if str(path) == locked:
            raise PermissionError(13, "Permission denied", path)
        return really_open(path, *args, **kwargs)

    monkeypatch.setattr(tf.io, "read_file", read)
    bad, _ = check(folder, tmp_path / "cache")
    assert b"good/a.jpg" in bad
    monkeypatch.setattr(builtins, "open", refuse)
    assert why_bad(locked) == "Permission denied"


def test_what_was_found_is_kept_until_a_file_changes(folder, tmp_path, monkeypatch, capsys):
    cache, looked = tmp_path / "cache", []
    really = folder_check._hashes

    def count(*arguments):
        looked.append(1)
        return really(*arguments)

    monkeypatch.setattr(folder_check, "_hashes", count)
    first = check(folder, cache)
    assert check(folder, cache) == first and len(looked) == 1
    assert "Looking at 9 files in" in capsys.readouterr().out

    # Mended, with the time of change as it was: the size tells.
    times = os.stat(folder / "bad" / "cut.jpg")
    (folder / "bad" / "cut.jpg").write_bytes(GOOD)
    os.utime(folder / "bad" / "cut.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
    bad, fingerprint = check(folder, cache)
    assert b"bad/cut.jpg" not in bad and fingerprint != first[1] and len(looked) == 2
    # Another mode: it may have become readable, or no longer be.
    (folder / "bad" / "text.jpg").chmod(0o600)
    assert check(folder, cache)[1] == fingerprint and len(looked) == 3

    for file in cache.iterdir():
        file.write_bytes(b"no numpy array")
    assert check(folder, cache) == (bad, fingerprint) and len(looked) == 4


def test_the_fingerprint_is_of_names_and_contents(tmp_path):
    def fingerprint(name, **files):
        for path, content in files.items():
            (tmp_path / name / path).mkdir(parents=True)
            (tmp_path / name / path / "1.jpg").write_bytes(content)
        return check(tmp_path / name, tmp_path / "cache")[1]

    other = tf.io.encode_jpeg(np.full((8, 8, 3), 200, np.uint8)).numpy()
    assert len(other) == len(GOOD)
    one = fingerprint("one", cat=GOOD, dog=other)
    assert fingerprint("two", cat=GOOD, dog=other) == one
    assert fingerprint("three", cat=other, dog=GOOD) != one
    assert fingerprint("four", cat=GOOD, eel=other) != one


def test_a_cache_that_cannot_be_written_is_no_hindrance(folder, tmp_path, caplog):
    (tmp_path / "file").touch()
    bad, _ = check(folder, tmp_path / "file" / "cache")
    assert len(bad) == 7
    assert "Nothing is cached" in caplog.text
