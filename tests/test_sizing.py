import pytest

from dynkhydra_tf import sizing
from dynkhydra_tf.flags import parse
from dynkhydra_tf.settings import filled_from, values


@pytest.fixture
def folder(tmp_path):
    """Returns a function that makes a folder of some classes of files that are named as pictures."""

    def make(classes, images, split=""):
        for number in range(classes):
            directory = tmp_path / "photos" / split / f"class{number}"
            directory.mkdir(parents=True)
            for image in range(images):
                (directory / f"{image}.jpg").touch()
        return f"--data_dir={tmp_path}/photos"

    return make


def chosen(settings):
    return [values(settings)[name] for name in ("num_branches", "top_k", "batch_size", "image_size")]


def test_what_is_not_given_follows_from_the_folder_and_says_why(folder, capsys):
    # 10 classes of 125, of which a fifth is for testing: 1,000 images, 33 steps of 32 are near 30.
    given = ["--dataset=folder", folder(10, 125)]
    assert chosen(sizing.fill_in(parse(given))) == [2, 2, 32, None]
    assert capsys.readouterr().out.splitlines() == [
        "--num_branches=2: 10 classes, about 5 a branch",
        "--top_k=2: of 2 branches",
        "--batch_size=32: 1000 images, about 30 steps an epoch",
    ]
    network = ["--backbone=MobileNetV2", "--system=plain"]
    assert chosen(sizing.fill_in(parse([*given, *network]))) == [2, 2, 32, 224]
    assert "--image_size=224: 1000 images, which" in (printed := capsys.readouterr().out)
    assert "branches" not in printed
    all_given = ["--num_branches=5", "--top_k=1", "--batch_size=7", "--image_size=64"]
    assert chosen(sizing.fill_in(parse([*given, *network, *all_given]))) == [5, 1, 7, 64]
    assert capsys.readouterr().out == ""


def test_a_divided_folder_counts_what_is_to_be_trained(folder):
    folder(3, 100, "test")
    settings = sizing.fill_in(parse(["--dataset=folder", folder(3, 4, "train"), "--num_branches=3"]))
    assert chosen(settings) == [3, 2, 6, None]


def test_other_data_sets_have_the_papers_numbers(capsys):
    assert chosen(sizing.fill_in(parse(["--dataset=digits"]))) == [20, 4, 128, None]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (sizing.branches_for, {2: 2, 10: 2, 50: 10, 100: 20, 1000: 20}),
        (sizing.top_k_for, {2: 2, 5: 2, 10: 3, 20: 4, 1: 1}),
        (sizing.batch_size_for, {2: 1, 20: 10, 500: 16, 1000: 32, 4500: 128, 10**6: 128}),
        (sizing.image_size_for, {100: 224, 5000: 160, 30000: 128, 50000: 96}),
    ],
)
def test_rules(function, expected):
    assert {count: function(count) for count in expected} == expected


def test_a_run_that_goes_on_has_its_own_numbers():
    given = ["--num_branches=3", "--top_k=2", "--batch_size=9", "--image_size=48"]
    then = parse(["--dataset=folder", "--validation_fraction=0", *given])
    assert filled_from(parse(["--dataset=folder"]), then).data.validation_fraction == 0
    assert chosen(filled_from(parse(["--dataset=folder", "--batch_size=8"]), then)) == [3, 2, 8, 48]


def test_branches_of_one_class_are_warned_of(capsys):
    sizing.warn_of_small_clusters(10, 5)
    assert capsys.readouterr().out == ""
    sizing.warn_of_small_clusters(10, 8)
    assert "8 branches for 10 classes: some have a single class" in (printed := capsys.readouterr().out)
    assert "--num_branches=2 may do better" in printed
    sizing.warn_of_small_clusters(2, 2)
    assert capsys.readouterr().out.endswith("nothing to tell apart\n")
