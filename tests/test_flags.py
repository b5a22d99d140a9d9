import dataclasses
import os

import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.files import write_text
from dynkhydra_tf.flags import parse, read_flagfile, to_flagfile
from dynkhydra_tf.settings import OptimisationSettings, Settings


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """Flags of every kind."""

    name: str | None = setting(None, "A name.")
    sizes: tuple[int, ...] = setting((1, 8), "Sizes.", least=1)
    taus: tuple[float, ...] = setting((), "Thresholds.", least=0, below=1)
    words: tuple[str, ...] = setting((), "Words.")


def test_lists_have_one_parser():
    assert parse([], Options) == Options()
    given = parse(["--sizes=4, 2,4", "--taus=0,0.5", "--words=b,a,b", "--name=x"], Options)
    assert given == Options("x", (4, 2), (0.0, 0.5), ("b", "a", "b"))
    assert parse(["--sizes="], Options).sizes == ()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--sizes=1,two", "sizes=1,two: it must be whole numbers, separated by commas"),
        ("--sizes=1,0", "sizes must be numbers at least 1. Received: 1,0"),
        ("--taus=0.5,1", r"taus must be numbers in \[0, 1\). Received: 0.5,1.0"),
        ("--taus=x", "taus=x: it must be numbers, separated by commas"),
    ],
)
def test_bad_lists(argument, message):
    with pytest.raises(UserError, match=message):
        parse([argument], Options)


def test_a_flagfile_gives_the_same_settings_back(tmp_path):
    settings = parse(
        ["--tau=0.1", "--noflip", "--lr_drops=3:0.5,5:0.1", "--train_tau=0.0", "--mixed_precision"]
    )
    path = tmp_path / "flags.cfg"
    path.write_text(to_flagfile(settings))
    assert read_flagfile(path) == settings
    assert settings.optimisation.lr_drops == ((3, 0.5), (5, 0.1))


@pytest.mark.parametrize(
    ("argument", "value", "line"),
    [
        ("--mixed_precision", True, "--mixed_precision"),
        ("--mixed_precision=false", False, "--nomixed_precision"),
        ("--nomixed_precision", False, "--nomixed_precision"),
        ("--mixed_precision=auto", "auto", "--mixed_precision=auto"),
    ],
)
def test_a_switch_with_a_word_beside(argument, value, line):
    settings = parse([argument])
    assert settings.optimisation.mixed_precision == value
    assert f"{line}\n" in to_flagfile(settings)


def test_a_switch_that_is_neither():
    with pytest.raises(UserError, match="--mixed_precision=maybe: it must be true, false or auto"):
        parse(["--mixed_precision=maybe"])
    with pytest.raises(UserError, match=r"mixed_precision must be True, False or auto\. Received: maybe"):
        OptimisationSettings(mixed_precision="maybe")


def test_a_path_that_is_not_utf_8_comes_back(tmp_path):
    settings = parse([f"--data_dir={os.fsdecode(b'/photos-' + bytes([255]))}", "--run_dir=ü"])
    write_text(tmp_path / "flags.cfg", to_flagfile(settings))
    assert b"--data_dir=/photos-\xff\n" in (tmp_path / "flags.cfg").read_bytes()
    assert read_flagfile(tmp_path / "flags.cfg") == settings
    assert parse([f"--flagfile={tmp_path}/flags.cfg"]) == settings


def test_a_flagfile_does_not_overwrite(tmp_path):
    assert "overwrite" not in to_flagfile(parse(["--overwrite"]))


def test_a_flagfile_of_version_0_1(tmp_path):
    path = tmp_path / "flags.cfg"
    path.write_text("--dataset=digits\n--lr_drops=80:1e-1,140:1e-2\n--nomixed_precision\n--run_dir=runs/x\n")
    settings = read_flagfile(path)
    assert settings.optimisation.lr_drops == ((80, 0.1), (140, 0.01))
    assert (settings.data.dataset, settings.run_dir) == ("digits", "runs/x")


def test_flags_of_another_version(tmp_path):
    path = tmp_path / "flags.cfg"
    path.write_text("--wings=2\n")
    with pytest.raises(UserError, match=r"Cannot read the flags of a run from .*wings"):
        read_flagfile(path)
    with pytest.raises(UserError, match=r"Cannot read the flags of a run from .*missing.cfg"):
        read_flagfile(tmp_path / "missing.cfg")


def test_no_lr_drops():
    assert parse(["--lr_drops="]).optimisation.lr_drops == ()
    assert parse([]) == Settings()


def test_flagfiles_are_found_where_the_command_runs_or_in_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(["--flagfile=configs/cifar100.cfg"]).data.dataset == "cifar100"  # it names base.cfg
    assert parse(["--flagfile", "configs/digits.cfg", "--depth=3"]).network.depth == 3
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.cfg").write_text("# mine\n\n  --depth=4\n")
    assert parse(["--flagfile=configs/digits.cfg"]).network.depth == 4


def test_a_flagfile_names_one_beside_it(tmp_path):
    (tmp_path / "a.cfg").write_text("--depth=2\n--flagfile=b.cfg\n")
    (tmp_path / "b.cfg").write_text("--depth=3\n--top_k=2\n")
    network = parse([f"--flagfile={tmp_path}/a.cfg"]).network
    assert (network.depth, network.top_k) == (3, 2)


def test_bad_flagfiles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.cfg").write_text("--flagfile=b.cfg\n")
    (tmp_path / "b.cfg").write_text("--flagfile=a.cfg\n")
    (tmp_path / "c.cfg").write_bytes(b"--name=\xff\n")
    for name, message in [
        ("none.cfg", "--flagfile must be a file, or one of the package, .* Received: none.cfg"),
        ("configs/none.cfg", "Received: configs/none.cfg"),
        ("", "--flagfile must be a file"),
        ("a.cfg", "--flagfile must not name itself. Received: a.cfg in .*b.cfg"),
        ("c.cfg", "Unknown command line flag 'name'"),
    ]:
        with pytest.raises(UserError, match=message):
            parse([f"--flagfile={name}"])
