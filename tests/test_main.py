"""The one command `dynkhydra`, and that a wheel holds all that the commands need."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

from dynkhydra_tf import __main__ as command
from tests.conftest import ROOT


def run(*arguments, path=ROOT, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "dynkhydra_tf", *arguments],
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


def test_every_verb_is_a_module_that_is_a_command():
    for module in command.VERBS.values():
        spec = importlib.util.find_spec(f"dynkhydra_tf.{module}")
        if spec.submodule_search_locations:
            spec = importlib.util.find_spec(f"dynkhydra_tf.{module}.__main__")
        assert "cli.run(main, " in pathlib.Path(spec.origin).read_text(encoding="utf-8")


def test_no_help_loads_keras_or_a_library_that_takes_its_time():
    script = (
        "import contextlib, io, runpy, sys\n"
        "from dynkhydra_tf.__main__ import VERBS\n"
        "for module in VERBS.values():\n"
        "    sys.argv, printed = ['command', '--help'], io.StringIO()\n"
        "    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):\n"
        "        runpy.run_module(f'dynkhydra_tf.{module}', run_name='__main__')\n"
        "    assert 'flags:' in printed.getvalue(), module\n"
        "    slow = {'keras', 'tensorflow', 'sklearn', 'scipy', 'matplotlib', 'grpc'} & set(sys.modules)\n"
        "    assert not slow, (module, slow)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--help"], 0, "VERB is one of train, evaluate, "),
        (["train", "--help"], 0, "--[no]overwrite"),
        (["predict"], 2, "error: There are no photos"),
        (["train", "--depth=0"], 2, "error: depth must be at least 1. Received: 0"),
        (["learn"], 2, "report. Received: 'learn'"),
        ([], 2, "Received: ''"),
    ],
)
def test_verbs(arguments, status, told, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == status
    said, silent = (done.stderr, done.stdout) if status else (done.stdout, done.stderr)
    assert told in said
    assert not silent


@pytest.mark.slow
def test_a_wheel_holds_the_commands_and_the_configs(tmp_path):
    source = tmp_path / "source"  # building leaves files behind
    shutil.copytree(ROOT / "dynkhydra_tf", source / "dynkhydra_tf")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "train.py", "export.py"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path]
    subprocess.run([*build, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        file.extractall(tmp_path / "site")
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert b"dynkhydra = dynkhydra_tf.__main__:main" in file.read(entry_points)
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"dynkhydra_tf"}
    configs = {f"dynkhydra_tf/configs/{path.name}" for path in (ROOT / "configs").iterdir()}
    assert configs and configs <= names
    assert "dynkhydra_tf/paper/page.html" in names
    done = run("train", "--flagfile=configs/cifar100.cfg", "--depth=0", path=tmp_path / "site", cwd=tmp_path)
    assert done.stderr == "error: depth must be at least 1. Received: 0\n"  # the flagfile was found
