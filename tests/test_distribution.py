"""Two replicas against one, on two logical devices of the processor (see conftest.py)."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf import distribution, train
from dynkhydra_tf.accuracy import evaluate
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.flags import parse
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.optimisation import SGD, AdamW
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.runs import FinishedRun
from dynkhydra_tf.settings import Settings
from tests.conftest import TinyBackbone

# The first half of the batch has none of the last cluster's classes, the second none of the first one's.
LABELS = [0, 1, 2, 3, 4, 5, 3, 5]


@pytest.fixture
def make():
    """Returns a factory of compiled models on one device or on two, always with the same weights."""

    def make(kind, distribute="none", sync_batch_norm=False, rate=0.1, **settings):
        strategy = distribution.open_strategy(distribute)
        distribution.set_sync_batch_norm(strategy, sync_batch_norm)
        assert strategy is None or strategy.num_replicas_in_sync == 2
        with distribution.scope(strategy):
            keras.utils.set_random_seed(0)
            if kind == "plain":
                model = Plain(TinyBackbone(), 6, **settings)
            else:
                settings = {"top_k": 2, "tau": 0.2, "trunk": kind == "trunk", **settings}
                model = Hydra(TinyBackbone(), (0, 0, 1, 1, 2, 2), **settings)
            recipe = {"decay_kernels_only": True, "branch_gradient_scale": 3.0, "ema_decay": 0.9}
            model.compile(SGD(rate, weight_decay=0.01, momentum=0.9, nesterov=True, **recipe))
        return model

    return make


def assert_same_state(one, two):
    """Checks that all variables of two models are equal, and that all copies of a variable are."""
    mine, theirs = ([*model.variables, *model.optimizer.variables] for model in (one, two))
    for variable, other in zip(mine, theirs, strict=True):
        values = two._distribute_strategy.experimental_local_results(other.value)
        assert len(values) == 2
        for value in values:
            np.testing.assert_allclose(value, variable.numpy(), rtol=1e-4, atol=2e-6, err_msg=variable.path)


def assert_same_numbers(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


# === A step ===


@pytest.mark.parametrize("kind", ["plain", "hydra", pytest.param("trunk", marks=pytest.mark.slow)])
def test_two_replicas_train_as_one_does(make, batch, kind):
    # SGD shows a factor on the gradients. Every loss, every weighting, statistics of the whole batch.
    images, labels = batch(LABELS)
    teacher = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    targets = {
        "labels": labels,
        "sample_weight": np.linspace(0.5, 2, 8, dtype=np.float32),
        "teacher_logits": teacher,
        "teacher_weight": np.ones(8, np.float32),
    }
    settings = {"label_smoothing": 0.1, "distill_weight": 0.5, "distill_temperature": 2.0}
    if kind != "plain":
        settings |= {"gater_targets": "teacher", "branch_weight": 0.5}
    one, two = make(kind, **settings), make(kind, "mirrored", True, **settings)
    for model in (one, two):
        model.told = model.fit(images, targets, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    assert_same_numbers(*({name: values[-1] for name, values in m.told.items()} for m in (one, two)))
    assert_same_state(one, two)
    if kind == "hydra":  # the time of a test; the others evaluate
        return
    # 7 images in batches of 3: one of the last batch, which leaves a replica without any.
    few = {name: value[:7] for name, value in targets.items()}
    assert_same_numbers(
        *(m.evaluate(images[:7], few, batch_size=3, verbose=0, return_dict=True) for m in (one, two))
    )


def test_a_step_has_two_messages(make, batch, monkeypatch):
    sent = []
    all_reduce = tf.distribute.ReplicaContext.all_reduce
    monkeypatch.setattr(
        tf.distribute.ReplicaContext, "all_reduce", lambda *args: sent.append(1) or all_reduce(*args)
    )
    make("hydra", "mirrored").fit(*batch(LABELS), batch_size=8, verbose=0)
    assert len(sent) == 2 * 2  # of each replica, traced once


def test_statistics_of_replicas_are_averaged_over_the_images_that_each_saw(make, batch):
    images, labels = batch(LABELS)
    images[:4] //= 4  # the halves differ
    settings = {"rate": 1e-30, "top_k": 1, "tau": 0.0}
    two = make("hydra", "mirrored", **settings)
    two.fit(images, labels, batch_size=8, shuffle=False, verbose=0)

    halves, ran = [], []
    for half in (slice(0, 4), slice(4, 8)):
        model = make("hydra", **settings)
        before = {v.path: v.numpy() for v in model.non_trainable_variables}
        own = tf.one_hot(tf.gather(model.cluster_of_class, labels[half]), 3, True, False, dtype=tf.bool)
        ran.append(model.forward(images[half], 0.0, own=own).needed.numpy().sum(axis=0))
        model.fit(images[half], labels[half], batch_size=4, verbose=0)
        halves.append({v.path: v.numpy() for v in model.non_trainable_variables})
    ran = np.array(ran)  # (2, N)
    assert (ran.min(axis=0) == 0).any()  # a branch that one replica alone ran counts as it did there
    for variable in two.non_trainable_variables:
        path = variable.path
        weights = np.full(2, 0.5)
        if getattr(variable, "of_branches", False):
            weights = (ran / np.maximum(ran.sum(axis=0), 1)).reshape(2, 3, *[1] * (before[path].ndim - 1))
        expected = sum(w * (half[path] - before[path]) for w, half in zip(weights, halves, strict=True))
        for value in two._distribute_strategy.experimental_local_results(variable.value):
            np.testing.assert_allclose(value, before[path] + expected, rtol=1e-4, atol=1e-6, err_msg=path)


def test_replicas_draw_differently_and_stay_alike():
    strategy = distribution.open_strategy("mirrored")
    with strategy.scope():
        generator = keras.random.SeedGenerator(1)

    def step():
        with distribution.Moving([generator.state]) as moving:
            drawn = keras.random.uniform((3,), seed=generator)
        moving.send(tf.constant(4), None)
        moving.apply()
        return drawn

    first, second = strategy.experimental_local_results(
        strategy.run(tf.function(lambda: step()).python_function)
    )
    assert not np.allclose(first, second)
    states = [value.numpy().tolist() for value in strategy.experimental_local_results(generator.state.value)]
    assert states == [[1, 1], [1, 1]]


def test_a_batch_without_an_image_for_each_replica_is_refused(make, batch):
    images, labels = batch(LABELS)
    with pytest.raises(ValueError, match=r"must have an image for each device. Received: 0"):
        make("plain", "mirrored").fit(images[:1], labels[:1], verbose=0)


# === Evaluation ===


def test_tables_over_replicas_count_every_image_once(make, batch):
    images, labels = batch(LABELS)
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(3)  # 3 of them on 2 devices
    one, two = (evaluate(make("hydra", how), batches, [0.5]) for how in ("none", "mirrored"))
    assert two.labels.tolist() == LABELS
    for name in ("predicted", "top5", "active", "gate_choice", "used_in"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    np.testing.assert_allclose(one.loss, two.loss, rtol=1e-5)


# === The command ===


def test_a_batch_that_cannot_be_shared_is_refused_in_one_line(run_command, tmp_path, capsys):
    places = (f"--run_dir={tmp_path}/run", "--dataset=digits", "--image_size=8", "--num_branches=2")
    assert (
        run_command(train.main, Settings, *places, "--top_k=1", "--batch_size=5", "--distribute=mirrored")
        == 2
    )
    told, error = capsys.readouterr()
    assert told == "--distribute=mirrored: CPU:0, CPU:1\n"
    assert re.search(r"^error: batch_size must be a multiple of 2, .* Received: batch_size=5$", error, re.M)
    assert not (tmp_path / "run").exists()
    assert distribution.count_replicas(None) == 1
    with pytest.raises(UserError, match="--sync_batch_norm is for resnet"):
        parse(["--sync_batch_norm", "--backbone=MobileNetV2"])


def test_that_there_is_one_device_only_is_told(monkeypatch, capsys):
    devices = {"GPU": [], "CPU": tf.config.list_logical_devices("CPU")[:1]}
    monkeypatch.setattr(tf.config, "list_logical_devices", devices.__getitem__)
    monkeypatch.setattr(distribution, "_mirrored", lambda names: names)
    assert distribution.open_strategy("mirrored") == ("/device:CPU:0",)
    assert capsys.readouterr().out == "--distribute=mirrored: CPU:0, which is as without it\n"


@pytest.mark.slow
def test_a_run_on_two_devices_goes_on_with_one(run_command, tmp_path, capsys):
    def command(run, *arguments):
        places = (f"--run_dir={tmp_path}/{run}", f"--cache_dir={tmp_path}/cache")
        small = ("--dataset=digits", "--image_size=8", "--num_branches=2", "--top_k=1", "--batch_size=400")
        small += ("--feature_extractor=pixels", "--cutout=0", "--shift=0", "--ema_decay=0.9", "--depth=1")
        assert run_command(train.main, Settings, *places, *small, *arguments) is None

    command("two", "--distribute=mirrored", "--epochs=1")
    assert "1 done" not in capsys.readouterr().out
    command("two", "--epochs=2")
    command("one", "--epochs=2")
    runs = [FinishedRun.open(tmp_path / name) for name in ("one", "two")]
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert files[0] == files[1]
    assert [row["step"] for row in runs[1].metric_rows()] == [2, 4]
    model = keras.models.load_model(tmp_path / "two" / "model.keras")
    assert model._distribute_strategy is None
    assert runs[0].summary.keys() == runs[1].summary.keys()


@pytest.mark.parametrize("kind, momentum", [(SGD, {"momentum": 0.9}), (SGD, {}), (AdamW, {})])
def test_an_optimizer_takes_the_sum_of_the_gradients_of_two_replicas(kind, momentum):
    """Its state and every copy of a variable are as on one device; a variable may have no gradient."""
    mirrored = distribution.open_strategy("mirrored")

    def after_two_steps(strategy):
        with distribution.scope(strategy):
            variables = [keras.Variable(np.float32([1.0, 2.0])), keras.Variable(3.0), keras.Variable([[4.0]])]
            optimizer = kind(0.1, **momentum)
            optimizer.build(variables)

        @tf.function
        def step():
            share = 1.0
            if strategy:
                share = tf.constant([0.25, 0.75])[
                    tf.distribute.get_replica_context().replica_id_in_sync_group
                ]
            optimizer.apply([share * tf.constant([0.5, -1.0]), None, share * tf.constant([[2.0]])], variables)

        for _ in range(2):
            strategy.run(step) if strategy else step()
        return [variable.value for variable in [*variables, *optimizer.variables]]

    one, two = after_two_steps(None), after_two_steps(mirrored)
    for alone, copies in zip(one, map(mirrored.experimental_local_results, two), strict=True):
        assert len(copies) == 2
        for copy in copies:
            np.testing.assert_allclose(copy.numpy(), alone.numpy(), rtol=1e-6)
    assert two[2].numpy()[0, 0] < 3.9


@pytest.mark.parametrize("values", [[1.0, 2.0], [[1.0, 2.0]]])
def test_results_of_many_workers_and_of_one_are_unpacked(values):
    results = distribution.unpacking(lambda: {"loss,top1": tf.constant(values)})()
    assert {name: float(value) for name, value in results.items()} == {"loss": 1.0, "top1": 2.0}
