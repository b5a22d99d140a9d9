import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.targets import at_least_one, in_one_line, unpack

IMAGES = np.zeros((3, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_labels_of_any_number_type(dtype, shape):
    images, targets = unpack((IMAGES, np.array([0, 5, 2], dtype).reshape(shape)), 6)
    assert images.dtype == tf.uint8 and list(targets) == ["labels"]
    assert targets["labels"].dtype == tf.int32 and targets["labels"].numpy().tolist() == [0, 5, 2]


def test_a_dict_of_targets():
    given = {"labels": [0, 1, 2], "sample_weight": [[1], [0], [2]], "teacher_logits": np.ones((3, 6))}
    _, targets = unpack((IMAGES, given), 6, ["teacher_logits"])
    assert targets["sample_weight"].dtype == tf.float32 and targets["sample_weight"].shape == (3,)
    assert targets["teacher_logits"].shape == (3, 6)


def test_a_sample_weight_of_its_own():
    _, targets = unpack((IMAGES, [0, 1, 2], np.array([1, 0, 2])), 6)
    assert targets["sample_weight"].numpy().tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((IMAGES,), "The targets must be labels, and perhaps sample_weight. Received: none"),
        ((IMAGES, {"label": [0, 1, 2]}), "Received: label$"),
        ((IMAGES, {"labels": [0, 1, 2], "teacher_logits": [1]}), "Received: labels, teacher_logits"),
        ((IMAGES, np.eye(6)[:3]), r"of one-hot labels take argmax.*Received: labels of shape \(3, 6\)"),
        ((IMAGES, ["a", "b", "c"]), "labels must be numbers. Received: labels of type string"),
        ((IMAGES, [0, 1, 2], np.ones((3, 2))), r"Received: sample_weight of shape \(3, 2\)"),
        ((IMAGES, {"labels": [0], "sample_weight": [1]}, [1]), "sample_weight is given twice"),
    ],
)
def test_bad_targets(data, message):
    with pytest.raises(ValueError, match=message) as error:
        unpack(data, 6)
    assert "\n" not in str(error.value)


def test_a_target_that_a_loss_needs_must_be_there():
    with pytest.raises(ValueError, match=r"The targets must be labels, teacher_logits.*Received: labels"):
        unpack((IMAGES, [0, 1, 2]), 6, ["teacher_logits"])


@pytest.mark.parametrize(
    ("labels", "received"),
    [
        ([0, 6, -1], "6 -1"),
        ([0.5, 1.0, 2.0], "0.5"),
        ([np.nan, 1, 2], "nan"),
        (np.full(9, 7), "7 7 7 7 7..."),
    ],
)
def test_labels_out_of_range_are_one_line_when_the_step_runs(labels, received):
    step = in_one_line(tf.function(lambda labels: unpack((IMAGES, labels), 6)[1]["labels"]))
    with pytest.raises(ValueError) as error:
        step(tf.constant(labels))
    assert str(error.value) == f"labels must be whole numbers in 0..5. Received: {received}"


def test_other_errors_of_a_step_stay_as_they_are():
    step = in_one_line(tf.function(lambda x: tf.gather([1, 2], x)))
    with pytest.raises(tf.errors.InvalidArgumentError):
        step(tf.constant(5))


def test_at_least_one():
    batch = tf.ones((2, 3))
    assert at_least_one(batch) is batch
    assert at_least_one(batch[:0]).numpy().tolist() == [[0, 0, 0]]
    traced = tf.function(at_least_one, input_signature=[tf.TensorSpec((None, 3))])
    assert traced(batch[:0]).shape == (1, 3) and traced(batch).shape == (2, 3)
