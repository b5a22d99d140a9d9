import pytest

from dynkhydra_tf.paper import tradeoff
from dynkhydra_tf.paper_numbers import DYNK, DYNK_HYDRA, HYDRARES, PLAIN


def test_papers_flops_are_its_own_where_it_has_them_and_else_our_count(monkeypatch):
    parts = {"stem": 10e6, "gater": 2e6, "branch": 5e6, "combiner": 1e6}
    counted = []
    monkeypatch.setattr(
        tradeoff, "_counted", lambda config, depth: counted.append((config, depth)) or (parts, 4)
    )
    tradeoff.paper_points.cache_clear()
    points = tradeoff.paper_points("cifar100", "resnet")
    tradeoff.paper_points.cache_clear()
    assert DYNK not in points  # its lambda is not known
    assert points[HYDRARES][0] == (1, 33.0, 63.31)  # 10 + 2 + 4 x 5 + 1
    assert points[HYDRARES][5] == (6, 378, 73.94)
    assert points[DYNK_HYDRA][1] == (2, pytest.approx(13 + 2.68 * 5), 72.84)
    assert {config for config, _ in counted} == {"cifar100"}
    assert (HYDRARES, 6) not in counted
    assert tradeoff.paper_points("cifar100", "densenet")[PLAIN][2] == (3, 22, 59.00)
    assert tradeoff.paper_points("digits", "resnet") == {}


def test_our_count_is_the_configs_network():
    flops, top_k = tradeoff._counted("imagenet32", 1)
    assert top_k == 5
    # Table 3: 61 M for HydraRes, d=1, 1,000 classes.
    assert sum(flops.values()) + 4 * flops["branch"] == pytest.approx(61e6, rel=0.03)


def test_picture_has_a_panel_for_each_data_set_and_a_line_for_each_variant(drawn, tmp_path):
    def row(dataset, variant, depth, mflops, top1):
        row = {"dataset": dataset, "backbone": "resnet", "system": DYNK_HYDRA, "variant": variant}
        row |= {"epochs": 1, "epochs_paper": 190, "schedule": "cosine", "machine": None}
        return row | {"depth": depth, "mflops": mflops, "top1": top1}

    rows = [
        row("digits", "", 2, 40.0, 91.0),
        row("digits", "", 1, 20.0, 90.0),
        row("digits", "gate_weighted", 1, 20.0, 91.0),
        row("digits", "random", 1, None, None),
        row("mine", "", 1, 30.0, 50.0),
    ]
    tradeoff.save_tradeoff(rows, tmp_path / "picture.png")
    (figure,) = drawn
    digits, mine = figure.axes
    assert [line.get_label() for line in digits.get_lines()] == ["DynK-Hydra", "DynK-Hydra, gate weighted"]
    assert digits.get_lines()[0].get_xydata().tolist() == [[20, 90], [40, 91]]  # by depth
    assert mine.get_title() == "mine, resnet\nOurs: 1 epoch, cosine. The paper's: 190 epochs."
    low, high = mine.get_xlim()
    assert low < 30 < high < 100  # a neighbourhood, not the whole axis
    assert (tmp_path / "picture.png").stat().st_size > 1000
