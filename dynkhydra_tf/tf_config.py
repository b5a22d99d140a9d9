"""TF_CONFIG: which processes train together, and which of them this one is.

    {"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}

Kubeflow's TFJob sets it, and so does `launch.py`. The chief is the task of type "chief" or, without one,
worker 0.
"""

import dataclasses
import errno
import json
import socket
from collections.abc import Mapping
from typing import Any

from dynkhydra_tf.errors import UserError

VARIABLE = "TF_CONFIG"
JOBS = ("chief", "worker")
EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes that train together; they are numbered, the chief is 0.

    Attributes:
        names: such as "worker 1", of TF_CONFIG's type and index.
        addresses: "host:port" of each.
        index: this process's number.
    """

    names: tuple[str, ...]
    addresses: tuple[str, ...]
    index: int

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.addresses)

    def describe(self, index: int) -> str:
        """What one of them is called in a message: "worker 1 (host2:2222)"."""
        return f"{self.names[index]} ({self.addresses[index]})"

    def listen(self) -> socket.socket:
        """Returns a socket that listens at this process's port; to be closed.

        Raises:
            UserError: another process has the port, or this one may not. TensorFlow's server would share it
                and get half of what is sent there.
        """
        port = port_of(self.addresses[self.index])
        here = socket.socket(socket.AF_INET)
        here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended do not count
        try:
            here.bind(("", port))
            here.listen(max(self.size, 128))
        except OSError as error:
            here.close()
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
            raise UserError(
                f"Port {port} of {self.describe(self.index)} {reason}: end the process that has it, or give "
                f"this task another one in {VARIABLE} of all workers"
            ) from error
        return here


def read_cluster(environment: Mapping[str, str]) -> Cluster:
    """Reads the cluster that TF_CONFIG describes.

    Args:
        environment: such as `os.environ`.

    Raises:
        UserError: it is not set, or not what it should be; the message says what is wrong.
    """
    text = environment.get(VARIABLE, "").strip()
    if not text:
        raise UserError(
            f"--distribute=workers needs {VARIABLE} in the environment, such as {EXAMPLE}; to try it on one "
            "machine: python -m dynkhydra_tf.launch --workers=2 -- FLAGS"
        )
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{VARIABLE} must be JSON, such as {EXAMPLE}. Received: {_short(text)} ({error})"
        ) from error
    jobs = _part(config, "cluster", text)
    if strange := [name for name in jobs if name not in JOBS]:
        raise UserError(
            f"The tasks in {VARIABLE} must be of the types {' and '.join(JOBS)}: all train alike. "
            f"Received: {', '.join(map(repr, strange))}"
        )
    addresses = {name: _addresses(name, jobs[name]) for name in JOBS if name in jobs}
    if not sum(map(len, addresses.values())):
        raise UserError(f"{VARIABLE} names no worker; it must be such as {EXAMPLE}. Received: {_short(text)}")
    if len(addresses.get("chief", ())) > 1:
        raise UserError(f"{VARIABLE} must name one chief. Received: {', '.join(addresses['chief'])}")
    task = _part(config, "task", text)
    job, index = task.get("type"), task.get("index")
    if job not in addresses:
        raise UserError(
            f"The type of this task in {VARIABLE} must be one of its cluster's, {' or '.join(addresses)}. "
            f"Received: {job!r}"
        )
    if isinstance(index, str) and index.isdecimal():  # TensorFlow takes it, too
        index = int(index)
    count = len(addresses[job])
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
        raise UserError(
            f"The index of this task in {VARIABLE} must be from 0 to {count - 1}: its cluster has {count} of "
            f"type {job}. Received: {json.dumps(index)}"
        )
    own = addresses[job][index]
    every = [address for listed in addresses.values() for address in listed]
    if twice := [address for address in dict.fromkeys(every) if every.count(address) > 1]:
        who = f"this task, {job} {index}," if own in twice else "a task"
        address = own if own in twice else twice[0]
        raise UserError(
            f"{VARIABLE} names {who} twice: each needs an address of its own. "
            f"Received: {address} {every.count(address)} times"
        )
    names = [f"{name} {number}" for name, listed in addresses.items() for number in range(len(listed))]
    return Cluster(tuple(names), tuple(every), names.index(f"{job} {index}"))


def write_config(addresses: list[str], index: int) -> str:
    """Returns the text of TF_CONFIG for worker `index` of those at these addresses."""
    return json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})


def port_of(address: str) -> int:
    """The port of "host:port"."""
    return int(address.rpartition(":")[2])


def _part(config: Any, name: str, text: str) -> dict[str, Any]:
    part = config.get(name) if isinstance(config, dict) else None
    if not isinstance(part, dict):
        raise UserError(f'{VARIABLE} must have "{name}", such as {EXAMPLE}. Received: {_short(text)}')
    return part


def _addresses(job: str, listed: Any) -> list[str]:
    if not isinstance(listed, list):
        raise UserError(
            f"{VARIABLE} must list the addresses of type {job}. Received: {_short(json.dumps(listed))}"
        )
    for address in listed:
        host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
        if not (host and port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535):
            raise UserError(
                f"An address of type {job} in {VARIABLE} must be HOST:PORT, the port from 1 to 65535. "
                f"Received: {json.dumps(address)}"
            )
    return listed


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."
