"""What the frontier writes and says."""

import json
import re

from dynkhydra_tf.frontier import report
from dynkhydra_tf.frontier.choice import recommend, sureness, verdict
from tests.test_figures_frontier import frontier_point


def found(budget=None, spread=None):
    points = []
    for network, tau, ms, top1 in (
        ("plain, width 1", None, 4.0, 0.8),
        ("Hydra", 0.1, 3.0, 0.81),
        ("Hydra", 0.5, 2.0, 0.7),
    ):
        more = {
            "run_dir": f"runs/photos-frontier/{'plain-1' if tau is None else 'hydra'}",
            "seeds": [0] if spread is None else [0, 1],
            "active_branches": None if tau is None else 2 - tau,
            "flops": 1e6,
            "validation_top1": top1,
            "cpu_ms": ms,
        }
        points.append(frontier_point(network, tau, ms, top1, spread) | more)
    choice = recommend(points, budget)
    return {
        "dataset": "photos",
        "classes": 10,
        "images": {"train": 100, "validation": 20, "test": 50},
        "budget_ms": budget,
        "environment": {"processor": "P", "tensorflow": "2.21"},
        "points": points,
        "chosen": None if choice.point is None else points.index(choice.point),
        "reason": choice.reason,
        "sureness": sureness(points, 20),
        "verdict": verdict(points, 50),
        "export": None if choice.point is None else report.export_command(choice.point, "photos"),
        "seconds": 61.2,
    }


def test_the_text():
    text = report.text(found())
    assert "photos: 10 classes; 100 images to train, 20 held out for the choice, 50 to test." in text
    assert re.search(
        r"Hydra +0\.1 +1\.90 +81\.0 +81\.0 +76\.0 - 85\.0 +3\.00 +2\.70 - 3\.60 +1\.0  recommended", text
    )
    assert re.search(r"Hydra +0\.5 .*frontier\n", text) and not re.search(r"width 1 .*frontier", text)
    assert "Recommended: Hydra at tau 0.1, the best on the images held out" in text
    export = "dynkhydra export --run_dir=runs/photos-frontier/hydra --export_dir=served/photos --tau=0.1"
    assert text.endswith(f"To serve it: {export}")
    assert "With 20 images held out a difference of up to 23 points" in text
    assert "+- (seeds)" not in text


def test_seeds_have_a_column():
    rows = report.rows(found(spread=0.012))
    assert rows[0][5] == "+- (seeds)" and rows[1][5] == "1.2 (2)"
    assert {len(row) for row in rows} == {11}


def test_a_plain_network_is_exported_without_tau():
    command = report.export_command({"tau": None, "run_dir": "runs/a b"}, "photos")
    assert command == "dynkhydra export '--run_dir=runs/a b' --export_dir=served/photos"


def test_the_files(drawn, tmp_path):
    report.write(found(budget=2.5), tmp_path)
    assert json.loads((tmp_path / "frontier.json").read_text())["chosen"] == 2
    page = (tmp_path / "frontier.html").read_text()
    assert "photos: the best network within 2.5 ms" in page and "data:image/png;base64," in page
    assert "--tau=0.5</pre>" in page and "Do branches pay?" in page
    assert drawn[0].axes[0].get_title().startswith("photos: top-1 of 50 test images")


def test_nothing_within_the_budget(drawn, tmp_path):
    none = found(budget=0.5)
    assert none["chosen"] is None
    assert "Recommended: none, nothing answers within 0.5 ms; the fastest is Hydra at tau 0.5" in report.text(
        none
    )
    assert "To serve it" not in report.text(none)
    report.write(none, tmp_path)
    assert "<pre>" not in (tmp_path / "frontier.html").read_text()
