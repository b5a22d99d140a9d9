"""A command of one flag."""

import dataclasses
import importlib
import importlib.util
import os
import re
import subprocess
import sys

import pytest

from dynkhydra_tf import cli
from dynkhydra_tf.__main__ import VERBS
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, leaves, setting
from dynkhydra_tf.settings import Settings
from tests.conftest import ROOT


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """Its flag."""

    count: int = setting(1, "How many.", least=0)


def main(options):
    if options.count == 0:
        raise UserError("count is 0;\ntake more")
    if options.count == 9:
        raise KeyboardInterrupt
    print("count", options.count)


def test_a_good_call(run_command, capsys, tmp_path):
    assert run_command(main, Options, "--count=3") is None
    (tmp_path / "some.cfg").write_text("# a comment\n--count=4\n")
    assert run_command(main, Options, f"--flagfile={tmp_path}/some.cfg") is None
    assert capsys.readouterr().out == "count 3\ncount 4\n"


def test_bad_calls_end_in_one_line(run_command, capsys):
    for argument, message in [
        ("--count=0", "error: count is 0; take more\n"),
        ("--count=-1", "error: count must be at least 0. Received: -1\n"),
        ("more", "error: Flags begin with --. Received: more\n"),
    ]:
        assert run_command(main, Options, argument) == 2
        assert capsys.readouterr().err == message


def test_an_interrupted_call(run_command, capsys):
    assert run_command(main, Options, "--count=9") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_help(run_command, capsys):
    assert run_command(main, Options, "--help") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("A command of one flag.") and "How many." in printed


def test_who_leaves_before_the_end_is_not_shown_a_traceback():
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(
        [sys.executable, "-m", "dynkhydra_tf.serving.client", "--help"],
        cwd=ROOT,
        stdout=writes,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_terminal_that_is_not_utf_8_shows_what_it_can():
    script = (
        "import dataclasses\n"
        "from dynkhydra_tf import cli\n"
        "from dynkhydra_tf.fields import Checked\n"
        "Options = dataclasses.make_dataclass('Options', [], bases=(Checked,), frozen=True)\n"
        "cli.run(lambda options: print('λ = 2, ü, \\udce9'), Options)\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"\\u03bb = 2, \xfc, \\udce9\n"), done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_that_is_a_path_opens_the_home(verb):
    name = f"dynkhydra_tf.{VERBS[verb]}"
    name += ".__main__" if importlib.util.find_spec(name).submodule_search_locations else ""
    module = importlib.import_module(name)
    path = re.compile(r".*(_dir|_file|feature_weights|_extractor)|output|compare|labels")
    for field in leaves(getattr(module, "Options", Settings)):
        assert field.metadata["setting"].path or not path.fullmatch(field.name), field.name


def test_positional_arguments(capsys):
    def show(options, photos):
        print(options.count, photos)

    def run(*arguments):
        cli.run(show, Options, ["command", *arguments], positional="photos")

    run("a.jpg", "--count=3", "b.png", "--", "--c.jpg")
    assert capsys.readouterr().out == "3 ['a.jpg', 'b.png', '--c.jpg']\n"
    with pytest.raises(SystemExit) as leaving:
        run("--count=3")
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith("error: There are no photos: ")


def test_flags_of_another_command_are_passed_on_in_their_order(capsys):
    def run(*arguments):
        cli.run(
            lambda options, rest: print(options.count, rest),
            Options,
            ["command", *arguments],
            positional="flags",
            at_least=0,
            pass_on=True,
        )

    run("--speed=2", "--count=3", "--near", "home", "--nofar", "--", "--count=5", "--")
    assert capsys.readouterr().out == "3 ['--speed=2', '--near', 'home', '--nofar', '--count=5', '--']\n"


def test_keras_brings_nothing_that_a_command_can_do_without():
    script = (
        "import sys\n"
        "from dynkhydra_tf import cli\n"
        "cli.run(lambda options: __import__('keras'), cli.Checked, ['command'])\n"
        "print([name for name in cli.NOT_FOR_COMMANDS if name in sys.modules])\n"
        "import matplotlib, sklearn.linear_model\n"
        "print(matplotlib.__name__, sklearn.__name__)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]", "matplotlib sklearn"], done.stderr[-2000:]
