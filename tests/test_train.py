"""The whole command, on the digits: what it writes, how it goes on, and what it refuses."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from dynkhydra_tf import evaluation, export, train
from dynkhydra_tf.costs import plain_costs
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.partition import ClassPartition
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.settings import Settings
from tests.conftest import ROOT

SMALL = (
    "--dataset=digits",
    "--feature_extractor=pixels",
    "--num_branches=2",
    "--top_k=2",
    "--batch_size=200",
    "--schedule=cosine",
    "--cutout=0",
)


@pytest.fixture
def command(run_command, tmp_path):
    def run(*arguments):
        places = (f"--run_dir={tmp_path}/run", f"--cache_dir={tmp_path}/cache")
        return run_command(train.main, Settings, *SMALL, *places, *arguments)

    return run


def rows_of(run_dir):
    try:
        with open(run_dir / "metrics.csv", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


@pytest.mark.slow
def test_one_run_writes_all_that_is_promised(command, run_command, tmp_path, capsys):
    assert command("--epochs=2") is None
    run = tmp_path / "run"
    printed = capsys.readouterr().out
    assert "digits, 599 test images: top-1" in printed
    for line in ("this model (mean lambda)", "all 2 branches", "plain resnet, d=1"):
        assert line in printed

    summary = json.loads((run / "summary.json").read_text())
    for key in ("top1", "top5", "gater_accuracy", "seconds_per_epoch", "versions", "machine"):
        assert key in summary
    assert (summary["epochs"], summary["seed"]) == (2, 0)
    assert 1 <= summary["active_branches"] <= 2
    flops = summary["flops"]
    assert flops["total"] == pytest.approx(
        flops["stem"] + flops["gater"] + summary["active_branches"] * flops["branch"] + flops["combiner"]
    )
    parameters = summary["parameters"]
    assert parameters["total"] == sum(parameters[part] for part in ("stem", "gater", "branches", "combiner"))

    assert [row["epoch"] for row in rows_of(run)] == ["1", "2"]
    assert list((run / "logs").rglob("events*"))
    for name in ("learning_curves.png", "branches.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    model = keras.models.load_model(run / "model.keras")
    assert ClassPartition.load(run / "partition.json").cluster_of_class == model.cluster_of_class
    assert (model.class_names, model.picture_fit) == (tuple("0123456789"), "stretch")

    # The same command on a finished run trains no more and tells the same.
    assert command("--epochs=2") is None
    assert printed.splitlines()[-8:] == capsys.readouterr().out.splitlines()[-8:]
    assert len(rows_of(run)) == 2

    # Its flags run again as they are; only the new run's last flags win over them.
    places = (f"--flagfile={run}/flags.cfg", f"--run_dir={tmp_path}/again")
    file = ("--partition=file", f"--partition_file={run}/partition.json")
    again = run_command(train.main, Settings, *places, *file, "--epochs=1", "--warmup_epochs=0")
    assert again is None
    assert json.loads((tmp_path / "again" / "summary.json").read_text())["epochs"] == 1

    # Nor does a flagfile delete, though the run was one that began with --overwrite.
    assert command("--epochs=1", "--warmup_epochs=0", "--overwrite") is None
    assert "overwrite" not in (run / "flags.cfg").read_text()
    assert len(rows_of(run)) == 1

    # Another flag is named, and nothing changes.
    before = (run / "flags.cfg").read_text()
    assert command("--epochs=1", "--warmup_epochs=0", "--tau=0.2") == 2
    assert "--tau=0.2 (the run's: 0.08)" in capsys.readouterr().err
    assert (run / "flags.cfg").read_text() == before

    # So are other images under the same flags, where there is something left to train.
    (run / "summary.json").unlink()
    data = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps({**data, "sizes": {**data["sizes"], "train": 1197}}))
    assert command("--epochs=1", "--warmup_epochs=0") == 2
    assert "was trained on other images: 1197 images for train then, 1198 now" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("system", ["hydra", "plain"])
def test_a_network_of_keras_trains_goes_on_and_needs_its_file_no_more(command, tmp_path, capsys, system):
    x = inputs = keras.Input((None, None, 3))
    for name, filters in (("block1", 4), ("block2", 8)):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False, name=f"{name}_conv")(x)
        x = keras.layers.ReLU(name=f"{name}_relu")(keras.layers.BatchNormalization(name=f"{name}_bn")(x))
    path = tmp_path / "network.keras"
    keras.Model(inputs, x).save(path)
    arguments = (f"--system={system}", f"--backbone={path}", "--freeze=stem", "--schedule=piecewise")
    assert command(*arguments, "--epochs=1") is None
    printed = capsys.readouterr().out
    assert "plain network.keras  " in printed
    model = keras.models.load_model(tmp_path / "run" / "model.keras")
    stem = model.stem if system == "hydra" else model.network.layers[0].layers[0]
    source = keras.models.load_model(path)
    np.testing.assert_array_equal(
        stem.get_layer("block1_conv").kernel, source.get_layer("block1_conv").kernel
    )
    path.unlink()
    assert command(*arguments, "--epochs=2") is None
    assert "going on after step 5" in capsys.readouterr().out


@pytest.mark.slow
def test_a_plain_network_trains_by_the_same_command(command, run_command, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    plain = ("--system=plain", "--schedule=piecewise")

    def fill(model, path):
        if model.optimizer.iterations == 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        keras.Model.save(model, path)

    # The disk is full when the second epoch ends; then there is room.
    with monkeypatch.context() as patch:
        patch.setattr(Plain, "save", fill)
        assert command(*plain, "--epochs=2") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: No space left on the disk of {run}. What the run saved is safe")
    assert os.listdir(run / "checkpoints") == ["step-00000005.keras"]
    assert command(*plain, "--epochs=2") is None
    printed = capsys.readouterr().out
    assert f"{run}: going on after step 5, epoch 1.00 of 2." in printed
    assert "digits, 599 test images: top-1" in printed and "plain resnet, d=1" in printed
    assert "gater" not in printed and "branches" not in printed.split("per image")[1].split("\n", 1)[1]
    summary = json.loads((run / "summary.json").read_text())
    assert {
        "top1",
        "top5",
        "best_epoch",
        "seconds_per_epoch",
        "epochs",
        "seed",
        "part_dtype",
        "versions",
        "machine",
    } <= set(summary)
    model = keras.models.load_model(run / "model.keras")
    assert isinstance(model, Plain)
    assert (model.class_names, model.picture_fit) == (tuple("0123456789"), "stretch")
    assert summary["flops"] == {"total": plain_costs(model.backbone, 10)["flops"]}
    assert summary["parameters"] == {"total": model.count_params()}
    assert (run / "learning_curves.png").exists()
    assert not (run / "partition.json").exists() and not (run / "branches.png").exists()

    # Run again it trains no more; with other flags it is not its run.
    assert command(*plain, "--epochs=2") is None
    again = capsys.readouterr().out
    assert f"{run} is finished, with --epochs=2. More of them go on from here" in again
    assert printed.splitlines()[-5:] == again.splitlines()[-5:]
    assert len(rows_of(run)) == 2
    assert command("--schedule=piecewise", "--epochs=2") == 2
    assert "--system=hydra (the run's: plain)" in capsys.readouterr().err

    # It goes on to more epochs.
    assert command(*plain, "--epochs=3") is None
    assert "going on after step 10, epoch 2.00 of 3." in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    assert (len(rows_of(run)), summary["epochs"]) == (3, 3)

    # The other commands know it.
    assert run_command(evaluation.main, evaluation.Options, f"--run_dir={run}") is None
    assert f"top-1 {summary['top1']:.2%}, top-5 {summary['top5']:.2%}" in capsys.readouterr().out
    served = f"--export_dir={tmp_path}/served"
    assert run_command(export.main, export.Options, f"--run_dir={run}", served, "--tau=0.1") == 2
    assert "holds a plain network, without a gate: leave --tau out" in capsys.readouterr().err
    assert not (tmp_path / "served").exists()


@pytest.mark.slow
def test_a_run_with_a_teacher_and_averages_goes_on(command, tmp_path, capsys, monkeypatch):
    teacher = shutil.copytree(ROOT / "tests" / "made_by_0_1" / "plain", tmp_path / "teacher")
    arguments = (f"--distill={teacher}", "--distill_weight=1", "--gater_targets=teacher", "--epochs=2")
    arguments += ("--distill_until=0.5", "--ema_decay=0.9", "--optimizer=sgd", "--learning_rate=0.05")
    run = tmp_path / "run"

    def fill(model, path):
        if model.optimizer.iterations == 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        keras.Model.save(model, path)

    with monkeypatch.context() as patch:
        patch.setattr(Hydra, "save", fill)
        assert command(*arguments) == 2
    assert f"Teacher: {teacher}, Plain on " in capsys.readouterr().out
    # A teacher that is not where it was is named.
    teacher.rename(tmp_path / "moved")
    assert command(*arguments) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith(f"error: {teacher} is not there; distill must be a run that has ended")
    (tmp_path / "moved").rename(teacher)
    assert command(*arguments) is None
    assert "going on after step 5, epoch 1.00 of 2." in capsys.readouterr().out
    first, second = rows_of(run)
    assert float(first["distill_loss"]) > 0 == float(second["distill_loss"])
    assert float(first["val_distill_loss"]) > 0 < float(second["val_distill_loss"])
    # The averages: validated, saved and tested alike; digits have no validation split.
    summary = json.loads((run / "summary.json").read_text())
    assert summary["top1"] == pytest.approx(float(second["val_top1"]), abs=2e-3)


def test_a_finished_run_says_so_in_a_moment(tmp_path):
    run = shutil.copytree(ROOT / "tests" / "made_by_0_1" / "hydra", tmp_path / "run")
    script = (
        "import runpy, sys\n"
        "sys.argv[0] = 'train.py'\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
        "assert not {'keras', 'tensorflow'} & sys.modules.keys()\n"
    )
    arguments = [sys.executable, "-c", script, f"--flagfile={run}/flags.cfg", f"--run_dir={run}"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{run} is finished, with --epochs=14. --overwrite starts anew.\n" in done.stdout
    assert "digits, 599 test images: top-1 94.16%, top-5 99.50%; gater 92.65%; tau 0.08" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path):
    steps, epochs = 1198 // 200, 8

    def start(name):
        places = (f"--run_dir={tmp_path}/{name}", f"--cache_dir={tmp_path}/cache", f"--epochs={epochs}")
        return subprocess.Popen(
            [sys.executable, ROOT / "train.py", *SMALL, *places],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for_rows(process, count):
        until = time.monotonic() + 240
        while len(rows_of(tmp_path / "killed")) < count:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)

    # SIGKILL some time after the second epoch.
    process = start("killed")
    wait_for_rows(process, 2)
    process.kill()
    process.communicate()
    kept = rows_of(tmp_path / "killed")

    # SIGTERM some time after two more: it saves, wherever it is.
    process = start("killed")
    wait_for_rows(process, len(kept) + 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "going on after step" in output and "SIGTERM: saved in" in output
    saved = sorted(os.listdir(tmp_path / "killed" / "checkpoints"))[-1]
    assert int(saved[5:13]) >= steps * (len(kept) + 2)

    # The third start ends the run.
    process = start("killed")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert f"going on after step {int(saved[5:13])}" in output

    rows = rows_of(tmp_path / "killed")
    assert [int(row["epoch"]) for row in rows] == list(range(1, epochs + 1))
    assert [int(row["step"]) for row in rows] == [steps * epoch for epoch in range(1, epochs + 1)]
    assert rows[: len(kept) - 1] == kept[:-1]  # the last one may have been past its checkpoint

    # As a run that nobody killed: the same images, the same rates, nearly the same numbers.
    process = start("whole")
    output, _ = process.communicate(timeout=240)
    whole = rows_of(tmp_path / "whole")
    assert [row["learning_rate"] for row in rows] == [row["learning_rate"] for row in whole]
    assert float(rows[0]["loss"]) == pytest.approx(float(whole[0]["loss"]), rel=0.02)
    assert float(rows[-1]["val_loss"]) == pytest.approx(float(whole[-1]["val_loss"]), rel=0.25)


@pytest.mark.slow
def test_a_loss_that_becomes_nan_stops_and_keeps_the_last_good_checkpoint(command, tmp_path, capsys):
    # A finite first epoch, then a rate that breaks it.
    assert command("--epochs=3", "--learning_rate=1e-3", "--schedule=piecewise", "--lr_drops=1:1e30") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: The loss became nan by step")
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-00000005.keras"]
    assert len(rows_of(tmp_path / "run")) == 1
    assert not (tmp_path / "run" / "model.keras").exists()


@pytest.mark.parametrize(
    ("module", "late"),
    [
        ("stages", "training_batches"),
        ("stages", "evaluation_batches"),
        ("backbones", "open_backbone"),
        ("plain", "make_plain"),
    ],
)
def test_what_fails_on_data_fails_before_the_run_is_started(
    command, tmp_path, monkeypatch, capsys, module, late
):
    def fail(*_, **__):
        raise UserError("one of these images is none")

    monkeypatch.setattr(f"dynkhydra_tf.{module}.{late}", fail)
    monkeypatch.setattr(train, late, fail, raising=False)  # where it was imported already
    assert command("--system=plain", "--epochs=2") == 2
    assert "one of these images is none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=imagenet"], "imagenet"),
        (["--nb=3"], "Unknown command line flag 'nb'"),
        (["--flagfile=nowhere.cfg"], "nowhere.cfg"),
        (["digits"], "Flags begin with --. Received: digits"),
        (["--num_branches=11"], "11"),
        (["--top_k=3"], "top_k must be at most num_branches"),
        (["--batch_size=2000"], "batch_size must be from 1 to 1198"),
        (["--epochs=1", "--warmup_epochs=1"], "warmup_epochs must be less than epochs=1"),
        (["--shift=40"], "shift"),
        (["--distill=nowhere", "--distill_weight=1"], "nowhere is not there; distill must be a run that has"),
        (["--alternating_flip"], "those of digits are not mirrored by default"),
        (["--cutout=40"], "cutout"),
        (["--feature_extractor=EfficientNetB77"], "EfficientNetB7"),
        (["--feature_extractor=nowhere.keras"], "nowhere.keras"),
        (["--feature_extractor=MobileNetV2", "--feature_weights=nowhere.h5"], "nowhere.h5"),
        (["--partition=semantic"], "no superclasses (coarse labels)"),
        (["--partition=file", "--partition_file=nowhere.json"], "nowhere.json"),
        (["--dataset=cifar100", "--data_dir=nowhere"], "nowhere"),
        (["--run_dir=/dev/null/run"], "Cannot write to /dev/null"),
        (
            ["--dataset=folder", "--data_dir=."],
            "--run_dir must not lie in the image folder --data_dir=., where",
        ),
    ],
)
def test_bad_input_ends_in_one_line_and_writes_nothing(
    command, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert command(*arguments) == 2
    captured = capsys.readouterr()
    (error,) = captured.err.strip().splitlines()
    assert error.startswith("error: ") and message in error
    assert "Epoch" not in captured.out
    assert not (tmp_path / "run").exists()


def test_a_partition_file_of_another_data_set(command, tmp_path, capsys):
    classes = tuple(map(str, range(10)))
    ClassPartition("cifar100", classes, (0, 1) * 5, "random", None, 0).save(tmp_path / "p.json")
    assert command("--partition=file", f"--partition_file={tmp_path}/p.json") == 2
    assert "cifar100" in capsys.readouterr().err


def test_help_names_the_command_and_the_paper(run_command, capsys):
    assert run_command(train.main, Settings, "--help") == 0
    printed = capsys.readouterr().out
    assert "python train.py --flagfile=configs/digits.cfg" in printed
    assert "alpha2, weight of L_G. The paper: 1.5." in printed
