"""The networks that are tried."""

import keras
import pytest

from dynkhydra_tf import flags
from dynkhydra_tf.backbones.pretrained import open_network
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import values
from dynkhydra_tf.frontier.candidates import candidates, that_fit

COMMON = ("--dataset=folder", "--data_dir=photos", "--backbone=MobileNetV2", "--image_size=64")


def made(*more, **options):
    return candidates(flags.parse([*COMMON, *more]), "runs/f", **options)


def test_a_linear_head_plain_tails_and_a_hydra():
    found = made("--epochs=3")
    assert [candidate.name for candidate in found] == [
        "linear head",
        "plain, width 0.25",
        "plain, width 0.5",
        "plain, width 1",
        "Hydra",
    ]
    networks = [candidate.runs[0].network for candidate in found]
    assert [(network.system, network.freeze, network.tail_width) for network in networks[:4]] == [
        ("plain", "all", 1.0),
        ("plain", "stem", 0.25),
        ("plain", "stem", 0.5),
        ("plain", "stem", 1.0),
    ]
    assert [candidate.runs[0].fits_classifier for candidate in found] == [True, False, False, False, False]
    hydra = values(found[-1].runs[0])
    chosen = {name: hydra[name] for name in ("system", "freeze", "branch_width", "gater_tail_width")}
    assert chosen == {
        "system": "hydra",
        "freeze": "stem",
        "branch_width": 0.25,
        "gater_tail_width": 0.25,
    }
    assert (hydra["combine"], hydra["partition"]) == ("gate_weighted", "cluster_optimal")
    assert hydra["feature_extractor"] == "MobileNetV2"
    assert {run.optimisation.epochs for candidate in found for run in candidate.runs} == {3}
    assert [candidate.runs[0].run_dir for candidate in found] == [
        "runs/f/linear-head",
        "runs/f/plain-0.25",
        "runs/f/plain-0.5",
        "runs/f/plain-1",
        "runs/f/hydra",
    ]


def test_what_is_given_stays():
    hydra = values(made("--num_branches=3", "--top_k=1", "--branch_width=0.5")[-1].runs[0])
    assert [hydra[name] for name in ("num_branches", "top_k", "branch_width")] == [3, 1, 0.5]
    assert values(made("--feature_extractor=pixels")[-1].runs[0])["feature_extractor"] == "pixels"


def test_seeds_are_runs_of_their_own():
    (first, *_) = made(seeds=(0, 4))
    assert [(run.optimisation.seed, run.run_dir) for run in first.runs] == [
        (0, "runs/f/linear-head-seed0"),
        (4, "runs/f/linear-head-seed4"),
    ]
    assert made("--seed=7")[0].runs[0].optimisation.seed == 7


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--system=plain", "--system is what the frontier sets .* Received: plain"),
        ("--tail_width=0.5", "--tail_width is what the frontier sets"),
        ("--run_dir=x", "--run_dir is what the frontier sets"),
        ("--freeze=until_epoch:3", "leave --freeze out"),
    ],
)
def test_what_the_frontier_sets_itself(flag, message):
    with pytest.raises(UserError, match=message):
        made(flag)


def test_where_nothing_is_hidden_behind_the_cut_no_tail_is_narrow(tmp_path, capsys):
    image = x = keras.Input((16, 16, 3))
    for number in (1, 2, 3):
        x = keras.layers.Conv2D(4, 3, padding="same", name=f"conv{number}")(x)
    keras.Model(image, x).save(tmp_path / "flat.keras")
    opened = open_network(str(tmp_path / "flat.keras"), 16)
    found = that_fit(made(f"--backbone={tmp_path}/flat.keras", "--cut=conv2"), opened)
    assert [candidate.name for candidate in found] == ["linear head", "plain, width 1", "Hydra"]
    network = found[-1].runs[0].network
    assert (network.branch_width, network.gater_tail_width) == (1, 0)
    assert "all channels: plain, width 0.25, plain, width 0.5, Hydra" in capsys.readouterr().out
    # Behind conv1 conv2's own channels are hidden, but not in a gater's trunk that ends with it.
    found = that_fit(made("--cut=conv1"), opened)
    assert len(found) == 5
    network = found[-1].runs[0].network
    assert (network.branch_width, network.gater_tail_width) == (0.25, 0)
    assert not capsys.readouterr().out
    with pytest.raises(UserError, match="cut must leave a stem and a tail"):
        that_fit(made("--cut=conv3"), opened)
