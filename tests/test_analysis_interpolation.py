import csv

import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf import figures
from dynkhydra_tf.analysis.interpolation import Options, interpolate, main
from dynkhydra_tf.backbones import ResNet
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.hydra import Hydra
from tests.conftest import coloured_images

ALPHAS = [0.0, 0.3, 1.0]


@pytest.fixture(scope="module")
def examples():
    """60 images, ten of each class."""
    return coloured_images(np.arange(60) % 6, seed=1)


def dataset(images, labels):
    return tf.data.Dataset.from_tensor_slices((images, labels))


@pytest.fixture(scope="module")
def result(trained, examples):
    """Between the branches 0 (classes 0, 1) and 2 (classes 4, 5)."""
    return interpolate(
        trained, 0, 2, ALPHAS, dataset(*examples), dataset(*coloured_images(np.arange(90) % 6))
    )


def direct(model, branch, head, images, labels):
    """Loss and accuracy of one trained branch by itself, by its own head or, for None, by the combiner."""
    projections = model.branches.branch(branch)(model.stem(model.normalize(images)))
    if head is None:
        logits = model.combiner(projections).numpy()
    else:
        pooled = projections.numpy().mean(axis=(1, 2))
        logits = pooled @ model.heads.kernel.value.numpy()[head] + model.heads.bias.value.numpy()[head]
    log_probability = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return (
        -log_probability[np.arange(len(labels)), labels].mean(),
        (logits.argmax(axis=1) == labels).mean(),
    )


@pytest.mark.parametrize(("alpha", "branch"), [(0, 0), (-1, 2)])
@pytest.mark.parametrize(("on", "classes"), [(0, (0, 1, 4, 5)), (1, (0, 1)), (2, (4, 5))])
def test_the_ends_are_the_trained_branches(trained, result, examples, alpha, branch, on, classes):
    images, labels = examples
    wanted = np.isin(labels, classes)
    assert result.readings == ("own head", "ensemble") and result.images == (20, 20)
    for reading, head in enumerate((branch, None)):
        loss, top1 = direct(trained, branch, head, images[wanted], labels[wanted])
        assert result.loss[reading, 1, alpha, on] == pytest.approx(loss, rel=1e-4)
        assert result.top1[reading, 1, alpha, on] == pytest.approx(top1)


def test_between_the_ends_weights_and_head_are_interpolated(trained, result, examples):
    images, labels = examples
    model = Hydra.from_config(trained.get_config())
    model.set_weights(trained.get_weights())
    for stack in (*model.branches.stacks, model.heads.kernel, model.heads.bias):
        values = stack.value.numpy()
        values[1] = 0.7 * values[0] + 0.3 * values[2]
        stack.assign(values)
    wanted = np.isin(labels, (0, 1, 4, 5))
    for reading, head in enumerate((1, None)):
        loss, _ = direct(model, 1, head, images[wanted], labels[wanted])
        assert result.loss[reading, 1, 1, 0] == pytest.approx(loss, rel=1e-4)


def test_statistics_are_those_of_the_training_images(trained, examples):
    # One batch of training images, on which the branch is then evaluated too: what it does in training.
    images, labels = coloured_images(np.array([0, 1, 4, 5] * 8))
    got = interpolate(trained, 0, 2, [0.0, 1.0], dataset(images, labels), dataset(images, labels))
    features = trained.stem(trained.normalize(images))
    for end, index in enumerate((0, 2)):
        logits = trained.combiner(trained.branches.branch(index)(features, training=True))
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits).numpy().mean()
        # The batch's variance is divided by n, the moving one by n - 1 = 127.
        assert got.loss[1, 0, end, 0] == pytest.approx(loss, rel=5e-3)
        assert abs(got.loss[1, 1, end, 0] - loss) > 2e-2 * loss  # the test can tell the two apart


def test_statistics_are_pooled_over_batches(trained, examples, monkeypatch):
    # The tiny branch normalises but once, so that batches pool to what one batch gives, but for n / (n - 1).
    training = dataset(*coloured_images(np.arange(96) % 6))
    whole = interpolate(trained, 0, 2, [0.5], dataset(*examples), training)
    monkeypatch.setattr("dynkhydra_tf.analysis.interpolation.BATCH_SIZE", 24)
    parts = interpolate(trained, 0, 2, [0.5], dataset(*examples), training)
    np.testing.assert_allclose(parts.loss[:, 0], whole.loss[:, 0], rtol=1e-2)
    np.testing.assert_allclose(parts.loss[:, 1], whole.loss[:, 1], rtol=1e-5)


def test_the_other_way_round_it_is_the_same(trained, result, examples):
    training = dataset(*coloured_images(np.arange(90) % 6))
    back = interpolate(trained, 2, 0, [0.0, 0.7, 1.0], dataset(*examples), training)
    swapped = [0, 2, 1]  # both, first, second
    np.testing.assert_allclose(back.loss[:, :, ::-1][..., swapped], result.loss, rtol=1e-4)
    np.testing.assert_allclose(back.top1[:, :, ::-1][..., swapped], result.top1, atol=0.051)


def test_the_model_stays_as_it_is(trained, examples):
    before = trained.get_weights()
    interpolate(trained, 0, 1, [0.5], dataset(*examples), dataset(*examples))
    for value, now in zip(before, trained.get_weights(), strict=True):
        np.testing.assert_array_equal(value, now)


def test_rows_and_hill(result):
    rows = result.rows()
    assert len(rows) == 2 * 2 * 3
    row = rows[4]
    assert (row["reading"], row["statistics"], row["alpha"]) == ("own head", "interpolated", 0.3)
    assert row["loss_second"] == result.loss[0, 1, 1, 2] and row["top1_first"] == result.top1[0, 1, 1, 1]
    loss = result.loss[1, 0, :, 0]
    assert result.hill[1, 0] == max(loss) - max(loss[0], loss[2])


def test_without_heads_the_ensemble_reads(make_hydra, examples, tmp_path):
    model = make_hydra(branch_weight=0.0)
    found = interpolate(model, 0, 1, ALPHAS, dataset(*examples), dataset(*examples))
    assert found.readings == ("ensemble",) and found.loss.shape == (1, 2, 3, 3)
    # An image that selects that one branch gets the same logits from the model itself.
    images, labels = examples
    own = np.isin(labels, (0, 1, 2, 3))
    forward = model.forward(images[own], 0.0, own=tf.ones((own.sum(), 3), tf.bool))
    only = tf.one_hot(tf.zeros(own.sum(), tf.int32), 3) > 0
    logits = model.logits_of(forward.routes, forward.gate, only)
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels[own], logits).numpy().mean()
    assert found.loss[0, 1, 0, 0] == pytest.approx(loss, rel=1e-4)
    figures.save_interpolation(found, [["$a", "b$"], ["x_"], ["y"]], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_bad_arguments(trained, examples):
    everything = dataset(*examples)
    for pair in ((1, 1), (0, 3)):
        with pytest.raises(ValueError, match=r"must be two branches in 0\.\.2"):
            interpolate(trained, *pair, ALPHAS, everything, everything)
    of_first = everything.filter(lambda image, label: label < 2)
    with pytest.raises(UserError, match="branch 2 has no image to evaluate on"):
        interpolate(trained, 0, 2, ALPHAS, of_first, everything)
    with pytest.raises(UserError, match="branch 2 has no image to estimate from"):
        interpolate(trained, 0, 2, ALPHAS, everything, of_first)


# === The command ===


@pytest.fixture
def make_run(tmp_path, write_flags):
    """Returns a function that writes what the command reads of a run of digits."""

    def make(*arguments, model=True):
        run = tmp_path / "run"
        write_flags(run, "--num_branches=3", "--top_k=2", *arguments)
        if model:
            Hydra(ResNet(1), np.arange(10) % 3, top_k=2).save(run / "model.keras")
        return run

    return make


@pytest.fixture
def command(run_command):
    return lambda *arguments: run_command(main, Options, *arguments)


def test_command(command, make_run, tmp_path, capsys):
    run = make_run()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    options = [f"--run_dir={run}", f"--output_dir={tmp_path}/out", "--branches=2,0", "--points=3"]
    assert command(*options) is None
    printed = capsys.readouterr().out
    assert printed.startswith(f"run, 190 epochs, piecewise: {run}/model.keras on digits/test")
    assert "branch 2, " in printed and "2, 5, 8" in printed and "loss both" in printed
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    with (tmp_path / "out" / "interpolation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["alpha"] for row in rows] == ["0.0", "0.5", "1.0"] * 4
    assert float(rows[0]["loss_both"]) > 0
    assert (tmp_path / "out" / "interpolation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give --run_dir=DIR, the run whose branches to look at"),
        (["--run_dir=nowhere"], "Cannot read the flags of a run from nowhere/flags.cfg"),
        (["--run_dir=run"], "model.keras is not there; a run has one after its last epoch"),
        (["--run_dir=run", "--points=1"], "points"),
        (["--run_dir=run", "--branches=1,1"], "--branches must be two different numbers in 0..2"),
        (["--run_dir=run", "--branches=a,b"], "--branches=a,b: it must be whole numbers"),
    ],
)
def test_bad_input(command, make_run, monkeypatch, tmp_path, capsys, arguments, message):
    make_run(model=False)
    monkeypatch.chdir(tmp_path)
    assert command(*arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize("branches", ["", "1", "0,3", "0,1,2"])
def test_bad_branches(command, make_run, capsys, branches):
    run = make_run(model=False)
    (run / "model.keras").write_bytes(b"not looked at yet")
    assert command(f"--run_dir={run}", f"--branches={branches}") == 2
    message = f"--branches must be two different numbers in 0..2, such as 0,1. Received: {branches or 'none'}"
    assert message in capsys.readouterr().err


def test_a_plain_run_has_no_branches(command, make_run, capsys):
    run = make_run("--system=plain", model=False)
    assert command(f"--run_dir={run}") == 2
    assert "holds a plain network, which has no branches; give a run of a Hydra" in capsys.readouterr().err


def test_a_damaged_model(command, make_run, capsys):
    run = make_run(model=False)
    (run / "model.keras").write_bytes(b"damaged")
    assert command(f"--run_dir={run}") == 2
    assert "model.keras cannot be loaded as a Keras model" in capsys.readouterr().err
