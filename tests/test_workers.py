"""Several workers on real processes, on the loopback; and what needs no other process."""

import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from dynkhydra_tf import launch
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.runs.layout import RunLayout
from dynkhydra_tf.tf_config import Cluster
from dynkhydra_tf.workers import ALONE, lost_text, open_workers, wait_for_all
from tests.conftest import ROOT

STEPS = 4  # in an epoch of worker_process.py


class Crew:
    """Workers that train together, each with a run directory of its own: PLACE/0 is the chief's."""

    def __init__(self, place, count, epochs, seconds=0.0, facts=()):
        place.mkdir(exist_ok=True)
        with launch.free_addresses(count) as addresses:
            environments = [
                launch.environment_of(addresses, index, threads=1) | {"PYTHONPATH": str(ROOT)}
                for index in range(count)
            ]
        self.outputs = [place / f"output-{index}" for index in range(count)]
        command = [sys.executable, "-m", "tests.worker_process"]
        self.processes = [
            subprocess.Popen(
                [*command, place / str(index), str(epochs), str(seconds), *facts[index : index + 1]],
                env=environment,
                cwd=ROOT,
                stdout=self.outputs[index].open("w"),
                stderr=subprocess.STDOUT,
            )
            for index, environment in enumerate(environments)
        ]
        self.run = RunLayout(place / "0")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        launch.send(self.processes, signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def wait_for_rows(self, count, limit=600):
        """Waits until the chief has written so many rows."""
        end = time.monotonic() + limit
        while len(self.run.metric_rows()) < count:
            assert time.monotonic() < end, self.told()
            assert all(process.poll() is None for process in self.processes), self.told()
            time.sleep(0.05)

    def ended(self, limit=600):
        """The exit status of each."""
        return [process.wait(limit) for process in self.processes]

    def told(self):
        """What each has printed."""
        return [output.read_text() for output in self.outputs]


@pytest.mark.slow
def test_a_signal_to_one_stops_all_after_the_same_step_and_another_number_goes_on(tmp_path):
    with Crew(tmp_path, 2, epochs=3, seconds=0.3) as crew:
        crew.wait_for_rows(1)
        crew.processes[1].terminate()
        assert crew.ended() == [128 + signal.SIGTERM] * 2, crew.told()
        told, silent = crew.told()
        assert "SIGTERM: saved in" in told
        assert "SIGTERM: saved in" not in silent
        steps = sorted(int(path.stem.removeprefix("step-")) for path in crew.run.checkpoints_written())
        assert STEPS <= steps[-1] < 2 * STEPS  # as the signal comes, just after the first row or a step later
    with Crew(tmp_path, 3, epochs=3) as crew:
        assert crew.ended() == [0, 0, 0], crew.told()
    assert [(row["epoch"], row["step"]) for row in crew.run.metric_rows()] == [(1, 4), (2, 8), (3, 12)]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["0"]


@pytest.mark.slow
def test_workers_that_differ_or_lack_something_train_not_at_all(tmp_path):
    with Crew(tmp_path / "a", 2, epochs=1, facts=["--depth=1", "--depth=2"]) as crew:
        assert crew.ended() == [2, 2], crew.told()
    for told in crew.told():
        assert re.search(r"error: All workers must train alike, and worker 1 \(127.0.0.1:\d+\) differs", told)


# === Without other processes ===

TWO = Cluster(("worker 0", "worker 1"), ("a:1", "b:2"), 0)
GRAPH = "Graph execution error:\n\nDetected at node CollectiveReduceV2 defined at (most recent call last):\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            f"{GRAPH}<stack traces unavailable>\nCollective ops is aborted by: Connection reset by peer\n"
            "Additional GRPC error information from remote target /job:worker/replica:0/task:1:\n"
            "\t [[{{node CollectiveReduceV2}}]] [Op:__inference_multi_step_on_iterator_3220]",
            "worker 1 (b:2) (Connection reset by peer)",
        ),
        (f"{GRAPH}Socket closed\n\t [[{{{{node x}}}}]] [Op:y]", "another worker (Socket closed)"),
        (
            "{{function_node __wrapped__CollectiveBcastSend_device_/job:worker/replica:0/task:0/device:C:0}} "
            "Collective ops is aborted by: Task /job:worker/replica:0/task:1 heartbeat timeout. "
            "[type.googleapis.com/tensorflow.CoordinationServiceError='']",
            "worker 1 (b:2) (Task /job:worker/replica:0/task:1 heartbeat timeout)",
        ),
        (
            "Unexpected heartbeat request from an already-in-error task: /job:worker/replica:0/task:0",
            "the others, which heard nothing of this one, worker 0 (a:1), for 30 s (Unexpected heartbeat "
            "request from an already-in-error task: /job:worker/replica:0/task:0)",
        ),
        (GRAPH, "another worker (no reason given)"),
    ],
)
def test_a_lost_worker_is_told_in_one_line(error, told):
    line = lost_text(TWO, error)
    assert line.startswith(f"Lost the connection to {told}. What the run saved is safe")
    assert "\n" not in line


def test_one_process_has_nobody_to_ask():
    with open_workers("none", 1) as workers:
        assert workers is ALONE
    assert (ALONE.index, ALONE.count, ALONE.is_chief, ALONE.strategy) == (0, 1, True, None)
    assert ALONE.share(b"x") == b"x"
    assert ALONE.any(True)
    assert not ALONE.any(False)
    assert ALONE.add_up(np.array([2.0])) == [2.0]
    ALONE.agree({"depth": 1})


def test_workers_that_do_not_come_are_named_when_the_time_is_over():
    with launch.free_addresses(3) as addresses:
        pass
    with socket.socket() as there:
        host, port = addresses[1].split(":")
        there.bind((host, int(port)))
        there.listen()
        cluster = Cluster(("chief 0", "worker 0", "worker 1"), tuple(addresses), 0)
        with pytest.raises(UserError) as error:
            wait_for_all(cluster, 0.3)
    assert str(error.value).startswith(f"worker 1 ({addresses[2]}) did not come within 0.3 s")
    cluster_of_two = Cluster(("worker 0", "worker 1"), tuple(addresses[:2]), 0)
    with socket.socket() as there:
        there.bind((host, int(port)))
        there.listen()
        wait_for_all(cluster_of_two, 5)
    cluster.listen().close()  # the port is free again
