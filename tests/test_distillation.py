import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.distillation import Teacher, open_teacher
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.runs import RunDirectory
from dynkhydra_tf.settings import PlaceSettings, Settings
from dynkhydra_tf.training import fit
from tests.conftest import TinyBackbone, coloured_images

NAMES = ("a", "b", "c", "d", "e", "f")
IMAGES, LABELS = coloured_images(np.arange(36) % 6)


def make_plain(**settings):
    keras.utils.set_random_seed(0)
    return Plain(TinyBackbone(), 6, **settings)


def batches(count=6):
    """`count` batches of 6 images."""
    return tf.data.Dataset.from_tensor_slices((IMAGES[: 6 * count], LABELS[: 6 * count])).batch(6)


class Counting(Teacher):
    """A teacher that counts how often it is asked."""

    asked = 0

    def logits(self, images):
        def count():
            self.asked += 1

        with tf.control_dependencies([tf.py_function(count, [], [])]):
            return super().logits(images)


def counting(order=range(6)):
    model = make_plain()
    model.network.set_weights([w + 0.1 for w in model.network.get_weights()])
    return model, Counting(model, list(order), "float32")


@pytest.mark.parametrize("hydra", [False, True])
def test_a_teacher_says_what_its_network_does_in_the_order_of_the_data(trained, hydra):
    model = trained if hydra else make_plain()
    expected = model(IMAGES)["logits"].numpy()
    np.testing.assert_allclose(Teacher(model, list(range(6)), "float32").logits(IMAGES), expected, rtol=1e-3)
    order = [5, 3, 4, 0, 1, 2]
    teacher = Teacher(model, order, "mixed_bfloat16")
    if not hydra:  # whose gate may choose another branch
        np.testing.assert_allclose(teacher.logits(IMAGES), expected[:, order], atol=0.05 * expected.std())


def test_in_training_it_is_asked_until_it_counts_no_more():
    model, teacher = counting()
    weighted = batches().map(lambda images, labels: (images, labels, tf.cast(labels, tf.float32)))
    _, _, weights = next(iter(teacher.beside_training(weighted, step=0, last_step=0)))
    np.testing.assert_array_equal(weights, LABELS[:6])
    beside = teacher.beside_training(batches(), step=10, last_step=13)
    assert beside.cardinality() == 6
    found = list(beside)
    assert teacher.asked == 3
    for number, (images, targets) in enumerate(found):
        np.testing.assert_array_equal(images, IMAGES[6 * number : 6 * number + 6])
        np.testing.assert_array_equal(targets["labels"], LABELS[6 * number : 6 * number + 6])
        asked = number < 3
        np.testing.assert_array_equal(targets["teacher_weight"], [float(asked)] * 6)
        expected = model(images)["logits"] if asked else np.zeros((6, 6))
        np.testing.assert_allclose(targets["teacher_logits"], expected, rtol=1e-3, atol=1e-5)


def test_of_validation_images_it_is_asked_once():
    model, teacher = counting()
    uneven = tf.data.Dataset.from_tensor_slices((IMAGES[:10], LABELS[:10])).batch(6)
    beside = teacher.beside_validation(uneven)
    assert beside.cardinality() == 2 and teacher.asked == 2
    for _ in range(2):
        said = [targets for _, targets in beside]
        assert [len(targets["labels"]) for targets in said] == [6, 4]
        logits = np.concatenate([targets["teacher_logits"] for targets in said])
        np.testing.assert_allclose(logits, model(IMAGES[:10])["logits"], rtol=1e-3, atol=1e-5)
        assert all((targets["teacher_weight"].numpy() == 1).all() for targets in said)
    assert teacher.asked == 2


def open_run(path):
    return RunDirectory.open(Settings(place=PlaceSettings(run_dir=str(path))))


@pytest.mark.slow
def test_a_run_that_goes_on_hears_its_teacher_as_one_that_was_not_stopped(tmp_path):
    """2 epochs of 3 steps; the teacher counts in the first 4 of them."""

    def train(name, stop_at=None):
        with open_run(tmp_path / name) as run:
            if run.continued:
                model, done = run.load_checkpoint()
                run.go_on(done)
            else:
                model, done = make_plain(distill_weight=2.0, distill_temperature=3.0), 0
                model.compile(keras.optimizers.SGD(0.05, momentum=0.9))
                run.start()
            _, teacher = counting()
            beside = teacher.beside_training(batches().skip(done), done, 4)
            if stop_at:
                model.fit(beside.take(stop_at), shuffle=False, verbose=0)
                run.save_checkpoint(model)
                return None
            held_out = tf.data.Dataset.from_tensors(coloured_images(np.arange(12) % 6, seed=1))
            fit(model, run, beside, teacher.beside_validation(held_out), 2, 3, done, verbose=False)
            return model, run.metric_rows()

    whole, rows = train("whole")
    assert rows[1]["distill_loss"] < rows[0]["distill_loss"]  # of three steps it counts in one
    for row in rows:
        assert row["val_distill_loss"] > 0
        total = row["val_cross_entropy_loss"] + 2 * row["val_distill_loss"]
        assert row["val_loss"] == pytest.approx(total, rel=1e-5)
    train("stopped", stop_at=2)
    again, more = train("stopped")
    for row, other in zip(more, rows, strict=True):
        assert row["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)
    for mine, theirs in zip(again.weights, whole.weights, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4)


def data(**settings):
    """As much of a data set as a teacher asks for."""
    return types.SimpleNamespace(**{"name": "toys", "class_names": NAMES, "image_size": 8, **settings})


def test_classes_are_matched_by_name(tmp_path, capsys):
    model = make_plain(class_names=NAMES)
    model.save(tmp_path / "model.keras")
    teacher = open_teacher(tmp_path / "model.keras", data(class_names=NAMES[::-1]), "float32")
    assert "Teacher: " in capsys.readouterr().out
    np.testing.assert_allclose(teacher.logits(IMAGES), model(IMAGES)["logits"][:, ::-1], rtol=1e-3, atol=1e-5)


def test_teachers_that_do_not_fit(tmp_path, write_flags):
    make_plain(class_names=NAMES).save(tmp_path / "model.keras")
    make_plain().save(tmp_path / "nameless.keras")
    write_flags(tmp_path / "started")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "other.keras")
    mine, wanted = tmp_path / "model.keras", "distill must be a run that has ended, or a .keras file of one"
    for path, has, message in [
        (
            mine,
            data(class_names=(*NAMES[:4], "x", "y")),
            r"its classes: gone: 2 of the classes \('e', 'f'\); new: 2 of the classes \('x', 'y'\)$",
        ),
        (
            mine,
            data(class_names=NAMES[:5]),
            r"of the classes of toys. Received: .*, its classes: gone: 1 of the classes \('f'\)$",
        ),
        (mine, data(image_size=16), r"for images of 16 px, .* Received: .*model.keras for 8 px$"),
        (tmp_path / "gone", data(), f"gone is not there; {wanted}$"),
        (tmp_path / "started", data(), f"{wanted}. Received: .*started, in which none has$"),
        (tmp_path / "nameless.keras", data(), "knows its class names. Received: .*, which does not$"),
        (tmp_path / "other.keras", data(), "holds a Sequential; it must be a Hydra or a Plain$"),
    ]:
        with pytest.raises(UserError, match=message):
            open_teacher(path, has, "float32")
    with pytest.raises(UserError, match="distill must be another run than --run_dir"):
        open_teacher(mine, data(), "float32", run_dir=tmp_path)


def test_a_gate_that_learns_from_a_teacher_trains_and_comes_back(tmp_path):
    keras.utils.set_random_seed(0)
    model = Hydra(TinyBackbone(), (0, 0, 1, 1, 2, 2), top_k=1, gater_targets="teacher", branch_weight=0.0)
    model.compile(keras.optimizers.Adam(0.02))
    teacher = np.float32(4 * np.eye(6)[LABELS[:12]] + 4 * np.eye(6)[(LABELS[:12] + 2) % 6])
    targets = {"labels": LABELS[:12], "teacher_logits": teacher, "teacher_weight": np.ones(12, np.float32)}
    first, *_, last = (
        model.train_on_batch(IMAGES[:12], targets, return_dict=True)["gater_loss"] for _ in range(20)
    )
    # The teacher gives half of the probability to each of two clusters: never below ln 2.
    assert np.log(2) < last < first
    again = Hydra.from_config(model.get_config())
    assert again.loss_terms["gater"].options == {"gater_targets": "teacher"}
