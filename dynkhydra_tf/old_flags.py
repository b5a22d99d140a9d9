"""The flags as absl values, for modules that do not take `Settings` yet; goes when the last one does.

A run stores its flags as `flags.cfg`, a flagfile that runs again as it is; other commands read them
back with `read_flags`.
"""

import math
import os
import re

from absl import flags

from dynkhydra_tf.backbones import BACKBONES
from dynkhydra_tf.data import CACHES, DATASETS, FITS, find_entry
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.gating import COMBINATIONS
from dynkhydra_tf.partition import STRATEGIES
from dynkhydra_tf.routing import ROUTINGS

SYSTEMS = ("hydra", "plain")
SCHEDULES = ("piecewise", "cosine")
# Flags that say where things are and that change no result; a run may be continued with others.
PLACES = ("data_dir", "run_dir", "cache_dir", "cache")


def define_training_flags(flag_values):
    """Defines the flags of `train.py` on `flag_values`."""

    def define(kind, name, default, text, **kwargs):
        kind(name=name, default=default, help=text, flag_values=flag_values, **kwargs)

    text, number, whole = flags.DEFINE_string, flags.DEFINE_float, flags.DEFINE_integer
    choice, switch, several = flags.DEFINE_enum, flags.DEFINE_bool, flags.DEFINE_list

    # === Data ===
    define(
        text,
        "dataset",
        "cifar100",
        f"The data set: {', '.join(sorted(DATASETS))}, or tfds:NAME for another one of tensorflow-datasets. "
        "folder is --data_dir with DIR/CLASS/image, or DIR/train/CLASS/image and the same under test or val.",
    )
    define(
        text,
        "data_dir",
        None,
        "Where prepared tfds data sets lie, default ~/tensorflow_datasets; for --dataset=folder the folder.",
    )
    define(
        whole,
        "image_size",
        None,
        "Side of the network's input in pixels; default: the data set's, 32, cub200 224. resnet and densenet "
        "are made for 32, ressep for 224.",
        lower_bound=8,
    )
    define(
        choice,
        "fit",
        None,
        "How a picture becomes square: pad adds black bars, crop keeps the middle, stretch squeezes. "
        "Default: the data set's. The paper: pad for Food-101, crop for CUB-200; folder and tfds:NAME: pad.",
        enum_values=FITS,
    )
    define(
        number,
        "test_fraction",
        0.2,
        "Share of each class drawn for testing, always the same, in a folder or tfds data set without a test "
        "split.",
    )
    define(
        whole,
        "max_bad_images",
        0,
        "Leave out at most so many files of a folder that are no images; where there are more, stop.",
        lower_bound=0,
    )
    define(
        choice,
        "cache",
        "auto",
        "memory holds the decoded images, none reads and decodes them in each epoch, auto holds them up to "
        "1 GiB. The training is the same.",
        enum_values=CACHES,
    )
    define(
        number,
        "validation_fraction",
        0.0,
        "Share of the training images held out, by a fixed stratified draw, to watch the training. The "
        "paper has none: with 0 the test split is watched.",
        lower_bound=0.0,
        upper_bound=0.5,
    )
    define(whole, "shift", 4, "Augmentation: random shift in pixels. Not in the paper.", lower_bound=0)
    define(switch, "flip", None, "Augmentation: random mirroring; default: as fits the data set.")
    define(
        whole,
        "cutout",
        16,
        "Augmentation: side of the square that is cut out, in pixels; 0 for none. The paper uses cutout "
        "(not on ImageNet32) and does not give its size.",
        lower_bound=0,
    )

    # === Class partition (section 'Class partitioning') ===
    define(
        choice,
        "partition",
        "cluster_balance",
        "How the classes are divided among the branches. The paper: cluster_balance; random and semantic "
        "in Table 5. Beyond it: cluster_optimal; file takes --partition_file.",
        enum_values=STRATEGIES,
    )
    define(text, "partition_file", None, "The partition.json of an earlier run, for --partition=file.")
    define(
        text,
        "feature_extractor",
        "EfficientNetB7",
        "What embeds the images for clustering: a name of keras.applications, a .keras file that maps "
        "images (0..255) to vectors, or 'pixels'. The paper: EfficientNetB7.",
    )
    define(text, "feature_weights", "imagenet", "Weights of the extractor: imagenet, or a weights file.")
    define(
        whole,
        "feature_images_per_class",
        0,
        "Embed only the first so many images of each class; 0 for all, as the paper does.",
        lower_bound=0,
    )
    define(
        text,
        "cache_dir",
        None,
        "Where class means and the check of a folder's files are kept; default ~/.cache/dynkhydra_tf.",
    )

    # === Model ===
    define(
        choice,
        "system",
        "hydra",
        "hydra: stem, gater and branches. plain: the backbone's plain network, the baseline; the flags of "
        "partition, widths, branches, gate and their losses do not count.",
        enum_values=SYSTEMS,
    )
    define(
        choice,
        "backbone",
        "resnet",
        "The architecture that is cut in two. The paper: resnet and densenet for 32x32, ressep for 224x224.",
        enum_values=sorted(BACKBONES),
    )
    define(whole, "depth", 1, "d, blocks per stage. The paper: 1 to 7 and 9; densenet 1 to 4.", lower_bound=1)
    define(number, "stem_width", 1.0, "ws, channel multiplier of the stem. The paper: 1; CUB-200 0.5.")
    define(number, "branch_width", 1.0, "wb, of the branches. The paper: 1; CUB-200 0.125.")
    define(number, "gater_width", 1.0, "wg, of the gater. The paper: 1; CUB-200 0.125.")
    define(whole, "num_branches", 20, "nb, = class clusters. The paper: 20; CUB-200 8.", lower_bound=1)
    define(whole, "top_k", 4, "K, most branches of an image. The paper: 4; ImageNet32 5.", lower_bound=1)
    define(
        number,
        "tau",
        0.08,
        "A branch is dropped when its gate probability is below tau; in [0, 1), 0 drops none (HydraRes). "
        "The paper: 0.01 to 0.1 in Table 6; its lambda for Food-101 are those of 0.08.",
    )
    define(number, "train_tau", None, "tau while training; default: --tau.")
    define(
        choice,
        "combine",
        "sum",
        "How the projections are combined. The paper: sum. Beyond it: gate_weighted, by gate probability.",
        enum_values=COMBINATIONS,
    )
    define(
        choice,
        "routing",
        "routed",
        "routed runs a branch only on the images that need it, dense runs all branches on all images.",
        enum_values=ROUTINGS,
    )
    define(number, "ensemble_weight", 1.0, "alpha1, weight of L_E. The paper: 1.", lower_bound=0.0)
    define(number, "gater_weight", 1.5, "alpha2, weight of L_G. The paper: 1.5.", lower_bound=0.0)
    define(
        number,
        "branch_weight",
        0.05,
        "alpha3, weight of each L_b. The paper: 0.05; 0 is HydraRes and DynK.",
        lower_bound=0.0,
    )

    # === Optimisation ===
    define(
        whole, "epochs", 190, "Passes over the training images. The paper: 190 on CIFAR-100.", lower_bound=1
    )
    define(whole, "batch_size", 128, "Images in a step. The paper: 32 on ImageNet32.", lower_bound=1)
    define(number, "learning_rate", 1e-3, "Base rate of AdamW. The paper: 1e-3.")
    define(
        number, "weight_decay", 4e-3, "Decoupled weight decay of AdamW. Not in the paper.", lower_bound=0.0
    )
    define(
        choice,
        "schedule",
        "piecewise",
        "piecewise takes --lr_drops, as the paper does; cosine falls to 0 after a linear warm-up.",
        enum_values=SCHEDULES,
    )
    define(
        several,
        "lr_drops",
        ["80:1e-1", "140:1e-2", "170:1e-3", "180:5e-4"],
        "EPOCH:FACTOR pairs: from that epoch on, the rate is FACTOR times the base rate.",
    )
    define(number, "warmup_epochs", 1.0, "Linear warm-up of the cosine schedule.", lower_bound=0.0)
    define(switch, "mixed_precision", False, "Convolutions in bfloat16; gate and losses stay in float32.")
    define(
        whole,
        "seed",
        0,
        "Of the weights, the shuffling and the partition.",
        lower_bound=0,
        upper_bound=2**32 - 1,
    )

    # === The run ===
    define(text, "run_dir", None, "Where everything is written; default runs/DATASET, or runs/FOLDER.")
    define(switch, "overwrite", False, "Start anew where the run directory holds a run.")

    _validate(flag_values)


def _validate(flag_values):
    def check(names, test, message):
        flags.register_multi_flags_validator(names, lambda v: test(*v.values()), message, flag_values)

    check(["dataset"], _is_dataset, f"dataset must be one of {', '.join(sorted(DATASETS))}, or tfds:NAME")
    check(["test_fraction"], lambda share: 0 < share < 1, "test_fraction must be above 0 and below 1")
    check(["tau"], lambda tau: 0 <= tau < 1, "tau must be in [0, 1)")
    check(["train_tau"], lambda tau: tau is None or 0 <= tau < 1, "train_tau must be in [0, 1)")
    check(["top_k", "num_branches"], lambda k, nb: k <= nb, "top_k must be at most num_branches")
    check(
        ["partition", "partition_file"],
        lambda strategy, path: (strategy == "file") == (path is not None),
        "--partition=file and --partition_file go together",
    )
    for name in ("learning_rate", "stem_width", "branch_width", "gater_width"):
        check([name], lambda value: 0 < value < math.inf, f"{name} must be above 0")
    # absl's bounds let nan pass, and inf where there is no upper one.
    for name in ("ensemble_weight", "gater_weight", "branch_weight", "weight_decay", "warmup_epochs"):
        check([name], math.isfinite, f"{name} must be a finite number")
    check(
        ["lr_drops"],
        lambda drops: _drops(drops) is not None,
        "lr_drops must be EPOCH:FACTOR pairs with rising whole epochs and factors above 0, such as "
        "80:1e-1,140:1e-2",
    )


def _is_dataset(name):
    try:
        find_entry(name)
    except UserError:
        return False
    return True


def _drops(texts):
    try:
        drops = [(int(epoch), float(factor)) for epoch, factor in (text.split(":") for text in texts)]
    except ValueError:
        return None
    epochs = [epoch for epoch, _ in drops]
    rising = epochs == sorted(set(epochs)) and all(epoch > 0 for epoch in epochs)
    return drops if rising and all(0 < factor < math.inf for _, factor in drops) else None


def default_run_dir(flag_values):
    """Returns runs/DATASET, or for an image folder runs/NAME with the folder's own name."""
    name = flag_values.dataset
    if name == "folder" and flag_values.data_dir:
        name = os.path.basename(os.path.abspath(os.path.expanduser(flag_values.data_dir)))
    return os.path.join("runs", re.sub(r"[^\w.-]+", "_", name))


def data_settings(flag_values, data_dir=None):
    """Returns the arguments of `load_data` that the flags name, as a dict; `data_dir` in place of theirs."""
    names = ("data_dir", "validation_fraction", "image_size", "fit", "test_fraction", "max_bad_images")
    names += ("cache", "cache_dir")
    settings = {"name": flag_values.dataset, **{name: flag_values[name].value for name in names}}
    return settings | ({"data_dir": data_dir} if data_dir else {})


def make_backbone(flag_values, image_size, depth=None):
    """Returns the backbone of the flags for images of `image_size` px; `depth` in place of --depth."""
    return BACKBONES[flag_values.backbone](
        depth=depth or flag_values.depth,
        stem_width=flag_values.stem_width,
        branch_width=flag_values.branch_width,
        gater_width=flag_values.gater_width,
        image_size=image_size,
    )


def learning_rate_drops(flag_values):
    """Returns --lr_drops as a list of (int epoch, float factor)."""
    return _drops(flag_values.lr_drops)


def to_flagfile(flag_values):
    """Returns the training flags as the text of a flagfile, a line for each flag that has a value."""
    flags_set = [flag_values[name] for name in _names() if flag_values[name].value is not None]
    return "".join(flag.serialize() + "\n" for flag in flags_set)


def _names():
    values = flags.FlagValues()
    define_training_flags(values)
    return [name for name in values if name != "overwrite"]  # a flagfile that runs again must not delete


def read_flags(path):
    """Returns the training flags of a flagfile, as `absl.flags.FlagValues` of their own.

    Raises:
        UserError: the file is missing or holds what is no flag of this version.
    """
    values = flags.FlagValues()
    define_training_flags(values)
    try:
        with open(path, encoding="utf-8") as file:
            values(["flags", *(line.strip() for line in file if line.startswith("--"))])
    except (flags.Error, OSError) as error:
        raise UserError(f"Cannot read the flags of a run from {path}: {error}") from error
    return values


def differing_flags(flag_values, path):
    """Returns "--name=now (run: then)" for each flag that differs from the flagfile; places don't count."""
    then = read_flags(path)
    return [
        f"--{name}={flag_values[name].value} (the run's: {then[name].value})"
        for name in _names()
        if name not in PLACES and flag_values[name].value != then[name].value
    ]
