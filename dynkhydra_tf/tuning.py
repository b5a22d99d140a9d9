"""Input pipelines without TensorFlow's tuning, whose thread can keep an iterator from ending for a minute."""

import tensorflow as tf


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns a dataset, for `apply`, that TensorFlow does not tune, nor what is made of it.

    The thread that tunes sleeps longer and longer, up to a minute. It is woken when the iterator ends, but as
    it may look whether it is to stop before that is written down, it then sleeps on, and whoever ended the
    iterator waits for it (TensorFlow 2.21; 4 of 12 iterators that had lived for 1.5 s took 1.0 s more). What
    is left to tuning works without: maps run on all cores, and prefetching looks at its own buffer.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
