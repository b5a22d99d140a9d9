"""Image folders as a data set: found, checked, divided into training and test."""

import hashlib
import os
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import tensorflow as tf

from dynkhydra_tf.data.decoding import decode_picture
from dynkhydra_tf.data.sources.base import Source
from dynkhydra_tf.data.sources.folder.check import check_files, why_bad
from dynkhydra_tf.data.sources.folder.listing import find_images
from dynkhydra_tf.data.splits import draw_stratified
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import readable

NAMED = 10  # bad files that an error message names


class FolderSource(Source):
    """The images of a folder; see `listing.py` for the layouts. Prints what was found.

    Which images are for testing depends on the hash of their paths: the draw is the same on every machine,
    and images that are added later change it little. The order of the examples is that of the hashes, too, so
    that the classes are mixed.

    Args:
        data_dir: the folder.
        test_fraction: of a folder that is not divided, the part of each class for testing, in (0, 1).
        max_bad_images: most files that may be left out because they cannot be decoded.
        labels: a table that names the classes of images, see `find_images`.
        cache_dir: where the check of the files is kept, see `check_files`.

    Raises:
        UserError: what `find_images` raises, more than `max_bad_images` bad files, a class or a split that
            has no others, no image to draw for testing.
    """

    settings: ClassVar = ("data_dir", "test_fraction", "max_bad_images", "labels", "cache_dir")

    def __init__(
        self,
        data_dir: str | os.PathLike | None,
        test_fraction: float = 0.2,
        max_bad_images: int = 0,
        labels: str | os.PathLike | None = None,
        cache_dir: str | os.PathLike | None = None,
    ) -> None:
        """Finds and checks the files."""
        if not 0 < test_fraction < 1:
            raise UserError(f"test_fraction must be above 0 and below 1. Received: {test_fraction}")
        listing = find_images(data_dir, labels)
        check = check_files(listing.root, listing.paths, cache_dir)
        self._root, self._shown = listing.root, readable(listing.root)
        self.place = os.path.abspath(listing.root)
        self._class_names = listing.class_names
        self.fingerprint = check.fingerprint
        self._report_bad(listing.paths[~check.good], max_bad_images)

        paths, classes = listing.paths[check.good], listing.labels[check.good]
        if labels:  # otherwise the paths tell the classes
            self.fingerprint = hashlib.sha256(check.fingerprint.encode() + classes.tobytes()).hexdigest()
        order = np.argsort([hashlib.sha256(path).digest() for path in paths])
        self._paths, self._labels = paths[order], classes[order]
        if listing.splits is None:
            drawn = draw_stratified(self._labels, test_fraction, np.arange(len(order)))
            splits = np.where(drawn, "test", "train")
        else:
            splits = listing.splits[check.good][order]
        self._check_splits(splits)
        self._members = {"train": np.flatnonzero(splits != "test"), "test": np.flatnonzero(splits == "test")}
        if "validation" in splits:
            self.held_out = splits[self._members["train"]] == "validation"
        self._report(splits, listing)

    def label_names(self, feature: str = "label") -> tuple[str, ...]:
        """The names of the classes."""
        return self._class_names

    def size(self, split: str) -> int:
        """The number of images of a split."""
        return len(self._members[split])

    def labels(self, split: str, feature: str = "label") -> np.ndarray:
        """The class of each image."""
        return self._labels[self._members[split]]

    def content(self, split: str) -> str:
        """A hash of the contents of all files, which the check of them found, and of the split's paths."""
        found = hashlib.sha256(self.fingerprint.encode())
        for path in self._paths[self._members[split]]:
            found.update(path + b"\0")
        return found.hexdigest()

    def read(self, split: str, wanted: np.ndarray | None = None) -> tf.data.Dataset:
        """A dataset of (picture, label), decoded on all cores."""
        indices = np.arange(self.size(split)) if wanted is None else np.flatnonzero(wanted)
        return tf.data.Dataset.from_tensor_slices(indices).map(
            self.fetch(split), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )

    def fetch(self, split: str) -> Callable:
        """A function of an index, that reads and decodes a file."""
        folder = tf.constant(os.path.join(os.fsencode(self._root), b""))
        paths = tf.constant(self._paths[self._members[split]].tolist())
        labels = tf.constant(self.labels(split))
        return lambda index: (decode_picture(tf.io.read_file(folder + paths[index])), labels[index])

    def _report_bad(self, paths, most):
        """Names the files that are left out; an error where they are too many."""
        if not len(paths):
            return
        if len(paths) > most:
            named = ", ".join(self._with_reason(path) for path in paths[:NAMED])
            more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
            raise UserError(
                f"{len(paths)} of the files in {self._shown} cannot be read as images: {named}{more}. "
                f"Mend them or take them away, or leave them out with --max_bad_images={len(paths)}"
            )
        print(f"Left out, {len(paths)} of at most {most}:")
        for path in paths:
            print(f"  {self._with_reason(path)}")

    def _with_reason(self, path):
        return f"{readable(path)} ({why_bad(os.path.join(os.fsencode(self._root), path))})"

    def _check_splits(self, splits):
        """Checks that every class can be trained, and that something is there to test on."""
        trained = np.bincount(self._labels[splits == "train"], minlength=len(self._class_names))
        if not trained.all():
            name = self._class_names[int(trained.argmin())]
            raise UserError(f"{self._shown} has no image to train class {name!r} with: put some in")
        if "test" not in splits:
            raise UserError(
                f"{self._shown} has too few images, {len(splits)}, to take some for testing: put more in, "
                "or give a larger --test_fraction"
            )

    def _report(self, splits, listing):
        counts = {split: int((splits == split).sum()) for split in ("train", "validation", "test")}
        numbers = ", ".join(f"{count} for {split}" for split, count in counts.items() if count)
        print(f"{self._shown}: {len(splits)} images of {len(self._class_names)} classes, {numbers}")
        trained = np.bincount(self._labels[splits == "train"], minlength=len(self._class_names))
        print(
            f"Training images a class: {trained.min()} (of {self._class_names[int(trained.argmin())]!r}) to "
            f"{trained.max()}, median {np.median(trained):g}"
        )
        for remark in listing.remarks:
            print(f"Left out: {remark}")
        if others := listing.passed_over:
            print(f"Passed over: {len(others)} files that are no pictures, such as {readable(others[0])}")
