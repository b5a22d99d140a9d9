import os
import pathlib
import subprocess
import sys

from dynkhydra_tf.caches import user_cache_dir, write_cache
from tests.conftest import ROOT


def test_where_caches_are(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/tmp/x")
    assert user_cache_dir("folders") == pathlib.Path("/tmp/x/dynkhydra_tf/folders")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache_dir("folders") == pathlib.Path.home() / ".cache/dynkhydra_tf/folders"


def test_a_process_without_a_home_gets_one_and_says_so_once(tmp_path):
    # As in a container under a user id of its own: KerasCV's import fails without a home.
    script = (
        "import pwd, pathlib\n"
        "def unknown(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = unknown\n"
        "from dynkhydra_tf.caches import user_cache_dir, write_cache\n"
        "for _ in range(2):\n"
        "    path = user_cache_dir('folders') / 'a.txt'\n"
        "    write_cache(path, lambda beside: beside.write_text('kept'))\n"
        "print(path.read_text(), pathlib.Path.home(), end='')\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")
    }
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("There is no home directory: nothing is cached") == 1
    kept, home = done.stdout.split()
    assert kept == "kept" and not pathlib.Path(home).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_told_once(tmp_path, caplog):
    (tmp_path / "file").touch()
    for name in ("folders/a", "folders/b", "class_means/a"):
        write_cache(tmp_path / "file" / name, lambda beside: beside.write_text("kept"))
    assert caplog.text.count("Nothing is cached: cannot write to") == 1
