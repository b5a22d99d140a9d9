import keras
import numpy as np
import pytest

from dynkhydra_tf.backbones import ResNet
from dynkhydra_tf.costs import count_flops, hydra_costs, inference_flops, plain_costs
from dynkhydra_tf.hydra import Hydra


@pytest.mark.parametrize(
    ("layer", "flops"),
    [
        (keras.layers.Conv2D(5, 3, strides=2, padding="same"), 2 * 9 * 3 * 4 * 4 * 5),
        (keras.layers.DepthwiseConv2D(3, padding="same"), 2 * 9 * 8 * 8 * 3),
        (keras.layers.SeparableConv2D(5, 3, padding="same"), 2 * 9 * 64 * 3 + 2 * 3 * 64 * 5),
        (keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(7)]), 2 * 8 * 8 * 3 * 7),
        (keras.layers.BatchNormalization(), 0),
    ],
)
def test_flops_by_hand(layer, flops):
    layer.build((None, 8, 8, 3))
    assert count_flops(layer, (8, 8, 3)) == flops


@pytest.mark.parametrize(("depth", "paper"), [(1, 61), (2, 135), (3, 209), (4, 283), (5, 358)])
def test_hydrares_on_imagenet32_as_in_table_3(depth, paper):
    # nb = 5 and not 20, to be quick: only the gater's 64 x nb dense layer differs, 2 kFLOPs.
    model = Hydra(ResNet(depth), np.arange(1000) % 5, top_k=5, tau=0, branch_weight=0)
    mflops = inference_flops(hydra_costs(model)["flops"], 5) / 1e6
    assert mflops == pytest.approx(paper, rel=0.03)


def test_costs_by_part(make_hydra):
    costs = hydra_costs(make_hydra())
    assert costs["flops"] == {
        "stem": 2 * 9 * 3 * 16 * 4,
        "gater": 2 * 9 * 4 * 4 * 5 + 2 * 5 * 3,
        "branch": 2 * 9 * 4 * 4 * 6,
        "combiner": 2 * 6 * 4 * 6 + 2 * 6 * 6,
    }
    # Each convolution has four numbers a channel of batch normalisation, two of them statistics.
    assert costs["parameters"] == {
        "stem": 9 * 3 * 4 + 4 * 4,
        "gater": 9 * 4 * 5 + 4 * 5 + 5 * 3 + 3,
        "branches": 3 * (9 * 4 * 6 + 4 * 6),
        "combiner": 6 * 6 + 4 * 6 + 6 * 6 + 6,
        "heads": 3 * (6 * 6 + 6),
    }


def test_inference_flops_add_up():
    flops = {"stem": 100, "gater": 10, "branch": 20, "combiner": 1}
    assert inference_flops(flops, 2.5) == 161


def test_plain_costs():
    # ResNet-20 with option A shortcuts: 40.55M multiply-adds (He et al. and many re-implementations: 0.04 G).
    costs = plain_costs(ResNet(3), 10)
    assert costs["flops"] == pytest.approx(81.1e6, rel=1e-3)
