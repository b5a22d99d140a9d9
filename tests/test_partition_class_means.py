"""Tests of the class means and of their cache."""

import concurrent.futures
import dataclasses
import pathlib
import threading

import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf import meter
from dynkhydra_tf.data import load_data
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.partition import build_extractor
from dynkhydra_tf.partition.class_means import class_means, default_cache_dir
from dynkhydra_tf.workers import Workers

SHARED = pathlib.Path(__file__).parents[2] / "shared"
LITE0 = SHARED / "models" / "efficientnet_lite0_features.keras"
CIFAR = SHARED / "data" / "tfds"


@dataclasses.dataclass
class FakeData:
    """Images (1, 1, 3) of one colour each: (value, 2 * value, 0)."""

    values: tuple = (10, 20, 40, 60, 100)
    labels: tuple = (1, 0, 1, 2, 1)
    name: str = "fake"
    class_names: tuple = ("a", "b", "c")

    @property
    def sizes(self):
        return {"train": len(self.values)}

    def examples(self, split):
        assert split == "train"
        colours = np.array([(value, 2 * value, 0) for value in self.values], np.uint8)
        return tf.data.Dataset.from_tensor_slices(
            (colours[:, np.newaxis, np.newaxis], np.array(self.labels, np.int32))
        )


class FakeExtractor:
    """Gives the colour itself."""

    name = "colour"
    identity = "colour"
    calls = 0

    def load(self):
        pass

    def __call__(self, images):
        self.calls += 1
        assert images.dtype == tf.uint8
        return tf.cast(images[:, 0, 0], tf.float32)


class BrokenExtractor(FakeExtractor):
    def load(self):
        raise AssertionError("loaded")

    def __call__(self, images):
        raise AssertionError("called")


def compute(tmp_path, data=None, extractor=None, **kwargs):
    return class_means(data or FakeData(), extractor or FakeExtractor(), tmp_path, progress=False, **kwargs)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_by_hand(tmp_path, batch_size):
    means = compute(tmp_path, batch_size=batch_size)
    assert means.dtype == np.float64
    # Class a: 20. Class b: (10 + 40 + 100) / 3 = 50. Class c: 60.
    np.testing.assert_array_equal(means, [[20, 40, 0], [50, 100, 0], [60, 120, 0]])


def test_the_first_images_of_each_class(tmp_path):
    # Class b: 10, then (10 + 40) / 2; class a and class c have one image each.
    assert compute(tmp_path, images_per_class=1)[:, 0].tolist() == [20, 10, 60]
    assert compute(tmp_path, images_per_class=2)[:, 0].tolist() == [20, 25, 60]
    assert compute(tmp_path, images_per_class=9)[:, 0].tolist() == [20, 50, 60]


def test_the_pass_ends_once_every_class_has_its_images(tmp_path):
    data, extractor = (
        FakeData(values=(1, 2, *range(100)), labels=(0, 1, *[1] * 100), class_names=("a", "b")),
        None,
    )
    extractor = FakeExtractor()
    compute(tmp_path, data, extractor, images_per_class=1, batch_size=1)
    assert extractor.calls == 2


def test_float64_sums(tmp_path):
    class Fine(FakeExtractor):
        def __call__(self, images):
            return tf.fill((len(images), 1), np.float32(0.1))

    data = FakeData(values=(0,) * 10_000, labels=(0,) * 10_000, class_names=("a",))
    assert compute(tmp_path, data, Fine())[0, 0] == pytest.approx(np.float64(np.float32(0.1)), rel=1e-12)


def test_a_class_without_images(tmp_path):
    with pytest.raises(UserError, match="no training images of 1 of its 4 classes, such as 'd'"):
        compute(tmp_path, FakeData(class_names=("a", "b", "c", "d")))
    assert not list(tmp_path.iterdir())


def test_features_that_are_not_finite(tmp_path):
    class Damaged(FakeExtractor):
        def __call__(self, images):
            return tf.fill((len(images), 2), np.nan)

    with pytest.raises(UserError, match="not finite"):
        compute(tmp_path, extractor=Damaged())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("images_per_class", [0, -1])
def test_impossible_images_per_class(tmp_path, images_per_class):
    with pytest.raises(UserError, match=f"at least 1.* Received {images_per_class}"):
        compute(tmp_path, extractor=BrokenExtractor(), images_per_class=images_per_class)


def test_how_far_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(meter, "SECONDS_BETWEEN_LINES", 0)
    class_means(FakeData(), FakeExtractor(), tmp_path, batch_size=2)
    shown = capsys.readouterr().out
    assert "Class means of fake, 5 images, features by colour" in shown
    assert "class means, image 5/5: " in shown
    compute(tmp_path / "other")
    assert not capsys.readouterr().out


# === cache ===


def test_the_second_time_comes_from_the_cache(tmp_path):
    first = compute(tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("fake-colour-")
    np.testing.assert_array_equal(compute(tmp_path, extractor=BrokenExtractor()), first)


def test_anything_else_is_computed_anew(tmp_path):
    compute(tmp_path)
    other_extractor = FakeExtractor()
    other_extractor.identity = "colour:2"
    for kwargs in (
        {"data": FakeData(name="other")},
        {"data": FakeData(class_names=("a", "b", "z"))},
        {"data": FakeData(values=(10, 20, 40, 60, 101))},
        {"data": FakeData(labels=(1, 0, 1, 2, 0))},
        {"data": FakeData(values=(1,) * 6, labels=(0, 1, 2) * 2)},
        {"extractor": other_extractor},
        {"images_per_class": 1},
    ):
        before = set(tmp_path.iterdir())
        compute(tmp_path, **kwargs)
        assert len(set(tmp_path.iterdir()) - before) == 1, kwargs


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"class_means") + 200] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(b""),
        lambda path: np.savez(path, key="another", class_means=np.zeros((3, 3))),
        lambda path: np.savez(path, class_means=np.zeros((3, 3))),
    ],
    ids=["byte flipped", "cut", "empty", "another key", "no key"],
)
def test_a_damaged_cache_is_computed_again(tmp_path, damage):
    first = compute(tmp_path)
    (path,) = tmp_path.iterdir()
    damage(path)
    np.testing.assert_array_equal(compute(tmp_path), first)
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(compute(tmp_path, extractor=BrokenExtractor()), first)


def test_a_cache_that_cannot_be_written_loses_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    assert compute(tmp_path / "file").shape == (3, 3)


def test_default_cache_dir(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/tmp/x")
    assert default_cache_dir() == pathlib.Path("/tmp/x/dynkhydra_tf/class_means")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == pathlib.Path.home() / ".cache/dynkhydra_tf/class_means"


# === the real thing ===


@pytest.mark.slow
@pytest.mark.skipif(not (LITE0.exists() and CIFAR.exists()), reason=f"{LITE0} and {CIFAR} are not there")
def test_lite0_on_cifar100(tmp_path):
    data = load_data("cifar100", data_dir=str(CIFAR), download=False)
    means = compute(tmp_path, data, build_extractor(str(LITE0)), images_per_class=1)
    assert means.shape == (100, 1280)
    assert len(np.unique(means, axis=0)) == 100
    # One image of each class is enough to see that a maple tree is more like an oak tree than like a bus.
    maple, oak, bus = (means[data.class_names.index(name)] for name in ("maple_tree", "oak_tree", "bus"))
    assert np.linalg.norm(maple - oak) < np.linalg.norm(maple - bus)


class ThreadedWorkers(Workers):
    """One of several workers that are threads of this process."""

    def __init__(self, index, count, barrier, told):
        self.index, self.count, self._barrier, self._told = index, count, barrier, told

    def add_up(self, array):
        self._told[self.index] = array
        self._barrier.wait(60)
        total = np.sum([self._told[index] for index in range(self.count)], axis=0)
        self._barrier.wait(60)
        return total

    def any(self, condition):
        return bool(self.add_up(np.array(int(condition))))


def together(count, work):
    """What `work(workers)` returns on each of `count` workers."""
    barrier, told = threading.Barrier(count), {}
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda index: work(ThreadedWorkers(index, count, barrier, told)), range(count)))


@pytest.mark.parametrize("images_per_class", [None, 7])
@pytest.mark.parametrize("count", [2, 3])
def test_several_workers_embed_their_parts_and_get_what_one_alone_gets(tmp_path, images_per_class, count):
    data = load_data("digits")
    alone = class_means(data, CountingExtractor(), tmp_path / "alone", images_per_class, 200, progress=False)
    extractors = [CountingExtractor() for _ in range(count)]

    def work(workers):
        cache = tmp_path / str(workers.index)
        return class_means(
            data, extractors[workers.index], cache, images_per_class, 200, progress=False, workers=workers
        )

    for means in together(count, work):
        np.testing.assert_allclose(means, alone, rtol=1e-12)
    images = data.sizes["train"] if images_per_class is None else 10 * images_per_class
    assert sum(extractor.images for extractor in extractors) == images
    assert max(extractor.images for extractor in extractors) == -(-images // count)
    assert [path.name for path in tmp_path.iterdir() if path.name != "alone"] == ["0"]  # the chief's
    # From the chief's cache, which alone is there.
    for means in together(count, work):
        np.testing.assert_allclose(means, alone, rtol=1e-12)
    assert sum(extractor.images for extractor in extractors) == images


def test_a_worker_without_an_image_takes_part(tmp_path):
    data = load_data("digits")
    alone = class_means(data, CountingExtractor(), tmp_path, 1, progress=False)
    work = lambda workers: class_means(  # noqa: E731
        data, CountingExtractor(), tmp_path / "w", 1, progress=False, workers=workers
    )
    for means in together(11, work):
        np.testing.assert_allclose(means, alone, rtol=1e-12)


class CountingExtractor:
    """Gives the pixels of every fourth row and column; counts the images."""

    name = identity = "pixels"
    images = 0

    def load(self):
        pass

    def __call__(self, images):
        self.images += len(images)
        return tf.cast(tf.reshape(images[:, ::4, ::4], (len(images), -1)), tf.float32)
