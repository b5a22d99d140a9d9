"""The maps of a frozen part: what is kept, when it is made again, and that training on them is the same."""

import dataclasses
import errno
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf import frozen_maps
from dynkhydra_tf.accuracy import evaluate_plain
from dynkhydra_tf.backbones.pretrained import open_network
from dynkhydra_tf.data import evaluation_batches, load_data
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.flags import parse
from dynkhydra_tf.frozen_maps import HEADER, MapData, Views, cached_maps, check_cache, draw_view
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.stages import batches_to_test


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A network of two blocks for images of 8 px, with statistics of its own; cut at (4,4,4)."""
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(x)
    for name, filters in (("block1", 4), ("block2", 6)):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False, name=f"{name}_conv")(x)
        x = keras.layers.ReLU(name=f"{name}_relu")(keras.layers.BatchNormalization(name=f"{name}_bn")(x))
    network = keras.Model(inputs, x)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(np.linspace(-0.2, 0.2, layer.moving_mean.shape[0]))
            layer.moving_variance.assign(np.linspace(0.5, 2, layer.moving_variance.shape[0]))
    path = tmp_path_factory.mktemp("network") / "network.keras"
    network.save(path)
    return open_network(str(path), 8)


@pytest.fixture
def make(opened):
    """Returns a factory of models with a frozen part, all with the same first weights."""

    def make(kind, frozen="stem", **settings):
        keras.utils.set_random_seed(0)
        backbone = opened.cut(frozen=frozen)
        clusters = (0, 0, 0, 0, 0, 1, 1, 1, 1, 1)
        model = (
            Hydra(backbone, clusters, top_k=2, **settings)
            if kind is Hydra
            else Plain(backbone, 10, **settings)
        )
        model.set_first_weights(opened.give())
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
        return model

    return make


@pytest.fixture(scope="module")
def data():
    return load_data("digits", image_size=8)


@pytest.fixture
def few(data):
    """40 of its images for training and for testing, in a set of its own that may be changed."""
    source = type(data.source)()
    source.__dict__["_splits"] = {name: (x[:40], y[:40]) for name, (x, y) in data.source._splits.items()}
    return dataclasses.replace(data, sizes=dict.fromkeys(data.sizes, 40), source=source, held_out=None)


@pytest.mark.parametrize(("kind", "frozen"), [(Plain, "stem"), (Plain, "all"), (Hydra, "stem")])
def test_training_on_maps_is_training_on_the_same_views_through_the_frozen_part(
    make, few, tmp_path, kind, frozen
):
    on_maps, on_images = make(kind, frozen), make(kind, frozen)
    assert on_maps.map_shape() == ((6,) if frozen == "all" else (4, 4, 4))
    maps = cached_maps(on_maps, few, {"train": Views(2)}, tmp_path)
    views, labels = maps.splits["train"]
    assert views.dtype == np.float16 and views.shape == (40, 2, *on_maps.map_shape())
    images = np.stack([image for image, _ in few.examples("train").as_numpy_iterator()])
    for view, same in enumerate((images, images[:, :, ::-1])):
        told = [
            model.fit(x, labels, batch_size=20, shuffle=False, verbose=0).history
            for model, x in ((on_maps, np.asarray(views[:, view])), (on_images, same))
        ]
        for name, value in told[0].items():
            np.testing.assert_allclose(value, told[1][name], rtol=2e-3, err_msg=name)
    assert len(on_maps.trainable_variables) > 0
    for one, other in zip(on_maps.variables, on_images.variables, strict=True):
        np.testing.assert_allclose(one, other, rtol=5e-3, atol=1e-3, err_msg=one.path)
    results = [
        m.evaluate(x, labels, verbose=0, return_dict=True)
        for m, x in ((on_maps, np.asarray(views[:, 0])), (on_images, images))
    ]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=5e-3)


def test_a_network_is_tested_on_maps_as_on_images(make, few, tmp_path):
    model = make(Plain)
    settings = parse(["--backbone=x.keras", "--freeze=stem", f"--cache_dir={tmp_path}"])
    found = [evaluate_plain(model, batches_to_test(settings, model, few))]
    assert len(os.listdir(tmp_path)) == 1
    found.append(evaluate_plain(model, evaluation_batches(few, "test", 40)))
    assert found[0]["top5"] > 0
    assert found[0] == pytest.approx(found[1], abs=0.026)  # one image of 40 may lie between two classes
    settings = parse(["--backbone=x.keras", "--freeze=stem", "--cache_dir=/dev/null/maps"])
    (images, _), *_ = batches_to_test(settings, model, few)
    assert images.dtype == tf.uint8
    for part in model.frozen_part():
        part.trainable = True  # as at the end of --freeze=until_epoch:N
    (images, _), *_ = batches_to_test(settings, model, few)
    assert images.dtype == tf.uint8


def test_what_is_there_is_used_and_shared_by_all_networks_on_the_stem(
    make, few, tmp_path, monkeypatch, capsys
):
    views = {"train": Views(2, flip=True), "test": Views()}
    first = cached_maps(make(Plain), few, views, tmp_path)
    assert "train: 40 images, 2 views, 4x4x4 float16, 0.0 MB" in capsys.readouterr().out
    monkeypatch.setattr(frozen_maps, "fast_copy", None)  # is not called
    for model in (make(Plain), make(Hydra), make(Plain, part_dtype="mixed_bfloat16")):
        again = cached_maps(model, few, views, tmp_path)
        np.testing.assert_array_equal(again.splits["train"][0], first.splits["train"][0])
        assert isinstance(again.splits["test"][0], np.memmap)
    assert len(os.listdir(tmp_path)) == 2 and capsys.readouterr().out == ""


def test_a_change_of_images_weights_cut_or_format_is_noticed(make, few, tmp_path, monkeypatch, capsys):
    def maps(model):
        return np.array(cached_maps(model, few, {"test": Views()}, tmp_path).splits["test"][0])

    model = make(Plain)
    first = maps(model)
    (name,) = os.listdir(tmp_path)
    capsys.readouterr()

    kernel = model.frozen_part()[0].get_layer("block1_conv").kernel
    kernel.assign(kernel * 1.5)
    other = maps(model)
    assert "digits/test are computed again: the weights have changed" in capsys.readouterr().out
    assert np.abs(other - first).max() > 0.1

    images, labels = few.source._splits["test"]
    few.source._splits["test"] = (images[::-1], labels[::-1])
    np.testing.assert_allclose(maps(model), other[::-1], atol=1e-2)
    assert "computed again: the images have changed" in capsys.readouterr().out

    path = tmp_path / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    maps(model)
    assert "computed again: it is not whole" in capsys.readouterr().out
    path.write_bytes(b"\xff" * len(content))
    maps(model)
    assert "computed again: it cannot be read" in capsys.readouterr().out
    assert path.read_bytes() == content and len(content) == HEADER + 2 * 40 * 4 * 4 * 4
    monkeypatch.setattr(frozen_maps, "FORMAT", 2)
    maps(model)
    assert "they are of format 1, this version has 2" in capsys.readouterr().out

    assert os.listdir(tmp_path) == [name]
    maps(make(Plain, "all"))  # cut elsewhere: a file of its own
    assert len(os.listdir(tmp_path)) == 2


def test_the_mirrored_view_comes_first_and_the_others_are_drawn():
    images = tf.reshape(tf.range(2 * 3 * 3 * 3, dtype=tf.int32), (2, 3, 3, 3))
    made = []

    def make_augment():
        made.append(1)
        return lambda images, seed: images * 0 + tf.cast(seed[0] * 10 + seed[1], tf.int32)

    views = Views(4, make_augment=make_augment).function()(tf.constant(3), images)
    np.testing.assert_array_equal(views[:, 0], images)
    np.testing.assert_array_equal(views[:, 1], images[:, :, ::-1])
    assert [views[0, view, 0, 0, 0].numpy() for view in (2, 3)] == [32, 33]
    unmirrored = Views(2, flip=False, make_augment=make_augment).function()(tf.constant(0), images)
    assert unmirrored[0, 1, 0, 0, 0] == 1
    Views(2, make_augment=make_augment).function()
    assert len(made) == 2  # nothing is drawn for the last
    described = [
        Views(count, flip, "shift 4").describe() for count, flip in ((2, True), (2, False), (3, True))
    ]
    assert described == [[2, 2, ""], [2, 1, "shift 4"], [3, 2, "shift 4"]]


def test_draw_view():
    views = tf.constant([[0, 1, 2], [10, 11, 12], [20, 21, 22]])
    drawn = draw_view(tf.repeat(views, 100, axis=0), tf.constant([1, 2]))
    assert set(np.unique(drawn)) == {0, 1, 2, 10, 11, 12, 20, 21, 22}
    assert (np.asarray(drawn) // 10 == np.repeat([0, 1, 2], 100)).all()
    np.testing.assert_array_equal(
        draw_view(views[:, :2], None, tf.constant([True, False, True])), [1, 10, 21]
    )


def test_maps_in_the_place_of_images():
    maps = np.arange(12, dtype=np.float16).reshape(3, 2, 2)
    data = MapData("some", {"train": (maps, np.array([5, 6, 7], np.int32))})
    assert data.sizes == {"train": 3}
    assert [(m.tolist(), y) for m, y in data.examples("train").as_numpy_iterator()] == [
        ([0, 1], 5),
        ([4, 5], 6),
        ([8, 9], 7),
    ]
    views, label = data.fetch("train")(tf.constant(1))
    assert (views.numpy().tolist(), label) == ([[4, 5], [6, 7]], 6)


@pytest.mark.parametrize(
    ("free", "directory", "message"),
    [
        (
            5000,
            "",
            "is too small for the maps: they take 0.0 MB, 0.0 MB are free; give another --cache_dir, fewer",
        ),
        (10**9, "/dev/null/maps", "Cannot write to /dev/null .*give another --cache_dir"),
    ],
)
def test_a_disk_that_is_too_small_or_read_only(make, few, tmp_path, monkeypatch, free, directory, message):
    monkeypatch.setattr(
        frozen_maps.shutil, "disk_usage", lambda path: os.stat_result and type("", (), {"free": free})
    )
    with pytest.raises(UserError, match=message):
        cached_maps(make(Plain), few, {"train": Views(1)}, tmp_path / directory)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing_and_what_a_kill_left_goes(make, few, tmp_path, monkeypatch):
    model, wanted = make(Plain), {"train": Views(1), "test": Views(1)}

    def full(network):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(frozen_maps.Meter, "update", lambda *_: full(None))
        with pytest.raises(
            UserError, match=f"cannot be written to {tmp_path} .No space left.*--cached_views=0"
        ):
            cached_maps(model, few, wanted, tmp_path)
    assert os.listdir(tmp_path) == []
    cached_maps(model, few, wanted, tmp_path)
    name = next(name for name in os.listdir(tmp_path) if "train" in name)
    os.rename(tmp_path / name, tmp_path / f".{name[:-5]}.0a1b2c3d.maps")  # as of a process that was killed
    cached_maps(model, few, wanted, tmp_path)
    assert sorted(os.listdir(tmp_path))[1] == name and len(os.listdir(tmp_path)) == 2


def test_two_that_compute_at_the_same_time(make, few, tmp_path, monkeypatch):
    model, fast, inner = make(Plain), frozen_maps.fast_copy, []

    def copy(model):
        network = fast(model)

        def call(images):
            if not inner:
                inner.append(None)
                inner[0] = cached_maps(model, few, {"train": Views(1)}, tmp_path)
                assert len(os.listdir(tmp_path)) == 2  # the other's, whole, and what is written here
            return network(images)

        return call

    monkeypatch.setattr(frozen_maps, "fast_copy", copy)
    outer = cached_maps(model, few, {"train": Views(1)}, tmp_path)
    np.testing.assert_array_equal(outer.splits["train"][0], inner[0].splits["train"][0])
    assert len(os.listdir(tmp_path)) == 1


def test_what_is_not_frozen_has_no_maps(make, few, tmp_path):
    with pytest.raises(UserError, match="no first part of the model that has weights is frozen"):
        cached_maps(make(Plain, "none"), few, {"train": Views()}, tmp_path)


def test_maps_that_float16_cannot_hold(make, few, tmp_path):
    model = make(Plain)
    kernel = model.frozen_part()[0].get_layer("block1_conv").kernel
    kernel.assign(kernel * 1e6)
    with pytest.raises(UserError, match="float16 cannot hold the maps"):
        cached_maps(model, few, {"train": Views()}, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_cache_that_takes_no_maps_is_refused_unless_it_has_some(tmp_path):
    place = tmp_path / "a file" / "cache"
    (tmp_path / "a file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write to .*give another --cache_dir"):
        check_cache(place)
    check_cache(tmp_path / "new")
    assert not (tmp_path / "new").exists()
