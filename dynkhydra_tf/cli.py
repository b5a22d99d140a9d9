"""How the commands start: flags are parsed, and bad input ends in one line and exit status 2."""

import sys

from absl import flags

from dynkhydra_tf.errors import UserError


def run(main, define_flags, argv=None):
    """Parses the flags and calls `main(values)`; the way into every command.

    Args:
        main: callable that takes `absl.flags.FlagValues`; its module's docstring heads the help.
        define_flags: callable that defines the command's flags on a `FlagValues`.
        argv: list of str, the command's name and its arguments; default `sys.argv`.

    Raises:
        SystemExit: 0 after --help; 2 for bad input, which is told in one line on stderr; 130 after Ctrl-C.
    """
    values = flags.FlagValues()
    define_flags(values)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    try:
        rest = values(list(sys.argv if argv is None else argv))
        if values.help:
            print(sys.modules[main.__module__].__doc__, values.get_help(), sep="\n")
            sys.exit(0)
        if len(rest) > 1:
            raise UserError(f"Flags begin with --. Received: {' '.join(rest[1:])}")
        main(values)
    except (flags.Error, UserError) as error:
        # absl's messages may run over several lines.
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
