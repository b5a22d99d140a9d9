"""The pictures of a run, as PNG files.

Drawn on `matplotlib.figure.Figure` and not through pyplot: no window system, no global state.
"""

import itertools
import pathlib
import textwrap

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, PercentFormatter, ScalarFormatter

from dynkhydra_tf.files import replacing

# For the characters that matplotlib's own font lacks; what a machine has of these is used, in this order.
FALLBACK_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "Noto Sans Devanagari")
FALLBACK_FONTS += ("Noto Sans Bengali", "Noto Sans Thai", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic")
FALLBACK_FONTS += ("Hiragino Sans GB", "Apple SD Gothic Neo", "Arial Unicode MS", "STIXGeneral")


def plain_text(name):
    """Returns a name (of a class, a run, a file) that matplotlib draws as it is: no formula, in one line."""
    # A folder's name may hold bytes that are no UTF-8: surrogates, which cannot be drawn.
    return " ".join(name.split()).encode("utf-8", "replace").decode().replace("$", r"\$")


def save_learning_curves(rows, top_k, path):
    """Draws loss and accuracies over the epochs, and lambda where the rows have it: of a Hydra.

    Args:
        rows: list of dicts, the rows of metrics.csv.
        top_k: int, K, drawn as the upper bound of lambda.
        path: the PNG to write.
    """
    branched = "active_branches" in rows[0]
    figure = Figure(figsize=(12 if branched else 8, 3.6), layout="constrained")
    loss, accuracy, *others = figure.subplots(1, 3 if branched else 2)
    epochs = [row["epoch"] for row in rows]

    def draw(axes, name, label, color):
        axes.plot(epochs, [row[name] for row in rows], color=color, alpha=0.45, label=f"{label}, training")
        axes.plot(epochs, [row[f"val_{name}"] for row in rows], color=color, label=f"{label}, held out")

    draw(accuracy, "top1", "top-1", "tab:blue")
    if branched:
        draw(loss, "ensemble_loss", "ensemble $L_E$", "tab:blue")
        draw(loss, "gater_loss", "gater $L_G$", "tab:orange")
        draw(accuracy, "gater_accuracy", "gater", "tab:orange")
        (active,) = others
        draw(active, "active_branches", r"$\lambda$", "tab:green")
        active.axhline(top_k, color="gray", linestyle=":", label=f"K = {top_k}")
        active.set(title=r"Branches per image, $\lambda$", ylim=(0, top_k + 0.4))
    else:
        draw(loss, "loss", "cross-entropy", "tab:blue")
    loss.set(title="Loss (nats)", ylim=(0, None))
    accuracy.set(title="Accuracy", ylim=(0, 1))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in (loss, accuracy, *others):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save(figure, path)


def save_branch_use(results, clusters, path):
    """Draws the use and the accuracy of each branch, beside the classes of its partition.

    Args:
        results: dict, from `Evaluation.at`.
        clusters: list of N lists of class names.
        path: the PNG to write.
    """
    # 1,000 classes do not fit.
    wrapped = [textwrap.wrap(name, 64, max_lines=3, placeholder=" ...") for name in _cluster_names(clusters)]
    names = ["\n".join(map(plain_text, name_lines)) for name_lines in wrapped]
    lines = [name.count("\n") + 1 for name in names]
    # A bar's height follows its label's.
    heights = 0.17 * np.array(lines) + 0.14
    places = np.cumsum(heights) - heights / 2
    figure = Figure(figsize=(11, 1.2 + heights.sum()), layout="constrained")
    use, accuracy = figure.subplots(1, 2, sharey=True)
    bars = 0.24
    use.barh(places, results["branch_use"], height=bars, color="tab:green")
    use.axvline(
        results["active_branches"] / len(clusters), color="gray", linestyle=":", label=r"even: $\lambda$ / nb"
    )
    use.set(title="Share of the images that use the branch")
    # Room for the legend below the last bar.
    use.set_ylim(heights.sum() + 0.1, 0)
    use.legend(fontsize=8)
    accuracy.barh(
        places, [value or 0 for value in results["cluster_accuracy"]], height=bars, color="tab:blue"
    )
    accuracy.axvline(results["top1"], color="gray", linestyle=":", label="all images")
    accuracy.set(title="Top-1 on the branch's own classes", xlim=(0, 1))
    accuracy.legend(fontsize=8)
    use.set_yticks(places, names, fontsize=8)
    for axes in (use, accuracy):
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.3, axis="x")
        axes.set_axisbelow(True)
    save(figure, path)


def save_confusion(results, clusters, path):
    """Draws the confusion between clusters as heat maps: the gate's, the network's, and the branches run.

    Args:
        results: dict, from `Evaluation.at`.
        clusters: list of N lists of class names.
        path: the PNG to write.
    """
    panels = {
        "gate": ("The gate's first choice", "branch"),
        "predicted": ("The predicted class", "its cluster"),
        "branches": (r"Branches run, $\tau$ = " + f"{results['tau']:g}", "branch"),
    }
    named = len(clusters) <= 30  # beyond, there is room for numbers only
    figure = Figure(figsize=(17 if named else 15, 5.4), layout="compressed")
    axes = figure.subplots(1, len(panels), sharey=True)
    # By the square root: beside a diagonal of 90 %, 2 % off it are still seen.
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    colors = colormaps["magma_r"].with_extremes(bad="lightgray")  # clusters without images
    for panel, (key, (title, label)) in zip(axes, panels.items(), strict=True):
        shares = np.array([row or [np.nan] * len(clusters) for row in results["confusion"][key]], float)
        image = panel.imshow(shares, cmap=colors, norm=norm)
        panel.set(title=title, xlabel=label)
        panel.xaxis.set_major_locator(MaxNLocator(20, integer=True, min_n_ticks=1))
        panel.tick_params(labelsize=8)
        if len(clusters) <= 10:
            for (row, column), share in np.ndenumerate(shares):
                color = "white" if share > 0.3 else "black"
                if share > 0:
                    text = f"{share:.1%}" if share < 0.1 else f"{share:.0%}"
                    panel.text(column, row, text, color=color, ha="center", va="center", fontsize=7)
    axes[0].set_ylabel("cluster of the image's class")
    if named:
        names = [_short(name) for name in _cluster_names(clusters)]
        axes[0].set_yticks(range(len(names)), names, fontsize=7 if len(names) > 20 else 8)
    else:
        axes[0].yaxis.set_major_locator(MaxNLocator(20, integer=True))
    bar = figure.colorbar(image, ax=axes, pad=0.01, ticks=[0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bar.set_label("share of the cluster's images")
    save(figure, path)


def _short(name, most=44):
    return plain_text(name if len(name) <= most else name[: most - 3] + "...")


def _cluster_names(clusters):
    return [f"{number}: {', '.join(classes)}" for number, classes in enumerate(clusters)]


def save_tau_curve(tau_rows, tau, path):
    """Draws accuracy and FLOPs over tau, and accuracy over FLOPs.

    Args:
        tau_rows: list of dicts, from `Evaluation.tau_table`.
        tau: the model's own threshold, marked.
        path: the PNG to write.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    over_tau, over_flops = figure.subplots(1, 2)
    taus, top1 = [row["tau"] for row in tau_rows], [row["top1"] for row in tau_rows]
    mflops = [row["flops"] / 1e6 for row in tau_rows]
    own = next(i for i, row in enumerate(tau_rows) if row["tau"] == tau)
    over_tau.plot(taus, [row["active_branches"] for row in tau_rows], "o-", color="tab:green")
    over_tau.plot(taus[own], tau_rows[own]["active_branches"], "o", color="black", label="the model's tau")
    over_tau.set(title=r"Branches per image, $\lambda$", xlabel=r"$\tau$", ylim=(0, None))
    over_flops.plot(mflops, top1, "o-", color="tab:blue")
    over_flops.plot(mflops[own], top1[own], "o", color="black", label="the model's tau")
    for row, x in zip(tau_rows, mflops, strict=True):
        over_flops.annotate(
            f"{row['tau']:g}", (x, row["top1"]), (4, 5), textcoords="offset points", fontsize=8
        )
    over_flops.set(title=r"Top-1 over MFLOPs per image (each point: $\tau$)", xlabel="MFLOPs per image")
    over_flops.yaxis.set_major_formatter(PercentFormatter(1))
    over_flops.margins(0.1)
    for axes in (over_tau, over_flops):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save(figure, path)


def save_inference_times(rows, path):
    """Draws the time of one image by each way to serve it, a panel for each batch size, at one thread count.

    Args:
        rows: list of dicts threads, batch_size, subjects ({name: {"ms", "low", "high"}}), one for each
            batch size, from `benchmark.inference.compare`.
        path: the PNG to write.
    """
    names = list(rows[0]["subjects"])
    colors = {"hydra": "tab:green", "limit": "silver"}
    figure = Figure(figsize=(4 + 3 * len(rows), 1.2 + 0.3 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for axes, row in zip(panels, rows, strict=True):
        for place, name in enumerate(names):
            ms, low, high = (row["subjects"][name][key] / row["batch_size"] for key in ("ms", "low", "high"))
            color = colors.get(name.split(",")[0], "tab:blue")
            axes.barh(place, ms, color=color, xerr=[[max(0, ms - low)], [max(0, high - ms)]], ecolor="gray")
            axes.annotate(
                f"{ms:.2f}", (high, place), (4, 0), textcoords="offset points", va="center", fontsize=8
            )
        threads = "one thread" if row["threads"] == 1 else f"{row['threads']} threads"
        axes.set(title=f"batch {row['batch_size']}, {threads}", xlabel="ms per image")
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.margins(x=0.16)
        axes.grid(alpha=0.3, axis="x")
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(names)), names, fontsize=9)
    save(figure, path)


def save_latency(rows, title, path):
    """Draws accuracy over measured milliseconds: a line for each Hydra, a marker for each plain network.

    Args:
        rows: list of dicts from `analysis.latency`: run, tau (None for a plain network), top1 (0..1), ms,
            low, high (ms per image, the median and its quartiles).
        title: str, what was measured where.
        path: the PNG to write.
    """
    keys = ("ms", "low", "high", "top1")
    runs = list(dict.fromkeys(row["run"] for row in rows))
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    for number, run in enumerate(runs):
        points = [row for row in rows if row["run"] == run]
        ms, low, high, top1 = np.transpose([[row[key] for key in keys] for row in points])
        plain = points[0]["tau"] is None
        axes.errorbar(
            ms,
            top1,
            xerr=np.maximum([ms - low, high - ms], 0),
            marker="osD^vP*X<>"[number // 10 % 10] if not plain else "sD^vP*X<>h"[number % 10],
            color=f"C{number % 10}",
            linestyle="none" if plain else "-",
            elinewidth=0.8,
            ecolor="silver",
            label=_short(run),
        )
    axes.set_title(title, fontsize=10)
    axes.set(xlabel="ms per image (median; bars: quartiles)", ylabel="top-1")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.margins(0.08)
    fastest, slowest = (pick(row["ms"] for row in rows) for pick in (min, max))
    if slowest > 3 * fastest:
        axes.set_xscale("log")
        steps = [step * 10.0**power for power in range(-3, 6) for step in (1, 2, 3, 5)]
        axes.xaxis.set_major_locator(FixedLocator(steps))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    kinds = "line: a Hydra, at each $\\tau$\nmarker alone: a plain network"
    figure.legend(loc="outside right upper", fontsize=8, title=kinds, title_fontsize=8)
    _label_points(figure, axes, [[row for row in rows if row["run"] == run] for run in runs])
    save(figure, path)


def _label_points(figure, axes, lines):
    """Writes tau beside each point of the lines, lists of rows; where there is no free place, nothing."""
    figure.draw_without_rendering()
    places = [axes.transData.transform([(row["ms"], row["top1"]) for row in line]) for line in lines]
    # The lines, in so many dots that none slips between two of them through a label.
    along = [np.linspace(a, b, 50) for place in places for a, b in itertools.pairwise(place)]
    drawn, taken = np.concatenate([*places, *along]), []
    # On a rising line, the first two leave it free.
    corners = [
        ((x, y), "left" if x > 0 else "right", "bottom" if y > 0 else "top")
        for x, y in ((-5, 4), (5, -4), (5, 4), (-5, -4))
    ]
    for row in (row for line in lines for row in line if row["tau"] is not None):
        for offset, across, upright in corners:
            note = axes.annotate(
                f"{row['tau']:g}",
                (row["ms"], row["top1"]),
                offset,
                textcoords="offset points",
                ha=across,
                va=upright,
                fontsize=8,
            )
            box = note.get_window_extent().padded(2)
            if not (box.count_contains(drawn) or box.count_overlaps(taken)):
                taken.append(box)
                break
            note.remove()


def save(figure, path):
    """Writes a matplotlib figure as a PNG; replaces `path` whole or not at all.

    Characters that matplotlib's own font lacks are taken from `FALLBACK_FONTS`, where these are installed.
    """
    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]
    for text in figure.findobj(Text):
        text.set_fontfamily(fonts)
    with replacing(pathlib.Path(path)) as temporary:
        figure.savefig(temporary, dpi=110)
