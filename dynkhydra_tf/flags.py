"""From the fields of settings to flags and back; flagfiles.

A run stores its settings as `flags.cfg`, a flagfile that runs again as it is.
"""

import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags

from dynkhydra_tf import fields
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, Role, leaves
from dynkhydra_tf.settings import Settings

CONFIGS = pathlib.Path(__file__).parent / "configs"


class FlagValues(flags.FlagValues):
    """absl's, with another way to find flagfiles.

    One that a flagfile names is looked for beside it first, then where the command runs; configs/NAME.cfg is
    the package's own where there is no other.
    """

    def read_flags_from_files(self, argv: Sequence[str], force_gnu: bool = True) -> list[str]:
        """Returns the arguments with those of the flagfiles in place of --flagfile.

        Raises:
            UserError: a flagfile is not there, cannot be read, or names itself.
        """
        return list(_expanded(argv))


def _expanded(arguments: Sequence[str], inside: tuple[pathlib.Path, ...] = ()) -> Iterator[str]:
    left = iter(arguments)
    for argument in left:
        flag, equals, name = argument.partition("=")
        if flag in ("--flagfile", "-flagfile"):
            path = _find_flagfile(name if equals else next(left, ""), inside)
            try:
                lines = [
                    line.strip()
                    for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
                ]
            except (OSError, UnicodeError) as error:
                raise UserError(f"--flagfile cannot be read: {error}") from error
            yield from _expanded([line for line in lines if line and line[0] != "#"], (*inside, path))
        else:
            yield argument
        if argument == "--":  # what follows is for somebody else
            yield from left


def _find_flagfile(name: str, inside: tuple[pathlib.Path, ...]) -> pathlib.Path:
    path = pathlib.Path(name).expanduser()
    places = [file.parent / path for file in inside[-1:]] + [path]
    if path.parts[:-1] == ("configs",):
        places.append(CONFIGS / path.name)
    found = next((place.resolve() for place in places if place.is_file()), None)
    if found is None:
        raise UserError(
            f"--flagfile must be a file, or one of the package, such as configs/digits.cfg. Received: {name}"
        )
    if found in inside:
        raise UserError(f"--flagfile must not name itself. Received: {name} in {inside[-1]}")
    return found


def define(flag_values: flags.FlagValues, cls: type[Checked]) -> None:
    """Defines a flag for each setting of a class, those of its inner dataclasses too."""
    for field in leaves(cls):
        known = field.metadata["setting"]
        kind, is_list = fields.base_type(field)
        common: dict[str, Any] = {"name": field.name, "default": field.default, "help": known.help}
        if known.repeated:
            # No serializer: such flags are of commands that keep no flagfile.
            parser = _ItemParser(known)
            flags.DEFINE_multi(parser, None, flag_values=flag_values, **(common | {"default": None}))
        elif is_list:
            parser = _ListParser(kind, known)
            common["default"] = None if field.default is None else fields.list_text(known, field.default)
            flags.DEFINE(parser, serializer=parser, flag_values=flag_values, **common)
        elif known.word:
            parser = _SwitchParser(known.word)
            flag = flags.Flag(parser, None, field.name, field.default, known.help, boolean=True)
            flags.DEFINE_flag(flag, flag_values)
        elif known.choices:
            flags.DEFINE_enum(enum_values=list(known.choices), flag_values=flag_values, **common)
        else:
            _DEFINE[kind](flag_values=flag_values, **common)


def read(cls: type[Checked], flag_values: flags.FlagValues) -> Any:
    """Returns the instance of a class that the flags describe.

    Raises:
        UserError: a value out of its range.
    """
    given = {field.name: flag_values[field.name].value for field in leaves(cls)}
    for field in leaves(cls):
        if field.metadata["setting"].repeated:
            given[field.name] = tuple(given[field.name] or ())
    return fields.make(cls, given)


def parse(arguments: Sequence[str], cls: type[Checked] = Settings) -> Any:
    """Returns the instance of a class that a command's arguments describe, such as ["--depth=2"].

    Raises:
        UserError: an unknown flag, a value that is none of its type or out of its range, a missing flagfile.
    """
    flag_values = FlagValues()
    define(flag_values, cls)
    try:
        rest = flag_values(["flags", *arguments])[1:]
    except flags.Error as error:
        raise UserError(str(error)) from error
    if rest:
        raise UserError(f"Flags begin with --. Received: {' '.join(rest)}")
    return read(cls, flag_values)


def read_flagfile(path: str | os.PathLike) -> Settings:
    """Returns the settings of a run's flagfile; what it does not name has its default.

    Raises:
        UserError: the file is missing or holds what is no flag of this version.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return parse([line.strip() for line in file if line.startswith("--")])
    except (UserError, OSError, UnicodeError) as error:
        raise UserError(f"Cannot read the flags of a run from {path}: {error}") from error


def to_flagfile(settings: Settings) -> str:
    """Returns settings as the text of a flagfile, a line for each that has a value.

    What becomes of an older run is left out: a flagfile that runs again must not delete.
    """
    values, lines = fields.values(settings), []
    for field in leaves(type(settings)):
        known, value = field.metadata["setting"], values[field.name]
        if value is None or known.role is Role.ACTION:
            continue
        switch = f"--{'' if value else 'no'}{field.name}"
        lines.append(
            switch if isinstance(value, bool) else f"--{field.name}={fields.list_text(known, value)}"
        )
    return "".join(f"{line}\n" for line in lines)


_DEFINE: dict[type, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
}
_FORMS = {str: "texts", int: "whole numbers", float: "numbers"}


class _SwitchParser(flags.ArgumentParser):
    """A switch, on or off, or a word."""

    def __init__(self, word: str) -> None:
        self._word, self._switch = word, flags.BooleanParser()

    def parse(self, argument: str | int | bool) -> bool | str:
        """Returns what a text says; raises ValueError where it says something else."""
        if argument == self._word:
            return self._word
        try:
            return self._switch.parse(argument)
        except ValueError as error:
            raise ValueError(f"it must be true, false or {self._word}") from error


class _ItemParser(flags.ArgumentParser):
    """One item of a list that is given item by item."""

    def __init__(self, known: fields.Setting) -> None:
        self._known = known
        self.syntactic_help = known.form

    def parse(self, argument: Any) -> Any:
        """Returns the item of a text; raises ValueError where it is none."""
        return self._known.item(argument)

    def flag_type(self) -> str:
        """What absl calls it in the help."""
        return "text"


class _ListParser(flags.ArgumentParser, flags.ArgumentSerializer):
    """Values separated by commas, as a tuple; plain numbers each once, in their order."""

    def __init__(self, kind: type, known: fields.Setting) -> None:
        self._once = kind in (int, float)
        self._item = known.item or kind
        self._known = known
        self._form = known.form or f"{_FORMS[kind]}, separated by commas"
        self.syntactic_help = self._form

    def parse(self, argument: str | tuple) -> tuple:
        """Returns the tuple of a text; raises ValueError where an item is none."""
        if isinstance(argument, tuple):
            return argument
        try:
            items = [self._item(text.strip()) for text in argument.split(",") if text.strip()]
        except ValueError as error:
            raise ValueError(f"it must be {self._form}") from error
        return tuple(dict.fromkeys(items) if self._once else items)

    def flag_type(self) -> str:
        """What absl calls it in the help."""
        return "list"

    def serialize(self, value: tuple) -> str:
        """Returns the text of a tuple."""
        return fields.list_text(self._known, value)
