"""The confusion between clusters."""

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dynkhydra_tf.figures import style

BESIDE, NUMBERED, NAMED = 10, 30, 120  # up to so many clusters: panels in one row; shares in the cells; names


def save_confusion(results: dict, clusters: list[list[str]], path: style.Path) -> None:
    """Draws the confusion between clusters as heat maps: the gate's, the network's, and the branches run.

    Args:
        results: from `Evaluation.at`.
        clusters: N lists of class names.
        path: the PNG to write.
    """
    panels = {
        "gate": ("The gate's first choice", "branch"),
        "predicted": ("The predicted class", "its cluster"),
        "branches": (r"Branches run, $\tau$ = " + f"{results['tau']:g}", "branch"),
    }
    count = len(clusters)
    beside = count <= BESIDE
    if beside:
        figure = Figure(figsize=(17, 5.4), layout="compressed")
        panel_axes = figure.subplots(1, len(panels), sharey=True)
    else:  # one above the other, so that the names of the columns have room
        side = count * (0.36 if count <= NUMBERED else 0.13) if count <= NAMED else 12
        figure = Figure(figsize=(side + 3.4, len(panels) * (side + 2.2) + 0.6), layout="compressed")
        panel_axes = figure.subplots(len(panels), 1)
    # By the square root: beside a diagonal of 90 %, 2 % off it are still seen.
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    colors = colormaps["magma_r"].with_extremes(bad="lightgray")  # clusters without images
    for axes, (key, (title, label)) in zip(panel_axes, panels.items(), strict=True):
        shares = np.array([row or [np.nan] * count for row in results["confusion"][key]], float)
        image = axes.imshow(shares, cmap=colors, norm=norm)
        axes.set(title=title, xlabel=label)
        _name(axes, clusters, beside)
        if count <= NUMBERED:
            _write_shares(axes, shares, beside)
        if not beside or axes is panel_axes[0]:
            axes.set_ylabel("cluster of the image's class")
    bar = figure.colorbar(
        image,
        ax=panel_axes if beside else panel_axes[0],
        location="right" if beside else "top",
        pad=0.01,
        aspect=20 if beside else 50,
        ticks=[0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1],
    )
    bar.ax.tick_params(labelsize=8)
    (bar.ax.yaxis if beside else bar.ax.xaxis).set_major_formatter(PercentFormatter(1, decimals=0))
    bar.set_label("share of the cluster's images" + ("" if beside else "; in the cells in %"))
    style.save(figure, path)


def _name(axes, clusters, beside):
    """Writes the names of the clusters at the rows and, where there is room, at the columns."""
    count = len(clusters)
    size = 8 if count <= NUMBERED else 6
    axes.tick_params(labelsize=size)
    if count > NAMED:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(20, integer=True))
        return
    names = style.cluster_names(clusters)
    axes.set_yticks(range(count), [style.short(name) for name in names])
    if beside:
        axes.set_xticks(range(count))
    else:
        axes.set_xticks(range(count), [style.short(name, 24) for name in names], rotation=90)


def _write_shares(axes, shares, beside):
    """Writes the shares of the images into the cells; small cells get whole percents, without the sign."""
    for (row, column), share in np.ndenumerate(shares):
        precise = 1 if share < 0.1 else 0
        text = f"{share:.{precise}%}" if beside else f"{100 * share:.0f}"
        if share > 0 and text not in ("0.0%", "0"):
            look = {"color": "white" if share > 0.2 else "black", "ha": "center", "va": "center"}
            axes.text(column, row, text, fontsize=7, in_layout=False, **look)
