import csv
import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.backbones import ResNet
from dynkhydra_tf.benchmark import latency, timing
from dynkhydra_tf.benchmark.subjects import export_network
from dynkhydra_tf.data import load_data
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def hydra():
    keras.utils.set_random_seed(0)
    return Hydra(ResNet(1), np.arange(10) % 3, top_k=2, tau=0.3)


@pytest.fixture(scope="module")
def plain():
    keras.utils.set_random_seed(0)
    return Plain(ResNet(1), 10)


@pytest.fixture
def make_run(tmp_path, write_flags):
    """Returns a function that writes a run directory; its model is a file, or a trained one."""

    def make(name, *options, model=None):
        path = tmp_path / name
        write_flags(path, "--num_branches=3", "--top_k=2", *options)
        (path / "model.keras").write_text("no model") if model is None else model.save(path / "model.keras")
        return str(path)

    return make


@pytest.fixture
def command(run_command):
    def run(*arguments):
        # The test's own command line: runs first, then flags.
        runs = [argument for argument in arguments if not argument.startswith("--")]
        options = [argument for argument in arguments if argument.startswith("--")]
        return run_command(lambda values: latency.main(values, runs), latency.Options, *options)

    return run


# === Which runs ===


def test_runs_are_named_and_taken_once(make_run):
    a, b, c = make_run("x/a"), make_run("y/a"), make_run("c")
    runs = timing.open_runs([a, b, c, c + os.sep])
    assert list(runs) == [a, b, "c"]


def test_a_default_that_is_written_out_is_no_other_data_set(make_run):
    runs = [make_run("a"), make_run("b", "--image_size=32", "--validation_fraction=0.1", "--depth=3")]
    assert len(timing.open_runs(runs)) == 2


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--dataset=cifar100", "Received: dataset=digits in .*a, dataset=cifar100 in .*b"),
        ("--image_size=48", "Received: image_size=32 in .*a, image_size=48 in .*b"),
        ("--fit=crop", "fit=crop in .*b"),
    ],
)
def test_other_test_images(make_run, option, message):
    with pytest.raises(UserError, match=f"All runs must have the same test images. .*{message}"):
        timing.open_runs([make_run("a"), make_run("b", option)])


# === Accuracy ===


def test_accuracy_is_taken_from_the_evaluation_only_where_it_fits(make_run, hydra, digits):
    (run,) = timing.open_runs([make_run("run", model=hydra)]).values()
    row = {"tau": 0.3, "active_branches": 1.5, "top1": 0.25, "top5": 0.5, "flops": 7}
    written = {"model": str(run.path / "model.keras"), "dataset": "digits", "split": "test"}
    written |= {"tau_table": [row, row | {"tau": 0.5}]}
    path = run.path / "evaluation" / "evaluation.json"
    path.parent.mkdir()

    def rows(**changes):
        path.write_text(json.dumps(written | changes))
        return timing.accuracy_rows(run, hydra, digits, [0.3])

    assert rows() == [{"tau": 0.3, "active_branches": 1.5, "top1": 0.25, "flops": 7}]
    fresh = rows(split="train")
    assert fresh[0]["flops"] > 1e6 and 1 <= fresh[0]["active_branches"] <= 2
    assert rows(tau_table=[]) == fresh
    assert run.results_on("digits", "test") != {}
    rows(model=str(run.path / "flags.cfg"))
    assert run.results_on("digits", "test") == {}
    rows()
    later = path.stat().st_mtime + 10
    os.utime(run.path / "model.keras", (later, later))
    assert run.results_on("digits", "test") == {}


# === Time ===


def test_the_plain_network_of_equal_accuracy_by_hand():
    def row(tau, top1, ms, **other):
        common = {"runtime": "onnx", "batch_size": 1, "epochs": 12, "schedule": "linear"}
        return {**common, "tau": tau, "top1": top1, "ms": ms, **other}

    plain = [row(None, 0.5, 1.0), row(None, 0.6, 3.0), row(None, 0.55, 4.0), row(None, 0.7, 4.5)]
    others = [row(None, 0.9, 0.1, batch_size=8), row(None, 0.9, 0.1, runtime="tensorflow")]
    others += [row(None, 0.9, 0.1, epochs=6), row(None, 0.9, 0.1, schedule="cosine")]
    rows = [*plain, *others, row(None, 0.9, 0.1, train_images=25_000)]
    # A quarter of the way from 1 to 3 ms, half of that from 3 to 4.5; 0.55 at 4 ms nobody would take.
    for top1, expected in [
        (0.525, (1.5, 1.5)),
        (0.65, (3.75, 3.75)),
        (0.7, (4.5, 4.5)),
        (0.71, (4.5, None)),
        (0.4, (None, 1.0)),
    ]:
        hydra = row(0.1, top1, 2.0)
        assert latency.plain_of_equal_accuracy(hydra, [*rows, hydra]) == pytest.approx(expected), top1
    assert latency.plain_of_equal_accuracy(plain[1], rows) == (None, None)
    assert latency.plain_of_equal_accuracy(row(0.1, 0.6, 2.0), others) == (None, None)


def test_images_are_spread_over_the_split(digits):
    everything = np.concatenate([image[None] for image, _ in digits.examples("test").as_numpy_iterator()])
    images = timing.timed_images(digits, 1)
    assert len(images) == timing.IMAGES
    np.testing.assert_array_equal(images[0], everything[0])
    np.testing.assert_array_equal(images[-1], everything[-1])
    np.testing.assert_array_equal(images[1], everything[2])  # 598 / 255 = 2.3
    assert len(timing.timed_images(digits, 64)) == 512  # 8 requests
    assert len(timing.timed_images(digits, 299)) == 598
    with pytest.raises(UserError, match="--batch_sizes must be at most 299, half of the test images"):
        timing.timed_images(digits, 300)


def test_an_export_that_answers_otherwise_is_refused(plain, tmp_path, digits):
    export_network(plain, tmp_path / "export")
    images = timing.timed_images(digits, 8)[:16]
    right = tf.nn.softmax(plain(images)["logits"]).numpy()
    subject = timing.Subject((tmp_path / "export", "serving_default"), None, right)
    times = timing.measure({"plain": subject}, images, 8, 1, 0.0)
    assert 0 < times["plain"]["low"] <= times["plain"]["ms"] <= times["plain"]["high"]
    wrong = subject._replace(probabilities=right[::-1])
    with pytest.raises(UserError, match="The export of plain differs from its Keras model by"):
        timing.measure({"plain": wrong}, images, 8, 1, 0.0)


@pytest.mark.slow
def test_command(make_run, hydra, plain, command, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "IMAGES", 12)
    plain_run = make_run("plain", "--system=plain", model=plain)
    other_seed = make_run("plain_1", "--system=plain", "--seed=1", model=Plain(ResNet(1), 10))
    runs = make_run("hydra", model=hydra), plain_run, other_seed
    options = ("--taus=0,0.9", "--seconds=0", f"--output_dir={tmp_path}/out", "--batch_sizes=1,4")
    assert command(*runs, *options, "--runtimes=tensorflow,onnx,onnx_int8") is None
    printed = capsys.readouterr().out
    assert "digits, threads 1\nprocessor " in printed and "CPU ms  plain ms" in printed
    results = json.loads((tmp_path / "out" / "latency.json").read_text())
    assert (results["threads"], results["images"]) == (1, {"1": 12, "4": 32})
    kinds = [("hydra", 0.0), ("hydra", 0.3), ("hydra", 0.9), ("plain", None)]
    rows = results["rows"]
    assert [(row["batch_size"], row["runtime"], row["run"], row["tau"]) for row in rows] == [
        (size, runtime, *kind)
        for size in (1, 4)
        for runtime in ("tensorflow", "onnx", "onnx_int8")
        for kind in kinds
    ]
    assert (rows[0]["timed_active_branches"], rows[2]["timed_active_branches"]) == (2.0, 1.0)
    assert rows[3]["active_branches"] is None and rows[3]["flops"] < rows[2]["flops"] < rows[0]["flops"]
    assert all(0 < row["low"] <= row["ms"] <= row["high"] and 0 <= row["top1"] <= 1 for row in rows)
    assert (rows[0]["seeds"], rows[3]["seeds"]) == (1, 2)
    alone = [
        timing.accuracy_rows(run, run.load_model(), load_data("digits"), [])[0]["top1"]
        for run in timing.open_runs([plain_run, other_seed]).values()
    ]
    np.testing.assert_allclose(rows[3]["top1"], np.mean(alone))
    np.testing.assert_allclose(rows[3]["top1_deviation"], np.std(alone, ddof=1))
    with (tmp_path / "out" / "latency.csv").open(newline="") as file:
        assert [row["tau"] for row in csv.DictReader(file)] == ["0.0", "0.3", "0.9", ""] * 6
    # What int8 answers is measured on it.
    for exact, int8 in zip(rows[4:7], rows[8:11], strict=True):
        assert int8["seeds"] == 1 and abs(int8["top1"] - exact["top1"]) < 0.1
        assert int8["active_branches"] == pytest.approx(exact["active_branches"], abs=0.2)
    assert rows[11]["active_branches"] is None
    picture = (tmp_path / "out" / "latency.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    # Drawn again from the numbers alone.
    assert command(f"--redraw={tmp_path}/out/latency.json", f"--output_dir={tmp_path}/again") is None
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["latency.png"]
    assert (tmp_path / "again" / "latency.png").read_bytes() == picture


# === Bad input ===


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        (["nowhere"], [], "Cannot read the flags of a run from nowhere/flags.cfg"),
        (["no_model"], [], "no_model/model.keras is not there; a run has one after its last epoch"),
        (["a"], [], "a/model.keras cannot be loaded as a Keras model"),
        (["a"], ["--taus=1"], "taus must be numbers in [0, 1). Received: 1"),
        (["a"], ["--batch_sizes=0"], "batch_sizes"),
        (["a"], ["--runtimes=torch"], "runtimes"),
        ([], [], "Give runs to measure, or --redraw alone. Received: no run"),
        (["a"], ["--redraw=x"], "Give runs to measure, or --redraw alone. Received: a"),
        ([], ["--redraw=a/flags.cfg"], "--redraw=a/flags.cfg cannot be read"),
        (["a"], ["--output_dir=/proc/x"], "Cannot write to /proc"),
    ],
)
def test_bad_input(make_run, command, capsys, monkeypatch, tmp_path, runs, options, message):
    monkeypatch.chdir(tmp_path)
    make_run("a")
    os.remove(os.path.join(make_run("no_model"), "model.keras"))
    assert command(*runs, *options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["flags.cfg", "model.keras"]
