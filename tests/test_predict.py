"""Photo files through networks: `predict`, and `classify` in Python."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf import cli
from dynkhydra_tf import predict as command
from dynkhydra_tf.data.decoding import decode_picture
from dynkhydra_tf.data.preprocessing import preprocess
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.serving import native
from dynkhydra_tf.serving.formats.saved_model import write_version
from tests.conftest import ROOT, TinyBackbone, coloured_images, to_serve

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox, ü")
GOOD = ("a.png", "b.jpg", "c/d.bmp", "e.png")


@pytest.fixture(scope="module")
def model(trained):
    """A Hydra that knows its classes."""
    model = Hydra.from_config({**trained.get_config(), "class_names": NAMES, "picture_fit": "pad"})
    model.set_weights(trained.get_weights())
    return model


@pytest.fixture(scope="module")
def place(model, tmp_path_factory):
    """A folder: photos of several sizes and kinds in photos/, two that are none; networks; an export."""
    path = tmp_path_factory.mktemp("place")
    (path / "photos" / "c").mkdir(parents=True)
    images, _ = coloured_images([0, 2, 4, 3])
    for name, image in zip(GOOD, np.repeat(images, 2, axis=2), strict=True):
        encode = tf.io.encode_jpeg if name.endswith("jpg") else tf.io.encode_png
        (path / "photos" / name).write_bytes(encode(image).numpy())  # a .bmp that is a PNG will do
    (path / "photos" / "broken.png").write_bytes((path / "photos" / "a.png").read_bytes()[:60])
    (path / "photos" / "d.jpg").write_text("no photo")
    model.save(path / "hydra.keras")
    Plain(TinyBackbone(), 6, class_names=NAMES, picture_fit="crop").save(path / "plain.keras")
    Plain(TinyBackbone(), 6).save(path / "nameless.keras")
    newest, first = path / "export" / "2", path / "export" / "1"
    newest.mkdir(parents=True)
    write_version(to_serve(model, NAMES, "pad", top_classes=3), newest)
    shutil.copytree(newest, first)
    signatures = json.loads((first / native.SIGNATURES).read_text())
    for name in ("top_class_ids", "top_labels", "top_probabilities"):
        del signatures["image_bytes"]["outputs"][name]
    (first / native.SIGNATURES).write_text(json.dumps(signatures))
    return path


@pytest.fixture
def predict(place, monkeypatch, capsys):
    """Returns a function that runs the command in `place`: its exit status, stdout and stderr."""
    monkeypatch.chdir(place)

    def run(*arguments):
        status = None
        try:
            cli.run(command.main, command.Options, ["predict", *arguments], positional="photos")
        except SystemExit as leaving:
            status = leaving.code
        return status, *capsys.readouterr()

    return run


def expected(model, place, tau=None):
    """{photo: (probabilities (M,), branches)} by the model itself."""
    found = {}
    for name in GOOD:
        picture = decode_picture((place / "photos" / name).read_bytes())
        outputs = model(preprocess(picture, 8, model.picture_fit)[None], tau=tau)
        branches = np.flatnonzero(outputs["selected"][0]).tolist()
        found[f"photos/{name}"] = tf.nn.softmax(outputs["logits"])[0].numpy(), branches
    return found


# === In Python ===


def test_a_saved_model_classifies_files_by_itself(model, place):
    again = keras.models.load_model(place / "hydra.keras")
    paths = [place / "photos" / name for name in ("broken.png", *GOOD, "d.jpg", "gone.jpg")]
    answers = again.classify(paths, top=2, batch_size=3)
    assert [answer.path for answer in answers] == [str(path) for path in paths]
    told = ["damaged or cut off", "not JPEG, PNG, GIF, BMP or WebP", "No such file or directory"]
    assert [answer.problem for answer in answers] == [told[0], None, None, None, None, *told[1:]]
    assert (answers[0].label, answers[0].probability, answers[0].branches) == (None, None, None)
    for answer, (probabilities, branches) in zip(answers[1:5], expected(model, place).values(), strict=True):
        order = np.argsort(-probabilities)[:2]
        assert [label for label, _ in answer.top] == [NAMES[index] for index in order]
        assert [value for _, value in answer.top] == pytest.approx(probabilities[order], abs=1e-6)
        assert (answer.label, list(answer.branches)) == (NAMES[order[0]], branches)
    assert again.classify([]) == []
    for tau, count in ((0.0, 2), (0.9, 1)):  # a new tau counts at once; 2 is top_k
        again.tau = tau
        assert len(again.classify(paths[1:2])[0].branches) == count


def test_what_a_model_is_not_told_it_cannot_say(place):
    model = keras.models.load_model(place / "nameless.keras")
    with pytest.raises(UserError, match=r"does not know its class names.*class_names=None, picture_fit=None"):
        model.classify([place / "photos" / "a.png"])
    with pytest.raises(UserError, match="paths must be a list of files"):
        keras.models.load_model(place / "plain.keras").classify("photos/a.png")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"class_names": ["a"]}, r"class_names must be 6 str. Received: class_names=\['a'\]"),
        ({"class_names": range(6)}, "class_names must be 6 str"),
        ({"picture_fit": "squeeze"}, "picture_fit must be one of stretch, pad, crop. Received: picture_fit="),
    ],
)
def test_wrong_names_and_fits_are_refused(given, told):
    with pytest.raises(ValueError, match=told):
        Plain(TinyBackbone(), 6, **given)


# === The command ===


def test_a_folder_as_json(model, place, predict):
    status, out, err = predict("--model=hydra.keras", "photos", "--json", "--top=3", "gone.jpg")
    rows = json.loads(out)
    assert [row["file"] for row in rows] == [f"photos/{name}" for name in GOOD]
    for row, (probabilities, branches) in zip(rows, expected(model, place).values(), strict=True):
        assert (row["label"], row["branches"]) == (NAMES[probabilities.argmax()], branches)
        assert row["probability"] == pytest.approx(probabilities.max(), abs=1e-6)
        assert [best["probability"] for best in row["top"]] == sorted(probabilities.round(6))[:-4:-1]
    assert status == 1
    assert [line.partition(":")[0] for line in err.splitlines()] == [
        "gone.jpg",
        "photos/broken.png",
        "photos/d.jpg",
        "error",
    ]
    assert err.endswith("error: 3 of 7 could not be read\n")


def test_csv_at_another_tau(model, place, predict):
    status, out, _ = predict("photos/a.png", "--csv", "--tau=0", "--model=hydra.keras", "--batch_size=1")
    (row,) = csv.DictReader(io.StringIO(out))
    probabilities, branches = expected(model, place, tau=0.0)["photos/a.png"]
    assert status is None
    assert row["branches"] == " ".join(map(str, branches))
    assert float(row["probability"]) == pytest.approx(probabilities.max(), abs=1e-6)
    assert list(row)[:6] == ["file", "label", "probability", "branches", "label_2", "probability_2"]
    assert len(row) == 4 + 2 * 4


def test_a_plain_network_has_no_branches(place, predict, monkeypatch):
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(b"photos/c\n")))
    status, out, err = predict("--model=plain.keras", "-", "--top=1")
    assert (status, err) == (None, "")
    lines = out.splitlines()
    assert lines[0].split() == ["photo", "class", "probability", "branches", "next"]
    assert lines[2].startswith("photos/c/d.bmp") and lines[2].endswith("%  -")
    assert json.loads(predict("--model=plain.keras", "photos/c", "--json")[1])[0].keys() == {
        "file",
        "label",
        "probability",
        "top",
    }


def test_a_run_of_version_0_1_tells_the_names_that_its_model_lacks(place, predict):
    old = place / "old"
    shutil.copytree(ROOT / "tests" / "made_by_0_1" / "plain", old)
    by_run = predict(f"--run_dir={old}", "photos/a.png", "--json")
    assert by_run[0] is None and json.loads(by_run[1])[0]["label"] in set("0123456789")
    assert predict(f"--model={old}/model.keras", "photos/a.png", "--json") == by_run


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["photos"], "Give one of --run_dir=DIR, --model=FILE.keras and --model_dir=DIR/VERSION"),
        (["--model=hydra.keras", "--run_dir=x", "photos"], "Give one of --run_dir"),
        (["--model=hydra.keras"], "There are no photos: name them"),
        (["--model=hydra.keras", "gone"], "There are no photos. gone: no such file or folder"),
        (["--model=hydra.keras", "photos", "--csv", "--json"], "Give one of --json and --csv"),
        (["--model=nameless.keras", "photos"], "does not know its class names, and lies in no run"),
        (["--model=plain.keras", "--tau=0.1", "photos"], "plain.keras holds a plain network, which has no"),
        (["--model_dir=export/1", "--tau=0.1", "photos"], "An export has a tau of its own"),
        (["--model_dir=export/1", "--top=2", "photos"], "export/1 names 1 of the classes: leave --top=2 out"),
        (["--model_dir=photos", "photos"], "photos holds no saved_model.pb"),
    ],
)
def test_bad_input_is_one_line(predict, arguments, told):
    status, out, err = predict(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err


# === An export ===


@pytest.mark.parametrize(("export", "top"), [("export/1", 1), ("export", 3)])  # a version, and the latest one
def test_an_export_says_the_same(model, place, predict, export, top):
    status, out, err = predict(f"--model_dir={export}", "photos", "--json", "--batch_size=3")
    assert status == 1
    for row, (probabilities, branches) in zip(json.loads(out), expected(model, place).values(), strict=True):
        order = np.argsort(-probabilities)[:top]
        assert [best["label"] for best in row["top"]] == [NAMES[index] for index in order]
        assert [best["probability"] for best in row["top"]] == pytest.approx(probabilities[order], abs=1e-4)
        assert row["branches"] == branches
    assert [line.partition(":")[0] for line in err.splitlines()][:2] == ["photos/broken.png", "photos/d.jpg"]
    assert "{{" not in err


def test_an_export_needs_no_tensorflow_in_python(place):
    script = (
        "import runpy, sys\n"
        "sys.argv = ['predict', '--model_dir=export/2', 'photos/a.png']\n"
        "runpy.run_module('dynkhydra_tf.predict', run_name='__main__')\n"
        "print({'keras', 'tensorflow', 'sklearn', 'matplotlib'} & set(sys.modules) or 'none')"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=place, env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "none", done.stderr[-2000:]
    assert "photos/a.png" in done.stdout
    assert not done.stderr
