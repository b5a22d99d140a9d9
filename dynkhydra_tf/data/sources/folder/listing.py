"""Finding the images of a folder and their classes: only directories are read.

    DIR/CLASS/image             one set, of which a part is drawn for testing
    DIR/train/CLASS/image       a set that is divided already: beside `train`, `test` or `val` or both; where
    DIR/test/CLASS/image        both are there, `val` is for validation, otherwise it is for testing

Whatever lies in a class's directory is taken for an image, whatever its name ends in; hidden files and what
Windows and macOS leave behind are passed over. Directories inside of a class are not searched, so links
that go in circles do no harm.
"""

import dataclasses
import os
import unicodedata

import numpy as np

from dynkhydra_tf.errors import UserError

SPLIT_OF = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
LEFT_BEHIND = ("thumbs.db", "desktop.ini", "__macosx")
LAYOUTS = "DIR/CLASS/image, or DIR/train/CLASS/image and the same under DIR/test or DIR/val"


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of an image folder.

    Attributes:
        root: the folder.
        class_names: M names in alphabetical order, in Unicode's normal form C (NFC).
        paths: (n,) bytes, relative to `root`, sorted.
        labels: (n,) int, indices into `class_names`.
        splits: (n,) str, `train`, `validation` or `test`; None for a folder that is not divided.
        unsearched: directories inside of classes, str.
    """

    root: str
    class_names: tuple[str, ...]
    paths: np.ndarray
    labels: np.ndarray
    splits: np.ndarray | None
    unsearched: tuple[str, ...]


def find_images(root: str | os.PathLike) -> Listing:
    """Lists an image folder.

    Args:
        root: path of the folder.

    Returns:
        Listing.

    Raises:
        UserError: no directory, one that cannot be listed, another layout than those above, fewer than two
            classes, a class without a file or without one in `train`, class names that are no UTF-8 or the
            same after normalisation, a link that leads nowhere.
    """
    if not root:
        raise UserError(f"an image folder needs --data_dir=DIR, that holds {LAYOUTS}")
    root = os.path.expanduser(os.fspath(root))
    if not os.path.isdir(root):
        raise UserError(f"--data_dir={readable(root)} is not a directory; give one that holds {LAYOUTS}")
    tops = _directories(root)
    divided = "train" in tops and len(tops) > 1 and set(tops) <= set(SPLIT_OF)
    files, names, splits, unsearched = [], [], [], []
    for part in tops if divided else [""]:
        for name, directory in _class_directories(root, part).items():
            inside, inner = _list(os.path.join(root, directory))
            if not inside:
                only = ", only directories" if inner else ""
                raise UserError(
                    f"{readable(os.path.join(root, directory))} holds no images{only}: put some in, or take "
                    f"it away. The folder must hold {LAYOUTS}"
                )
            files += [os.fsencode(os.path.join(directory, file)) for file in inside]
            names += [name] * len(inside)
            splits += [SPLIT_OF.get(part)] * len(inside)
            unsearched += [os.path.join(root, directory, inner_name) for inner_name in inner]
    if divided and "test" not in splits:
        splits = ["test" if split == "validation" else split for split in splits]
    class_names, labels = np.unique(np.array(names, object), return_inverse=True)
    _check_classes(root, class_names, names, splits if divided else None)
    order = sorted(range(len(files)), key=files.__getitem__)
    return Listing(
        root=root,
        class_names=tuple(class_names.tolist()),
        paths=np.array(files, object)[order],
        labels=labels[order],
        splits=np.array(splits)[order] if divided else None,
        unsearched=tuple(unsearched),
    )


def readable(path: str | bytes | os.PathLike) -> str:
    """A path, bytes or str, as text that can be printed and written: what is no UTF-8 shows as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


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
    if not len(class_names):
        raise UserError(f"{readable(root)} holds no directories with images; it must hold {LAYOUTS}")
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
                    f"class {name!r} has no directory in {readable(os.path.join(root, 'train'))}: each class "
                    "needs training images"
                )


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
