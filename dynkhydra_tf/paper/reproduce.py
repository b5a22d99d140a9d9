"""Runs what a table of the paper needs, and sets the results beside the paper's.

    python -m dynkhydra_tf.paper.reproduce --table=4 --depths=1,2 --epochs=12 --runs_dir=runs/table4

Tables: 1 to 6, and "plus", what goes beyond the paper. Each run lies in RUNS_DIR/NAME, with what it prints in
RUNS_DIR/NAME.log. Finished runs are skipped, broken ones go on where they stopped, and a run that fails is
passed over and named at the end. After each run RUNS_DIR/table4.md, .csv and .png are written anew; with
several --seeds they have the mean and the standard deviation. All other flags go to train.py:

    ... --seeds=0,1,2 --feature_extractor=features.keras --mixed_precision

With fewer --epochs than the config's, a run takes the schedule of configs/short.cfg: the paper's drops of the
learning rate would come after its end.
"""

import dataclasses
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dynkhydra_tf import cli, fields
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.files import check_writable, write_csv, write_text
from dynkhydra_tf.paper.experiments import CONFIGS, TABLES, TAUS, Experiment, experiments
from dynkhydra_tf.paper.results import (
    TEXT_COLUMNS,
    result_rows,
    result_table,
    tau_rows,
    tau_table,
    training_text,
)
from dynkhydra_tf.paper.tradeoff import save_tradeoff
from dynkhydra_tf.paper_numbers import PLAIN
from dynkhydra_tf.runs import FinishedRun, run_state
from dynkhydra_tf.settings import Settings, differences
from dynkhydra_tf.tables import markdown_table
from dynkhydra_tf.tables import table as text_table

TRAIN = ("-m", "dynkhydra_tf.train")  # what Python runs


class Job(NamedTuple):
    """One run of an experiment: its directory and the flags of train.py that make it."""

    experiment: Experiment
    path: pathlib.Path
    arguments: list[str]

    @property
    def settings(self) -> Settings:
        """What `arguments` describe."""
        return self.experiment.settings(*self.arguments)

    @property
    def commands(self) -> list[list[str]]:
        """The commands that are still to be run, in order; [] when it has finished."""
        run, commands = FinishedRun.find(self.path), []
        if run is None:
            commands.append([sys.executable, *TRAIN, *self.arguments, f"--run_dir={self.path}"])
        if self.experiment.series.method != PLAIN and not (
            run and {row["tau"] for row in run.tau_table()} >= set(TAUS)
        ):
            taus = ",".join(f"{tau:g}" for tau in TAUS)
            evaluate = [sys.executable, "-m", "dynkhydra_tf.evaluation", f"--run_dir={self.path}"]
            data_dir = self.settings.data.data_dir
            commands.append([*evaluate, f"--tau={taus}", *([f"--data_dir={data_dir}"] if data_dir else [])])
        return commands

    @property
    def state(self) -> str:
        """One word or two on how far it is."""
        if not self.commands:
            return "finished"
        return {"new": "new", "started": "to go on", "finished": "to evaluate"}[run_state(self.path)]


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command; all others are flags of train.py."""

    table: tuple[str, ...] = setting((), f"Tables to run, of {', '.join(TABLES)}.")
    datasets: tuple[str, ...] = setting((), "Only these data sets of a table, such as cifar100.")
    depths: tuple[int, ...] = setting((), "d, such as 1,2; default: the table's own.", least=1)
    seeds: tuple[int, ...] = setting((0,), "Each run once with each of these seeds.", least=0)
    epochs: int | None = setting(None, "Default: the paper's.", least=1)
    data_dir: str | None = setting(None, "Where prepared tfds data sets lie; as in train.py.", path=True)
    runs_dir: str = setting("runs/paper", "Where runs and tables are written.", path=True)
    dry_run: bool = setting(False, "Print the commands that are still to be run; run nothing.")


def main(options: Options, train_flags: Sequence[str]) -> None:
    """Runs the tables.

    Args:
        options: the flags of this command.
        train_flags: flags of train.py, for every run.
    """
    # === Plan: what can be wrong is found before any long work ===
    if not options.table or set(options.table) - set(TABLES):
        raise UserError(
            f"--table must be of {', '.join(TABLES)}. Received: {','.join(options.table) or 'none'}"
        )
    if not options.seeds:
        raise UserError("--seeds must be whole numbers. Received: none")
    root = pathlib.Path(options.runs_dir)
    if options.data_dir:
        train_flags = [f"--data_dir={options.data_dir}", *train_flags]
    plan = {key: _of_datasets(key, options.datasets, options.depths) for key in dict.fromkeys(options.table)}
    jobs: dict[pathlib.Path, Job] = {}
    for seed in options.seeds:
        for experiment in dict.fromkeys(each for listed in plan.values() for each in listed):
            job = _job(experiment, seed, root, options.epochs, train_flags)
            jobs.setdefault(job.path, job)  # tables share runs
    _check_runs(jobs.values(), train_flags)
    if options.dry_run:
        for job in jobs.values():
            print(f"# {job.path}: {job.state}")
            for command in job.commands:
                print(shlex.join(["python", *command[1:]]))
        return
    check_writable(root, "runs_dir")
    root.mkdir(parents=True, exist_ok=True)

    # === Run what is missing ===
    print(text_table([["run", "state"], *([str(job.path), job.state] for job in jobs.values())], (0, 1)))
    failed = []
    for number, job in enumerate(jobs.values(), 1):
        for command in job.commands:
            log = root / f"{job.path.name}.log"
            print(f"\n[{number}/{len(jobs)}] {job.path}: {job.state}; its output: {log}", flush=True)
            start = time.monotonic()
            status = _run(command, log)
            minutes = (time.monotonic() - start) / 60
            if status:
                last = (log.read_text(errors="replace").splitlines() or [""])[-1]
                failed.append(f"{job.path.name}: exit status {status} ({last[:200]})")
                print(f"failed after {minutes:.1f} min; going on with the next one", flush=True)
                break
            print(f"done in {minutes:.1f} min", flush=True)
            for key, listed in plan.items():
                write_table(key, listed, jobs.values(), root)

    # === Tell ===
    for key, listed in plan.items():
        print(f"\n{write_table(key, listed, jobs.values(), root)}")
    names = ", ".join(f"table{key}" for key in plan)
    print(f"Written to {root}: {names} (.md, .csv, .png)")
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} runs failed. " + "; ".join(failed))


def _of_datasets(key, datasets, depths):
    listed = experiments(key, depths)
    own = {each: each.settings().data.dataset for each in listed}
    if datasets and not set(datasets) & set(own.values()):
        raise UserError(
            f"Table {key} has the data sets {', '.join(dict.fromkeys(own.values()))}. Received: "
            f"--datasets={','.join(datasets)}"
        )
    return [each for each in listed if not datasets or own[each] in datasets]


def _job(experiment, seed, root, epochs, train_flags):
    arguments = experiment.arguments
    if epochs is not None:
        if epochs < experiment.settings().optimisation.epochs:
            arguments = [*arguments, f"--flagfile={CONFIGS / 'short.cfg'}"]
            if epochs == 1:  # the warm-up would be all of it
                arguments.append("--warmup_epochs=0")
        arguments = [*arguments, f"--epochs={epochs}"]
    arguments = [*arguments, f"--seed={seed}", *train_flags]
    return Job(experiment, root / f"{experiment.name}-seed{seed}", arguments)


def _check_runs(jobs, train_flags):
    """Refuses flags that change which network is trained, and directories that hold other runs."""
    for job in jobs:
        settings = job.settings
        if run_state(job.path) != "new" and (
            differing := differences(settings, FinishedRun.open(job.path).settings)
        ):
            raise UserError(
                f"{job.path} holds a run with other flags: {', '.join(differing)}. Give its flags, or "
                "another --runs_dir"
            )
        given, own = fields.values(settings), fields.values(job.experiment.settings())
        for name in ("run_dir", "depth", "system", "dataset"):
            if given[name] != own[name]:
                raise UserError(
                    f"--{name} is of the table and cannot be given. Received: {' '.join(train_flags)}"
                )


def _run(command, log):
    """Runs a command with its output appended to a log; its exit status. Ctrl-C and SIGTERM end it first."""
    with log.open("a", encoding="utf-8") as file:
        # In a session of its own: a Ctrl-C reaches it once, from here.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()  # train.py saves a checkpoint first
            process.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)


def write_table(key: str, listed: Sequence[Experiment], jobs: Iterable[Job], root: pathlib.Path) -> str:
    """Writes tableKEY.md, .csv and .png of what has finished; returns the Markdown.

    Args:
        key: of `TABLES`.
        listed: its experiments.
        jobs: the runs to count, finished or not.
        root: the directory.
    """
    runs = [run for job in jobs if (run := FinishedRun.find(job.path))]
    rows = result_rows(listed, runs)
    parts = [f"## {TABLES[key].title}", training_text(rows), _markdown(result_table(rows))]
    write_csv(root / f"table{key}.csv", rows)
    by_tau = tau_rows(listed, runs) if TABLES[key].by_tau else []
    if by_tau:
        parts.append(_markdown(tau_table(by_tau)))
        write_csv(root / f"table{key}_tau.csv", by_tau)
    if any(row["top1"] is not None for row in rows):
        save_tradeoff(rows, root / f"table{key}.png")
    text = "\n\n".join(filter(None, parts)) + "\n"
    write_text(root / f"table{key}.md", text)
    return text


def _markdown(rows):
    return markdown_table(rows, [i for i, head in enumerate(rows[0]) if head in TEXT_COLUMNS])


if __name__ == "__main__":
    cli.run(main, Options, positional="flags of train.py", at_least=0, pass_on=True)
