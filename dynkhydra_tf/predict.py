"""Says what photos show, without a server.

    python -m dynkhydra_tf.predict --run_dir=runs/digits photo.jpg photos/ 'more/*.png'
    find . -name '*.jpg' | python -m dynkhydra_tf.predict --model_dir=served/digits/1 --csv -

Takes files, folders with all that is in them, globs, and for - a path a line from standard input. Prints a
row for each photo: the best classes with their probabilities, and which branches ran. A file that cannot be
read does not stop the others: it is named at the end, and the exit status is 1. A running server is asked by
dynkhydra_tf.serving.client.
"""

import csv
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

from dynkhydra_tf import cli
from dynkhydra_tf.answers import Answer
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.meter import Meter
from dynkhydra_tf.photo_files import Problem, find_photos
from dynkhydra_tf.quiet import SILENT, without_noise
from dynkhydra_tf.runs import FinishedRun, load_network, run_of
from dynkhydra_tf.tables import table


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command."""

    run_dir: str | None = setting(None, "A run of train.py: its model.keras.", path=True)
    model: str | None = setting(None, "A .keras file instead; one of train.py needs nothing else.", path=True)
    model_dir: str | None = setting(
        None, "A version that export.py wrote instead, such as served/digits/1: starts fastest.", path=True
    )
    tau: float | None = setting(None, "The threshold of a Hydra; default: its own.", least=0, below=1)
    top: int = setting(5, "Best classes to name of each photo.", least=1)
    batch_size: int = setting(32, "Photos in a step.", least=1)
    json: bool = setting(False, "Print JSON in place of a table: a list with an object for each photo.")
    csv: bool = setting(False, "Print CSV in place of a table.")

    def check(self) -> None:
        """Checks what goes together."""
        if sum(value is not None for value in (self.run_dir, self.model, self.model_dir)) != 1:
            raise UserError("Give one of --run_dir=DIR, --model=FILE.keras and --model_dir=DIR/VERSION")
        if self.json and self.csv:
            raise UserError("Give one of --json and --csv")
        if self.model_dir and self.tau is not None:
            raise UserError("An export has a tau of its own: leave --tau out, or export with another one")


def main(options: Options, names: list[str]) -> None:
    """Predicts what the names stand for, and prints it."""
    photos, problems = find_photos(names)
    answers = _of_export(options, photos) if options.model_dir else _of_network(options, photos)
    good = []
    with Meter("predict", len(photos), "photo", stream=sys.stderr) as meter:
        for number, answer in enumerate(answers, start=1):
            if answer.problem:
                problems.append(Problem(answer.path, answer.problem))
            else:
                good.append(answer)
            meter.update(number)
    if options.json:
        print(json.dumps([_record(answer) for answer in good], indent=1, ensure_ascii=False))
    elif options.csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows(_csv_rows(good))
    elif good:
        print(table(list(_table_rows(good)), text_columns=(0, 1, 3, 4)))
    sys.stdout.flush()
    for name, reason in problems:
        print(f"{name}: {reason}", file=sys.stderr)
    if problems:
        print(f"error: {len(problems)} of {len(problems) + len(good)} could not be read", file=sys.stderr)
        sys.exit(1)


# === The networks ===


def _of_network(options: Options, photos: Sequence[str]) -> Iterator[Answer]:
    """The answers of a run's network, or of a .keras file's."""
    # Only now: what is wrong with flags and photos is told in a moment, and an export does without.
    from dynkhydra_tf.classification import classify_photos
    from dynkhydra_tf.plain import Plain

    if options.run_dir:
        run = FinishedRun.open(options.run_dir)
        path, model = run.model_path, run.load_model()
    else:
        path = pathlib.Path(options.model)
        model = load_network(path)
        run = None if model.class_names else run_of(path)  # models of early versions do not know them
    if options.tau is not None:
        if isinstance(model, Plain):
            raise UserError(f"{path} holds a plain network, which has no gate: leave --tau out")
        model.tau = options.tau
    class_names, fit = model.class_names, model.picture_fit
    if run:
        class_names, fit = class_names or run.class_names, fit or run.fit
    if not class_names or not fit:
        raise UserError(
            f"{path} does not know its class names, and lies in no run that does: give --run_dir=DIR of the "
            "run that it is of, or train it again"
        )
    size = model.backbone.input_shape[0]
    return classify_photos(model.answer, photos, class_names, size, fit, options.top, options.batch_size)


def _of_export(options: Options, photos: Sequence[str]) -> Iterator[Answer]:
    """The answers of an export."""
    from dynkhydra_tf.serving.classification import classify_photos, labels_told, open_export

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", SILENT)
    with without_noise():
        model = open_export(options.model_dir)
    told = labels_told(model)
    if options.top > told and options.top != Options.top:
        raise UserError(
            f"{options.model_dir} names {told} of the classes: leave --top={options.top} out, or export "
            f"again with --top_classes={options.top}"
        )
    return classify_photos(model, photos, options.top, options.batch_size)


# === What is printed ===


def _record(answer: Answer) -> dict:
    """An answer for JSON."""
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
        yield [answer.path, answer.label, f"{answer.probability:.1%}", branches, others]


if __name__ == "__main__":
    cli.run(main, Options, positional="photos")
