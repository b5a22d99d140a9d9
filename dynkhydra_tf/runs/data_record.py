"""data.json: what a run notes of its data, `ImageData.record`, to know them again."""

import json
import pathlib
from collections.abc import Sequence

from dynkhydra_tf.errors import UserError, first_few


def read_record(path: pathlib.Path) -> dict | None:
    """Reads the record of a run's data; None for a run of an early version, which has none.

    Raises:
        UserError: the file cannot be read, or is no such record.
    """
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"dataset": str, "class_names": list, "sizes": dict}
        if not all(isinstance(record[key], kind) for key, kind in kinds.items()):
            raise TypeError("values of other kinds")
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no record of a run's data ({error!r}): start anew with --overwrite"
        ) from error


def changes(then: dict, now: dict) -> str:
    """What differs between two records, as text for people; "" for nothing."""
    found = []
    if then["dataset"] != now["dataset"]:
        found.append(f"{then['dataset']} then, {now['dataset']} now")
    if set(then["class_names"]) != set(now["class_names"]):
        found.append(class_changes(then["class_names"], now["class_names"]))
    for split, count in then["sizes"].items():
        if count != now["sizes"].get(split):
            found.append(f"{count} images for {split} then, {now['sizes'].get(split)} now")
    if not found and then != now:
        found.append("as many of the same classes, with other names or other content")
    return "; ".join(found)


def class_changes(then: Sequence[str], now: Sequence[str]) -> str:
    """How two lists of class names differ, as text for people."""
    found = []
    for word, names in (("gone", set(then) - set(now)), ("new", set(now) - set(then))):
        if names:
            found.append(f"{word}: {len(names)} of the classes ({first_few(sorted(names))})")
    if not found:
        place = next(place for place, pair in enumerate(zip(then, now, strict=True)) if len(set(pair)) > 1)
        found.append(f"the same in another order: class {place} is {now[place]!r}, not {then[place]!r}")
    return "; ".join(found)
