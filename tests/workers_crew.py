"""Workers of this machine, each a process of its own, forked from one that has imported TensorFlow already.

So they begin at once: most of a start is that import, which computes nothing yet.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import sys
import time

from dynkhydra_tf import launch, quiet
from dynkhydra_tf.runs.layout import RunLayout
from tests.conftest import ROOT


class Crew:
    """Workers that train together, killed at the latest when the block ends; worker 0 is the chief.

    Args:
        place: folder for what each prints, and for the run directories PLACE/0, ....
        calls: of each worker the function of `worker_process` that it calls, and its arguments behind the
            run directory.
    """

    def __init__(self, place, calls):
        place.mkdir(exist_ok=True)
        with launch.free_addresses(len(calls)) as addresses:
            environments = [launch.environment_of(addresses, index, 1) for index in range(len(calls))]
        self.outputs = [place / f"output-{index}" for index in range(len(calls))]
        self.run = RunLayout(place / "0")
        context = _forkserver()
        self.processes = []
        for index, (name, *rest) in enumerate(calls):
            arguments = (str(self.outputs[index]), environments[index], name, str(place / str(index)), *rest)
            self.processes.append(context.Process(target=_work, args=arguments))
            self.processes[-1].start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.join()

    def wait_for_rows(self, count, limit=600):
        """Waits until the chief has written so many rows."""
        end = time.monotonic() + limit
        while len(self.run.metric_rows()) < count:
            assert time.monotonic() < end, self.told()
            assert all(process.is_alive() for process in self.processes), self.told()
            time.sleep(0.05)

    def ended(self, limit=600):
        """The exit status of each, minus the signal where one ended it; None where it goes on."""
        end = time.monotonic() + limit
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0))
        return [process.exitcode for process in self.processes]

    def told(self):
        """What each has printed."""
        return [output.read_text() for output in self.outputs]


def _forkserver():
    """Whose processes are forked; their sets have the same order, which TensorFlow's messages need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.worker_process"])
    before = dict(os.environ)
    os.environ.update(PYTHONHASHSEED="0", PYTHONPATH=str(ROOT), TF_CPP_MIN_LOG_LEVEL=quiet.SILENT)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def _work(output, environment, name, *arguments):
    """In the forked process."""
    from tests import worker_process

    with open(output, "w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
            stream.reconfigure(line_buffering=True)
    os.environ.update(environment)
    getattr(worker_process, name)(*arguments)
