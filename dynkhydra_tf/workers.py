"""Several processes that train one network: how they meet, and what they tell each other beside the steps.

The steps' own sums are `tf.distribute`'s, and so is every message here: it travels as a sum over the workers.
TensorFlow is loaded only where there are several.
"""

import collections
import contextlib
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.memory import keep_freed_memory
from dynkhydra_tf.tf_config import Cluster, port_of, read_cluster

if TYPE_CHECKING:
    import tensorflow as tf

CHUNK = 2**22  # bytes in a message of `share`
SECONDS_OF_SILENCE = 30  # after which TensorFlow takes a worker for lost
SECONDS_TO_START = 50  # for TensorFlow's servers, once all workers are there
# Waits for the end of stdin, and ends a process where that takes too long.
GUARD = """
import os, select, signal, sys
process, seconds, message = sys.argv[1:]
if not select.select([sys.stdin], [], [], float(seconds))[0]:
    print(message, file=sys.stderr, flush=True)
    os.kill(int(process), signal.SIGKILL)
"""
LOST = 138  # exit status when another worker was lost: 128 + SIGUSR1, by which Kubeflow knows to try again


class Workers:
    """One process, alone: nothing is to be told to anybody.

    Attributes:
        strategy: of TensorFlow, or None.
        index, count: which of how many workers this is; the chief, which writes, is 0.
    """

    strategy: "tf.distribute.Strategy | None" = None
    index, count = 0, 1

    @property
    def is_chief(self) -> bool:
        """Whether this is the one that writes."""
        return self.index == 0

    def add_up(self, array: np.ndarray) -> np.ndarray:
        """Returns the sum over all workers of arrays of one shape and type, the same bits on each."""
        return array

    def any(self, condition: bool) -> bool:
        """Whether the condition holds on any worker."""
        return condition

    def share(self, data: bytes) -> bytes:
        """Returns the chief's data on all workers; those of the others do not count."""
        return data

    def agree(self, facts: Mapping[str, object]) -> None:
        """Checks that all workers have the same.

        Args:
            facts: by name, values that JSON knows.

        Raises:
            UserError: one differs from the chief; it is named, with what differs.
        """


ALONE = Workers()


class SeveralWorkers(Workers):
    """One process among others.

    All must call its methods in the same order. But until they agree each one may `fail` at any time instead.

    Args:
        cluster: who they are.
        strategy: a `MultiWorkerMirroredStrategy`.
    """

    def __init__(self, cluster: Cluster, strategy: "tf.distribute.Strategy") -> None:
        self.cluster, self.strategy = cluster, strategy
        self.index, self.count = cluster.index, cluster.size
        self.agreed = False
        # TensorFlow numbers the sums as they are traced: this one is the first on each worker.
        self._exchange(b"")

    def _sum(self, array):
        return self._function(array.shape, array.dtype)(array)

    @functools.cache  # noqa: B019 - as long as the process
    def _function(self, shape, dtype):
        """Sums up arrays of one shape and type."""
        import tensorflow as tf

        local = self.strategy.num_replicas_in_sync // self.count

        def add(value):
            context = tf.distribute.get_replica_context()
            if local > 1:  # a worker's first device speaks for it
                value = tf.where(context.replica_id_in_sync_group % local == 0, value, tf.zeros_like(value))
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(value))

        @tf.function(input_signature=[tf.TensorSpec(shape, dtype)], autograph=False)
        def total(value):
            return self.strategy.experimental_local_results(self.strategy.run(add, args=(value,)))[0]

        traced = total.get_concrete_function()
        return lambda array: traced(tf.constant(array)).numpy()

    def add_up(self, array: np.ndarray) -> np.ndarray:
        """As of one."""
        return self._sum(array)

    def any(self, condition: bool) -> bool:
        """As of one; it takes no longer than a message there and back."""
        return bool(self._sum(np.array([condition], np.int32))[0])

    def share(self, data: bytes) -> bytes:
        """As of one; what is long is sent in parts."""
        lengths, _ = self._exchange(b"", len(data) if self.is_chief else 0)
        received = bytearray()
        for place in range(0, lengths[0], CHUNK):
            size = min(CHUNK, lengths[0] - place)
            part = data[place : place + size] if self.is_chief else bytes(size)
            received += self._sum(_numbers(part)).tobytes()[:size]
        return bytes(received)

    def agree(self, facts: Mapping[str, object]) -> None:
        """As of one."""
        _, told = self._exchange(json.dumps(dict(facts)).encode())
        self.agreed = True
        chiefs, *others = (json.loads(text) for text in told)
        for index, theirs in enumerate(others, 1):
            names = dict.fromkeys([*chiefs, *theirs])
            differing = [
                f"{name}={theirs.get(name)} (the chief's: {chiefs.get(name)})"
                for name in names
                if theirs.get(name) != chiefs.get(name)
            ]
            if differing:
                raise UserError(
                    f"All workers must train alike, and {self.cluster.describe(index)} differs from the "
                    f"chief: {', '.join(differing)}"
                )

    def fail(self, message: str) -> None:
        """Tells the others, who are waiting or will, that this worker cannot go on."""
        self._exchange(message.encode(), failed=True)

    def _exchange(self, text: bytes, length: int = 0, failed: bool = False) -> tuple[list[int], list[bytes]]:
        """Returns each worker's length and, where any is given, each one's text."""
        mine = np.zeros((self.count, 3), np.int64)
        mine[self.index] = length, len(text), failed
        told = self._sum(mine)
        texts = [b""] * self.count
        if longest := int(told[:, 1].max()):
            mine = np.zeros((self.count, longest), np.int32)
            mine[self.index, : len(text)] = np.frombuffer(text, np.uint8)
            rows = self._sum(mine).astype(np.uint8)
            texts = [row[:size].tobytes() for row, size in zip(rows, told[:, 1], strict=True)]
        if told[:, 2].any() and not failed:
            index = int(told[:, 2].argmax())
            raise _ToldUserError(f"{self.cluster.describe(index)} cannot train: {texts[index].decode()}")
        return told[:, 0].tolist(), texts


class _ToldUserError(UserError):
    """What another worker has told: it need not be told again."""


def _numbers(data):
    """Bytes as int32, filled up so that there are few lengths, for each of which a graph is traced."""
    size = 1024
    while size < len(data):
        size *= 2
    return np.frombuffer(data.ljust(size, b"\0"), np.int32)


# === Meeting ===


@contextlib.contextmanager
def open_workers(distribute: str, seconds: float) -> Iterator[Workers]:
    """Yields the workers of a command: `ALONE`, but with --distribute=workers those of TF_CONFIG.

    Begins the process anew where PYTHONHASHSEED is not set: TensorFlow numbers the sums of a step as it meets
    them, and with another seed the sets of Python have another order.

    Args:
        distribute: of the settings.
        seconds: how long to wait for the others.

    Raises:
        UserError, SystemExit: of `meet`; TF_CONFIG is not what it should be.
    """
    if distribute != "workers":
        yield ALONE
        return
    cluster = read_cluster(os.environ)
    if os.environ.get("PYTHONHASHSEED", "random") == "random":
        sys.stdout.flush()
        arguments = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, arguments, {**os.environ, "PYTHONHASHSEED": "0"})
    with meet(cluster, seconds) as workers, contextlib.ExitStack() as silent:
        if not workers.is_chief:  # what they do is alike; what goes wrong is told on stderr
            nowhere = silent.enter_context(open(os.devnull, "w", encoding="utf-8"))
            silent.enter_context(contextlib.redirect_stdout(nowhere))
        yield workers


@contextlib.contextmanager
def meet(cluster: Cluster, seconds: float) -> Iterator[SeveralWorkers]:
    """Waits until all workers are there and yields what they train with; to come before TensorFlow computes.

    Args:
        cluster: who they are.
        seconds: how long to wait.

    Raises:
        UserError: a worker did not come; another process has this one's port; within the block, another
            worker could not go on.
        SystemExit: `LOST`, within the block, where the connection to another worker is lost.
    """
    import tensorflow as tf

    wait_for_all(cluster, seconds)
    before = signal.getsignal(signal.SIGTERM)
    workers = None
    try:
        others = [cluster.describe(index) for index in range(cluster.size) if index != cluster.index]
        with _guard(
            f"error: {', '.join(others)} came and did not start within {SECONDS_TO_START} s: see what "
            "they tell, and whether another program has their port"
        ):
            _configure(cluster)
            strategy = _strategy()
        signal.signal(signal.SIGTERM, before)  # TensorFlow takes it, and does not end
        workers = SeveralWorkers(cluster, strategy)
        yield workers
    except UserError as error:
        if workers and not (workers.agreed or isinstance(error, _ToldUserError)):
            with contextlib.suppress(tf.errors.OpError):
                workers.fail(str(error))
        raise
    except Exception as error:
        if not is_lost(error):
            raise
        print(f"error: {lost_text(cluster, str(error))}", file=sys.stderr, flush=True)
        raise SystemExit(LOST) from None


def _strategy():
    """TensorFlow's, without the two messages by which Keras averages each step's results over the workers.

    They are the same on all, for a step computes them from sums over these: see `distribution.packed`.
    """
    import tensorflow as tf

    class Strategy(tf.distribute.MultiWorkerMirroredStrategy):
        def reduce(self, reduce_op, value, axis):
            return tf.reduce_mean(self.experimental_local_results(value)[0], axis)

    made = Strategy()  # before any op of this process
    keep_freed_memory()
    return made


def wait_for_all(cluster: Cluster, seconds: float) -> None:
    """Listens at this worker's address until each other one is seen to listen at its own.

    TensorFlow, too, would wait for them: for ever, without a word, deaf to Ctrl-C.

    Raises:
        UserError: one did not come in time, which is named; another process has this one's port.
    """
    end = time.monotonic() + seconds
    with contextlib.closing(cluster.listen()):
        absent = {index: "" for index in range(cluster.size) if index != cluster.index}
        while absent := {index: why for index in absent if (why := _absence(cluster.addresses[index]))}:
            if time.monotonic() >= end:
                named = ", ".join(map(cluster.describe, absent))
                raise UserError(
                    f"{named} did not come within {seconds:g} s (--wait_for_workers): start it, or see what "
                    f"it tells ({', '.join(dict.fromkeys(absent.values()))})"
                )
            time.sleep(0.2)


def _absence(address):
    """Why nobody answers at an address, in a few words; "" where somebody does."""
    host, _, _ = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), port_of(address)), timeout=2).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _configure(cluster):
    """As `MultiWorkerMirroredStrategy` would do it, and with another time after which a worker is lost.

    TensorFlow's own, 10 s, is short where processors are shared or a machine is paused.
    """
    from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
    from tensorflow.python.eager import context

    jobs = collections.Counter(name.partition(" ")[0] for name in cluster.names)
    listed = [
        coordination_config_pb2.CoordinatedJob(name=name, num_tasks=count) for name, count in jobs.items()
    ]
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:{}/replica:0/task:{}".format(*cluster.names[0].split()),
        heartbeat_timeout_in_ms=1000 * SECONDS_OF_SILENCE,
        coordinated_jobs=listed,
    )


def is_lost(error: Exception) -> bool:
    """Whether an error says that the connection to another worker is lost.

    It may come wherever a variable is made or set under a strategy, and then in a ValueError of Keras.
    """
    import tensorflow as tf

    signs = "[cC]ollective|[cC]oordination|remote target|heartbeat"
    if isinstance(error, UserError) or not isinstance(error, (tf.errors.OpError, ValueError)):
        return False
    return bool(re.search(signs if isinstance(error, tf.errors.OpError) else "Collective ops", str(error)))


def lost_text(cluster: Cluster, error: str) -> str:
    """Returns the line that tells of a lost worker what TensorFlow's many lines say: which one, and why."""
    error = re.sub(r"\{\{.*?\}\}|\[type\.googleapis.*?\]", "", error)  # nodes, named after their own device
    found = re.search(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)", error)
    named = f"{found[1]} {found[2]}" if found else ""
    index = cluster.names.index(named) if named in cluster.names else None
    who = "another worker" if index is None else cluster.describe(index)
    if index == cluster.index:
        who = f"the others, which heard nothing of this one, {who}, for {SECONDS_OF_SILENCE} s"
    lines = [line.strip() for line in re.sub(r".*aborted by:", "", error, flags=re.DOTALL).splitlines()]
    about_the_graph = r"|Graph execution error.*|Detected at node.*|File .*|<.*|\(?\d+\)? .*|\[\[.*"
    said = [line for line in lines if not re.fullmatch(about_the_graph, line)]
    reason = said[0].strip(" .") if said else "no reason given"
    return (
        f"Lost the connection to {who} ({reason}). What the run saved is safe: the same command on all "
        "workers, without --overwrite, goes on from its last checkpoint"
    )


@contextlib.contextmanager
def _guard(message: str) -> Iterator[None]:
    """Ends this process where the block takes longer than `SECONDS_TO_START`.

    By another process: while TensorFlow waits for others it lets no thread of Python run.
    """
    arguments = [str(os.getpid()), str(SECONDS_TO_START), message]
    guard = subprocess.Popen([sys.executable, "-I", "-S", "-c", GUARD, *arguments], stdin=subprocess.PIPE)
    try:
        yield
    finally:
        guard.communicate()
