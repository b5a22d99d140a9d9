import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.backbones import ResNet
from dynkhydra_tf.costs import hydra_costs, inference_flops
from dynkhydra_tf.data import load_data
from dynkhydra_tf.evaluation import Options, _write_most_wrong, main
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.predictions import Predictions
from tests.conftest import ROOT


@pytest.fixture
def command(run_command):
    return lambda *arguments: run_command(main, Options, *arguments)


def test_command_on_a_keras_file(command, tmp_path, capsys):
    keras.utils.set_random_seed(0)
    model = Hydra(ResNet(1), np.arange(10) % 3, top_k=2)
    model.save(tmp_path / "m.keras")
    options = [f"--model={tmp_path}/m.keras", "--dataset=digits", f"--output_dir={tmp_path}/out"]
    assert command(*options, "--tau=0,0.5") is None
    printed = capsys.readouterr().out
    assert "on 599 images of digits/test, tau=0.08" in printed
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    flops = hydra_costs(model)["flops"]
    assert [row["tau"] for row in results["tau_table"]] == [0.0, 0.08, 0.5]
    assert results["tau_table"][0]["flops"] == inference_flops(flops, 2)
    lines = (tmp_path / "out" / "tau.csv").read_text().splitlines()
    assert lines[0] == "tau,active_branches,top1,top5,flops" and len(lines) == 4
    assert np.shape(results["confusion"]["gate"]) == (3, 3)
    rows = [(tmp_path / "out" / name).read_text().splitlines() for name in ("classes.csv", "pairs.csv")]
    assert rows[0][0] == "class,cluster,images,top1,top5,taken_for,taken_for_share" and len(rows[0]) == 11
    assert rows[1][0] == "class,taken_for,images,share,same_cluster" and len(rows[1]) > 2
    assert "worst classes" in printed and "worst pairs" in printed
    assert len(results["worst_classes"]) == 10 and results["worst_pairs"]
    assert len(results["most_wrong"]) == 24
    for name in ("tau.png", "branches.png", "confusion.png", "most_wrong.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_command_on_a_plain_network(command, tmp_path, capsys):
    model = Plain(ResNet(1), 10)
    model.save(tmp_path / "m.keras")
    options = [f"--model={tmp_path}/m.keras", "--dataset=digits", f"--output_dir={tmp_path}/out"]
    assert command(*options) is None
    printed = capsys.readouterr().out
    # d=1, ten classes: 17,399,808 up to the cut, 7,077,888 after it, 2 * 64 * 10 to classify.
    assert "24.5 MFLOPs an image, 0.08 M parameters" in printed and "tau" not in printed
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert results["flops"] == 17_399_808 + 7_077_888 + 1_280
    assert f"top-1 {results['top1']:.2%}, top-5 {results['top5']:.2%}" in printed
    written = ["classes.csv", "evaluation.json", "most_wrong.png", "pairs.csv"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written
    assert (tmp_path / "out" / "classes.csv").read_text().splitlines()[1].startswith("0,,59,")
    assert command(*options, "--tau=0.1") == 2
    assert "holds a plain network, which has no gate: leave --tau out" in capsys.readouterr().err


def test_the_sheet_shows_the_images_that_were_most_wrong(command, drawn, tmp_path):
    run = ROOT / "tests" / "made_by_0_1" / "plain"
    assert command(f"--run_dir={run}", f"--output_dir={tmp_path}") is None
    rows = json.loads((tmp_path / "evaluation.json").read_text())["most_wrong"]
    examples = list(load_data("digits").examples("test").as_numpy_iterator())
    (figure,) = drawn
    for axes, row in zip(figure.axes, rows, strict=False):
        image, label = examples[row["image"]]
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
        assert row["class"] == str(label) != row["taken_for"]
        assert axes.get_title() == f"{label}\nno. {row['image']}"
        assert axes.texts[0].get_text() == f"{row['taken_for']}\n{row['confidence']:.1%}"


def test_no_mistake_no_sheet(tmp_path):
    (tmp_path / "most_wrong.png").touch()  # of an evaluation before
    labels = np.array([0, 1])
    perfect = Predictions(labels, labels, labels == labels, np.ones(2), np.zeros(2))
    assert _write_most_wrong(perfect, None, "test", tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("system", ["hydra", "plain"])
def test_runs_of_version_0_1_evaluate_to_the_numbers_of_then(command, tmp_path, system):
    run = ROOT / "tests" / "made_by_0_1" / system
    taus = ["--tau=0,0.3"] if system == "hydra" else []
    assert command(f"--run_dir={run}", f"--output_dir={tmp_path}/out", *taus) is None
    places = (run / "evaluation", tmp_path / "out")
    then, now = (json.loads((place / "evaluation.json").read_text()) for place in places)
    assert then.keys() <= now.keys()

    def numbers(results):
        rows = results.get("tau_table", [])
        return [
            results["top1"],
            results["top5"],
            *(row[key] for row in rows for key in row if key != "flops"),
        ]

    # On another processor one image of 599 may fall on the other side of a threshold.
    assert numbers(now) == pytest.approx(numbers(then), abs=1.1 / 599)
    assert now.get("flops") == then.get("flops")


@pytest.fixture
def photos(tmp_path):
    """Returns a function that makes an image folder of black pictures, three of each of ten classes."""

    def make(class_names):
        picture = tf.io.encode_png(np.zeros((8, 8, 3), np.uint8)).numpy()
        for name in class_names:
            (tmp_path / "photos" / name).mkdir(parents=True)
            for number in range(3):
                (tmp_path / "photos" / name / f"{number}.png").write_bytes(picture)
        return [f"--data_dir={tmp_path}/photos", "--dataset=folder"]

    return make


@pytest.mark.parametrize("given", ["run_dir", "model"])
@pytest.mark.parametrize(
    ("class_names", "told"),
    [("abcdefghij", "gone: 10 of the classes"), ("012345678", "gone: 1 of the classes ('9')")],
)
def test_other_classes_are_refused(command, photos, tmp_path, capsys, given, class_names, told):
    run = shutil.copytree(ROOT / "tests" / "made_by_0_1" / "hydra", tmp_path / "run")
    which = [f"--run_dir={run}"] if given == "run_dir" else [f"--model={run}/model.keras"]
    out = f"--output_dir={tmp_path}/out"
    assert command(*which, *photos(class_names), out) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{run} was trained on other classes than those of folder: {told}" in error
    assert not (tmp_path / "out").exists()


def test_results_are_written_before_they_are_printed(command, tmp_path, monkeypatch):
    def closed(*text, **_):
        if "top-1" in text[0]:
            raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    with pytest.raises(BrokenPipeError):
        command(f"--run_dir={ROOT}/tests/made_by_0_1/plain", f"--output_dir={tmp_path}/out")
    written = ["classes.csv", "evaluation.json", "most_wrong.png", "pairs.csv"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written
    assert (tmp_path / "out" / "classes.csv").read_text().splitlines()[1].startswith("0,,59,")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Give --run_dir=DIR, or --model=FILE.keras with --dataset and --output_dir"),
        (["--run_dir=nowhere"], "Cannot read the flags of a run from nowhere/flags.cfg"),
        (["--model=no.keras", "--dataset=digits", "--output_dir=o"], "no.keras is not there"),
        (
            ["--run_dir=nowhere", "--tau=0,1"],
            "tau must be numbers in [0, 1). Received: 0.0,1.0",
        ),
        (["--run_dir=nowhere", "--tau=low"], "tau=low: it must be numbers, separated by commas"),
        (["--split=tset"], "tset"),
    ],
)
def test_bad_input(command, capsys, monkeypatch, tmp_path, options, message):
    monkeypatch.chdir(tmp_path)
    assert command(*options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert list(tmp_path.iterdir()) == []
