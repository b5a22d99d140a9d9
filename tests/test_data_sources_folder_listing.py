import os
import unicodedata

import pytest

from dynkhydra_tf.data.sources.folder import listing as folders
from dynkhydra_tf.data.sources.folder.listing import find_images, readable
from dynkhydra_tf.errors import UserError


@pytest.fixture
def make(tmp_path):
    """Returns a function that makes empty files, which are enough to be found, and gives their folder."""
    root = tmp_path / "photos"

    def make(*paths):
        root.mkdir(exist_ok=True)
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        return root

    return make


def test_classes_are_directories(make):
    root = make("cat/b.jpg", "cat/a.png", "ant/x", "readme.txt")
    listing = find_images(root)
    assert listing.root == str(root)
    assert listing.class_names == ("ant", "cat")
    assert listing.paths.tolist() == [b"ant/x", b"cat/a.png", b"cat/b.jpg"]
    assert listing.labels.tolist() == [0, 1, 1]
    assert listing.splits is None
    assert listing.unsearched == ()


@pytest.mark.parametrize(
    ("parts", "splits"),
    [
        (("train", "test"), ["test", "train"]),
        (("train", "val"), ["train", "test"]),
        (("train", "validation"), ["train", "test"]),
        (("train", "val", "test"), ["test", "train", "validation"]),
    ],
)
def test_a_folder_may_be_divided_already(make, parts, splits):
    root = make(*(f"{part}/{name}/1.jpg" for part in parts for name in ("cat", "dog")))
    listing = find_images(root)
    assert listing.class_names == ("cat", "dog")
    assert listing.labels.tolist() == [0, 1] * len(parts)
    # The paths are sorted, and so are the parts: test, train, val.
    assert listing.splits[::2].tolist() == listing.splits[1::2].tolist() == splits


def test_train_may_be_a_class(make):
    listing = find_images(make("car/1.jpg", "train/1.jpg", "test/1.jpg"))
    assert listing.class_names == ("car", "test", "train")
    assert listing.splits is None


def test_what_is_hidden_or_left_behind_is_passed_over(make):
    ignored = (
        "cat/.DS_Store",
        "cat/Thumbs.db",
        "dog/desktop.ini",
        ".git/config",
        "__MACOSX/x",
        "dog/._1.jpg",
    )
    listing = find_images(make("cat/1.jpg", "dog/1.jpg", *ignored))
    assert listing.paths.tolist() == [b"cat/1.jpg", b"dog/1.jpg"]


def test_directories_inside_of_classes_are_not_searched_but_told(make):
    root = make("cat/1.jpg", "cat/old/2.jpg", "dog/1.jpg")
    listing = find_images(root)
    assert len(listing.paths) == 2
    assert listing.unsearched == (str(root / "cat" / "old"),)


def test_links_in_circles_do_no_harm(make):
    root = make("cat/1.jpg", "dog/1.jpg")
    (root / "cat" / "up").symlink_to(root)
    (root / "dog" / "self.jpg").symlink_to("self.jpg")
    listing = find_images(root)
    # The link to itself is no directory, so it counts as a file, which the check then refuses.
    assert listing.paths.tolist() == [b"cat/1.jpg", b"dog/1.jpg", b"dog/self.jpg"]
    assert listing.unsearched == (str(root / "cat" / "up"),)
    (root / "round").symlink_to(root)
    with pytest.raises(
        UserError, match=r"round holds no images, only directories: put some in, or take it away"
    ):
        find_images(root)


def test_a_class_may_be_a_link_and_a_broken_one_is_named(make, tmp_path):
    root = make("cat/1.jpg")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "1.jpg").touch()
    (root / "dog").symlink_to(elsewhere)
    assert find_images(root).paths.tolist() == [b"cat/1.jpg", b"dog/1.jpg"]
    (root / "eel").symlink_to(root / "gone")
    with pytest.raises(UserError, match=r"photos/eel is a link that leads nowhere: mend it, or take it away"):
        find_images(root)


def test_names_of_any_script_are_normalised(make):
    decomposed = unicodedata.normalize("NFD", "Käfer")
    listing = find_images(make(f"{decomposed}/ü.jpg", "猫/一.jpg", 'a, "b"\t$x/1.jpg', "кот/1.jpg"))
    assert listing.class_names == ("Käfer", 'a, "b"\t$x', "кот", "猫")
    assert decomposed not in listing.class_names
    # The paths stay as the disk has them.
    assert f"{decomposed}/ü.jpg".encode() in listing.paths.tolist()


def test_a_class_written_in_two_ways_is_refused_but_may_differ_between_train_and_test(make):
    composed, decomposed = (unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD"))
    root = make(f"train/{composed}/1", "train/b/1", f"test/{decomposed}/1", "test/b/1")
    assert find_images(root).class_names == ("Käfer", "b")
    make(f"train/{decomposed}/1")
    with pytest.raises(UserError) as caught:
        find_images(root)
    assert f"train/{composed}" in str(caught.value) and f"train/{decomposed}" in str(caught.value)
    assert "merge them, or rename one" in str(caught.value)


def test_a_class_name_that_is_no_utf_8_is_named(make):
    root = make("cat/1.jpg")
    bad = os.path.join(os.fsencode(root), b"caf\xe9")
    os.mkdir(bad)
    with open(os.path.join(bad, b"1.jpg"), "w"):
        pass
    with pytest.raises(
        UserError, match=r"photos/caf\\xe9 has a name that is not UTF-8: give the class another"
    ):
        find_images(root)


def test_a_file_name_that_is_no_utf_8_works(make):
    root = make("cat/1.jpg", "dog/1.jpg")
    with open(os.path.join(os.fsencode(root), b"dog/\xff.jpg"), "w"):
        pass
    listing = find_images(root)
    assert listing.paths.tolist() == [b"cat/1.jpg", b"dog/1.jpg", b"dog/\xff.jpg"]
    assert readable(listing.paths[-1]) == "dog/\\xff.jpg"


def test_a_directory_that_cannot_be_listed_is_named(make, monkeypatch):
    root = make("cat/1.jpg", "dog/1.jpg")
    scandir = os.scandir

    def refuse(path):  # permissions do not hold root back, which tests may run as
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    with pytest.raises(
        UserError, match=r"photos/dog cannot be listed \(Permission denied\): make it readable"
    ):
        find_images(root)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), "photos holds no directories with images; it must hold DIR/CLASS/image, or"),
        (("1.jpg", "2.jpg"), "photos holds no directories with images"),
        (("cat/1.jpg",), "photos holds one class, 'cat'; there must be two or more"),
        (("train/cat/1.jpg",), "photos/train holds no images, only directories"),
        (("cat/1.jpg", "dog/.hidden"), "photos/dog holds no images: put some in"),
        (("train/a/1", "train/b/1", "test/a/1", "test/c/1"), "class 'c' has no directory in .*photos/train"),
        (("train/a/1", "train/b/1", "test/a/1", "x/1"), "photos/test holds no images, only directories"),
    ],
)
def test_other_layouts_are_refused(make, paths, message):
    root = make(*paths)
    with pytest.raises(UserError, match=message):
        find_images(root)


def test_no_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"an image folder needs --data_dir=DIR, that holds DIR/CLASS/image"):
        find_images(None)
    with pytest.raises(UserError, match="absent is not a directory; give one that holds"):
        find_images(tmp_path / "absent")
