"""Answers about photos as a command prints them: a table, JSON or CSV, and at the end what failed."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence

from dynkhydra_tf.answers import Answer
from dynkhydra_tf.meter import Meter
from dynkhydra_tf.photo_files import Problem
from dynkhydra_tf.tables import table


def print_answers(
    answers: Iterable[Answer],
    count: int,
    problems: Sequence[Problem],
    form: str | None,
    failed: str = "could not be read",
) -> None:
    """Prints answers when all are there, with progress on stderr until then, and names what failed.

    Args:
        answers: of photos.
        count: how many there will be.
        problems: those that are known before.
        form: "table", "json" (a list with an object for each photo) or "csv"; None: the answers are printed
            already.
        failed: what became of the others, in the last line.

    Raises:
        SystemExit: 1 where something failed.
    """
    problems, good = [*problems], []
    with Meter("predict", count, "photo", stream=sys.stderr) as meter:
        for number, answer in enumerate(answers, start=1):
            if answer.problem:
                problems.append(Problem(answer.path, answer.problem))
            else:
                good.append(answer)
            meter.update(number)
    if form == "json":
        print(json.dumps([record(answer) for answer in good], indent=1, ensure_ascii=False))
    elif form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows(_csv_rows(good))
    elif form == "table" and good:
        print(table(list(_table_rows(good)), text_columns=(0, 1, 3, 4)))
    sys.stdout.flush()
    for name, reason in problems:
        print(_printable(f"{name}: {reason}"), file=sys.stderr)
    if problems:
        print(f"error: {len(problems)} of {len(problems) + len(good)} {failed}", file=sys.stderr)
        sys.exit(1)


def record(answer: Answer) -> dict:
    """An answer without a problem, for JSON."""
    top = [{"label": label, "probability": round(probability, 6)} for label, probability in answer.top]
    branches = {} if answer.branches is None else {"branches": answer.branches}
    return {"file": answer.path, **top[0], **branches, "top": top}


def _csv_rows(answers: Sequence[Answer]) -> Iterator[list]:
    """The header, and a row for each answer; all that answer for one network name as many classes."""
    count = len(answers[0].top) if answers else 1
    names = [name for number in range(2, count + 1) for name in (f"label_{number}", f"probability_{number}")]
    yield ["file", "label", "probability", "branches", *names]
    for answer in answers:
        label, probability, *others = (
            value for label, probability in answer.top for value in (label, f"{probability:.6f}")
        )
        yield [answer.path, label, probability, " ".join(map(str, answer.branches or ())), *others]


def _table_rows(answers: Sequence[Answer]) -> Iterator[list[str]]:
    """The header, and a row for each answer."""
    yield ["photo", "class", "probability", "branches", "next"]
    for answer in answers:
        branches = "-" if answer.branches is None else ", ".join(map(str, answer.branches))
        others = ", ".join(f"{label} {probability:.1%}" for label, probability in answer.top[1:])
        names = _printable(answer.path), _printable(answer.label or "")
        yield [*names, f"{answer.probability:.1%}", branches, _printable(others)]


def _printable(text: str) -> str:
    """Text in one line, which tells a terminal nothing else: what is not printable as Python writes it."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
