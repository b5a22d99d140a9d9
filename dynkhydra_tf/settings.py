"""All settings of training, in one place: types, ranges, defaults, roles, and what the paper used.

`Settings` is made by `flags.py` from a command line or from a run's `flags.cfg`, or by hand. The flags have
the fields' names. Names of data sets and of choices are repeated here so that `--help` need not load what
they stand for; a test compares them.
"""

import dataclasses
import math
import os
import re

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, Role, changed, leaves, list_text, setting, values

SYSTEMS = ("hydra", "plain")
SCHEDULES = ("piecewise", "cosine", "linear")
OPTIMIZERS = ("adamw", "sgd")
GATER_TARGETS = ("hard", "teacher")
DISTRIBUTE = ("none", "mirrored", "workers")
DATASETS = ("cifar100", "cub200", "digits", "folder", "food101", "imagenet32")
BACKBONES = ("densenet", "resnet", "ressep")
PAPER = {"num_branches": 20, "top_k": 4, "batch_size": 128}
# What follows from the images of a folder where it is not given; see `sizing.py`.
FROM_COUNTS = ("num_branches", "top_k", "batch_size", "image_size")
STRATEGIES = ("cluster_balance", "cluster_optimal", "random", "semantic", "file")


@dataclasses.dataclass(frozen=True)
class DataSettings(Checked):
    """Which images, how they become squares, which are held out."""

    dataset: str = setting(
        "cifar100",
        f"The data set: {', '.join(DATASETS)}, or tfds:NAME for another one of tensorflow-datasets. "
        "folder is --data_dir with DIR/CLASS/image, or DIR/train/CLASS/image and the same under test or val.",
        role=Role.DATA,
    )
    data_dir: str | None = setting(
        None,
        "Where prepared tfds data sets lie, default ~/tensorflow_datasets; for --dataset=folder the folder.",
        role=Role.PLACE,
        path=True,
    )
    image_size: int | None = setting(
        None,
        "Side of the network's input in pixels; default: the data set's, 32, cub200 224, of a folder with a "
        "network of Keras by the number of its images. resnet and densenet are made for 32, ressep for 224.",
        role=Role.DATA,
        least=8,
    )
    fit: str | None = setting(
        None,
        "How a picture becomes square: pad adds black bars, crop keeps the middle, stretch squeezes. "
        "Default: the data set's. The paper: pad for Food-101, crop for CUB-200; folder and tfds:NAME: pad.",
        role=Role.DATA,
        choices=("stretch", "pad", "crop"),
    )
    test_fraction: float = setting(
        0.2,
        "Share of each class drawn for testing, always the same, in a folder or tfds data set without a test "
        "split.",
        role=Role.DATA,
        above=0,
        below=1,
    )
    max_bad_images: int = setting(
        0,
        "Leave out at most so many files of a folder that are no images; where there are more, stop.",
        role=Role.DATA,
        least=0,
    )
    labels: str | None = setting(
        None,
        "A table (CSV) of file,label: the classes of a folder's images where its directories do not tell.",
        role=Role.DATA,
        path=True,
    )
    cache: str = setting(
        "auto",
        "memory holds the decoded images, none reads and decodes them in each epoch, auto holds them up to "
        "1 GiB. The training is the same.",
        role=Role.PLACE,
        choices=("auto", "memory", "none"),
    )
    validation_fraction: float | None = setting(
        None,
        "Share of the training images held out, by a fixed stratified draw, to watch the training. Default: "
        "0.1 for a folder that has no val beside its test, else 0. The paper has none: with 0 the test split "
        "is watched.",
        role=Role.RECIPE,
        least=0,
        most=0.5,
    )

    def check(self) -> None:
        """Checks the data set's name; the default of what depends on it."""
        if self.validation_fraction is None and self.dataset != "folder":
            object.__setattr__(self, "validation_fraction", 0.0)
        prefix, _, tfds_name = self.dataset.partition(":")
        if self.dataset not in DATASETS and not (prefix == "tfds" and tfds_name):
            raise UserError(
                f"dataset must be one of {', '.join(DATASETS)}, or tfds:NAME. Received: {self.dataset}"
            )


@dataclasses.dataclass(frozen=True)
class AugmentationSettings(Checked):
    """How training images are changed at random."""

    shift: int = setting(
        4, "Augmentation: random shift in pixels. Not in the paper.", role=Role.RECIPE, least=0
    )
    flip: bool | None = setting(
        None, "Augmentation: random mirroring; default: as fits the data set.", role=Role.RECIPE
    )
    alternating_flip: bool = setting(
        False,
        "Augmentation: mirrors an image in every second epoch, whether from the first or the second on is "
        "drawn once for each, in place of a draw in each epoch. Not in the paper.",
        role=Role.RECIPE,
    )
    cutout: int = setting(
        16,
        "Augmentation: side of the square that is cut out, in pixels; 0 for none. The paper uses cutout "
        "(not on ImageNet32) and does not give its size.",
        role=Role.RECIPE,
        least=0,
    )
    rand_augment: float = setting(
        0.0,
        "Augmentation: magnitude of RandAugment, such as 0.5: three of ten changes of colour, contrast, "
        "shape and place, drawn for each image; 0 for none. Not in the paper.",
        role=Role.RECIPE,
        least=0,
        most=1,
    )
    mixup: float = setting(
        0.0,
        "Augmentation: alpha of mixup, such as 0.2: each image is blended with another of its batch, whose "
        "class counts by its share; 0 for none. Not in the paper.",
        role=Role.RECIPE,
        least=0,
    )

    @property
    def changes_images(self) -> bool:
        """Whether there is what can only be done to images, not to maps of them."""
        return bool(self.rand_augment or self.mixup)

    def check(self) -> None:
        """Checks that there is a flip to alternate."""
        if self.alternating_flip and self.flip is False:
            raise UserError("--alternating_flip mirrors images: leave --noflip out. Received: both")


@dataclasses.dataclass(frozen=True)
class PartitionSettings(Checked):
    """Which classes each branch has (section 'Class partitioning')."""

    partition: str = setting(
        "cluster_balance",
        "How the classes are divided among the branches. The paper: cluster_balance; random and semantic "
        "in Table 5. Beyond it: cluster_optimal; file takes --partition_file.",
        role=Role.PARTITION,
        choices=STRATEGIES,
    )
    partition_file: str | None = setting(
        None,
        "The partition.json of an earlier run, for --partition=file.",
        role=Role.PARTITION,
        path=True,
    )
    feature_extractor: str = setting(
        "EfficientNetB7",
        "What embeds the images for clustering: a name of keras.applications, a .keras file that maps "
        "images (0..255) to vectors, or 'pixels'. The paper: EfficientNetB7.",
        role=Role.FEATURES,
        path=True,
    )
    feature_weights: str = setting(
        "imagenet",
        "Weights of the extractor: imagenet, or a weights file.",
        role=Role.FEATURES,
        path=True,
    )
    feature_images_per_class: int = setting(
        0,
        "Embed only the first so many images of each class; 0 for all, as the paper does.",
        role=Role.FEATURES,
        least=0,
    )

    def check(self) -> None:
        """Checks that a file is given where it is used."""
        if (self.partition == "file") != (self.partition_file is not None):
            raise UserError(
                "--partition=file and --partition_file go together. Received: "
                f"partition={self.partition}, partition_file={self.partition_file}"
            )


@dataclasses.dataclass(frozen=True)
class NetworkSettings(Checked):
    """Which network: its layers, its branches, its gate, its losses."""

    system: str = setting(
        "hydra",
        "hydra: stem, gater and branches. plain: the backbone's plain network, the baseline; the flags of "
        "partition, widths, branches, gate and their losses do not count.",
        role=Role.NETWORK,
        choices=SYSTEMS,
    )
    backbone: str = setting(
        "resnet",
        "The architecture that is cut in two. The paper: resnet and densenet for 32x32, ressep for 224x224. "
        "Or any network of Keras: a name of keras.applications, or a .keras file that takes images (0..255); "
        "the flags from --weights to --freeze are for these.",
        role=Role.NETWORK,
        path=True,
    )
    weights: str | None = setting(
        None,
        "What such a network starts from: imagenet or, of a .keras file, its own (the defaults), none, or a "
        "weights file.",
        role=Role.NETWORK,
        path=True,
    )
    cut: str | None = setting(
        None,
        "The layer at which such a network is cut; list shows where it can be, with what lies before it, and "
        "trains nothing. Default: the last one before the map becomes as small as it is at the end.",
        role=Role.NETWORK,
    )
    branch_blocks: tuple[str, ...] = setting(
        (), "The ends of the blocks behind the cut that a branch keeps; default: all.", role=Role.NETWORK
    )
    branch_init: str = setting(
        "tail",
        "tail: the branches start from the weights of the network's layers behind the cut. fresh: from drawn "
        "ones.",
        role=Role.NETWORK,
        choices=("tail", "fresh"),
    )
    freeze: str = setting(
        "none",
        "stem: what lies before the cut keeps its weights, and is not trained. until_epoch:N: for the first "
        "N epochs; then it is trained too, at --unfrozen_rate. all: of a plain network all but the "
        "classifier.",
        role=Role.NETWORK,
    )
    cached_views: int = setting(
        2,
        "What a frozen stem gives is computed once, of so many views of each training image, and kept in "
        "the cache: the image, its mirror image, then others drawn as the flags of augmentation say. 0: "
        "nothing is kept, the stem runs in each epoch.",
        role=Role.RECIPE,
        least=0,
    )
    init_from: str | None = setting(
        None,
        "The run that has ended, or the .keras file, whose network the new one starts from. A plain "
        "network's layers go to stem, gater and every branch. Default: drawn weights.",
        role=Role.NETWORK,
        path=True,
    )
    depth: int = setting(
        1, "d, blocks per stage. The paper: 1 to 7 and 9; densenet 1 to 4.", role=Role.NETWORK, least=1
    )
    stem_width: float = setting(
        1.0, "ws, channel multiplier of the stem. The paper: 1; CUB-200 0.5.", role=Role.NETWORK, above=0
    )
    branch_width: float = setting(
        1.0,
        "wb, of the branches. The paper: 1; CUB-200 0.125. Of a network of Keras: the share of the hidden "
        "channels within a branch's blocks that is kept, at most 1.",
        role=Role.NETWORK,
        above=0,
    )
    tail_width: float = setting(
        1.0,
        "The same share for the plain network, behind the cut of a network of Keras.",
        role=Role.NETWORK,
        above=0,
        most=1,
    )
    gater_tail_width: float = setting(
        0.0,
        "Of a network of Keras: the gater's trunk is made of a branch's blocks, but for the network's last "
        "one, with this share of the hidden channels, and starts from their weights. 0: it is a layer on the "
        "pooled map, which costs next to nothing and tells clusters apart badly.",
        role=Role.NETWORK,
        least=0,
        most=1,
    )
    gater_width: float = setting(
        1.0, "wg, of the gater. The paper: 1; CUB-200 0.125.", role=Role.NETWORK, above=0
    )
    num_branches: int | None = setting(
        None,
        "nb, = class clusters. The paper: 20, which is the default; CUB-200 8. For a folder by the number of "
        "its classes.",
        role=Role.NETWORK,
        least=1,
    )
    top_k: int | None = setting(
        None,
        "K, most branches of an image. The paper: 4, which is the default; ImageNet32 5. For a folder by nb.",
        role=Role.NETWORK,
        least=1,
    )
    tau: float = setting(
        0.08,
        "A branch is dropped when its gate probability is below tau; in [0, 1), 0 drops none (HydraRes). "
        "The paper: 0.01 to 0.1 in Table 6; its lambda for Food-101 are those of 0.08.",
        role=Role.NETWORK,
        least=0,
        below=1,
    )
    train_tau: float | None = setting(
        None, "tau while training; default: --tau.", role=Role.NETWORK, least=0, below=1
    )
    combine: str = setting(
        "sum",
        "How the projections are combined. The paper: sum. Beyond it: gate_weighted, by gate probability.",
        role=Role.NETWORK,
        choices=("sum", "gate_weighted"),
    )
    combiner: str = setting(
        "conv",
        "What becomes of the combined projections. conv, the paper: a 1x1 convolution, pooled, classified. "
        "pool: no convolution, for branches that start as the last layers of a trained network.",
        role=Role.NETWORK,
        choices=("conv", "pool"),
    )
    trunk: bool = setting(
        False,
        "Beyond the paper: the gater's map joins the sum of the branches', and the gate is its class "
        "probabilities, summed by cluster; needs --gater_width=--branch_width.",
        role=Role.NETWORK,
    )
    exit_weight: float = setting(
        0.0,
        "Beyond the paper: weight of L_X, the loss of a small classifier on the stem's map, which answers "
        "alone where it is sure (--exit_confidence): neither gater nor branches run then. 0: there is none.",
        role=Role.NETWORK,
        least=0,
    )
    exit_confidence: float = setting(
        1.0,
        "At inference: where the classifier of --exit_weight, or without one the trunk of --trunk, gives its "
        "best class this probability, it answers alone and no branch is run; in (0, 1], 1 is never.",
        role=Role.NETWORK,
        above=0,
        most=1,
    )
    routing: str = setting(
        "routed",
        "routed runs a branch only on the images that need it, dense runs all branches on all images.",
        role=Role.NETWORK,
        choices=("routed", "dense"),
    )
    ensemble_weight: float = setting(1.0, "alpha1, weight of L_E. The paper: 1.", role=Role.NETWORK, least=0)
    gater_weight: float = setting(1.5, "alpha2, weight of L_G. The paper: 1.5.", role=Role.NETWORK, least=0)
    branch_weight: float = setting(
        0.05,
        "alpha3, weight of each L_b. The paper: 0.05; 0 is HydraRes and DynK.",
        role=Role.NETWORK,
        least=0,
    )

    def check(self) -> None:
        """Checks K against nb, and the flags of one kind of backbone against the other."""
        own = ("depth", "stem_width", "gater_width")
        keras = ("weights", "cut", "branch_blocks", "branch_init", "freeze", "tail_width", "gater_tail_width")
        if not re.fullmatch(r"none|stem|all|until_epoch:[1-9]\d*", self.freeze):
            raise UserError(f"freeze must be none, stem, all or until_epoch:N. Received: {self.freeze}")
        if self.freeze == "all" and self.system != "plain":
            raise UserError(
                "--freeze=all trains nothing but the classifier of a plain network: give --system=plain, or "
                f"freeze the stem. Received: --system={self.system}"
            )
        others = own if self.is_of_keras else keras
        if wrong := [name for name in others if getattr(self, name) != self.default(name)]:
            kind = ", ".join(BACKBONES) if self.is_of_keras else "networks of Keras"
            raise UserError(f"--{wrong[0]} is for {kind}. Received: --backbone={self.backbone}")
        if self.is_of_keras and self.branch_width > 1:
            raise UserError(
                f"branch_width must be at most 1 for networks of Keras. Received: {self.branch_width:g}"
            )
        if self.weights == "none" and self.freeze != "none":
            raise UserError(
                f"--freeze={self.freeze} would keep drawn weights as they are: leave --weights=none out"
            )
        if self.trunk and not self.is_of_keras and self.gater_width != self.branch_width:
            raise UserError(
                "--trunk adds the gater's map to the branches': give them one width. Received: "
                f"gater_width={self.gater_width:g}, branch_width={self.branch_width:g}"
            )
        if self.exit_confidence < 1 and not (self.trunk or self.exit_weight):
            raise UserError(
                "--exit_confidence goes with --exit_weight or --trunk. Received: "
                f"exit_confidence={self.exit_confidence:g}"
            )
        if self.top_k and self.num_branches and self.top_k > self.num_branches:
            raise UserError(f"top_k must be at most num_branches={self.num_branches}. Received: {self.top_k}")

    @property
    def frozen_part(self) -> str:
        """none, stem or all: what is frozen when the training begins."""
        return "stem" if self.frozen_epochs else self.freeze

    @property
    def frozen_epochs(self) -> int | None:
        """How many epochs that lasts, where it ends before the training does."""
        _, _, epochs = self.freeze.partition(":")
        return int(epochs) if epochs else None

    @property
    def trains_on_maps(self) -> bool:
        """Whether what is frozen runs once for each image, and not in each epoch."""
        return self.frozen_part != "none" and self.cached_views > 0

    @property
    def is_of_keras(self) -> bool:
        """Whether the backbone is not one of ours."""
        return self.backbone not in BACKBONES

    @classmethod
    def default(cls, name: str) -> object:
        """The default of a field."""
        return cls.__dataclass_fields__[name].default


def _drop(text: str) -> tuple[int, float]:
    epoch, factor = text.split(":")
    return int(epoch), float(factor)


@dataclasses.dataclass(frozen=True)
class OptimisationSettings(Checked):
    """How the network is trained, and for how long."""

    epochs: int = setting(
        190, "Passes over the training images. The paper: 190 on CIFAR-100.", role=Role.RECIPE, least=1
    )
    batch_size: int | None = setting(
        None,
        "Images in a step; default 128, for a folder by the number of its images. The paper: 32 on "
        "ImageNet32.",
        role=Role.RECIPE,
        least=1,
    )
    early_stopping: int = setting(
        0,
        "End when so many epochs were no better on the images held out than the best one before, and keep "
        "the best one's weights, not the last one's; 0: train to the end and keep the last ones.",
        role=Role.RECIPE,
        least=0,
    )
    evaluate_every: int = setting(
        1,
        "Evaluate on the images held out after every so many epochs, and after the last one. An epoch that "
        "was not evaluated is no best one.",
        role=Role.RECIPE,
        least=1,
    )
    class_weights: str = setting(
        "none",
        "balanced: the loss of an image counts the more, the fewer its class has, so that each class counts "
        "alike.",
        role=Role.RECIPE,
        choices=("none", "balanced"),
    )
    class_weight_limit: float = setting(
        10.0,
        "With balanced class weights: how many times an image of the largest class one of a small class "
        "counts at most; one photo among a thousand would else be all that counts.",
        role=Role.RECIPE,
        least=1,
    )
    classifier: str = setting(
        "drawn",
        "What the classifier of a plain network starts from, where its maps are kept (--freeze): drawn, as a "
        "Hydra's always is, or regression: scikit-learn's logistic regression on what the network gives; "
        "with --freeze=all there is then nothing left to train: the flags of steps and epochs do not count.",
        role=Role.RECIPE,
        choices=("drawn", "regression"),
    )
    optimizer: str = setting(
        "adamw",
        "The paper: adamw. sgd has Nesterov momentum of 0.9.",
        role=Role.RECIPE,
        choices=OPTIMIZERS,
    )
    learning_rate: float = setting(
        1e-3, "Base rate, the highest of the schedule. The paper: 1e-3.", role=Role.RECIPE, above=0
    )
    branch_gradient_scale: float = setting(
        1.0,
        "Factor on the gradients of the branches, for a branch sees K/nb of the images; with adamw, on which "
        "a scale of the gradients has no effect, on their rate. Not on weight decay. Not in the paper.",
        role=Role.RECIPE,
        above=0,
    )
    label_smoothing: float = setting(
        0.0,
        "Share of the target's probability that is spread evenly over all classes, in L_E, L_b and the plain "
        "network's loss. The gate's targets stay hard. Not in the paper.",
        role=Role.RECIPE,
        least=0,
        below=1,
    )
    weight_decay: float = setting(
        4e-3, "Decoupled weight decay, times the rate. Not in the paper.", role=Role.RECIPE, least=0
    )
    decay_kernels_only: bool = setting(
        False,
        "Weight decay on kernels alone, not on biases and on the scales and offsets of normalisation.",
        role=Role.RECIPE,
    )
    ema_decay: float = setting(
        0.0,
        "How much of the moving averages of the weights stays in a step, such as 0.999; 0 for none. The "
        "averages are evaluated, saved and served, and training goes on with the weights. Not in the paper.",
        role=Role.RECIPE,
        least=0,
        below=1,
    )
    schedule: str = setting(
        "piecewise",
        "piecewise takes --lr_drops, as the paper does; cosine and linear fall to 0 after a linear warm-up.",
        role=Role.RECIPE,
        choices=SCHEDULES,
    )
    lr_drops: tuple[tuple[int, float], ...] = setting(
        ((80, 1e-1), (140, 1e-2), (170, 1e-3), (180, 5e-4)),
        "EPOCH:FACTOR pairs: from that epoch on, the rate is FACTOR times the base rate.",
        role=Role.RECIPE,
        item=_drop,
        item_text=lambda drop: f"{drop[0]}:{drop[1]:g}",
        form="EPOCH:FACTOR pairs with rising whole epochs and factors above 0, such as 80:1e-1,140:1e-2",
    )
    unfrozen_rate: float = setting(
        0.1,
        "Factor on the learning rate from the epoch on that --freeze=until_epoch:N ends with.",
        role=Role.RECIPE,
        above=0,
    )
    warmup_epochs: float = setting(
        1.0, "Linear warm-up of the cosine and the linear schedule.", role=Role.RECIPE, least=0
    )
    mixed_precision: bool | str = setting(
        False,
        "Convolutions in bfloat16; gate and losses stay in float32. auto: where the processor computes in "
        "it, and is faster so.",
        role=Role.RECIPE,
        word="auto",
    )
    seed: int = setting(
        0,
        "Of the weights, the shuffling and the partition.",
        role=Role.SEED,
        least=0,
        most=2**32 - 1,
    )

    def check(self) -> None:
        """Checks the drops and the warm-up."""
        if self.schedule != "piecewise" and self.warmup_epochs >= self.epochs:
            raise UserError(
                f"warmup_epochs must be less than epochs={self.epochs}. Received: {self.warmup_epochs}"
            )
        epochs = [epoch for epoch, _ in self.lr_drops]
        rising = epochs == sorted(set(epochs)) and all(epoch > 0 for epoch in epochs)
        if not (rising and all(0 < factor < math.inf for _, factor in self.lr_drops)):
            known = type(self).__dataclass_fields__["lr_drops"].metadata["setting"]
            received = list_text(known, self.lr_drops)
            raise UserError(f"lr_drops must be {known.form}. Received: {received}")


@dataclasses.dataclass(frozen=True)
class DistillationSettings(Checked):
    """What is learned from a trained network, the teacher. Not in the paper."""

    distill: str | None = setting(
        None,
        "The teacher: a run that has ended, or a .keras file of one, of the same classes and image size. It "
        "sees each image as the new network does, augmented.",
        role=Role.RECIPE,
        path=True,
    )
    distill_weight: float = setting(
        0.0,
        "Weight of L_D, the divergence from the teacher's probabilities, beside L_E and the others.",
        role=Role.RECIPE,
        least=0,
    )
    distill_temperature: float = setting(
        1.0, "T, by which the logits of both are divided in L_D.", role=Role.RECIPE, above=0
    )
    distill_until: float = setting(
        1.0,
        "Share of the epochs in which the teacher counts; 0.8 is without it in the last fifth. In validation "
        "it counts to the end.",
        role=Role.RECIPE,
        above=0,
        most=1,
    )
    gater_targets: str = setting(
        "hard",
        "What the gate learns, L_G: hard is the cluster of the image's class, as in the paper; teacher the "
        "teacher's probabilities, summed by cluster.",
        role=Role.RECIPE,
        choices=GATER_TARGETS,
    )

    def check(self) -> None:
        """Checks that there is a teacher where one is needed, and only there."""
        if (self.distill is not None) != (self.distill_weight > 0 or self.gater_targets == "teacher"):
            raise UserError(
                "--distill=RUN goes with --distill_weight or with --gater_targets=teacher. Received: "
                f"distill={self.distill}, distill_weight={self.distill_weight:g}, "
                f"gater_targets={self.gater_targets}"
            )


@dataclasses.dataclass(frozen=True)
class DistributionSettings(Checked):
    """How many devices or machines train together."""

    distribute: str = setting(
        "none",
        "mirrored: all GPUs of this machine, or else its processor, each with its share of every batch. "
        "workers: one such process on each machine, of which TF_CONFIG tells, as Kubeflow's TFJob sets it.",
        role=Role.PLACE,
        choices=DISTRIBUTE,
    )
    sync_batch_norm: bool = setting(
        False,
        "Batch normalisation takes the statistics of the whole batch, and not of each device's share: for "
        "shares of a few images. Then all branches run on all devices, each layer waiting for the others.",
        role=Role.RECIPE,
    )
    wait_for_workers: float = setting(
        600.0, "Seconds that a worker waits for the others to come.", role=Role.PLACE, above=0
    )


@dataclasses.dataclass(frozen=True)
class PlaceSettings(Checked):
    """Where a run writes."""

    cache_dir: str | None = setting(
        None,
        "Where class means, the maps of a frozen stem and the check of a folder's files are kept; default "
        "~/.cache/dynkhydra_tf.",
        role=Role.PLACE,
        path=True,
    )
    run_dir: str | None = setting(
        None,
        "Where everything is written; default runs/DATASET, or runs/FOLDER.",
        role=Role.PLACE,
        path=True,
    )
    checkpoint_every: int = setting(
        1,
        "Save a checkpoint after every so many epochs and after the last one; with --early_stopping, after "
        "the best one so far, too. A signal to stop always saves one.",
        role=Role.PLACE,
        least=1,
    )
    overwrite: bool = setting(False, "Start anew where the run directory holds a run.", role=Role.ACTION)


@dataclasses.dataclass(frozen=True)
class Settings(Checked):
    """The settings of a training run, group by group."""

    data: DataSettings = DataSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    partition: PartitionSettings = PartitionSettings()
    network: NetworkSettings = NetworkSettings()
    optimisation: OptimisationSettings = OptimisationSettings()
    distillation: DistillationSettings = DistillationSettings()
    distribution: DistributionSettings = DistributionSettings()
    place: PlaceSettings = PlaceSettings()

    def check(self) -> None:
        """Takes the paper's numbers where none is given; checks the stem's end and the teacher."""
        if self.data.dataset != "folder":
            for group, own in (("network", ("num_branches", "top_k")), ("optimisation", ("batch_size",))):
                missing = {name: PAPER[name] for name in own if getattr(getattr(self, group), name) is None}
                object.__setattr__(self, group, dataclasses.replace(getattr(self, group), **missing))
        frozen, epochs = self.network.frozen_epochs, self.optimisation.epochs
        if self.fits_classifier and not self.network.trains_on_maps:
            raise UserError(
                "--classifier=regression needs the maps of a network of Keras: add --freeze=stem or "
                "--freeze=all, and --cached_views of 1 or more. Received: "
                f"--freeze={self.network.freeze}, --cached_views={self.network.cached_views}"
            )
        if self.fits_classifier and self.distribution.distribute == "workers":
            raise UserError(
                "--classifier=regression is for one process: leave it out, or --distribute=workers"
            )
        if frozen is not None and frozen >= epochs:
            raise UserError(
                f"--freeze=until_epoch:{frozen} must end before the last epoch. Received: --epochs={epochs}"
            )
        if self.network.trains_on_maps and frozen is None:
            self._check_what_maps_allow()
        if self.distribution.sync_batch_norm and self.network.is_of_keras:
            raise UserError(
                "--sync_batch_norm is for resnet, densenet and ressep; a network of Keras keeps its "
                f"normalisation as it was trained. Received: --backbone={self.network.backbone}"
            )
        teacher = self.distillation
        if teacher.distill and self.network.trains_on_maps:
            raise UserError(
                "--distill shows the teacher each image, and --freeze trains on maps: add --cached_views=0, "
                "which keeps none"
            )
        if teacher.distill and self.network.system == "plain" and not teacher.distill_weight:
            raise UserError("A plain network has no gate to teach: --distill needs --distill_weight for it")

    def _check_what_maps_allow(self):
        """Refuses augmentation that would do nothing, for the maps of the images are made once."""
        augmentation, views = self.augmentation, self.network.cached_views
        ways_out = "add --cached_views=0, which keeps none"
        if augmentation.mixup:
            name = "mixup"
        elif augmentation.rand_augment and views < 3:
            name = "rand_augment"
            ways_out += ", or --cached_views=4, of which the third and fourth are drawn so"
        else:
            return
        raise UserError(
            f"--{name} changes images, and --freeze={self.network.freeze} trains on maps that are made once: "
            f"{ways_out}. Received: {name}={getattr(augmentation, name):g}, cached_views={views}"
        )

    @property
    def fits_classifier(self) -> bool:
        """Whether the classifier starts from a regression."""
        return self.optimisation.classifier == "regression" and self.network.system == "plain"

    @property
    def run_dir(self) -> str:
        """The run directory: the one given, or runs/DATASET, for an image folder runs/NAME of it."""
        name = self.data.dataset
        if name == "folder" and self.data.data_dir:
            name = os.path.basename(os.path.abspath(self.data.data_dir))
        return self.place.run_dir or os.path.join("runs", re.sub(r"[^\w.-]+", "_", name))


def length_text(epochs: int, schedule: str) -> str:
    """Returns how long a training is, as tables and figures say it: "12 epochs, cosine"."""
    return f"{epochs} epoch{'s' * (epochs != 1)}, {schedule}"


def by_role(settings: Settings, *roles: Role) -> dict[str, object]:
    """The values of the settings that have one of these roles, by name."""
    wanted = {field.name for field in leaves(type(settings)) if field.metadata["setting"].role in roles}
    return {name: value for name, value in values(settings).items() if name in wanted}


def without_effect(settings: Settings) -> set[str]:
    """The names of the settings that, beside the others, change nothing in a training."""
    optimisation = settings.optimisation
    names = {"warmup_epochs" if optimisation.schedule == "piecewise" else "lr_drops"}
    names |= set() if optimisation.early_stopping else {"evaluate_every"}
    names |= {"class_weight_limit"} if optimisation.class_weights == "none" else set()
    return names


def filled_from(now: Settings, then: Settings) -> Settings:
    """Returns `now` with what it was not given, and the images decide, as it was `then`."""
    known, before = values(now), values(then)
    names = (*FROM_COUNTS, "validation_fraction")
    return changed(now, **{name: before[name] for name in names if known[name] is None})


def differences(now: Settings, then: Settings) -> list[str]:
    """Returns "--name=now (the run's: then)" for each setting that differs; places do not count."""
    lines = []
    for field in leaves(type(then)):
        known = field.metadata["setting"]
        new, old = values(now)[field.name], values(then)[field.name]
        if known.role not in (Role.PLACE, Role.ACTION) and new != old:
            lines.append(f"--{field.name}={list_text(known, new)} (the run's: {list_text(known, old)})")
    return lines
