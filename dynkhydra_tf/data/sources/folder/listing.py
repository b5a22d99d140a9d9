"""Finding the images of a folder and their classes: only directories are read, and what names do not tell.

    DIR/CLASS/image             one set, of which a part is drawn for testing
    DIR/train/CLASS/image       a set that is divided already: beside `train`, `test` or `val` or both; where
    DIR/test/CLASS/image        both are there, `val` is for validation, otherwise it is for testing

Images lie in a class's directory or at any depth below it. Files that are no pictures are passed over, and so
are hidden ones and what Windows and macOS leave behind. A directory that holds itself, through a link, is not
entered again. A file with labels (`labels.py`) names the classes of folders that have no such directories.
"""

import dataclasses
import os
import stat
import unicodedata

import numpy as np

from dynkhydra_tf.data.headers import BEGINNING, looks_like_a_picture
from dynkhydra_tf.data.sources.folder.labels import read_labels
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.files import readable

SPLIT_OF = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
LEFT_BEHIND = ("thumbs.db", "desktop.ini", "__macosx")
# Files with these endings are meant as pictures; of others, the beginning tells.
ENDINGS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp"}
ENDINGS |= {".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".psd"}
LAYOUTS = "DIR/CLASS/image, or DIR/train/CLASS/image and the same under DIR/test or DIR/val"
HINT = "put each class's images into a directory of its name, or name their classes with --labels=FILE"


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of an image folder.

    Attributes:
        root: the folder.
        class_names: M names in alphabetical order, in Unicode's normal form C (NFC).
        paths: (n,) bytes, relative to `root`, sorted.
        labels: (n,) int, indices into `class_names`.
        splits: (n,) str, `train`, `validation` or `test`; None for a folder that is not divided.
        passed_over: files that are no pictures, str.
        remarks: what else the user should know of what was left out, a line each.
    """

    root: str
    class_names: tuple[str, ...]
    paths: np.ndarray
    labels: np.ndarray
    splits: np.ndarray | None
    passed_over: tuple[str, ...]
    remarks: tuple[str, ...]


def find_images(root: str | os.PathLike | None, labels: str | os.PathLike | None = None) -> Listing:
    """Lists an image folder.

    Args:
        root: path of the folder.
        labels: a file that names the classes of images, see `read_labels`. In each of `train`, `test` and
            `val`, and in a folder that is not divided, it names those of all images or of none: where it
            names some, the others are left out.

    Returns:
        Listing.

    Raises:
        UserError: no directory, one that cannot be listed, another layout than those above, fewer than two
            classes, a class without a file or without one in `train`, class names that are no UTF-8 or the
            same after normalisation, a link that leads nowhere, or what `read_labels` raises.
    """
    if not root:
        raise UserError(f"an image folder needs --data_dir=DIR, that holds {LAYOUTS}")
    root = os.path.expanduser(os.fspath(root))
    if not os.path.isdir(root):
        raise UserError(f"--data_dir={readable(root)} is not a directory; give one that holds {LAYOUTS}")
    tops = _directories(root)
    pictures, passed_over = _search(root)
    given = read_labels(labels, root, pictures) if labels else {}
    parts = _parts(root, tops, pictures)
    found: list[tuple[str, str, str | None]] = []  # path, class name, split
    remarks = []
    for part, split in parts.items():
        inside = [path for path in pictures if not part or path.startswith(part + os.sep)]
        known = {path: given[path] for path in inside if path in given}
        if not known:
            trained = {name for _, name, split in found if split == "train"}
            known, remark = _by_directory(
                root, part, inside, trained if split not in ("train", None) else None
            )
        elif len(known) < len(inside):
            remark = f"{len(inside) - len(known)} images without a label in {readable(labels)}"
        else:
            remark = None
        found += [(path, name, split) for path, name in known.items()]
        remarks += [remark] if remark else []
    found.sort(key=lambda file: os.fsencode(file[0]))
    paths, names, splits = (list(column) for column in zip(*found, strict=True)) if found else ([], [], [])
    if set(splits) == {"train"}:
        splits = [None] * len(splits)  # the others are flat, or empty
    if "test" not in splits:
        splits = ["test" if split == "validation" else split for split in splits]
    class_names, numbers = np.unique(np.array(names, object), return_inverse=True)
    divided = any(splits)
    _check_classes(root, class_names, names, splits if divided else None)
    return Listing(
        root=root,
        class_names=tuple(class_names.tolist()),
        paths=np.array([os.fsencode(path) for path in paths], object),
        labels=numbers,
        splits=np.array(splits) if divided else None,
        passed_over=tuple(passed_over),
        remarks=tuple(remarks),
    )


def _parts(root, tops, pictures):
    """The splits of a divided folder's directories, train first; {"": None} for one that is not divided."""
    parts = {top: SPLIT_OF[top.lower()] for top in tops if top.lower() in SPLIT_OF}
    train = [part for part, split in parts.items() if split == "train"]
    if not train:
        return {"": None}
    places = [path.split(os.sep) for path in pictures]
    if len(parts) < len(tops):
        if any(len(place) == 2 and place[0] in train for place in places):
            return {"": None}  # "train" is a class
        for top, *inside in places:
            if inside and top not in parts:
                raise UserError(
                    f"{readable(root)} is divided, as {train[0]} holds directories only: beside it, images "
                    f"may lie in test and val, not in {readable(top)}. Move that away, or rename {train[0]}"
                )
    return dict(sorted(parts.items(), key=lambda part: part[1] != "train"))


def _by_directory(root, part, paths, trained):
    """The classes of images in DIR/part by their directories.

    Args:
        root: the folder.
        part: "" or a directory of a divided folder.
        paths: of the images in it, relative to the folder.
        trained: the names of classes that are trained; None where this is to be trained itself.

    Returns:
        {path: class name}, and what to say of those that were left out, or None.
    """
    directories = _class_directories(root, part)
    name_of = {directory: name for name, directory in directories.items()}
    depth = bool(part) + 1
    known = {path: name_of.get(os.sep.join(path.split(os.sep)[:depth])) for path in paths}
    direct = [path for path, name in known.items() if name is None]
    known = {path: name for path, name in known.items() if name is not None}
    names = set(known.values())
    shown = readable(os.path.join(root, part) if part else root)
    if trained is not None and len(names) <= 1 and not names & trained:
        return {}, f"{len(paths)} images of {shown}, which is flat: {HINT}" if paths else None
    if not known:
        raise UserError(f"{shown} holds no directories with images; it must hold {LAYOUTS}: {HINT}")
    for name in sorted(set(directories) - names):
        raise UserError(
            f"{readable(os.path.join(root, directories[name]))} holds no images: put some in, or take it "
            f"away. The folder must hold {LAYOUTS}"
        )
    return known, f"{len(direct)} images of {shown} that lie in no class" if direct else None


def _class_directories(root, part):
    """The class directories of DIR/part, relative to DIR, by class name."""
    directories = {}
    for directory in _directories(os.path.join(root, part)):
        path = os.path.join(part, directory)
        shown = readable(os.path.join(root, path))
        try:
            directory.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{shown} has a name that is not UTF-8: give the class another one") from error
        name = unicodedata.normalize("NFC", directory)
        if name in directories:
            raise UserError(
                f"{shown} and {readable(os.path.join(root, directories[name]))} are the same class "
                f"{name!r}, written in two ways (Unicode normalisation NFC): merge them, or rename one"
            )
        directories[name] = path
    return directories


def _check_classes(root, class_names, names, splits):
    """Checks that there are classes to tell apart, and that each has training images."""
    if len(class_names) == 1:
        raise UserError(
            f"{readable(root)} holds one class, {class_names[0]!r}; there must be two or more to tell apart, "
            f"as {LAYOUTS}"
        )
    if splits is not None:
        trained = {name for name, split in zip(names, splits, strict=True) if split == "train"}
        for name in class_names:
            if name not in trained:
                raise UserError(
                    f"class {name!r} has no images in the train part of {readable(root)}: each class needs "
                    "some to be trained with"
                )


def _search(root, directory="", above=()):
    """The pictures and the other files in DIR/directory and below, relative to DIR."""
    folder = os.path.join(root, directory)
    state = os.stat(folder)
    here = (state.st_dev, state.st_ino)
    if here in above:  # a link that goes in circles
        return [], []
    files, directories = _list(folder)
    found = [], []
    for file in files:
        found[not _is_picture(os.path.join(folder, file))].append(os.path.join(directory, file))
    for inner in directories:
        for files, more in zip(
            found, _search(root, os.path.join(directory, inner), (*above, here)), strict=True
        ):
            files += more
    return found


def _is_picture(path):
    """Whether a file is meant as one; where that cannot be told, yes, so that the check will name it."""
    if os.path.splitext(path)[1].lower() in ENDINGS:
        return True
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            return looks_like_a_picture(file.read(BEGINNING))
    except OSError:
        return True


def _directories(folder):
    """The names of the directories in a folder, sorted; a link that leads nowhere is an error."""
    files, directories = _list(folder)
    for name in files:
        path = os.path.join(folder, name)
        if os.path.islink(path) and not os.path.exists(path):
            raise UserError(f"{readable(path)} is a link that leads nowhere: mend it, or take it away")
    return directories


def _list(folder):
    """The names of files, and of directories, in a folder, each sorted; without hidden ones."""
    files, directories = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in LEFT_BEHIND:
                    continue
                (directories if _is_directory(entry) else files).append(entry.name)
    except OSError as error:
        raise UserError(
            f"{readable(folder)} cannot be listed ({error.strerror}): make it readable, or take it away"
        ) from error
    return sorted(files), sorted(directories)


def _is_directory(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link that goes in circles
        return False


def check_outside(data_dir: str | os.PathLike | None, **directories: str | os.PathLike | None) -> None:
    """Checks that nothing is going to be written into an image folder, where it would become a class.

    Args:
        data_dir: the image folder, or None.
        directories: by the flag's name, where something is to be written, or None.

    Raises:
        UserError: one of them is the folder or lies inside of it.
    """
    root = os.path.realpath(os.path.expanduser(os.fspath(data_dir or "")))
    for flag, directory in directories.items():
        place = directory and os.path.realpath(os.path.expanduser(os.fspath(directory)))
        if data_dir and place and os.path.commonpath([place, root]) == root:
            raise UserError(
                f"--{flag} must not lie in the image folder --data_dir={readable(data_dir)}, where it would "
                f"become a class. Received: {readable(directory)}"
            )
