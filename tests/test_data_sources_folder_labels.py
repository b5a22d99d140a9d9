import pytest

from dynkhydra_tf.data.sources.folder.labels import read_labels
from dynkhydra_tf.errors import UserError

PICTURES = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/3.x.png", "4.jpg"]


@pytest.fixture
def read(tmp_path):
    """Returns a function that writes a table and reads it."""

    def read(table, pictures=PICTURES):
        path = tmp_path / "labels.csv"
        path.write_bytes(table if isinstance(table, bytes) else table.encode())
        return read_labels(path, "/photos", pictures)

    return read


@pytest.mark.parametrize(
    "table",
    [
        "file,label\na/1.jpg,cat\n4.jpg,dog\n",
        "a/1.jpg;cat\n\n./4.jpg; dog ;more;columns",
        'id\tbreed\r\n/photos/a/1.jpg\tcat\r\n"4"\tdog\r\n',
        b"\xef\xbb\xbfa/1,cat\n4,dog",
        "a/1.jpg,cat\na/1,cat\n4.jpg,dog",
    ],
)
def test_tables_of_many_kinds(read, table):
    assert read(table) == {"a/1.jpg": "cat", "4.jpg": "dog"}


def test_a_file_may_be_named_by_the_end_of_its_path(read):
    assert read("2.jpg,cat\n3.x.png,dog") == {"a/2.jpg": "cat", "b/3.x.png": "dog"}
    assert read("2,cat\n3.x,dog") == {"a/2.jpg": "cat", "b/3.x.png": "dog"}


def test_labels_are_normalised(read):
    assert read("4.jpg,Ka\u0308fer") == {"4.jpg": "K\u00e4fer"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "labels.csv is empty"),
        ("file,label\n", "labels.csv is empty"),
        ("4.jpg\n", r"a file and a label in each row\. Received: \['4.jpg'\]"),
        ("4.jpg, \n", "a file and a label in each row"),
        ("a/1.jpg,cat\n5.jpg,dog\na/9.jpg,dog", "2 of its files are no images in /photos, such as '5.jpg'"),
        ("1.jpg,cat", "1.jpg may be a/1.jpg or b/1.jpg; name the directory, too, as seen from /photos"),
        ("4.jpg,cat\n4.jpg,dog", "gives 4.jpg two labels: an image has one. Received: 'cat', 'dog'"),
        (b"4.jpg,caf\xe9", r"labels.csv cannot be read \(not UTF-8\)"),
    ],
)
def test_other_tables_are_one_line(read, table, message):
    with pytest.raises(UserError, match=message):
        read(table)


def test_a_table_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(
        UserError, match=r"gone cannot be read \(No such file or directory\): give a table of"
    ):
        read_labels(tmp_path / "gone", "/photos", PICTURES)
