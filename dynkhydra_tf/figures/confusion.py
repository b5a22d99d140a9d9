"""The confusion between clusters."""

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dynkhydra_tf.figures import style


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
        names = [style.short(name) for name in style.cluster_names(clusters)]
        axes[0].set_yticks(range(len(names)), names, fontsize=7 if len(names) > 20 else 8)
    else:
        axes[0].yaxis.set_major_locator(MaxNLocator(20, integer=True))
    bar = figure.colorbar(image, ax=axes, pad=0.01, ticks=[0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bar.set_label("share of the cluster's images")
    style.save(figure, path)
