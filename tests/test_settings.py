import ast
import dataclasses
import subprocess
import sys

import pytest

from dynkhydra_tf import backbones, data, distribution, gating, losses, partition, routing, settings
from dynkhydra_tf.data.catalog import DATASETS
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Role, changed, leaves
from dynkhydra_tf.flags import parse
from dynkhydra_tf.settings import Settings, by_role, differences
from tests.conftest import ROOT

PHOTOS = ("folder", "photos.cfg")


@pytest.mark.parametrize("config", sorted(path.name for path in (ROOT / "configs").glob("*.cfg")))
def test_every_config_parses(config, monkeypatch):
    monkeypatch.chdir(ROOT)  # nested flagfiles are relative to the working directory
    dataset = parse([f"--flagfile=configs/{config}"]).data.dataset
    shared = ("base.cfg", "plus.cfg", "short.cfg")
    assert dataset in config or config in shared or (dataset, config) == PHOTOS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=imagenet"], "dataset must be one of cifar100, .* Received: imagenet"),
        (["--dataset=tfds:"], "dataset"),
        (["--partition=best"], "partition.*best.*cluster_balance"),
        (["--num_branches=0"], "num_branches must be at least 1. Received: 0"),
        (["--top_k=0"], "top_k"),
        (["--top_k=5", "--num_branches=4"], "top_k must be at most num_branches=4. Received: 5"),
        (["--tau=1"], r"tau must be in \[0, 1\). Received: 1.0"),
        (["--tau=-0.1"], r"tau must be in \[0, 1\)"),
        (["--tau=nan"], r"tau must be in \[0, 1\). Received: nan"),
        (["--tau=high"], "tau.*high"),
        (["--train_tau=1.5"], r"train_tau must be in \[0, 1\)"),
        (["--test_fraction=0"], r"test_fraction must be in \(0, 1\). Received: 0.0"),
        (
            ["--backbone=MobileNetV2", "--freeze=last"],
            "freeze must be none, stem, all or until_epoch:N.*last",
        ),
        (
            ["--backbone=MobileNetV2", "--freeze=until_epoch:0"],
            "freeze must be none.* Received: until_epoch:0",
        ),
        (["--backbone=MobileNetV2", "--freeze=all"], "--freeze=all.* give --system=plain.* Received.*hydra"),
        (["--backbone=MobileNetV2", "--freeze=until_epoch:9", "--epochs=9"], "must end before.*--epochs=9"),
        (["--trunk", "--gater_width=0.5"], "one width. Received: gater_width=0.5, branch_width=1"),
        (["--exit_confidence=0.5"], "goes with --exit_weight or --trunk. Received: exit_confidence=0.5"),
        (["--trunk", "--exit_confidence=0"], r"exit_confidence must be in \(0, 1\]. Received: 0.0"),
        (["--partition=file"], "--partition=file and --partition_file go together"),
        (["--partition_file=p.json"], "--partition=file and --partition_file go together"),
        (["--alternating_flip", "--noflip"], "--alternating_flip mirrors images: leave --noflip out"),
        (["--label_smoothing=1"], r"label_smoothing must be in \[0, 1\). Received: 1.0"),
        (["--branch_gradient_scale=0"], "branch_gradient_scale must be above 0. Received: 0.0"),
        (["--distill=runs/a"], "--distill=RUN goes with --distill_weight or with --gater_targets=teacher"),
        (["--distill_weight=1"], "Received: distill=None, distill_weight=1, gater_targets=hard"),
        (["--gater_targets=teacher"], "--distill=RUN goes with"),
        (
            ["--distill=runs/a", "--system=plain", "--gater_targets=teacher"],
            "A plain network has no gate to teach: --distill needs --distill_weight",
        ),
        (
            ["--distill=runs/a", "--distill_weight=1", "--backbone=MobileNetV2", "--freeze=stem"],
            "--freeze trains on maps: add --cached_views=0",
        ),
        (
            ["--mixup=0.2", "--backbone=MobileNetV2", "--freeze=stem"],
            "--mixup changes images, and --freeze=stem",
        ),
        (
            ["--rand_augment=0.5", "--backbone=MobileNetV2", "--freeze=stem"],
            "or --cached_views=4, of which the third and fourth are drawn so. Received: rand_augment=0.5",
        ),
        (["--rand_augment=1.5"], r"rand_augment must be in \[0, 1\]. Received: 1.5"),
        (["--mixup=-1"], "mixup must be at least 0. Received: -1"),
        (["--distill_until=0"], r"distill_until must be in \(0, 1\]. Received: 0.0"),
        (["--learning_rate=0"], "learning_rate must be above 0"),
        (["--learning_rate=inf"], "learning_rate must be above 0"),
        (["--lr_drops=80"], "lr_drops=80: it must be EPOCH:FACTOR pairs"),
        (["--lr_drops=80:0.1,40:0.01"], "lr_drops must be EPOCH:FACTOR pairs.* Received: 80:0.1,40:0.01"),
        (["--branch_width=0"], "branch_width must be above 0"),
        (["--ensemble_weight=nan"], "ensemble_weight must be at least 0. Received: nan"),
        (["--warmup_epochs=inf"], "warmup_epochs must be at least 0. Received: inf"),
        (["--seed=5000000000"], r"seed must be in \[0, 4294967295\]"),
        (["--validation_fraction=0.9"], r"validation_fraction must be in \[0, 0.5\]"),
        (["--epochs=many"], "epochs.*many"),
        (["--wings=2"], "Unknown command line flag 'wings'"),
        (["more"], "Flags begin with --. Received: more"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(UserError, match=message):
        parse(arguments)


def test_settings_made_by_hand_are_checked_as_flags_are():
    with pytest.raises(UserError, match=r"fit must be one of stretch, pad, crop\. Received: squeeze"):
        settings.DataSettings(fit="squeeze")
    with pytest.raises(UserError, match="lr_drops"):
        settings.OptimisationSettings(lr_drops=((3, 0.1), (2, 0.01)))


def test_choices_are_those_of_what_they_stand_for():
    choices = {
        field.name: field.metadata["setting"].choices
        for field in leaves(Settings)
        if field.metadata["setting"].choices
    }
    assert choices == {
        "fit": data.FITS,
        "cache": data.CACHES,
        "partition": partition.STRATEGIES,
        "system": ("hydra", "plain"),
        "branch_init": ("tail", "fresh"),
        "combine": gating.COMBINATIONS,
        "combiner": ("conv", "pool"),
        "routing": routing.ROUTINGS,
        "schedule": ("piecewise", "cosine", "linear"),
        "optimizer": ("adamw", "sgd"),
        "class_weights": ("none", "balanced"),
        "classifier": ("drawn", "regression"),
        "gater_targets": losses.GATER_TARGETS,
        "distribute": distribution.STRATEGIES,
    }
    assert sorted(backbones.BACKBONES) == list(settings.BACKBONES)
    assert sorted(DATASETS) == list(settings.DATASETS)


def test_every_setting_has_a_role_and_a_help():
    for field in leaves(Settings):
        assert isinstance(field.metadata["setting"].role, Role) and field.metadata["setting"].help


def test_paths_open_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    given = parse(["--data_dir=~/photos", "--run_dir=~/runs/x", "--cache_dir=~/c"])
    assert given.data.data_dir == "/home/somebody/photos"
    assert (given.run_dir, given.place.cache_dir) == ("/home/somebody/runs/x", "/home/somebody/c")


def test_run_dir():
    assert parse(["--dataset=digits"]).run_dir == "runs/digits"
    assert parse(["--dataset=tfds:a/b"]).run_dir == "runs/tfds_a_b"
    assert parse(["--dataset=folder", "--data_dir=/x/my photos/"]).run_dir == "runs/my_photos"
    assert parse(["--run_dir=there"]).run_dir == "there"


def test_differences_are_named_and_places_do_not_count():
    then = parse(["--tau=0.1", "--data_dir=here", "--depth=2"])
    now = parse(["--tau=0.2", "--data_dir=there", "--depth=2", "--run_dir=x", "--overwrite"])
    assert differences(now, then) == ["--tau=0.2 (the run's: 0.1)"]


def test_by_role():
    features = by_role(parse(["--feature_extractor=pixels"]), Role.FEATURES, Role.SEED)
    assert features == {
        "feature_extractor": "pixels",
        "feature_weights": "imagenet",
        "feature_images_per_class": 0,
        "seed": 0,
    }


def test_changed_leaves_the_rest():
    first = parse(["--tau=0.1", "--depth=2"])
    second = changed(first, depth=3)
    assert dataclasses.replace(second, network=first.network) == first
    assert (second.network.depth, first.network.depth) == (3, 2)


def test_settings_load_nothing_heavy():
    script = (
        "import sys, importlib.util\n"
        "import absl.flags\n"
        "loaded = set(sys.modules)\n"
        "spec = importlib.util.find_spec('dynkhydra_tf')\n"
        "package = type(sys)('dynkhydra_tf'); package.__path__ = list(spec.submodule_search_locations)\n"
        "sys.modules['dynkhydra_tf'] = package\n"  # without what the package itself imports
        "import dynkhydra_tf.flags\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - loaded if 'dynkhydra' not in name}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(ast.literal_eval(done.stdout))
    assert not {"tensorflow", "keras", "numpy", "sklearn", "matplotlib"} & loaded
