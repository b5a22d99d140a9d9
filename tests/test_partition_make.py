"""Tests of `make_partition`."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.partition import STRATEGIES, ClassPartition, make_partition


@dataclasses.dataclass
class FakeData:
    """Six classes in three pairs of like colours, two images each."""

    name: str = "fake"
    class_names: tuple = ("a", "b", "c", "d", "e", "f")
    colours: tuple = (0, 100, 200, 205, 105, 5)
    coarse_of_class: tuple = (0, 0, 0, 1, 2, 2)
    read: bool = False

    sizes = {"train": 12}  # noqa: RUF012

    def examples(self, split):
        self.read = True
        images = np.repeat(np.array(self.colours * 2, np.uint8), 4 * 4 * 3).reshape(12, 4, 4, 3)
        return tf.data.Dataset.from_tensor_slices((images, np.tile(np.arange(6, dtype=np.int32), 2)))


def make(strategy, num_branches=3, tmp_path=None, data=None, **kwargs):
    kwargs.setdefault("feature_extractor", "pixels")
    return make_partition(
        data or FakeData(), strategy, num_branches, seed=0, cache_dir=tmp_path, progress=False, **kwargs
    )


@pytest.mark.parametrize("strategy", ["cluster_balance", "cluster_optimal"])
def test_clusters(tmp_path, strategy):
    partition = make(strategy, tmp_path=tmp_path)
    assert sorted(partition.clusters) == [["a", "f"], ["b", "e"], ["c", "d"]]
    assert (partition.dataset, partition.strategy, partition.extractor) == ("fake", strategy, "pixels")
    assert partition.seed == 0


def test_random():
    partition = make("random")
    assert sorted(map(len, partition.clusters)) == [2, 2, 2]
    assert (partition.strategy, partition.extractor, partition.seed) == ("random", None, 0)


def test_semantic():
    partition = make("semantic")
    assert partition.clusters == [["a", "b", "c"], ["d"], ["e", "f"]]
    assert (partition.strategy, partition.extractor, partition.seed) == ("semantic", None, None)


def test_file(tmp_path):
    path = tmp_path / "p.json"
    partition = make("random")
    partition.save(path)
    assert make("file", partition_file=path) == partition


def test_strategies_that_need_no_features_read_no_image(tmp_path):
    path = tmp_path / "p.json"
    make("random").save(path)
    for strategy in ("random", "semantic", "file"):
        data = FakeData()
        make(strategy, data=data, feature_extractor="?", partition_file=path if strategy == "file" else None)
        assert not data.read


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"strategy": "clusters"},
            f"Unknown partition strategy 'clusters'. Choose one of {', '.join(STRATEGIES)}",
        ),
        ({"strategy": "random", "num_branches": 7}, "num_branches=7 is not possible with 6 classes"),
        ({"strategy": "random", "num_branches": 0}, "from 1 to 6"),
        ({"strategy": "semantic", "num_branches": 2}, "3 coarse labels"),
        ({"strategy": "file"}, "strategy 'file' needs one"),
        ({"strategy": "random", "partition_file": "p.json"}, "goes with strategy 'file'"),
        ({"strategy": "file", "partition_file": "no/such.json"}, "no/such.json cannot be read"),
        ({"strategy": "cluster_balance", "feature_extractor": "B7"}, "Unknown feature extractor 'B7'"),
        (
            {"strategy": "cluster_balance", "feature_extractor": "no.keras"},
            "No feature extractor file at no.keras",
        ),
        (
            {
                "strategy": "cluster_balance",
                "feature_extractor": "EfficientNetB7",
                "feature_weights": "no.h5",
            },
            "No feature weights file at no.h5",
        ),
        ({"strategy": "cluster_balance", "images_per_class": 0}, "images_per_class must be at least 1"),
    ],
)
def test_bad_input_is_told_before_an_image_is_read(tmp_path, kwargs, message):
    data = FakeData()
    with pytest.raises(UserError, match=message) as error:
        make(data=data, tmp_path=tmp_path, **kwargs)
    assert "\n" not in str(error.value)
    assert not data.read


def test_a_file_of_another_number_of_branches(tmp_path):
    path = tmp_path / "p.json"
    ClassPartition("fake", FakeData.class_names, (0, 0, 0, 1, 1, 1), "by hand").save(path)
    with pytest.raises(UserError, match="has 2 clusters, not num_branches=3: set num_branches=2"):
        make("file", partition_file=path)
    assert make("file", num_branches=2, partition_file=path).strategy == "by hand"
