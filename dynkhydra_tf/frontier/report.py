"""What the frontier found, as text, JSON, a picture and a page."""

import pathlib
import shlex
from typing import Any

from dynkhydra_tf import figures
from dynkhydra_tf.files import write_json, write_text
from dynkhydra_tf.frontier.choice import on_frontier, point_name
from dynkhydra_tf.paper.page import Fold, Grid, Part, Picture, Section, to_html
from dynkhydra_tf.tables import number, table

JSON, PICTURE, PAGE = "frontier.json", "frontier.png", "frontier.html"
HEADER = ["network", "tau", "lambda", "held out, %", "test, %", "95 %", "ms", "quartiles", "MFLOPs", ""]


def write(found: dict[str, Any], directory: pathlib.Path) -> None:
    """Writes JSON, picture and page.

    Args:
        found: the content of frontier.json: dataset, classes, images, budget_ms, environment, points, chosen
            (index of a point, or None), reason, sureness, verdict, export (the command, or None), seconds.
        directory: where to.
    """
    points, chosen = found["points"], found["chosen"]
    write_json(directory / JSON, found)
    figures.save_frontier(
        points,
        f"{found['dataset']}: top-1 of {found['images']['test']} test images over the time of one image\n"
        f"{found['environment']['processor']}, 1 thread, batch 1",
        directory / PICTURE,
        None if chosen is None else points[chosen],
        found["budget_ms"],
    )
    write_text(directory / PAGE, _page(found, directory))


def text(found: dict[str, Any]) -> str:
    """Returns what was found, for a terminal."""
    images = found["images"]
    lines = [
        f"{found['dataset']}: {found['classes']} classes; {images['train']} images to train, "
        f"{images['validation']} held out for the choice, {images['test']} to test.",
        f"Time: one image at a time, 1 thread, TensorFlow's C API, as served; "
        f"{', '.join(f'{key} {value}' for key, value in found['environment'].items())}",
        f"\n{table(rows(found), text_columns=(0, len(HEADER) - (_seeds(found) == 1)))}\n",
        f"{_recommendation(found)}.",
        *([found["sureness"]] if found["sureness"] else []),
        found["verdict"],
        *([f"\nTo serve it: {found['export']}"] if found["export"] else []),
    ]
    return "\n".join(lines)


def rows(found: dict[str, Any]) -> list[list[str]]:
    """The points as the cells of a table, with a header; marked are those that nothing surpasses."""
    best = [id(point) for point in on_frontier(found["points"])]
    cells = [HEADER if _seeds(found) == 1 else [*HEADER[:5], "+- (seeds)", *HEADER[5:]]]
    for index, point in enumerate(found["points"]):
        mark = "recommended" if index == found["chosen"] else "frontier" if id(point) in best else ""
        row = [
            point["network"],
            number(point["tau"], "g"),
            number(point["active_branches"], ".2f"),
            f"{100 * point['validation_top1']:.1f}",
            f"{100 * point['top1']:.1f}",
        ]
        if _seeds(found) > 1:
            row.append(f"{100 * point['spread']:.1f} ({_seeds(found)})")
        cells.append(
            [
                *row,
                f"{100 * point['low']:.1f} - {100 * point['high']:.1f}",
                f"{point['ms']:.2f}",
                f"{point['ms_low']:.2f} - {point['ms_high']:.2f}",
                f"{point['flops'] / 1e6:.1f}",
                mark,
            ]
        )
    return cells


def export_command(point: dict[str, Any], name: str) -> str:
    """Returns the command that exports a point's network at its threshold."""
    tau = [] if point["tau"] is None else [f"--tau={point['tau']:g}"]
    place = [f"--run_dir={point['run_dir']}", f"--export_dir={pathlib.Path('served') / name}"]
    return shlex.join(["dynkhydra", "export", *place, *tau])


def _seeds(found):
    return len(found["points"][0]["seeds"])


def _recommendation(found):
    if found["chosen"] is None:
        return f"Recommended: none, {found['reason']}"
    point = found["points"][found["chosen"]]
    return f"Recommended: {point_name(point)}, {found['reason']}. Its run: {point['run_dir']}"


def _page(found, directory):
    cells = rows(found)
    main = cells[0].index("test, %")
    grid = Grid(cells, (0, len(cells[0]) - 1), (0, 1), main)
    caption = "Top-1 of the test images over the time of one image; what lies upper left is better."
    folds = [Fold("The command that exports it", [], found["export"])] if found["export"] else []
    parts = [Part(picture=Picture(directory / PICTURE, caption)), Part(grid=grid)]
    how = (
        "All networks share one pretrained stem that stays as it is, and were trained with the same recipe. "
        "The choice was made on the images held out; the test images only tell what it is worth. frontier: "
        "no network that was tried is both faster and more accurate. 95 %: where the accuracy lies, with so "
        "many test images (Wilson's interval)."
    )
    images, environment = found["images"], found["environment"]
    facts = [
        ["what", "how much"],
        ["classes", str(found["classes"])],
        *([f"images, {split}", str(count)] for split, count in images.items()),
        *([key, str(value)] for key, value in environment.items()),
        ["threads, batch", "1, 1"],
        ["seeds", ", ".join(map(str, found["points"][0]["seeds"]))],
        ["seconds, all in all", f"{found['seconds']:.0f}"],
    ]
    sections = [
        Section("Which network", f"{_recommendation(found)}. {found['sureness']}", parts, folds),
        Section("Do branches pay?", found["verdict"]),
        Section("How it was measured", how, [Part(grid=Grid(facts, (0, 1)))]),
    ]
    budget = f" within {found['budget_ms']:g} ms" if found["budget_ms"] else ""
    title = f"{found['dataset']}: the best network{budget}"
    return to_html(title, "Accuracy over measured milliseconds of several networks on one stem.", sections)
