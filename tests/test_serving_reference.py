import json

import numpy as np
import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.serving import reference


def test_a_file_gives_back_what_was_written(trained, tmp_path):
    requests = reference.make_reference(trained, "abcdef", "stretch", 0.2, top_classes=2)
    path = tmp_path / "reference.json"
    path.write_text(json.dumps(reference.to_json(requests)))
    again, tolerance = reference.load(path)
    assert tolerance == reference.TOLERANCE
    assert {request["signature"] for request in again} == {
        "serving_default",
        "with_tau",
        "gate",
        "image_bytes",
        "image_bytes_with_tau",
    }
    for request, other in zip(requests, again, strict=True):
        for kind in ("inputs", "outputs"):
            for name, array in request[kind].items():
                assert other[kind][name].dtype == array.dtype
                np.testing.assert_array_equal(other[kind][name], array)


def test_difference():
    answer = {"gate": np.array([[0.5, 0.25]], np.float32), "class_id": np.array([3])}
    assert reference.difference(answer, answer) == 0
    assert reference.difference(answer, {**answer, "gate": np.array([[0.5, 0.75]], np.float32)}) == 0.5
    worse = [
        {**answer, "class_id": np.array([4])},
        {**answer, "gate": np.array([0.5, 0.25], np.float32)},
        {**answer, "gate": np.array([[0.5, np.nan]], np.float32)},
        {"gate": answer["gate"]},
    ]
    assert [reference.difference(answer, other) for other in worse] == [np.inf] * 4


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"requests": [{}], "tolerance": 1}'])
def test_a_file_that_is_none(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UserError, match="is no reference file of an export"):
        reference.load(tmp_path / "r.json")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        reference.load(tmp_path / "none.json")
