"""Accuracy over measured milliseconds."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from dynkhydra_tf.figures import style
from dynkhydra_tf.figures.labels import label_points

# Of the first runtime, of the second, of the third.
_FILLED = {"filled": ("full", None), "hollow": ("full", "white"), "half filled": ("left", None)}
_LINES = ("-", "--", ":")
_PLAIN, _HYDRA = "sD^vP*X<>h", "opd8"  # markers
_COLOURS = [f"C{number}" for number in range(10) if number != 7]  # C7 is grey, as the line to beat


def save_latency(rows: list[dict], title: str, path: style.Path) -> None:
    """Draws accuracy over measured milliseconds, a panel for each batch size.

    A line for each Hydra through its thresholds; a marker for each plain network, and those of one length
    of training joined: the line to beat. Dashed, dotted: answered by other runtimes than the first row.

    Args:
        rows: from `benchmark.latency`: run, runtime, batch_size, epochs, schedule, train_images, tau
            (None for a plain network), top1 (0..1), top1_deviation (over seeds, or None), ms, low, high (ms
            per image, the median and its quartiles).
        title: what was measured where.
        path: the PNG to write.
    """
    sizes = list(dict.fromkeys(row["batch_size"] for row in rows))
    figure = Figure(figsize=(10 if len(sizes) == 1 else 6 * len(sizes) + 3, 5), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    runs = list(dict.fromkeys(row["run"] for row in rows))
    runtimes = list(dict.fromkeys(row["runtime"] for row in rows))
    drawn: list[list[list[dict]]] = []
    for axes, size in zip(panels, sizes, strict=True):
        by_network: dict[tuple, list[dict]] = {}
        for row in (row for row in rows if row["batch_size"] == size):
            by_network.setdefault((row["runtime"], row["run"]), []).append(row)
        lines = list(by_network.values())
        drawn.append(lines)
        _join_plain(axes, lines, runtimes)
        for line in lines:
            _draw_line(axes, line, runs.index(line[0]["run"]), runtimes.index(line[0]["runtime"]))
        axes.set(xlabel=f"ms per image at batch {size} (median; bars: quartiles)")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.margins(0.08)
        fastest, slowest = (pick(row["ms"] for line in lines for row in line) for pick in (min, max))
        if slowest > 3 * fastest:
            axes.set_xscale("log")
            style.plain_log_axis(axes.xaxis)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("top-1" + ("; bars: 1 deviation over seeds" if _has_spread(rows) else ""))
    figure.suptitle(title, fontsize=10)
    kinds = "line: a Hydra, at each $\\tau$\nmarker alone: a plain network\ngrey: through the plain ones"
    if len(runtimes) > 1:
        kinds += "".join(f"\n{how}: {name}" for how, name in zip(_FILLED, runtimes, strict=False))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, title=kinds, title_fontsize=8)
    for axes, lines in zip(panels, drawn, strict=True):
        label_points(
            axes,
            [
                [(row["ms"], row["top1"], None if row["tau"] is None else f"{row['tau']:g}") for row in line]
                for line in lines
            ],
        )
    style.save(figure, path)


def _draw_line(axes, rows, number, runtime):
    """One network's points: a line through a Hydra's thresholds, a marker for a plain network."""
    ms, low, high, top1 = np.transpose([[row[key] for key in ("ms", "low", "high", "top1")] for row in rows])
    plain, spread = rows[0]["tau"] is None, [row["top1_deviation"] for row in rows]
    fill, face = [*_FILLED.values()][runtime]
    axes.errorbar(
        ms,
        top1,
        xerr=np.maximum([ms - low, high - ms], 0),
        yerr=None if None in spread else spread,
        marker=_PLAIN[number % len(_PLAIN)] if plain else _HYDRA[number // len(_COLOURS) % len(_HYDRA)],
        color=_COLOURS[number % len(_COLOURS)],
        fillstyle=fill,
        markerfacecolor=face,
        markerfacecoloralt="white",
        linestyle="none" if plain else _LINES[runtime],
        elinewidth=0.8,
        ecolor="silver",
        label=None if runtime else style.short(rows[0]["run"]),
    )


def _join_plain(axes, lines, runtimes):
    """A grey line through the plain networks of one runtime, trained for as long on as many images."""
    joined: dict[tuple, list] = {}
    for row in (line[0] for line in lines if line[0]["tau"] is None):
        training = row["epochs"], row["schedule"], row.get("train_images")
        joined.setdefault((row["runtime"], *training), []).append(row)
    for (runtime, *_), rows in joined.items():
        rows = sorted(rows, key=lambda row: row["ms"])
        points = [[row[key] for row in rows] for key in ("ms", "top1")]
        axes.plot(*points, _LINES[runtimes.index(runtime)], color="0.6", zorder=0)


def _has_spread(rows):
    return any(row["top1_deviation"] is not None for row in rows)
