import csv

import numpy as np
import pytest
import tensorflow as tf
import threadpoolctl

from dynkhydra_tf.analysis.embedding import (
    Options,
    embed,
    main,
    means_of_classes,
    reduce_dimensions,
    sample_images,
)
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.partition import ClassPartition, Extractor, build_extractor
from dynkhydra_tf.partition.extractors import Network


@pytest.fixture(autouse=True)
def one_thread():
    """scikit-learn's threads wait for each other in a loop: minutes for a few points, on busy cores."""
    with threadpoolctl.threadpool_limits(1):
        yield


@pytest.fixture
def numbered():
    """300 images whose first pixel is their number, modulo 256; classes 0, 1, 2 in turn, but only two 2s."""
    labels = np.where((np.arange(300) % 3 == 2) & (np.arange(300) > 5), 0, np.arange(300) % 3)
    images = np.zeros((300, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(300) % 256
    return tf.data.Dataset.from_tensor_slices((images, labels.astype(np.int32)))


def test_a_sample_has_so_many_of_each_class(numbered):
    images, labels = sample_images(numbered, 3, 5, seed=0)
    assert labels.tolist() == [0] * 5 + [1] * 5 + [2] * 2
    numbers = images[:, 0, 0, 0]
    assert numbers[-2:].tolist() == [2, 5]
    of_one = numbers[labels == 1]
    assert len(set(of_one)) == 5 and all((n % 3 == 1) or ((n + 256) % 3 == 1) for n in of_one.astype(int))


def test_a_sample_depends_on_its_seed_alone_and_takes_all_alike(numbered):
    def numbers(seed):
        return sample_images(numbered, 3, 5, seed)[0][:, 0, 0, 0].tolist()

    assert numbers(1) == numbers(1) != numbers(2)
    # 60 draws of 20 images out of 100: as many of the first half as of the second, sd 0.013.
    numbered = numbered.take(100).map(lambda image, label: (image, 0)).cache()
    drawn = [sample_images(numbered, 1, 20, seed)[0][:, 0, 0, 0] for seed in range(60)]
    assert np.mean([(numbers < 50).mean() for numbers in drawn]) == pytest.approx(0.5, abs=0.06)


def test_features_are_the_extractors():
    images = np.random.default_rng(0).integers(0, 256, (21, 2, 2, 3), np.uint8)
    features = embed(build_extractor("pixels"), images, batch_size=8)
    np.testing.assert_allclose(features, images.reshape(21, -1) / 255, rtol=1e-6)
    broken = Extractor("broken", "broken", lambda: Network(None, lambda x: tf.reduce_mean(x, [1, 2]) / 0.0))
    with pytest.raises(UserError, match="broken gives features that are not finite"):
        embed(broken, np.zeros((2, 2, 2, 3), np.uint8))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_groups_stay_groups(dimensions):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 15)
    features = rng.normal(size=(45, 20)) + 30 * np.eye(20)[labels]
    points = reduce_dimensions(features, dimensions, seed=0)
    assert points.shape == (45, dimensions)
    distance = np.linalg.norm(points[:, None] - points, axis=-1) + np.where(np.eye(45), np.inf, 0)
    assert (labels[distance.argmin(axis=1)] == labels).mean() > 0.9


def test_means_by_hand():
    points = np.array([[0.0, 0.0], [2.0, 4.0], [5.0, 6.0]])
    means = means_of_classes(points, np.array([0, 0, 2]), 3)
    np.testing.assert_array_equal(means, [[1, 2], [np.nan, np.nan], [5, 6]])


# === The command ===


@pytest.fixture
def make_run(tmp_path, write_flags):
    """Returns a function that writes what the command reads of a run of digits."""

    def make(*arguments):
        run = tmp_path / "run"
        write_flags(run, "--feature_extractor=pixels", "--num_branches=5", *arguments)
        names = tuple(map(str, range(10)))
        ClassPartition("digits", names, np.arange(10) // 2, "random").save(run / "partition.json")
        return run

    return make


@pytest.fixture
def command(run_command):
    return lambda *arguments: run_command(main, Options, *arguments)


def test_command(command, make_run, tmp_path, capsys):
    run = make_run("--tau=0.1")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert command(f"--run_dir={run}", "--images_per_class=4", f"--output_dir={tmp_path}/out") is None
    assert "Features of 40 training images of digits by pixels" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "embedding.csv",
        "embedding_2d.png",
        "embedding_3d.png",
    ]
    with (out / "embedding.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["class", "cluster", "x_2d", "y_2d", "x_3d", "y_3d", "z_3d"]
    assert [(row["class"], row["cluster"]) for row in rows] == [(str(c), str(c // 2)) for c in range(10)]
    assert len({float(row["z_3d"]) for row in rows}) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give --run_dir=DIR, the run whose partition to look at"),
        (["--run_dir=nowhere"], "Cannot read the flags of a run from nowhere/flags.cfg"),
        (["--run_dir=run", "--feature_extractor=pixel"], "Did you mean pixels?"),
        (["--run_dir=run", "--images_per_class=0"], "images_per_class"),
        (["--run_dir=run", "--output_dir=/proc/x"], "give another --output_dir"),
    ],
)
def test_bad_input(command, make_run, monkeypatch, tmp_path, capsys, arguments, message):
    make_run()
    monkeypatch.chdir(tmp_path)
    assert command(*arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "run" / "evaluation").exists()


def test_a_plain_run_has_no_partition(command, make_run, capsys):
    run = make_run("--system=plain")
    assert command(f"--run_dir={run}") == 2
    assert "holds a plain network, which has no partition; give a run of a Hydra" in capsys.readouterr().err
