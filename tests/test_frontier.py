"""The frontier from the command to the page, on a tiny network and tiny images."""

import json

import keras
import numpy as np
import pytest
from PIL import Image

from dynkhydra_tf import cli
from dynkhydra_tf.frontier import __main__ as frontier
from dynkhydra_tf.frontier import candidates
from dynkhydra_tf.runs import FinishedRun
from tests.test_backbones_cut_network import small

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of two colours, 10 of each, and a network for them."""
    root = tmp_path_factory.mktemp("frontier")
    rng = np.random.default_rng(0)
    for label, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
        directory = root / "photos" / label
        directory.mkdir(parents=True)
        for number in range(10):
            pixels = np.clip(rng.normal(colour, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(directory / f"{number}.png")
    keras.utils.set_random_seed(0)
    small(size=16).save(root / "small.keras")
    return root


def arguments(folder, *more):
    flagfile = folder / "photos.cfg"
    flagfile.write_text(
        "--dataset=folder\n--image_size=16\n--validation_fraction=0.25\n--epochs=1\n--batch_size=8\n"
        "--cutout=0\n--schedule=cosine\n--warmup_epochs=0\n--optimizer=sgd\n--feature_extractor=pixels\n"
        f"--backbone={folder}/small.keras\n--cache_dir={folder}/cache\n--data_dir={folder}/photos\n"
    )
    own = (f"--output_dir={folder}/out", "--seconds=0", "--taus=0.9")
    return ["frontier", f"--flagfile={flagfile}", *own, *more]


def run(folder, *more):
    cli.run(frontier.main, frontier.Options, arguments(folder, *more), "flags", 0, pass_on=True)


@pytest.mark.slow
def test_from_the_command_to_the_page(folder, capsys, monkeypatch):
    monkeypatch.setattr(candidates, "TAIL_WIDTHS", (0.5,))
    run(folder)
    text = capsys.readouterr().out
    found = json.loads((folder / "out" / "frontier.json").read_text())
    names = [(point["network"], point["tau"]) for point in found["points"]]
    assert names == [
        ("linear head", None),
        ("plain, width 0.5", None),
        ("Hydra", 0.08),
        ("Hydra", 0.9),
    ]
    assert found["images"] == {"train": 12, "validation": 4, "test": 4}
    for point in found["points"]:
        assert 0 <= point["low"] <= point["top1"] <= point["high"] <= 1
        assert 0 < point["ms_low"] <= point["ms"] <= point["ms_high"]
    assert found["points"][1]["flops"] < found["points"][0]["flops"]
    chosen = found["points"][found["chosen"]]
    assert f"Its run: {chosen['run_dir']}" in text and found["export"] in text
    assert FinishedRun.open(chosen["run_dir"]).load_model().num_classes == 2
    assert "<img" in (folder / "out" / "frontier.html").read_text()

    # Killed before the last one had finished: the others stay as they are.
    (folder / "out" / "hydra" / "summary.json").unlink()
    before = (folder / "out" / "plain-0.5" / "model.keras").stat().st_mtime
    run(folder, "--budget_ms=0.0001")
    text = capsys.readouterr().out
    assert "[1/3] Hydra, seed 0, goes on: " in text and "[2/3] plain, width 0.5, seed 0, is trained: " in text
    assert (folder / "out" / "plain-0.5" / "model.keras").stat().st_mtime == before
    assert "Recommended: none, nothing answers within 0.0001 ms; the fastest is" in text


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--budget_ms=0", "budget_ms must be above 0"),
        ("--validation_fraction=0", "give --validation_fraction=0.1"),
        ("--backbone=resnet", "for networks of Keras. Received: --backbone=resnet"),
        ("--no_such_flag=1", "no_such_flag"),
        ("--run_dir=x", "--run_dir is what the frontier sets"),
        ("--backbone=none.keras", "No backbone file at none.keras"),
        ("--cut=nowhere", "cannot be cut at 'nowhere'"),
    ],
)
def test_bad_input_is_told_before_the_images_are_looked_at(folder, flag, message, capsys):
    with pytest.raises(SystemExit) as leaving:
        run(folder, flag, f"--output_dir={folder}/never", f"--cache_dir={folder}/never")
    assert leaving.value.code == 2
    told = capsys.readouterr()
    assert message in told.err and "Looking at" not in told.out
    assert not (folder / "never").exists()
