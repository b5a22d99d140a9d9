"""The directory of a run: `RunDirectory` while it is made, `FinishedRun` when it is read.

    flags.cfg        the run's flags; a flagfile that runs again as it is
    data.json        the data set's classes and sizes, and what tells a folder's images from others
    partition.json   the class partition; a plain network has none, nor branches.png
    checkpoints/     step-NNNNNNNN.keras: the last two, and that of the best epoch; may be a link elsewhere
    metrics.csv      a row for each finished epoch
    logs/            TensorBoard
    model.keras      the trained model, after the last epoch
    learning_curves.png, branches.png
    summary.json     results, costs, versions, machine; written last: a run that has it is finished
    evaluation/      what was found out about it later
    .dynkhydra_run   marks the directory: files of these names, and no others, are the run's to delete

Nothing about progress is stored twice: the epoch and step are the optimizer's iterations, the best
epoch is found in metrics.csv, and every file is written beside its place and renamed into it. Keras and what
is built on it are imported where they are used: to read what a run says of itself takes a moment.
"""

from dynkhydra_tf.runs.data_record import class_changes
from dynkhydra_tf.runs.directory import RunDirectory
from dynkhydra_tf.runs.finished import FinishedRun, open_trained, run_of, run_state
from dynkhydra_tf.runs.layout import EvaluationFile, RunFile
from dynkhydra_tf.runs.networks import check_network, load_network
from dynkhydra_tf.runs.shared import open_run

__all__ = [
    "EvaluationFile",
    "FinishedRun",
    "RunDirectory",
    "RunFile",
    "check_network",
    "class_changes",
    "load_network",
    "open_run",
    "open_trained",
    "run_of",
    "run_state",
]
