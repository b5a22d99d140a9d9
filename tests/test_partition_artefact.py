"""Tests of the partition artefact."""

import json

import numpy as np
import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.partition import ClassPartition

NAMES = ("zebra", "ape", "car", "œuf", "bus")
PARTITION = ClassPartition("toys", NAMES, (0, 0, 1, 2, 1), "cluster_balance", "EfficientNetB7", 3)
CLUSTERS = [["zebra", "ape"], ["car", "bus"], ["œuf"]]


def write(path, **record):
    path.write_text(json.dumps(record))
    return path


def test_properties():
    assert PARTITION.num_classes == 5
    assert PARTITION.num_branches == 3
    assert PARTITION.clusters == CLUSTERS


def test_lists_and_numpy_ints_become_plain_tuples():
    partition = ClassPartition("toys", ["a", "b"], np.array([1, 0]), "random", None, 0)
    assert partition.class_names == ("a", "b")
    assert partition.cluster_of_class == (1, 0)
    assert all(type(cluster) is int for cluster in partition.cluster_of_class)


@pytest.mark.parametrize(
    ("names", "clusters", "message"),
    [
        (("a", "b"), (0,), "2 classes and 1 clusters"),
        ((), (), "0 classes"),
        (("a", "b"), (0, 2), "at least one class. Received the numbers 0, 2"),
        (("a", "b"), (-1, 0), "numbered from 0"),
        (("a", "b"), (1, 2), "numbered from 0"),
        (("a", "b", "a"), (0, 1, 1), "twice: 'a'"),
    ],
)
def test_impossible_partitions(names, clusters, message):
    with pytest.raises(UserError, match=message):
        ClassPartition("toys", names, clusters, "random")


def test_round_trip(tmp_path):
    path = tmp_path / "run" / "partition.json"
    PARTITION.save(path)
    assert ClassPartition.load(path) == PARTITION
    assert ClassPartition.load(path, "toys", NAMES) == PARTITION


def test_the_file_is_for_people(tmp_path):
    path = tmp_path / "partition.json"
    PARTITION.save(path)
    text = path.read_text(encoding="utf-8")
    assert '    ["zebra", "ape"],\n    ["car", "bus"],\n    ["œuf"]\n' in text
    record = json.loads(text)
    assert record["clusters"] == CLUSTERS
    assert record["num_branches"] == 3
    assert (record["strategy"], record["extractor"], record["seed"]) == (
        "cluster_balance",
        "EfficientNetB7",
        3,
    )


def test_the_order_of_classes_in_the_file_does_not_matter(tmp_path):
    path = write(
        tmp_path / "p.json",
        dataset="toys",
        clusters=[["ape", "zebra"], ["bus", "car"], ["œuf"]],
        class_names=sorted(NAMES),
    )
    assert ClassPartition.load(path, "toys", NAMES).cluster_of_class == (0, 0, 1, 2, 1)


def test_a_file_by_hand_needs_two_keys(tmp_path):
    path = write(tmp_path / "p.json", dataset="toys", clusters=CLUSTERS)
    partition = ClassPartition.load(path, "toys", NAMES)
    assert partition == ClassPartition("toys", NAMES, (0, 0, 1, 2, 1), "file", None, None)
    assert ClassPartition.load(path).class_names == tuple(sorted(NAMES))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"dataset": "pets", "clusters": CLUSTERS}, "of data set 'pets', the one in use is 'toys'"),
        ({"dataset": "toys", "clusters": [["zebra", "ape"], ["car"]]}, "missing: 'œuf', 'bus'"),
        ({"dataset": "toys", "clusters": [*CLUSTERS, ["ape"]]}, "twice: 'ape'"),
        ({"dataset": "toys", "clusters": [*CLUSTERS, ["boat"]]}, "not of this data set: 'boat'"),
        ({"dataset": "toys", "clusters": [*CLUSTERS, []]}, "at least one"),
        ({"dataset": "toys", "clusters": []}, "at least one"),
        ({"dataset": "toys", "clusters": {"0": ["ape"]}}, "is a list with a list"),
        ({"dataset": "toys", "clusters": [[0, 1], [2]]}, "list of class names"),
        ({"dataset": "toys"}, "lacks 'clusters'"),
        ({"clusters": CLUSTERS}, "lacks 'dataset'"),
        ([], "lacks 'clusters', 'dataset'"),
    ],
)
def test_bad_records(tmp_path, record, message):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=message) as raised:
        ClassPartition.load(path, "toys", NAMES)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read \(No such file"):
        ClassPartition.load(tmp_path / "none.json")
    (tmp_path / "p.json").write_bytes(b'{"dataset": "to')
    with pytest.raises(UserError, match="is not JSON"):
        ClassPartition.load(tmp_path / "p.json")
    (tmp_path / "p.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not JSON"):
        ClassPartition.load(tmp_path / "p.json")


def test_only_the_first_few_names_are_told(tmp_path):
    names = [f"class {i}" for i in range(100)]
    path = write(tmp_path / "p.json", dataset="toys", clusters=[["class 0"]])
    with pytest.raises(UserError, match=r"missing: 'class 1', .*, 'class 5' and 94 more"):
        ClassPartition.load(path, "toys", names)
