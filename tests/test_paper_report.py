import json
import re

import pytest

from dynkhydra_tf import cli
from dynkhydra_tf.flags import to_flagfile
from dynkhydra_tf.paper import report, tradeoff
from dynkhydra_tf.paper.experiments import experiments
from dynkhydra_tf.runs import FinishedRun

SHORT = ("--epochs=12", "--schedule=cosine")


@pytest.fixture
def make_run(tmp_path):
    """Returns a function that leaves the files of a finished CIFAR-100 run, of a table or not."""

    def make(name, table, depth, *flags, top1=0.5, place="runs"):
        experiment = next(each for each in experiments(table, [depth]) if each.name == name)
        path = tmp_path / place / name
        path.mkdir(parents=True)
        (path / "flags.cfg").write_text(to_flagfile(experiment.settings(*flags)))
        summary = {"top1": top1, "active_branches": 2.0, "seconds_per_epoch": 9.0, "seed": 0}
        summary |= {"flops": {"total": 1.5e8}, "parameters": {"total": 2.5e6}, "versions": {"keras": "3"}}
        summary["machine"] = {"processor": "Xeon", "cores": 2}
        (path / "summary.json").write_text(json.dumps(summary))
        return path

    return make


@pytest.fixture
def command(capsys, monkeypatch):
    """Returns a function that runs the command; the paper's FLOPs are not counted."""
    monkeypatch.setattr(tradeoff, "paper_points", lambda dataset, backbone: {})

    def run(*arguments):
        status = None
        try:
            cli.run(report.main, report.Options, ["report", *map(str, arguments)], "directories")
        except SystemExit as leaving:
            status = leaving.code
        return status, capsys.readouterr()

    return run


def test_only_tables_that_have_runs_each_schedule_by_itself(make_run, command, tmp_path):
    make_run("cifar100-d2", "4", 2, *SHORT, top1=0.61)
    make_run("cifar100-random-d2", "5", 2, *SHORT, top1=0.57)
    make_run("cifar100_plain-d27", "1", 27, top1=0.7)
    make_run("cifar100-d8", "4", 8, *SHORT, top1=0.62)  # a depth that the paper has not
    make_run("food101-d1", "6", 1, *SHORT, "--num_branches=7", place="more", top1=0.33)  # of no table
    make_run("cifar100-d3", "4", 3, "--epochs=3", *SHORT[1:], "--num_branches=5", place="more", top1=0.44)
    page = tmp_path / "out" / "report.html"
    page.parent.mkdir()
    status, printed = command(tmp_path / "runs", tmp_path / "more", tmp_path, f"--output={page}")
    assert status is None
    assert "6 runs" in printed.out  # each once
    text = page.with_suffix(".md").read_text()
    short, long = text.split("## Results: ")[1:]
    long, own = long.split("## The runs")[0].split("## Your own runs")
    assert short.startswith("12 epochs, cosine\n\nTrained with shift 4, cutout 16, batch size 128, ")
    assert long.startswith("190 epochs, piecewise\n")
    for heading in ("Table 1", "Table 4", "Table 5", "Beyond the paper", "Accuracy over compute"):
        assert f"### {heading}" in short
    assert "Table 2" not in text and "Table 3" not in text
    assert "Ours: 12 epochs, cosine, on Xeon, 2 cores. The paper's: 190 epochs." in short
    assert "Ours: 190 epochs, piecewise, on Xeon, 2 cores. The paper's: 190 epochs." in long
    assert "| cifar100 | DynK-Hydra | 2 | 12 | 190 | 61.00 | 72.84 | -11.84 |" in short
    assert "| cifar100 | DynK-Hydra, random | 2 | 12 | 190 | 57.00 | 71.22 | -14.22 |" in short
    assert "| cifar100 | DynK-Hydra | 8 | 12 | 190 | 62.00 | - | - |" in short
    assert "| cifar100 | plain | 27 | 190 | 190 | 70.00 | 73.56 | -3.56 |" in long
    assert "| DynK-Hydra |" not in long
    # Runs of no table stand together, whatever their epochs.
    assert "| food101-d1 | food101 | 1 | 7 | 4 | 12 | cosine | 33.00 | 2.00 | 150.0 |" in own
    assert "| cifar100-d3 | cifar100 | 3 | 5 | 4 | 3 | cosine | 44.00 | 2.00 | 150.0 |" in own
    assert "## Results: 3 epochs" not in text
    assert "](report_files/own_runs.png)" in own
    html = page.read_text()
    assert html.count("<details>") == 6
    assert "data:image/png;base64," in html


def test_pictures_of_a_run_are_shown(make_run, command, tmp_path):
    run = make_run("cifar100-d2", "4", 2)
    (run / "evaluation").mkdir()
    (run / "evaluation" / "confusion.png").write_bytes(b"png")
    owl = {"class": "owl", "cluster": 1, "images": 5, "top1": 0.4, "top5": 1.0, "taken_for": "cat"}
    pair = {"class": "owl", "taken_for": "cat", "images": 3, "share": 0.6, "same_cluster": False}
    found = {"worst_classes": [owl | {"taken_for_share": 0.6}], "worst_pairs": [pair]}
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(found))
    assert command(tmp_path, f"--output={tmp_path / 'report.html'}")[0] is None
    text = (tmp_path / "report.md").read_text()
    assert "(runs/cifar100-d2/evaluation/confusion.png)" in text
    assert "| owl | 5 | 40.0% | cat | 60.0% |" in text and "| owl | cat | 3 | 60.0% | another |" in text
    html = (tmp_path / "report.html").read_text()
    assert '<th class="text key">system</th><th class="key second last">d</th>' in html.replace("\n", "")
    assert '<td class="main">50.00</td>' in html
    assert "**cifar100-d2: top-1 50.00%, seed 0, 190 epochs, piecewise, 9 s an epoch**" in text
    assert "| keras 3 | Xeon, 2 cores | cifar100-d2 |" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "There are no directories"),
        (["nowhere"], "nowhere is no directory"),
        (["."], r"No run in \. has finished"),
        ([".", "--output=report.pdf"], r"--output must end in \.html\. Received: report\.pdf"),
    ],
)
def test_bad_input_is_one_line(command, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, printed = command(*arguments)
    assert status == 2
    assert len(printed.err.splitlines()) == 1
    assert re.search(message, printed.err), printed.err
    assert list(tmp_path.iterdir()) == []


def test_own_runs_have_a_panel_a_data_set_and_say_how_long_they_were(make_run, drawn, tmp_path):
    photos, digits = "--dataset=folder", "--dataset=digits"
    runs = [
        make_run("cifar100-d1", "4", 1, *SHORT, photos, f"--data_dir={tmp_path}/cats"),
        make_run("cifar100-d2", "4", 2, "--epochs=1", photos, f"--data_dir={tmp_path}/cats"),
        make_run("cifar100-d3", "4", 3, photos, f"--data_dir={tmp_path}/dogs"),
        make_run("cifar100_plain-d1", "1", 1, digits),
    ]
    tradeoff.save_own_runs([FinishedRun.open(run) for run in runs], tmp_path / "own.png")
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == ["folder cats", "folder dogs", "digits"]
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["cifar100-d1: 12 epochs, cosine", "cifar100-d2: 1 epoch, piecewise"]
