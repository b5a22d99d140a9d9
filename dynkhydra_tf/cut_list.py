"""Where a network of Keras can be cut in two, and what lies before each place: `--cut=list`."""

import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from dynkhydra_tf.backbones.chain import between, build
from dynkhydra_tf.backbones.pretrained import NO_WEIGHTS, OpenNetwork, open_network
from dynkhydra_tf.data import find_entry
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.flop_count import count_flops
from dynkhydra_tf.folding import constants_of, fold
from dynkhydra_tf.settings import Settings
from dynkhydra_tf.sizing import fill_in
from dynkhydra_tf.tables import table

CALLS = 15  # of which the fastest counts: what else the machine does only adds time


def cut_list(settings: Settings) -> str:
    """Returns a table of the places at which the backbone can be cut, for images of the settings' size.

    Raises:
        UserError: the backbone is not of Keras, or cannot be opened or cut.
    """
    if not settings.network.is_of_keras:
        raise UserError(f"--cut is for networks of Keras. Received: --backbone={settings.network.backbone}")
    if settings.data.data_dir:
        settings = fill_in(settings)
    size = settings.data.image_size or find_entry(settings.data.dataset).image_size
    network = open_network(settings.network.backbone, size, NO_WEIGHTS)
    usual = network.point(None)
    costs = measured(network)
    flops, milliseconds = np.cumsum(costs, axis=0).T
    rows = [["cut", "map", "FLOPs before, %", "ms before"]]
    for point, before, ms in zip(network.points, flops, milliseconds, strict=False):
        name = f"{point.name} (default)" if point == usual else point.name
        shape = "x".join(map(str, network.shapes[point.layer]))
        rows.append([name, shape, f"{100 * before / max(1, flops[-1]):.1f}", f"{ms:.2f}"])
    heading = [f"{network.name} for images of {size} px", *([network.left_out] if network.left_out else [])]
    return "\n".join(
        [
            *heading,
            f"\n{table(rows, (0, 1))}\n",
            f"The whole: {flops[-1] / 1e6:.1f} MFLOPs, {milliseconds[-1]:.2f} ms. Times are of one image on "
            "this machine, batch normalisation folded, block by block.",
        ]
    )


def measured(network: OpenNetwork) -> list[tuple[int, float]]:
    """Measures the stretches between the places for a cut.

    Returns:
        FLOPs and milliseconds of one image from each place to the next: to the first from the input, and from
        the last to the network's end.
    """
    found, start = [], network.layers[0]["name"]
    for end in (*(point.layer for point in network.points), network.layers[-1]["name"]):
        shape = network.shapes[start]
        part = build(between(network.layers, start, end), shape, "stretch")
        flops = count_flops(part, shape)
        fold(part)
        nothing = _milliseconds(lambda x: x, shape)
        found.append((flops, max(0.0, _milliseconds(_with_constants(part), shape) - nothing)))
        start = end
    return found


def _with_constants(part: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """The network with its weights as constants, as where it is served: reading variables takes time too."""
    constants = constants_of(part.variables)

    def call(x):
        with constants():
            return part(x, training=False)

    return call


def _milliseconds(call: Callable[[tf.Tensor], tf.Tensor], shape: tuple[int, ...]) -> float:
    """The fastest of some calls on one image."""
    traced = tf.function(call, autograph=False)
    x = tf.constant(np.random.default_rng(0).uniform(0, 1, (1, *shape)).astype(np.float32))
    traced(x)
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        traced(x)
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)
