"""What the tests share: a backbone small enough to trace in seconds, and models of it."""

import collections
import dataclasses
import io
import pathlib
import pickle
import re
import subprocess
import sys

import dynkhydra_tf  # noqa: F401 - first, for it sets what TensorFlow reads when it is imported

# isort: split
import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf import cli, flags, meter, progress
from dynkhydra_tf.backbones import Backbone
from dynkhydra_tf.backbones.blocks import ConvBN
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.serving.served_model import ServedModel

ROOT = pathlib.Path(__file__).parents[1]
# Two devices for tests of tf.distribute; all else runs on the first, as if there were no other.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@dataclasses.dataclass(frozen=True)
@keras.saving.register_keras_serializable("tests")
class TinyBackbone(Backbone):
    """One convolution for each part, on 8x8 images: (8,8,3) -> stem (4,4,4) -> projection (2,2,6)."""

    channels: int = 6

    @property
    def input_shape(self):
        return (8, 8, 3)

    def stem(self, dtype=None):
        return keras.Sequential([ConvBN(4, 3, strides=2, dtype=dtype, name="conv")], name="stem")

    def branch(self, dtype=None):
        return keras.Sequential(
            [ConvBN(self.channels, 3, strides=2, dtype=dtype, name="conv")], name="branch"
        )

    def gater_trunk(self, dtype=None):
        return keras.Sequential([ConvBN(5, 3, strides=2, dtype=dtype, name="conv")], name="gater_trunk")

    def trunk(self, dtype=None):
        return keras.Sequential([ConvBN(self.channels, 3, strides=2, dtype=dtype, name="conv")], name="trunk")

    def plain(self, dtype=None):
        layers = [ConvBN(4, 3, strides=2, dtype=dtype), ConvBN(self.channels, 3, strides=2, dtype=dtype)]
        return keras.Sequential(layers, name="plain")


@pytest.fixture
def make_hydra():
    """Returns a factory of small models: 6 classes, classes 0 1 | 2 3 | 4 5 on three branches."""

    def make(**settings):
        keras.utils.set_random_seed(settings.pop("seed", 0))
        settings = {"cluster_of_class": (0, 0, 1, 1, 2, 2), "top_k": 2, **settings}
        return Hydra(TinyBackbone(), **settings)

    return make


@pytest.fixture
def fix_gate():
    """Returns a function that makes a model's gater give every image the same probabilities."""

    def fix(model, probabilities):
        dense = model.gater.layers[-1]
        dense.set_weights([np.zeros_like(dense.kernel), np.log(np.asarray(probabilities, np.float32))])

    return fix


@pytest.fixture
def batch():
    """Returns a function giving random images (B,8,8,3) uint8 and the labels it was given."""

    def make(labels, seed=0):
        labels = np.asarray(labels, np.int32)
        images = np.random.default_rng(seed).integers(0, 256, (len(labels), 8, 8, 3), np.uint8)
        return images, labels

    return make


@pytest.fixture
def write_flags():
    """Returns a function that makes a directory a run of digits with the flags given: its flags.cfg."""

    def write(path, *arguments):
        settings = flags.parse(["--dataset=digits", *arguments])
        path.mkdir(parents=True)
        (path / "flags.cfg").write_text(flags.to_flagfile(settings))

    return write


@pytest.fixture
def run_command():
    """Returns a function that runs a command in this process: its exit status, None where it ends well."""

    def run(main, options, *arguments):
        try:
            cli.run(main, options, ["command", *arguments])
        except SystemExit as leaving:
            return leaving.code

    return run


@pytest.fixture(scope="session")
def trained():
    """A TinyBackbone model that was trained for a few steps: its normalisation statistics are its own.

    Each class has a colour. Use, don't change.
    """
    keras.utils.set_random_seed(0)
    model = Hydra(TinyBackbone(), (0, 0, 1, 1, 2, 2), top_k=2, tau=0.2, combine="gate_weighted")
    model.compile(keras.optimizers.AdamW(1e-2))
    images, labels = coloured_images(np.arange(600) % 6)
    model.fit(images, labels, batch_size=20, epochs=3, verbose=0)
    return model


def coloured_images(labels, seed=0):
    """Noisy images (B,8,8,3) uint8 of the colours of their classes 0..5, and the labels."""
    labels = np.asarray(labels, np.int32)
    rng = np.random.default_rng(seed)
    colours = np.array(
        [[200, 40, 40], [200, 120, 40], [40, 200, 40], [40, 200, 160], [40, 40, 200], [160, 40, 200]]
    )
    noise = rng.normal(0, 50, (len(labels), 8, 8, 3))
    return np.clip(colours[labels][:, None, None] + noise, 0, 255).astype(np.uint8), labels


def assert_random_access_agrees(source, split, indices):
    """Checks that a source's random access gives the examples that reading gives."""
    read = list(source.read(split).take(max(indices) + 1).as_numpy_iterator())
    fetched = tf.data.Dataset.from_tensor_slices(np.array(indices)).map(source.fetch(split))
    for index, (image, label) in zip(indices, fetched.as_numpy_iterator(), strict=True):
        assert (image == read[index][0]).all()
        assert label == read[index][1]


def to_serve(model, class_names=("a", "b", "c", "d", "e", "ü f"), fit="stretch", **settings):
    """The `ServedModel` of a model at its own tau, if it has one, or with other settings."""
    settings = {"name": "model", "tau": getattr(model, "tau", None), **settings}
    return ServedModel(model=model, class_names=class_names, fit=fit, **settings)


def executed_ops(directory, signature, inputs):
    """How often TensorFlow executes each kind of op for a request: a Counter, by its own trace."""
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(directory)).signature_def[signature]
        feed = {loaded.inputs[name].name: value for name, value in inputs.items()}
        options = tf.compat.v1.RunOptions(trace_level=tf.compat.v1.RunOptions.SOFTWARE_TRACE)
        metadata = tf.compat.v1.RunMetadata()
        session.run([output.name for output in loaded.outputs.values()], feed, options, metadata)
    nodes = [node for device in metadata.step_stats.dev_stats for node in device.node_stats]
    return collections.Counter(re.search(r" = (\w+)\(", node.timeline_label)[1] for node in nodes)


@pytest.fixture
def answer_natively(tmp_path):
    """Returns a function that answers requests with an export in a process without Python's TensorFlow."""

    def answer(model_dir, requests):
        asked, answered = tmp_path / "requests.pickle", tmp_path / "answers.pickle"
        asked.write_bytes(pickle.dumps(requests))
        native = ROOT / "dynkhydra_tf" / "serving" / "native.py"
        script = ROOT / "tests" / "native_process.py"
        done = subprocess.run(
            [sys.executable, script, native, model_dir, asked, answered],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return pickle.loads(answered.read_bytes())

    return answer


@pytest.fixture
def drawn(monkeypatch):
    """Returns the list of the figures that are saved."""
    from dynkhydra_tf.figures import style

    saved, save = [], style.save
    monkeypatch.setattr(style, "DPI", 40)  # faster
    monkeypatch.setattr(style, "save", lambda figure, path: (saved.append(figure), save(figure, path)))
    return saved


def overlapping(texts):
    """Whether any two of the texts do."""
    boxes = [text.get_window_extent() for text in texts]
    return any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])


class Terminal(io.StringIO):
    """A terminal that remembers what is written to it."""

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told to go on."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(meter, "time", clock)
    monkeypatch.setattr(progress, "time", clock)
    return clock
