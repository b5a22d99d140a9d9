"""The second way to name classes: a table of files and labels, as many public data sets come.

    file,label
    images/0001.jpg,cat
    images/0002.jpg,dog

Comma, semicolon or tab; the first line may be a heading; columns after the second do not count.
"""

import csv
import os
import pathlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import readable


def read_labels(path: str | os.PathLike, root: str, pictures: Iterable[str]) -> dict[str, str]:
    """Reads a table of labels.

    Args:
        path: the file, UTF-8.
        root: the image folder.
        pictures: the paths of its images, relative to it. A file of the table is one of them, or the end of
            one and no other: "1.jpg", or without its ending "1", for images/1.jpg.

    Returns:
        {path: label}, labels in Unicode's normal form C (NFC).

    Raises:
        UserError: the file cannot be read, is no such table, or empty; a file of it is not there, fits
            several images, has no label or two.
    """
    path = os.path.expanduser(os.fspath(path))
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(
            f"--labels={readable(path)} cannot be read ({reason}): give a table of file,label"
        ) from error
    heading = text.partition("\n")[0]
    delimiter = next((mark for mark in "\t;," if mark in heading), ",")
    rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if row]
    fitting = _index(pictures)

    def find(name):
        name = os.path.relpath(name, root) if os.path.isabs(name) else os.path.normpath(name)
        return [path for path in fitting[os.path.basename(name)] if _ends_with(path, name)]

    labels: dict[str, str] = {}
    missing = []
    for number, row in enumerate(rows):
        if len(row) < 2 or not row[1].strip():
            raise UserError(f"{readable(path)} must have a file and a label in each row. Received: {row}")
        found = find(row[0].strip())
        if not found and number == 0 and not os.path.splitext(row[0])[1]:
            continue  # the heading
        if not found:
            missing.append(row[0])
            continue
        label = unicodedata.normalize("NFC", row[1].strip())
        if len(found) > 1:
            raise UserError(
                f"{readable(path)}: {row[0]} may be {readable(found[0])} or {readable(found[1])}; name the "
                f"directory, too, as seen from {readable(root)}"
            )
        if labels.setdefault(found[0], label) != label:
            raise UserError(
                f"{readable(path)} gives {row[0]} two labels: an image has one. Received: "
                f"{labels[found[0]]!r}, {label!r}"
            )
    if missing:
        raise UserError(
            f"{readable(path)}: {len(missing)} of its files are no images in {readable(root)}, such as "
            f"{missing[0]!r}: put them in, or take their rows away"
        )
    if not labels:
        raise UserError(f"{readable(path)} is empty: it must have a file and a label in each row")
    return labels


def _index(pictures):
    """The pictures by the names that they can go by: with and without ending."""
    fitting = defaultdict(list)
    for path in pictures:
        name = os.path.basename(path)
        for known in {name, os.path.splitext(name)[0]}:
            fitting[known].append(path)
    return fitting


def _ends_with(path, name):
    """Whether a path, with or without its ending, is `name` or ends with /name."""
    return any(f"/{known}".endswith(f"/{name}") for known in (path, os.path.splitext(path)[0]))
