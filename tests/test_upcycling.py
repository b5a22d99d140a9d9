"""New networks from trained ones: what they compute at first, and what is refused."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf import train
from dynkhydra_tf.backbones import DenseNet, ResNet, ResSep, make_backbone
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.settings import NetworkSettings, Settings
from dynkhydra_tf.upcycling import Source, open_source

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
CLUSTERS = (0, 1, 1, 2)
SLOW = ("densenet", "ressep")


def with_values(model):
    """The model with a value of its own for each weight: statistics and biases are not 0 and 1."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("beta", "bias", "moving_mean"):
            variable.assign(rng.normal(0, 0.1, variable.shape))
    return model


def networks():
    """A network of Keras of one block before the cut and one behind it."""
    x = inputs = keras.Input((16, 16, 3))
    for block in (1, 2):
        x = keras.layers.Conv2D(8, 3, strides=2, use_bias=False, padding="same", name=f"block{block}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"block{block}_bn")(x)
        x = keras.layers.ReLU(name=f"block{block}_out")(x)
    return keras.Model(inputs, x, name="two_blocks")


@pytest.fixture(params=["resnet", "keras", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def backbone(request, tmp_path):
    if request.param == "keras":
        networks().save(tmp_path / "net.keras")
        return make_backbone(NetworkSettings(backbone=f"{tmp_path}/net.keras", cut="block1_out"), 16)
    return {"resnet": ResNet, "densenet": DenseNet, "ressep": ResSep}[request.param](1, image_size=16)


@pytest.mark.parametrize("combiner_conv", [True, False])
def test_a_hydra_starts_as_the_plain_network(backbone, combiner_conv):
    plain = with_values(Plain(backbone, 4))
    model = Hydra(backbone, CLUSTERS, top_k=2, tau=0.0, combine="gate_weighted", combiner_conv=combiner_conv)
    Source("plain", plain).start(model)
    expected = plain(IMAGES)["logits"]
    # The normalisation of the combiner's convolution divides by sqrt(1 + 1e-3).
    error = 2e-3 if combiner_conv else 1e-4
    np.testing.assert_allclose(model(IMAGES)["logits"], expected, rtol=error, atol=error)
    # All that is trained starts from it: what the head of each image's own branch says, too.
    forward, _ = model.run(tf.constant(IMAGES), {"labels": tf.constant([0, 1, 2, 3])}, training=False)
    np.testing.assert_allclose(forward.own_logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("combiner_conv", [True, False])
def test_a_shared_trunk_and_branches_start_as_the_plain_network(combiner_conv):
    backbone = ResNet(1, image_size=16)
    plain = with_values(Plain(backbone, 4))
    model = Hydra(
        backbone, CLUSTERS, tau=0.0, combine="gate_weighted", trunk=True, combiner_conv=combiner_conv, top_k=1
    )
    Source("plain", plain).start(model)
    np.testing.assert_allclose(model(IMAGES)["logits"], plain(IMAGES)["logits"], rtol=2e-3, atol=2e-3)


def test_the_gaters_trunk_starts_from_it_where_it_has_its_layers():
    backbone = ResNet(1, image_size=16)
    plain, model = with_values(Plain(backbone, 4)), Hydra(backbone, CLUSTERS, top_k=2)
    Source("plain", plain).start(model)
    images = model.normalize(IMAGES)
    trunk = model.gater.layers[0](model.stem(images))
    np.testing.assert_allclose(trunk, plain.network.layers[0](images), rtol=1e-4, atol=1e-5)


def test_a_plain_network_starts_as_another(backbone):
    plain, other = with_values(Plain(backbone, 4)), Plain(backbone, 4)
    Source("plain", plain).start(other)
    np.testing.assert_allclose(other(IMAGES)["logits"], plain(IMAGES)["logits"], rtol=1e-5, atol=1e-5)


def test_a_hydra_starts_as_another_of_the_same_clusters():
    backbone = ResNet(1, image_size=16)
    first = with_values(Hydra(backbone, CLUSTERS, top_k=2))
    second = Hydra(backbone, CLUSTERS, top_k=1, tau=0.3)
    Source("hydra", first).start(second)
    for mine, theirs in zip(second.weights, first.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)
    with pytest.raises(UserError, match=r"same clusters of classes.* Received: hydra with other ones"):
        Source("hydra", first).start(Hydra(backbone, (0, 0, 1, 2), top_k=2))


def test_fresh_branches_stay_as_drawn():
    backbone = ResNet(1, image_size=16)
    model = Hydra(backbone, CLUSTERS, top_k=2)
    before = [stack.numpy() for stack in model.branches.stacks]
    Source("plain", with_values(Plain(backbone, 4)), fresh_branches=True).start(model)
    for stack, then in zip(model.branches.stacks, before, strict=True):
        np.testing.assert_array_equal(stack, then)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.keras"
    Plain(ResNet(1, image_size=16), 3, class_names=("a", "b", "c")).save(path)
    return path


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"backbone": "densenet"}, 16, "same backbone, DenseNet. Received: .*model.keras, a ResNet"),
        ({"depth": 2}, 16, "the same backbone. Received: .*model.keras with depth 1, not 2"),
        ({}, 32, "with image_size 16, not 32"),
        ({"branch_width": 0.5, "stem_width": 2.0}, 16, "Received: --stem_width=2, --branch_width=0.5"),
        ({"gater_width": 0.5}, 16, "parts of width 1.* Received: --gater_width=0.5"),
        ({"init_from": "none"}, 16, "none is not there"),
        ({"init_from": "."}, 16, r"init_from must be a run that has ended, .* Received: \., in which none"),
    ],
)
def test_what_does_not_fit_is_told(saved, tmp_path, monkeypatch, settings, size, message):
    monkeypatch.chdir(tmp_path)
    network = NetworkSettings(**{"init_from": str(saved), **settings})
    with pytest.raises(UserError, match=message):
        open_source(network, make_backbone(network, size))


def test_a_plain_network_may_have_any_width_of_what_it_has_not(saved):
    network = NetworkSettings(system="plain", init_from=str(saved), branch_width=0.5)
    assert open_source(network, make_backbone(network, 16))


def test_a_plain_network_does_not_start_from_a_hydra(tmp_path):
    Hydra(ResNet(1, image_size=16), CLUSTERS, top_k=2).save(tmp_path / "model.keras")
    network = NetworkSettings(system="plain", init_from=f"{tmp_path}/model.keras")
    with pytest.raises(UserError, match=r"plain network where the new one is plain\. .* holds a Hydra"):
        open_source(network, make_backbone(network, 16))


@pytest.mark.parametrize(
    ("names", "told"),
    [("acb", "the same in another order: class 1 is 'c', not 'b'"), ("abcd", r"new: 1 of .* \('d'\)")],
)
def test_other_classes(saved, names, told):
    network = NetworkSettings(init_from=str(saved))
    source = open_source(network, make_backbone(network, 16))
    source.check_classes(("a", "b", "c"))
    with pytest.raises(UserError, match=rf"model.keras, its classes: {told}$"):
        source.check_classes(tuple(names))


@pytest.mark.slow
def test_the_command_starts_from_a_run_and_goes_on_without_it(run_command, tmp_path, monkeypatch, capsys):
    common = ["--dataset=digits", "--cutout=0", "--batch_size=500", "--feature_extractor=pixels"]
    common += [f"--cache_dir={tmp_path}/cache", "--image_size=8", "--num_branches=2", "--top_k=1"]

    def command(name, *flags):
        return run_command(train.main, Settings, *common, f"--run_dir={tmp_path}/{name}", *flags)

    assert command("plain", "--system=plain", "--epochs=1") is None
    trained = keras.models.load_model(tmp_path / "plain" / "model.keras")
    flags = (f"--init_from={tmp_path}/plain", "--epochs=1", "--trunk", "--exit_confidence=0.5")
    assert command("plain", "--overwrite", flags[0])
    assert "init_from must be another run than --run_dir" in capsys.readouterr().err

    # Killed before its first step.
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("dynkhydra_tf.training.fit", killed)
    assert command("hydra", *flags)
    (tmp_path / "plain").rename(tmp_path / "gone")
    start = keras.models.load_model(tmp_path / "hydra" / "checkpoints" / "step-00000000.keras")
    np.testing.assert_array_equal(
        start.stem.layers[0].get_weights()[0], trained.network.layers[0].layers[0].get_weights()[0]
    )
    monkeypatch.undo()
    assert command("hydra", *flags) is None
    assert "going on after step 0," in capsys.readouterr().out
    assert f"--init_from={tmp_path}/plain" in (tmp_path / "hydra" / "flags.cfg").read_text()
    summary = json.loads((tmp_path / "hydra" / "summary.json").read_text())
    assert 0 <= summary["exits"] <= 1 and summary["exit_confidence"] == 0.5
    assert summary["trunk_top1"] > 0
    flops, active = summary["flops"], summary["active_branches"]
    assert active == pytest.approx(1 - summary["exits"])  # K = 1
    assert flops["total"] == pytest.approx(flops["plain"] + active * (flops["branch"] + flops["combiner"]))
