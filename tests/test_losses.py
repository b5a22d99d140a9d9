import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf import losses, plain
from dynkhydra_tf.fields import values
from dynkhydra_tf.hydra import Forward
from dynkhydra_tf.losses import Loss, Sums, cross_entropy, with_settings
from dynkhydra_tf.settings import Settings

LN2, LN3, LN4 = np.log([2, 3, 4])


def of_own_heads(own_logits):
    """A pass of which nothing but the heads' logits matters."""
    return Forward(
        None, None, None, None, None, None, None if own_logits is None else tf.constant(own_logits)
    )


def targets(labels, own_branch, num_branches, **more):
    own = tf.one_hot(own_branch, num_branches)
    return {"labels": tf.constant(labels), "own_branch": tf.constant(own_branch), "own": own, **more}


def branch_sums(own_logits, targets):
    return losses.sums({"branch": losses.HYDRA["branch"]}, of_own_heads(own_logits), targets)["branch"]


def test_cross_entropy_by_hand():
    # Softmax of (ln 3, 0) is (3/4, 1/4): -ln 3/4 and, of the flat row, ln 2.
    logits = np.float32([[LN3, 0], [0, 0]])
    np.testing.assert_allclose(cross_entropy([0, 1], logits), [LN4 - LN3, LN2], rtol=1e-6)


def test_smoothed_labels_by_hand():
    # Softmax of (ln 3, 0): 3/4, 1/4. With s = 0.2 the target of label 0 is (0.9, 0.1), of label 1 (0.1, 0.9).
    logits = np.float32([[LN3, 0], [LN3, 0]])
    expected = [0.9 * (LN4 - LN3) + 0.1 * LN4, 0.1 * (LN4 - LN3) + 0.9 * LN4]
    np.testing.assert_allclose(cross_entropy([0, 1], logits, 0.2), expected, rtol=1e-6)


def test_label_smoothing_is_of_the_classes_and_not_of_the_gate():
    logits = tf.constant([[LN3, 0.0]], tf.float32)
    forward = Forward(logits, None, None, None, None, logits, logits)
    smoothed = 0.9 * (LN4 - LN3) + 0.1 * LN4
    terms = with_settings(losses.HYDRA, {"label_smoothing": 0.2})
    found = losses.sums(terms, forward, targets([0], [0], 2))
    expected = {"ensemble": smoothed, "gater": LN4 - LN3, "branch": smoothed}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].mean, value, rtol=1e-6, err_msg=name)
    terms = with_settings(losses.PLAIN, {"label_smoothing": 0.2})
    found = losses.sums(terms, forward, targets([0], [0], 2))
    np.testing.assert_allclose(found["cross_entropy"].mean, smoothed, rtol=1e-6)


@pytest.mark.parametrize("of_teacher", [False, True])
def test_of_a_blended_image_either_class_counts_by_its_share(of_teacher):
    # Softmax of (ln 3, 0): 3/4, 1/4. A quarter of the image is of class 1, whose branch is 1.
    logits = tf.constant([[LN3, 0.0]], tf.float32)
    forward = Forward(logits, None, None, None, None, logits, logits)
    mixed = {"second_labels": tf.constant([1]), "second_own_branch": tf.constant([1])}
    given = targets([0], [0], 2, second_share=tf.constant([0.25]), **mixed)
    settings = {}
    if of_teacher:  # it does not count here
        given |= {"teacher_logits": logits, "teacher_weight": tf.zeros(1), "clusters": tf.eye(2)}
        settings = {"gater_targets": "teacher"}
    found = losses.sums(with_settings(losses.HYDRA, settings), forward, given)
    expected = 0.75 * (LN4 - LN3) + 0.25 * LN4
    for name in ("ensemble", "gater", "branch"):
        np.testing.assert_allclose(found[name].mean, expected, rtol=1e-6, err_msg=name)


def of_teacher(logits, weights):
    """The targets that a teacher gives."""
    return {"teacher_logits": tf.constant(logits), "teacher_weight": tf.constant(weights)}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_by_hand(temperature):
    # The teacher: 3/4 and 1/4, at T = 2 the odds are the root of 3. The network: 1/2 and 1/2 at every T.
    forward = plain.Forward(tf.zeros((3, 2)))
    terms = with_settings(losses.PLAIN, {"distill_weight": 0.5, "distill_temperature": temperature})
    assert terms["distill"].needs == ("teacher_logits", "teacher_weight")
    said = of_teacher(np.float32([[LN3, 0], [LN3, 0], [5, 5]]), [1.0, 0.0, 1.0])
    odds = 3 ** (1 / temperature)
    p = odds / (1 + odds)
    divergence = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))
    # Of three images one does not count and one agrees.
    found = losses.sums(terms, forward, targets([0, 0, 0], [0, 0, 0], 1, **said))
    np.testing.assert_allclose(found["distill"].mean, temperature**2 * divergence / 3, rtol=1e-5)
    total = losses.total(terms, {name: sums.mean for name, sums in found.items()})
    np.testing.assert_allclose(total, LN2 + 0.5 * temperature**2 * divergence / 3, rtol=1e-5)


def test_the_gate_learns_a_teachers_probabilities_by_cluster():
    # Classes 0 and 1 are cluster 0. The teacher: 1/2, 1/4, 1/4, so 3/4 and 1/4. The gate: 1/4 and 3/4.
    gate_logits = tf.constant([[0, LN3]] * 3, tf.float32)
    forward = Forward(gate_logits, None, None, None, None, gate_logits, None)
    terms = with_settings({"gater": losses.HYDRA["gater"]}, {"gater_targets": "teacher"})
    assert terms["gater"].needs == ("teacher_logits", "teacher_weight")
    clusters = tf.constant([[1, 0], [1, 0], [0, 1]], tf.float32)
    # It counts for the first image, not for the second, half for the third; their own cluster is 1.
    said = of_teacher(np.float32([[LN2, 0, 0]] * 3), [1.0, 0.0, 0.5])
    given = targets([2, 2, 2], [1, 1, 1], 2, clusters=clusters, **said)
    found = terms["gater"].function(forward, given, **terms["gater"].options)
    soft, hard = 0.75 * LN4 + 0.25 * (LN4 - LN3), LN4 - LN3
    np.testing.assert_allclose(found, [soft, hard, (soft + hard) / 2], rtol=1e-5)
    # A trunk, which says classes, learns them one by one: 1/4, 1/4, 1/2 against 1/2, 1/4, 1/4; its own is 2.
    trunk = forward._replace(class_logits=tf.constant([[0, 0, LN2]] * 3, tf.float32))
    soft, hard = 0.75 * LN4 + 0.25 * LN2, LN2
    found = terms["gater"].function(trunk, given, **terms["gater"].options)
    np.testing.assert_allclose(found, [soft, hard, (soft + hard) / 2], rtol=1e-5)
    assert with_settings(losses.HYDRA, {})["gater"].needs == ()


def test_branch_losses_are_means_over_the_own_images():
    # Two classes. Branch 0 has the images 0 and 2 (ln 2 and ln 4), branch 1 none, branch 2 image 1 (ln 4/3).
    logits = np.float32([[0, 0], [0, LN3], [LN3, 0]])
    sums = branch_sums(logits, targets([0, 1, 1], [0, 2, 0], 3))
    np.testing.assert_allclose(sums.loss, [LN2 + LN4, 0, LN4 - LN3], rtol=1e-6)
    np.testing.assert_array_equal(sums.images, [2, 0, 1])
    np.testing.assert_allclose(sums.mean, (LN2 + LN4) / 2 + LN4 - LN3, rtol=1e-6)


def test_sample_weights_scale_the_losses_and_not_the_count():
    # As Keras: (2 ln 2 + 0.5 ln 4) / 2 in branch 0, and 0 of ln 4/3 in branch 2.
    logits = np.float32([[0, 0], [0, LN3], [LN3, 0]])
    weighted = targets([0, 1, 1], [0, 2, 0], 3, sample_weight=tf.constant([2.0, 0.0, 0.5]))
    np.testing.assert_allclose(branch_sums(logits, weighted).mean, (2 * LN2 + 0.5 * LN4) / 2, rtol=1e-6)


def test_sums_of_two_batches_add_up_to_those_of_both():
    logits = np.float32([[0, 0], [0, LN3], [LN3, 0]])
    parts = [
        branch_sums(logits[rows], targets(*np.array([[0, 1, 1], [0, 2, 0]])[:, rows], 3))
        for rows in (slice(0, 1), slice(1, 3))
    ]
    both = Sums(parts[0].loss + parts[1].loss, parts[0].images + parts[1].images)
    np.testing.assert_allclose(both.mean, (LN2 + LN4) / 2 + LN4 - LN3, rtol=1e-6)


def test_without_heads_the_branch_loss_is_zero():
    assert branch_sums(None, targets([0, 1], [0, 1], 2)).mean == 0


def test_total_is_the_weighted_sum():
    # 1 * 2 + 1.5 * 4 + 0.05 * 40 = 10.
    terms = with_settings(losses.HYDRA, {})
    total = losses.total(terms, {"ensemble": 2.0, "gater": 4.0, "branch": 40.0})
    np.testing.assert_allclose(total, 10, rtol=1e-6)


def test_a_loss_of_default_weight_zero_is_off_until_it_is_given_one():
    table = {**losses.HYDRA, "toy": Loss(0.0, losses.ensemble)}
    assert list(with_settings(table, {})) == ["ensemble", "gater", "branch"]
    on = with_settings(table, {"toy_weight": 2, "gater_weight": 0})
    assert {name: loss.weight for name, loss in on.items()} == {
        "ensemble": 1.0,
        "gater": 0.0,
        "branch": 0.05,
        "toy": 2.0,
    }


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"gater_weight": -1.0}, "gater_weight must be at least 0 and finite. Received: gater_weight=-1.0"),
        ({"gater_weight": float("nan")}, "gater_weight must be at least 0"),
        ({"branch_weight": float("inf")}, "Received: branch_weight=inf"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\). Received: label_smoothing=1.0"),
        ({"distill_temperature": 0}, "distill_temperature must be above 0 and finite. Received: .*=0"),
        ({"gater_targets": "soft"}, "gater_targets must be one of hard, teacher. Received: .*'soft'"),
        ({"branch_weight": "1"}, "Received: branch_weight='1'"),
        (
            {"gate_weight": 1.0},
            "gater_weight, branch_weight, exit_weight, distill_weight. Received: gate_weight",
        ),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        with_settings(losses.HYDRA, weights)


def test_a_loss_must_give_a_value_for_each_image():
    mean = Loss(1.0, lambda forward, targets: tf.constant(1.0))
    with pytest.raises(
        ValueError, match=r"The loss toy must give a value for each image. Received: shape \(\)"
    ):
        losses.sums({"toy": mean}, None, targets([0], [0], 1))


def test_each_loss_of_a_hydra_has_its_flag():
    defaults = {f"{name}_weight": loss.weight for name, loss in losses.HYDRA.items()}
    settings = values(Settings())
    assert {name: settings[name] for name in defaults} == defaults
    options = {name: value for loss in losses.HYDRA.values() for name, value in loss.options.items()}
    assert {name: settings[name] for name in options} == options
