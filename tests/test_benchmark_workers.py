"""The measurement of workers, with processes that only answer in place of some that train."""

import contextlib
import json
import subprocess
import sys

import pytest

from dynkhydra_tf.benchmark import workers
from dynkhydra_tf.errors import UserError

# Answers each line with its own images a second, and to the line of 0 seconds as one that is warm.
ANSWER = """
import json, sys
images, own = map(float, sys.argv[1:])
for line in sys.stdin:
    told = {"images_per_second": images, "ms": 8e3 / images, "cpu_ms": own, "steps": 3}
    print(json.dumps({**told, "bytes": 4e6 * (own == 7), "adding_ms": 2.5}), flush=True)
"""


@contextlib.contextmanager
def answering(*numbers):
    command = [sys.executable, "-I", "-S", "-c", ANSWER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(images), str(own)], **pipes) for images, own in numbers]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_images_of_all_processes_count_and_of_the_rest_the_mean():
    with answering((40, 5), (20, 9)) as processes:
        told = workers._ask(processes, 1.0)
        assert told["images_per_second"] == 60
        assert (told["ms"], told["cpu_ms"], told["steps"]) == (300, 7, 3)


def test_a_process_that_has_ended_is_told():
    with answering((1, 1)) as processes:
        processes[0].kill()
        with pytest.raises(UserError, match="has ended: see what it tells"):
            workers._ask(processes, 1.0)


def test_the_rows_of_the_table(monkeypatch, capsys):
    def started(options, count, distributed):
        own = 7 if distributed and count > 1 else 3
        return answering(*[(100 - 20 * distributed - 25 * (count > 1), own)] * count)

    monkeypatch.setattr(workers, "_started", started)
    workers.main(workers.Options(counts=(0, 1, 2), apart=(2,), rounds=2))
    *rounds, header, _, none, one, two, half, apart = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "workers"
    assert none.split() == ["none", "100.0", "1.000", "80.0", "3.0", "-", "-"]
    assert one.split() == ["1", "80.0", "0.800", "100.0", "3.0", "-", "-"]
    assert two.split() == ["2", "110.0", "1.100", "145.5", "7.0", "4.00", "2.50"]
    assert half.split() == ["one", "of", "2", "75.0", "0.750", "106.7", "3.0", "-", "-"]
    assert apart.split() == ["2", "apart", "150.0", "1.500", "106.7", "3.0", "-", "-"]
    assert [(json.loads(line)["workers"], len(json.loads(line)["rounds"])) for line in rounds] == [
        (name, 2) for name in ("none", "1", "2", "one of 2", "2 apart")
    ]
    workers.main(workers.Options(counts=(0, 1), apart=(), rounds=1, copies=2))
    rows = capsys.readouterr().out.splitlines()[-4:]
    assert [row[:8].rstrip() for row in rows] == ["none", "1", "none (2)", "1 (2)"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"batch_size": 7}, r"--batch_size must be a multiple of 2, .* Received: 7"),
        ({"counts": (0, 3)}, r"--batch_size must be a multiple of 3, .* Received: 128"),
        ({"pin": True, "counts": (5000,), "batch_size": 5000}, r"--pin needs 5000 cores .* Received: \d+"),
    ],
)
def test_what_cannot_be_measured_is_told_first(flags, told):
    with pytest.raises(UserError, match=told):
        workers.Options(**flags)


def test_a_batch_that_each_process_has_for_itself_need_not_be_divided():
    assert workers.Options(batch_size=7, per_worker=True).counts == (0, 1, 2)
