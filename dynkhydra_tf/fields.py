"""Fields of settings: frozen dataclasses whose fields know their range, their help and their role.

    @dataclasses.dataclass(frozen=True)
    class Options(Checked):
        tau: float = setting(0.08, "A branch below it is dropped.", least=0, below=1)

`Options(tau=2.0)` raises a `UserError`, and so does `--tau=2`: `flags.py` makes a flag of each field.
"""

import dataclasses
import enum
import math
import os
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from dynkhydra_tf.errors import UserError


class Role(enum.Enum):
    """What a setting of a training run says, and so when two runs may differ in it."""

    PLACE = "where things are; changes no result"
    DATA = "which images"
    RECIPE = "how they are shown and for how long the network is trained"
    NETWORK = "which network"
    PARTITION = "which classes each branch has"
    FEATURES = "how images are embedded to find that out"
    SEED = "which draw of all that is random"
    ACTION = "what becomes of a run that is there; not stored with the run"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is known of a field beside its type and default; see `setting`."""

    help: str
    role: Role | None = None
    choices: tuple[str, ...] | None = None
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    path: bool = False
    word: str | None = None
    item: Callable[[str], Any] | None = None
    item_text: Callable[[Any], str] = str
    form: str = ""
    repeated: bool = False


def setting(default: Any, help: str, **known: Any) -> Any:
    """Makes a field of a `Checked` dataclass.

    Args:
        default: its default; a tuple for a list.
        help: what it means, and what the paper used.
        known: of `Setting`: role; choices, the texts allowed; least and most, above and below, the bounds of
            a number or of each one in a list, these two included, those not; path: whether a "~" at its
            beginning is the user's home; word: a text that a switch can have besides true and false; item and
            item_text, from a list item's text to its value and back, where that is not plain int, float or
            str; form: such a list in words, for messages; repeated: whether the flag is given once for each
            item of a list, which may then hold commas.
    """
    return dataclasses.field(default=default, metadata={"setting": Setting(help, **known)})


@dataclasses.dataclass(frozen=True)
class Checked:
    """A dataclass of `setting` fields, and of fields that are such dataclasses, checked when it is made.

    Raises:
        UserError: a value out of its range; the message names the field and what was received.
    """

    def __post_init__(self) -> None:
        """Opens "~" in paths and checks every value."""
        for field in dataclasses.fields(self):
            known, value = field.metadata.get("setting"), getattr(self, field.name)
            if known is None or value is None:
                continue
            if known.path:
                object.__setattr__(self, field.name, os.path.expanduser(value))
            problem = _problem(known, value)
            if problem:
                raise UserError(f"{field.name} must be {problem}. Received: {list_text(known, value)}")
        self.check()

    def check(self) -> None:
        """Checks what concerns several fields; a subclass's own.

        Raises:
            UserError: they do not go together.
        """


def leaves(cls: type[Checked]) -> Iterator[dataclasses.Field]:
    """The `setting` fields of a `Checked` class, those of its inner dataclasses in their places."""
    for field in dataclasses.fields(cls):
        if "setting" in field.metadata:
            yield field
        else:
            yield from leaves(typing.cast(type[Checked], field.type))


def values(settings: Checked) -> dict[str, Any]:
    """Every leaf's value by its name."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        found |= {field.name: value} if "setting" in field.metadata else values(value)
    return found


def make(cls: type[Checked], by_name: dict[str, Any]) -> Any:
    """Makes an instance of a `Checked` class from its leaves' values by name; those left out are defaults.

    Raises:
        UserError: a value out of its range.
    """
    arguments = {}
    for field in dataclasses.fields(cls):
        if "setting" not in field.metadata:
            arguments[field.name] = make(typing.cast(type[Checked], field.type), by_name)
        elif field.name in by_name:
            arguments[field.name] = by_name[field.name]
    return cls(**arguments)


def changed(settings: Checked, **by_name: Any) -> Any:
    """Returns a copy in which the leaves named have other values."""
    return make(type(settings), values(settings) | by_name)


def base_type(field: dataclasses.Field) -> tuple[type, bool]:
    """Returns (int, float, str or bool, whether the field is a list of them), None in it left out."""
    kind: Any = field.type
    if isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if typing.get_origin(kind) is tuple:
        return typing.get_args(kind)[0], True
    return kind, False


def list_text(known: Setting, value: Any) -> str:
    """A value as a flag would have it."""
    return ",".join(map(known.item_text, value)) if isinstance(value, tuple) else str(value)


def _problem(known: Setting, value: Any) -> str | None:
    """What the value must be, where it is something else; else None."""
    if known.word and not isinstance(value, bool) and value != known.word:
        return f"True, False or {known.word}"
    items = value if isinstance(value, tuple) else (value,)
    if known.choices is not None and not all(item in known.choices for item in items):
        return f"one of {', '.join(known.choices)}"
    numbers = [item for item in items if isinstance(item, (int, float)) and not isinstance(item, bool)]
    if all(_within(known, number) for number in numbers):
        return None
    return ("numbers " if isinstance(value, tuple) else "") + _range_text(known)


def _within(known: Setting, number: float) -> bool:
    return (
        math.isfinite(number)
        and (known.least is None or number >= known.least)
        and (known.most is None or number <= known.most)
        and (known.above is None or number > known.above)
        and (known.below is None or number < known.below)
    )


def _range_text(known: Setting) -> str:
    low = known.least if known.above is None else known.above
    high = known.most if known.below is None else known.below
    if low is None and high is None:
        return "finite"
    if high is None:
        return f"{'at least' if known.above is None else 'above'} {low:.10g}"
    if low is None:
        return f"{'at most' if known.below is None else 'below'} {high:.10g}"
    opening, closing = "[" if known.above is None else "(", "]" if known.below is None else ")"
    return f"in {opening}{low:.10g}, {high:.10g}{closing}"
