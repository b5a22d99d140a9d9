"""Image folders from the files on the disk to batches, and to the commands."""

import json
import os
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf import evaluation, export, train
from dynkhydra_tf.data import evaluation_batches, load_data, open_data, training_batches
from dynkhydra_tf.data.sources.folder.source import FolderSource
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.flags import parse
from dynkhydra_tf.partition.class_means import class_means
from dynkhydra_tf.settings import Settings

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}
# Of the kinds that keep colours to a level or two on a picture of one colour.
ENCODERS = {"jpg": tf.io.encode_jpeg, "png": tf.io.encode_png}


@pytest.fixture
def make(tmp_path):
    """Returns a function that makes a folder of pictures of one colour, of mixed sizes and kinds.

    Every picture has the number of the file in it, as the level that it adds to its colour.
    """

    def make(counts, name="photos"):
        for place, count in counts.items():
            folder = tmp_path / name / place
            folder.mkdir(parents=True)
            for number in range(count):
                shape = (5 + number % 7, 4 + number % 5, 3)
                picture = np.full(shape, COLOURS[place.split("/")[-1]], np.uint8)
                ending = "png" if number % 3 else "jpg"
                (folder / f"{number}.{ending}").write_bytes(ENCODERS[ending](picture).numpy())
        return tmp_path / name

    return make


@pytest.fixture
def load(tmp_path):
    """Returns a function that opens a folder, 8 px, with a cache of its own."""

    def load(root, **arguments):
        arguments = {"image_size": 8, "fit": "stretch", "cache_dir": str(tmp_path / "cache"), **arguments}
        return load_data("folder", str(root), **arguments)

    return load


def contents(data, split):
    """Images and labels of a split; checks that each image has the colour of its class."""
    images, labels = data.examples(split).batch(data.sizes[split]).get_single_element()
    colours = np.array([COLOURS[name] for name in data.class_names])[labels.numpy()]
    assert np.abs(images.numpy() - colours[:, None, None]).max() < 8
    return images.numpy(), labels.numpy()


def test_a_folder_is_divided_in_each_class_and_told(make, load, capsys):
    root = make({"red": 20, "green": 10, "blue": 5})
    data = load(root)
    assert data.class_names == ("blue", "green", "red")
    assert data.sizes == {"train": 28, "validation": 0, "test": 7}
    assert Counter(contents(data, "train")[1].tolist()) == {0: 4, 1: 8, 2: 16}
    assert Counter(contents(data, "test")[1].tolist()) == {0: 1, 1: 2, 2: 4}
    assert f"{root}: 35 images of 3 classes, 28 for train, 7 for test" in capsys.readouterr().out
    np.testing.assert_allclose(data.mean, contents(data, "train")[0].mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.std, contents(data, "train")[0].std((0, 1, 2)), rtol=1e-6)
    # The classes are mixed, for whoever takes the first few.
    assert len(set(contents(data, "train")[1][:10].tolist())) == 3


def test_the_draw_is_the_same_and_a_new_image_hardly_changes_it(make, load):
    root = make({"red": 20, "green": 10, "blue": 5})

    def test_files(**arguments):
        source = FolderSource(root, cache_dir=root.parent / "cache", **arguments)
        return set(source._paths[source._members["test"]].tolist())

    before = test_files()
    assert test_files() == before
    assert len(test_files(test_fraction=0.5)) == 18
    assert test_files(test_fraction=0.5) > before
    (root / "red" / "new.jpg").write_bytes((root / "red" / "0.jpg").read_bytes())
    assert len(test_files() - before) <= 1


def test_own_splits_are_kept(make, load):
    counts = {"train/red": 6, "train/blue": 5, "val/red": 3, "val/blue": 2, "test/red": 1, "test/blue": 4}
    data = load(make(counts))
    assert data.sizes == {"train": 11, "validation": 5, "test": 5}
    for split, reds in (("train", 6), ("validation", 3), ("test", 1)):
        assert contents(data, split)[1].sum() == reds
    (batch,) = evaluation_batches(data, "validation", 8)
    assert batch[1].numpy().sum() == 3
    with pytest.raises(UserError, match=r"folder has validation images of its own.*validation_fraction=0\.1"):
        load(data.source._root, validation_fraction=0.1)
    data = load(make({"train/red": 3, "train/blue": 3, "val/red": 2, "val/blue": 1}, name="two"))
    assert data.sizes == {"train": 6, "validation": 0, "test": 3}


def test_validation_is_held_out_of_training(make, load):
    data = load(make({"red": 25, "blue": 25}), validation_fraction=0.25)
    assert data.sizes == {"train": 30, "validation": 10, "test": 10}
    assert Counter(contents(data, "validation")[1].tolist()) == {0: 5, 1: 5}
    assert Counter(contents(data, "train")[1].tolist()) == {0: 15, 1: 15}


def test_a_tenth_is_held_out_unless_it_is_said_how_many(make, load, capsys):
    data = load(make({"red": 25, "blue": 25}), validation_fraction=None)
    assert data.sizes == {"train": 36, "validation": 4, "test": 10}
    assert "Training images a class: 20 (of 'blue') to 20, median 20" in capsys.readouterr().out
    few = load(make({"red": 3, "blue": 2}, "few"), validation_fraction=None)  # a tenth of them is none
    assert few.sizes == {"train": 4, "validation": 0, "test": 1}
    own = {f"{split}/{name}": 9 for split in ("train", "val", "test") for name in ("red", "blue")}
    assert load(make(own, "own"), validation_fraction=None).sizes["validation"] == 18
    assert open_data(parse(["--dataset=digits"]).data).sizes["validation"] == 0


def test_the_content_of_a_split_changes_with_its_files_size_and_members(make, load):
    root = make({"red": 10, "blue": 10})
    content = load(root).content("train")
    assert load(root).content("train") == content != load(root).content("test")
    assert load(root, image_size=9).content("train") != content
    assert load(root, fit="pad").content("train") != content
    assert load(root, validation_fraction=0.5).content("train") != content
    other = ENCODERS["png"](np.full((6, 6, 3), COLOURS["red"], np.uint8)).numpy()
    (root / "red" / "1.png").write_bytes(other)
    assert load(root).content("train") != content


def test_an_unbalanced_folder_tells_its_poorest_class(make, load, capsys):
    load(make({"red": 100, "green": 1, "blue": 30}), validation_fraction=None)
    assert "Training images a class: 1 (of 'green') to 80, median 24" in capsys.readouterr().out


def test_from_memory_and_from_disk_training_sees_the_same(make, load):
    root = make({"red": 12, "green": 9, "blue": 4})
    seen = []
    for cache, done in (("memory", 0), ("none", 0), ("none", 3)):
        batches = training_batches(
            load(root, cache=cache), 6, 2, 0, lambda images, seed: images, initial_step=done
        )
        assert batches.element_spec[0] == tf.TensorSpec((6, 8, 8, 3), tf.uint8)
        seen.append([(images.numpy().tobytes(), labels.numpy().tolist()) for images, labels in batches])
    assert len(seen[0]) == 6
    assert seen[0] == seen[1]
    assert seen[0][3:] == seen[2]


def test_bad_images_stop_the_run_or_are_left_out_by_name(make, load, capsys):
    root = make({"red": 10, "blue": 10})
    (root / "red" / "cut.jpg").write_bytes((root / "red" / "0.jpg").read_bytes()[:-40])
    (root / "blue" / "notes.jpg").write_text("nothing")
    named = "blue/notes.jpg (not JPEG, PNG, GIF, BMP or WebP), red/cut.jpg (damaged or cut off)"
    for most in (0, 1):
        with pytest.raises(UserError) as caught:
            load(root, max_bad_images=most)
        message = str(caught.value)
        assert message.startswith(f"2 of the files in {root} cannot be read as images: {named}. Mend them")
        assert message.endswith("leave them out with --max_bad_images=2") and "\n" not in message
    data = load(root, max_bad_images=2)
    assert data.sizes["train"] + data.sizes["test"] == 20
    printed = capsys.readouterr().out
    for line in named.split("), "):
        assert f"  {line.rstrip(')')})\n" in printed


def test_what_is_left_out_is_told(make, load, capsys):
    root = make({"train/red": 5, "train/blue": 5, "val/red": 2, "test/red": 1})
    (root / "train" / "red" / "boxes.txt").touch()
    (root / "val" / "red").rename(root / "val" / "images")
    load(root)
    printed = capsys.readouterr().out
    assert f"Left out: 2 images of {root}/val, which is flat" in printed
    assert "Passed over: 1 files that are no pictures, such as train/red/boxes.txt" in printed


def test_a_table_of_labels_is_part_of_what_is_trained_on(make, load, tmp_path):
    root = make({"red": 4, "blue": 4})
    for place in root.iterdir():
        for file in place.iterdir():
            file.rename(root / f"{place.name}{file.name}")
        place.rmdir()
    table = tmp_path / "labels.csv"

    def write(**of_red):
        rows = [(file.name, "red" if file.name.startswith("red") else "blue") for file in root.iterdir()]
        table.write_text(
            "\n".join(["file,label", *(f"{name},{of_red.get(name[:4], label)}" for name, label in rows)])
        )
        return load(root, labels=str(table))

    data = write()
    assert data.class_names == ("blue", "red") and data.sizes["train"] + data.sizes["test"] == 8
    contents(data, "train")
    assert write().fingerprint == data.fingerprint
    assert write(red0="blue").fingerprint != data.fingerprint
    with pytest.raises(UserError, match=r"labels are for --dataset=folder; digits has its own"):
        load_data("digits", labels=str(table))


def test_a_folder_whose_name_is_not_utf_8_works(make, load, capsys):
    root = make({"red": 5, "blue": 5})
    renamed = root.rename(os.fsdecode(os.fsencode(root.parent) + b"/caf\xe9"))
    data = load(renamed)
    assert data.sizes == {"train": 8, "validation": 0, "test": 2}
    contents(data, "train")
    assert "caf\\xe9: 10 images of 2 classes" in capsys.readouterr().out


def test_many_bad_images_are_counted(make, load):
    root = make({"red": 2, "blue": 2})
    for number in range(14):
        (root / "red" / f"bad{number}.jpg").touch()
    with pytest.raises(UserError, match=r"^14 of the files.*bad5\.jpg \(empty\) and 4 more\. Mend"):
        load(root)


def test_a_class_with_one_image_is_trained_with_it(make, load):
    data = load(make({"red": 1, "blue": 9}))
    assert Counter(contents(data, "train")[1].tolist()) == {0: 7, 1: 1}
    assert contents(data, "test")[1].tolist() == [0, 0]


def test_too_few_images_are_refused(make, load):
    with pytest.raises(UserError, match=r"photos has too few images, 2, to take some for testing: put more"):
        load(make({"red": 1, "blue": 1}))
    root = make({"red": 5, "blue": 0}, name="other")
    (root / "blue" / "1.jpg").touch()
    with pytest.raises(UserError, match=r"other has no image to train class 'blue' with: put some in"):
        load(root, max_bad_images=1)
    with pytest.raises(UserError, match=r"test_fraction must be above 0 and below 1\. Received: 1"):
        load(root, test_fraction=1)


@pytest.mark.slow
def test_folders_of_other_images_have_class_means_of_their_own(make, load, tmp_path):
    class Brightness:
        name, identity = "brightness", "brightness"

        def load(self):
            pass

        def __call__(self, images):
            return tf.reduce_mean(tf.cast(images, tf.float32), axis=(1, 2))

    def means(data):
        return class_means(data, Brightness(), tmp_path / "means", progress=False)

    one, two = (make({"red": 30, "blue": 30}, name=name) for name in ("one", "two"))
    kept = means(load(one))
    assert (means(load(two)) == kept).all()
    # One image that is not among the first is exchanged for one of another colour and the same size.
    source = load(two).source
    last = two / source._paths[source._members["train"][-1]].decode()
    last.write_bytes(tf.io.encode_png(np.full((6, 6, 3), 77, np.uint8)).numpy())
    assert not np.allclose(means(load(two)), kept)
    assert len(list((tmp_path / "means").iterdir())) == 2


@pytest.mark.slow
def test_train_evaluate_and_export_a_folder(make, run_command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = make({"red": 12, "green": 12, "blue": 12})
    (root / "red").rename(root / 'röd, "x" 猫')
    (root / "blue" / "bad.jpg").touch()
    data = ["--dataset=folder", "--data_dir=photos", "--image_size=16", "--fit=crop", "--max_bad_images=1"]
    data += [
        "--test_fraction=0.25",
        "--validation_fraction=0.2",
        f"--cache_dir={tmp_path}/cache",
        "--cache=none",
    ]
    model = [
        "--schedule=cosine",
        "--num_branches=3",
        "--top_k=2",
        "--feature_extractor=pixels",
        "--cutout=0",
        "--warmup_epochs=0",
    ]
    command = (train.main, Settings, *data, *model, "--batch_size=8")
    assert run_command(*command, "--epochs=1") is None
    run = tmp_path / "runs" / "photos"
    assert "36 images of 3 classes, 27 for train, 9 for test" in capsys.readouterr().out
    assert json.loads((run / "partition.json").read_text(encoding="utf-8"))["class_names"] == [
        "blue",
        "green",
        'röd, "x" 猫',
    ]
    (run / "summary.json").unlink()  # as if it had not finished
    (root / "green" / "new.png").write_bytes((root / "green" / "1.png").read_bytes())
    assert run_command(*command, "--epochs=1") == 2
    assert "was trained on other images" in capsys.readouterr().err
    (root / "green" / "new.png").unlink()
    # From memory or from the disk, a run goes on.
    assert run_command(*command, "--epochs=1", "--cache=memory") is None
    assert "going on after step 2" in capsys.readouterr().out

    assert run_command(evaluation.main, evaluation.Options, f"--run_dir={run}") is None
    printed = capsys.readouterr().out
    assert "on 9 images of folder/test" in printed and 'röd, "x" 猫' in printed
    results = json.loads((run / "evaluation" / "evaluation.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert results["top1"] == pytest.approx(summary["top1"])

    options = [
        f"--run_dir={run}",
        f"--export_dir={tmp_path}/served",
        "--batch_sizes=1",
        "--max_accuracy_drop=5",
    ]
    assert run_command(export.main, export.Options, *options) is None
    assert "On the validation split" in capsys.readouterr().out
    served = tf.saved_model.load(str(tmp_path / "served" / "1")).signatures["image_bytes"]
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200  # all that the fit of this run, crop, leaves
    square = tf.io.encode_png(wide[:, 8:16]).numpy()
    answers = [
        served(image_bytes=tf.constant([file]))["probabilities"].numpy()
        for file in (tf.io.encode_png(wide).numpy(), square)
    ]
    np.testing.assert_allclose(*answers, atol=1e-6)
