import json

import numpy as np
import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.serving.model_card import taus_text
from dynkhydra_tf.serving.tau_times import BATCHES, TAUS, load_taus, measure_taus


class Model:
    """Notes what it is asked."""

    def __init__(self):
        self.asked = []

    def run(self, inputs, signature):
        assert signature == "with_tau" and len(inputs["images"]) == len(inputs["tau"])
        assert inputs["tau"].dtype == np.float32 and len(set(inputs["tau"].tolist())) == 1
        self.asked.append((round(float(inputs["tau"][0]), 6), len(inputs["tau"])))


ROWS = [
    {"tau": tau, "active_branches": 2.0, "top1": 0.5, "top5": 1, "flops": 3} for tau in (0.0, 0.01, 0.1, 0.13)
]


def test_each_threshold_is_timed_at_each_size():
    model = Model()
    rows = measure_taus(model, np.zeros((3, 8, 8, 3), np.uint8), ROWS, served_tau=0.13)
    assert [row["tau"] for row in rows] == [0.0, 0.1, 0.13]  # 0.01 is neither of TAUS nor served
    assert 0.01 not in TAUS
    assert set(model.asked) == {(tau, size) for tau in (0.0, 0.1, 0.13) for size in BATCHES}
    assert all(set(row["ms"]) == {"1", "16"} and min(row["ms"].values()) >= 0 for row in rows)


def test_the_table_in_the_card_and_in_the_file(tmp_path):
    rows = [{"tau": 0.1, "active_branches": 1.5, "top1": 0.75, "ms": {"1": 1.25, "16": 0.5}}]
    (tmp_path / "reference.json").write_text(json.dumps({"taus": rows}))
    assert load_taus(tmp_path / "reference.json") == rows
    assert "| 0.1 (served) | 1.50 | 75.00% | 1.250 | 0.500 |\n" in taus_text(rows, 0.1)
    assert "| 0.1 | 1.50 |" in taus_text(rows, 0.2)
    for record in ({}, {"taus": [{}]}, [], {"taus": 3}):
        (tmp_path / "reference.json").write_text(json.dumps(record))
        with pytest.raises(UserError, match="has no table of thresholds"):
            load_taus(tmp_path / "reference.json")
