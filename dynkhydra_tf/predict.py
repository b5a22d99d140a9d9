"""Says what photos show, without a server.

    python -m dynkhydra_tf.predict --run_dir=runs/digits photo.jpg photos/ 'more/*.png'
    find . -name '*.jpg' | python -m dynkhydra_tf.predict --model_dir=served/digits/1 --csv -

Takes files, folders with all that is in them, globs, and for - a path a line from standard input. Prints a
row for each photo: the best classes with their probabilities, and which branches ran. A file that cannot be
read does not stop the others: it is named at the end, and the exit status is 1. A running server is asked by
dynkhydra_tf.serving.client.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence

from dynkhydra_tf import cli
from dynkhydra_tf.answers import Answer
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.photo_files import find_photos
from dynkhydra_tf.printed_answers import print_answers
from dynkhydra_tf.quiet import SILENT, without_noise
from dynkhydra_tf.runs import FinishedRun, load_network, run_of


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
    form = "json" if options.json else "csv" if options.csv else "table"
    print_answers(answers, len(photos), problems, form)


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


if __name__ == "__main__":
    cli.run(main, Options, positional="photos")
