import pytest
from absl import flags

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.flags import (
    define_training_flags,
    differing_flags,
    learning_rate_drops,
    read_flags,
    to_flagfile,
)
from tests.conftest import ROOT


def parse(*arguments):
    values = flags.FlagValues()
    define_training_flags(values)
    values(["train.py", *arguments])
    return values


def test_a_flagfile_gives_the_same_flags_back(tmp_path):
    values = parse("--tau=0.1", "--noflip", "--lr_drops=3:0.5,5:0.1", "--train_tau=0.0", "--mixed_precision")
    path = tmp_path / "flags.cfg"
    path.write_text(to_flagfile(values))
    again = read_flags(path)
    assert {name: again[name].value for name in again} == {name: values[name].value for name in values}


def test_differing_flags_are_named_and_places_do_not_count(tmp_path):
    path = tmp_path / "flags.cfg"
    path.write_text(to_flagfile(parse("--tau=0.1", "--data_dir=here", "--depth=2")))
    now = parse("--tau=0.2", "--data_dir=there", "--depth=2", "--run_dir=x", "--overwrite")
    assert differing_flags(now, path) == ["--tau=0.2 (the run's: 0.1)"]


def test_flags_of_another_version(tmp_path):
    path = tmp_path / "flags.cfg"
    path.write_text("--wings=2\n")
    with pytest.raises(UserError, match=r"Cannot read the flags of a run from .*wings"):
        read_flags(path)


def test_lr_drops():
    assert learning_rate_drops(parse("--lr_drops=80:1e-1,140:1e-2")) == [(80, 0.1), (140, 0.01)]
    assert learning_rate_drops(parse("--lr_drops=")) == []


@pytest.mark.parametrize("config", sorted(path.name for path in (ROOT / "configs").glob("*.cfg")))
def test_every_config_parses(config, monkeypatch):
    monkeypatch.chdir(ROOT)  # nested flagfiles are relative to the working directory
    assert parse(f"--flagfile=configs/{config}").dataset in config or config in ("base.cfg", "short.cfg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=imagenet"], "dataset.*imagenet.*cifar100"),
        (["--partition=best"], "partition.*best.*cluster_balance"),
        (["--num_branches=0"], "num_branches"),
        (["--top_k=0"], "top_k"),
        (["--top_k=5", "--num_branches=4"], "top_k must be at most num_branches"),
        (["--tau=1"], r"tau must be in \[0, 1\)"),
        (["--tau=-0.1"], r"tau must be in \[0, 1\)"),
        (["--tau=nan"], r"tau must be in \[0, 1\)"),
        (["--tau=high"], "tau.*high"),
        (["--train_tau=1.5"], r"train_tau must be in \[0, 1\)"),
        (["--partition=file"], "--partition=file and --partition_file go together"),
        (["--partition_file=p.json"], "--partition=file and --partition_file go together"),
        (["--learning_rate=0"], "learning_rate must be above 0"),
        (["--lr_drops=80"], "lr_drops must be EPOCH:FACTOR pairs"),
        (["--lr_drops=80:0.1,40:0.01"], "lr_drops must be EPOCH:FACTOR pairs"),
        (["--branch_width=0"], "branch_width must be above 0"),
        (["--ensemble_weight=nan"], "ensemble_weight must be a finite number"),
        (["--warmup_epochs=inf"], "warmup_epochs must be a finite number"),
        (["--seed=5000000000"], "seed"),
        (["--validation_fraction=0.9"], "validation_fraction"),
        (["--epochs=many"], "epochs.*many"),
        (["--wings=2"], "Unknown command line flag 'wings'"),
    ],
)
def test_bad_flags(arguments, message):
    with pytest.raises(flags.Error, match=message):
        parse(*arguments)
