import io
import os
import re
import types

import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.photo_files import Problem, find_photos


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory: photos and other files, of which only the names matter."""
    names = ["a.jpg", "b.txt", "odd", "p/z.JPG", "p/inner/x.webp", "p/inner/notes.md", "p/.hidden/h.png"]
    for name in [*names, "p/.h.jpg", "none/list.txt", "fish [1]/f.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("names", "photos"),
    [
        (["b.txt", "a.jpg"], ["b.txt", "a.jpg"]),  # a file that is named is meant, whatever it is called
        (["p", "a.jpg", "p/z.JPG"], ["p/inner/x.webp", "p/z.JPG", "a.jpg"]),  # each once
        (["p/**/*.webp", "*.jpg"], ["p/inner/x.webp", "a.jpg"]),
        (["fish*"], ["fish [1]/f.png"]),
        (["fish [1]"], ["fish [1]/f.png"]),  # what is there is no glob
    ],
)
def test_names_stand_for_photos(place, names, photos):
    assert find_photos(names) == (photos, [])


def test_standard_input_has_a_name_a_line(place, monkeypatch):
    lines = io.BytesIO(b"a.jpg\r\n\np/inner\nb\xffd.jpg\n")
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=lines))
    unknown = Problem(os.fsdecode(b"b\xffd.jpg"), "no such file or folder")
    assert find_photos(["odd", "-"]) == (["odd", "a.jpg", "p/inner/x.webp"], [unknown])


def test_names_that_stand_for_none_are_told_beside_the_others(place):
    os.mkfifo("pipe")
    photos, problems = find_photos(["gone.jpg", "none", "a.jpg", "*.tiff", "pipe"])
    assert photos == ["a.jpg"]
    assert [problem.name for problem in problems] == ["gone.jpg", "none", "*.tiff", "pipe"]
    told = [problem.reason for problem in problems]
    assert (told[0], told[2:]) == ("no such file or folder", ["matches no photo", "not a file"])
    assert told[1].startswith("a folder without photos (.jpg ")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["gone.jpg"], "There are no photos. gone.jpg: no such file or folder"),
        (["none"], "There are no photos. none: a folder without photos (.jpg .jpeg"),
        (["-"], "There are no photos. Standard input was empty"),
    ],
)
def test_no_photo_at_all_is_refused(place, monkeypatch, names, told):
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO()))
    with pytest.raises(UserError, match=re.escape(told)):
        find_photos(names)
