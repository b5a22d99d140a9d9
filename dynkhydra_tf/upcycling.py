"""A new network that starts from the weights of a trained one: `--init_from`.

A plain network's layers before the cut become the stem, those behind it the gater's trunk and every branch
("upcycling", Komatsuzaki et al. 2023). At inference, with projections that are averaged (gate_weighted) or
with one branch, the new Hydra then computes what the plain network does: the convolution of its combiner, if
there is one, starts as the identity before the plain network's classifier. A network of the same kind takes
everything over.
"""

import dataclasses
import os
from collections.abc import Sequence

import keras
import numpy as np

from dynkhydra_tf.backbones import Backbone
from dynkhydra_tf.backbones.first_weights import copy_weights
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.runs import class_changes, open_trained
from dynkhydra_tf.settings import NetworkSettings

# What says how a backbone is trained, and no more; and how it is divided, and nothing of its plain network.
_TRAINING = {"frozen_stem", "frozen_tail", "keep_statistics"}
_DIVISION = _TRAINING | {"stem_width", "branch_width", "gater_width", "gater_dropped", "cut", "dropped"}


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A trained network that a new one starts from; got from `open_source`.

    Attributes:
        path: where it came from.
        model: the network.
        fresh_branches: whether the branches keep what Keras drew.
    """

    path: str
    model: Hydra | Plain
    fresh_branches: bool = False

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Checks that it tells the same classes apart, in the same order.

        Raises:
            UserError: it does not.
        """
        own, count = self.model.class_names, self.model.num_classes
        if count != len(class_names) or (own is not None and own != tuple(class_names)):
            known = own is not None
            found = class_changes(own, class_names) if known else f"{count}, the data have {len(class_names)}"
            raise UserError(
                "init_from must be a network of the same classes. "
                f"Received: {self.path}, its classes: {found}"
            )

    def start(self, model: Hydra | Plain) -> None:
        """Gives a new network its first weights.

        Args:
            model: on a backbone that `open_source` was given, and with the source's classes.

        Raises:
            UserError: a layer that is missing or of another shape; from a Hydra: other clusters of classes.
        """
        try:
            if isinstance(self.model, Plain):
                _start_from_plain(self.model, model, self.fresh_branches)
            else:
                _start_from_hydra(self, model)
        except ValueError as error:
            raise UserError(f"init_from={self.path} does not fit: {error}") from error


def open_source(
    network: NetworkSettings, backbone: Backbone, run_dir: str | os.PathLike | None = None
) -> Source | None:
    """Opens what `init_from` of the settings names, and checks that a network of theirs can start from it.

    Args:
        network: the settings.
        backbone: `Backbone` of these settings.
        run_dir: the directory of the new run, which must be another one.

    Returns:
        None where `init_from` is not set.

    Raises:
        UserError: no run that has ended and no .keras file of ours, or one of another network.
    """
    path = network.init_from
    if path is None:
        return None
    model, _ = open_trained(path, "init_from", run_dir)
    source = Source(path, model, fresh_branches=network.branch_init == "fresh")
    _check_kind(source, network)
    _check_backbone(source, backbone, whole=isinstance(model, Hydra))
    _check_widths(source, network, backbone)
    print(f"Starting from {path}: {type(model).__name__} on {model.backbone.description}.", flush=True)
    return source


def _check_kind(source, network):
    if network.system == "plain" and isinstance(source.model, Hydra):
        raise UserError(
            f"init_from must be a plain network where the new one is plain. Received: {source.path}, which "
            "holds a Hydra"
        )


def _check_backbone(source, backbone, whole):
    """Compares the plain networks of two backbones, or the whole backbones."""
    own, other = backbone, source.model.backbone
    if type(own) is not type(other):
        raise UserError(
            f"init_from must be of the same backbone, {type(own).__name__}. Received: {source.path}, a "
            f"{type(other).__name__}"
        )
    now, then = own.get_config(), other.get_config()
    names = [name for name in now if name not in (_TRAINING if whole else _DIVISION)]
    if differing := [name for name in names if now[name] != then.get(name)]:
        told = ", ".join(_difference(name, now[name], then.get(name)) for name in differing)
        raise UserError(f"init_from must be of the same backbone. Received: {source.path} with {told}")


def _check_widths(source, network, backbone):
    if network.system == "plain" or isinstance(source.model, Hydra):
        return
    names = ("stem_width", "branch_width", "gater_width")
    # A gater's trunk of width 0 is none of the plain network's layers.
    if narrow := [
        f"--{name}={value:g}" for name in names if (value := getattr(backbone, name, 1.0)) not in (0, 1)
    ]:
        raise UserError(
            "init_from a plain network gives its layers to parts of width 1: it is not narrowed. "
            f"Received: {', '.join(narrow)}"
        )


def _difference(name, now, then):
    return f"other {name}" if len(str(now)) > 40 else f"{name} {then}, not {now}"


# === From a plain network ===


def _start_from_plain(source, model, fresh_branches):
    trained = _networks(source.network.layers[0])
    names = {layer.name for network in trained for layer in network.layers}

    def give(part, layer):
        if part == "branch" and fresh_branches:
            return
        for network in _networks(layer):
            # The gater's trunk may be no part of the plain network at all, and stays as it was drawn.
            if any(inner.name in names for inner in network.layers if inner.weights):
                copy_weights(trained, network)

    model.set_first_weights(give)
    classifier = source.network.layers[-1].get_weights()  # (c, M), (M)
    if isinstance(model, Plain):
        model.network.layers[-1].set_weights(classifier)
    elif model.branches.projection_shape[-1] == len(classifier[0]):
        _start_classifiers(model, *classifier)


def _networks(layer):
    """The networks that one is put together of, or itself."""
    inner = layer.layers
    return inner if all(isinstance(one, keras.Model) for one in inner) else [layer]


def _start_classifiers(model, kernel, bias):
    """What follows the branches starts as what follows the plain network's last map."""
    first, *_, dense = model.combiner.layers
    # Of a trunk and branches that all give the same, the sum is twice that.
    share = 1 / 2 if model.trunk else 1.0
    if model.combiner_conv:
        first.conv.kernel.assign(share * np.eye(len(kernel))[np.newaxis, np.newaxis])
        share = 1.0
    dense.set_weights([share * kernel, bias])
    if model.trunk:
        model.gater.layers[-1].set_weights([kernel, bias])
    if model.heads:
        for variable, values in ((model.heads.kernel, kernel), (model.heads.bias, bias)):
            variable.assign(np.stack([values] * model.num_branches))


# === From a Hydra ===


def _start_from_hydra(source, model):
    old = source.model
    if old.trunk != model.trunk:
        raise UserError(
            "init_from a Hydra wants the same --trunk. Received: "
            f"{source.path} with{'' if old.trunk else 'out'} a shared trunk"
        )
    if old.cluster_of_class != model.cluster_of_class:
        raise UserError(
            "init_from must be of the same clusters of classes: take its own with --partition=file "
            f"--partition_file=RUN/partition.json. Received: {source.path} with other ones"
        )
    for part in ("stem", "gater", "branches", "combiner"):
        getattr(model, part).set_weights(getattr(old, part).get_weights())
    if old.exit and model.exit:
        model.exit.set_weights(old.exit.get_weights())
    if old.heads and model.heads:
        model.heads.set_weights(old.heads.get_weights())
