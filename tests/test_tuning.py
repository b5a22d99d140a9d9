"""No pipeline leaves a thread behind that tunes it, for which the end of an iterator may have to wait."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dynkhydra_tf.data.photos import photo_batches
from dynkhydra_tf.data.pipeline import evaluation_batches, training_batches
from dynkhydra_tf.frozen_maps import MapData
from dynkhydra_tf.serving.pictures import prepare_pictures
from dynkhydra_tf.tuning import untuned
from tests.test_data_pipeline import numbered_data, plain


def is_tuned(dataset):
    return dataset.options().autotune.enabled is not False


def test_what_is_made_of_an_untuned_one_is_not_tuned_either():
    numbers = tf.data.Dataset.range(8)
    assert is_tuned(numbers.map(lambda number: number))
    made = numbers.apply(untuned).map(lambda number: number + 1, num_parallel_calls=tf.data.AUTOTUNE)
    made = made.batch(2).prefetch(tf.data.AUTOTUNE)
    assert not is_tuned(made)
    assert np.concatenate(list(made.as_numpy_iterator())).tolist() == list(range(1, 9))


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_batches(cache):
    data = numbered_data(8, cache)
    assert not is_tuned(data.examples("train"))
    assert not is_tuned(evaluation_batches(data, "test", 4))
    assert not is_tuned(training_batches(data, 4, 1, 0, plain))


def test_batches_of_maps():
    maps = np.zeros((4, 2, 3), np.float16)
    data = MapData("some", {"train": (maps, np.zeros(4, np.int32))})
    assert not is_tuned(evaluation_batches(data, "train", 2))
    assert not is_tuned(training_batches(data, 2, 1, 0, lambda views, seed: views[:, 0]))


def test_photos(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    assert not is_tuned(photo_batches(paths, 8, "stretch", 2))


def test_pictures_of_a_request():
    prepare = tf.function(lambda files: prepare_pictures(files, 8, "stretch", 64))
    graph = prepare.get_concrete_function(tf.TensorSpec((None,), tf.string)).graph
    made = [each.type for each in graph.get_operations() if "Dataset" in each.type]
    assert made.count("OptionsDataset") == made.count("DatasetToSingleElement") == 2
    for each in graph.get_operations():
        if each.type == "OptionsDataset":
            options = tf.data.Options()
            options._from_proto(options._to_proto().FromString(each.get_attr("serialized_options")))
            assert options.autotune.enabled is False
