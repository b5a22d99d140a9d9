import contextlib
import json
import socket

import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.tf_config import Cluster, read_cluster, write_config

TWO = ["a:1", "b:2"]


def config(cluster, job="worker", index=0):
    return json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})


def test_the_first_worker_is_the_chief_where_none_is_named():
    cluster = read_cluster({"TF_CONFIG": config({"worker": TWO}, index=1)})
    assert cluster == Cluster(("worker 0", "worker 1"), ("a:1", "b:2"), 1)
    assert cluster.size == 2
    assert cluster.describe(0) == "worker 0 (a:1)"
    assert read_cluster({"TF_CONFIG": write_config(TWO, 0)}).index == 0


def test_a_chief_comes_before_the_workers():
    # As Kubeflow writes it, with what it adds.
    text = {"cluster": {"worker": TWO, "chief": ["c:3"]}, "task": {"type": "worker", "index": 0}}
    cluster = read_cluster({"TF_CONFIG": json.dumps({**text, "environment": "cloud"})})
    assert cluster == Cluster(("chief 0", "worker 0", "worker 1"), ("c:3", "a:1", "b:2"), 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "--distribute=workers needs TF_CONFIG in the environment"),
        ("", "--distribute=workers needs TF_CONFIG in the environment"),
        ("{'cluster'", r"TF_CONFIG must be JSON.*Received: \{'cluster' \(Expecting"),
        ("[" * 100_000, r"TF_CONFIG must be JSON.*Received: \[{200}\.\.\. \("),
        ("[]", r'TF_CONFIG must have "cluster".*Received: \[\]'),
        ('{"cluster": {"worker": ["a:1"]}}', 'TF_CONFIG must have "task"'),
        (config({}), "TF_CONFIG names no worker"),
        (config({"worker": []}), "TF_CONFIG names no worker"),
        (config({"worker": TWO, "ps": ["c:3"]}), "must be of the types chief and worker.*Received: 'ps'"),
        (config({"worker": TWO, "chief": ["c:3", "d:4"]}), "must name one chief. Received: c:3, d:4"),
        (
            config({"worker": {"0": "a:1"}}),
            r'must list the addresses of type worker. Received: \{"0": "a:1"\}',
        ),
        (config({"worker": TWO}, "chief"), "must be one of its cluster's, worker. Received: 'chief'"),
        (
            config({"worker": TWO}, index=2),
            "must be from 0 to 1: its cluster has 2 of type worker. Received: 2",
        ),
        (config({"worker": TWO}, index=-1), "must be from 0 to 1.*Received: -1"),
        (config({"worker": TWO}, index=None), "must be from 0 to 1.*Received: null"),
        (
            config({"worker": ["a:1", "b:2", "a:1"]}),
            "names this task, worker 0, twice.*Received: a:1 2 times",
        ),
        (
            config({"worker": ["b:2", "b:2", "b:2", "a:1", "a:1"]}, index=4),
            "names this task, worker 4, twice.*Received: a:1 2 times",
        ),
        (config({"worker": ["c:3", "b:2", "b:2"]}), "names a task twice.*Received: b:2 2 times"),
        (config({"worker": ["a:1", "b"]}), 'must be HOST:PORT.*Received: "b"'),
        (config({"worker": ["a:1", "b:x"]}), 'must be HOST:PORT.*Received: "b:x"'),
        (config({"worker": ["a:1", "b:70000"]}), 'must be HOST:PORT.*Received: "b:70000"'),
        (config({"worker": ["a:1", 5]}), "must be HOST:PORT.*Received: 5"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text, told):
    with pytest.raises(UserError, match=told) as error:
        read_cluster({} if text is None else {"TF_CONFIG": text})
    assert "\n" not in str(error.value)


def test_a_port_in_use_is_named_and_a_free_one_is_left_free():
    with contextlib.closing(socket.socket()) as server:
        # As TensorFlow's server listens: a second one would be let in beside it.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        cluster = Cluster(("worker 0",), (f"127.0.0.1:{port}",), 0)
        with pytest.raises(UserError, match=rf"Port {port} of worker 0 \(127.0.0.1:{port}\) is in use"):
            cluster.listen()
    for _ in range(2):
        cluster.listen().close()
