import os

import keras
import numpy as np
import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.partition import ClassPartition
from dynkhydra_tf.runs import RunDirectory

PARTITION = ClassPartition("toy", ("a", "b"), (0, 1), "random", None, 0)
RECORD = {
    "dataset": "toy",
    "class_names": ["a", "b"],
    "sizes": {"train": 8, "validation": 0, "test": 2},
    "fingerprint": "1f",
}


def open_run(path, differences=(), overwrite=False):
    return RunDirectory.open(path, lambda _: list(differences), overwrite)


@pytest.fixture
def run(tmp_path):
    run = open_run(tmp_path / "run")
    run.start("--seed=0\n", PARTITION, RECORD)
    return run


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("adamw", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def train_to(model, step):
    model.optimizer.iterations.assign(step)


def test_open_writes_nothing(tmp_path):
    open_run(tmp_path / "new" / "run")
    assert list(tmp_path.iterdir()) == []


def test_start_writes_flags_and_partition(run):
    assert run.flags.read_text() == "--seed=0\n"
    assert ClassPartition.load(run.partition).cluster_of_class == (0, 1)
    assert not run.continued
    assert open_run(run.path).continued


def test_other_flags_are_named_and_nothing_is_touched(run):
    with pytest.raises(UserError, match=r"other flags: --tau=0.1 \(the run's: 0.2\).*--overwrite"):
        open_run(run.path, ["--tau=0.1 (the run's: 0.2)"])
    assert run.flags.exists()


def test_overwrite_starts_anew_and_only_when_the_new_run_starts(run, model):
    train_to(model, 4)
    run.save_checkpoint(model)
    again = open_run(run.path, ["--tau=0.1"], overwrite=True)
    assert not again.continued
    assert len(list(run.checkpoints.iterdir())) == 1
    again.start("--tau=0.1\n", PARTITION, RECORD)
    assert list(run.checkpoints.iterdir()) == []


def test_a_directory_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"not empty and holds no run"):
            open_run(tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").exists()


def test_what_a_kill_left_of_a_start_is_no_obstacle(run):
    # While it emptied a directory, or while it wrote its files.
    run.append_metrics({"epoch": 1, "step": 5, "val_top1": 0.5})
    (run.path / ".flags.123.cfg").write_text("--see")
    run.flags.unlink()
    again = open_run(run.path)
    assert not again.continued
    again.start("--seed=1\n", PARTITION, RECORD)
    assert open_run(run.path).continued


def test_a_half_written_checkpoint_is_neither_loaded_nor_kept(run, model):
    (run.checkpoints / ".step-00000009.77.keras").write_bytes(b"PK")
    assert run.load_checkpoint() == (None, 0)
    train_to(model, 10)
    run.save_checkpoint(model)
    assert os.listdir(run.checkpoints) == ["step-00000010.keras"]


def test_a_path_that_cannot_be_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError,
        match=r"Cannot write to .*file .Not a directory.; give another --run_dir. Received: .*file/run",
    ):
        open_run(tmp_path / "file" / "run")


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


def test_a_run_without_a_record_of_its_data_goes_on_and_a_damaged_one_is_told(run):
    run.data.write_text("[1]")
    with pytest.raises(UserError, match=r"data.json is no record of a run's data"):
        run.check_data(RECORD)
    run.data.unlink()
    run.check_data(RECORD)
