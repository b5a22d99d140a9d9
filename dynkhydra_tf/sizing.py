"""Settings that follow from how many images and classes a folder holds, where they are not given."""

import numpy as np

from dynkhydra_tf.data.sources.folder.listing import find_images
from dynkhydra_tf.fields import changed, values
from dynkhydra_tf.settings import FROM_COUNTS, Settings

CLASSES_A_BRANCH = 5  # as the paper has on CIFAR-100
STEPS = 30  # of an epoch, about
# Up to so many images a side in pixels: the stem then sees them all within minutes on two cores.
SIZES = ((3_000, 224), (10_000, 160), (30_000, 128))
LEAST_SIZE = 96


def branches_for(num_classes: int) -> int:
    """Returns nb for a number of classes: about `CLASSES_A_BRANCH` each, from 2 to 20."""
    return min(20, max(2, round(num_classes / CLASSES_A_BRANCH)))


def top_k_for(num_branches: int) -> int:
    """Returns K for a number of branches: the paper's 4 of 20, less of fewer."""
    return min(num_branches, 2 if num_branches < 6 else 3 if num_branches < 12 else 4)


def batch_size_for(images: int) -> int:
    """Returns B for a number of training images: 16, 32, 64 or 128, so that an epoch has about `STEPS`."""
    return min(2 ** int(np.clip(np.log2(max(1, images / STEPS)), 4, 7)), max(1, images // 2))


def image_size_for(images: int) -> int:
    """Returns S in pixels for a pretrained network, by the number of training images."""
    return next((size for most, size in SIZES if images <= most), LEAST_SIZE)


def warn_of_small_clusters(num_classes: int, num_branches: int) -> None:
    """Says so where branches have one class or two each: there is little left for them to tell apart."""
    if num_classes < 2 * num_branches <= 2 * num_classes:
        better = branches_for(num_classes)
        advice = f". --num_branches={better} may do better" if better < num_branches else ""
        print(
            f"{num_branches} branches for {num_classes} classes: some have a single class, and nothing to "
            f"tell apart{advice}"
        )


def fill_in(settings: Settings) -> Settings:
    """Returns settings in which those of `FROM_COUNTS` that were not given follow from the folder; tells why.

    Raises:
        UserError: what `find_images` raises.
    """
    missing = [name for name in FROM_COUNTS if values(settings)[name] is None]
    if settings.data.dataset != "folder" or not missing:
        return settings
    listing = find_images(settings.data.data_dir, settings.data.labels)
    classes = len(listing.class_names)
    if listing.splits is None:
        images = round(len(listing.paths) * (1 - settings.data.test_fraction))
    else:
        images = int((listing.splits == "train").sum())
    nb = settings.network.num_branches or branches_for(classes)
    found = {
        "num_branches": (nb, f"{classes} classes, about {CLASSES_A_BRANCH} a branch"),
        "top_k": (top_k_for(nb), f"of {nb} branches"),
        "batch_size": (batch_size_for(images), f"{images} images, about {STEPS} steps an epoch"),
        "image_size": (image_size_for(images), f"{images} images, which the stem sees within minutes"),
    }
    if settings.network.system == "plain":  # it has none; what is noted counts for nothing
        found |= {"num_branches": (nb, ""), "top_k": (top_k_for(nb), "")}
    if not settings.network.is_of_keras:
        del found["image_size"]  # they are made for one size
    chosen = {name: found[name] for name in missing if name in found}
    for name, (value, reason) in chosen.items():
        if reason:
            print(f"--{name}={value}: {reason}")
    return changed(settings, **{name: value for name, (value, _) in chosen.items()})
