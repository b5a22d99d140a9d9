"""Every kind of file comes to the same pixels from each source and from a served model."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from dynkhydra_tf.data import load_data, preprocess
from dynkhydra_tf.data.headers import MAX_PIXELS
from dynkhydra_tf.serving.pictures import prepare_pictures
from tests.pictures import FILES, ORIENTATIONS, behind_other_segments, held, upright

KINDS = {name: file for name, (file, _) in FILES.items()}
KINDS |= {
    f"{kind} held {turn}": held(turn, kind) for kind in ("JPEG", "PNG", "WEBP") for turn in ORIENTATIONS
}
KINDS |= {f"late EXIF, held {turn}": behind_other_segments(held(turn)) for turn in ORIENTATIONS}
NAMES = sorted(KINDS)
SIZE = 24


class Kinds(tfds.core.GeneratorBasedBuilder):
    """The files as they are, each a class of its own."""

    VERSION = tfds.core.Version("1.0.0")
    FOLDER = None

    def _info(self):
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=NAMES)}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
        for number, name in enumerate(NAMES):
            yield number, {"image": self.FOLDER / split / name / "1.jpg", "label": name}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The files as an image folder and as a data set of tensorflow-datasets."""
    root = tmp_path_factory.mktemp("kinds")
    for split in ("train", "test"):
        for name, file in KINDS.items():
            (root / "folder" / split / name).mkdir(parents=True)
            (root / "folder" / split / name / "1.jpg").write_bytes(file)
    Kinds.FOLDER = root / "folder"
    Kinds(data_dir=root / "tfds").download_and_prepare()
    arguments = {"image_size": SIZE, "fit": "pad"}
    return {
        "folder": load_data("folder", root / "folder", cache_dir=root / "cache", **arguments),
        "tfds": load_data("tfds:kinds", root / "tfds", download=False, **arguments),
    }


@pytest.mark.parametrize("source", ["folder", "tfds"])
@pytest.mark.parametrize("access", ["in order", "at random"])
def test_training_and_serving_see_the_same(sources, source, access):
    data = sources[source]
    assert data.class_names == tuple(NAMES)
    if access == "in order":
        examples = data.examples("train")
    else:
        examples = tf.data.Dataset.range(len(NAMES)).map(data.fetch("train"))
    trained = {NAMES[label]: image for image, label in examples.as_numpy_iterator()}
    served, errors = prepare_pictures(tf.constant([KINDS[name] for name in NAMES]), SIZE, "pad", MAX_PIXELS)
    assert errors.numpy().tolist() == [b""] * len(NAMES)
    assert len(trained) == len(NAMES)
    for name, image in zip(NAMES, served.numpy(), strict=True):
        np.testing.assert_array_equal(trained[name], image, name)
        if "held" in name:
            np.testing.assert_array_equal(image, preprocess(upright(KINDS[name]), SIZE, "pad"), name)
