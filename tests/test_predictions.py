import numpy as np
import pytest

from dynkhydra_tf.predictions import Predictions, class_table, mistakes_text, pair_table, worst_classes
from dynkhydra_tf.tables import table

NAMES = ("cat", "dog", "fox", "owl")


@pytest.fixture
def by_hand():
    """Seven images of cat, dog and fox; none of owl. Three are wrong: 1, 3 and 6."""
    return Predictions(
        labels=np.array([0, 0, 0, 1, 1, 2, 2]),
        predicted=np.array([0, 2, 0, 2, 1, 2, 3]),
        top5=np.array([1, 1, 1, 0, 1, 1, 0], bool),
        confidence=np.array([0.9, 0.6, 0.8, 0.99, 0.7, 0.5, 0.4]),
        loss=np.array([0.1, 2.0, 0.2, 7.0, 0.3, 0.7, 2.0]),
    )


def test_classes_by_hand(by_hand):
    cat, dog, fox, owl = by_hand.class_rows(NAMES, (0, 0, 1, 1))
    third = pytest.approx(1 / 3)
    assert cat == {
        "class": "cat",
        "cluster": 0,
        "images": 3,
        "top1": pytest.approx(2 / 3),
        "top5": 1.0,
        "taken_for": "fox",
        "taken_for_share": third,
    }
    assert (dog["top1"], dog["top5"], dog["taken_for"]) == (0.5, 0.5, "fox")
    assert (fox["cluster"], fox["taken_for"], fox["taken_for_share"]) == (1, "owl", 0.5)
    assert (owl["images"], owl["top1"], owl["top5"], owl["taken_for"]) == (0, None, None, None)
    assert by_hand.class_rows(NAMES)[0]["cluster"] is None


def test_pairs_by_hand(by_hand):
    rows = by_hand.pair_rows(NAMES, (0, 0, 1, 1))
    assert [(row["class"], row["taken_for"], row["images"], row["same_cluster"]) for row in rows] == [
        ("cat", "fox", 1, False),
        ("dog", "fox", 1, False),
        ("fox", "owl", 1, True),
    ]
    assert rows[1]["share"] == 0.5
    twice = Predictions(*(np.append(value, value[3]) for value in vars(by_hand).values()))
    assert (twice.pair_rows(NAMES)[0]["class"], twice.pair_rows(NAMES)[0]["images"]) == ("dog", 2)
    assert twice.pair_rows(NAMES)[0]["same_cluster"] is None


def test_most_wrong_by_hand(by_hand):
    assert by_hand.most_wrong(9).tolist() == [3, 1, 6]  # of equal ones the first
    assert by_hand.most_wrong(1).tolist() == [3]


def test_tables_by_hand(by_hand):
    classes = class_table(worst_classes(by_hand.class_rows(NAMES), 2))
    assert classes[1:] == [["dog", "2", "50.0%", "fox", "50.0%"], ["fox", "2", "50.0%", "owl", "50.0%"]]
    pairs = pair_table(by_hand.pair_rows(NAMES, (0, 0, 1, 1)))
    assert pairs[3] == ["fox", "owl", "1", "50.0%", "the same"]
    assert pair_table(by_hand.pair_rows(NAMES))[1][4] == "-"
    long = [{"class": "very long " * 50, "taken_for": "a", "images": 1, "share": 1.0, "same_cluster": None}]
    assert max(map(len, table(pair_table(long)).splitlines())) < 120


def test_a_network_without_mistakes():
    labels = np.array([0, 1])
    perfect = Predictions(labels, labels, labels == labels, np.ones(2), np.zeros(2))
    assert perfect.pair_rows(("a", "b")) == [] and perfect.most_wrong(5).size == 0
    assert mistakes_text(perfect.class_rows(("a", "b")), []) == "No image was taken for another class."
