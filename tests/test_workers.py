"""Several workers on real processes, on the loopback; and what needs no other process."""

import itertools
import os
import random
import re
import signal
import socket
import time

import keras
import numpy as np
import pytest

from dynkhydra_tf import launch
from dynkhydra_tf.data import load_data
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.partition import build_extractor
from dynkhydra_tf.partition.class_means import class_means
from dynkhydra_tf.runs.layout import RunFile
from dynkhydra_tf.tf_config import Cluster
from dynkhydra_tf.workers import ALONE, LOST, lost_text, open_workers, wait_for_all
from tests.workers_crew import Crew

STEPS = 4  # in an epoch of worker_process.py


def numbers_of(rows):
    """The rows without what a clock says."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_same_run(run, expected, tolerance=1e-6):
    """Checks that two runs have the same rows and end with the same weights and moving statistics."""
    rows, others = (numbers_of(each.metric_rows()) for each in (run, expected))
    assert [(row["epoch"], row["step"]) for row in rows] == [(row["epoch"], row["step"]) for row in others]
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, rel=tolerance, abs=tolerance)
    models = (keras.saving.load_model(each.path / RunFile.MODEL) for each in (run, expected))
    for mine, theirs in zip(*(model.weights for model in models), strict=True):
        np.testing.assert_allclose(mine, theirs, tolerance, tolerance, err_msg=mine.path)


EPOCHS = 6
TRAIN = ("train_coloured", EPOCHS, 0.1)  # a step rests for 0.1 s


def killed_at_random(place, workers, drawn, longest, kills):
    """Trains to the end with the same command, and kills a random worker at a random moment, again and again.

    Args:
        workers: how many.
        drawn: `random.Random`.
        longest: seconds, of a whole training.
        kills: at most so many.

    Returns:
        The run and the kills that are left.
    """
    while True:
        # A worker whose partner dies before all have met waits for another one.
        with Crew(place, [(*TRAIN, None, 30)] * workers) as crew:
            index, moment = drawn.randrange(workers), drawn.uniform(0, longest)
            crew.processes[index].join(moment if kills else None)
            if crew.processes[index].exitcode is not None:
                assert crew.ended() == [0] * workers, crew.told()
                return crew.run, kills
            crew.processes[index].kill()
            kills -= 1
            rows, begun = len(crew.run.metric_rows()), time.monotonic()
            print(f"\n{index} of {workers} killed, {rows} rows")
            statuses = crew.ended(limit=90)
            for other in set(range(workers)) - {index}:
                status, told = statuses[other], crew.told()[other]
                errors = [line for line in told.splitlines() if line.startswith("error: ")]
                print(f"{other}, by {time.monotonic() - begun:.1f} s later: {status} {errors}")
                if status == 0:  # it had nothing more to do, and the chief was about to write the results
                    assert rows == EPOCHS and not errors, crew.told()
                    continue
                assert len(errors) == 1, crew.told()
                how = {LOST: "Lost the connection", 2: "did not come", -signal.SIGKILL: "did not start"}
                assert how[status] in errors[0]


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [(2, 2), (3, 1)])
def test_workers_killed_at_random_lose_nothing(tmp_path, workers, kills):
    """DYNKHYDRA_KILLS: how many, DYNKHYDRA_SEED: which; docs/distributed.md has what more gave. -s tells."""
    begun = time.monotonic()
    with Crew(tmp_path / "whole", [TRAIN] * workers) as whole:
        assert whole.ended() == [0] * workers, whole.told()
    assert not (tmp_path / "whole" / "1").exists()  # the chief alone writes
    longest = time.monotonic() - begun
    drawn = random.Random(int(os.environ.get("DYNKHYDRA_SEED", 1)))
    kills = int(os.environ.get("DYNKHYDRA_KILLS", kills))
    for number in itertools.count():
        run, kills = killed_at_random(tmp_path / f"killed-{number}", workers, drawn, longest, kills)
        assert_same_run(run, whole.run)
        if not kills:
            break


@pytest.mark.slow
def test_a_signal_to_one_stops_all_after_the_same_step_and_another_number_goes_on(tmp_path):
    with Crew(tmp_path, [("train_coloured", 3, 0.3)] * 2) as crew:
        crew.wait_for_rows(1)
        crew.processes[1].terminate()
        assert crew.ended() == [128 + signal.SIGTERM] * 2, crew.told()
        told, silent = crew.told()
        assert "SIGTERM: saved in" in told
        assert "SIGTERM: saved in" not in silent
        steps = sorted(int(path.stem.removeprefix("step-")) for path in crew.run.checkpoints_written())
        assert STEPS <= steps[-1] < 2 * STEPS  # as the signal comes, just after the first row or a step later
    with Crew(tmp_path, [("train_coloured", 3)] * 3) as crew:
        assert crew.ended() == [0, 0, 0], crew.told()
    assert [(row["epoch"], row["step"]) for row in crew.run.metric_rows()] == [(1, 4), (2, 8), (3, 12)]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["0"]


@pytest.mark.slow
def test_workers_that_differ_or_lack_something_train_not_at_all(tmp_path):
    with Crew(tmp_path, [("train_coloured", 1, 0.0, fact) for fact in ("--depth=1", "--depth=2")]) as crew:
        assert crew.ended() == [2, 2], crew.told()
    for told in crew.told():
        assert re.search(r"error: All workers must train alike, and worker 1 \(127.0.0.1:\d+\) differs", told)


@pytest.mark.slow
def test_the_command_on_two_workers_is_the_command_on_one(tmp_path):
    """From another network, at first on the maps of its frozen part, validated, stopped when it is no better.

    A plain network that keeps its statistics: nothing in it depends on how a batch is divided.
    """
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(x)
    for name, filters in (("block1", 4), ("block2", 8)):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", name=f"{name}_conv")(x)
        x = keras.layers.ReLU(name=f"{name}_relu")(keras.layers.BatchNormalization(name=f"{name}_bn")(x))
    keras.Model(inputs, x).save(tmp_path / "network.keras")
    flags = ("--dataset=digits", "--image_size=8", "--system=plain", f"--backbone={tmp_path}/network.keras")
    flags += ("--batch_size=120", "--cutout=0", "--shift=0", "--validation_fraction=0.2", "--optimizer=sgd")
    flags += ("--schedule=piecewise", f"--cache_dir={tmp_path}/cache", "--unfrozen_rate=0.5")
    first = ("train_as_command", *flags, "--learning_rate=0.1", "--epochs=2")
    with Crew(tmp_path / "source", [first]) as crew:
        assert crew.ended() == [0], crew.told()
    flags += (f"--init_from={tmp_path}/source/0", "--freeze=until_epoch:1", "--early_stopping=1")
    flags += ("--learning_rate=0.02", "--lr_drops=2:1e-9", "--epochs=40")
    runs = []
    for distribute, count in (("none", 1), ("workers", 2)):
        command = ("train_as_command", *flags, f"--distribute={distribute}")
        with Crew(tmp_path / distribute, [command] * count) as crew:
            assert crew.ended() == [0] * count, crew.told()
            assert "no better than epoch" in crew.told()[0]
        runs.append(crew.run)
    assert 2 <= len(runs[0].metric_rows()) < 40  # of both stages
    assert_same_run(*runs, tolerance=1e-4)
    assert not (tmp_path / "workers" / "1").exists()


@pytest.mark.slow
def test_class_means_of_two_workers_are_those_of_one(tmp_path):
    with Crew(tmp_path, [("save_class_means",)] * 2) as crew:
        assert crew.ended() == [0, 0], crew.told()
    alone = class_means(load_data("digits", image_size=8), build_extractor("pixels"), tmp_path / "alone")
    means = [np.load(tmp_path / f"{index}.npy") for index in (0, 1)]
    np.testing.assert_array_equal(*means)
    np.testing.assert_allclose(means[0], alone, rtol=1e-12)
    (cached,) = (tmp_path / "0").iterdir()
    assert not (tmp_path / "1").exists()  # one writes
    np.testing.assert_array_equal(np.load(cached)["class_means"], means[0])


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
    assert str(error.value).endswith("(Connection refused)")
    nowhere = Cluster(("worker 0", "worker 1"), (addresses[0], "no-such-host.invalid:2222"), 0)
    with pytest.raises(UserError, match=r"^worker 1 \(no-such-host.invalid:2222\) .* not known\)$"):
        wait_for_all(nowhere, 0.1)
    cluster_of_two = Cluster(("worker 0", "worker 1"), tuple(addresses[:2]), 0)
    with socket.socket() as there:
        there.bind((host, int(port)))
        there.listen()
        wait_for_all(cluster_of_two, 5)
    cluster.listen().close()  # the port is free again
