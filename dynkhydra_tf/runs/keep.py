"""Copies what runs have to tell, without what they weigh: into a repository, a report, a paper's supplement.

    python -m dynkhydra_tf.runs.keep runs/a runs/b --output_dir=docs/runs

Of each run: flags, classes, partition, a row for each epoch, summary, and the results of its evaluation; no
weights, no pictures. Where things lie on this machine is left out: of a file that the flags name, its last
part stays. `paper.report` and `paper.reproduce` find finished runs there.
"""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Sequence

from dynkhydra_tf import cli
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, Role, changed, leaves, setting, values
from dynkhydra_tf.files import check_writable, making, replacing, write_json, write_text
from dynkhydra_tf.flags import to_flagfile
from dynkhydra_tf.runs.finished import FinishedRun, run_state
from dynkhydra_tf.runs.layout import EvaluationFile, RunFile
from dynkhydra_tf.settings import Settings

COPIED = (RunFile.DATA, RunFile.PARTITION, RunFile.METRICS, RunFile.SUMMARY)


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command."""

    output_dir: str = setting("docs/runs", "Where a directory for each run is made.", path=True)


def main(options: Options, paths: Sequence[str]) -> None:
    """Copies the runs.

    Args:
        options: the flags.
        paths: run directories.
    """
    runs = [FinishedRun.open(path) for path in paths]
    names = [run.name for run in runs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"Runs are kept by their names, which must differ. Received: {twice[0]} twice")
    output = pathlib.Path(options.output_dir)
    check_writable(output, "output_dir")
    for run in runs:
        if run_state(run.path) != "finished":
            raise UserError(f"A run is kept when it has finished. Received: {run.path}")
        place = output / run.name
        if os.path.lexists(place) and not (place / RunFile.FLAGS).is_file():
            raise UserError(f"{place} is there, and is no run that was kept: give another --output_dir")
        if place.exists() and place.samefile(run.path):
            raise UserError(f"--output_dir must be another place than the runs'. Received: {output}")
    for run in runs:
        keep(run, output / run.name)
    print(f"Kept in {output}: {', '.join(names)}")


def keep(run: FinishedRun, place: pathlib.Path) -> None:
    """Copies one run to a directory that is not there yet, or that holds what was kept of it before."""
    with making(place) as directory:
        for name in COPIED:
            _copy(run.path / name, directory / name)
        if results := run.results():
            with making(directory / run.evaluation.name) as evaluation:
                results = {key: value for key, value in results.items() if key != "model"}
                write_json(evaluation / EvaluationFile.RESULTS, results)
                _copy(run.evaluation / EvaluationFile.TAU_ROWS, evaluation / EvaluationFile.TAU_ROWS)
        write_text(directory / RunFile.FLAGS, to_flagfile(without_places(run.settings)))


def _copy(source, target):
    """Copies a file, if it is there, whole or not at all."""
    if source.is_file():
        with replacing(target) as path:
            shutil.copyfile(source, path)


def without_places(settings: Settings) -> Settings:
    """Returns settings that name no place of this machine: of a file, its name alone."""
    now = values(settings)
    changes: dict[str, object] = {}
    for field in leaves(type(settings)):
        known, value = field.metadata["setting"], now[field.name]
        if known.role is Role.PLACE and known.path:
            changes[field.name] = None
        elif known.path and value is not None:
            changes[field.name] = pathlib.PurePath(value).name
    return changed(settings, **changes)


if __name__ == "__main__":
    cli.run(main, Options, positional="runs")
