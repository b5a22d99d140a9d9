"""A process beside the training, for what can be done meanwhile: a training leaves half of two cores idle."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from dynkhydra_tf import cli
from dynkhydra_tf.errors import UserError


@contextlib.contextmanager
def process_beside() -> Iterator[concurrent.futures.Executor]:
    """Yields an executor of one process, which does one thing after the other and says nothing.

    It does not use a GPU, lets the training go first, and ends with this process, however that ends. A
    SIGTERM to this one leaves the block by `SystemExit`, so that nothing stays behind.
    """
    spawn = multiprocessing.get_context("spawn")  # a copy of this process would have TensorFlow's locks
    executor = concurrent.futures.ProcessPoolExecutor(1, spawn, _begin)
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)


def result_of(future: "concurrent.futures.Future[Any]") -> Any:
    """Returns what was done, once it is.

    Raises:
        UserError: the process was killed. And whatever was raised in it.
    """
    try:
        return future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "The process that exports what was trained was killed, perhaps for its memory (some 2 GB). The "
            "same command goes on from there"
        ) from error


def _begin() -> None:
    """Makes a new process what `process_beside` says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other one is asked, and ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cli.prepare_imports()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # TensorFlow asks when it first computes
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
    if hasattr(os, "nice"):
        os.nice(5)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
