"""One of several workers that train a tiny model on coloured images; `workers_crew.py` starts them."""

import time

import dynkhydra_tf  # noqa: F401 - first, for it sets what TensorFlow reads when it is imported

# isort: split
import keras
import numpy as np

from dynkhydra_tf import cli, distribution, train
from dynkhydra_tf.agreement import state_of
from dynkhydra_tf.averaging import build_optimizer
from dynkhydra_tf.data import load_data
from dynkhydra_tf.data.augment import Augmentation
from dynkhydra_tf.data.image_data import ImageData
from dynkhydra_tf.data.pipeline import evaluation_batches, steps_per_epoch, training_batches
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.optimisation import AdamW
from dynkhydra_tf.partition import ClassPartition, build_extractor
from dynkhydra_tf.partition.class_means import class_means
from dynkhydra_tf.runs import open_run
from dynkhydra_tf.settings import Settings
from dynkhydra_tf.training import fit
from dynkhydra_tf.workers import open_workers
from tests.conftest import TinyBackbone, coloured_images
from tests.test_data_pipeline import CountingSource

BATCH, IMAGES = 12, 50


class Coloured(CountingSource):
    """Images of six colours."""

    def __init__(self):
        self.images, self.labels = coloured_images(np.arange(IMAGES) % 6)
        self.reads = 0


def train_coloured(run_dir, epochs, seconds=0.0, fact=None, wait=120):
    """Trains, or goes on; ends the process as a command does, with one line for what goes wrong.

    Args:
        seconds: what each step takes more than it needs.
        fact: something that all workers must have alike.
        wait: seconds, for the others to come.
    """
    flags = [f"--run_dir={run_dir}", f"--wait_for_workers={wait}"]
    cli.run(lambda settings: main(settings, epochs, seconds, fact), Settings, ["train", *flags])


def train_as_command(run_dir, *flags):
    """train.py with these flags."""
    cli.run(train.main, Settings, ["train", f"--run_dir={run_dir}", *flags])


def save_class_means(place):
    """Saves the class means of digits that a worker gets in PLACE.npy; its cache is PLACE."""
    data, extractor = load_data("digits", image_size=8), build_extractor("pixels")
    with open_workers("workers", 120) as workers:
        means = class_means(data, extractor, place, progress=False, workers=workers)
    np.save(f"{place}.npy", means)


def main(settings, epochs, seconds, fact):
    """Trains, or goes on."""
    sizes = {"train": IMAGES, "validation": 0, "test": IMAGES}
    data = ImageData("coloured", tuple("abcdef"), 8, "stretch", True, sizes, Coloured())
    partition = ClassPartition("coloured", data.class_names, (0, 0, 1, 1, 2, 2), "random")
    wait = settings.distribution.wait_for_workers
    with open_workers("workers", wait) as workers, open_run(settings, workers) as run:
        workers.agree({"fact": fact})
        with distribution.scope(workers.strategy):
            model, done = run.load_checkpoint() if run.continued else (None, 0)
            if model is None:
                keras.utils.set_random_seed(workers.index)  # it is the chief's weights that count
                model = Hydra(TinyBackbone(), partition.cluster_of_class, top_k=2)
                model.compile(AdamW(1e-2))
                build_optimizer(model)
        workers.agree(state_of(model))
        if run.continued:
            run.go_on(done)
        else:
            run.start(partition, data.record)
        augment = Augmentation(8, (120.0, 125.0, 130.0), shift=1, cutout=0)
        part = (workers.index, workers.count)
        batches = training_batches(data, BATCH, epochs, 0, augment, done, part=part)
        slow_down(workers, seconds)
        steps = steps_per_epoch(data, BATCH)
        fit(
            model,
            run,
            batches,
            evaluation_batches(data, "test", 16),
            epochs,
            steps,
            done,
            workers=workers,
        )
        if workers.is_chief:
            run.save_model(model)


def slow_down(workers, seconds):
    """Lets each step take longer: after it the workers ask each other for signals."""
    ask = workers.any

    def wait_and_ask(condition):
        time.sleep(seconds)
        return ask(condition)

    workers.any = wait_and_ask
