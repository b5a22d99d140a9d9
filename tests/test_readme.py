"""Every block of README.md: commands, Python, and what is only shown."""

import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dynkhydra_tf import cli
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.M | re.S)
LINES = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]
# Not run here, and why.
ELSEWHERE = {
    "pip install -e . && python train.py --flagfile=configs/digits.cfg": "run by .ci/run",
    "pip install -e '.[test]' && pytest": "run by .ci/run",
    "docker run": "needs docker and the network",
    "python3 -m venv kserve": "needs the network; tests/kserve_server.py does it for its tests",
    "LIBRARY=": "tests/kserve_server.py does it for its tests",
    "kserve/bin/python": "tests/kserve_server.py is started by its tests",
}
# .ci/run runs evaluation and export, too, on a run of its own.
# Run in a directory with a trained run of digits; the others need the network, a server or hours, and only
# their flags are read.
QUICK = ("python -m dynkhydra_tf.costs", "python -m dynkhydra_tf.paper.report")


def command_of(line):
    """The arguments of a line, without its comment."""
    return shlex.split(line, comments=True)


def is_elsewhere(line):
    return any(line.startswith(begin) for begin in ELSEWHERE)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory: it has the run of digits that README trains first."""
    shutil.copytree(ROOT / "tests" / "made_by_0_1" / "hydra", tmp_path / "runs" / "digits")
    monkeypatch.chdir(tmp_path)


def test_every_block_is_of_a_known_kind():
    assert {language for language, _ in BLOCKS} == {"bash", "python", "text"}
    assert all(any(line.startswith(begin) for line in LINES) for begin in (*ELSEWHERE, *QUICK))


@pytest.mark.parametrize("line", [line for line in LINES if not is_elsewhere(line)])
def test_the_flags_of_every_command_are_read(line, monkeypatch):
    python, *arguments = command_of(line)
    assert python == "python"
    read = []

    def run_nothing(main, options, **settings):
        nothing = lambda *given: read.append(given)  # noqa: E731
        real_run(nothing, options, ["command", *arguments], **settings)

    real_run = cli.run
    monkeypatch.setattr(cli, "run", run_nothing)
    if arguments[0] == "-m":
        _, module, *arguments = arguments
        runpy.run_module(module, run_name="__main__")
    else:
        path, *arguments = arguments
        runpy.run_path(str(ROOT / path), run_name="__main__")
    assert len(read) == 1


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in LINES if line.startswith(QUICK)])
def test_quick_commands_run(line, place):
    arguments = command_of(line)[1:]
    if arguments[0] != "-m":
        arguments[0] = str(ROOT / arguments[0])
    env = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(pathlib.Path.home())}
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("text", [text for language, text in BLOCKS if language == "python"])
def test_python_runs(text, place):
    names = {"images": np.zeros((6, 32, 32, 3), np.uint8), "labels": np.arange(6)}
    exec(compile(text, "README.md", "exec"), names)
    assert names["model"].tau in (0.2, 0.08)


def test_the_layout_names_what_is_there():
    (layout,) = (text for _, text in BLOCKS if text.startswith("train.py export.py"))
    inside = ROOT
    for line in layout.splitlines():
        named = re.match(r"( *)((?:[\w.]+(?:\.py|/)(?:  ?|$))+)", line)
        depth, names = len(named[1]), named[2].split()
        folder = {0: ROOT, 2: ROOT / "dynkhydra_tf", 4: inside}[depth]
        for name in names:
            assert (folder / name).exists(), f"{name} of README's layout is not in {folder}"
        inside = folder / names[0]
