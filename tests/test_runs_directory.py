"""Runs that are being made."""

import errno
import os
import shutil
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import LOCK
from dynkhydra_tf.flags import parse, read_flagfile
from dynkhydra_tf.partition import ClassPartition
from dynkhydra_tf.runs import RunDirectory, run_state
from dynkhydra_tf.runs.layout import MARK
from tests.conftest import ROOT

PARTITION = ClassPartition("toy", ("a", "b"), (0, 1), "random", None, 0)
RECORD = {
    "dataset": "toy",
    "class_names": ["a", "b"],
    "sizes": {"train": 8, "validation": 0, "test": 2},
    "fingerprint": "1f",
}


def open_run(path, *arguments):
    return RunDirectory.open(parse(["--dataset=digits", f"--run_dir={path}", *arguments]))


def start(path, *arguments):
    """Makes a directory a run, as train.py does."""
    with open_run(path, *arguments) as run:
        run.start(PARTITION, RECORD)
    return run


def refusal(path, *arguments):
    """What is said where a run is not let in."""
    with pytest.raises(UserError) as caught, open_run(path, *arguments):
        pass
    return str(caught.value)


@pytest.fixture
def run(tmp_path):
    return start(tmp_path / "run")


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("adamw", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def train_to(model, step):
    model.optimizer.iterations.assign(step)


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


# === Opening ===


def test_open_leaves_nothing_where_the_run_does_not_start(tmp_path):
    with pytest.raises(ValueError), open_run(tmp_path / "new" / "run"):
        assert names_in(tmp_path / "new" / "run") == [LOCK]
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_start_writes_flags_and_partition(run):
    assert names_in(run.path) == [MARK, "checkpoints", "data.json", "flags.cfg", "partition.json"]
    assert ClassPartition.load(run.path / "partition.json").cluster_of_class == (0, 1)
    assert not run.continued
    with open_run(run.path) as again:
        assert again.continued and not again.finished
        assert again.load_partition("toy", ("a", "b")) == PARTITION


def test_other_flags_are_named_and_nothing_is_touched(run):
    before = (run.path / "flags.cfg").read_text()
    told = refusal(run.path, "--tau=0.1")
    assert "other flags: --tau=0.1 (the run's: 0.08). Give its flags" in told and "--overwrite" in told
    assert (run.path / "flags.cfg").read_text() == before


def test_overwrite_starts_anew_and_only_when_the_new_run_starts(run, model):
    train_to(model, 4)
    run.save_checkpoint(model)
    with open_run(run.path, "--tau=0.1", "--overwrite") as again:
        assert not again.continued
        assert names_in(run.checkpoints) == ["step-00000004.keras"]
        again.start(PARTITION, RECORD)
    assert names_in(run.checkpoints) == []
    assert "--tau=0.1" in (run.path / "flags.cfg").read_text()


def test_what_a_kill_left_of_a_start_is_no_obstacle(run):
    # While it emptied a directory, or while it wrote its files.
    run.append_metrics({"epoch": 1, "step": 5, "val_top1": 0.5})
    (run.path / ".flags.123.cfg").write_text("--see")
    (run.path / "flags.cfg").unlink()
    (run.path / LOCK).write_text("process 1 on a container that is gone")
    with open_run(run.path) as again:
        assert not again.continued
        again.start(PARTITION, RECORD)
    assert names_in(run.path) == [MARK, "checkpoints", "data.json", "flags.cfg", "partition.json"]


def test_a_run_that_is_at_work_is_left_alone(run, tmp_path):
    # In a process of its own, which then dies without a word.
    script = (
        "import os, sys\n"
        "from dynkhydra_tf import runs, flags\n"
        "with runs.RunDirectory.open(flags.parse(sys.argv[1:])):\n"
        "    print(os.getpid(), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", script, "--dataset=digits", f"--run_dir={run.path}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, cwd=ROOT, **pipes) as process:
        pid = process.stdout.readline().strip()
        for option in ([], ["--overwrite"], ["--tau=0.3"]):
            told = refusal(run.path, *option)
            assert f"{run.path} is in use by process {pid} on {socket.gethostname()}" in told
        process.kill()
    with open_run(run.path) as again:
        assert again.continued
    assert LOCK not in names_in(run.path)


# === Whose files ===

FOREIGN = {
    ".git/config": "a repository",
    ".ssh/id_ed25519": "a key",
    ".bashrc": "a shell",
    ".flags.12.cfg": "half of something",
    "checkpoints/step-00000010.keras": "another project's",
    "checkpoints/best.ckpt": "another project's",
    "data.json": "{}",
    "evaluation/evaluation.json": "{}",
    "flags.cfg": "# the flags of their kiln\nheat = 1200\n",
    "learning_curves.png": "a picture",
    "logs/train/events.out.tfevents.1": "a log",
    "metrics.csv": "epoch,step",
    "model.keras": "a model",
    "partition.json": "{}",
    "summary.json": "{}",
}


def write_all(directory, texts):
    for name, text in texts.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def everything_in(directory):
    return {
        str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("option", [[], ["--overwrite"]])
@pytest.mark.parametrize("name", [*FOREIGN, "all"])
def test_a_directory_that_is_no_run_is_left_alone(tmp_path, name, option):
    texts = FOREIGN if name == "all" else {name: FOREIGN[name]}
    write_all(tmp_path / "theirs", texts)
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    for place in ("theirs", "link"):
        assert "is not empty and holds no run; give another --run_dir" in refusal(tmp_path / place, *option)
        assert everything_in(tmp_path / "theirs") == texts


@pytest.mark.parametrize("flags", ["--dataset=theirs", "--dataset=digits", "[kiln]\nheat = 1200", "", "\xff"])
def test_flags_of_others_make_no_run(tmp_path, flags):
    texts = {"flags.cfg": flags, "data.json": "{}", "metrics.csv": "", "checkpoints/step-00000010.keras": ""}
    write_all(tmp_path, texts)
    assert "is not empty and holds no run" in refusal(tmp_path, "--overwrite")
    assert everything_in(tmp_path) == texts


@pytest.mark.parametrize("option", [[], ["--overwrite"]])
def test_links_to_what_others_have_are_no_run(tmp_path, option):
    write_all(tmp_path / "theirs", FOREIGN)
    for name in {name.partition("/")[0] for name in FOREIGN}:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / name).symlink_to(tmp_path / "theirs" / name)
        with (
            pytest.raises(UserError, match="is not empty and holds no run"),
            open_run(tmp_path / name, *option),
        ):
            pass
        assert (tmp_path / name / name).is_symlink()
    assert everything_in(tmp_path / "theirs") == FOREIGN


@pytest.mark.parametrize("option", [[], ["--overwrite"]])
def test_the_working_directory_of_a_fresh_repository_is_no_run(tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    write_all(tmp_path, {".git/HEAD": "ref: refs/heads/main"})
    assert "is not empty and holds no run" in refusal(".", *option)
    assert everything_in(tmp_path) == {".git/HEAD": "ref: refs/heads/main"}


def test_overwrite_deletes_what_the_run_wrote_and_nothing_else(run, tmp_path, model):
    (run.path / "checkpoints").rmdir()
    (tmp_path / "disk").mkdir()
    run.checkpoints.symlink_to(tmp_path / "disk")
    theirs = {
        "notes.txt": "lambda is too high",
        "exports/1/model.keras": "an export",
        "evaluation/thesis.csv": "a table",
        "evaluation/old/tau.csv": "another",
        "checkpoints/step-best.keras": "a copy",
        "checkpoints/README": "which",
        "logs/slurm.out": "a log",
        ".git/config": "a repository",
        "model.keras.bak": "a copy",
        ".summary.backup.json": "a copy",
    }
    ours = {
        "metrics.csv": "epoch,step",
        "model.keras": "",
        "summary.json": "{}",
        ".summary.0f3a.json": "{",
        "branches.png": "",
        "evaluation/evaluation.json": "{}",
        "evaluation/tau.png": "",
        "logs/train/events.out.tfevents.12.host.3": "",
        "checkpoints/step-00000010.keras": "",
        "checkpoints/step-00000020.keras.damaged": "",
        "checkpoints/.step-00000030.77.keras": "",
    }
    write_all(run.path, theirs | ours)
    start(run.path, "--overwrite")
    left = everything_in(run.path) | everything_in(tmp_path / "disk")
    assert {name: left.get(name, left.get(name.removeprefix("checkpoints/"))) for name in theirs} == theirs
    assert not set(ours) & set(left)
    assert names_in(tmp_path / "disk") == ["README", "step-best.keras"]
    assert run.checkpoints.is_symlink() and not (run.path / "logs" / "train").exists()
    train_to(model, 5)
    run.save_checkpoint(model)  # and what is not the run's is no checkpoint of it
    assert names_in(tmp_path / "disk") == ["README", "step-00000005.keras", "step-best.keras"]
    assert run.load_checkpoint()[1] == 5


def test_checkpoints_on_a_disk_that_is_not_there(run, tmp_path):
    (run.path / "checkpoints").rmdir()
    run.checkpoints.symlink_to(tmp_path / "disk")
    assert f"checkpoints is a link to {tmp_path}/disk, which is not there" in refusal(run.path)


@pytest.mark.parametrize("system", ["hydra", "plain"])
def test_a_run_of_version_0_1_goes_on_and_may_be_overwritten(tmp_path, system):
    path = tmp_path / "run"
    shutil.copytree(ROOT / "tests" / "made_by_0_1" / system, path)
    arguments = [f"--flagfile={path}/flags.cfg", f"--run_dir={path}"]
    with RunDirectory.open(parse(arguments)) as run:
        assert run.continued and run.finished
    with RunDirectory.open(parse([*arguments, "--overwrite"])) as run:
        run.start()
    assert names_in(path) == [MARK, "checkpoints", "flags.cfg"]


# === Longer runs ===


def finished(path, *arguments):
    run = start(path, *arguments)
    run.append_metrics({"epoch": 1, "step": 5, "val_top1": 0.5})
    write_all(path, {"model.keras": "", "evaluation/tau.csv": "", "evaluation/notes": ""})
    run.finish({"top1": 0.5})
    with open_run(path, *arguments) as again:
        assert again.finished
    return run


def test_a_finished_run_goes_on_to_more_epochs_where_the_schedule_allows_it(tmp_path):
    path = tmp_path / "run"
    finished(path, "--epochs=12")
    with open_run(path, "--epochs=20") as longer:
        assert longer.continued and not longer.finished
        longer.go_on(5)
    assert (read_flagfile(path / "flags.cfg").optimisation.epochs, len(longer.metric_rows())) == (20, 1)
    assert names_in(path / "evaluation") == ["notes"]
    assert not (path / "model.keras").exists() and run_state(path) == "started"
    with open_run(path, "--epochs=20") as again:
        assert again.continued and not again.finished
    assert "other flags: --epochs=12 (the run's: 20)" in refusal(path, "--epochs=12")


def test_a_cosine_ends_with_its_epochs(tmp_path):
    finished(tmp_path / "run", "--epochs=12", "--schedule=cosine")
    told = refusal(tmp_path / "run", "--epochs=20", "--schedule=cosine")
    assert (
        "--epochs=20 (the run's: 12)" in told and "More epochs can follow --schedule=piecewise only" in told
    )


# === A full disk ===


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        tf.errors.ResourceExhaustedError(None, None, "events.out; No space left on device"),
    ],
)
def test_a_full_disk_is_told_in_one_line(run, error):
    told = r"No space left on the disk of .*the same command, .* goes on"
    with pytest.raises(UserError, match=told), open_run(run.path):
        raise error
    with pytest.raises(OSError, match="Permission"), open_run(run.path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_full_disk_costs_no_checkpoint(run, model, monkeypatch):
    train_to(model, 10)
    run.save_checkpoint(model)

    def fill(path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    train_to(model, 20)
    monkeypatch.setattr(model, "save", fill)
    with pytest.raises(OSError, match="No space left"):
        run.save_checkpoint(model)
    assert names_in(run.checkpoints) == ["step-00000010.keras"]


# === Checkpoints ===


def test_a_half_written_checkpoint_is_neither_loaded_nor_kept(run, model):
    (run.checkpoints / ".step-00000009.77.keras").write_bytes(b"PK")
    assert run.load_checkpoint() == (None, 0)
    train_to(model, 10)
    run.save_checkpoint(model)
    assert os.listdir(run.checkpoints) == ["step-00000010.keras"]


def test_a_path_that_cannot_be_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    told = refusal(tmp_path / "file" / "run")
    assert f"Cannot write to {tmp_path}/file (Not a directory); give another --run_dir. Received: " in told


def test_checkpoints_keep_the_last_two_and_the_best(run, model):
    for epoch, top1 in enumerate([0.1, 0.9, 0.2, 0.3, 0.4], start=1):
        train_to(model, 10 * epoch)
        run.append_metrics({"epoch": epoch, "step": 10 * epoch, "val_top1": top1})
        run.save_checkpoint(model)
    assert sorted(os.listdir(run.checkpoints)) == [f"step-000000{step}.keras" for step in (20, 40, 50)]
    assert run.best_row()["epoch"] == 2


def test_load_gives_back_weights_optimizer_and_step(run, model):
    model.fit(np.ones((4, 2)), np.ones(4), verbose=0)
    run.save_checkpoint(model)
    loaded, step = run.load_checkpoint()
    assert step == 1
    for mine, theirs in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(model.get_weights()[0], loaded.get_weights()[0])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(run, model, capsys, damage):
    for step in (10, 20):
        train_to(model, step)
        run.save_checkpoint(model)
    path = run.checkpoints / "step-00000020.keras"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        for place in range(len(data) // 4, 3 * len(data) // 4, 7):
            data[place] ^= 0xFF
    path.write_bytes({"truncated": data[: len(data) // 2], "flipped": data, "empty": b""}[damage])
    assert run.load_checkpoint()[1] == 10
    assert "step-00000020.keras is damaged" in capsys.readouterr().out
    assert (run.checkpoints / "step-00000020.keras.damaged").exists()
    assert run.load_checkpoint()[1] == 10


def test_when_no_checkpoint_can_be_read_all_stay(run, model):
    for step in (10, 20):
        train_to(model, step)
        run.save_checkpoint(model)
        (run.checkpoints / f"step-000000{step}.keras").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"No checkpoint in .* can be read .*--overwrite"):
        run.load_checkpoint()
    assert sorted(os.listdir(run.checkpoints)) == ["step-00000010.keras", "step-00000020.keras"]


def test_no_checkpoint(run):
    assert run.load_checkpoint() == (None, 0)


def test_metrics_survive_and_rows_past_the_checkpoint_go(run):
    for epoch in (1, 2, 3):
        run.append_metrics({"epoch": epoch, "step": 12_345_678 * epoch, "val_top1": 0.1 * epoch})
    run.drop_metrics_after(2 * 12_345_678)
    assert [(row["epoch"], row["step"]) for row in run.metric_rows()] == [(1, 12_345_678), (2, 24_691_356)]
    run.drop_metrics_after(0)
    assert run.metric_rows() == []
    assert run.best_row() is None


def test_epochs_that_were_not_evaluated(run):
    """They are neither the best nor later than it; their columns are empty."""
    run.append_metrics({"epoch": 1, "step": 10, "loss": 0.5})
    assert run.best_row() is None and run.epochs_since_best() == 0
    for epoch, top1 in ((2, 0.3), (3, None), (4, 0.2), (5, None)):
        row = {"epoch": epoch, "step": 10 * epoch, "loss": 0.5}
        run.append_metrics(row if top1 is None else {**row, "val_top1": top1})
    assert run.metric_rows()[1] == {"epoch": 2, "step": 20, "loss": 0.5, "val_top1": 0.3}
    assert run.metric_rows()[4] == {"epoch": 5, "step": 50, "loss": 0.5}
    assert (run.path / "metrics.csv").read_text().splitlines()[::5] == [
        "epoch,step,loss,val_top1",
        "5,50,0.5,",
    ]
    assert run.best_row()["epoch"] == 2 and run.epochs_since_best() == 2
    run.drop_metrics_after(10)
    assert run.metric_rows() == [{"epoch": 1, "step": 10, "loss": 0.5}]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sizes": {"train": 9, "validation": 0, "test": 2}}, "8 images for train then, 9 now"),
        ({"class_names": ["a", "c"]}, "gone: 1 of the classes ('b'); new: 1 of the classes ('c')"),
        ({"fingerprint": "2e"}, "as many of the same classes, with other names or other content"),
        ({"dataset": "other"}, "toy then, other now"),
    ],
)
def test_other_data_are_told_and_nothing_is_touched(run, change, told):
    before = sorted(path.name for path in run.path.iterdir())
    run.check_data(RECORD)
    with pytest.raises(UserError) as caught:
        run.check_data({**RECORD, **change})
    assert str(caught.value) == (
        f"{run.path} was trained on other images: {told}. Put the run's images back, or start anew with "
        "--overwrite or another --run_dir"
    )
    assert sorted(path.name for path in run.path.iterdir()) == before


@pytest.mark.parametrize("kind", [tf.errors.UnavailableError, ValueError])
def test_a_checkpoint_that_another_worker_is_missed_for_is_not_damaged(run, model, monkeypatch, kind):
    run.save_checkpoint(model)
    told = "{{function_node CollectiveBcastSend}} Collective ops is aborted by: worker 1"
    error = kind(told) if kind is ValueError else kind(None, None, told)

    def fail(path):
        raise error

    monkeypatch.setattr(keras.saving, "load_model", fail)
    with pytest.raises(kind, match="Collective ops") as raised:
        run.load_checkpoint()
    assert raised.value is error
    assert [path.suffix for path in run.checkpoints_written()] == [".keras"]


def test_a_run_without_a_record_of_its_data_goes_on_and_a_damaged_one_is_told(run):
    (run.path / "data.json").write_text("[1]")
    with pytest.raises(UserError, match=r"data.json is no record of a run's data"):
        run.check_data(RECORD)
    (run.path / "data.json").unlink()
    run.check_data(RECORD)
