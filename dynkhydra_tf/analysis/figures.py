"""The pictures of a run, as PNG files.

Drawn on `matplotlib.figure.Figure` and not through pyplot: no window system, no global state.
"""

import pathlib
import textwrap

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dynkhydra_tf.files import replacing


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
    _save(figure, path)


def save_branch_use(results, clusters, path):
    """Draws the use and the accuracy of each branch, beside the classes of its partition.

    Args:
        results: dict, from `Evaluation.at`.
        clusters: list of N lists of class names.
        path: the PNG to write.
    """
    names = [textwrap.fill(f"{b}: {', '.join(classes)}", 64) for b, classes in enumerate(clusters)]
    names = ["\n".join(name.splitlines()[:3]) for name in names]  # 1,000 classes do not fit
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
    _save(figure, path)


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
    _save(figure, path)


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
    _save(figure, path)


def _save(figure, path):
    with replacing(pathlib.Path(path)) as temporary:
        figure.savefig(temporary, dpi=110)
