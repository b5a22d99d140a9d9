"""One of several workers that train a tiny model on coloured images; test_workers.py starts them.

    TF_CONFIG=... python -m tests.worker_process RUN_DIR EPOCHS SECONDS [FACT]

Each step takes SECONDS more than it needs. FACT is something that all workers must have alike.
"""

import sys
import time

import dynkhydra_tf  # noqa: F401 - first, for it sets what TensorFlow reads when it is imported

# isort: split
import keras
import numpy as np

from dynkhydra_tf import cli, distribution
from dynkhydra_tf.agreement import state_of
from dynkhydra_tf.averaging import build_optimizer
from dynkhydra_tf.data.augment import Augmentation
from dynkhydra_tf.data.image_data import ImageData
from dynkhydra_tf.data.pipeline import evaluation_batches, steps_per_epoch, training_batches
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.optimisation import AdamW
from dynkhydra_tf.partition import ClassPartition
from dynkhydra_tf.runs import open_run
from dynkhydra_tf.settings import PlaceSettings, Settings
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


if __name__ == "__main__":
    run_dir, epochs, seconds, *fact = sys.argv[1:]
    settings = Settings(place=PlaceSettings(run_dir=run_dir))
    # `cli.run` without flags: one line for what goes wrong.
    cli.run(lambda options: main(settings, int(epochs), float(seconds), fact), Settings, sys.argv[:1])
