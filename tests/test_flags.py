import dataclasses

import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.flags import parse, read_flagfile, to_flagfile
from dynkhydra_tf.settings import Settings


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
