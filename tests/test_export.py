"""export.py and `verify` as a user runs them, on a run directory."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import types

import keras
import numpy as np
import pytest

from dynkhydra_tf import Hydra, ResNet, export
from dynkhydra_tf.partition import ClassPartition
from dynkhydra_tf.serving import native, verify
from dynkhydra_tf.serving.drift import load_validation
from dynkhydra_tf.serving.formats import FORMATS
from dynkhydra_tf.serving.tau_times import load_taus
from tests.conftest import ROOT, TinyBackbone

CLUSTERS = tuple(int(c) for c in np.arange(10) % 3)
MADE_BY_0_1 = ROOT / "tests" / "made_by_0_1"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A finished run on digits, of a network that was not trained."""
    directory = tmp_path_factory.mktemp("run")
    keras.utils.set_random_seed(0)
    Hydra(ResNet(1, image_size=32), CLUSTERS, top_k=2, tau=0.3).save(directory / "model.keras")
    ClassPartition("digits", tuple("0123456789"), CLUSTERS, "random", seed=0).save(
        directory / "partition.json"
    )
    flags = ["--dataset=digits", "--num_branches=3", "--top_k=2", "--tau=0.3", "--validation_fraction=0.1"]
    (directory / "flags.cfg").write_text("\n".join(flags))
    return directory


@pytest.fixture
def command(run_command):
    return lambda *arguments: run_command(export.main, export.Options, *arguments)


@pytest.fixture
def verified(run_command):
    return lambda *arguments: run_command(verify.main, verify.Options, *arguments)


def entries(path):
    return sorted(entry.name for entry in path.iterdir())


@pytest.mark.slow
def test_two_versions_and_what_lies_beside_them(command, verified, run_dir, tmp_path, capsys):
    options = [f"--run_dir={run_dir}", f"--export_dir={tmp_path}/out/digits"]
    assert command(*options, "--top_classes=3", "--batch_sizes=1,4") is None
    printed = capsys.readouterr().out
    assert "tau 0.3: the run's own" in printed and f"Written: {tmp_path}/out/digits/1" in printed
    out = tmp_path / "out" / "digits"
    assert entries(out) == ["1", "batching_parameters.txt", "models.config", "monitoring.config"]
    assert 'name: "digits"' in (out / "models.config").read_text()
    card = (out / "1" / "model_card.md").read_text()
    for text in (
        "# digits",
        "Threshold tau: 0.3",
        "by `stretch`",
        "Measured on the validation split",
        "- 0: 0, 3, 6, 9",
    ):
        assert text in card
    assert "| 0.3 (served) |" in card
    # What a request costs at each threshold, and what the model did on the validation images.
    assert "| tau | lambda | top-1 | ms, 1 in a request | ms, 16 in a request |" in card
    reference = out / "1" / "assets.extra" / "reference.json"
    rows = load_taus(reference)
    assert (rows[0]["tau"], rows[0]["active_branches"]) == (0, 2) and 0.3 in [row["tau"] for row in rows]
    assert all(row["ms"]["16"] > 0 and row["ms"]["1"] > 0 for row in rows)
    histograms = load_validation(reference)
    (served,) = (row for row in rows if row["tau"] == 0.3)
    images = sum(histograms.classes.values())
    branches = sum(count * number for count, number in histograms.active_branches.items())
    assert set(histograms.classes) == set("0123456789") and sum(histograms.gate.values()) == images > 50
    assert branches / images == pytest.approx(served["active_branches"])

    assert command(*options, "--tau=0.1234", "--name=mine") is None
    assert "1" in entries(out) and "2" in entries(out)
    assert "| 0.1234 (served) |" in (out / "2" / "model_card.md").read_text()
    assert 'name: "mine"' in (out / "models.config").read_text()

    capsys.readouterr()
    assert verified(f"--model_dir={out}/1") is None
    assert capsys.readouterr().out.count("ok") == 6
    # The answers of another tau: the answers differ, and it says so.
    reference = out / "2" / "assets.extra" / "reference.json"
    record = json.loads((out / "1" / "assets.extra" / "reference.json").read_text())
    reference.write_text(json.dumps(record))
    assert verified(f"--model_dir={out}/2") == 1
    assert "DIFFERS" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--target_active_branches=1.5", "the lowest with lambda at most 1.5"),
        pytest.param(
            "--max_accuracy_drop=0.5",
            "the highest at most 0.5 points below the best top-1",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_tau_is_picked_on_the_validation_split(command, run_dir, tmp_path, capsys, option, reason):
    out = tmp_path / "digits"
    assert command(f"--run_dir={run_dir}", f"--export_dir={out}", option, "--batch_sizes=1") is None
    printed = capsys.readouterr().out
    assert "On the validation split" in printed and reason in printed
    tau = float(printed.split("\ntau ")[-1].split(":")[0])
    card = (out / "1" / "model_card.md").read_text()
    assert f"Threshold tau: {tau:g}, {reason}" in card and f"| {tau:g} (served) |" in card
    # And that is the one that is served.
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    with native.SavedModel(out / "1") as served:
        own = served.run({"images": images})
        given = served.run({"images": images, "tau": np.full(8, tau, np.float32)}, "with_tau")
    np.testing.assert_array_equal(own["gate"], given["gate"])
    np.testing.assert_array_equal(own["active_branches"], given["active_branches"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Give --run_dir=DIR of a finished run, and --export_dir=DIR"),
        (["--run_dir=nowhere", "--export_dir=out"], "Cannot read the flags of a run from nowhere/flags.cfg"),
        (["--run_dir=RUN", "--export_dir=out", "--format=onyx"], "onyx"),
        (["--run_dir=RUN", "--export_dir=out", "--tau=1"], "tau must be in [0, 1). Received: 1.0"),
        (["--run_dir=RUN", "--export_dir=out", "--tau=nan"], "tau must be in [0, 1). Received: nan"),
        (["--run_dir=RUN", "--export_dir=out", "--tau=0.1", "--max_accuracy_drop=1"], "Give one of --tau"),
        (["--run_dir=RUN", "--export_dir=out", "--target_active_branches=0.5"], "must be at least 1"),
        (["--run_dir=RUN", "--export_dir=out", "--top_classes=11"], "top_classes must be in 0..10"),
        (["--run_dir=RUN", "--export_dir=out", "--batch_sizes=4,2"], "batch_sizes must rise"),
        (["--run_dir=RUN", "--export_dir=out", "--quantize=float16"], "saved_model does not take quantize"),
        (
            ["--run_dir=RUN", "--export_dir=out", "--format=onnx", "--top_classes=2"],
            "does not take top_classes",
        ),
        (["--run_dir=RUN", "--export_dir=out", "--name=a:b"], "name must be printable, without / and :"),
        (["--run_dir=RUN", "--export_dir=/proc/out"], "Cannot write to /proc"),
        (["--run_dir=UNFINISHED", "--export_dir=out"], "a run has one after its last epoch"),
        (["--run_dir=BROKEN", "--export_dir=out"], "cannot be loaded as a Keras model"),
        (["--run_dir=NO_VALIDATION", "--export_dir=out", "--max_accuracy_drop=1"], "held out no validation"),
        (
            ["--run_dir=PLAIN", "--export_dir=out", "--tau=0.1"],
            "a plain network, without a gate: leave --tau out",
        ),
        (["--run_dir=PLAIN", "--export_dir=out", "--max_accuracy_drop=1"], "leave --max_accuracy_drop out"),
        (
            ["--run_dir=RUN", "--export_dir=out", "--exit_confidence=0.5"],
            "no network with an exit: leave --exit",
        ),
        (["--run_dir=RUN", "--export_dir=out", "--max_exit_drop=1", "--exit_confidence=1"], "Give one of"),
        (
            ["--run_dir=RUN", "--export_dir=out", "--max_exit_drop=1", "--calibration_split=test"],
            "never on the test images",
        ),
        (["--run_dir=OTHER_ORDER", "--export_dir=out", "--max_accuracy_drop=1"], "trained on other classes"),
        (["--run_dir=FEWER", "--export_dir=out", "--target_active_branches=1"], "trained on other classes"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    command, run_dir, capsys, monkeypatch, tmp_path, options, message
):
    monkeypatch.chdir(tmp_path)
    runs, names = tmp_path / "runs", ("UNFINISHED", "BROKEN", "NO_VALIDATION", "OTHER_ORDER", "FEWER")
    for name in names:
        (runs / name).mkdir(parents=True)
        (runs / name / "partition.json").write_text((run_dir / "partition.json").read_text())
        (runs / name / "flags.cfg").write_text("--dataset=digits\n")
    (runs / "BROKEN" / "model.keras").write_bytes(b"PK no archive")
    for name in ("NO_VALIDATION", "OTHER_ORDER"):
        os.link(run_dir / "model.keras", runs / name / "model.keras")
    ClassPartition("digits", tuple("9876543210"), CLUSTERS, "random", seed=0).save(
        runs / "OTHER_ORDER" / "partition.json"
    )
    ClassPartition("digits", tuple("012345678"), CLUSTERS[:9], "random", seed=0).save(
        runs / "FEWER" / "partition.json"
    )
    Hydra(TinyBackbone(), CLUSTERS[:9], top_k=2).save(runs / "FEWER" / "model.keras")
    paths = {"RUN": run_dir, "PLAIN": MADE_BY_0_1 / "plain", **{name: runs / name for name in names}}
    for name, path in paths.items():
        options = [option.replace(f"={name}", f"={path}") for option in options]
    assert command(*options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert entries(tmp_path) == ["runs"]


def test_without_the_data_the_card_has_no_table(command, run_dir, tmp_path, capsys):
    other = tmp_path / "run"
    other.mkdir()
    for name in ("model.keras", "partition.json"):
        os.link(run_dir / name, other / name)
    (other / "flags.cfg").write_text(f"--dataset=cifar100\n--data_dir={tmp_path}/no_data\n")
    assert command(f"--run_dir={other}", f"--export_dir={tmp_path}/out", "--batch_sizes=1") is None
    assert "No tau table in the model card" in capsys.readouterr().out
    assert "by tau" not in (tmp_path / "out" / "1" / "model_card.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("format", ["litert", "onnx"])
def test_formats_for_devices(command, run_dir, tmp_path, capsys, format):
    pytest.importorskip({"litert": "ai_edge_litert", "onnx": "tf2onnx"}[format])
    out = tmp_path / "a" / "edge"
    assert command(f"--run_dir={run_dir}", f"--export_dir={out}", f"--format={format}", "--tau=0.1") is None
    assert entries(out) == sorted([FORMATS[format].FILE, "labels.txt", "model_card.md"])
    assert (out / "labels.txt").read_text().splitlines() == list("0123456789")
    assert "not JPEG or PNG bytes" in capsys.readouterr().out


def test_a_plain_run_of_version_0_1_is_exported_and_verified(command, verified, tmp_path, capsys):
    out = tmp_path / "digits"
    options = [f"--run_dir={MADE_BY_0_1}/plain", f"--export_dir={out}", "--batch_sizes=1"]
    assert command(*options, '--name=my "x"') is None
    assert "its answers through TensorFlow's C API are within" in capsys.readouterr().out
    card = (out / "1" / "model_card.md").read_text()
    for text in (
        '# my "x"',
        "A plain classifier of 10 classes for images of 32 x 32 pixels",
        "Parameters: 75,770. MFLOPs of an image: 24.5.",
        "Data set digits, 3 epochs, seed 1.",
        "On the test split: top-1 34.06%, top-5 86.81%.",
        "0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    ):
        assert text in card
    assert not {"tau", "branch"} & set(card.split())
    assert verified(f"--model_dir={out}/1") is None
    assert capsys.readouterr().out.count("ok") == 3


def test_a_hydra_run_of_version_0_1_is_exported_with_the_numbers_of_then(command, tmp_path, capsys):
    run, out = MADE_BY_0_1 / "hydra", tmp_path / "digits"
    options = [f"--run_dir={run}", f"--export_dir={out}", "--batch_sizes=1", "--tau=0.3"]
    assert command(*options) is None
    assert "its answers through TensorFlow's C API are within" in capsys.readouterr().out
    card = (out / "1" / "model_card.md").read_text()
    assert "On the test split at tau 0.08, that of the run: top-1 94.16%" in card
    line = next(line for line in card.splitlines() if line.startswith("| 0.3 (served) |"))
    shown = [float(text.strip(" %")) for text in line.split("|")[2:-1]]
    then = json.loads((run / "evaluation" / "evaluation.json").read_text())["tau_table"][-1]
    names = {"active_branches": 1, "top1": 100, "top5": 100, "flops": 1e-6}
    wanted = [then[name] * scale for name, scale in names.items()]
    assert then["tau"] == 0.3
    # On another processor one image of 599 may fall on the other side of a threshold.
    assert shown == pytest.approx(wanted, abs=0.18)


def test_an_export_of_version_0_1_answers_its_reference_requests(verified, capsys):
    assert verified(f"--model_dir={MADE_BY_0_1}/served/digits/1") is None
    printed = capsys.readouterr().out
    assert printed.count("ok") == 5 and "DIFFERS" not in printed


def test_a_new_format_takes_a_module_and_an_entry(run_command, tmp_path, capsys, monkeypatch):
    def convert(served, directory):
        (directory := pathlib.Path(directory)).mkdir()
        weights = [weight.tolist() for weight in served.model.get_weights()]
        (directory / toy.FILE).write_text(json.dumps({"weights": weights, "names": served.class_names}))
        return f"{toy.FILE}: {served.model.num_classes} classes"

    toy = types.SimpleNamespace(FILE="model.json", OPTIONS=(), convert=convert, check_installed=lambda: None)
    monkeypatch.setitem(FORMATS, "toy", toy)
    with_toy = importlib.util.module_from_spec(export.__spec__)
    with_toy.__spec__.loader.exec_module(with_toy)

    def export_toy(*options):
        options = [f"--run_dir={MADE_BY_0_1}/plain", f"--export_dir={tmp_path}/out", "--format=toy", *options]
        return run_command(with_toy.main, with_toy.Options, *options)

    assert export_toy("--top_classes=2") == 2
    assert "toy does not take top_classes" in capsys.readouterr().err
    assert export_toy() is None
    assert capsys.readouterr().out == "model.json: 10 classes\n"
    assert len(json.loads((tmp_path / "out" / "model.json").read_text())["names"]) == 10


def test_a_missing_extra_is_told_before_any_work(command, run_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    monkeypatch.setattr(export, "FinishedRun", None)
    assert command(f"--run_dir={run_dir}", f"--export_dir={tmp_path}/out", "--format=onnx") == 2
    assert "pip install -e '.[onnx]'" in capsys.readouterr().err
    assert entries(tmp_path) == []


def test_it_needs_no_matplotlib():
    # Keras loads it where it is installed, so it is taken away here.
    script = "import runpy, sys\nsys.modules['matplotlib'] = None\nsys.argv = ['export.py', '--help']\n"
    script += "runpy.run_path('export.py', run_name='__main__')\n"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "--export_dir" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("format", ["saved_model", pytest.param("litert", marks=pytest.mark.slow)])
def test_a_full_disk(command, run_dir, tmp_path, capsys, format):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", disk], check=False).returncode
    ):
        pytest.skip("only root can mount a small disk")
    try:
        assert command(f"--run_dir={run_dir}", f"--export_dir={disk}/digits", f"--format={format}") == 2
        left = entries(disk)
    finally:
        subprocess.run(["umount", disk], check=True)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "No space left" in error
    assert left == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Give --model_dir=DIR/VERSION"),
        (["--model_dir=nowhere"], "cannot be read"),
        (
            ["--model_dir=x", "--url=http://localhost:1/v1/models/m", "--grpc=h:1", "--model=m"],
            "Give either --url",
        ),
        (["--model_dir=x", "--grpc=h:1"], "or --grpc with --model"),
    ],
)
def test_verify_bad_input(verified, capsys, options, message):
    assert verified(*options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_exit_confidence_is_picked_and_served(command, verified, run_dir, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "partition.json").write_text((run_dir / "partition.json").read_text())
    (run / "flags.cfg").write_text((run_dir / "flags.cfg").read_text() + "\n--trunk")
    keras.utils.set_random_seed(0)
    model = Hydra(ResNet(1, image_size=32), CLUSTERS, top_k=2, tau=0.3, trunk=True)
    model.save(run / "model.keras")
    options = [f"--run_dir={run}", f"--export_dir={tmp_path}/out/digits", "--batch_sizes=1"]
    assert command(*options, "--max_exit_drop=100") is None
    assert "exit confidence 0.2: the lowest at most 100 points below" in capsys.readouterr().out
    version = tmp_path / "out" / "digits" / "1"
    card = (version / "model_card.md").read_text()
    for text in (
        "- Exit confidence: 0.2,",
        "| 0.2 (served) |",
        "| 0.3 (served) |",
        "or none where it is sure before",
    ):
        assert text in card
    with native.SavedModel(version) as served:
        # What serving_default does is what 0.2 does, and there are exits.
        images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
        model.exit_confidence = 0.2
        expected = np.sum(model(images)["selected"], axis=1)
        assert not expected.all()
        np.testing.assert_array_equal(served.run({"images": images})["active_branches"], expected)
    assert verified(f"--model_dir={version}") is None
