"""How the commands start: flags are parsed, and bad input ends in one line and exit status 2."""

import os
import select
import sys
from collections.abc import Callable, Sequence

from absl import flags

from dynkhydra_tf import flags as dynkhydra_flags
from dynkhydra_tf.caches import provide_home
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked
from dynkhydra_tf.import_hooks import around_import, as_if_missing, uncollected
from dynkhydra_tf.quiet import quietly

# What Keras imports where it is there, for data frames, its wrappers and its galleries: a fifth of a start.
NOT_FOR_COMMANDS = ("pandas", "sklearn", "matplotlib")


def run(
    main: Callable[..., None],
    options: type[Checked],
    argv: Sequence[str] | None = None,
    positional: str | None = None,
    at_least: int = 1,
    pass_on: bool = False,
) -> None:
    """Parses the flags and calls `main(options)`, or `main(options, rest)`; the way into every command.

    Args:
        main: callable; its module's docstring heads the help.
        options: the `Checked` dataclass of the command's flags, of which `main` gets an instance.
        argv: list of str, the command's name and its arguments; default `sys.argv`.
        positional: str, what the arguments that are no flags name, such as "photos": `main` gets them as
            a list of str, given before or after the flags. Default: there may be none.
        at_least: int, how many of these there must be, 0 or 1.
        pass_on: bool, whether flags that are not the command's are among these, for another command.

    Raises:
        SystemExit: 0 after --help; 2 for bad input, which is told in one line on stderr; 130 after Ctrl-C;
            141 where the reader of the output has left, as `head` does.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal that is not UTF-8 shows what it can
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    provide_home()
    prepare_imports()
    values = dynkhydra_flags.FlagValues()
    dynkhydra_flags.define(values, options)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    values.set_gnu_getopt(positional is not None)  # else a flag after the first of them would be one of them
    try:
        rest = values(list(sys.argv if argv is None else argv), known_only=pass_on)[1:]
        if pass_on and "--" in rest:  # what follows it is passed on, whatever it is called
            rest.remove("--")
        if values.help:
            print(sys.modules[main.__module__].__doc__, values.get_help(), sep="\n", flush=True)
            sys.exit(0)
        if positional is None and rest:
            raise UserError(f"Flags begin with --. Received: {' '.join(rest)}")
        if positional is not None and len(rest) < at_least:
            raise UserError(f"There are no {positional}: name them beside the flags; --help tells more")
        given = dynkhydra_flags.read(options, values)
        main(given) if positional is None else main(given, rest)
        sys.stdout.flush()
    except BrokenPipeError:
        _leave_if_nobody_reads()
        raise
    except (flags.Error, UserError) as error:
        # absl's messages may run over several lines.
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def prepare_imports() -> None:
    """Has TensorFlow and Keras imported without their noise and without what a command can do without."""
    around_import("tensorflow", quietly)
    around_import("tensorflow", uncollected)  # a fifth of a start
    around_import("tensorflow", lambda: as_if_missing("scipy"))  # for its own old Keras
    around_import("keras", lambda: as_if_missing(*NOT_FOR_COMMANDS))


def _leave_if_nobody_reads():
    """Ends the process quietly if it was its output whose reader has left, and not another pipe's."""
    look = select.poll()
    look.register(sys.stdout, 0)
    if any(event & select.POLLERR for _, event in look.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
        sys.exit(141)
