"""What is kept of a run, and that what reads summaries finds it."""

import json

import pytest

from dynkhydra_tf.runs import FinishedRun, keep

SUMMARY = {"top1": 0.5, "flops": {"total": 7}}
ROWS = "epoch,val_top1\n1,0.4\n2,0.5\n"


@pytest.fixture
def run(tmp_path, write_flags):
    path = tmp_path / "runs" / "mine"
    places = ("--data_dir=/here/images", "--run_dir=/here/runs/mine", "--cache_dir=/here/cache")
    write_flags(path, "--depth=3", "--feature_extractor=/here/models/features.keras", *places)
    (path / "summary.json").write_text(json.dumps(SUMMARY))
    (path / "metrics.csv").write_text(ROWS)
    (path / "model.keras").write_text("weights")
    (path / "evaluation").mkdir()
    results = {"model": "/here/runs/mine/model.keras", "dataset": "digits", "tau_table": [{"tau": 0.0}]}
    (path / "evaluation" / "evaluation.json").write_text(json.dumps(results))
    (path / "evaluation" / "tau.png").write_text("picture")
    return path


@pytest.fixture
def command(run_command, tmp_path):
    def run(*paths):
        given = [str(path) for path in paths]
        output = f"--output_dir={tmp_path / 'docs'}"
        return run_command(lambda options: keep.main(options, given), keep.Options, output)

    return run


def test_what_it_has_to_tell_without_weights_pictures_and_places(run, command, tmp_path, capsys):
    assert command(run) is None
    kept = tmp_path / "docs" / "mine"
    files = sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file())
    assert files == ["evaluation/evaluation.json", "flags.cfg", "metrics.csv", "summary.json"]
    assert not [path for path in kept.rglob("*") if path.is_file() and "/here" in path.read_text()]
    found = FinishedRun.find(kept)
    assert found.settings.network.depth == 3 and found.settings.data.dataset == "digits"
    assert found.settings.partition.feature_extractor == "features.keras"
    assert found.summary == SUMMARY and found.tau_table() == [{"tau": 0.0}]
    assert [row["val_top1"] for row in found.metric_rows()] == [0.4, 0.5]
    assert str(tmp_path / "docs") in capsys.readouterr().out
    # Again, after it went on.
    (run / "metrics.csv").write_text(ROWS + "3,0.6\n")
    assert command(run) is None
    assert len(FinishedRun.find(kept).metric_rows()) == 3


def test_what_cannot_be_kept(run, command, tmp_path, capsys, write_flags):
    def message(*paths):
        assert command(*paths) == 2
        return capsys.readouterr().err

    write_flags(tmp_path / "started")
    assert "A run is kept when it has finished. Received: " in message(tmp_path / "started")
    write_flags(tmp_path / "other" / "mine")
    assert "Runs are kept by their names, which must differ. Received: mine twice" in message(
        run, tmp_path / "other" / "mine"
    )
    assert not list((tmp_path / "docs").glob("*"))
    (tmp_path / "docs" / "mine").mkdir(parents=True)
    (tmp_path / "docs" / "mine" / "notes.txt").write_text("notes")
    assert "is there, and is no run that was kept" in message(run)
    assert [path.name for path in (tmp_path / "docs" / "mine").iterdir()] == ["notes.txt"]
