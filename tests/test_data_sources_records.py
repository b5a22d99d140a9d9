import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.data.sources.records import Records
from dynkhydra_tf.errors import UserError


@pytest.fixture
def files(tmp_path):
    """Three TFRecord files of 5, 1 and 4 records, the last of which are empty or large."""
    contents = [b"record %d" % number for number in range(8)] + [b"", bytes(100_000)]
    paths = []
    for first, last in ((0, 5), (5, 6), (6, 10)):
        paths.append(tmp_path / f"{first}.tfrecord")
        with tf.io.TFRecordWriter(str(paths[-1])) as writer:
            for content in contents[first:last]:
                writer.write(content)
    return paths, contents


def test_every_record_is_found_in_any_order(files):
    paths, contents = files
    records = Records([(path, 0, -1) for path in paths])
    assert len(records) == 10
    order = np.array([9, 0, 5, 4, 6, 8, 1, 2, 3, 7, 0])
    read = tf.data.Dataset.from_tensor_slices(order).map(records.read)
    assert read.element_spec == tf.TensorSpec((), tf.string)
    assert list(read.as_numpy_iterator()) == [contents[number] for number in order]


def test_a_part_of_a_file_is_read_as_one(files):
    paths, contents = files
    records = Records([(paths[0], 3, -1), (paths[2], 1, 2)])
    read = [records.read(tf.constant(number, tf.int64)).numpy() for number in range(len(records))]
    assert read == [contents[3], contents[4], contents[7], contents[8]]


def test_damaged_and_missing_files_are_named(files):
    paths, _ = files
    content = paths[0].read_bytes()
    for damaged in (content[:-3], content[:5], content + b"\0\0"):
        paths[0].write_bytes(damaged)
        with pytest.raises(UserError, match=r"0\.tfrecord"):
            Records([(paths[0], 0, -1)])
    with pytest.raises(
        UserError, match=r"gone\.tfrecord cannot be read in any order \(.*No such file.*memory"
    ):
        Records([(paths[0].parent / "gone.tfrecord", 0, -1)])
