"""Trains with several processes of this machine, to try out what is meant for several machines.

    python -m dynkhydra_tf.launch --workers=2 -- --flagfile=configs/digits.cfg

What follows -- goes to train.py. Each process is a worker with a port of its own; what it prints is told with
its name before it. When one fails it is named, the others are ended, and the exit status is its; Ctrl-C and
SIGTERM are passed on, and then the run is saved.
"""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import IO

from dynkhydra_tf import cli
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.tf_config import VARIABLE, write_config

TRAIN = ("-m", "dynkhydra_tf.train", "--distribute=workers")  # what Python runs
# Of the others, once one has failed: to end by themselves, as all do that know what is wrong, and after
# SIGTERM, which ends those that still wait for it.
SECONDS_TO_SEE, SECONDS_TO_END = 5.0, 10.0


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command; those of train.py follow --."""

    workers: int = setting(2, "How many processes.", least=1)
    threads: int | None = setting(
        None, "Threads that each of them computes with; default: its share of the cores.", least=1
    )


def main(options: Options, train_flags: Sequence[str]) -> None:
    """Starts the workers, tells what they print, waits for them.

    Args:
        options: the flags of this command.
        train_flags: flags of train.py, for every worker.

    Raises:
        SystemExit: the exit status of the first worker that failed, 128 + the signal where one ended it.
    """
    threads = options.threads or max(1, (os.cpu_count() or 1) // options.workers)
    command = [sys.executable, *TRAIN, *train_flags]
    with free_addresses(options.workers) as addresses:
        environments = [environment_of(addresses, index, threads) for index in range(options.workers)]
    status = run_together([(f"worker {index}", command, each) for index, each in enumerate(environments)])
    if status:
        sys.exit(status)


def environment_of(addresses: list[str], index: int, threads: int) -> dict[str, str]:
    """Returns the environment variables of worker `index` of those at some addresses, else this process's."""
    return {
        **os.environ,
        VARIABLE: write_config(addresses, index),
        "PYTHONHASHSEED": "0",  # else each would set it and begin anew
        **thread_settings(threads),
    }


def thread_settings(threads: int) -> dict[str, str]:
    """Environment variables with which TensorFlow computes with so many threads."""
    return {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": str(threads)}


@contextlib.contextmanager
def free_addresses(count: int) -> Iterator[list[str]]:
    """Yields addresses of this machine whose ports are free; they are held until the block ends."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket(socket.AF_INET)) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        yield [f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes]


def run_together(commands: Sequence[tuple[str, Sequence[str], Mapping[str, str]]]) -> int:
    """Runs commands side by side until all have ended; the first failure ends the rest.

    SIGINT and SIGTERM are passed on, a second one as SIGKILL. Each child is in a session of its own, so that
    a terminal's Ctrl-C reaches it once.

    Args:
        commands: (name, command, environment) of each.

    Returns:
        0 where all end well, else the exit status of the first that does not, 128 + the signal that ended it.
    """
    names = [name for name, _, _ in commands]
    processes: list[subprocess.Popen] = []
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        send(processes, number if len(received) == 1 else signal.SIGKILL)

    with contextlib.ExitStack() as at_end:
        for number in (signal.SIGINT, signal.SIGTERM):
            at_end.callback(signal.signal, number, signal.signal(number, pass_on))
        for name, command, environment in commands:
            process = subprocess.Popen(
                command,
                env={**environment, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            processes.append(process)
            teller = threading.Thread(target=_tell, args=(name, process.stdout))
            teller.start()
            at_end.callback(teller.join)
        at_end.callback(send, processes, signal.SIGKILL)
        if not (first := _wait_for_failure(processes)):
            return 0
        failed = names[[process.returncode for process in processes].index(first)]
        if not received:
            how = f"with status {first}" if first > 0 else f"by {signal.Signals(-first).name}"
            print(f"error: {failed} ended {how}, and so do the others", file=sys.stderr, flush=True)
        for seconds, number in ((SECONDS_TO_SEE, signal.SIGTERM), (SECONDS_TO_END, signal.SIGKILL)):
            _wait(processes, seconds)
            send(processes, number)
    return first if first > 0 else 128 - first


def _wait_for_failure(processes):
    """The return code of the first process that fails; 0 where all end well."""
    while True:
        running = [process for process in processes if process.poll() is None]
        if failed := [process.returncode for process in processes if process.returncode]:
            return failed[0]
        if not running:
            return 0
        time.sleep(0.05)


def _wait(processes, seconds):
    """Waits until all have ended, or so long."""
    end = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(end - time.monotonic(), 0))


def send(processes: Sequence[subprocess.Popen], number: int) -> None:
    """Sends a signal to those of the processes that have not ended."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _tell(name: str, stream: IO[bytes]) -> None:
    """Prints each line of a stream with a name before it."""
    for line in stream:
        text = line.decode(errors="backslashreplace").rstrip("\r\n")
        print(f"[{name}] {text}", flush=True)


if __name__ == "__main__":
    cli.run(main, Options, positional="flags of train.py", pass_on=True)
