import logging
import os
import runpy
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds

from dynkhydra_tf.data.sources import tfds as sources
from dynkhydra_tf.data.sources.tfds import TfdsSource
from dynkhydra_tf.errors import UserError
from tests.conftest import assert_random_access_agrees

TFDS_DIR = Path(__file__).parents[2] / "shared" / "data" / "tfds"
needs_cifar100 = pytest.mark.skipif(
    not (TFDS_DIR / "cifar100").is_dir(), reason="the real CIFAR-100 is not in ../shared/data/tfds"
)


@pytest.fixture
def no_network(monkeypatch):
    """Every request fails at once, and is counted."""
    asked = []

    def fail(url, *args, **kwargs):
        asked.append((url, kwargs))
        raise requests.ConnectionError("no route\nto host")

    monkeypatch.setattr(requests, "get", fail)
    monkeypatch.setattr(requests.Session, "request", fail)
    return asked


def test_a_data_dir_that_is_not_there_is_refused_before_any_download(no_network, tmp_path):
    with pytest.raises(UserError) as caught:
        TfdsSource("cifar100", data_dir=tmp_path / "absent")
    assert str(tmp_path / "absent") in str(caught.value)
    assert "make an empty one to download it to" in str(caught.value)
    assert not no_network
    assert not (tmp_path / "absent").exists()


def test_a_data_set_that_is_not_there_without_network_ends_within_seconds(no_network, tmp_path):
    with pytest.raises(UserError) as caught:
        TfdsSource("cifar100", data_dir=tmp_path)
    ((url, arguments),) = no_network  # asked once, and not the minutes long that tensorflow-datasets retries
    assert url.endswith("cifar-100-binary.tar.gz")
    assert arguments == {"stream": True, "timeout": sources.REACH_TIMEOUT}
    message = str(caught.value)
    assert os.fspath(tmp_path / "cifar100") in message
    assert "ConnectionError: no route to host" in message
    assert "t.load('cifar100', data_dir='DIR')" in message
    assert "\n" not in message


def test_download_false_never_asks_the_network(no_network, tmp_path):
    with pytest.raises(UserError, match=r"is not prepared in .*, and downloading is off"):
        TfdsSource("cifar100", data_dir=tmp_path, download=False)
    assert not no_network


def test_the_warnings_of_the_library_are_kept_away_once_it_is_used_and_not_before(tmp_path):
    absl = logging.getLogger("absl")
    absl.filters.clear()
    runpy.run_path(sources.__file__)
    assert not absl.filters
    for _ in range(2):
        with pytest.raises(UserError):
            TfdsSource("cifar100", data_dir=tmp_path, download=False)
    (kept_away,) = absl.filters
    texts = {"`TensorInfo.dtype` is going": False, "something else": True}
    assert {text: kept_away(logging.makeLogRecord({"msg": text})) for text in texts} == texts


@needs_cifar100
def test_prepared_data_is_read_without_network(no_network):
    source = TfdsSource("cifar100", data_dir=TFDS_DIR)
    assert (source.size("train"), source.size("test")) == (50000, 10000)
    image, label = next(source.read("test").as_numpy_iterator())
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    assert 0 <= label < 100
    assert not no_network


@needs_cifar100
def test_random_access_to_real_data_gives_what_reading_gives():
    source = TfdsSource("cifar100", data_dir=TFDS_DIR)
    assert_random_access_agrees(source, "test", [0, 1, 77])


def test_a_pass_over_the_labels_decodes_no_image(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "_check_reachable", lambda builder: None)
    decoded = []
    decode = sources.decode_picture
    monkeypatch.setattr(sources, "decode_picture", lambda file: decoded.append(1) or decode(file))
    with tfds.testing.mock_data(num_examples=5):
        source = TfdsSource("cifar100", data_dir=tmp_path)
        assert source.size("train") == 5
        assert len(source.label_names("coarse_label")) == 20
        assert source.labels("train").shape == source.labels("train", "coarse_label").shape == (5,)
        assert source.labels("train", "coarse_label").max() < 20
        assert not decoded
        assert len(list(source.read("train"))) == 5
        assert decoded


# === A data set of tensorflow-datasets of our own: prepared in a second, and really on the disk ===

COLOURS = 7  # image number n is all of the grey level 7 n, so that each can be told


class Tiny(tfds.core.GeneratorBasedBuilder):
    """4x4 px, three classes; 24 images in train, 6 in test; label n % 3."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS: ClassVar = {"train": range(24), "test": range(24, 30)}

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 4, 1)),
            "label": tfds.features.ClassLabel(names=["circle", "square", "star"]),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name, numbers) for name, numbers in self.SPLITS.items()}

    def _generate_examples(self, name, numbers):
        for number in numbers:
            yield number, {"image": grey(number), "label": self.label(name, number)}

    def label(self, split, number):
        return number % 3


class TinyTrainOnly(Tiny):
    SPLITS: ClassVar = {"train": range(30)}


class TinyHiddenLabels(Tiny):
    """The test split keeps its labels back."""

    SPLITS: ClassVar = {"train": range(20), "test": range(20, 24), "validation": range(24, 30)}

    def label(self, split, number):
        return -1 if split == "test" else number % 3


class TinyTestOnly(Tiny):
    SPLITS: ClassVar = {"test": range(6)}


class TinyBoxes(Tiny):
    def _info(self):
        features = {
            "image": tfds.features.Image(),
            "boxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))


class TinyDeep(Tiny):
    """16 bits a channel."""

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 4, 1), dtype=np.uint16, encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["circle", "square", "star"]),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, name, numbers):
        for number in numbers:
            yield number, {"image": grey(number).astype(np.uint16) * 257, "label": self.label(name, number)}


class TinyFloat(Tiny):
    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 4, 1), dtype=np.float32),
            "label": tfds.features.ClassLabel(names=["circle", "square", "star"]),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))


def grey(number):
    return np.full((4, 4, 1), COLOURS * number, np.uint8)


@pytest.fixture
def prepare(tmp_path):
    """Returns a function that prepares one of the builders above in three shards a split, and opens it."""

    def prepare(builder, file_format="tfrecord", **settings):
        made = builder(data_dir=str(tmp_path), file_format=file_format)
        made.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
        return TfdsSource(made.name, data_dir=str(tmp_path), download=False, **settings)

    return prepare


def numbers_of(source, split, wanted=None):
    """The numbers of the images of a split; checks pictures and labels."""
    numbers = []
    for image, label in source.read(split, wanted).as_numpy_iterator():
        numbers.append(int(image[0, 0, 0]) // COLOURS)
        assert (image == grey(numbers[-1])).all()
        assert label == numbers[-1] % 3
    return numbers


@pytest.mark.slow
def test_random_access_has_the_order_of_reading_over_all_files(prepare):
    source = prepare(Tiny)
    assert source.label_names() == ("circle", "square", "star")
    assert (source.size("train"), source.size("test")) == (24, 6)
    assert sorted(numbers_of(source, "train")) == list(range(24))
    assert sorted(numbers_of(source, "test")) == list(range(24, 30))
    assert_random_access_agrees(source, "train", [23, 0, 8, 7, 16, 3])
    assert_random_access_agrees(source, "test", [5, 0])


def test_only_the_wanted_examples_are_read(prepare):
    source = prepare(Tiny)
    wanted = np.arange(24) % 5 == 2
    chosen = np.array(numbers_of(source, "train"))[wanted].tolist()
    assert numbers_of(source, "train", wanted) == chosen
    assert (source.labels("train")[wanted] == np.array(chosen) % 3).all()

    # What tells its content from another one.
    content = source.content("train")
    assert content == source.content("train") != source.content("test")
    path = next(part.filename for part in source._files("train"))
    with open(path, "r+b") as file:
        file.seek(-5, os.SEEK_END)
        byte = file.read(1)
        file.seek(-5, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    assert source.content("train") != content


@pytest.mark.slow
def test_train_and_test_are_pooled_and_divided_anew(prepare):
    source = prepare(Tiny, pool="train+test", test_fraction=1 / 3)
    assert (source.size("train"), source.size("test")) == (20, 10)
    train, test = numbers_of(source, "train"), numbers_of(source, "test")
    assert sorted(train + test) == list(range(30))
    # A third of each class's ten: three, and one more of one class.
    assert sorted(np.bincount(np.array(test) % 3)) == [3, 3, 4]
    for split in ("train", "test"):
        assert_random_access_agrees(source, split, [9, 0, 4])
        assert (source.labels(split) == np.array(numbers_of(source, split)) % 3).all()
    wanted = np.arange(20) < 7
    assert numbers_of(source, "train", wanted) == train[:7]


def test_without_a_test_split_a_part_of_train_is_drawn(prepare):
    source = prepare(TinyTrainOnly, test_split=None, test_fraction=0.2)
    assert (source.size("train"), source.size("test")) == (24, 6)
    assert sorted(numbers_of(source, "train") + numbers_of(source, "test")) == list(range(30))


def test_a_test_split_that_keeps_its_labels_back_is_passed_over(prepare):
    source = prepare(TinyHiddenLabels, test_split=None, test_fraction=0.2)
    assert sorted(numbers_of(source, "test")) == list(range(24, 30))
    assert source.size("train") == 20
    assert prepare(Tiny, test_split=None, test_fraction=0.2).size("test") == 6


def test_a_tfds_set_that_cannot_be_used_is_one_line(prepare, tmp_path):
    with pytest.raises(
        UserError, match=r"tiny_test_only cannot be used: it needs a split 'train'\. It has: test"
    ):
        prepare(TinyTestOnly, test_split=None, test_fraction=0.2)
    with pytest.raises(UserError, match=r"tiny_boxes cannot be used: it needs .*\. It has: image, boxes"):
        TfdsSource("tiny_boxes", data_dir=tmp_path)
    with pytest.raises(UserError) as caught:
        TfdsSource("no_such_set", data_dir=tmp_path)
    assert "tensorflow-datasets has no data set 'no_such_set'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sixteen_bits_are_scaled(prepare):
    source = prepare(TinyDeep)
    assert sorted(numbers_of(source, "test")) == list(range(24, 30))
    assert_random_access_agrees(source, "train", [23, 0, 8])
    with pytest.raises(UserError, match=r"tiny_float cannot be used.*8 or 16 bits.*Received: float32"):
        TfdsSource("tiny_float")


def test_a_data_dir_whose_name_is_not_utf_8_is_one_line():
    with pytest.raises(UserError, match=r"whose name is UTF-8 only\. Received: caf\\xe9"):
        TfdsSource("cifar100", data_dir=os.fsdecode(b"caf\xe9"))


def test_files_of_another_format_are_refused(prepare):
    with pytest.raises(UserError, match=r"tiny in .*tiny/1\.0\.0 is not prepared as TFRecord: prepare"):
        prepare(Tiny, file_format="array_record")
