import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf import losses
from dynkhydra_tf.backbones import ResNet
from dynkhydra_tf.hydra import Hydra
from tests.conftest import ROOT

LABELS = [0, 1, 2, 3, 4, 5, 0, 3]
PARTS = ("stem", "gater", "branches", "combiner", "heads")


def reached(model, loss, images, labels, training=True):
    """Which variables one of the losses reaches: for each part the set of its reached variables.

    Of the stacked variables of branches and heads, the reached rows: {0, 2} is branches 0 and 2. For
    the others "all", "some" or "none" of the part's variables.
    """
    with tf.GradientTape(persistent=True) as tape:
        value = model.losses_of(images, {"labels": labels}, training)[0][loss].mean
    result = {}
    for part in PARTS:
        variables = [variable.value for variable in getattr(model, part).trainable_variables]
        values = [g.numpy() for g in tape.gradient(value, variables, unconnected_gradients="zero")]
        if part in ("branches", "heads"):
            rows = [{int(b) for b in range(len(g)) if np.abs(g[b]).max() > 0} for g in values]
            assert all(row == rows[0] for row in rows)
            result[part] = rows[0]
        else:
            hits = [np.abs(g).max() > 0 for g in values]
            result[part] = "all" if all(hits) else "some" if any(hits) else "none"
    return result


def means_of(model, images, labels, training):
    """The mean of each loss by name, and the pass over the batch."""
    sums, forward, _ = model.losses_of(images, {"labels": labels}, training)
    return {name: value.mean for name, value in sums.items()}, forward


@pytest.mark.parametrize("routing", ["routed", "dense"])
class TestGradientFlow:
    """Section "Subtask specialization": what each loss does and does not alter."""

    def test_ensemble_loss_reaches_selected_branches_combiner_and_stem(
        self, make_hydra, fix_gate, batch, routing
    ):
        model = make_hydra(routing=routing)
        fix_gate(model, [0.6, 0.1, 0.3])  # K = 2, tau = 0.08: branches 0 and 2
        expected = {"stem": "all", "gater": "none", "branches": {0, 2}, "combiner": "all", "heads": set()}
        assert reached(model, "ensemble", *batch(LABELS)) == expected

    def test_ensemble_loss_does_not_reach_a_branch_below_tau(self, make_hydra, fix_gate, batch, routing):
        model = make_hydra(routing=routing)
        fix_gate(model, [0.92, 0.03, 0.05])
        assert reached(model, "ensemble", *batch(LABELS))["branches"] == {0}

    def test_gater_loss_reaches_gater_and_stem(self, make_hydra, batch, routing):
        model = make_hydra(routing=routing)
        expected = {"stem": "all", "gater": "all", "branches": set(), "combiner": "none", "heads": set()}
        assert reached(model, "gater", *batch(LABELS)) == expected

    def test_branch_loss_reaches_own_branch_own_head_and_stem(self, make_hydra, fix_gate, batch, routing):
        model = make_hydra(routing=routing)
        # The gater never selects branch 1, and all the images are of its partition (classes 2, 3).
        fix_gate(model, [0.6, 0.1, 0.3])
        expected = {"stem": "all", "gater": "none", "branches": {1}, "combiner": "none", "heads": {1}}
        assert reached(model, "branch", *batch([2, 3, 3, 2])) == expected


def test_dense_and_routed_agree_in_every_gradient_on_moving_statistics(make_hydra, batch):
    routed, dense = make_hydra(routing="routed"), make_hydra(routing="dense")
    results = []
    for model in (routed, dense):
        with tf.GradientTape() as tape:
            means, forward = means_of(model, *batch(LABELS), training=False)
            total = losses.total(model.loss_terms, means)
        gradients = tape.gradient(total, model.trainable_variables)
        results.append([forward.logits, *means.values(), total, *gradients])
    names = ["logits", "ensemble", "gater", "branch", "total", *(v.path for v in routed.trainable_variables)]
    for name, one, other in zip(names, *results, strict=True):
        assert np.abs(one).max() > 0, name
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_branch_that_is_neither_selected_nor_own_is_not_run_in_training(make_hydra, fix_gate, batch):
    model = make_hydra()
    fix_gate(model, [0.6, 0.1, 0.3])

    def results(labels):
        means, forward = means_of(model, *batch(labels), training=True)
        return np.array([*means.values(), *np.ravel(forward.logits)])

    without, with_own = results([0, 1, 4, 5]), results([0, 2, 4, 5])
    for stack in model.branches.stacks:
        values = stack.numpy()
        values[1] = np.nan
        stack.assign(values)
    assert np.isfinite(without).all()
    np.testing.assert_array_equal(results([0, 1, 4, 5]), without)
    # With an image of its partition, class 2, it runs, and that shows in the branch loss.
    assert not np.array_equal(results([0, 2, 4, 5]), with_own)


def test_call_returns_logits_gate_and_selection(make_hydra, batch):
    images, _ = batch(LABELS)
    out = make_hydra()(images)
    assert {name: (tuple(value.shape), value.dtype.name) for name, value in out.items()} == {
        "logits": ((8, 6), "float32"),
        "gate": ((8, 3), "float32"),
        "selected": ((8, 3), "bool"),
    }
    np.testing.assert_allclose(np.sum(out["gate"], axis=1), 1, rtol=1e-6)


def test_uint8_and_float_images_give_the_same(make_hydra, batch):
    images, _ = batch(LABELS)
    model = make_hydra()
    np.testing.assert_array_equal(model(images)["logits"], model(images.astype(np.float32))["logits"])


def test_images_are_normalised_by_mean_and_std(make_hydra):
    model = make_hydra(mean=(10, 20, 30), std=(1, 2, 4))
    np.testing.assert_allclose(model.normalize(np.full((1, 1, 1, 3), 40.0))[0, 0, 0], [30, 10, 2.5])


def test_gate_weighted_scales_each_projection(make_hydra, fix_gate, batch):
    images, _ = batch(LABELS)
    model = make_hydra(combine="gate_weighted")
    fix_gate(model, [0.6, 0.1, 0.3])
    forward = model.forward(images, 0.0)
    features = model.stem(model.normalize(images))
    # 0.6 / 0.9 and 0.3 / 0.9.
    by_hand = model.combiner(
        model.branches.branch(0)(features) * (2 / 3) + model.branches.branch(2)(features) / 3
    )
    np.testing.assert_allclose(forward.logits, by_hand, rtol=1e-4, atol=1e-5)


def test_tau_can_be_set_after_training_and_for_each_image(make_hydra, fix_gate, batch):
    images, labels = batch(LABELS)
    model = make_hydra(tau=0.0)
    model.compile()
    fix_gate(model, [0.6, 0.1, 0.3])
    assert model.evaluate(images, labels, verbose=0, return_dict=True)["active_branches"] == 2
    assert model.predict(images, verbose=0)["selected"].sum() == 16
    model.tau = 0.35
    assert model.evaluate(images, labels, verbose=0, return_dict=True)["active_branches"] == 1
    assert model.predict(images, verbose=0)["selected"].sum() == 8
    each = model(images, tau=tf.constant([0.0] * 4 + [0.35] * 4))["selected"]
    assert tf.reduce_sum(tf.cast(each, tf.int32), axis=1).numpy().tolist() == [2] * 4 + [1] * 4


def test_tau_can_be_set_while_fit_runs(make_hydra, batch):
    images, labels = batch(LABELS)
    model = make_hydra()
    model.compile("adamw")

    def raise_tau(epoch, logs):
        model.tau = 0.9

    callback = keras.callbacks.LambdaCallback(on_epoch_end=raise_tau)
    fitted = model.fit(
        images, labels, validation_data=(images, labels), epochs=2, callbacks=[callback], verbose=0
    )
    assert fitted.history["val_active_branches"][-1] == 1


def test_tau_can_be_set_within_another_model(make_hydra, fix_gate, batch):
    images, _ = batch(LABELS)
    model = make_hydra(tau=0.0)
    fix_gate(model, [0.6, 0.1, 0.3])
    inputs = keras.Input((8, 8, 3))
    wrapper = keras.Model(inputs, model(inputs))
    assert wrapper.predict(images, verbose=0)["selected"].sum() == 16
    model.tau = 0.35
    assert wrapper.predict(images, verbose=0)["selected"].sum() == 8
    assert model.tau == model.get_config()["tau"] == 0.35


def test_train_tau_is_in_force_in_training_only(make_hydra, fix_gate, batch):
    model = make_hydra(tau=0.35, train_tau=0.0)
    fix_gate(model, [0.6, 0.1, 0.3])
    images, labels = batch(LABELS)
    assert means_of(model, images, labels, training=True)[1].selected.numpy().sum() == 16
    assert means_of(model, images, labels, training=False)[1].selected.numpy().sum() == 8


@pytest.mark.parametrize("settings", [{}, {"branch_weight": 0.0}, {"combine": "gate_weighted"}])
def test_fit_learns_the_batch(make_hydra, batch, settings):
    images, labels = batch(np.arange(48) % 6)
    images = images // 8 + (labels * 40).astype(np.uint8)[:, None, None, None]  # brightness tells the class
    model = make_hydra(**settings)
    model.compile(keras.optimizers.AdamW(3e-2))
    history = model.fit(images, labels, epochs=25, batch_size=48, verbose=0).history
    assert history["ensemble_loss"][-1] < 0.5 * history["ensemble_loss"][0]
    assert history["top1"][-1] > 0.8
    assert history["gater_accuracy"][-1] > 0.8
    assert 1 <= history["active_branches"][-1] <= 2
    assert (history["branch_loss"][-1] > 0) == ("branch_weight" not in settings)


def test_metrics_by_hand(make_hydra, fix_gate, batch):
    images, labels = batch([0, 0, 2, 5])
    model = make_hydra()
    model.compile()
    fix_gate(model, [0.6, 0.1, 0.3])
    dense = model.combiner.layers[-1]
    dense.set_weights([np.zeros_like(dense.kernel), np.float32([5, 4, 3, 2, 1, 0])])
    result = model.evaluate(images, labels, batch_size=3, verbose=0, return_dict=True)
    assert result["top1"] == pytest.approx(0.5)  # both images of class 0, of four
    assert result["top5"] == pytest.approx(0.75)  # all but class 5, the sixth
    assert result["gater_accuracy"] == pytest.approx(0.5)
    assert result["active_branches"] == pytest.approx(2)
    # ln sum_j exp(j) less the logits 5, 5, 3, 0; the last batch of one image counts as one.
    log_sum = np.log(np.exp(np.arange(6)).sum())
    assert result["ensemble_loss"] == pytest.approx(log_sum - 13 / 4, rel=1e-5)
    # -ln 0.6 twice (cluster 0), -ln 0.1, -ln 0.3.
    assert result["gater_loss"] == pytest.approx(-np.log(0.6 * 0.6 * 0.1 * 0.3) / 4, rel=1e-5)


def test_save_and_load_give_the_same_numbers_in_another_process(make_hydra, batch, tmp_path):
    keras.utils.set_random_seed(3)
    model = Hydra(ResNet(depth=1, image_size=8), (0, 1, 1, 2), top_k=2, mean=(1, 2, 3), std=(50, 60, 70))
    model.compile("adamw")
    images, labels = batch([0, 1, 2, 3])
    model.fit(images, labels, verbose=0)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "logits.npy", model.predict(images, verbose=0)["logits"])
    code = (
        "import dynkhydra_tf, keras, numpy as np\n"
        "model = keras.models.load_model('model.keras')\n"
        "logits = model.predict(np.load('images.npy'), verbose=0)['logits']\n"
        "np.testing.assert_allclose(logits, np.load('logits.npy'), rtol=1e-5, atol=1e-5)\n"
        "assert int(model.optimizer.iterations.numpy()) == 1\n"
    )
    environment_path = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**__import__("os").environ, **environment_path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_loaded_model_trains_on(make_hydra, batch, tmp_path):
    images, labels = batch(LABELS)
    model = make_hydra()
    model.compile("adamw")
    model.fit(images, labels, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    one, other = (m.fit(images, labels, verbose=0).history for m in (model, loaded))
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    for mine, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5, err_msg=mine.path)


def test_for_inference_has_no_heads_and_the_same_outputs(make_hydra, batch):
    images, _ = batch(LABELS)
    model = make_hydra()
    bare = model.for_inference()
    assert bare.heads is None
    assert model.count_params() - bare.count_params() == model.heads.count_params() == 3 * (6 * 6 + 6)
    np.testing.assert_array_equal(model(images)["logits"], bare(images)["logits"])


def test_mixed_precision_keeps_gate_losses_and_statistics_in_float32(make_hydra, batch):
    images, labels = batch(LABELS)
    model = make_hydra(part_dtype="mixed_bfloat16")
    model.compile("adamw")
    model.fit(images, labels, verbose=0)
    means, forward = means_of(model, images, labels, training=True)
    assert forward.routes.projections.dtype == tf.bfloat16
    assert {t.dtype for t in (*means.values(), forward.gate, forward.logits)} == {tf.float32}
    assert {weight.dtype for weight in model.weights} == {"float32"}
    full = make_hydra(tau=0.0, top_k=3)
    full.set_weights(model.get_weights())
    images = tf.constant(images)
    mixed = model.forward(images, 0.0)
    np.testing.assert_allclose(mixed.gate, full(images)["gate"], atol=0.03)
    mixed_logits = model.logits_of(mixed.routes, mixed.gate, mixed.selected)
    full_logits = full.logits_of(*(lambda f: (f.routes, f.gate, mixed.selected))(full.forward(images, 0.0)))
    np.testing.assert_allclose(mixed_logits, full_logits, atol=0.1)


def test_summary_names_the_parts(make_hydra):
    lines = []
    make_hydra().summary(print_fn=lines.append)
    for part in PARTS:
        assert part in "".join(lines)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cluster_of_class": (0, 2)}, "every branch 0..nb-1 at least one class.*Received"),
        ({"cluster_of_class": ()}, "at least one class"),
        ({"top_k": 4}, "top_k must be in 1..3.*Received: top_k=4"),
        ({"top_k": 0}, "top_k must be in 1..3"),
        ({"tau": 1.0}, r"tau must be in \[0, 1\). Received: tau=1.0"),
        ({"tau": float("nan")}, "tau must be in"),
        ({"tau": "x"}, r"tau must be in \[0, 1\). Received: tau='x'"),
        ({"top_k": 1.5}, "top_k must be in 1..3.*Received: top_k=1.5"),
        ({"top_k": "2"}, "Received: top_k='2'"),
        ({"cluster_of_class": (0, 0.5)}, "whole numbers from 0 on. Received: cluster_of_class=0.5"),
        ({"gate_weight": 1.0}, "The weights of the losses are ensemble_weight"),
        ({"train_tau": -0.1}, "train_tau must be in"),
        ({"combine": "mean"}, "combine must be one of.*Received: combine='mean'"),
        ({"routing": "sparse"}, "routing must be one of"),
        ({"gater_weight": -1.0}, "must be at least 0"),
        ({"gater_weight": float("nan")}, "must be at least 0"),
        ({"mean": (1, 2)}, "mean and std must be three numbers each"),
        ({"std": (1, 0, 1)}, "std above 0"),
        ({"mean": ("a", 1, 2)}, "mean and std must be three numbers each.*Received"),
        ({"part_dtype": "mixed_float16"}, "part_dtype must be one of.*Received: part_dtype='mixed_float16'"),
    ],
)
def test_bad_settings(make_hydra, settings, message):
    with pytest.raises(ValueError, match=message):
        make_hydra(**settings)


def test_tau_that_is_no_number(make_hydra):
    model = make_hydra()
    with pytest.raises(ValueError, match=r"tau must be in \[0, 1\). Received: tau='x'"):
        model.tau = "x"
    assert model.tau == 0.08


def test_a_step_leaves_branches_that_no_image_needed(make_hydra, fix_gate, batch):
    model = make_hydra()
    model.compile(keras.optimizers.AdamW(1e-2, weight_decay=0.1))
    fix_gate(model, [0.6, 0.1, 0.3])
    model.train_on_batch(*batch([2, 3, 2, 3]))  # branch 1 is their own: now it has momentum
    fix_gate(model, [0.6, 0.1, 0.3])
    stacks = [*model.branches.trainable_variables, *model.heads.trainable_variables]
    before = [stack.numpy() for stack in stacks]
    model.train_on_batch(*batch([0, 1, 4, 5]))
    for stack, value in zip(stacks, before, strict=True):
        same = np.all(stack.numpy() == value, axis=tuple(range(1, value.ndim)))
        assert same.tolist() == [False, True, False], stack.path


def test_frozen_branches_keep_their_weights_and_statistics(make_hydra, batch):
    model = make_hydra()
    images, labels = batch(LABELS)
    model.branches.trainable = False
    model.compile(keras.optimizers.AdamW(1e-2))
    stacks = [stack.numpy() for stack in model.branches.stacks]
    combiner = model.combiner.get_weights()
    projections = model.losses_of(images, {"labels": labels}, training=True)[1].routes.projections
    features = model.stem(model.normalize(images), training=True)
    alone = model.branches.branch(0)(features)  # by moving statistics
    np.testing.assert_allclose(projections[0], alone[0], rtol=1e-4, atol=1e-5)
    model.train_on_batch(images, labels)
    for stack, value in zip(model.branches.stacks, stacks, strict=True):
        np.testing.assert_array_equal(stack, value, err_msg=stack.path)
    assert not np.array_equal(model.combiner.get_weights()[0], combiner[0])
