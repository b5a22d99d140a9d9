"""A command of one flag."""

import pytest
from absl import flags

from dynkhydra_tf import cli
from dynkhydra_tf.errors import UserError


def define_flags(flag_values):
    flags.DEFINE_integer("count", 1, "How many.", lower_bound=0, flag_values=flag_values)


def main(values):
    if values.count == 0:
        raise UserError("count is 0;\ntake more")
    if values.count == 9:
        raise KeyboardInterrupt
    print("count", values.count)


def test_a_good_call(run_command, capsys, tmp_path):
    assert run_command(main, define_flags, "--count=3") is None
    (tmp_path / "some.cfg").write_text("# a comment\n--count=4\n")
    assert run_command(main, define_flags, f"--flagfile={tmp_path}/some.cfg") is None
    assert capsys.readouterr().out == "count 3\ncount 4\n"


def test_bad_calls_end_in_one_line(run_command, capsys):
    for argument, message in [
        ("--count=0", "error: count is 0; take more\n"),
        ("--count=-1", "error: flag --count=-1: -1 is not a non-negative integer\n"),
        ("more", "error: Flags begin with --. Received: more\n"),
    ]:
        assert run_command(main, define_flags, argument) == 2
        assert capsys.readouterr().err == message


def test_an_interrupted_call(run_command, capsys):
    assert run_command(main, define_flags, "--count=9") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_help(run_command, capsys):
    assert run_command(main, define_flags, "--help") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("A command of one flag.") and "How many." in printed


def test_positional_arguments(capsys):
    def show(values, photos):
        print(values.count, photos)

    def run(*arguments):
        cli.run(show, define_flags, ["command", *arguments], positional="photos")

    run("a.jpg", "--count=3", "b.png", "--", "--c.jpg")
    assert capsys.readouterr().out == "3 ['a.jpg', 'b.png', '--c.jpg']\n"
    with pytest.raises(SystemExit) as leaving:
        run("--count=3")
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith("error: There are no photos: ")
