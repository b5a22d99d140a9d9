"""Runs that are read; those of version 0.1, for it has made them."""

import json
import os
import shutil
import types

import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.partition import ClassPartition
from dynkhydra_tf.runs import FinishedRun, run_of, run_state
from dynkhydra_tf.runs.layout import MARK
from tests.conftest import ROOT

MADE_BY_0_1 = ROOT / "tests" / "made_by_0_1"


@pytest.fixture
def old_run(tmp_path):
    """A copy of the Hydra's run that version 0.1 made."""
    return shutil.copytree(MADE_BY_0_1 / "hydra", tmp_path / "old")


def test_a_run_of_version_0_1_is_read(old_run):
    run = FinishedRun.open(old_run)
    assert (run.name, run.settings.network.tau, run.settings.data.dataset) == ("old", 0.08, "digits")
    assert run.summary["top1"] == pytest.approx(0.9415692821)
    assert run.partition.clusters[0] == ["1", "7"]
    assert run.class_names == tuple("0123456789")
    assert (run.sizes["test"], run.image_size, len(run.metric_rows())) == (599, 32, 14)
    assert [row["tau"] for row in run.tau_table()] == [0.0, 0.08, 0.3]
    assert run.load_model().cluster_of_class == run.partition.cluster_of_class
    assert not any(path.name == MARK for path in old_run.iterdir())  # reading marks nothing


def test_a_plain_network_has_no_partition():
    run = FinishedRun.open(MADE_BY_0_1 / "plain")
    with pytest.raises(UserError, match="holds a plain network, which has no partition; give a run of a Hyd"):
        _ = run.partition
    assert run.load_model().num_classes == 10


@pytest.mark.parametrize(
    ("name", "read", "told"),
    [
        ("summary.json", lambda run: run.summary, "old has no summary.json: its training has not ended"),
        ("model.keras", lambda run: run.load_model(), "model.keras is not there; a run has one after"),
        ("partition.json", lambda run: run.partition, "partition.json cannot be read .No such file"),
        ("evaluation/evaluation.json", lambda run: run.tau_table(), None),
        ("metrics.csv", lambda run: run.metric_rows(), None),
    ],
)
@pytest.mark.parametrize("damaged", [False, True])
def test_a_part_of_a_run_that_is_missing_or_damaged_is_told(old_run, name, read, told, damaged):
    (old_run / name).write_text("step\n{") if damaged else (old_run / name).unlink()
    run = FinishedRun.open(old_run)
    if told is None and not damaged:
        assert read(run) == []
    else:
        with pytest.raises(UserError, match=f"old/{name} " if damaged else told):
            read(run)


def test_a_directory_without_a_run_is_told(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read the flags of a run from .*nowhere/flags.cfg"):
        FinishedRun.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere is no directory; give the one that holds runs"):
        FinishedRun.find_all(tmp_path / "nowhere")


def test_finished_runs_are_found(old_run, tmp_path):
    for name in ("under/way", "other"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(old_run / "flags.cfg", tmp_path / "under" / "way")
    (tmp_path / "other" / "summary.json").write_text("{}")
    assert [run.path for run in FinishedRun.find_all(tmp_path)] == [old_run]
    assert FinishedRun.find(tmp_path / "under" / "way") is None
    assert FinishedRun.find(tmp_path) is None
    states = {name: run_state(tmp_path / name) for name in ("old", "under/way", "other", "nowhere")}
    assert states == {"old": "finished", "under/way": "started", "other": "new", "nowhere": "new"}
    assert run_of(old_run / "model.keras").path == old_run
    assert run_of(tmp_path / "model.keras") is None


def test_a_model_that_is_not_its_runs(old_run):
    names = ClassPartition.load(old_run / "partition.json").class_names
    ClassPartition("digits", names, (0, 1, 2, 3, 4) * 2, "file").save(old_run / "partition.json")
    with pytest.raises(UserError, match=r"model.keras is not the Hydra of .*partition.json"):
        FinishedRun.open(old_run).load_model()
    record = json.loads((old_run / "data.json").read_text())
    (old_run / "data.json").write_text(json.dumps(record | {"class_names": ["a", "b"]}))
    with pytest.raises(UserError, match="not the model of its run: it has 10 classes, the run 2"):
        FinishedRun.open(old_run).load_model()


@pytest.mark.parametrize(
    ("class_names", "image_size", "told"),
    [
        ("0123456789", 32, None),
        ("012345678", 32, r"gone: 1 of the classes .'9'."),
        ("0123456789a", 32, r"new: 1 of the classes .'a'."),
        ("abcdefghij", 32, r"gone: 10 of the classes .'0', .*4' and 5 more.; new: 10 .* .'a'"),
        ("1023456789", 32, r"the same in another order: class 0 is '1', not '0'"),
        ("0123456789", 64, r"was trained on images of 32 px. Received: some with 64 px"),
    ],
)
@pytest.mark.parametrize("known_by", ["data.json", "partition.json"])
def test_other_classes_are_told(old_run, known_by, class_names, image_size, told):
    if known_by == "partition.json":  # a run of an early version
        (old_run / "data.json").unlink()
    run = FinishedRun.open(old_run)
    data = types.SimpleNamespace(name="some", class_names=list(class_names), image_size=image_size)
    if told is None:
        run.check_data(data)
    else:
        with pytest.raises(UserError, match=told):
            run.check_data(data)


def test_results_count_only_where_they_are_of_this_model_and_split(old_run):
    run = FinishedRun.open(old_run)
    path = old_run / "evaluation" / "evaluation.json"
    written = {"model": str(run.model_path), "dataset": "digits", "split": "test", "top1": 0.5}

    def results(**changes):
        path.write_text(json.dumps(written | changes))
        return run.results_on("digits", "test")

    assert results() == written
    assert results(split="train") == results(dataset="other") == {}
    assert results(model=str(old_run / "flags.cfg")) == results(model="nowhere") == {}
    later = path.stat().st_mtime + 10
    os.utime(run.model_path, (later, later))
    assert results() == {}
