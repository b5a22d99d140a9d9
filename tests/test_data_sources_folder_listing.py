import os
import unicodedata

import pytest

from dynkhydra_tf.data.sources.folder import listing as folders
from dynkhydra_tf.data.sources.folder.listing import check_outside, find_images
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import readable


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
    root = make("cat/b.jpg", "cat/a.png", "ant/x.JPG", "readme.txt")
    listing = find_images(root)
    assert listing.root == str(root)
    assert listing.class_names == ("ant", "cat")
    assert listing.paths.tolist() == [b"ant/x.JPG", b"cat/a.png", b"cat/b.jpg"]
    assert listing.labels.tolist() == [0, 1, 1]
    assert listing.splits is None
    assert listing.passed_over == ("readme.txt",) and listing.remarks == ()


@pytest.mark.parametrize(
    ("parts", "splits"),
    [
        (("train", "test"), ["test", "train"]),
        (("train", "val"), ["train", "test"]),
        (("train", "validation"), ["train", "test"]),
        (("train", "val", "test"), ["test", "train", "validation"]),
        (("Training", "Testing"), ["test", "train"]),
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


def test_classes_are_searched_at_any_depth(make):
    listing = find_images(make("cat/1.jpg", "cat/old/even older/2.jpg", "dog/new/1.jpg"))
    assert listing.paths.tolist() == [b"cat/1.jpg", b"cat/old/even older/2.jpg", b"dog/new/1.jpg"]
    assert listing.labels.tolist() == [0, 0, 1]


def test_other_files_are_passed_over_unless_they_look_like_pictures(make):
    root = make("cat/1.jpg", "cat/boxes.txt", "cat/notes", "dog/1.jpg", "dog/empty.jpg", "dog/scan.tiff")
    (root / "cat" / "no ending").write_bytes(b"GIF89a and so on")
    (root / "cat" / "2.JPG_large").write_bytes(b"\xff\xd8\xff\xe0 and so on")
    listing = find_images(root)
    pictures = {
        b"cat/1.jpg",
        b"cat/2.JPG_large",
        b"cat/no ending",
        b"dog/1.jpg",
        b"dog/empty.jpg",
        b"dog/scan.tiff",
    }
    assert set(listing.paths.tolist()) == pictures
    assert sorted(listing.passed_over) == ["cat/boxes.txt", "cat/notes"]


def tiny_imagenet(make):
    """The layout of Tiny-ImageNet."""
    train = [f"train/{name}/images/{name}_{number}.JPEG" for name in ("n01", "n02") for number in range(3)]
    boxes = ["train/n01/n01_boxes.txt", "train/n02/n02_boxes.txt", "val/val_annotations.txt", "wnids.txt"]
    return make(
        *train, *boxes, *(f"{part}/images/{part}_{n}.JPEG" for part in ("val", "test") for n in range(2))
    )


def test_the_layout_of_tiny_imagenet(make):
    root = tiny_imagenet(make)
    listing = find_images(root)
    assert listing.class_names == ("n01", "n02")
    assert len(listing.paths) == 6 and listing.splits is None
    assert len(listing.passed_over) == 4
    assert len(listing.remarks) == 2
    for part, remark in zip(("test", "val"), listing.remarks, strict=True):
        assert remark.startswith(
            f"2 images of {root}/{part}, which is flat: put each class's images into a dir"
        )
        assert remark.endswith("--labels=FILE")
    # Its own list of labels: file, class, four numbers, with tabs.
    annotations = root / "val" / "val_annotations.txt"
    annotations.write_text("val_0.JPEG\tn02\t0\t0\t62\t62\nval_1.JPEG\tn01\t0\t0\t1\t1\n")
    listing = find_images(root, annotations)
    assert listing.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 0]
    assert listing.splits.tolist() == ["train"] * 6 + ["test"] * 2
    assert len(listing.remarks) == 1


def test_flat_parts_are_named(make):
    root = make("train/cat/1.jpg", "train/dog/1.jpg", "test/1.jpg", "test/2.jpg")
    listing = find_images(root)
    assert listing.splits is None and len(listing.paths) == 2
    assert listing.remarks[0].startswith(f"2 images of {root}/test, which is flat: ")
    root = make("flat/train/1.jpg", "flat/test/1.jpg") / "flat"
    with pytest.raises(UserError, match=r"flat/train holds no directories with images.*--labels=FILE"):
        find_images(root)


def test_images_outside_of_classes_are_told(make):
    root = make("cat/1.jpg", "dog/1.jpg", "stray.jpg")
    listing = find_images(root)
    assert len(listing.paths) == 2
    assert listing.remarks == (f"1 images of {root} that lie in no class",)


def test_nothing_is_written_into_the_folder(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    check_outside(tmp_path / "photos", run_dir=tmp_path / "photos2", cache_dir=None)
    check_outside(None, run_dir="runs")
    monkeypatch.chdir(tmp_path / "photos")
    for inside in (
        tmp_path / "photos",
        tmp_path / "photos" / "runs",
        tmp_path / "link" / "runs" / "1",
        "runs",
    ):
        with pytest.raises(
            UserError, match=r"--run_dir must not lie in the image folder --data_dir=.*photos, .*"
        ):
            check_outside(tmp_path / "photos", run_dir=inside)


def test_links_in_circles_do_no_harm(make):
    root = make("cat/1.jpg", "dog/1.jpg")
    (root / "cat" / "up").symlink_to(root)
    (root / "dog" / "self.jpg").symlink_to("self.jpg")
    listing = find_images(root)
    # The link to itself is no directory, so it counts as a file, which the check then refuses.
    assert listing.paths.tolist() == [b"cat/1.jpg", b"dog/1.jpg", b"dog/self.jpg"]
    (root / "round").symlink_to(root)
    with pytest.raises(UserError, match=r"round holds no images: put some in, or take it away"):
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
    root = make(f"train/{composed}/1.jpg", "train/b/1.jpg", f"test/{decomposed}/1.jpg", "test/b/1.jpg")
    assert find_images(root).class_names == ("Käfer", "b")
    make(f"train/{decomposed}/1.jpg")
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
        (
            ("1.jpg", "2.jpg"),
            "photos holds no directories with images.*or name their classes with --labels=FILE",
        ),
        (("cat/1.jpg",), "photos holds one class, 'cat'; there must be two or more"),
        (("train/cat/1.jpg",), "photos holds one class, 'cat'; there must be two or more"),
        (("cat/1.jpg", "dog/.hidden"), "photos/dog holds no images: put some in"),
        (("cat/1.jpg", "eel/1.jpg", "dog/notes.txt"), "photos/dog holds no images: put some in"),
        (
            ("train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/c/1.jpg"),
            "class 'c' has no images in the train part of .*photos",
        ),
        (
            ("train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "x/1.jpg"),
            "photos is divided, as train holds directories only: .* not in x. Move that away",
        ),
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
