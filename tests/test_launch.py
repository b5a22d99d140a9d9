import os
import signal
import sys
import threading
import time

import pytest

from dynkhydra_tf import launch
from dynkhydra_tf.tf_config import read_cluster


def command(name, script):
    return name, [sys.executable, "-I", "-S", "-c", script], dict(os.environ)


def test_what_each_prints_has_its_name_and_all_end_well(capfd):
    script = "import sys; print('one'); print('two ' + sys.argv[1], file=sys.stderr)"
    commands = [
        (f"worker {n}", [sys.executable, "-I", "-S", "-c", script, str(n)], os.environ) for n in (0, 1)
    ]
    assert launch.run_together(commands) == 0
    told = sorted(capfd.readouterr().out.splitlines())
    assert told == ["[worker 0] one", "[worker 0] two 0", "[worker 1] one", "[worker 1] two 1"]


@pytest.mark.parametrize(("ending", "status"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 137)])
def test_the_first_failure_ends_the_rest_and_its_status_is_told(monkeypatch, capfd, ending, status):
    monkeypatch.setattr(launch, "SECONDS_TO_SEE", 0.2)
    monkeypatch.setattr(launch, "SECONDS_TO_END", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    commands = [
        command("a", "import time; time.sleep(60); print('slept enough')"),
        command("b", f"import os, sys; {ending}"),
        command("c", deaf),
    ]
    assert launch.run_together(commands) == status
    how = "by SIGKILL" if status > 128 else f"with status {status}"
    assert capfd.readouterr() == ("", f"error: b ended {how}, and so do the others\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on(capfd, number):
    told = "import signal, sys, time; signal.signal({0}, lambda *_: (print('got it'), sys.exit(128 + {0})))"
    script = f"{told.format(int(number))}; print('ready'); time.sleep(60)"

    def interrupt():
        time.sleep(1)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=interrupt).start()
    assert launch.run_together([command("a", script), command("b", script)]) == 128 + number
    assert signal.getsignal(number) == before
    assert sorted(capfd.readouterr().out.splitlines())[:2] == ["[a] got it", "[a] ready"]


def test_each_worker_gets_its_place_and_the_threads(monkeypatch):
    monkeypatch.setattr(launch, "run_together", lambda commands: started.extend(commands) or 5)
    started = []
    with pytest.raises(SystemExit) as leaving:
        launch.main(launch.Options(workers=3, threads=2), ["--depth=1"])
    assert leaving.value.code == 5
    clusters = [read_cluster(environment) for _, _, environment in started]
    assert [name for name, _, _ in started] == ["worker 0", "worker 1", "worker 2"]
    assert [cluster.index for cluster in clusters] == [0, 1, 2]
    assert len({cluster.addresses for cluster in clusters}) == 1
    assert len(set(clusters[0].addresses)) == 3
    for cluster in clusters:
        cluster.listen().close()
    for _, arguments, environment in started:
        assert arguments[1:] == ["-m", "dynkhydra_tf.train", "--distribute=workers", "--depth=1"]
        assert environment["TF_NUM_INTRAOP_THREADS"] == environment["TF_NUM_INTEROP_THREADS"] == "2"


def test_the_command_passes_on_what_follows_the_two_dashes(monkeypatch, run_command):
    from dynkhydra_tf import cli

    got = []
    monkeypatch.setattr(
        sys, "argv", ["launch", "--workers=3", "--", "--flagfile=configs/digits.cfg", "--seed=1"]
    )
    cli.run(lambda *given: got.append(given), launch.Options, positional="flags of train.py", pass_on=True)
    assert got == [(launch.Options(workers=3), ["--flagfile=configs/digits.cfg", "--seed=1"])]
