"""Images on which a quantised model is made and checked: some that it is calibrated on, others held out.

S side of an image.
"""

from typing import NamedTuple

import numpy as np

from dynkhydra_tf.data import ImageData, some_images

CALIBRATION_IMAGES = 512
HELD_OUT_IMAGES = 2000


class Samples(NamedTuple):
    """Some training images, and others.

    Attributes:
        calibration: (n, S, S, 3) uint8, training images.
        images: (m, S, S, 3) uint8, none of them among `calibration`; labels: (m,) int32.
        split: what these are, for people.
    """

    calibration: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    split: str


def take_samples(data: ImageData) -> Samples:
    """Takes training images for calibration; to check, validation images, or else further training images.

    Never test images. Of either kind spread evenly over their split, so that all classes are among them.

    Raises:
        UserError: the data cannot be read.
    """
    if data.sizes["validation"]:
        calibration, _ = some_images(data, "train", CALIBRATION_IMAGES)
        return Samples(calibration, *some_images(data, "validation", HELD_OUT_IMAGES), "validation images")
    images, labels = some_images(data, "train", CALIBRATION_IMAGES + HELD_OUT_IMAGES)
    every = max(2, len(images) // CALIBRATION_IMAGES)
    calibrated = np.arange(len(images)) % every == 0
    held_out = images[~calibrated], labels[~calibrated]
    return Samples(images[calibrated], *held_out, "training images that it was not calibrated on")
