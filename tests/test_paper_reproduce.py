import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from dynkhydra_tf import cli
from dynkhydra_tf.paper import experiments, report, reproduce
from dynkhydra_tf.paper.experiments import Series, Table
from dynkhydra_tf.paper_numbers import DYNK_HYDRA, PLAIN
from tests.conftest import ROOT

# In the place of train.py: notes its call, fails for depth 2 while "broken" is there, leaves a run's files.
TRAIN = """
import json, pathlib, sys
flags = dict(flag[2:].split("=", 1) for flag in sys.argv[1:] if "=" in flag)
pathlib.Path("configs/arguments").write_text(" ".join(sys.argv[1:]))
path = pathlib.Path(flags["run_dir"])
with open("calls", "a") as file: file.write(path.name + "\\n")
path.mkdir(parents=True, exist_ok=True)
lines = ["--dataset=digits", "--system=plain", f"--depth={flags['depth']}", f"--seed={flags['seed']}"]
(path / "flags.cfg").write_text("\\n".join(lines))
if flags["depth"] == "2" and pathlib.Path("broken").exists():
    sys.exit("error: no more memory")
summary = {"top1": 0.5 + int(flags["seed"]) / 10, "seconds_per_epoch": 1.0, "seed": 0, "versions": {}}
summary |= {"flops": {"total": 1e6 * int(flags["depth"])}, "parameters": {"total": 1e5}}
(path / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory like the repository's root, with tables of its own and a train.py that costs nothing."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.cfg").write_text("--dataset=digits\n--system=plain\n")
    (tmp_path / "configs" / "branched.cfg").write_text("--dataset=digits\n--num_branches=5\n")
    shutil.copy(ROOT / "configs" / "short.cfg", tmp_path / "configs")
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.setattr(reproduce, "TRAIN", ("train.py",))
    table = Table("Table T: tiny", [Series("tiny", PLAIN, (1, 2))])
    monkeypatch.setitem(experiments.TABLES, "T", table)
    monkeypatch.setitem(experiments.TABLES, "H", Table("Table H", [Series("branched", DYNK_HYDRA, (1,))]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(capsys):
    """Returns a function that runs the command: exit status, None where it ends well, stdout, stderr."""

    def run(*arguments):
        status = None
        try:
            cli.run(
                reproduce.main,
                reproduce.Options,
                ["reproduce", *arguments],
                "flags",
                at_least=0,
                pass_on=True,
            )
        except SystemExit as leaving:
            status = leaving.code
        return status, *capsys.readouterr()

    return run


def test_runs_are_made_once_and_stand_in_the_table(here, command):
    status, out, _ = command("--table=T", "--seeds=0,1", "--runs_dir=runs")
    assert status is None
    calls = (here / "calls").read_text().split()
    assert calls == [
        "tiny-d1-seed0",
        "tiny-d2-seed0",
        "tiny-d1-seed1",
        "tiny-d2-seed1",
    ]  # a whole table first
    text = (here / "runs" / "tableT.md").read_text()
    assert text in out
    assert "| digits | plain | 1 | 190 | 190 | 2 | 55.00 ± 7.07 |" in text
    assert "\n\nOurs: 190 epochs, piecewise. The paper's: 190 epochs.\n\n" in text
    assert (here / "runs" / "tableT.csv").read_text().count("\n") == 3
    assert (here / "runs" / "tableT.png").stat().st_size > 1000
    assert command("--table=T", "--seeds=0,1", "--runs_dir=runs")[0] is None
    assert (here / "calls").read_text().split() == calls


def test_a_failed_run_is_passed_over_named_and_made_up_for(here, command):
    (here / "broken").touch()
    status, out, err = command("--table=T", "--seeds=0,1", "--runs_dir=runs")
    assert status == 2
    assert "2 of 4 runs failed. tiny-d2-seed0: exit status 1 (error: no more memory)" in err
    assert "| digits | plain | 1 | 190 | 190 | 2 | 55.00" in out
    (here / "broken").unlink()
    status, out, _ = command("--table=T", "--seeds=0,1", "--runs_dir=runs")
    assert status is None
    assert "runs/tiny-d2-seed0  to go on" in out
    assert (here / "calls").read_text().split()[4:] == ["tiny-d2-seed0", "tiny-d2-seed1"]


def test_dry_run_prints_what_is_left_and_writes_nothing(here, command):
    (here / "broken").touch()
    command("--table=T", "--runs_dir=runs")
    status, out, _ = command(
        "--table=T,H", "--runs_dir=runs", "--epochs=3", "--data_dir=my data", "--dry_run"
    )
    assert status == 2  # the runs there had other epochs
    status, out, _ = command("--table=T,H", "--runs_dir=runs", "--data_dir=my data", "--dry_run")
    assert status is None
    assert out.splitlines() == [
        "# runs/tiny-d1-seed0: finished",
        "# runs/tiny-d2-seed0: to go on",
        "python train.py --flagfile=configs/tiny.cfg --depth=2 --seed=0 '--data_dir=my data' "
        "--run_dir=runs/tiny-d2-seed0",
        "# runs/branched-d1-seed0: new",
        "python train.py --flagfile=configs/branched.cfg --depth=1 --seed=0 '--data_dir=my data' "
        "--run_dir=runs/branched-d1-seed0",
        "python -m dynkhydra_tf.evaluation --run_dir=runs/branched-d1-seed0 "
        "--tau=0,0.01,0.02,0.04,0.06,0.08,0.1,0.15,0.2,0.3,0.5 '--data_dir=my data'",
    ]
    assert sorted(path.name for path in here.iterdir()) == ["broken", "calls", "configs", "runs", "train.py"]
    assert not (here / "runs" / "branched-d1-seed0").exists()


def test_fewer_epochs_take_the_short_schedule(here, command):
    _, out, _ = command("--table=T", "--depths=1", "--epochs=12", "--dry_run")
    assert "--depth=1 --flagfile=configs/short.cfg --epochs=12 --seed=0 --run_dir=" in out
    _, out, _ = command("--table=T", "--depths=1", "--epochs=400", "--dry_run")
    assert "short.cfg" not in out
    assert "--epochs=400" in out


@pytest.mark.parametrize("separator", [[], ["--"]])
def test_flags_of_training_follow(here, command, separator):
    given = ["--table=T", "--depths=1", *separator, "--feature_extractor=pixels", "--mixed_precision"]
    _, out, _ = command(*given, *([] if separator else ["--dry_run"]))
    if separator:  # all that follows "--" is train.py's
        out = (here / "configs" / "arguments").read_text()
    assert "--seed=0 --feature_extractor=pixels --mixed_precision --run_dir=" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--table must be of 1, 2, .* Received: none"),
        (["--table=9"], "--table must be of .* Received: 9"),
        (["--table=T", "--depths=0"], "depths must be numbers at least 1. Received: 0"),
        (["--table=T", "--seeds=x"], "--seeds=x: it must be whole numbers"),
        (["--table=T", "--seeds="], "--seeds must be whole numbers. Received: none"),
        (
            ["--table=T", "--datasets=food101"],
            "Table T has the data sets digits. Received: --datasets=food101",
        ),
        (["--table=T", "--", "--epochs=none"], "tiny-d1: .*epochs"),
        (["--table=T", "--colour=red"], "tiny-d1: Unknown command line flag 'colour'"),
        (
            ["--table=T", "--depth=4"],
            "--depth is of the table and cannot be given. Received: --depth=4",
        ),
        (["--table=T", "stray"], "begin with --. Received: stray"),
    ],
)
def test_bad_input_is_one_line_before_any_run(here, command, arguments, message):
    status, _, err = command(*arguments)
    assert status == 2
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err
    assert not (here / "calls").exists()
    assert not (here / "runs").exists()


def test_it_runs_outside_the_repository(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, out, _ = command("--table=4", "--depths=1", "--runs_dir=runs", "--dry_run")
    assert status is None
    assert (
        "\npython -m dynkhydra_tf.train --flagfile=configs/cifar100_hydrares.cfg --depth=1 --seed=0 " in out
    )


@pytest.mark.slow
def test_ctrl_c_ends_the_training_first(here):
    (here / "train.py").write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n    pathlib.Path('saved').touch()\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\npathlib.Path('started').touch()\ntime.sleep(100)\n"
    )
    script = (
        "from dynkhydra_tf import cli\nfrom dynkhydra_tf.paper import experiments, reproduce\n"
        "from dynkhydra_tf.paper.experiments import Series, Table\n"
        "reproduce.TRAIN = ('train.py',)\n"
        "experiments.TABLES['T'] = Table('T', [Series('tiny', 'plain', (1,))])\n"
        "cli.run(reproduce.main, reproduce.Options, positional='flags', at_least=0)\n"
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        for name in ("started", "saved"):
            (here / name).unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", script, "--table=T"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # A shell that starts the tests in the background makes them, and all of theirs, deaf to Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        for _ in range(900):
            if (here / "started").exists():
                break
            time.sleep(0.1)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert (here / "saved").exists()


@pytest.mark.slow
def test_real_runs_and_their_report(tmp_path, monkeypatch, command, capsys):
    table = Table(
        "Table D: digits",
        [
            Series("digits", DYNK_HYDRA, (1,), "", ("--num_branches=2",)),
            Series("digits", PLAIN, (1,), "", ("--system=plain",)),
        ],
        by_tau=True,
    )
    monkeypatch.setitem(experiments.TABLES, "D", table)
    monkeypatch.chdir(ROOT)
    runs = tmp_path / "runs"
    status, out, err = command("--table=D", "--epochs=1", f"--runs_dir={runs}")
    assert status is None, err
    assert "| digits | DynK-Hydra | 1 |" in out
    assert out.count("| digits | DynK-Hydra | 1 |") == 1 + len(experiments.TAUS)
    csv = (runs / "tableD.csv").read_text().splitlines()
    summary = json.loads((runs / "digits-2-d1-seed0" / "summary.json").read_text())
    assert f"{100 * summary['top1']:.4f}"[:5] in csv[1]
    # The report of these runs, and that nothing is run again.
    assert "finished" in command("--table=D", "--epochs=1", f"--runs_dir={runs}", "--dry_run")[1]
    page = tmp_path / "report.html"
    cli.run(report.main, report.Options, ["report", str(runs), f"--output={page}"], "directories")
    text = page.read_text()
    for expected in (
        "Table D: digits",
        "digits-2-d1-seed0",
        "digits-plain-d1-seed0",
        "data:image/png;base64,",
    ):
        assert expected in text
    assert 'src="http' not in text
    assert "(report_files/tradeoff1.png)" in page.with_suffix(".md").read_text()
    assert pathlib.Path(tmp_path / "report_files" / "tradeoff1.png").is_file()
