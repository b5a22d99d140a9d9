import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.data.augment import Augmentation
from dynkhydra_tf.data.image_data import LEAST_STD, ImageData
from dynkhydra_tf.data.pipeline import evaluation_batches, steps_per_epoch, training_batches
from dynkhydra_tf.data.sources.base import Source
from dynkhydra_tf.errors import UserError

SIZE = 8


class CountingSource(Source):
    """Random images, each with its own number in its corner pixel; counts how often one is read."""

    def __init__(self, count):
        self.images = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
        self.images[:, 0, 0, 0], self.images[:, 0, 0, 1] = np.divmod(np.arange(count), 256)
        self.labels = np.arange(count) % 10
        self.reads = 0

    def read(self, split, wanted=None):
        def generate():
            for number in np.arange(len(self.images)) if wanted is None else np.flatnonzero(wanted):
                yield self.read_one(number)

        return tf.data.Dataset.from_generator(
            generate, output_signature=(tf.TensorSpec((SIZE, SIZE, 3), tf.uint8), tf.TensorSpec((), tf.int64))
        )

    def fetch(self, split):
        def fetch(index):
            image, label = tf.numpy_function(self.read_one, [index], [tf.uint8, tf.int64])
            return tf.ensure_shape(image, (SIZE, SIZE, 3)), tf.ensure_shape(label, ())

        return fetch

    def read_one(self, number):
        self.reads += 1
        return self.images[number], self.labels[number]


def numbered_data(count, cache="memory", held_out=None):
    """A data set of `count` images of 8x8 px, 10 classes."""
    held = 0 if held_out is None else int(held_out.sum())
    return ImageData(
        name="numbered",
        class_names=tuple("0123456789"),
        image_size=SIZE,
        fit="stretch",
        flip=True,
        sizes={"train": count - held, "validation": held, "test": count},
        source=CountingSource(count),
        held_out=held_out,
        cache=cache,
    )


def plain(images, seed):
    """No augmentation."""
    return images


def augmentation(**amounts):
    """Only the named amounts; none of the others."""
    return Augmentation(SIZE, (120.0, 125.0, 130.0), **{"shift": 0, "flip": False, "cutout": 0, **amounts})


def numbers(images):
    """The numbers of images that have not been augmented."""
    corner = np.asarray(images)[:, 0, 0].astype(int)
    return (corner[:, 0] * 256 + corner[:, 1]).tolist()


def epochs_of(batches, steps):
    """The numbers of the images, epoch by epoch."""
    in_order = numbers(np.concatenate([images for images, _ in batches]))
    length = len(in_order) * steps // len(batches)
    return [in_order[start : start + length] for start in range(0, len(in_order), length)]


def test_each_epoch_has_every_image_once_in_an_order_of_its_own():
    data = numbered_data(480)
    batches = training_batches(data, 16, epochs=3, seed=7, augment=plain)
    assert batches.element_spec == (
        tf.TensorSpec((16, SIZE, SIZE, 3), tf.uint8),
        tf.TensorSpec((16,), tf.int32),
    )
    assert batches.cardinality() == 90
    epochs = epochs_of(batches, 30)
    assert [sorted(epoch) for epoch in epochs] == [list(range(480))] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    # The whole set is shuffled: the first 160 places hold about a third of each third.
    for epoch in epochs:
        assert (np.abs(np.bincount(np.array(epoch[:160]) // 160) - 160 / 3) < 20).all()
    assert epochs_of(training_batches(data, 16, epochs=3, seed=7, augment=plain), 30) == epochs
    assert epochs_of(training_batches(data, 16, epochs=1, seed=8, augment=plain), 30)[0] != epochs[0]


def test_the_remainder_is_dropped_and_is_another_in_each_epoch():
    data = numbered_data(50)
    assert steps_per_epoch(data, 8) == 6
    epochs = epochs_of(training_batches(data, 8, epochs=10, seed=0, augment=plain), 6)
    assert [len(set(epoch)) for epoch in epochs] == [48] * 10
    assert len({frozenset(epoch) for epoch in epochs}) == 10


def test_images_keep_their_labels_and_pixels():
    data = numbered_data(30)
    for images, labels in training_batches(data, 10, epochs=1, seed=0, augment=plain):
        chosen = numbers(images)
        assert (images.numpy() == data.source.images[chosen]).all()
        assert (labels.numpy() == data.source.labels[chosen]).all()


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize("initial_step", [0, 1, 5, 6, 9, 17, 18])
def test_a_resumed_run_sees_what_the_whole_run_sees(initial_step, cache):
    # 6 steps in an epoch, 3 epochs: within the first, at its end, past it, the last step, nothing left.
    data = numbered_data(50, cache)
    arguments = {"batch_size": 8, "epochs": 3, "seed": 3}
    arguments["augment"] = augmentation(shift=2, flip=True, cutout=4)
    whole = list(training_batches(data, **arguments))
    resumed = training_batches(data, **arguments, initial_step=initial_step)
    assert resumed.cardinality() == 18 - initial_step
    for (images, labels), (expected_images, expected_labels) in zip(
        resumed, whole[initial_step:], strict=True
    ):
        assert (images.numpy() == expected_images.numpy()).all()
        assert (labels.numpy() == expected_labels.numpy()).all()


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize("alternating_flip", [False, True])
def test_workers_see_together_what_one_alone_sees(cache, alternating_flip):
    arguments = {"batch_size": 12, "epochs": 2, "seed": 3, "initial_step": 1}
    arguments["alternating_flip"] = alternating_flip
    arguments["augment"] = augmentation(shift=2, flip=True, cutout=4)
    whole = list(training_batches(numbered_data(50, cache), **arguments))
    data = numbered_data(50, cache)
    parts = [list(training_batches(data, **arguments, part=(index, 3))) for index in range(3)]
    assert parts[0][0][0].shape[0] == 4
    for step, (images, labels) in enumerate(whole):
        together = [np.concatenate(arrays) for arrays in zip(*(part[step] for part in parts), strict=True)]
        assert (together[0] == images.numpy()).all()
        assert (together[1] == labels.numpy()).all()
    if cache == "none":  # each image is read once
        assert data.source.reads == 12 * len(whole)


def test_a_batch_that_cannot_be_divided_among_the_workers_is_refused():
    with pytest.raises(UserError, match=r"batch_size must be a multiple of 3, the .* Received: batch_size=8"):
        training_batches(numbered_data(50), 8, epochs=1, seed=0, augment=plain, part=(0, 3))


def test_augmentation_differs_from_step_to_step():
    data = numbered_data(1)
    batches = training_batches(data, 1, epochs=40, seed=0, augment=augmentation(shift=1))
    seen = {images.numpy().tobytes() for images, _ in batches}
    # 9 shifts are possible; that 40 draws miss 3 of them or more has a probability below 1e-3.
    assert len(seen) >= 7


@pytest.mark.parametrize("held_out", [None, np.arange(50) % 5 == 1])
def test_from_memory_and_from_disk_training_sees_the_same(held_out):
    arguments = {"batch_size": 8, "epochs": 3, "seed": 3, "augment": augmentation(shift=2, cutout=4)}
    memory, disk = (
        training_batches(numbered_data(50, cache, held_out), **arguments) for cache in ("memory", "none")
    )
    assert memory.element_spec == disk.element_spec
    assert memory.cardinality() == disk.cardinality()
    seen = set()
    for (images, labels), (disk_images, disk_labels) in zip(memory, disk, strict=True):
        assert (images.numpy() == disk_images.numpy()).all()
        assert (labels.numpy() == disk_labels.numpy()).all()
        seen.update(labels.numpy().tolist())
    # The images held out are those of the classes 1 and 6.
    assert seen == set(range(10)) - (set() if held_out is None else {1, 6})


def mirrored_by_epoch(count, cache, epochs, seed=0, initial_step=0, batch_size=8):
    """{number of image: whether it was mirrored} of each epoch; the images' marked corners tell."""
    data = numbered_data(count, cache)
    data.source.images[:, 0, -1] = 255  # more than any number's
    batches = training_batches(
        data,
        batch_size,
        epochs,
        seed,
        augmentation(flip=True),
        initial_step=initial_step,
        alternating_flip=True,
    )
    steps, found = count // batch_size, [{} for _ in range(epochs)]
    for step, (images, _) in enumerate(batches, initial_step):
        images = images.numpy()
        turned = (images[:, 0, 0] == 255).all(-1)
        images[turned] = images[turned, :, ::-1]
        found[step // steps].update(zip(numbers(images), turned.tolist(), strict=True))
    return found


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_an_alternating_flip_shows_each_image_from_either_side_in_turn(cache):
    first, second, third, fourth = epochs = mirrored_by_epoch(400, cache, 4)
    assert [sorted(epoch) for epoch in epochs] == [list(range(400))] * 4
    assert all(second[image] is not first[image] for image in range(400))
    assert (third, fourth) == (first, second)
    assert 160 < sum(first.values()) < 240  # 200, and 4 standard deviations
    # By the seed and the image's number, not by its place in the epoch.
    assert mirrored_by_epoch(400, cache, 1, batch_size=40) == [first]
    (other,) = mirrored_by_epoch(400, cache, 1, seed=1)
    assert 120 < sum(other[image] is first[image] for image in range(400)) < 280


def test_a_resumed_run_flips_as_the_whole_run_does():
    whole, resumed = mirrored_by_epoch(40, "memory", 3), mirrored_by_epoch(40, "memory", 3, initial_step=7)
    assert [len(epoch) for epoch in resumed] == [0, 24, 40]
    assert all(resumed[epoch].items() <= whole[epoch].items() for epoch in range(3))


def test_from_disk_only_what_is_trained_with_is_read():
    data = numbered_data(50, "none")
    batches = training_batches(data, 8, epochs=3, seed=0, augment=plain, initial_step=16)
    assert data.source.reads == 0
    assert len(list(batches)) == 2
    assert data.source.reads == 16
    assert len(list(evaluation_batches(data, "test", 16))) == 4
    assert data.source.reads == 66


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_validation_is_evaluated_in_its_order(cache):
    data = numbered_data(50, cache, np.arange(50) % 5 == 1)
    ((images, labels),) = evaluation_batches(data, "validation", 16)
    assert numbers(images) == list(range(1, 50, 5))
    assert labels.numpy().tolist() == [1, 6] * 5
    assert data.source.reads == 10


def test_training_decodes_each_image_once():
    data = numbered_data(40)
    for _ in training_batches(data, 8, epochs=4, seed=0, augment=augmentation(cutout=4)):
        pass
    assert data.source.reads == 40


def test_evaluation_is_in_order_whole_and_decoded_once():
    data = numbered_data(50)
    batches = evaluation_batches(data, "test", 16)
    assert batches.cardinality() == 4
    for _ in range(2):
        images, labels = (np.concatenate(parts) for parts in zip(*batches.as_numpy_iterator(), strict=True))
        assert images.dtype == np.uint8 and labels.dtype == np.int32
        assert (images == data.source.images).all()
        assert (labels == data.source.labels).all()
    assert data.source.reads == 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"batch_size": 51},
            "batch_size must be from 1 to 50, the number of images in the train split of numbered",
        ),
        ({"batch_size": 0}, "Received: batch_size=0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_decoded(arguments, message):
    data = numbered_data(50)
    with pytest.raises(UserError, match=message):
        training_batches(data, epochs=1, seed=0, augment=plain, **arguments)
    assert data.source.reads == 0


def test_evaluation_of_a_split_without_images_is_refused():
    with pytest.raises(UserError, match="numbered has images in the splits train, test"):
        evaluation_batches(numbered_data(50), "validation", 8)


def test_a_channel_that_is_the_same_everywhere_has_a_deviation_to_divide_by():
    data = numbered_data(50)
    data.source.images[..., 1] = 77
    data.source.images[..., 2] = np.arange(SIZE) % 2  # nearly so
    assert data.mean[1:] == (77, 0.5)
    assert data.std[0] > 60 and data.std[1:] == (LEAST_STD, LEAST_STD)
    data = numbered_data(3)
    data.source.images[:] = 251
    assert data.std == (LEAST_STD,) * 3
